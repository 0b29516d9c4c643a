"""Laws of image flows, of flows on an interval and of data made of levels; float64 unless said otherwise."""

import copy
import itertools
import json
import math
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F

import ppgen
from ppgen import data, flows
from ppgen.flows import IMAGE_FLOWS, Flow, bounded
from ppgen.flows.bounded import Logit
from ppgen.flows.layers import ActNorm, Composed, Coupling, Invertible1x1Conv, Part, Squeezed, channels, checkerboard
from ppgen.models import FlowModel
from ppgen.nets import ConvMap
from ppgen.runs.cli import main
from ppgen.runs.run import Run

ROWS = 3
SHAPES = [(1, 8, 8), (3, 4, 6), (1, 5, 7), (2, 1, 3), (1, 1, 1)]  # several scales, color, odd sides, a line, a pixel

every_flow = pytest.mark.parametrize("name", IMAGE_FLOWS)
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
with_context = pytest.mark.parametrize("context_dim", [0, 2])


@pytest.fixture(autouse=True)
def _double():
    threads, before = torch.get_num_threads(), torch.get_default_dtype()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    pyro.clear_param_store()
    yield
    torch.set_default_dtype(before)
    torch.set_num_threads(threads)


def moved(module, by: float = 0.1):
    """The module with its parameters away from their start."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(by * torch.randn_like(parameter))
    return module


def make(name: str, shape: tuple, context_dim: int = 0, **options) -> Flow:
    return moved(IMAGE_FLOWS[name](shape, **{"layers": 2, "hidden": (6,), "context_dim": context_dim, **options}))


def distribution(flow: Flow):
    return flow(torch.randn(ROWS, flow.context_dim)) if flow.context_dim else flow().expand((ROWS,))


def log_det(way, x: torch.Tensor) -> torch.Tensor:
    """log |det| of a map of one event, by autograd."""
    matrix = torch.autograd.functional.jacobian(way, x).reshape(x.numel(), x.numel())
    return torch.linalg.slogdet(matrix).logabsdet


# Layers, each by itself


def network(shape: tuple) -> ConvMap:
    return moved(ConvMap(shape, 2 * shape[0], hidden=(5,)))


LAYERS = {
    "norm": lambda: ActNorm(4),
    "mixing": lambda: Invertible1x1Conv(4),
    "chessboard": lambda: Coupling(checkerboard(2, 3, odd=False), network((4, 2, 3))),
    "odd fields": lambda: Coupling(checkerboard(2, 3, odd=True), network((4, 2, 3))),
    "channels": lambda: Coupling(channels(4, odd=False), network((4, 2, 3))),
    "squeezed": lambda: Squeezed(Invertible1x1Conv(16)),
    "part": lambda: Part(Invertible1x1Conv(3), 3),
    "composed": lambda: Composed(Invertible1x1Conv(4), ActNorm(4), Coupling(channels(4, odd=True), network((4, 2, 3)))),
    "logit": lambda: Logit(-3.0, 4.0, alpha=0.2, rank=3),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_goes_both_ways_with_its_log_dets(name):
    layer = moved(LAYERS[name]())
    x = torch.rand(2, ROWS, 4, 2, 4 if name == "squeezed" else 3)  # two batch dimensions
    y, there = layer.forth(x, None)
    back, here = layer.back(y, None)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(here, -there)
    assert there.shape == (2, ROWS)
    expected = torch.stack([log_det(lambda v: layer.forth(v, None)[0], x[1, i]) for i in range(ROWS)])
    torch.testing.assert_close(there[1], expected)
    transform = layer()
    torch.testing.assert_close(transform.inv(transform(x)), x)
    torch.testing.assert_close(transform.log_abs_det_jacobian(x, y), there)
    torch.testing.assert_close(transform.inv.call_and_ladj(y), (back, here))


def test_a_mixing_is_a_convolution_that_starts_as_a_rotation():
    layer, x = Invertible1x1Conv(5), torch.randn(2, 5, 3, 4)
    for moves in (0, 1):
        if moves:
            moved(layer)
        lower, upper = layer.triangles()
        matrix = layer.permutation @ lower @ upper
        y, log_det = layer.forth(x, None)
        torch.testing.assert_close(y, F.conv2d(x, matrix[..., None, None]))
        torch.testing.assert_close(log_det, 12 * torch.linalg.slogdet(matrix).logabsdet.expand(2))
        torch.testing.assert_close(log_det, 12 * upper.diagonal().abs().log().sum().expand(2))
        if not moves:
            torch.testing.assert_close(matrix @ matrix.mT, torch.eye(5))


def test_a_coupling_keeps_what_its_mask_keeps_and_bounds_the_scale():
    mask = checkerboard(3, 3, odd=False)
    assert mask.tolist() == [[[1, 0, 1], [0, 1, 0], [1, 0, 1]]]
    assert channels(4, odd=True).flatten().tolist() == [0, 0, 1, 1]
    layer, x = Coupling(mask, moved(network((1, 3, 3)), by=10.0)), torch.randn(50, 1, 3, 3)
    with torch.no_grad():
        y, log_det = layer.forth(x, None)
    assert torch.equal(y * mask, x * mask)
    assert (log_det.abs() <= 4 * 2.0).all()
    assert float(log_det.abs().max()) > 4.0  # so that the bound was tried


# Whole flows


@every_flow
@every_shape
@with_context
def test_the_inverse_undoes_the_map_and_its_log_det_is_the_jacobians(name, shape, context_dim):
    flow = make(name, shape, context_dim)
    q = distribution(flow)
    z = torch.randn(ROWS, *shape)
    x = q.transform(z)
    back, found = q.inverse_and_log_det(x)
    torch.testing.assert_close(back, z)
    torch.testing.assert_close(q.transform(q.inverse(x + 1)), x + 1)
    one = flow(q.context[0]) if context_dim else flow()
    torch.testing.assert_close(found[0], log_det(one.inverse, x[0]))
    torch.testing.assert_close(q.log_prob(x), flow.base.log_prob(back) + found)
    draw, log_prob = q.rsample_and_log_prob((2,))
    assert draw.shape == (2, ROWS, *shape)
    torch.testing.assert_close(log_prob, q.log_prob(draw))
    assert torch.equal(q.log_prob(x), q.log_prob(x))


@every_flow
def test_a_context_reaches_every_scale(name):
    flow = make(name, (1, 4, 4), 2)
    x = torch.randn(1, 4, 4)
    one, other = flow(torch.zeros(2)).inverse(x), flow(torch.ones(2)).inverse(x)
    assert (one != other).all()


@every_flow
def test_draws_have_the_flows_own_density(name):
    """The mean of exp(narrow - flow) over draws is one, to four standard errors: a level of about 6e-5."""
    flow = make(name, (1, 4, 4))
    with torch.no_grad():
        x = flow().sample((4000,))
        narrow = dist.Normal(x.mean(0), 0.8 * x.std(0)).to_event(3)
        ratio = (narrow.log_prob(x) - flow().log_prob(x)).exp()
    error = float(ratio.std()) / math.sqrt(len(x))
    assert error < 0.1
    assert abs(float(ratio.mean()) - 1) < 4 * error


@every_flow
def test_gradients_reach_every_parameter(name):
    flow = make(name, (2, 4, 4), 2)
    q = distribution(flow)
    for value in (q.log_prob(torch.randn(ROWS, 2, 4, 4)), q.rsample().square()):
        gradients = torch.autograd.grad(value.sum(), list(flow.parameters()), allow_unused=True)
        assert all(gradient is not None and bool(gradient.isfinite().all()) for gradient in gradients)


@pytest.mark.parametrize(
    ("shape", "scales"), [((1, 8, 8), 3), ((1, 28, 28), 3), ((3, 64, 64), 3), ((1, 5, 8), 1), ((1, 6, 6), 2)]
)
def test_scales_are_as_many_as_the_sides_allow(shape, scales):
    flow = flows.glow(shape, layers=1, hidden=(2,))
    assert sum(isinstance(part, Squeezed) for part in flow.modules()) == scales - 1


def test_what_is_split_off_is_done():
    """The last scale works on half of the numbers, and moves no other."""
    flow, x = make("glow", (1, 8, 8)), torch.randn(1, 8, 8)
    before = flow().inverse(x)
    (part,) = [part for part in flow.modules() if isinstance(part, Part)]
    moved(part)
    changed = flow().inverse(x) != before
    assert int(changed.sum()) == 32
    two = flows.glow((1, 8, 8), layers=1, hidden=(2,), scales=2)
    assert not [part for part in two.modules() if isinstance(part, Part)]


def test_an_untrained_flow_turns_events():
    """Rotations alone: lengths stay, and so do volumes."""
    x = torch.randn(ROWS, 3, 4, 4)
    z, log_det = flows.glow((3, 4, 4))().inverse_and_log_det(x)
    torch.testing.assert_close(z.square().sum((1, 2, 3)), x.square().sum((1, 2, 3)))
    torch.testing.assert_close(log_det, torch.zeros(ROWS))
    assert not torch.allclose(z, x)


@every_flow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_flow_is_copied_saved_and_cast(name, dtype):
    flow, x = make(name, (1, 4, 4)).to(dtype), 3 + torch.randn(8, 1, 4, 4, dtype=dtype)
    flow.initialize(x)
    with torch.no_grad():
        scored = flow().log_prob(x)
        assert scored.dtype == flow().sample().dtype == dtype
        copied, other = copy.deepcopy(flow), make(name, (1, 4, 4)).to(dtype)
        other.load_state_dict(flow.state_dict())
        for same in (copied, other):
            same.initialize(x + 1)  # which is measured already
            assert torch.equal(same().log_prob(x), scored)


# The start by data


def test_norms_start_with_mean_zero_and_variance_one(monkeypatch):
    flow, x = flows.glow((2, 8, 8), layers=2, hidden=(4,)), 5 + 3 * torch.randn(40, 2, 8, 8) ** 2
    flow.initialize(x)
    seen, forth = [], ActNorm.forth
    monkeypatch.setattr(ActNorm, "forth", lambda self, *args: seen.append((self, forth(self, *args))) or seen[-1][1])
    z = flow().inverse(x)
    assert len(seen) == 6
    for norm, (y, _) in seen:
        zeros = torch.zeros(len(norm.mean))
        torch.testing.assert_close(y.mean((0, 2, 3)), zeros)
        torch.testing.assert_close(y.var((0, 2, 3), correction=0), zeros + 1)
    assert z.shape == x.shape


def test_a_norm_is_measured_once_until_it_starts_anew():
    norm, x = ActNorm(2), torch.stack([torch.full((9, 1, 1), 7.0), torch.randn(9, 1, 1)], 1)
    flow = Flow(norm, (2, 1, 1))
    flow.initialize(x)
    assert norm.mean[0] == 7.0
    assert norm.log_scale[0] == 0.0  # a constant keeps its scale
    start = copy.deepcopy(norm.state_dict())
    flow.initialize(x + 1)
    assert all(torch.equal(value, start[key]) for key, value in norm.state_dict().items())
    norm.reset_parameters()
    assert not norm.measured
    flow.initialize(x + 1)
    torch.testing.assert_close(norm.mean, start["mean"] + 1)


@pytest.fixture
def images():
    return torch.randint(0, 2, (24, 1, 4, 4))


def small(**options) -> FlowModel:
    torch.manual_seed(0)
    return FlowModel((1, 4, 4), **{"flow": "glow", "layers": 1, "hidden": (4,), "levels": 3, **options})


def norms(model: FlowModel) -> list[ActNorm]:
    return [part for part in model.modules() if isinstance(part, ActNorm)]


STILL = {"optim": partial(torch.optim.SGD, lr=0.0), "progress": False, "compile": False}


def test_fit_starts_norms_by_data_once_a_chain(images):
    model = small()
    fitted = ppgen.fit(model.model, model.guide, images, steps=1, restarts=2, **STILL)
    assert all(norm.measured for norm in norms(model))
    first, second = (chain.weights for chain in fitted.chains)
    mixing = next(name for name in first if name.endswith("lower"))
    assert not torch.equal(first[mixing], second[mixing])  # another rotation
    mean = next(name for name in first if name.endswith("mean"))
    torch.testing.assert_close(first[mean], second[mean], atol=0.5, rtol=0.0)  # of the same data, by other noise
    assert first[mean].abs().max() > 0.1
    assert not any(chain.weights[name].any() for chain in fitted.chains for name in first if "network.layers.2" in name)
    before = copy.deepcopy(model.state_dict())
    ppgen.fit(model.model, model.guide, images, steps=1, seed=1, **STILL)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_stopped_run_goes_on_from_its_own_start(images, tmp_path):
    options = {"steps": 6, "restarts": 2, "batch_size": 8, "progress": False, "compile": False}

    def stop(step):
        if step.chain == 1 and step.number == 3:
            step.stop("enough")

    whole = ppgen.fit((a := small()).model, a.guide, images, **options)
    pyro.clear_param_store()
    options["checkpoint"] = tmp_path / "run.safetensors"
    ppgen.fit((b := small()).model, b.guide, images, callbacks=[stop], **options)
    pyro.clear_param_store()
    again = ppgen.fit((c := small()).model, c.guide, images, **options)
    for one, other in zip(whole.chains, again.chains, strict=True):
        assert np.array_equal(one.history["loss"], other.history["loss"])
        assert all(torch.equal(value, other.weights[name]) for name, value in one.weights.items())


@pytest.mark.slow
def test_a_compiled_step_is_the_eager_one(images):
    losses = {}
    y = torch.arange(len(images)) % 2
    for compile in (False, True):
        pyro.clear_param_store()
        model = small(num_classes=2)
        model.initialize(images, y)
        torch.manual_seed(0)
        svi = ppgen.SVI(model.model, model.guide, partial(torch.optim.Adam, lr=1e-2), ppgen.ELBO(), compile=compile)
        losses[compile] = [svi.step(images, y) for _ in range(8)]
        if compile:
            assert svi.compile_status.startswith("compiled")
    assert losses[True] == pytest.approx(losses[False], rel=1e-9)
    assert losses[True][-1] < losses[True][0]


# Flows on an interval


def test_a_base_of_normals_on_the_interval_is_the_logit_normal():
    flow = bounded(flows.lu_linear(1), 0.0, 1.0, alpha=0.0)
    x = torch.linspace(0.01, 0.99, 50)
    known = torch.distributions.TransformedDistribution(
        torch.distributions.Normal(0.0, 1.0), torch.distributions.SigmoidTransform()
    )
    torch.testing.assert_close(flow().log_prob(x[:, None]), known.log_prob(x))
    assert flow().support.check(x[:, None]).all()
    assert not flow().support.check(-x[:, None]).any()


@pytest.mark.parametrize("alpha", [0.0, 0.05, 0.4])
def test_a_flow_on_an_interval_keeps_to_it_and_integrates_to_one(alpha):
    flow = bounded(moved(flows.maf(1, layers=2, hidden=(8,))), -2.0, 3.0, alpha=alpha)
    low, high = float(flow.support.lower_bound), float(flow.support.upper_bound)
    assert (low == -2.0) == (alpha == 0.0)
    with torch.no_grad():
        x = flow().sample((1000,))
        assert ((x > low) & (x < high)).all()
        grid = torch.linspace(low, high, 20002)[1:-1]
        density = flow().log_prob(grid[:, None]).exp()
    assert float(torch.trapezoid(density, grid)) == pytest.approx(1.0, abs=2e-3)


# Data made of levels


def every_datum(levels: int, width: int) -> torch.Tensor:
    return torch.tensor(list(itertools.product(range(levels), repeat=width)))


def scores(model: FlowModel, x: torch.Tensor, times: int) -> torch.Tensor:
    """(times, n): log_prob of each row, so many times, by other noise."""
    return model.log_prob(x.repeat(times, *[1] * (x.dim() - 1))).reshape(times, len(x))


def test_probabilities_of_all_levels_sum_to_one_and_are_those_of_draws():
    """Both to Monte Carlo's error: nine frequencies of 20000 draws, each to four standard errors, a level of 6e-4."""
    torch.manual_seed(1)
    model = FlowModel((2,), flow="realnvp", layers=2, hidden=(8,), levels=3, alpha=1e-3)
    moved(model, by=0.3)
    x = every_datum(3, 2)
    p = scores(model, x, 4000).exp().mean(0)
    assert float(p.sum()) == pytest.approx(1.0, abs=0.02)
    draws = model.sample(20000)
    assert draws.dtype == torch.int64
    found = torch.bincount(3 * draws[:, 0] + draws[:, 1], minlength=9) / len(draws)
    assert (abs(found - p) < 4 * (p / len(draws)).sqrt() + 0.05 * p).all()
    assert float(p.max()) > 2 * float(p.min())


def test_one_particle_bounds_the_log_probability():
    torch.manual_seed(1)
    model = moved(FlowModel((2,), flow="realnvp", layers=2, hidden=(8,), levels=3), by=0.2)
    x = every_datum(3, 2)
    single = scores(model, x, 4000)
    assert single.unique().numel() == single.numel()  # new noise each time
    assert (single.mean(0) < single.exp().mean(0).log() - 1e-3).all()
    torch.manual_seed(2)
    two = model.log_prob(x, particles=2)
    torch.manual_seed(2)
    one, other = model.log_prob(x), model.log_prob(x)
    torch.testing.assert_close(two.exp(), (one.exp() + other.exp()) / 2)
    torch.manual_seed(2)
    assert -ppgen.ELBO().loss(model.model, model.guide, x) == pytest.approx(float(one.mean()))


def test_bits_per_dimension_of_levels_that_are_all_as_likely():
    """A logistic base on the interval is uniform: 16 levels take 4 bits."""
    model = FlowModel((1, 2, 3), flow="glow", hidden=(4,), levels=16, alpha=1e-9)
    flow = flows.glow((1, 2, 3), hidden=(4,), base=dist.Logistic(torch.zeros(1, 2, 3), 1.0).to_event(3))
    model.flow = bounded(flow, 0.0, 16.0, alpha=1e-9)
    x = torch.randint(0, 16, (50, 1, 2, 3))
    bits = -model.log_prob(x) / (6 * math.log(2))
    torch.testing.assert_close(bits, torch.full((50,), 4.0), atol=1e-5, rtol=0.0)


def test_levels_of_a_source_are_taken_as_they_are_and_other_data_are_continuous():
    digits = data.load("digits", form="levels", size=40)
    assert digits.form == "integer"
    assert digits.x.dtype == np.int64
    assert digits.levels == 17
    moons = data.load("moons", form="levels", size=40)
    assert moons.form == "continuous"
    assert moons.x.dtype == np.float32
    with pytest.raises(ValueError, match="scale='standard' would undo form='integer'"):
        data.load("digits", form="levels", scale="standard", size=40)


# In programs, and from the command line


def test_the_model_learns_where_pixels_are_bright():
    torch.manual_seed(0)
    x = torch.zeros(200, 1, 4, 4, dtype=torch.long)
    x[:, :, :2] = torch.randint(5, 8, (200, 1, 2, 4))
    model = FlowModel((1, 4, 4), flow="glow", layers=2, hidden=(8,), levels=8)
    fitted = ppgen.fit(
        model.model,
        model.guide,
        x,
        optim=partial(torch.optim.Adam, lr=5e-3),
        steps=150,
        batch_size=50,
        progress=False,
        compile=False,
    )
    bits = -float(model.log_prob(x, particles=10).mean()) / (16 * math.log(2))
    assert math.log2(3) / 2 <= bits < math.log2(3) / 2 + 0.5  # half of the pixels take one of three levels, half none
    assert fitted.history["loss"][-1] < fitted.history["loss"][0]
    draws = model.sample(200)
    assert draws.shape == (200, 1, 4, 4)
    assert 0 <= int(draws.min()) <= int(draws.max()) <= 7
    assert float((draws[:, :, :2] >= 4).double().mean()) > 0.9
    assert float((draws[:, :, 2:] <= 1).double().mean()) > 0.9


def test_a_flow_of_images_stands_in_a_model_and_in_a_guide():
    flow = make("glow", (1, 4, 4))

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1, 4, 4), 1.0).to_event(3))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(3), obs=x)

    def guide(x):
        pyro.module("flow", flow)
        with pyro.plate("data", len(x)):
            pyro.sample("z", flow())

    x = torch.randn(6, 1, 4, 4)
    assert math.isfinite(ppgen.ELBO().loss(model, guide, x))


def test_a_conditional_model_takes_labels():
    model = moved(small(num_classes=3))
    x, y = torch.randint(0, 3, (6, 1, 4, 4)), torch.arange(6) % 3
    assert model.log_prob(x, y).shape == (6,)
    assert model.sample(6, y).shape == (6, 1, 4, 4)
    torch.manual_seed(2)
    one = model.log_prob(x, y)
    torch.manual_seed(2)
    assert not torch.equal(one, model.log_prob(x, (y + 1) % 3))


@pytest.mark.parametrize("system", ["glow", "realnvp"])
def test_the_command_line_has_bits_per_dimension_of_levels(system, tmp_path, monkeypatch, capsys):
    torch.set_default_dtype(torch.float32)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ppgen.report.report_of_run", lambda *_, title, **__: ppgen.report.Report(title))
    options = ["--model.hidden", "[4]", "--model.layers", "1", "--data.size", "200", "--fit.steps", "3"]
    assert main(["train", system, "digits", *options, "--out", "run"]) == 0
    assert "held-out bits per dimension" in capsys.readouterr().out
    numbers = json.loads((tmp_path / "run" / "numbers.json").read_text())
    (nats, _), (bits, _) = (
        numbers[f"held-out {what}"] for what in ("log-likelihood (nats per datum)", "bits per dimension")
    )
    assert bits == pytest.approx(-nats / (64 * math.log(2)))
    run = Run.load("run")
    assert run.model.levels == 17
    drawn = run.sample(5)
    assert drawn.shape == (5, 1, 8, 8)
    assert set(np.unique(drawn)) <= set(range(17))


# Bad input


def test_what_is_wrong_is_said():
    with pytest.raises(ValueError, match=r"a flow of images \(channels, height, width\), got events of shape \(2,\)"):
        FlowModel((2,), flow="glow")
    with pytest.raises(ValueError, match="layers: expected at least 1, got 0"):
        flows.glow((1, 4, 4), layers=0)
    with pytest.raises(ValueError, match=r"scales: expected 1 to 1 for images of 5 x 8 pixels, .* got 2"):
        flows.glow((1, 5, 8), scales=2)
    with pytest.raises(ValueError, match=r"flow='maf' has no such option: .*scales"):
        FlowModel((2,), flow="maf", scales=2)
    with pytest.raises(ValueError, match=r"low < high, got \(1, 1\)"):
        bounded(flows.maf(2), 1, 1)
    with pytest.raises(ValueError, match=r"alpha: expected a number from 0 to below 0\.5, such as 0\.05, got 0\.5"):
        bounded(flows.maf(2), 0, 1, alpha=0.5)
    with pytest.raises(ValueError, match="expected levels or bounds, got both"):
        FlowModel((2,), levels=4, bounds=(0, 1))
    with pytest.raises(ValueError, match="levels of at least 2 and alpha above 0, got 4 and 0"):
        FlowModel((2,), levels=4, alpha=0.0)
    with pytest.raises(ValueError, match=r"integers 0 .. 2, the support of a model of levels=3; 1 of 32 .*max 3"):
        small().log_prob(torch.cat([torch.zeros(31), torch.tensor([3.0])]).reshape(2, 1, 4, 4))
    model = FlowModel((2,), flow="maf", bounds=(0.0, 1.0))
    with pytest.raises(
        ValueError, match=r"above -0\.0555556 and below 1\.05556, .* 1 of 4 are not \(min 0.1, max 1.2\)"
    ):
        model.check(torch.tensor([[0.1, 0.5], [0.2, 1.2]]))
    with pytest.raises(ValueError, match=r"no bound on integers, got torch.int64; build the model with their levels"):
        FlowModel((2,), flow="maf").check(torch.arange(6).reshape(3, 2))
    with pytest.raises(ValueError, match="particles of at least 1, got 0"):
        small().log_prob(torch.zeros(1, 1, 4, 4), particles=0)
    labeled, x = small(num_classes=2), torch.zeros(3, 1, 4, 4, dtype=torch.long)
    for call in (labeled.check, labeled.log_prob):
        with pytest.raises(ValueError, match=r"labels y in 0 .. 1, as num_classes=2 says; 1 of 3 are not"):
            call(x, torch.tensor([0, 1, 2]))
        with pytest.raises(ValueError, match="labels y: the model was built with num_classes=2"):
            call(x)
    with pytest.raises(ValueError, match=r"labels y in 0 .. 1, as num_classes=2 says"):
        labeled.sample(3, torch.tensor([0, 1, 5]))
