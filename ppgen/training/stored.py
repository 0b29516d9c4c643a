"""What the files of fits and of checkpoints have to hold: schemas of their metadata, and the tensors beside them.

A digest tells that a file is as it was written, not that ppgen wrote it: anyone can compute one. So each file is
checked here once, when it is read, and what follows need not ask again. A new entry of the metadata joins a schema.
"""

import math
import os
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from ppgen.infer.checkpoint_file import CheckpointError, with_prefix
from ppgen.utils.regular_files import check_size
from ppgen.utils.schema import FLAG, NATURAL, NUMBER, NUMBERS, SCALARS, TEXT, Kind, check_entries, optional

__all__ = ["ARRAYS", "CHAIN", "DTYPES", "check_stored"]

ARRAYS = ("history", "validation", "adversarial_metrics")  # the fields of a chain that are arrays by name
DTYPES = {str(d).removeprefix("torch."): d for d in vars(torch).values() if isinstance(d, torch.dtype)}

CHAIN: dict[str, Any] = {
    "stop_reason": TEXT,
    "best_step": NATURAL,
    "seconds": NUMBER,
    "interrupted": FLAG,
    "compiled": TEXT,
    "failed": optional(FLAG, absent=True),
    "skipped": optional(NATURAL, absent=True),
}
RECOVERY = {"skipped": NATURAL, "in_a_row": NATURAL, "returns": NATURAL, "step": NATURAL, "next": NATURAL}
CONVERGENCE: dict[str, Any] = {"since": NATURAL, "lowered": NATURAL, "plateau_at": NATURAL, "ended": FLAG}
CONVERGENCE |= {"reference": [NUMBER], "window": NUMBER, "path": [[NUMBER]], "worse_since": optional(NATURAL)}
SOMETHING = Kind("a value", lambda _: True)
BATCH = Kind(
    "the shape of a batch and its dtype",
    lambda v: (
        isinstance(v, list)
        and len(v) == 2
        and isinstance(v[0], list)
        and all(map(NATURAL.test, v[0]))
        and isinstance(v[1], str)
        and v[1] in DTYPES
        and math.prod(max(size, 1) for size in v[0]) < 2**62
    ),
)
SCHEDULE = Kind(
    "the step and the length of a run",
    lambda v: isinstance(v, list) and len(v) == 2 and NATURAL.test(v[0]) and (v[1] is None or NATURAL.test(v[1])),
)
COMPONENTS = Kind("a number of components from 1 to 10000", lambda v: NATURAL.test(v) and 1 <= v <= 10_000)
DRAWS = Kind("a number of draws from 1 to 10000000", lambda v: NATURAL.test(v) and 1 <= v <= 10_000_000)
GUIDES: dict[str, dict[str, Any]] = {
    "gaussian": {},
    "mixture": {"components": COMPONENTS},
    "flow": {"flow": TEXT},
    "draws": {"count": DRAWS},
}
GUIDE = {
    "kind": Kind(f"one of {', '.join(GUIDES)}", lambda v: isinstance(v, str) and v in GUIDES),
    "options": {str: SCALARS},
    "discrete": [TEXT],
    "latents": {str: NUMBERS},
}
FRAME = {"columns": [{"name": TEXT, "kind": TEXT}], "counted": [TEXT], "optional": [TEXT]}
FIT = {
    "loss": TEXT,
    "example": [BATCH],
    "chains": [CHAIN],
    "missing_chains": optional(NATURAL, absent=True),
    "schedule": optional(SCHEDULE),
    "metadata": {str: SOMETHING},
    "medians": {str: NUMBER},
}
OPTIMIZER = {
    "parameters": {str: TEXT},
    "optimizer": TEXT,
    "groups": [{str: SCALARS}],
    "numbers": {str: SCALARS},
    "on_cpu": [TEXT],
    "scheduler_steps": NATURAL,
    "rate_factor": optional(Kind("a number from 0 to 1", lambda v: NUMBER.test(v) and 0 < v <= 1), absent=True),
}
DECISIONS = {"taken": NATURAL, "steps": optional(NATURAL), "compiled": {str: NATURAL}}  # of the compiled steps
RUN = {
    "options": {str: SOMETHING},
    "ranks": NATURAL,
    "chain": NATURAL,
    "chains": [CHAIN],
    "monitor": {
        "steps": NATURAL,
        "best": NATURAL,
        "best_loss": NUMBER,
        "validation": {"step": [NATURAL], "loss": [NUMBER]},
        "seconds": NUMBER,
        "parts": optional({"best": [NUMBER], "last": [NUMBER], "rows": [NATURAL]}, absent=True),
        "convergence": optional(CONVERGENCE, absent=True),
        "recovery": optional(RECOVERY, absent=True),
    },
    "optimizers": [OPTIMIZER],
    "step": optional(NATURAL),
    "position": optional({"epoch": NATURAL, "row": NATURAL, "state": SOMETHING}, absent=True),
    "compiled": optional([DECISIONS], absent=True),
}
SCHEDULER_STEPS = 1000  # the most that a scheduler advances in a step of training: critics take several steps


def check_stored(
    path: str | os.PathLike, kind: Literal["fit", "run"], tensors: dict[str, Tensor], metadata: dict[str, Any]
) -> None:
    """Checks the contents of a file.

    Args:
        path: the file, for errors.
        kind: "fit" for the file of a fit, "run" for a checkpoint.
        tensors: its tensors.
        metadata: its metadata, of the format of this version.

    Raises:
        CheckpointError: if an entry is missing, or is not what it has to be; the message names it.
    """
    try:
        (_check_fit if kind == "fit" else _check_run)(tensors, metadata)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _check_fit(tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    check_entries(metadata, FIT)
    for shape, dtype in metadata["example"]:
        check_size("example", math.prod(shape) * DTYPES[dtype].itemsize)
    if not metadata["chains"]:
        raise ValueError("chains: expected at least one, got none")
    if (guide := metadata["metadata"].get("guide")) is not None:
        check_entries(guide, GUIDE, "metadata.guide")
        check_entries(guide["options"], GUIDES[guide["kind"]], "metadata.guide.options")
    if (frame := metadata["metadata"].get("frame")) is not None:
        check_entries(frame, FRAME, "metadata.frame")
    _check_chains(tensors, len(metadata["chains"]))


def _check_run(tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    check_entries(metadata, RUN)
    options, monitor = metadata["options"], metadata["monitor"]
    for key in ("data", "restarts"):
        if key not in options:
            raise ValueError(f"options: the entry {key!r} is missing")
    if metadata["chain"] != (complete := len(metadata["chains"])):
        raise ValueError(f"chain: expected {complete}, after as many complete ones, got {metadata['chain']}")
    _check_chains(with_prefix(tensors, "chains"), complete, "chains/")
    described = {key.partition(" ")[2]: v for key, v in options.items() if key.split(" ")[0] in DESCRIBED}
    required = {"current": True, "initial": False, "monitor/average": options.get("ema") is not None}
    for part, always in (required | {"monitor/best": False}).items():
        if (found := with_prefix(tensors, part)) or always:
            _check_described(found, described, part)
    history = with_prefix(tensors, "monitor/history")
    _check_series(history | {"loss": history.get("loss", torch.empty(0))}, "monitor/history", monitor["steps"])
    _check_series(with_prefix(tensors, "monitor/adversarial_metrics"), "monitor/adversarial_metrics")
    if len(set(map(len, monitor["validation"].values()))) > 1:
        raise ValueError("monitor.validation: its lists have different lengths")
    if kept := with_prefix(tensors, "monitor/kept"):
        if not monitor.get("recovery"):
            raise ValueError("monitor.recovery: the entry is missing")
        _check_kept(kept, tensors)
    _check_random(with_prefix(tensors, "random"), metadata["ranks"])
    for i, about in enumerate(metadata["optimizers"]):
        _check_optimizer(i, with_prefix(tensors, f"optimizers/{i}"), about, described, monitor["steps"])


DESCRIBED = ("parameter", "buffer")  # the options that describe a tensor begin with one of these words


def _check_chains(tensors: Mapping[str, Tensor], count: int, prefix: str = "") -> None:
    """The tensors of chains: ``number/kind/name``."""
    for key, tensor in tensors.items():
        number, _, rest = key.partition("/")
        kind, _, name = rest.partition("/")
        if not (number.isdecimal() and int(number) < count and kind in ("weights", *ARRAYS) and name):
            raise ValueError(f"{prefix}{key}: a tensor that belongs to no chain")
        if kind != "weights":
            _check_series({name: tensor}, f"{prefix}{number}/{kind}")
    for i in range(count):
        for key in (f"{i}/history/loss", f"{i}/validation/loss", f"{i}/validation/step"):
            if key not in tensors:
                raise ValueError(f"{prefix}{key}: the tensor is missing")
        if tensors[f"{i}/validation/loss"].shape != tensors[f"{i}/validation/step"].shape:
            raise ValueError(f"{prefix}{i}/validation: its arrays have different lengths")


def _check_series(tensors: Mapping[str, Tensor], part: str, length: int | None = None) -> None:
    """Numbers by step."""
    for name, tensor in tensors.items():
        if (
            tensor.dtype != torch.float64
            or tensor.dim() != 1
            or len(tensor) != (length if length is not None else len(tensor))
        ):
            wanted = "numbers by step" if length is None else f"{length} numbers, one for each step"
            raise ValueError(f"{part}/{name}: expected {wanted}, got {_about(tensor)}")


def _check_described(tensors: Mapping[str, Tensor], described: Mapping[str, Any], part: str) -> None:
    """Tensors of the programs, whose dtypes and shapes the options describe."""
    for name in dict.fromkeys([*described, *tensors]):
        if name not in tensors:
            raise ValueError(f"{part}/{name}: the tensor is missing")
        wanted = str(described.get(name, "no such tensor")).removesuffix(", frozen")
        if wanted != f"{tensors[name].dtype} {tuple(tensors[name].shape)}":
            raise ValueError(f"{part}/{name}: expected {wanted}, got {_about(tensors[name])}")


def _check_kept(kept: dict[str, Tensor], tensors: dict[str, Tensor]) -> None:
    """The tensors to which a chain goes back after bad steps, each like the current one."""
    current = {f"weights/{name}": tensor for name, tensor in with_prefix(tensors, "current").items()}
    current |= {f"weights/average {name}": tensor for name, tensor in with_prefix(tensors, "monitor/average").items()}
    current |= with_prefix(tensors, "optimizers")
    for name, tensor in kept.items():
        if name not in current or current[name].shape != tensor.shape:
            raise ValueError(f"monitor/kept/{name}: expected a tensor like the current one, got {_about(tensor)}")


def _check_random(tensors: Mapping[str, Tensor], ranks: int) -> None:
    """The states of the random generators of each rank."""
    if not 1 <= ranks <= max(1, len(tensors)):
        raise ValueError(f"ranks: expected as many as there are random states, got {ranks}")
    state = torch.get_rng_state()
    for rank in range(ranks):
        if (found := tensors.get(f"{rank}/cpu")) is None:
            raise ValueError(f"random/{rank}/cpu: the tensor is missing")
        if found.dtype != state.dtype or found.shape != state.shape or not _is_state(found):
            raise ValueError(f"random/{rank}/cpu: this is no state of torch's random generator")


def _is_state(state: Tensor) -> bool:
    try:
        torch.Generator().set_state(state)
    except RuntimeError:  # torch checks what it can
        return False
    return True


def _check_optimizer(
    number: int, tensors: Mapping[str, Tensor], about: Mapping[str, Any], described: Mapping[str, Any], steps: int
) -> None:
    """The state of an optimizer: for each parameter, tensors that broadcast to its shape."""
    part = f"optimizers/{number}"
    for name in about["parameters"].values():
        if name not in described:
            raise ValueError(f"optimizers[{number}].parameters: there is no parameter {name!r}")
    if about["scheduler_steps"] > SCHEDULER_STEPS * (steps + 1):
        raise ValueError(f"optimizers[{number}].scheduler_steps: more than {steps} steps explain")
    leaves, kinds = list(about["parameters"].values()), {key.partition("/")[2] for key in tensors}
    indices = {key.partition("/")[0] for key in tensors}
    if missing := [f"{i}/{kind}" for i in sorted(indices) for kind in sorted(kinds) if f"{i}/{kind}" not in tensors]:
        raise ValueError(f"{part}/{missing[0]}: the tensor is missing")
    for key, tensor in tensors.items():
        index = key.partition("/")[0]
        if not (index.isdecimal() and int(index) < len(leaves)):
            raise ValueError(f"{part}/{key}: the state of no parameter")
        leaf = str(described[leaves[int(index)]]).removesuffix(", frozen")
        dtype, _, shape = leaf.partition(" ")
        sizes = [int(size) for size in shape.strip("()").split(",") if size.strip().isdecimal()]
        fits = all(a in (1, b) for a, b in zip(reversed(tensor.shape), reversed(sizes), strict=False))
        scalar = tensor.numel() == 1 and (key.endswith("/step") or tensor.dtype == torch.float32)
        typed = str(tensor.dtype) == dtype or (scalar and tensor.is_floating_point())
        if not (fits and typed and tensor.dim() <= len(sizes)):
            raise ValueError(f"{part}/{key}: expected the state of a parameter {leaf}, got {_about(tensor)}")


def _about(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)}"
