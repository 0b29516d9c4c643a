"""What programs do with a share of a batch: the plates that follow its rows, and what several ranks cannot train."""

from dataclasses import replace
from itertools import zip_longest
from os import PathLike

import torch
from pyro.infer.autoguide import AutoGuide
from pyro.poutine import Trace, block
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppgen.infer.distributed import Ranks
from ppgen.infer.parameter_scope import ParameterScope
from ppgen.infer.parameters import CollectParameters, EvalMode, owning_module
from ppgen.tracing.programs import get_trace, validation
from ppgen.tracing.sites import Program, latent_sites, sample_sites
from ppgen.training.result import Chain

__all__ = ["check_same_on_all_ranks", "check_same_position", "gather_chains", "row_plates"]

REMEDY = "or train on one rank, or spread whole chains over the ranks, distribute='chains'"


def row_plates(model: Program, guide: Program, batch: tuple[Tensor, ...], share: tuple[Tensor, ...]) -> tuple[str, ...]:
    """The names of the plates that have one row for each row of the arguments, found by runs with more and fewer rows.

    Args:
        model: the model.
        guide: the guide.
        batch: arguments of more rows than `share`.
        share: arguments of fewer rows.

    Raises:
        ValueError: if a site has rows and is in no plate of them, if the size of a plate follows the rows in another
            way, or if a parameter has an entry for each row: the rows of a share are not those of another rank.
    """
    if not share or len(batch[0]) == len(share[0]):
        return ()
    module = owning_module(guide)
    automatic = isinstance(module, AutoGuide)
    found: set[str] = set()
    for program in (model,) if automatic or isinstance(guide, Messenger) else (model, guide):
        (more, parameters), (fewer, fewer_parameters) = _run(program, batch), _run(program, share)
        found |= _plates_of_rows(more, fewer, (len(batch[0]), len(share[0])))
        _check_sites(more, fewer, found)
        longer = [k for k, p in parameters.items() if k in fewer_parameters and p.shape != fewer_parameters[k].shape]
        if longer:
            raise ValueError(
                f"the parameters {', '.join(longer)} have an entry for each row, but ranks see other rows: compute "
                f"them from the rows by a network, {REMEDY}"
            )
        local = [k for k, s in latent_sites(more).items() if any(f.name in found for f in s["cond_indep_stack"])]
        if automatic and local and not getattr(module, "_amortized", None):
            raise ValueError(
                f"{type(module).__name__} has parameters for each row of {', '.join(local)}, but each rank sees other "
                f"rows: compute them from the rows, AutoFlow(model, amortized=...), {REMEDY}"
            )
    return tuple(sorted(found))


def _plates_of_rows(more: Trace, fewer: Trace, rows: tuple[int, int]) -> set[str]:
    """The plates whose size is the number of rows."""
    sizes = [
        {f.name: f.full_size or f.size for site in sample_sites(trace).values() for f in site["cond_indep_stack"]}
        for trace in (more, fewer)
    ]
    both = {name: (sizes[0][name], sizes[1][name]) for name in sizes[0] if name in sizes[1]}
    for name, pair in both.items():
        if pair[0] != pair[1] and pair != rows:
            raise ValueError(
                f"plate {name!r} has {pair[0]} rows for {rows[0]} rows of data and {pair[1]} for {rows[1]}; ranks "
                f'share rows, which need a plate of their number, pyro.plate("data", len(x)), {REMEDY}'
            )
    return {name for name, pair in both.items() if pair == rows}


def _check_sites(more: Trace, fewer: Trace, plates: set[str]) -> None:
    """Checks that sites with rows are in plates of them."""
    for name, site in sample_sites(more).items():
        if name not in fewer.nodes or site["infer"].get("_deterministic"):
            continue
        shapes = [torch.as_tensor(trace.nodes[name]["value"]).shape for trace in (more, fewer)]
        frames = site["cond_indep_stack"]
        if shapes[0] != shapes[1] and not any(f.name in plates or f.size != (f.full_size or f.size) for f in frames):
            raise ValueError(
                f"site {name!r} has rows and is in no plate of them, so that its share of the log density cannot be "
                f'told from that of a global site: put it in pyro.plate("data", len(x)), {REMEDY}'
            )


def check_same_on_all_ranks(ranks: Ranks, description: dict, rows: list[Tensor]) -> None:
    """Checks that all ranks were given the same data and options.

    Args:
        ranks: the ranks.
        description: the options, as JSON values.
        rows: some of the rows of each part of the data.

    Raises:
        ValueError: naming the first difference.
    """
    mine = description | {f"rows of data[{i}]": part.cpu().tolist() for i, part in enumerate(rows)}
    first, *others = ranks.gather(mine)
    for rank, other in enumerate(others, start=1):
        for key, value in first.items():
            if str(other.get(key)) != str(value):  # NaN, a missing value, differs from itself
                raise ValueError(
                    f"fit: rank {rank} differs from rank 0: {key} ({str(other.get(key))[:60]}, {str(value)[:60]}): "
                    "give all ranks the same options and all data, of which fit takes each rank's share"
                )


def check_same_position(ranks: Ranks, path: str | PathLike | None, position: tuple[int, int]) -> None:
    """Checks that all ranks read the same checkpoint.

    Args:
        ranks: the ranks.
        path: the checkpoint.
        position: the chain and the step that this rank continues from.

    Raises:
        ValueError: if they continue from different ones.
    """
    positions = ranks.gather(position)
    if len(set(positions)) > 1:
        found = ", ".join(f"chain {chain + 1}, step {step} on rank {r}" for r, (chain, step) in enumerate(positions))
        raise ValueError(
            f"{path}: ranks read different checkpoints ({found}): put it where all ranks see the same file"
        )


def gather_chains(crew: Ranks, chains: list[Chain]) -> list[Chain]:
    """The chains of all ranks, in the order of their numbers.

    Args:
        crew: the ranks, each of which trained every so many chains.
        chains: those of this rank.

    Raises:
        FloatingPointError: if no rank has one.
    """
    if crew.size == 1:
        return chains
    on_cpu = [replace(chain, weights={k: t.cpu() for k, t in chain.weights.items()}) for chain in chains]
    rounds = zip_longest(*crew.gather(on_cpu))
    if not (gathered := [chain for chains in rounds for chain in chains if chain is not None]):
        raise FloatingPointError("fit: the loss of every chain was not finite at its first step; see the warnings")
    return gathered


def _run(program: Program, args: tuple[Tensor, ...]) -> tuple[Trace, dict[str, Tensor]]:
    """A trace of a program and its parameters, apart from those of other runs."""
    with torch.random.fork_rng(), torch.no_grad(), validation(False):
        torch.manual_seed(0)
        with ParameterScope().open(), block(), EvalMode(), CollectParameters() as used:
            return get_trace(program, *args), used.parameters
