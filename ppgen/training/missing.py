"""Missing values in data: NaN is welcome if the model leaves it out, and refused by name if not."""

from typing import Any

import pyro
import torch
from torch import Tensor

from ppgen.infer.parameters import CollectParameters, EvalMode
from ppgen.tracing.missing import simulated_sites, sites_without_density
from ppgen.tracing.sites import Program, quote_names
from ppgen.training.conversion import as_tensors
from ppgen.utils.user_warnings import warn_user

__all__ = ["check_missing"]


def check_missing(
    model: Program, tensors: tuple[Tensor | None, ...], data: Any, *, name: str = "data", size: int | None = None
) -> None:
    """Checks that a model leaves out the NaN in its data. It runs once if there are any.

    Args:
        model: the model.
        tensors: its arguments.
        data: what they were converted from, for the message.
        name: what the message calls the data.
        size: how many rows the model takes at a time; all if left out.

    Raises:
        ValueError: naming rows, columns and sites if the model has no density there.
    """
    missing = [part.reshape(len(part), -1).isnan().any(1).cpu() for part in tensors if part is not None]
    if not (rows := torch.stack(missing).any(0) if missing else torch.zeros(0)).any():
        return
    if size is not None:  # the rows with missing values come first
        order = rows.int().argsort(descending=True, stable=True)[:size]
        tensors = tuple(None if part is None else part[order.to(part.device)] for part in tensors)
    try:
        with EvalMode(), CollectParameters(), pyro.get_param_store().scope():
            sites = sites_without_density(model, tensors)
            simulated = [] if sites else simulated_sites(model, tensors)
    except (RuntimeError, ValueError, IndexError) as error:
        reason = f"with them it does not run: {error}"
    else:
        if not sites:
            if simulated:
                which = [i for i, part in enumerate(tensors) if part is not None and part.isnan().any()]
                label = ", ".join(f"{name}[{i}]" for i in which) if len(tensors) > 1 else name
                warn_user(
                    f"{label}: {int(rows.sum())} of {len(rows)} simulations of {quote_names(simulated)} have NaN (the "
                    f"first is row {int(rows.nonzero()[0])}), which only a guide that replaces NaN can take. Leave "
                    "those rows out, ok = ~x.isnan().flatten(1).any(1), where the datum has none: the prior is then "
                    "that of the simulations which succeed"
                )
            return
        reason = f"with them it has no density at {quote_names(sites)}"
    try:
        as_tensors(data, name=name)
    except ValueError as error:
        raise ValueError(
            f"{error}, or let the model leave out what is NaN ({reason}): it can take ok = ~y.isnan(), fill every NaN "
            "by y.nan_to_num(), and observe under pyro.poutine.mask(mask=ok); or observe NaN by dist.NanMaskedNormal"
        ) from None
