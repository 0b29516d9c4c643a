"""SVI: its trajectories equal those of Pyro's SVI, except where it is meant to differ."""

import functools
import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import SCHOOLS, bits, frozen_in_training, list_of_guides, modules, networks, no_program, schools
from pyro import infer, poutine
from pyro.infer.autoguide import AutoLowRankMultivariateNormal, AutoMultivariateNormal, AutoNormal
from pyro.nn import PyroModule, PyroParam, PyroSample
from support import gaussian_pair
from torch import Tensor, nn

import ppgen

POSITIVE = dist.constraints.positive


# Programs: functions without arguments that make (model, guide, args).


def constrained():
    """Parameters of many constraints, a batch of them in a subsampled plate."""

    def model(x: Tensor) -> None:
        weights = pyro.param("weights", torch.tensor([0.3, 0.7]), constraint=dist.constraints.simplex)
        scale = pyro.param("scale", lambda: torch.tensor(0.8), constraint=POSITIVE)
        with pyro.plate("data", 6, subsample_size=4) as rows:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(weights[0] * z, scale), obs=x[rows])

    def guide(x: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(0.4), constraint=dist.constraints.unit_interval)
        with pyro.plate("data", 6, subsample_size=4) as rows:
            scale = pyro.param("scales", torch.full((6,), 0.5), constraint=POSITIVE, event_dim=0)
            pyro.sample("z", dist.Normal(slope * x[rows], scale))

    return model, guide, (torch.randn(6),)


GUIDES: dict[str, Callable] = {
    "normal": AutoNormal,
    "multivariate": AutoMultivariateNormal,
    "low_rank": AutoLowRankMultivariateNormal,
    "list": list_of_guides,
}


def automatic(make: Callable):
    """An autoguide that has been set up, as stock Pyro needs it too for all of its parameters to be seen at once."""

    def build():
        guide = make(schools)
        guide(SCHOOLS)
        return schools, guide, (SCHOOLS,)

    return build


PROGRAMS: dict[str, Callable] = {
    "networks": networks,
    "constrained": constrained,
    "modules": modules,
    **{f"auto_{name}": automatic(make) for name, make in GUIDES.items()},
}
OPTIMIZERS: dict[str, Callable] = {
    "adam": lambda: pyro.optim.Adam({"lr": 0.02}),
    "clipped_adam": lambda: pyro.optim.ClippedAdam({"lr": 0.05, "lrd": 0.9, "clip_norm": 0.5}),
    "sgd": lambda: pyro.optim.SGD({"lr": 1e-3, "momentum": 0.5, "weight_decay": 0.1}),
    "by_name": lambda: pyro.optim.Adam(lambda name: {"lr": 0.002 * len(name)}),
    "by_module_and_name": lambda: pyro.optim.Adam(lambda module, name: {"lr": 1e-3 * len(module) + 1e-4 * len(name)}),
    "clipped": lambda: pyro.optim.SGD({"lr": 0.01}, {"clip_norm": 1.0, "clip_value": 0.4}),
    "clipped_by_name": lambda: pyro.optim.SGD(
        {"lr": 0.01}, lambda module, name: {"clip_norm": 0.1 * len(module + name)}
    ),
}


def trajectory(svi_class, build: Callable, optim: Any, loss: Any, *, steps: int = 5, after: Callable = lambda: None):
    """Losses (steps,) and, flattened, the parameters at the end, of a run from one start."""
    pyro.clear_param_store()
    pyro.set_rng_seed(1)
    model, guide, args = build()
    svi = svi_class(model, guide, optim, loss)
    losses = []
    for _ in range(steps):
        step = svi.step(*args)
        losses.append(sum(step) if isinstance(step, tuple) else step)
        after()
    end = [value.detach().flatten() for _, value in sorted(pyro.get_param_store().named_parameters())]
    return torch.tensor(losses), torch.cat(end)


def assert_same(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> None:
    """Equal but for the order of float32 sums."""
    torch.testing.assert_close(one[0], other[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(one[1], other[1], rtol=1e-4, atol=1e-5)


# every program by one optimizer, every optimizer on functions and on an autoguide
TRAJECTORIES = [(program, "adam") for program in PROGRAMS]
TRAJECTORIES += [(program, name) for program in ("networks", "auto_list") for name in OPTIMIZERS if name != "adam"]


@pytest.mark.parametrize(("program", "optimizer"), TRAJECTORIES)
def test_trajectory_equals_that_of_pyro(program, optimizer):
    build, make = PROGRAMS[program], OPTIMIZERS[optimizer]
    ours = trajectory(ppgen.SVI, build, make(), infer.Trace_ELBO())
    assert len(set(ours[0].tolist())) > 1
    assert_same(ours, trajectory(infer.SVI, build, make(), infer.Trace_ELBO()))


ELBOS: dict[str, Callable] = {
    "mean_field": infer.TraceMeanField_ELBO,
    "enum": lambda: infer.TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False),
    "graph": infer.TraceGraph_ELBO,  # has loss_and_grads only
    "renyi": lambda: infer.RenyiELBO(alpha=0.5, num_particles=3),
    "vectorized": lambda: infer.Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1),
    "tail_adaptive": lambda: infer.TraceTailAdaptive_ELBO(
        num_particles=3, vectorize_particles=True, max_plate_nesting=1
    ),
    "wake_sleep": lambda: infer.ReweightedWakeSleep(num_particles=3, vectorize_particles=False, max_plate_nesting=1),
    "function": lambda: infer.Trace_ELBO().differentiable_loss,
}


@pytest.mark.parametrize("elbo", ELBOS)
def test_every_loss_of_pyro_gives_the_trajectory_of_pyro(elbo):
    make = ELBOS[elbo]
    ours = trajectory(ppgen.SVI, networks, pyro.optim.Adam({"lr": 0.02}), make())
    assert_same(ours, trajectory(infer.SVI, networks, pyro.optim.Adam({"lr": 0.02}), make()))


def test_modules_with_local_parameters_train_as_in_a_torch_loop():
    """Stock SVI cannot take a plain nn.Parameter in this mode."""
    with pyro.settings.context(module_local_params=True):
        runs = []
        for by_hand in (False, True):
            pyro.set_rng_seed(1)
            model, guide, args = modules()
            parameters = [*model.parameters(), *guide.parameters()]
            losses = []
            if by_hand:
                elbo, optim = infer.Trace_ELBO()(model, guide), torch.optim.Adam(parameters, lr=0.02)
                for _ in range(5):
                    optim.zero_grad()
                    losses.append(elbo(*args))
                    losses[-1].backward()
                    optim.step()
            else:
                svi = ppgen.SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), infer.Trace_ELBO())
                losses = [torch.tensor(svi.step(*args)) for _ in range(5)]
            runs.append((torch.stack(losses).detach(), torch.cat([p.detach().flatten() for p in parameters])))
    assert not pyro.get_param_store().keys()
    assert_same(*runs)


@pytest.mark.parametrize(
    "factory",
    [
        pytest.param(torch.optim.Adam, id="class"),
        pytest.param(functools.partial(torch.optim.Adam, lr=1e-3), id="partial"),
        pytest.param(lambda parameters: torch.optim.Adam(parameters, lr=1e-3), id="function"),
    ],
)
def test_torch_factory_equals_the_pyro_optimizer(factory):
    ours = trajectory(ppgen.SVI, networks, factory, infer.Trace_ELBO())
    assert_same(ours, trajectory(ppgen.SVI, networks, pyro.optim.Adam({"lr": 1e-3}), infer.Trace_ELBO()))


def test_fused_optimizer_accepts_gradients_of_another_memory_layout():
    def model(x: Tensor) -> None:
        pyro.sample("x", dist.Normal(pyro.param("w", lambda: torch.randn(2, 3)).T, 1.0).to_event(2), obs=x)

    def run(*, fused: bool) -> tuple[Tensor, Tensor]:
        optim = functools.partial(torch.optim.Adam, lr=0.1, fused=fused)
        eager = functools.partial(ppgen.SVI, compile=False)
        return trajectory(eager, lambda: (model, no_program, (torch.randn(3, 2),)), optim, infer.Trace_ELBO())

    assert_same(run(fused=True), run(fused=False))
    loss, w = infer.Trace_ELBO().differentiable_loss(model, no_program, torch.randn(3, 2)), pyro.param("w")
    (gradient,) = torch.autograd.grad(loss, [w])
    assert gradient.stride() != w.stride()  # or the test would be void


def test_terms_of_an_objective_sum_to_the_loss():
    pair = gaussian_pair()
    loss = ppgen.Reconstruction() + 0.5 * ppgen.Rate()
    svi = ppgen.SVI(pair.model, pair.guide, torch.optim.Adam, loss)
    pyro.set_rng_seed(3)
    whole = loss.loss(pair.model, pair.guide, *pair.args)
    pyro.set_rng_seed(3)
    values = svi.update(*pair.args)
    assert list(values) == ["Reconstruction", "Rate"]
    assert not any(value.requires_grad for value in values.values())
    assert sum(map(float, values.values())) == pytest.approx(whole, rel=1e-5)
    assert int(loss.step) == 1


# A loss in closed form: 1/2 |w|^2, whose gradient is w.


def bowl(*parameters: tuple[str, Any]) -> Callable:
    """Half the squared norm of all parameters, made by pyro.param."""

    def loss(model: Callable, guide: Callable) -> Tensor:
        return 0.5 * torch.cat([pyro.param(k, torch.as_tensor(v)).flatten() for k, v in parameters]).pow(2).sum()

    return loss


def descend(loss: Callable, optim: Any = None, **options: Any) -> ppgen.SVI:
    optim = functools.partial(torch.optim.SGD, lr=0.1) if optim is None else optim
    return ppgen.SVI(no_program, no_program, optim, loss, **options)


def test_plain_function_as_loss():
    svi = descend(bowl(("w", [3.0, 4.0])))
    assert [svi.step() for _ in range(3)] == pytest.approx([12.5 * 0.9 ** (2 * t) for t in range(3)])
    assert svi.evaluate_loss() == pytest.approx(12.5 * 0.9**6)


def test_loss_and_grads_computes_its_own_gradients():
    """As in Pyro, `loss` then only evaluates."""
    loss = bowl(("w", [3.0, 4.0]))

    def loss_and_grads(model: Callable, guide: Callable) -> float:
        value = loss(model, guide)
        (2 * value).backward()
        return value.item()

    svi = descend(lambda *programs: torch.tensor(7.0), loss_and_grads=loss_and_grads)
    assert [svi.step() for _ in range(2)] == pytest.approx([12.5, 12.5 * 0.8**2])
    assert svi.evaluate_loss() == 7.0


def test_torch_scheduler_advances_every_step():
    decay = functools.partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.5)
    svi = descend(bowl(("w", 1.0)), lr_scheduler=decay)
    for _ in range(3):
        svi.step()
    expected = (1 - 0.1) * (1 - 0.05) * (1 - 0.025)
    assert pyro.param("w").item() == pytest.approx(expected)
    assert svi.optimizer.torch_optimizer is not None
    assert [group["lr"] for group in svi.optimizer.torch_optimizer.param_groups] == pytest.approx([0.1 / 8])


def test_pyro_scheduler_advances_when_its_user_steps_it():
    def make() -> pyro.optim.PyroOptim:
        return pyro.optim.ExponentialLR({"optimizer": torch.optim.SGD, "optim_args": {"lr": 0.01}, "gamma": 0.5})

    mine, stock = make(), make()
    ours = trajectory(ppgen.SVI, networks, mine, infer.Trace_ELBO(), after=mine.step)
    assert_same(ours, trajectory(infer.SVI, networks, stock, infer.Trace_ELBO(), after=stock.step))
    still = trajectory(ppgen.SVI, networks, make(), infer.Trace_ELBO())
    assert not torch.allclose(ours[0], still[0])


@pytest.mark.parametrize(("clip_norm", "expected"), [(1.0, 1.0), (100.0, 13.0)])
def test_clip_norm_bounds_the_norm_of_all_gradients_together(clip_norm, expected):
    start = torch.tensor([3.0, 4.0]), torch.tensor([12.0])
    svi = descend(bowl(("a", start[0].clone()), ("b", start[1].clone())), torch.optim.SGD, clip_norm=clip_norm)
    svi.step()
    moved = torch.cat([before - pyro.param(name).detach() for name, before in zip("ab", start, strict=True)]) / 1e-3
    assert float(moved.norm()) == pytest.approx(expected, rel=1e-3)
    assert moved / moved.norm() == pytest.approx(torch.cat(start) / 13.0, rel=1e-3)


@pytest.mark.parametrize("program", PROGRAMS)
def test_evaluate_loss_changes_nothing_and_equals_pyro(program):
    model, guide, args = PROGRAMS[program]()
    svi = ppgen.SVI(model, guide, torch.optim.Adam, infer.Trace_ELBO())
    svi.step(*args)
    parameters = list(svi.optimizer.parameters.values())
    before = bits(parameters)
    pyro.set_rng_seed(2)
    ours = svi.evaluate_loss(*args)
    pyro.set_rng_seed(2)
    stock = infer.SVI(model, guide, pyro.optim.Adam({}), infer.Trace_ELBO()).evaluate_loss(*args)
    assert ours == pytest.approx(stock, rel=1e-6)
    assert bits(parameters) == before
    assert all(leaf.grad is None for leaf in parameters)


# Every parameter is trained once


@pytest.mark.parametrize("hidden", [False, True], ids=["itself", "in a function"])
@pytest.mark.parametrize("guide", GUIDES)
def test_optimizer_has_every_parameter_of_a_lazy_autoguide_once(guide, hidden):
    auto = GUIDES[guide](schools)
    program = (lambda y: auto(y)) if hidden else auto
    svi = ppgen.SVI(schools, program, torch.optim.Adam, ppgen.ELBO())
    for _ in range(2):
        svi.step(SCHOOLS)
    assert svi.optimizer.torch_optimizer is not None
    held = [leaf for group in svi.optimizer.torch_optimizer.param_groups for leaf in group["params"]]
    assert len(held) == len(set(map(id, held)))
    assert set(map(id, held)) == set(map(id, auto.parameters()))
    assert not any("#" in name for name in svi.optimizer.parameters)


@pytest.mark.parametrize("guide", GUIDES)
def test_new_autoguide_does_not_start_from_values_of_another(guide):
    make = GUIDES[guide]

    def first_losses(seed: int) -> list[float]:
        pyro.set_rng_seed(seed)
        svi = ppgen.SVI(schools, make(schools), functools.partial(torch.optim.Adam, lr=0.1), ppgen.ELBO())
        return [svi.step(SCHOOLS) for _ in range(10)]

    assert first_losses(0) == first_losses(0)


def test_two_guides_of_one_name_train_in_turn():
    guides = [AutoNormal(schools) for _ in range(2)]
    runs = [ppgen.SVI(schools, g, functools.partial(torch.optim.SGD, lr=0.01), ppgen.ELBO()) for g in guides]
    for svi in runs:
        svi.step(SCHOOLS)
    own = [[id(p) for p in g.parameters()] for g in guides]
    before = [bits(g.parameters()) for g in guides]
    runs[0].step(SCHOOLS)
    runs[1].evaluate_loss(SCHOOLS)
    assert [[id(p) for p in g.parameters()] for g in guides] == own
    assert bits(guides[0].parameters()) != before[0]
    assert bits(guides[1].parameters()) == before[1]


KINDS: dict[str, Callable] = {
    "network": lambda: nn.Linear(1, 1),
    "pyro_network": lambda: PyroModule[nn.Linear](1, 1),
    "parameter": lambda: nn.Parameter(torch.ones(1, 1)),
    "pyro_parameter": lambda: PyroParam(torch.ones(1, 1), constraint=POSITIVE),
}


class Shared(PyroModule):
    """A model or a guide with an attribute ``own``, of one of `KINDS`."""

    def __init__(self, kind: str, *, guide: bool) -> None:
        super().__init__()
        self.own = KINDS[kind]()
        self.guide = guide

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            if self.guide:
                pyro.sample("z", dist.Normal(self.map(x), 1.0).to_event(1))
            else:
                z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([1]).to_event(1))
                pyro.sample("x", dist.Normal(self.map(z), 1.0).to_event(1), obs=x)

    def map(self, value: Tensor) -> Tensor:
        return self.own(value) if callable(self.own) else value * self.own


WRAPPERS: dict[str, Callable] = {
    "bare": lambda program: program,
    "handled": lambda program: poutine.scale(program, scale=0.5),
    "partial": functools.partial,
}


SHARED = [(kind, used, "bare") for kind in KINDS for used in (False, True)]
SHARED += [("pyro_parameter", True, wrap) for wrap in WRAPPERS if wrap != "bare"]


@pytest.mark.parametrize(("kind", "used", "wrap"), SHARED)
def test_model_and_guide_with_the_same_attribute_name_both_train(kind, used, wrap):
    x = torch.randn(20, 1) + 2
    model, guide = Shared(kind, guide=False), Shared(kind, guide=True)
    if used:
        infer.Trace_ELBO().loss(guide, guide, x)
    before = bits(model.parameters()), bits(guide.parameters())
    ids = [id(p) for m in (model, guide) for p in m.parameters()]
    svi = ppgen.SVI(WRAPPERS[wrap](model), WRAPPERS[wrap](guide), torch.optim.Adam, ppgen.ELBO())
    for _ in range(2):
        svi.step(x)
    assert [id(p) for m in (model, guide) for p in m.parameters()] == ids
    for program, old in zip((model, guide), before, strict=True):
        assert all(new != was for new, was in zip(bits(program.parameters()), old, strict=True))


def sampled():
    """Modules with a PyroSample and a parameter of the same names, which Pyro's store holds once."""

    class Program(PyroModule):
        def __init__(self, guide: bool) -> None:
            super().__init__()
            self.guide, self.loc = guide, nn.Parameter(torch.ones(()))
            self.z = PyroSample(lambda self: dist.Normal(self.loc, 0.5))

        def forward(self, x: Tensor) -> None:
            z = self.z
            if not self.guide:
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    return Program(False), Program(True), (torch.tensor(3.0),)


def test_sites_of_a_pyro_sample_keep_their_names():
    with pytest.warns(UserWarning, match="both have a parameter 'loc', and the guide has a PyroSample"):
        ours = trajectory(ppgen.SVI, sampled, pyro.optim.Adam({"lr": 0.02}), infer.Trace_ELBO())
    assert_same(ours, trajectory(infer.SVI, sampled, pyro.optim.Adam({"lr": 0.02}), infer.Trace_ELBO()))


def test_networks_registered_under_one_name_both_train():
    encoder, decoder = nn.Linear(1, 1), nn.Linear(1, 1)

    def model(x: Tensor) -> None:
        pyro.module("net", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([1]).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("net", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encoder(x), 1.0).to_event(1))

    rates = {"net.weight": {"lr": 0.1}, "net.bias": {"lr": 0.01}}
    svi = ppgen.SVI(model, guide, pyro.optim.Adam(lambda name: rates[name]), ppgen.ELBO())
    before = [p.detach().clone() for p in (*encoder.parameters(), *decoder.parameters())]
    svi.step(torch.randn(20, 1) + 2)
    moved = [
        (p - b).abs().max().item() for p, b in zip((*encoder.parameters(), *decoder.parameters()), before, strict=True)
    ]
    assert moved == pytest.approx([0.1, 0.01, 0.1, 0.01], rel=1e-3)  # Adam's first step is the learning rate


# Frozen parameters


class Partly(Shared):
    """With a frozen attribute of some kind beside the trained one."""

    def __init__(self, kind: str, *, guide: bool) -> None:
        super().__init__("network", guide=guide)
        self.still = KINDS[kind]()
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(not name.startswith("still"))

    def map(self, value: Tensor) -> Tensor:
        value = super().map(value)
        return self.still(value) if callable(self.still) else value * self.still


def partly_frozen_modules(kind: str):
    model, guide = Partly(kind, guide=False), Partly(kind, guide=True)
    still = [p for m in (model, guide) for p in m.parameters() if not p.requires_grad]
    return model, guide, still


def partly_frozen_functions():
    pair = gaussian_pair(width=1)
    model, fixed = pair.model, nn.Linear(1, 1)
    fixed.requires_grad_(False)

    def guide(x: Tensor) -> None:
        pyro.module("fixed", fixed)
        pair.guide(fixed(x))

    return model, guide, list(fixed.parameters())


FROZEN: dict[str, Callable] = {kind: functools.partial(partly_frozen_modules, kind) for kind in KINDS}
FROZEN["function"] = partly_frozen_functions


@frozen_in_training
@pytest.mark.parametrize(
    "optim", [functools.partial(torch.optim.AdamW, weight_decay=0.1), pyro.optim.Adam({"lr": 0.1})]
)
@pytest.mark.parametrize("kind", FROZEN)
def test_frozen_parameters_stay_bitwise_equal(kind, optim):
    model, guide, still = FROZEN[kind]()
    before = bits(still)
    x = torch.randn(20, 1)
    svi = ppgen.SVI(model, guide, optim, ppgen.ELBO(), clip_norm=1.0)
    for _ in range(3):
        svi.step(x)
        svi.evaluate_loss(x)
    assert bits(still) == before
    assert not any(p.requires_grad for p in still)
    assert not set(map(id, still)) & set(map(id, svi.optimizer.parameters.values()))


@frozen_in_training
@pytest.mark.parametrize("kind", FROZEN)
def test_parameters_can_be_frozen_and_unfrozen_between_steps(kind):
    model, guide, still = FROZEN[kind]()
    x = torch.randn(20, 1) + 1
    svi = ppgen.SVI(model, guide, functools.partial(torch.optim.Adam, lr=0.01), ppgen.ELBO())
    svi.step(x)
    moving = list(svi.optimizer.parameters.values())
    for parameter in still:
        parameter.requires_grad_(True)
    for parameter in moving:
        parameter.requires_grad_(False)
    before = bits(still), bits(moving)
    svi.step(x)
    assert all(new != old for new, old in zip(bits(still), before[0], strict=True))
    assert bits(moving) == before[1]


# Parameters that are created later, or not at all


class Prepared(torch.optim.Optimizer):
    """Gradient descent at a rate of 0.1, kept in a state that is made when the optimizer is built."""

    def __init__(self, parameters: list[Tensor]) -> None:
        super().__init__(parameters, {})
        for leaf in parameters:
            self.state[leaf]["rate"] = 0.1

    @torch.no_grad()
    def step(self, closure=None):
        for leaf in self.param_groups[0]["params"]:
            leaf -= self.state[leaf]["rate"] * leaf.grad


LATE: dict[str, Any] = {
    "sgd": functools.partial(torch.optim.SGD, lr=0.1),
    "prepared": Prepared,
    "pyro": pyro.optim.SGD({"lr": 0.1}),
    "pyro_by_name": pyro.optim.SGD(lambda name: {"lr": 0.1}),
}


@pytest.mark.parametrize("optim", LATE)
def test_later_parameter_joins_the_optimizer(optim):
    bowls = [bowl(("a", 1.0)), bowl(("a", 1.0), ("b", 1.0))]
    svi = descend(lambda *programs: bowls.pop(0)(*programs), LATE[optim])
    svi.step()
    svi.step()
    assert (pyro.param("a").item(), pyro.param("b").item()) == pytest.approx((0.81, 0.9))


def test_later_parameter_follows_the_schedule():
    bowls = [bowl(("a", 1.0)), bowl(("a", 1.0), ("b", 1.0))]
    halved = functools.partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=lambda step: 0.5**step)
    svi = descend(lambda *programs: bowls.pop(0)(*programs), lr_scheduler=halved)
    svi.step()
    svi.step()
    assert pyro.param("b").item() == pytest.approx(1 - 0.05)


def test_later_parameter_with_a_used_name_does_not_replace_the_first():
    first, second = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    order = [[first], [second, first]]

    def loss(model: Callable, guide: Callable) -> Tensor:
        networks = order.pop(0)
        for network in networks:
            pyro.module("net", network)
        return torch.stack([network.weight.pow(2).sum() for network in networks]).sum()

    svi = descend(loss)
    svi.step()
    before = bits([first.weight, second.weight])
    svi.step()
    assert all(new != old for new, old in zip(bits([first.weight, second.weight]), before, strict=True))
    assert len(svi.optimizer.parameters) == 2


def test_parameter_that_the_loss_does_not_use_keeps_its_value():
    def loss(model: Callable, guide: Callable) -> Tensor:
        pyro.param("unused", torch.ones(2))
        return bowl(("w", 1.0))(model, guide)

    svi = descend(loss, functools.partial(torch.optim.SGD, lr=0.1, weight_decay=0.5), clip_norm=10.0)
    svi.step()
    assert torch.equal(pyro.param("unused"), torch.ones(2))
    assert pyro.param("w").item() < 1.0


def untrainable(kind: str):
    """Programs whose loss has no gradient: there is no parameter, or all are frozen, or latents are summed out."""
    encoder = nn.Linear(1, 1).requires_grad_(False)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            if kind == "enumerated":
                z = pyro.sample("z", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
            else:
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        if kind == "frozen":
            pyro.module("encoder", encoder)
        if kind != "enumerated":
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(encoder(x[:, None])[:, 0] if kind == "frozen" else x, 1.0))

    return model, guide, (torch.randn(3),)


UNTRAINABLE = [
    *((kind, loss) for kind in ("none", "frozen") for loss in (infer.Trace_ELBO, infer.TraceGraph_ELBO, ppgen.ELBO)),
    ("enumerated", functools.partial(infer.TraceEnum_ELBO, max_plate_nesting=1)),
    ("enumerated", functools.partial(infer.TraceTMC_ELBO, max_plate_nesting=1)),
]


@pytest.mark.parametrize(("kind", "loss"), UNTRAINABLE)
@frozen_in_training
def test_loss_without_parameters_is_that_of_pyro_with_one_warning(kind, loss):
    model, guide, args = untrainable(kind)

    def losses(svi: Any) -> list[float]:
        pyro.set_rng_seed(0)
        return [svi.step(*args) for _ in range(3)]

    with pytest.warns(UserWarning, match=r"no trainable parameter.*pyro\.module") as caught:
        ours = losses(ppgen.SVI(model, guide, torch.optim.Adam, loss()))
    assert len([w for w in caught if "trainable" in str(w.message)]) == 1
    assert ours == pytest.approx(losses(infer.SVI(model, guide, pyro.optim.Adam({}), loss())), rel=1e-5)


@frozen_in_training
def test_parameters_that_are_frozen_for_one_step_are_trained_by_the_next():
    net = nn.Linear(1, 1).requires_grad_(False)

    def loss(model: Callable, guide: Callable) -> Tensor:
        pyro.module("net", net)
        return net.weight.square().sum()

    svi = descend(loss)
    with pytest.warns(UserWarning, match="no trainable parameter"):
        svi.step()
    before = net.weight.item()
    assert not svi.trainable
    net.requires_grad_(True)
    svi.step()
    assert svi.trainable
    assert net.weight.item() == pytest.approx(0.8 * before)


def test_invalid_optimizer_is_an_error():
    loss = bowl(("w", 1.0))
    with pytest.raises(TypeError, match=r"already built \(Adam\).*functools.partial"):
        descend(loss, torch.optim.Adam([torch.ones(1, requires_grad=True)]))
    with pytest.raises(TypeError, match="got 'adam'"):
        descend(loss, "adam")
    with pytest.raises(TypeError, match="it returned None"):
        descend(loss, lambda parameters: None).step()


@pytest.mark.parametrize("clip_norm", [0.0, -1.0, math.nan])
def test_invalid_clip_norm_is_an_error(clip_norm):
    with pytest.raises(ValueError, match="clip_norm must be a positive bound"):
        descend(bowl(("w", 1.0)), clip_norm=clip_norm)


def test_loss_that_is_nan_warns():
    with pytest.warns(UserWarning, match="the loss is NaN"):
        loss = descend(lambda *programs: bowl(("w", 1.0))(*programs) * math.nan).step()
    assert math.isnan(loss)
