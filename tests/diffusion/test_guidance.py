"""Guidance: closed forms for Gaussian data and Gaussian mixtures, then errors."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from ppgen.diffusion import NoiseLevel, make_schedule, sample
from ppgen.diffusion.guidance import classifier, classifier_free, krylov, posterior
from ppgen.models import Diffusion

MEAN = torch.tensor([0.5, -1.0, 0.3]).double()
ROOT = torch.tensor([[0.9, 0.0, 0.0], [0.6, 0.5, 0.0], [-0.3, 0.4, 0.7]]).double()
COV = ROOT @ ROOT.T
MAP = torch.tensor([[1.0, 0.5, 0.0], [0.0, -1.0, 2.0]]).double()  # two linear observations of three numbers
NOISE = torch.tensor([0.3, 0.5]).double()
SEEN = torch.tensor([1.2, 0.4]).double()


def noise_level(signal: float, noise: float) -> NoiseLevel:
    a, s = torch.tensor([signal, noise]).double()
    return NoiseLevel(a, s, 2 * (a / s).log())


def gaussian(mean=MEAN, cov=COV):
    """E[v | z] for v ~ N(mean, cov)."""

    def denoise(z, level):
        a, s, _ = level
        gain = a * torch.linalg.solve(a**2 * cov + s**2 * torch.eye(len(mean)).to(cov), cov)
        return mean + (z - a * mean) @ gain

    return denoise


def conditioned(mean=MEAN, cov=COV):
    """The mean and covariance of v given SEEN."""
    gain = torch.linalg.solve(MAP @ cov @ MAP.T + NOISE.square().diag(), MAP @ cov).T
    return mean + gain @ (SEEN - MAP @ mean), cov - gain @ MAP @ cov


def likelihood(x):
    pyro.sample("y", dist.Normal(x @ MAP.T, NOISE).to_event(1), obs=SEEN)


def in_parts(x):
    """The same likelihood in two sites, with a plate, a mask and a scale."""
    loc = x @ MAP.T
    with pyro.plate("rows", len(x)):
        pyro.sample("first", dist.Normal(loc[:, :1], NOISE[:1]).to_event(1), obs=SEEN[:1])
    two = torch.stack([loc[:, 1], loc[:, 0]], 1)
    masked = dist.Normal(two, NOISE[1] * 2**0.5).mask(torch.tensor([True, False])).to_event(1)
    with poutine.scale(scale=2.0):
        pyro.sample("second", masked, obs=torch.stack([SEEN[1], torch.tensor(50.0).double()]))


def correlated(x):
    """The same likelihood as one site with a full noise covariance."""
    turn = torch.tensor([[1.0, 0.4], [-0.7, 1.0]]).double()
    noise = turn @ NOISE.square().diag() @ turn.T
    pyro.sample("y", dist.MultivariateNormal(x @ MAP.T @ turn.T, noise), obs=turn @ SEEN)


def by_a_factor(x):
    """The likelihood as a factor, which is not a Gaussian site."""
    pyro.factor("y", dist.Normal(x @ MAP.T, NOISE).log_prob(SEEN).sum(-1))


LEVELS = {
    "data": (1.0, 1e-3),
    "some noise": (0.9, 0.4),
    "half": (0.5, 0.5),
    "much": (0.1, 0.9),
    "large": (1.0, 50.0),
}


@pytest.mark.parametrize("program", [likelihood, in_parts, correlated])
@pytest.mark.parametrize("name", LEVELS)
def test_posterior_of_gaussian_data_is_exact(name, program):
    torch.manual_seed(0)
    at = noise_level(*LEVELS[name])
    z = at.signal * MEAN + at.noise * torch.randn(5, 3).double()
    guided = posterior(gaussian(), program, cg_steps=2, floor=1e-4)(z, at)
    torch.testing.assert_close(guided, gaussian(*conditioned())(z, at), rtol=1e-6, atol=1e-6)


def test_posterior_without_signal_is_that_of_the_prior():
    z = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).double()
    at = NoiseLevel(*torch.tensor([0.0, 1.0, -torch.inf]).double())
    mean, _ = conditioned()
    for floor, tolerance in ((0.2, 1e-3), (0.1, 2e-5)):  # the error is proportional to floor^6
        guided = posterior(gaussian(), likelihood, cg_steps=2, floor=floor)(z, at)
        torch.testing.assert_close(guided, mean.expand(4, 3), rtol=0, atol=tolerance)


def test_rows_may_have_different_levels():
    """Levels of shape (n,), one of them below the floor."""
    z = torch.randn(3, 3, generator=torch.Generator().manual_seed(0)).double()
    a, s = torch.tensor([[0.0, 0.5, 0.9], [1.0, 0.5, 0.1]]).double()
    rows = NoiseLevel(a, s, 2 * (a / s).log())

    def denoise(z, at):
        parts = [NoiseLevel(*part) for part in zip(*(rate.expand(len(z)) for rate in at), strict=True)]
        return torch.cat([gaussian()(row[None], part) for row, part in zip(z, parts, strict=True)])

    together = posterior(denoise, likelihood, cg_steps=2)(z, rows)
    apart = [
        posterior(gaussian(), likelihood, cg_steps=2)(z[i : i + 1], NoiseLevel(*(r[i] for r in rows))) for i in range(3)
    ]
    torch.testing.assert_close(together, torch.cat(apart))


def whitened(x, mean, cov):
    return torch.linalg.solve_triangular(torch.linalg.cholesky(cov), (x - mean).T, upper=False).T


@pytest.mark.parametrize(("schedule", "eta"), [("cosine", 0.0), ("straight", 0.0), ("straight", 1.0)])
def test_samples_follow_the_closed_form_posterior(schedule, eta):
    torch.manual_seed(0)
    n = 4000
    grid = make_schedule(schedule).grid(300 if eta else 120, MEAN)
    z = torch.randn(n, 3).double() * (grid.signal[0].square() + grid.noise[0].square()).sqrt()
    x = sample(posterior(gaussian(), likelihood, cg_steps=2), z, grid, sampler="ddim", eta=eta)
    mean, cov = conditioned()
    # whitened, the mean is N(0, 1 / n), and the covariance has standard deviations of (2 / n)^1/2; 4.5 of them have a
    # p-value of 7e-6 for each of nine entries. The first-order steps have an error of up to 0.06.
    white = whitened(x, mean, cov)
    assert white.mean(0).abs().max() < 4.5 / n**0.5 + 0.02
    assert (white.T.cov() - torch.eye(3)).abs().max() < 4.5 * (2 / n) ** 0.5 + 0.06


class Exact(torch.nn.Module):
    """The exact denoiser of Gaussian data."""

    learned_scale = False

    def __init__(self, mean=MEAN, cov=COV):
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(()).double())
        self.mean = gaussian(mean, cov)

    def forward(self, z, level, context=None):
        return self.mean(z, level)


def exact_model(**options):
    model = Diffusion((3,), hidden=(4,), **options)
    model.denoiser = Exact()
    return model


@pytest.mark.parametrize("options", [{}, {"sampler": "ancestral", "steps": 200}])
def test_a_model_conditioned_on_a_likelihood(options):
    torch.manual_seed(0)
    n = 3000
    x = exact_model().condition(likelihood).sample(n, **options)
    white = whitened(x, *conditioned())
    # as above; the steps have an error of up to 0.07, or 0.02 with Heun's method
    assert white.mean(0).abs().max() < 4.5 / n**0.5 + 0.02
    assert (white.T.cov() - torch.eye(3)).abs().max() < 4.5 * (2 / n) ** 0.5 + 0.07


SEEN_BY_ROW = torch.stack([SEEN, -SEEN])


def in_a_plate(model):
    def program():
        with pyro.plate("rows", 2):
            x = pyro.sample("x", model.distribution())
            pyro.sample("y", dist.Normal(x @ MAP.T, NOISE).to_event(1), obs=SEEN_BY_ROW)
        pyro.sample("total", dist.Normal(x[..., 0].sum(-1, keepdim=True), 0.1), obs=torch.tensor([0.3]).double())

    return program


def expanded(model):
    def program():
        x = pyro.sample("x", model.distribution().expand([2]))
        pyro.sample("y", dist.Normal(x @ MAP.T, NOISE).to_event(1), obs=SEEN_BY_ROW)
        pyro.sample("total", dist.Normal(x[..., 0].sum(-1, keepdim=True), 0.1), obs=torch.tensor([0.3]).double())

    return program


def one_event(model):
    def program():
        x = pyro.sample("x", model.distribution().expand([2]).to_event(1))
        pyro.sample("y", dist.Normal(x @ MAP.T, NOISE).to_event(2), obs=SEEN_BY_ROW)
        pyro.sample("total", dist.Normal(x[..., 0].sum(-1), 0.1), obs=torch.tensor(0.3).double())

    return program


@pytest.mark.parametrize("write", [expanded, one_event])
def test_equivalent_programs_give_the_same_samples(write):
    model, drawn = exact_model(), []
    for program in (in_a_plate(model), write(model)):
        torch.manual_seed(0)
        drawn.append(model.condition(program, site="x").sample(5, steps=4))
    torch.testing.assert_close(*drawn)


def test_a_model_as_prior_of_rows_that_are_observed_jointly():
    torch.manual_seed(0)
    n, model = 3000, exact_model()
    x = model.condition(in_a_plate(model), site="x", cg_steps=5).sample(n, steps=36)
    assert x.shape == (n, 2, 3)
    two = torch.eye(2).double()
    first = torch.tensor([[1.0, 0, 0, 1, 0, 0]]).double()
    through = torch.cat([torch.kron(two, MAP), first])
    noise = torch.cat([NOISE, NOISE, torch.tensor([0.1])]).square().diag()
    seen = torch.cat([SEEN_BY_ROW.flatten(), torch.tensor([0.3])])
    prior_mean, prior_cov = MEAN.repeat(2), torch.kron(two, COV)
    gain = torch.linalg.solve(through @ prior_cov @ through.T + noise, through @ prior_cov).T
    white = whitened(
        x.flatten(1), prior_mean + gain @ (seen - through @ prior_mean), prior_cov - gain @ through @ prior_cov
    )
    # 4.5 standard errors (p-value 7e-6 for each of 27 entries)
    assert white.mean(0).abs().max() < 4.5 / n**0.5 + 0.02
    assert (white.T.cov() - torch.eye(6)).abs().max() < 4.5 * (2 / n) ** 0.5 + 0.05


def test_the_likelihood_of_a_model_with_levels_sees_real_numbers_on_their_scale():
    torch.manual_seed(0)
    model = exact_model(levels=9)

    def program(x):
        pyro.sample("y", dist.Normal(x, 0.05).to_event(1), obs=torch.tensor([6.0, 2.0, 5.0]).double())

    x = model.condition(program).sample(20)
    assert x.dtype == torch.long
    assert (x == torch.tensor([6, 2, 5])).all()
    path = model.condition(program).sample(2, steps=3, return_path=True)
    assert [p.dtype for p in path] == [torch.float64] * 3 + [torch.long]


def test_a_conditional_model_of_images():
    """Masked pixels and labels, with guidance by both; in a program, `distribution` gets the labels."""
    torch.manual_seed(0)
    model = Diffusion((1, 4, 4), hidden=(8,), num_classes=3, levels=5)
    torch.nn.init.normal_(model.denoiser.network.last[-1].weight, std=0.1)  # it is initialized at zero
    labels, seen = torch.tensor([0, 1, 2, 2]), torch.arange(16.0).reshape(1, 4, 4) % 5
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[:, :2] = True

    def upper(x):
        with poutine.mask(mask=mask):
            pyro.sample("y", dist.Normal(x, 0.1), obs=seen)

    def program():
        with pyro.plate("data", 4):
            x = pyro.sample("x", model.distribution(labels))
            pyro.sample("y", dist.Normal(x, 0.1).mask(mask).to_event(3), obs=seen / 2 - 1)

    x = model.condition(upper, cg_steps=8).sample(4, labels, steps=30, guidance=2.0)
    assert x.shape == (4, 1, 4, 4)
    assert x.dtype == torch.long
    assert (x[:, :, :2] - seen[:, :2]).abs().mean() < 0.1
    x = model.condition(program, site="x", cg_steps=8).sample(2, steps=12)
    assert x.shape == (2, 4, 1, 4, 4)
    assert ((x - (seen / 2 - 1))[..., :2, :].abs() < 0.5).all()  # five standard deviations of the noise
    with pytest.raises(ValueError, match="labels"):
        model.condition(upper).sample(4)


WEIGHTS = torch.tensor([0.3, 0.7]).double()
CENTERS = torch.stack([MEAN, -2 * MEAN])
COVS = torch.stack([COV, 0.5 * torch.eye(3).double()])


def log_classes(z, level):
    """log p(z | k) + log p(k) of a mixture's two classes: (n, 2)."""
    a, s, _ = level
    distributions = dist.MultivariateNormal(a * CENTERS, a**2 * COVS + s**2 * torch.eye(3).double())
    return distributions.log_prob(z[:, None]) + WEIGHTS.log()


def mixture(z, level):
    """E[v | z] for the mixture of both classes."""
    responsibility = log_classes(z, level).softmax(1)
    means = torch.stack([gaussian(m, c)(z, level) for m, c in zip(CENTERS, COVS, strict=True)], 1)
    return (responsibility[..., None] * means).sum(1)


@pytest.mark.parametrize("name", LEVELS)
def test_an_exact_classifier_gives_the_mean_of_the_class(name):
    at = noise_level(*LEVELS[name])
    z = at.noise * torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).double()
    guided = classifier(mixture, lambda z, at: log_classes(z, at).log_softmax(1)[:, 0], floor=1e-6)
    torch.testing.assert_close(guided(z, at), gaussian(CENTERS[0], COVS[0])(z, at), rtol=1e-5, atol=1e-5)
    unguided = classifier(mixture, lambda z, at: log_classes(z, at).log_softmax(1)[:, 0], weight=0.0)
    torch.testing.assert_close(unguided(z, at), mixture(z, at))


def test_an_exact_classifier_without_signal_gives_the_mean_of_the_class():
    z = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).double()
    at = NoiseLevel(*torch.tensor([0.0, 1.0, -torch.inf]).double())
    guided = classifier(mixture, lambda z, at: log_classes(z, at).log_softmax(1)[:, 0], floor=1e-6)(z, at)
    torch.testing.assert_close(guided, CENTERS[0].expand(4, 3), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("weight", "mean"), [(0.0, MEAN), (1.0, 2 * MEAN), (3.0, 4 * MEAN)])
def test_classifier_free_guidance_is_linear_in_the_weight(weight, mean):
    guided = classifier_free(lambda z, at: (2 * MEAN).expand_as(z), lambda z, at: MEAN.expand_as(z), weight)
    z = torch.zeros(4, 3).double()
    torch.testing.assert_close(guided(z, noise_level(0.5, 0.5)), mean.expand(4, 3))


@pytest.mark.parametrize("name", ["data", "half", "much"])
def test_other_sites_shift_the_mean_by_their_gradient(name):
    """A factor with gradient g shifts the mean by V g before Gaussian sites are applied; exact if it is log-linear."""
    at, gradient = noise_level(*LEVELS[name]), torch.tensor([0.4, -0.3, 0.2]).double()
    z = at.signal * MEAN + at.noise * torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).double()

    def program(x):
        likelihood(x)
        pyro.factor("tilt", x @ gradient)

    # exp(g' v) N(v; m, S) is proportional to N(v; m + S g, S)
    exact = gaussian(*conditioned(MEAN + COV @ gradient))(z, at)
    guided = posterior(gaussian(), program, cg_steps=2, floor=1e-4)(z, at)
    torch.testing.assert_close(guided, exact, rtol=1e-6, atol=1e-6)


def test_bernoulli_observations_shift_samples_like_the_exact_posterior():
    """Two coins with logits v_1: samples shift about as much as the exact posterior, found by quadrature."""

    def coins(x):
        with pyro.plate("coins", 2, dim=-2):
            pyro.sample("y", dist.Bernoulli(logits=x[:, 0]), obs=torch.ones(2, 1).double())

    def sided(x):
        pyro.sample("y", dist.Bernoulli(logits=x[:, :1].expand(-1, 2)).to_event(1), obs=torch.ones(2).double())

    z = torch.randn(500, 3, generator=torch.Generator().manual_seed(0)).double()
    grid = make_schedule("cosine").grid(40, MEAN)
    free, guided = (sample(denoise, z, grid) for denoise in (gaussian(), posterior(gaussian(), sided)))
    # the first number is N(0.5, 0.81)
    side = torch.linspace(-6, 6, 4001).double()
    weights = dist.Normal(0.5, 0.9).log_prob(side).exp() * side.sigmoid() ** 2
    exact = float((side * weights).sum() / weights.sum())
    shift = float((guided - free)[:, 0].mean())
    assert 0.9 < shift / (exact - 0.5) < 1.25  # too far, since the likelihood neglects the spread of v
    with pytest.raises(ValueError, match=r"site 'y' has shape \(2, 4\).* expected the 4 rows"):
        posterior(gaussian(), coins)(z[:4], noise_level(0.5, 0.5))


def test_krylov_solves_each_row_and_drops_negative_directions():
    torch.manual_seed(0)
    root = torch.randn(3, 4, 4).double()
    matrix = root @ root.mT
    target = torch.randn(3, 4).double()
    exact = torch.linalg.solve(matrix + torch.eye(4).double(), target)
    for steps in (4, 10):  # more steps than dimensions do no harm
        torch.testing.assert_close(krylov(lambda u: (matrix @ u[..., None])[..., 0], target, steps), exact)
    signs = torch.tensor([[1.0], [-1.0], [0.0]]).double()
    torch.testing.assert_close(krylov(lambda u: signs * u, target, 3), target * torch.tensor([[0.5], [0.0], [0.0]]))
    mixed = torch.tensor([3.0, -0.9, 1.0, 0.2]).double()  # the negative direction is dropped
    expected = torch.where(mixed > 0, target / (1 + mixed), 0.0)
    torch.testing.assert_close(krylov(lambda u: mixed * u, target, 10), expected)
    assert (krylov(lambda u: u, torch.zeros(2, 3), 3) == 0).all()
    assert (krylov(lambda u: u, torch.ones(2, 3), 0) == 0).all()


def latent(x):
    pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    likelihood(x)


def unseen(x):
    pyro.deterministic("x", x)


def detached(x):
    likelihood(x.detach())


def mismatched(x):
    pyro.sample("y", dist.Normal(x @ MAP.T, NOISE).to_event(1), obs=torch.zeros(5).double())


def other_rows(x):
    pyro.sample("y", dist.Normal(x @ MAP.T, NOISE).to_event(1), obs=torch.zeros(7, 1, 2).double())


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (latent, r"got the latents 'scale'"),
        (detached, r"none of the sites 'y' depends differentiably on x"),
        (unseen, r"without an observed site"),
        (mismatched, r"site 'y' observes values of shape \(5,\) under a distribution of shape \(4, 2\)"),
        (other_rows, r"site 'y' has shape \(7, 4, 2\).*expected the 4 rows"),
    ],
)
def test_bad_likelihoods_raise(program, message):
    with pytest.raises(ValueError, match=message):
        posterior(gaussian(), program)(torch.zeros(4, 3).double(), noise_level(0.5, 0.5))


def test_negative_cg_steps_raise():
    with pytest.raises(ValueError, match="cg_steps of at least 0, got -1"):
        posterior(gaussian(), likelihood, cg_steps=-1)


def no_such(model):
    return {"program": in_a_plate(model), "site": "z"}


def with_another_prior(model):
    def program():
        likelihood(pyro.sample("x", dist.Normal(MEAN, 1.0).to_event(1)))

    return {"program": program, "site": "x"}


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (no_such, r"no latent 'z'; .*there are 'x'"),
        (with_another_prior, r"site 'x' to have the distribution of a diffusion, model.distribution\(\), got Normal"),
    ],
)
def test_a_program_without_the_models_prior_raises(write, message):
    model = exact_model()
    with pytest.raises(ValueError, match=message):
        model.condition(**write(model))


def test_labels_of_a_named_site_belong_in_the_program():
    model = exact_model()
    with pytest.raises(ValueError, match=r"site 'x' is the program's: give labels there"):
        model.condition(in_a_plate(model), site="x").sample(2, torch.zeros(2))
    with pytest.raises(ValueError, match="n and steps of at least 1, got 0 and 18"):
        model.condition(likelihood).sample(0)
