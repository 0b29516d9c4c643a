"""A recorded step as machine code, by torch's inductor, called without the guards and wrappers of torch.compile.

All private interfaces of torch's compiler are imported here, and this module is imported when the first step is
compiled. If one is missing, that import fails and steps stay eager (see `ppgen.utils.torch_private`).
"""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from inspect import getclosurevars
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx
from torch._guards import TracingContext, tracing
from torch._higher_order_ops.while_loop import while_loop_op
from torch._inductor import config
from torch._inductor.codecache import cache_dir
from torch._inductor.compile_fx import compile_fx_inner
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.fx_passes.joint_graph import constant_fold_uniform_value
from torch._inductor.fx_passes.post_grad import remove_noop_ops
from torch._inductor.lowering import lowerings
from torch._inductor.virtualized import V
from torch._subclasses import FakeTensorMode
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from ppgen.infer.compile.arguments import leaves
from ppgen.infer.compile.code_cache import check_code_cache, remove_empty_code
from ppgen.infer.compile.libraries import call_without_gradients

__all__ = ["compile_graph", "compile_loop", "functional_graph", "library_of"]

CompiledGraph = Callable[[list[Tensor]], list[Tensor]]

OPTIONS = {
    "fallback_random": True,  # random numbers left in the graph come from torch's generators, as in eager mode
    "size_asserts": False,  # a compiled step is called with the shapes that it was made for
    "alignment_asserts": False,
    "cpp.vec_isa_ok": True,  # a compiler without vector instructions fails, and the step stays eager
}
LOOP_OPTIONS = {
    "cpp.threads": 1,
    "realize_opcount_threshold": 1000,  # to compute a small value again takes less time than to make a tensor for it
    "realize_reads_threshold": 1000,
    "realize_acc_reads_threshold": 1000,
}
LARGE = 32  # from this many elements on, the scalars that a tensor is computed with are worth computing once
SERIAL = 32768  # up to this many elements in the largest tensor, a second thread costs more time than it saves
aten = torch.ops.aten
ALIASES = (aten.detach.default, aten.alias.default)


def compile_graph(module: fx.GraphModule, draws: int) -> CompiledGraph:
    """Compiles the graph of a recorded step.

    Args:
        module: the graph, whose placeholders have a "like" in their meta data.
        draws: how many of the last inputs are random numbers.

    Returns:
        A function of the inputs, which updates the same tensors as the step.

    Raises:
        PermissionError: If somebody else may put code into the folder from which torch runs what it has compiled.
    """
    likes = [node.meta["like"] for node in module.graph.nodes if node.op == "placeholder"]
    on_cpu = all(device.type == "cpu" for *_, device in likes)
    small = max(math.prod(shape) for shape, *_ in likes) <= SERIAL
    if on_cpu and not _calls_python(graph := _compile_step(module, draws, small, cpp_wrapper=True)):
        return graph
    return _compile_step(module, draws, small, cpp_wrapper=False)


def _compile_step(module: fx.GraphModule, draws: int, small: bool, *, cpp_wrapper: bool) -> CompiledGraph:
    with _compiling({"cpp.threads": 1} if small else {}):
        functional, examples = _functional(module, draws)
        remove_noop_ops(functional.graph)
        constant_fold_uniform_value(functional)
        _compute_once(functional)
        _compute_before_writes(functional)
        lowerings.setdefault(torch.ops.ppgen.once.default, _realize)
        return _compiled(functional, examples, cpp_wrapper=cpp_wrapper)


def functional_graph(module: fx.GraphModule, draws: int) -> fx.GraphModule:
    """The graph of a recorded step, in which all writes are copies into inputs.

    Args:
        module: the graph, whose placeholders have a "like" in their meta data.
        draws: how many of the last inputs are random numbers.
    """
    with _compiling({}):
        return _functional(module, draws)[0]


def compile_loop(
    going: Callable[..., Tensor], body: Callable[..., tuple[Tensor, ...]], carried: int, examples: list[Tensor]
) -> CompiledGraph:
    """Compiles a loop, with a wrapper in C++.

    Args:
        going: whether another turn follows, from what is carried and the other inputs.
        body: a turn: new values of what is carried, from the same.
        carried: how many of the inputs are carried from turn to turn.
        examples: inputs.

    Returns:
        A function of the inputs, which returns the last values of what is carried.

    Raises:
        PermissionError: If somebody else may put code into the folder from which torch runs what it has compiled.
    """

    def run(*inputs: Any) -> Any:
        return while_loop_op(going, body, inputs[:carried], inputs[carried:])

    with _compiling(LOOP_OPTIONS) as fake:
        with fake:
            inputs = [torch.empty_strided(part.shape, part.stride(), dtype=part.dtype) for part in examples]
            graph = make_fx(run, decomposition_table=_decompositions(), _allow_non_fake_inputs=True)(*inputs)
        return _compiled(graph, inputs, cpp_wrapper=True)


def library_of(compiled: CompiledGraph) -> Path | None:
    """The shared library of a graph that was compiled with a wrapper in C++; None if it cannot be found.

    Args:
        compiled: what `compile_graph` or `compile_loop` returned.
    """
    with suppress(AttributeError, KeyError, TypeError):  # with a wrapper in Python, there is more than one library
        entry = getclosurevars(compiled.run).nonlocals["f"]  # type: ignore[attr-defined]
        return Path(entry.__self__.__file__)
    return None


def _calls_python(compiled: CompiledGraph) -> bool:
    """Whether a wrapper in C++ calls operations through Python, which inductor does wrongly for lists of results."""
    library = library_of(compiled)
    source = None if library is None else library.with_suffix(".cpp")
    return source is None or not source.is_file() or "custom_op_wrapper" in source.read_text()


@contextmanager
def _compiling(options: dict[str, Any]) -> Iterator[FakeTensorMode]:
    """The context in which torch's compiler runs; the folder of its code is checked first."""
    check_code_cache(cache_dir())
    fake = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv(), static_shapes=True)
    patched = config.patch(OPTIONS | options)
    with ExitStack() as stack:
        for context in (torch.no_grad(), V.set_fake_mode(fake), tracing(TracingContext(fake)), patched):
            stack.enter_context(context)
        yield fake


def _functional(module: fx.GraphModule, draws: int) -> tuple[fx.GraphModule, list[Tensor]]:
    placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
    with V.get_fake_mode():
        examples = [_empty(*node.meta["like"]) for node in placeholders]
        functional = make_fx(
            functionalize(module, remove="mutations"),
            decomposition_table=_decompositions(),
            _allow_non_fake_inputs=True,
        )(*examples)
    _simplify(functional, draws)
    return functional, examples


def _compiled(graph: fx.GraphModule, examples: list[Tensor], *, cpp_wrapper: bool) -> CompiledGraph:
    try:
        compiled = compile_fx_inner(graph, examples, cpp_wrapper=cpp_wrapper)
    except Exception as error:
        remove_empty_code(cache_dir(), error)
        raise
    run = getattr(compiled, "current_callable", None) or compiled  # without the hooks of torch's profiler
    call = call_without_gradients(run)
    call.run = run  # type: ignore[attr-defined]
    return call


def _decompositions() -> dict[Any, Callable]:
    """Inductor's decompositions, without those that draw other random numbers than the operation."""
    table = dict(select_decomp_table())
    table[aten.bernoulli.default] = lambda p: aten.bernoulli.Tensor(p, p)
    table[aten._foreach_norm.Scalar] = _norms
    return table


def _norms(tensors: list[Tensor], order: float = 2, dtype: torch.dtype | None = None) -> list[Tensor]:
    """The norms of gradients, each as an operation that can be fused."""
    return [torch.linalg.vector_norm(tensor, order, dtype=dtype) for tensor in tensors]


@torch.library.custom_op("ppgen::once", mutates_args=())
def _once(x: Tensor) -> Tensor:
    """A value that is computed where this stands, and then read; inductor would compute it again at each use."""
    return x.clone()


@_once.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def _realize(x: Any) -> Any:
    x.realize()
    return x


def _compute_once(module: fx.GraphModule) -> None:
    """Marks the scalars that large tensors are computed with, such as Adam's 1 - beta ** step."""
    for node in list(module.graph.nodes):
        if node.op != "call_function" or not isinstance(val := node.meta.get("val"), Tensor) or val.dim():
            continue
        large = [user for user in node.users if _numel(user) >= LARGE]
        if large and node.all_input_nodes:
            with module.graph.inserting_after(node):
                once = module.graph.call_function(torch.ops.ppgen.once.default, (node,))
            once.meta = dict(node.meta)
            node.replace_all_uses_with(once, delete_user_cb=lambda user, large=large: user in large)
    module.recompile()


def _compute_before_writes(module: fx.GraphModule) -> None:
    """Computes all results and all new values of inputs before the first input is overwritten.

    Inductor inlines a value where it is used: the update of one parameter would read another one after its update.
    """
    writes = [node for node in module.graph.nodes if node.target is aten.copy_.default]
    output = next(node for node in module.graph.nodes if node.op == "output")
    computed = [node.args[1] for node in writes] + list(leaves(output.args))
    for source in dict.fromkeys(computed) if writes else ():
        if isinstance(source, fx.Node) and source.op == "call_function":
            with module.graph.inserting_after(source):  # batch norm overwrites its statistics amid the graph
                once = module.graph.call_function(torch.ops.ppgen.once.default, (source,))
            once.meta = dict(source.meta)
            source.replace_all_uses_with(once, delete_user_cb=lambda user: user in writes or user is output)
    module.recompile()


def _numel(node: fx.Node) -> int:
    return max((part.numel() for part in leaves(node.meta.get("val")) if isinstance(part, Tensor)), default=0)


def _empty(shape: tuple, stride: tuple, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.empty_strided(shape, stride, dtype=dtype, device=device)


def _simplify(module: fx.GraphModule, draws: int) -> None:
    """Removes operations without effect: aliases, and writes into random numbers that are not read again."""
    placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
    drawn = placeholders[len(placeholders) - draws :]
    for node in list(module.graph.nodes):
        if node.target is aten.copy_.default and node.args[0] in drawn:
            node.replace_all_uses_with(node.args[1])
            module.graph.erase_node(node)
        elif node.target in ALIASES:
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    module.recompile()
