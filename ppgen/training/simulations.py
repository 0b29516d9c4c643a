"""Neural posterior estimation with defaults: ``fit(simulator, "auto", table)``.

A flow q(z | x) over the latents of a row, given its data, is trained on a table of simulations z, x ~ p(z) p(x | z) by
-E log q(z | x), until simulations that are held out are no longer predicted better. Latents are mapped to the real
line, so that no draw lies outside of a prior's box, and standardized there by the table, as are the data. Several
flows, which begin from other weights, are an ensemble: the mixture of their draws errs less than one (Hermans et al.
2022, https://arxiv.org/abs/2110.06581).
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ppgen.infer.autoguide import AutoFlow
from ppgen.losses.wake_sleep import Sleep
from ppgen.models.simulator import Simulator
from ppgen.tracing.sites import quote_names
from ppgen.training.loop import train
from ppgen.training.options import TrainingOptions
from ppgen.training.result import Fitted
from ppgen.utils.user_warnings import warn_user

__all__ = ["SIMULATOR", "amortized_flow", "fit_simulator"]

SIMULATOR = "simulator"  # the key of a fit's metadata that says that its chains are an ensemble of this kind
RESTARTS, BATCH_SIZE, CLIP_NORM, LR = 5, 100, 5.0, 1e-3
FAILED = ("refuse", "leave out")
MOST_NAMED = 10  # rows that an error names


def fit_simulator(
    simulator: Simulator, table: Any, options: TrainingOptions, *, simulations: int | None, failed: str
) -> Fitted:
    """Trains an ensemble of amortized flows on simulations.

    Args:
        simulator: the simulator.
        table: simulations as `Simulator.draw` returns them, or None.
        options: the options of `fit`; what is not given has the defaults of this module.
        simulations: how many simulations to draw if there is no table.
        failed: "refuse" or "leave out" simulations that are not finite.

    Raises:
        ValueError: if there is neither a table nor a number of simulations, or both; for simulations that are not
            finite; for a budget, loss or another way to treat failed simulations.
    """
    if failed not in FAILED:
        raise ValueError(f"fit: failed is {' or '.join(map(repr, FAILED))}, got {failed!r}")
    if (table is None) == (simulations is None):
        raise ValueError('fit: give a simulator with guide="auto" either a table, simulator.draw(n), or simulations=n')
    if options.budget is not None or options.loss is not None:
        raise ValueError('fit: a simulator with guide="auto" takes no budget and no loss; give steps or max_steps')
    rows = simulator.draw(simulations, seed=options.seed) if simulations is not None else table
    names = [name for name in simulator.__signature__.parameters if name in (*simulator.data, *simulator.latents)]
    parts = _complete(dict(zip(names, rows, strict=True)), failed)
    values = {name: parts[name] for name in simulator.latents}
    with torch.random.fork_rng():
        torch.manual_seed(options.seed)
        guide = amortized_flow(simulator)
        guide.start_from(values)
    defaults: dict[str, Any] = {"restarts": RESTARTS, "batch_size": min(BATCH_SIZE, len(next(iter(values.values()))))}
    defaults |= {"clip_norm": CLIP_NORM, "optim": partial(torch.optim.Adam, lr=LR), "loss": Sleep()}
    chosen = {name: value for name, value in defaults.items() if getattr(options, name) is None}
    fitted = train(simulator, guide, tuple(parts.values()), replace(options, **chosen))
    fitted.metadata[SIMULATOR] = True
    return fitted


def amortized_flow(simulator: Simulator) -> AutoFlow:
    """The guide of each chain, before it knows the table.

    Args:
        simulator: the simulator.
    """
    return AutoFlow(simulator, amortized=simulator.data)


def _complete(parts: dict[str, Tensor], failed: str) -> dict[str, Tensor]:
    """The simulations that are finite.

    Raises:
        ValueError: if others are to be refused, or there are no others.
    """
    bad = {name: ~part.reshape(len(part), -1).isfinite().all(-1) for name, part in parts.items()}
    lost = torch.stack(list(bad.values())).any(0)
    if not lost.any():
        return parts
    sites = quote_names(name for name, rows in bad.items() if rows.any())
    rows = _listed(lost.nonzero()[:, 0].tolist())
    what = f"{int(lost.sum())} of {len(lost)} simulations are not finite at {sites}: {rows}"
    if failed == "refuse" or lost.all():
        raise ValueError(
            f'fit: {what}; failed="leave out" trains on the others, for the posterior given that a simulation succeeds'
        )
    warn_user(f"fit: {what}; they are left out, so the posterior is that given that a simulation succeeds")
    return {name: part[~lost] for name, part in parts.items()}


def _listed(rows: Sequence[int]) -> str:
    more = f" and {len(rows) - MOST_NAMED} more" if len(rows) > MOST_NAMED else ""
    return f"rows {', '.join(map(str, rows[:MOST_NAMED]))}{more}"
