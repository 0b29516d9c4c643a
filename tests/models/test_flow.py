"""FlowModel: maximum likelihood, labels, levels with their bits per dimension, and data-dependent initialization."""

import copy
import itertools
import math
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from flow_cases import perturb

import ppgen
from ppgen import data, flows
from ppgen.flows import bounded
from ppgen.flows.image_layers import ActNorm
from ppgen.models import FlowModel
from ppgen.nets import eval_mode


@pytest.fixture(autouse=True)
def _double_precision():
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(dtype)


QUIET = {"progress": False, "compile": False}

# Maximum likelihood


@pytest.mark.parametrize("name", ["realnvp", "nsf", "maf", "lu_linear"])
def test_a_model_fits_a_correlated_gaussian(name):
    x = torch.randn(300, 2) @ torch.tensor([[1.0, 0.8], [0.0, 0.4]]) + torch.tensor([1.0, -2.0])
    torch.manual_seed(1)
    model = FlowModel((2,), flow=name, hidden=(16,))
    exact = dist.MultivariateNormal(x.mean(0), x.T.cov(correction=0)).log_prob(x).mean()
    before = float(model.log_prob(x).mean())
    ppgen.fit(model.model, model.guide, x, optim=partial(torch.optim.Adam, lr=0.03), steps=150, **QUIET)
    after = float(model.log_prob(x).mean())
    # a linear flow converges more slowly
    assert after > (exact - 0.1 if name != "lu_linear" else before)
    assert model.sample(5).shape == (5, 2)


@pytest.mark.slow
def test_the_kinetic_energy_is_penalized_in_training_only():
    x = torch.randn(64, 2) * 2 + 3
    energies = {}
    for kinetic in (0.0, 1.0):
        torch.manual_seed(0)
        model = FlowModel((2,), flow="continuous", hidden=(16,), kinetic=kinetic, options={"steps": 4})
        loss = ppgen.ELBO()
        training = loss.loss(model.model, model.guide, x)
        with eval_mode(model):
            plain = loss.loss(model.model, model.guide, x)
            initial = float(model.flow().kinetic_energy(x).mean().detach())
        assert training - plain == pytest.approx(kinetic * initial)
        ppgen.fit(model.model, model.guide, x, optim=partial(torch.optim.Adam, lr=0.02), steps=80, **QUIET)
        with torch.no_grad():
            energies[kinetic] = float(model.flow().kinetic_energy(x).mean())
    assert 0 < energies[1.0] < energies[0.0]


def test_a_conditional_model_of_vectors_depends_on_labels():
    model = FlowModel((1, 2, 2), flow="maf", num_classes=3)
    x, y = torch.randn(6, 1, 2, 2), torch.arange(6) % 3
    ppgen.fit(model.model, model.guide, (x, y), steps=2, **QUIET)
    assert model.log_prob(x, y).shape == (6,)
    assert model.sample(6, y).shape == (6, 1, 2, 2)
    assert not torch.equal(model.log_prob(x, y), model.log_prob(x, (y + 1) % 3))


# Flows of images


@pytest.fixture
def images():
    return torch.randint(0, 2, (24, 1, 4, 4))


def small_glow(**options) -> FlowModel:
    torch.manual_seed(0)
    return FlowModel((1, 4, 4), **{"flow": "glow", "layers": 1, "hidden": (4,), "levels": 3, **options})


def norms(model: FlowModel) -> list[ActNorm]:
    return [part for part in model.modules() if isinstance(part, ActNorm)]


def test_a_conditional_model_of_images_depends_on_labels():
    model = perturb(small_glow(num_classes=3))
    x, y = torch.randint(0, 3, (6, 1, 4, 4)), torch.arange(6) % 3
    assert model.log_prob(x, y).shape == (6,)
    assert model.sample(6, y).shape == (6, 1, 4, 4)
    torch.manual_seed(2)
    one = model.log_prob(x, y)
    torch.manual_seed(2)
    assert not torch.equal(one, model.log_prob(x, (y + 1) % 3))


def test_a_model_of_images_learns_which_pixels_are_bright():
    torch.manual_seed(0)
    x = torch.zeros(200, 1, 4, 4, dtype=torch.long)
    x[:, :, :2] = torch.randint(5, 8, (200, 1, 2, 4))
    model = FlowModel((1, 4, 4), flow="glow", layers=2, hidden=(8,), levels=8)
    adam = partial(torch.optim.Adam, lr=5e-3)
    fit = ppgen.fit(model.model, model.guide, x, optim=adam, steps=150, batch_size=50, **QUIET)
    bits = -float(model.log_prob(x, particles=10).mean()) / (16 * math.log(2))
    assert math.log2(3) / 2 <= bits < math.log2(3) / 2 + 0.5  # half of the pixels have one of three levels, half none
    assert fit.history["loss"][-1] < fit.history["loss"][0]
    samples = model.sample(200)
    assert samples.shape == (200, 1, 4, 4)
    assert 0 <= int(samples.min()) <= int(samples.max()) <= 7
    assert float((samples[:, :, :2] >= 4).double().mean()) > 0.9
    assert float((samples[:, :, 2:] <= 1).double().mean()) > 0.9


def test_fit_initializes_norms_once_per_chain(images):
    frozen = {"optim": partial(torch.optim.SGD, lr=0.0), "steps": 1, **QUIET}
    model = small_glow()
    fit = ppgen.fit(model.model, model.guide, images, restarts=2, **frozen)
    assert all(norm.initialized for norm in norms(model))
    first, second = (chain.weights for chain in fit.chains)
    convolution = next(name for name in first if name.endswith("lower"))
    assert not torch.equal(first[convolution], second[convolution])  # another random rotation
    mean = next(name for name in first if name.endswith("mean"))
    torch.testing.assert_close(first[mean], second[mean], atol=0.5, rtol=0.0)  # same data, other noise
    assert first[mean].abs().max() > 0.1
    assert not any(chain.weights[name].any() for chain in fit.chains for name in first if "network.layers.2" in name)
    before = copy.deepcopy(model.state_dict())
    ppgen.fit(model.model, model.guide, images, seed=1, **frozen)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_resumed_run_keeps_its_initialization(images, tmp_path):
    options = {"steps": 6, "restarts": 2, "batch_size": 8, **QUIET}

    def stop(step):
        if step.chain == 1 and step.number == 3:
            step.stop("enough")

    whole = ppgen.fit((a := small_glow()).model, a.guide, images, **options)
    pyro.clear_param_store()
    options["checkpoint"] = tmp_path / "run.safetensors"
    ppgen.fit((b := small_glow()).model, b.guide, images, callbacks=[stop], **options)
    pyro.clear_param_store()
    resumed = ppgen.fit((c := small_glow()).model, c.guide, images, **options)
    for one, other in zip(whole.chains, resumed.chains, strict=True):
        assert np.array_equal(one.history["loss"], other.history["loss"])
        assert all(torch.equal(value, other.weights[name]) for name, value in one.weights.items())


# Compiled steps


def losses_of_steps(model: FlowModel, args: tuple, compile: bool) -> list[float]:
    pyro.clear_param_store()
    svi = ppgen.SVI(model.model, model.guide, partial(torch.optim.Adam, lr=1e-2), ppgen.ELBO(), compile=compile)
    losses = [svi.step(*args) for _ in range(8)]
    if compile:
        assert svi.compile_status.startswith("compiled")
    return losses


@pytest.mark.slow
@pytest.mark.parametrize("name", ["realnvp", "nsf", "continuous", "planar"])
def test_compiled_steps_equal_eager_ones(name):
    x, losses = torch.randn(64, 2), {}
    for compile in (False, True):
        torch.manual_seed(0)
        model = FlowModel((2,), flow=name, hidden=(8,), layers=None if name == "continuous" else 2)
        if name == "continuous":
            model.flow.maps.steps = 1
        losses[compile] = losses_of_steps(model, (x,), compile)
    assert losses[True] == pytest.approx(losses[False], rel=1e-9)


@pytest.mark.slow
def test_compiled_steps_of_images_equal_eager_ones(images):
    y, losses = torch.arange(len(images)) % 2, {}
    for compile in (False, True):
        model = small_glow(num_classes=2)
        model.initialize(images, y)
        torch.manual_seed(0)
        losses[compile] = losses_of_steps(model, (images, y), compile)
    assert losses[True] == pytest.approx(losses[False], rel=1e-9)
    assert losses[True][-1] < losses[True][0]


# Data with levels


def all_data(levels: int, width: int) -> torch.Tensor:
    return torch.tensor(list(itertools.product(range(levels), repeat=width)))


def repeated_log_probs(model: FlowModel, x: torch.Tensor, times: int) -> torch.Tensor:
    """The log_prob of each row with different noise: (times, n)."""
    return model.log_prob(x.repeat(times, *[1] * (x.dim() - 1))).reshape(times, len(x))


def test_probabilities_of_all_levels_sum_to_one_and_are_those_of_samples():
    """Nine frequencies of 20000 samples, each to four standard errors (p-value 6e-4), plus Monte Carlo error."""
    torch.manual_seed(1)
    model = perturb(FlowModel((2,), flow="realnvp", layers=2, hidden=(8,), levels=3, alpha=1e-3), 0.3)
    x = all_data(3, 2)
    p = repeated_log_probs(model, x, 4000).exp().mean(0)
    assert float(p.sum()) == pytest.approx(1.0, abs=0.02)
    samples = model.sample(20000)
    assert samples.dtype == torch.int64
    frequencies = torch.bincount(3 * samples[:, 0] + samples[:, 1], minlength=9) / len(samples)
    assert (abs(frequencies - p) < 4 * (p / len(samples)).sqrt() + 0.05 * p).all()
    assert float(p.max()) > 2 * float(p.min())


def test_one_particle_bounds_the_log_probability_from_below():
    torch.manual_seed(1)
    model = perturb(FlowModel((2,), flow="realnvp", layers=2, hidden=(8,), levels=3), 0.2)
    x = all_data(3, 2)
    single = repeated_log_probs(model, x, 4000)
    assert single.unique().numel() == single.numel()  # new noise each time
    assert (single.mean(0) < single.exp().mean(0).log() - 1e-3).all()
    torch.manual_seed(2)
    two = model.log_prob(x, particles=2)
    torch.manual_seed(2)
    one, other = model.log_prob(x), model.log_prob(x)
    torch.testing.assert_close(two.exp(), (one.exp() + other.exp()) / 2)
    torch.manual_seed(2)
    assert -ppgen.ELBO().loss(model.model, model.guide, x) == pytest.approx(float(one.mean()))


def test_bits_per_dimension_of_uniform_levels():
    """A logistic base is uniform on the interval: 16 levels take 4 bits."""
    model = FlowModel((1, 2, 3), flow="glow", hidden=(4,), levels=16, alpha=1e-9)
    flow = flows.glow((1, 2, 3), hidden=(4,), base=dist.Logistic(torch.zeros(1, 2, 3), 1.0).to_event(3))
    model.flow = bounded(flow, 0.0, 16.0, alpha=1e-9)
    x = torch.randint(0, 16, (50, 1, 2, 3))
    bits = -model.log_prob(x) / (6 * math.log(2))
    torch.testing.assert_close(bits, torch.full((50,), 4.0), atol=1e-5, rtol=0.0)


def test_levels_of_a_data_set_are_not_scaled_and_other_data_are_continuous():
    digits = data.load("digits", form="levels", size=40)
    assert digits.form == "integer"
    assert digits.x.dtype == np.int64
    assert digits.levels == 17
    moons = data.load("moons", form="levels", size=40)
    assert moons.form == "continuous"
    assert moons.x.dtype == np.float32
    with pytest.raises(ValueError, match="scale='standard' would undo form='integer'"):
        data.load("digits", form="levels", scale="standard", size=40)


# Errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flow": "glov"}, "flow to be one of"),
        ({"flow": "glow"}, r"a flow of images \(channels, height, width\), got events of shape \(2,\)"),
        ({"flow": "maf", "scales": 2}, r"flow='maf' has no such option: .*scales"),
        ({"flow": "lu_linear", "layers": 3}, "flow='lu_linear' has no such option"),
        ({"flow": "maf", "kinetic": 0.1}, "0 of any flow but 'continuous', got 0"),
        ({"levels": 4, "bounds": (0, 1)}, "expected levels or bounds, got both"),
        ({"levels": 4, "alpha": 0.0}, "levels of at least 2 and alpha above 0, got 4 and 0"),
    ],
)
def test_bad_options_raise(options, message):
    with pytest.raises(ValueError, match=message):
        FlowModel((2,), **options)


def test_data_outside_the_support_raise():
    with pytest.raises(ValueError, match=r"integers 0 .. 2, the support of a model of levels=3; 1 of 32 .*max 3"):
        small_glow().log_prob(torch.cat([torch.zeros(31), torch.tensor([3.0])]).reshape(2, 1, 4, 4))
    model = FlowModel((2,), flow="maf", bounds=(0.0, 1.0))
    message = r"above -0\.0555556 and below 1\.05556, .* 1 of 4 are not \(min 0.1, max 1.2\)"
    with pytest.raises(ValueError, match=message):
        model.check(torch.tensor([[0.1, 0.5], [0.2, 1.2]]))
    with pytest.raises(ValueError, match=r"no bound on integers, got torch.int64; build the model with their levels"):
        FlowModel((2,), flow="maf").check(torch.arange(6).reshape(3, 2))
    x = torch.randn(5, 3)
    x[:, 1] = 4.0
    with pytest.raises(ValueError, match="features 1 have one value in all 5 rows"):
        FlowModel((3,), flow="maf").check(x)


def test_bad_labels_raise():
    labeled, x = small_glow(num_classes=2), torch.zeros(3, 1, 4, 4, dtype=torch.long)
    for call in (labeled.check, labeled.log_prob):
        with pytest.raises(ValueError, match=r"labels y in 0 .. 1, as num_classes=2 says; 1 of 3 are not"):
            call(x, torch.tensor([0, 1, 2]))
        with pytest.raises(ValueError, match="labels y: the model was built with num_classes=2"):
            call(x)
    with pytest.raises(ValueError, match=r"labels y in 0 .. 1, as num_classes=2 says"):
        labeled.sample(3, torch.tensor([0, 1, 5]))
    with pytest.raises(ValueError, match="labels y: the model was built with num_classes=2"):
        FlowModel((3,), flow="maf", num_classes=2).sample(3)
    with pytest.raises(ValueError, match="expected no labels y"):
        FlowModel((3,), flow="maf").check(torch.randn(5, 3), torch.zeros(5, dtype=torch.long))


def test_samples_have_no_means_and_scores_need_particles():
    with pytest.raises(ValueError, match="no mean"):
        FlowModel((3,), flow="maf").sample(3, mean=True)
    with pytest.raises(ValueError, match="particles of at least 1, got 0"):
        small_glow().log_prob(torch.zeros(1, 1, 4, 4), particles=0)
