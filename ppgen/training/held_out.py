"""Rows that are held out of training: which, how many, and whether the programs can do without them.

By default a tenth of the rows is held out where the rest of the fit stays what it is: each row has its own latents, or
none, which the guide computes from the row. Otherwise all rows count for the posterior, and leaving some out would
change it.
"""

import math

import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppgen.infer.parameter_scope import ParameterScope, one_at_a_time
from ppgen.infer.parameters import CollectParameters, EvalMode, owning_module
from ppgen.tracing.programs import get_trace, validation
from ppgen.tracing.sites import Program, Site, is_deterministic, latent_sites, sample_sites

__all__ = ["FEW_ROWS", "FROM_ROWS", "default_share", "global_draws", "hold_out", "part_rows", "rows_are_independent"]

FROM_ROWS = 100  # from so many rows on, some are held out by default
SHARE, MOST_ROWS = 0.1, 5000  # that are held out by default
PARTS, PART_ROWS = 8, (4, 1024)  # parts of held-out rows, whose losses show the noise of a check; rows of a part
FEW_ROWS = 8  # with which programs of independent rows are run to see what they consist of
TRIED_ROWS = FEW_ROWS, 5  # with which programs are run to see whether rows are independent
DRAWS, MOST_DRAWN = 4, 200  # draws of global latents, and the most numbers of one that are followed


def default_share(rows: int) -> float:
    """The share of rows that is held out by default.

    Args:
        rows: the number of rows.
    """
    return min(SHARE, MOST_ROWS / rows)


def hold_out(rows: int, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """The numbers of the rows for training and of those held out, at random.

    Args:
        rows: the number of rows.
        fraction: the share of the rows to hold out.
        seed: the seed of the split.

    Raises:
        ValueError: if either part would be empty.
    """
    held = round(fraction * rows)
    if not 0 < held < rows:
        raise ValueError(
            f"validation={fraction} of {rows} rows leaves {rows - held} for training and {held} for validation; give "
            "data, or a fraction between 0 and 1"
        )
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    return order[held:], order[:held]


def part_rows(rows: int) -> int:
    """The rows of each part of held-out data.

    Args:
        rows: the number of held-out rows.
    """
    least, most = PART_ROWS
    return min(rows, max(least, min(most, math.ceil(rows / PARTS))))


def rows_are_independent(model: Program, guide: Program, data: tuple[Tensor, ...]) -> bool:
    """Whether programs can be trained on some rows and evaluated on others.

    All sites lie in a plate of the rows, no parameter has an entry for a row, and the guide computes the latents of a
    row from the row. Programs are run on a few rows, apart from all other runs.

    Args:
        model: the model.
        guide: the guide.
        data: the data, or a batch of them.
    """
    if not data or len(data[0]) < TRIED_ROWS[0]:
        return False
    module = owning_module(guide)
    devices = [p.device for program in (model, guide) for p in getattr(owning_module(program), "parameters", list)()]
    data = tuple(part[: TRIED_ROWS[0]].to(devices[0]) if devices else part for part in data)
    runs = [_runs(model, data)]
    if isinstance(module, AutoGuide):
        if runs[0] and latent_sites(runs[0][0][0]) and not getattr(module, "_amortized", None):
            return False
    elif not isinstance(guide, Messenger):
        runs.append(_runs(guide, data))
    elif runs[0] and latent_sites(runs[0][0][0]):
        return False
    for run in runs:
        if not run:
            return False
        (more, shapes), (fewer, fewer_shapes) = run
        if shapes != fewer_shapes or not all(map(_in_plates, (more, fewer), TRIED_ROWS)):
            return False
    return bool(sample_sites(runs[0][0][0]))


def _in_plates(trace: Trace, rows: int) -> bool:
    """Whether each site that has a density lies in a plate of so many rows."""

    def of_rows(site: Site) -> bool:
        return any(frame.vectorized and frame.size == rows for frame in site["cond_indep_stack"])

    return all(of_rows(site) or is_deterministic(site) for site in sample_sites(trace).values())


def _runs(program: Program, data: tuple[Tensor, ...]) -> list[tuple[Trace, dict[str, torch.Size]]]:
    """Traces of a program on different numbers of rows, with the shapes of its parameters; none where it fails."""
    found = []
    for rows in TRIED_ROWS:
        with one_at_a_time, torch.random.fork_rng(), torch.no_grad(), validation(False):
            torch.manual_seed(0)
            try:
                with ParameterScope().open(), poutine.block(), EvalMode(), CollectParameters() as used:
                    trace = get_trace(program, *(part[:rows] for part in data))
            except Exception:  # of the user's program, which is not made for other rows, whatever it raises
                return []
        found.append((trace, {name: parameter.shape for name, parameter in used.parameters.items()}))
    return found


def global_draws(guide: Program, data: tuple[Tensor, ...]) -> list[float]:
    """Draws of the latents that all rows share, by the same random numbers each time; empty if there are none.

    Args:
        guide: the guide.
        data: a batch.
    """
    rows = len(data[0]) if data else -1
    numbers: list[float] = []
    with one_at_a_time, torch.random.fork_rng(), torch.no_grad(), EvalMode(), CollectParameters():
        torch.manual_seed(0)
        for _ in range(DRAWS):
            for site in latent_sites(get_trace(guide, *data)).values():
                if not any(frame.vectorized and frame.size == rows for frame in site["cond_indep_stack"]):
                    numbers += site["value"].detach().flatten()[:MOST_DRAWN].double().tolist()
    return [number for number in numbers if math.isfinite(number)]
