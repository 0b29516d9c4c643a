"""Private interfaces of torch: used in the listed modules only, and dispensable, with one warning."""

import ast
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import adam, networks
from torch import Tensor

import ppgen
from ppgen import recipes
from ppgen.flows import FLOWS
from ppgen.infer.compile import recording
from ppgen.infer.compile.building import Build
from ppgen.posterior.flow_vi import FlowVI
from ppgen.posterior.log_density import UnconstrainedLogDensity
from ppgen.utils import torch_private
from ppgen.utils.budget import Budget
from ppgen.utils.torch_private import MissingTorchInterface, distributions_validate, tensor_guard, written_arguments

ROOT = Path(ppgen.__file__).parent
TABLE = ROOT.parent / "docs" / "private_torch.md"
INDUCTOR = "ppgen/infer/compile/inductor.py"

# attributes of torch's objects, which a name cannot show to be torch's
ATTRIBUTES = {
    "_schema": "torch._ops.OpOverload._schema",
    "_parameters": "torch.nn.Module._parameters",
    "_buffers": "torch.nn.Module._buffers",
    "_modules": "torch.nn.Module._modules",
    "_backward_hooks": "torch.Tensor._backward_hooks",
    "_validate_args": "torch.distributions.Distribution._validate_args",
}


def is_private(name: str) -> bool:
    parts = name.split(".")
    hidden = any(part.startswith("_") and not part.startswith("__") for part in parts)
    return parts[0] == "torch" and (hidden or name.startswith("torch.fx.experimental"))


def private_names(path: Path) -> Iterator[str]:
    """The private names of torch in a source file: imported, reached by attributes, or given as strings."""
    tree = ast.parse(path.read_text())
    aliases = {"torch": "torch"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            aliases |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if is_private(alias.name))
            aliases |= {alias.asname: alias.name for alias in node.names if alias.asname}
    imported = {name for name in aliases.values() if is_private(name)}
    yield from imported
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and re.fullmatch(r"[\w.]+", ast.unparse(node)):
            root, _, rest = ast.unparse(node).partition(".")
            name = f"{aliases.get(root, '')}.{rest}"
            if node.attr in ATTRIBUTES and root not in ("self", "cls"):
                yield ATTRIBUTES[node.attr]
            elif is_private(name) and not any(name.startswith(known) for known in imported):
                yield name
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if node.value in ATTRIBUTES:
                yield ATTRIBUTES[node.value]
            elif re.fullmatch(r"_fused_\w+_", node.value):
                yield f"torch.ops.aten.{node.value}"
            elif is_private(node.value) and re.fullmatch(r"[\w.]+", node.value):
                yield node.value


def listed() -> set[tuple[str, str]]:
    """The rows (name, module) of the table in the documentation."""
    return set(re.findall(r"^\| `([^`]+)` \| `([^`]+)` \|", TABLE.read_text(), re.MULTILINE))


def test_the_documentation_lists_every_private_name_that_the_sources_use():
    paths = {path: path.relative_to(ROOT.parent).as_posix() for path in ROOT.rglob("*.py")}
    used = {(name, module) for path, module in paths.items() for name in private_names(path)}
    assert used == listed()


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from torch._inductor import config\nconfig.patch()", {"torch._inductor.config"}),
        ("import torch.fx.experimental.proxy_tensor", {"torch.fx.experimental.proxy_tensor"}),
        ("import torch\ntorch._C._set_grad_enabled(True)", {"torch._C", "torch._C._set_grad_enabled"}),
        ("from torch import nn\nnn.Module._load(x)", {"torch.nn.Module._load"}),
        ("import torch.utils as u\nu._pytree.tree_map", {"torch.utils._pytree", "torch.utils._pytree.tree_map"}),
        ("module._buffers, self._buffers", {"torch.nn.Module._buffers"}),
        ("import torch\ntorch.nn.Linear.__init__, torch.ops.aten.add_", set()),
    ],
)
def test_private_names_are_found_however_they_are_reached(tmp_path, source, found):
    path = tmp_path / "source.py"
    path.write_text(source)
    assert set(private_names(path)) == found


# Runs without them


@pytest.fixture
def not_warned(monkeypatch):
    monkeypatch.setattr(torch_private, "_warned", [])


def losses_and_warnings(compile: bool) -> tuple[list[float], list[str]]:
    """Two runs of SVI after one another, the second with critics, which is compiled in two parts."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        losses = []
        for loss in (recipes.vae(), recipes.gan(hidden=(5,))):
            torch.manual_seed(1)
            model, guide, args = networks()
            svi = ppgen.SVI(model, guide, adam(), loss, compile=compile)
            losses += [svi.step(*args) for _ in range(5)]
            assert not compile or svi.compile_status.startswith("the step is not compiled, and runs eagerly: torch ")
    return losses, [str(warning.message) for warning in caught]


def assert_eager_with_one_warning(name: str) -> None:
    expected, none = losses_and_warnings(compile=False)
    losses, messages = losses_and_warnings(compile=True)
    assert none == []
    assert losses == pytest.approx(expected, rel=1e-6)  # a recorded step of Adam rounds in its own way
    (message,) = messages
    assert message.startswith(f"steps run eagerly: torch {torch.__version__} lacks ")
    assert name in message


@pytest.mark.parametrize("name", sorted(name for name, module in listed() if module == INDUCTOR))
def test_without_an_interface_of_the_compiler_steps_are_eager(monkeypatch, not_warned, inductor, name):
    module, _, attribute = name.rpartition(".")
    monkeypatch.delitem(sys.modules, "ppgen.infer.compile.inductor")
    if name in sys.modules:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delattr(import_module(module), attribute)
    monkeypatch.setattr(Build, "known", lambda _: None)
    assert_eager_with_one_warning(attribute)


def test_without_schemas_of_operations_steps_are_eager(monkeypatch, not_warned):
    def missing(op: Any) -> tuple:
        return written_arguments(object())

    with pytest.raises(MissingTorchInterface, match="_schema"):
        missing(None)
    monkeypatch.setattr(recording, "written_arguments", missing)
    assert_eager_with_one_warning("_schema")


CHANGES: dict[str, Callable[[Tensor], Any]] = {
    "shape": lambda p: setattr(p, "data", torch.zeros(4)),
    "stride": lambda p: setattr(p, "data", torch.zeros(6)[::2]),
    "dtype": lambda p: setattr(p, "data", torch.zeros(3).double()),
    "gradient flag": lambda p: p.requires_grad_(False),
}


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_changed_properties_of_a_tensor_are_noticed(monkeypatch, change, missing):
    if missing:
        monkeypatch.setattr(torch_private, "TensorGuards", None)
    parameter = torch.nn.Parameter(torch.ones(3))
    fits = tensor_guard([torch.ones(2), parameter])
    assert fits()
    with torch.autocast("cpu"):
        assert not fits()
    with torch.no_grad():
        parameter.fill_(2.0)
    assert fits()
    CHANGES[change](parameter)
    assert not fits()


@pytest.mark.parametrize("on", [False, True])
def test_validation_of_distributions_is_read(on):
    before = distributions_validate()
    try:
        torch.distributions.Distribution.set_default_validate_args(on)
        assert distributions_validate() is on
    finally:
        torch.distributions.Distribution.set_default_validate_args(before)


def gamma() -> None:
    pyro.sample("z", dist.Gamma(3.0, 2.0).expand([2]).to_event(1))


def flow_run() -> Tensor:
    """The ELBO of three steps of a flow, and the densities and gradients at some points."""
    target = UnconstrainedLogDensity(gamma)
    torch.manual_seed(0)
    flow = FLOWS["iaf"](2, hidden=(4,)).double()
    fit = FlowVI(target, flow, torch.zeros(2).double(), torch.eye(2).double(), 3)
    torch.manual_seed(1)  # recording has drawn numbers too
    fit.run(3, Budget())
    value, gradient = target.log_prob_and_grad(torch.linspace(-1.0, 1.0, 6).double().reshape(3, 2))
    return torch.cat([torch.tensor(fit.elbo), value, gradient.flatten()])


def test_without_make_fx_a_posterior_is_the_same(monkeypatch, not_warned):
    expected = flow_run()
    monkeypatch.setattr(torch_private, "make_fx", None)
    with pytest.warns(
        UserWarning, match="steps run eagerly: torch .* lacks torch.fx.experimental.proxy_tensor"
    ) as caught:
        torch.testing.assert_close(flow_run(), expected, rtol=1e-10, atol=1e-10)
    assert len(caught) == 1


FITS = """
import functools, sys, warnings
import torch
from torch.fx.experimental import proxy_tensor
from torch.utils import _python_dispatch
kept = proxy_tensor.make_fx, _python_dispatch.TorchDispatchMode
del proxy_tensor.make_fx, _python_dispatch.TorchDispatchMode
import ppgen.utils.torch_private
proxy_tensor.make_fx, _python_dispatch.TorchDispatchMode = kept  # torch itself needs them
import pyro, pyro.distributions as dist
import ppgen
from ppgen.infer import AutoFlow

def model(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

y = torch.tensor([0.5, 1.0, 1.5])  # mu given y is N(3 / 4, 1 / 4)
exact = float(dist.MultivariateNormal(torch.zeros(3), torch.eye(3) + 1).log_prob(y))
guide = pyro.infer.autoguide.AutoNormal(model)
adam = functools.partial(torch.optim.Adam, lr=0.05)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    torch.manual_seed(0)
    svi = ppgen.SVI(model, guide, adam, ppgen.ELBO(), compile=True)
    for _ in range(150):
        svi.step(y)
    assert svi.compile_status.endswith("lacks torch.utils._python_dispatch.TorchDispatchMode")
    auto = ppgen.fit(model, "auto", y, progress=False)
    flow = AutoFlow(model, flow="nsf_autoregressive", hidden=(4,), init_scale=0.5)
    elbo = pyro.infer.Trace_ELBO(num_particles=16, vectorize_particles=True, max_plate_nesting=1)
    loss = ppgen.ELBO(elbo=elbo, path_derivative=True)
    options = dict(optim=functools.partial(torch.optim.Adam, lr=0.02), lr_scheduler="cosine")
    fit = ppgen.fit(model, flow, y, loss=loss, steps=200, compile=True, progress=False, **options)
    fit.select_chain(0)
    u = flow.get_posterior(y).sample((2000,))
messages = [str(warning.message) for warning in caught if "eagerly" in str(warning.message)]
assert len(messages) == 1, messages
assert abs(float(guide.median(y)["mu"]) - 0.75) < 0.2
found = auto.guide.get_posterior(y)
mean, variance = float(found.mean.detach()), float(found.variance.detach())
assert abs(mean - 0.75) < 1e-3 and abs(variance - 0.25) < 1e-3, (mean, variance)
mean, deviation = float(u.mean()), float(u.std())
assert abs(mean - 0.75) < 0.1 and abs(deviation - 0.5) < 0.1, (mean, deviation)
bound = -3 * fit.history["loss"][-20:].mean()
assert abs(bound - exact) < 0.1, (bound, exact)
"""


@pytest.mark.slow
def test_without_interfaces_that_record_operations_every_kind_of_fit_works():
    """In a process of its own, since the names have to be missing before ppgen is imported."""
    run = subprocess.run([sys.executable, "-c", FITS], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
