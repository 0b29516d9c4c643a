"""The types of options that a configuration file can set: plain values, and names that ppgen looks up in its tables.

jsonargparse imports whatever a value names if the type of its option is a class or a function, and checks the type only
after that. Hence no option has such a type: `plain_type` is what remains of an annotation without them.
"""

import ast
import dataclasses
import inspect
import types
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict, Union, get_args, get_origin

from jsonargparse import ArgumentError, ArgumentParser
from jsonargparse.typing import extend_base_type

from ppgen.losses import Anneal, Ramp
from ppgen.losses.weights import Schedule

__all__ = ["SCHEDULES", "make_schedule", "plain_type"]

SCALARS = (bool, int, float, str, types.NoneType)
SCALAR = bool | int | float | str | None

# the schedules that an option can name, by their name
SCHEDULES: dict[str, type[Schedule]] = {kind.__name__: kind for kind in (Ramp, Anneal)}


def plain_type(annotation: Any) -> Any:
    """The part of an annotation that consists of plain values.

    These are numbers, text, None, choices, and sequences and mappings of them. Any value, as in ``Mapping[str, Any]``,
    becomes a scalar or a sequence of scalars, a dataclass the mapping of its fields, and a schedule its text. All else,
    such as modules, functions and devices, is left out.

    Args:
        annotation: The annotation of an argument.

    Returns:
        A type, or None if nothing remains.
    """
    origin, parts = get_origin(annotation), get_args(annotation)
    if annotation in SCALARS or origin is Literal:
        return annotation
    if annotation is Any:
        return SCALAR | Sequence[SCALAR]
    if annotation is Schedule:
        return ScheduleText
    if dataclasses.is_dataclass(annotation):
        fields = {field.name: plain_type(field.type) for field in dataclasses.fields(annotation)}
        return TypedDict("Options", fields, total=False)  # type: ignore
    if origin in (Union, types.UnionType):
        kept = [part for part in map(plain_type, parts) if part is not None]
        return Union[tuple(kept)] if kept and kept != [types.NoneType] else None  # noqa: UP007
    if origin is tuple:
        return types.GenericAlias(tuple, tuple(part if part is ... else plain_type(part) for part in parts))
    if inspect.isclass(origin) and issubclass(origin, Sequence):
        return types.GenericAlias(Sequence, (plain_type(parts[0]),))
    if inspect.isclass(origin) and issubclass(origin, Mapping):
        return types.GenericAlias(Mapping, (str, plain_type(parts[1])))
    return None


def make_schedule(text: str) -> Schedule:
    """Makes the schedule of a weight from its text, such as ``Ramp(1.0, steps=1000)``.

    Args:
        text: The name of a schedule of `SCHEDULES`, and its arguments as Python writes numbers and strings.

    Raises:
        ValueError: If the text is anything else.
    """
    try:
        call = ast.parse(text, mode="eval").body if len(text) < 200 else None
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.func.id not in SCHEDULES:
            raise ValueError("this is another expression")
        kind = SCHEDULES[call.func.id]
        given = [ast.literal_eval(part) for part in call.args]
        named = {str(part.arg): ast.literal_eval(part.value) for part in call.keywords}
        parser = ArgumentParser(exit_on_error=False)
        parser.add_class_arguments(kind)
        arguments = inspect.signature(kind).bind(*given, **named).arguments
        return kind(**parser.parse_object(arguments).as_dict())
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError, ArgumentError) as error:
        raise ValueError(
            f"expected a number or a schedule, one of {', '.join(SCHEDULES)}, such as 'Ramp(1.0, steps=1000)', got "
            f"{text[:80]!r} ({error})"
        ) from error


def _check_schedule(_: type, value: Any) -> None:
    make_schedule(str(value))


ScheduleText = extend_base_type("ScheduleText", str, _check_schedule)
