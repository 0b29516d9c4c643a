"""A first run of the programs on data, before training: integers that have to be floats, observations out of range."""

import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppgen.infer.parameter_scope import ParameterScope, one_at_a_time
from ppgen.infer.parameters import CollectParameters, EvalMode, owning_module
from ppgen.tracing.programs import get_trace, validation
from ppgen.tracing.sites import Program
from ppgen.tracing.supports import check_observed_supports
from ppgen.training.conversion import cast_like
from ppgen.training.indices import NegativeIndices, out_of_range
from ppgen.utils.user_warnings import warn_user

__all__ = ["after_first_run"]

Data = tuple[Tensor, ...]


def after_first_run(
    model: Program, guide: Program | None, data: Data, *, size: int | None = None, dtype: torch.dtype, seed: int = 0
) -> Data:
    """The data as the programs take them: integers are floats, with a warning, where the programs run only so.

    An error of a program that has nothing to do with integers is left to those who run it next.

    Args:
        model: the model.
        guide: the guide, or None.
        data: the data.
        size: the number of rows of a batch; None for all.
        dtype: the floating type.
        seed: the seed of the run.

    Raises:
        IndexError: if integers are used as indices that are out of range.
        TypeError: if the programs do not run because of integers, but not with floats in their place either.
        ValueError: if observations lie outside of the support of their distribution.
    """
    programs = [model]
    if guide is not None and not isinstance(owning_module(guide), AutoGuide) and not isinstance(guide, Messenger):
        programs.append(guide)
    integers = [i for i, part in enumerate(data) if not part.is_floating_point()]
    error = _error(programs, data, size, seed, densities=bool(integers))
    if isinstance(error, IndexError) and (named := out_of_range(error, data)):
        raise named from error
    if not isinstance(error, RuntimeError | TypeError) or isinstance(error, NotImplementedError) or not integers:
        return data
    for chosen in [[i] for i in integers] + [integers]:
        labels = [f"data[{i}]" if len(data) > 1 else "data" for i in chosen]
        like = torch.empty(0, dtype=dtype)
        cast = tuple(cast_like(part, like, f"data[{i}]") if i in chosen else part for i, part in enumerate(data))
        if _error(programs, cast, size, seed, densities=True) is None:
            kinds = ", ".join(str(data[i].dtype) for i in chosen)
            warn_user(f"{', '.join(labels)}: {kinds} cast to {dtype}, without which the programs do not run")
            return cast
    if any(word in str(error) for word in ("dtype", "Long", "Int", "Bool", "bool tensor")):
        parts = ", ".join(f"data[{i}] ({data[i].dtype})" for i in integers)
        raise TypeError(
            f"the programs do not run with {parts}: {str(error).splitlines()[0]}. Where they compute with integers, "
            "convert them in the program, x.float()"
        ) from error
    return data


def _error(programs: list[Program], data: Data, size: int | None, seed: int, *, densities: bool) -> Exception | None:
    """The error of a run of the programs, if any; observations out of range are raised."""
    batch = data if size is None else tuple(part[: max(1, size)] for part in data)
    indices = NegativeIndices(batch, data)
    with one_at_a_time, torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        try:
            with indices:
                trace, *_ = [_isolated_trace(program, batch) for program in programs]
        except (RuntimeError, TypeError, ValueError, IndexError, LookupError, AttributeError) as error:
            return error
        indices.warn()
        check_observed_supports(trace, batch, data)
        try:
            if densities:
                with validation(False):  # which would warn of NaN
                    trace.compute_log_prob()
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            return error
    return None


def _isolated_trace(program: Program, args: Data) -> Trace:
    """A trace in eval mode and in an empty parameter store, in which programs cannot take each other's parameters."""
    with ParameterScope().open(), poutine.block(), EvalMode(), CollectParameters():
        return get_trace(program, *args)
