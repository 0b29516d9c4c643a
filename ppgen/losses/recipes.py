"""Known methods, each one expression of the algebra, on any program with a data plate.

`x` names the observed site, or several that belong together, and `z` the latent site whose law is matched. Terms are in
nats per datum where they are log densities. Where there is a critic, `critic` is its network, or a function of the
sites' event shapes that makes one; left out, it is a `ppgen.nets.Critic`. Further options go to the metric
(`ppgen.metrics.CriticMetric`): hidden and frequencies of that critic, lr, betas, optim, steps, packing, smoothing,
noise, saturating, and penalty where the recipe has none of its own.
"""

import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial, reduce
from operator import add, and_
from typing import Any

from pyro.infer import RenyiELBO, Trace_ELBO
from torch import nn

import ppgen.metrics as m
from ppgen.losses import views as v
from ppgen.losses.annealed_elbo import AnnealedELBO
from ppgen.losses.diffusion_elbo import DiffusionELBO
from ppgen.losses.elbo import ELBO, Rate, Reconstruction
from ppgen.losses.match import match
from ppgen.losses.objective import Objective
from ppgen.losses.wake_sleep import Sleep, Wake, WakeInference
from ppgen.losses.weights import Anneal, Ramp, Schedule
from ppgen.metrics import MMD, Metric
from ppgen.nets import GrowingCritic, lookup
from ppgen.tracing.sites import Program

__all__ = [
    "ALIGNMENTS",
    "RECIPES",
    "aae",
    "ae",
    "ali",
    "dann",
    "dann_reversal",
    "ddpm",
    "edm",
    "f_gan",
    "flow_kl",
    "flow_matching",
    "gan",
    "hinge_gan",
    "info_vae",
    "iwae",
    "lsgan",
    "maximum_likelihood",
    "mmd_generator",
    "npe",
    "progan",
    "r1_gan",
    "r3_gan",
    "reverse_kl",
    "reweighted_wake_sleep",
    "sinkhorn_generator",
    "vae",
    "vae_gan",
    "vdm",
    "wae",
    "wake_sleep",
    "wgan_clip",
    "wgan_gp",
]

Sites = str | Sequence[str]
Critic = nn.Module | Callable[..., nn.Module] | None


def ae() -> Objective:
    """Autoencoder: the reconstruction error -log p(x | z) at the code z of x, and nothing on the code's law."""
    return Reconstruction()


def vae(*, beta: float | Schedule = 1.0) -> Objective:
    """VAE (Kingma & Welling 2014); beta other than 1: beta-VAE (Higgins et al. 2017); a schedule: KL warm-up."""
    return Reconstruction() + beta * Rate()


def wae(metric: Metric | None = None, *, weight: float | Schedule = 10.0, z: str = "z") -> Objective:
    """Wasserstein autoencoder (Tolstikhin et al. 2018, equation 4): reconstruction, the aggregate code at the prior.

    Args:
        weight: 10 is theirs, for squared errors; a decoder that learns its scale earns more nats, and wants about 100.
        metric: between q(z) and p(z); MMD with inverse multiquadric kernels if left out, as in their WAE-MMD.
    """
    metric = MMD(kernel="imq") if metric is None else metric
    return Reconstruction() + weight * match(v.posterior(z), v.prior(z), metric)


def iwae(k: int = 10) -> Objective:
    """Importance weighted autoencoder (Burda et al. 2016, equation 8): -E log 1/k sum_k p(x, z_k) / q(z_k | x)."""
    return ELBO(elbo=RenyiELBO(alpha=0, num_particles=k, vectorize_particles=True))


def info_vae(*, alpha: float = 0.0, weight: float = 10.0, metric: Metric | None = None, z: str = "z") -> Objective:
    """InfoVAE (Zhao et al. 2019, equation 6): E -log p(x | z) + (1 - alpha) Rate + (alpha + weight - 1) D(q(z), p(z)).

    alpha = 0, weight = 1 is the VAE; alpha = 1 leaves mutual information between x and z free (MMD-VAE).
    """
    aggregate = match(v.posterior(z), v.prior(z), MMD() if metric is None else metric)
    return Reconstruction() + (1.0 - alpha) * Rate() + (alpha + weight - 1.0) * aggregate


def wake_sleep() -> Objective:
    """Wake-sleep (Hinton et al. 1995): the model learns from the guide's draws at data, the guide from the model's."""
    return Wake() + Sleep()


def reweighted_wake_sleep(k: int = 10, *, sleep: float | Schedule = 0.0) -> Objective:
    """Reweighted wake-sleep (Bornschein & Bengio 2015): both programs by k importance-weighted draws at data.

    Args:
        sleep: a weight of the sleep phase beside the guide's wake phase; they take both, or the latter alone.
    """
    loss = Wake(particles=k) + WakeInference(particles=k)
    return loss + sleep * Sleep() if not isinstance(sleep, int | float) or sleep else loss


def npe() -> Objective:
    """Neural posterior estimation (Papamakarios & Murray 2016), where the model is a simulator, held as it is."""
    return Sleep()


def maximum_likelihood() -> Objective:
    """-E log p(x) of a model without latents, such as a flow: the forward KL up to the data's entropy."""
    return ELBO()


def flow_kl(
    critic: Critic = None,
    *,
    forward: float | Schedule = 1.0,
    reverse: float | Schedule = 0.0,
    saturating: bool = True,
    x: Sites = "x",
    **options: Any,
) -> Objective:
    """forward KL(data, model) + reverse KL(model, data), for a model with a density and draws, such as a flow.

    The first is -E log p(x), up to the data's entropy, and covers all that the data do. The second is taken from draws
    alone, by a critic (Nowozin et al. 2016), and punishes draws where there are no data; alone it may settle in one of
    several modes. Its gradient is that of the divergence itself, ``saturating``, which for this one keeps its slope.

    Raises:
        ValueError: if both weights are zero.
    """
    terms: list[Any] = []
    if not isinstance(forward, int | float) or forward:
        terms.append(forward * ELBO())
    if not isinstance(reverse, int | float) or reverse:
        terms.append(reverse * _generate(x, m.FDivergence(critic, "reverse_kl", saturating=saturating, **options)))
    if not terms:
        raise ValueError("flow_kl: expected a forward or a reverse weight that is not zero, got none")
    return reduce(add, terms)


def reverse_kl(
    base: Program | None = None,
    *,
    particles: int = 256,
    path_derivative: bool = True,
    anneal: float = 0.0,
    shape: str = "cubic",
    max_plate_nesting: float = math.inf,
) -> Objective:
    """KL(q, p) of a guide q of reparameterized draws from the posterior or the energy of a model, up to log Z.

    Args:
        base: what is annealed from, see `ppgen.AnnealedELBO`.
        particles: draws of the guide a step.
        path_derivative: whether gradients go by the draws alone, see `ppgen.ELBO`.
        anneal: the share of the run that the way from the base takes; 0 for none.
        shape: of the way, as of `ppgen.Anneal`. Modes part early on it, and how mass is shared between them is settled
            then, so a cubic is slow at first.
        max_plate_nesting: as of Pyro's ELBOs, which guess it if left out.
    """
    vectorized: dict[str, Any] = {"vectorize_particles": particles > 1, "max_plate_nesting": max_plate_nesting}
    elbo = Trace_ELBO(num_particles=particles, **vectorized)
    if anneal == 0:
        return ELBO(elbo=elbo, path_derivative=path_derivative)
    schedule = Anneal(1.0, cycles=1, rise=anneal, shape=shape)
    return AnnealedELBO(base, schedule=schedule, elbo=elbo, path_derivative=path_derivative)


def ddpm(*, weighting: str = "simple", times: str = "stratified") -> Objective:
    """DDPM (Ho et al. 2020, equation 14): the squared error of the noise, by one random step for each datum.

    Args:
        weighting: or another row of `ppgen.losses.diffusion_elbo.WEIGHTINGS`, such as "min_snr" (Hang et al. 2023).
        times: a row of `ppgen.diffusion.TIMES`.
    """
    return DiffusionELBO(weighting, times=times)


def edm(*, mean: float = -1.2, deviation: float = 1.2, times: str = "stratified") -> Objective:
    """EDM (Karras et al. 2022, table 1): log-normal noise levels, each weighed for an error of the network of size one.

    Args:
        mean, deviation: of log (noise / (signal d)), d the data's deviation.
        times: a row of `ppgen.diffusion.TIMES`.
    """
    return DiffusionELBO("edm", lognormal=(mean, deviation), times=times)


def vdm(*, times: str = "stratified") -> Objective:
    """Variational diffusion (Kingma et al. 2021): the chain's negative evidence, by one random step for each datum."""
    return DiffusionELBO(times=times)


def flow_matching() -> Objective:
    """Conditional flow matching (Lipman et al. 2023): E |F(z_u, u) - dz/du|^2 / 2, of `ppgen.models.FlowMatching`.

    It is the evidence of a program that observes velocities, whose pairs and paths are the model's.
    """
    return ELBO()


def gan(critic: Critic = None, *, x: Sites = "x", **options: Any) -> Objective:
    """GAN (Goodfellow et al. 2014): the Jensen-Shannon divergence of data and draws, by a critic; not saturating."""
    return _generate(x, m.JensenShannon(critic, **options))


def f_gan(
    critic: Critic = None,
    *,
    divergence: str = "kl",
    x: Sites = "x",
    **options: Any,
) -> Objective:
    """f-GAN (Nowozin et al. 2016): an f-divergence D_f(data, draws), a row of `ppgen.metrics.adversarial_losses.DIVERGENCES`."""
    return _generate(x, m.FDivergence(critic, divergence, **options))


def lsgan(critic: Critic = None, *, x: Sites = "x", **options: Any) -> Objective:
    """LSGAN (Mao et al. 2017): a critic by least squares."""
    return _generate(x, m.LeastSquares(critic, **options))


def hinge_gan(critic: Critic = None, *, x: Sites = "x", **options: Any) -> Objective:
    """The hinge loss under spectral normalization (Lim & Ye 2017; Miyato et al. 2018)."""
    return _generate(x, m.Hinge(critic, penalty=m.SpectralNorm(), **options))


def r1_gan(critic: Critic = None, *, weight: float = 1.0, x: Sites = "x", **options: Any) -> Objective:
    """GAN with R1, a zero-centered gradient penalty on data (Mescheder et al. 2018); 10 is theirs, for images."""
    return _generate(x, m.JensenShannon(critic, penalty=m.ZeroCenteredGradientPenalty(weight), **options))


def r3_gan(critic: Critic = None, *, weight: float = 1.0, x: Sites = "x", **options: Any) -> Objective:
    """R3GAN (Huang et al. 2024, section 2.2): relativistic pairing, zero-centered penalties on data and on draws.

    Its local convergence is proved. To keep all of many narrow modes it takes, besides averaged weights and a rate that
    falls to zero, a critic that can see them: frequencies=64, weight=0.1, betas=(0, 0.999), both rates 2e-3
    (docs/results.md, "Modes").
    """
    penalty = m.ZeroCenteredGradientPenalty(weight, at="both")
    return _generate(x, m.Relativistic(critic, penalty=penalty, **options))


def wgan_clip(
    critic: Critic = None,
    *,
    bound: float = 0.01,
    steps: int = 5,
    x: Sites = "x",
    **options: Any,
) -> Objective:
    """WGAN (Arjovsky et al. 2017): a critic whose weights are clipped; its value is W_1 up to an unknown factor."""
    return _generate(x, m.WassersteinDual(critic, penalty=m.WeightClipping(bound), steps=steps, **options))


def wgan_gp(
    critic: Critic = None,
    *,
    weight: float = 10.0,
    one_sided: bool = False,
    steps: int = 5,
    x: Sites = "x",
    **options: Any,
) -> Objective:
    """WGAN-GP (Gulrajani et al. 2017, equation 3): Wasserstein-1 by a critic whose slope is held at one."""
    penalty = m.GradientPenalty(weight, one_sided=one_sided)
    return _generate(x, m.WassersteinDual(critic, penalty=penalty, steps=steps, **options))


def progan(
    critic: Critic = None,
    *,
    distance: str = "wasserstein",
    weight: float | None = None,
    multi_scale: bool = False,
    deviation: bool = True,
    hidden: Sequence[int] | None = None,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.0, 0.99),
    x: Sites = "x",
    **options: Any,
) -> Objective:
    """The game of progressively grown GANs (Karras et al. 2018), with a `ppgen.nets.GrowingCritic`.

    It grows with the generator (``network="growing"``) under ``ppgen.fit(growth=ppgen.Growth())``; without a growth it
    is a game like any other. Their drift term, 0.001 E v^2, is left out: it holds a constant that no value shows.

    Args:
        distance: "wasserstein", their WGAN-GP; or "jensen_shannon" under R1, as in StyleGAN (Karras et al. 2019), which
            costs less a step.
        weight: of the gradient penalty; left out, 10 of "wasserstein" and 1 of "jensen_shannon".
        multi_scale, deviation, hidden: of the critic that is made where none is given, as in
            `ppgen.nets.GrowingEncoder`.

    Raises:
        ValueError: for an unknown distance.
    """
    recipe, usual = lookup(GROWN, distance, option="distance")
    if critic is None:
        critic = partial(GrowingCritic, multi_scale=multi_scale, deviation=deviation, hidden=hidden)
    elif hidden is not None:
        options["hidden"] = hidden  # which the metric refuses beside a critic
    options = {"steps": 1, "lr": lr, "betas": betas, **options}
    return recipe(critic, weight=usual if weight is None else weight, x=x, **options)


# by distance: the recipe, and the weight of its penalty
GROWN: dict[str, tuple[Callable[..., Objective], float]] = {
    "wasserstein": (wgan_gp, 10.0),
    "jensen_shannon": (r1_gan, 1.0),
}


def aae(
    critic: Critic = None,
    *,
    weight: float | Schedule = 10.0,
    z: str = "z",
    **options: Any,
) -> Objective:
    """Adversarial autoencoder (Makhzani et al. 2016): reconstruction, and codes that a critic takes for the prior's."""
    metric = m.JensenShannon(critic, **options)
    return Reconstruction() + weight * match(v.prior(z), v.posterior(z), metric)


def ali(critic: Critic = None, *, x: Sites = "x", z: Sites = "z", **options: Any) -> Objective:
    """ALI, BiGAN (Dumoulin et al. 2017; Donahue et al. 2017): data and codes against draws and latents.

    It needs a guide that draws z with gradients. Where the two joint laws agree, so do all of their conditionals.
    """
    model_trace = _joint(v.data, x) & _joint(v.posterior, z)
    generated = _joint(v.generated, x) & _joint(v.prior, z)
    return match(model_trace, generated, m.JensenShannon(critic, **options))


def vae_gan(
    critic: Critic = None,
    *,
    beta: float | Schedule = 1.0,
    weight: float | Schedule = 10.0,
    x: str = "x",
    **options: Any,
) -> Objective:
    """VAE and GAN on one decoder (after Larsen et al. 2016): the evidence, and a critic of the decoder's means.

    Their reconstruction error is between features of the critic; here it is the decoder's own likelihood.
    """
    metric = m.JensenShannon(critic, **options)
    return Reconstruction() + beta * Rate() + weight * match(v.data(x), v.generated(x, of="mean"), metric)


def mmd_generator(metric: Metric | None = None, *, x: Sites = "x") -> Objective:
    """A generator matched to data by MMD, without a critic (Dziugaite et al. 2015; Li et al. 2015)."""
    return _generate(x, MMD() if metric is None else metric)


def sinkhorn_generator(*, epsilon: float = 0.05, x: Sites = "x") -> Objective:
    """A generator matched to data by the Sinkhorn divergence (Genevay et al. 2018)."""
    return _generate(x, m.Sinkhorn(epsilon=epsilon))


def _generate(x: Sites, metric: Metric) -> Objective:
    return match(_joint(v.data, x), _joint(v.generated, x), metric)


def _joint(view: Callable[[str], v.View], sites: Sites) -> v.View:
    return reduce(and_, map(view, (sites,) if isinstance(sites, str) else sites))


def dann(
    metric: Metric | None = None,
    *,
    distance: str = "jensen_shannon",
    alpha: float | Schedule | None = None,
    h: Sites = "h",
    d: str = "d",
    sources: Sequence[int] = (0,),
    target: int = 1,
    hidden: Sequence[int] | None = None,
    lr: float = 1e-3,
    steps: int | None = None,
    weight: float | None = None,
) -> Objective:
    """Domain adaptation: the evidence of labels + alpha D(h in a source, h in the target), summed over sources.

    Args:
        metric: D; or by ``distance`` a row of `ALIGNMENTS`: "jensen_shannon" by a critic is DANN (Ganin et al. 2016,
            equation 9, T1 - alpha T2: minus T2 is D less log 2), "wasserstein" WDGRL (Shen et al. 2018), "mmd" DAN
            (Long et al. 2015), "coral" deep CORAL (Sun & Saenko 2016), and "sinkhorn", "energy", "sliced_wasserstein".
        alpha: a weight, or a schedule; left out, Ganin's ramp from 0 to 1. The evidence is per datum of all domains.
        h, d: the site of features and that of the domain.
        sources, target: the values of d.
        hidden, lr, steps, weight: of a critic by name: its widths, its Adam's rate, its steps a turn (left out, 5 of
            Wasserstein and 1 of Jensen-Shannon), and the weight of its gradient penalty (left out, 10 and 0).

    Raises:
        ValueError: for an unknown distance, no source, or a target among them.
    """
    if metric is None:
        make = lookup(ALIGNMENTS, distance, option="distance")
        metric = make(CriticOptions(hidden=hidden, lr=lr, steps=steps, weight=weight))
    if not sources or target in sources:
        raise ValueError(f"expected at least one source, and a target that is none of them, got {sources} and {target}")
    alpha = Ramp(1.0, shape="sigmoid") if alpha is None else alpha
    features = _joint(v.posterior, h)
    metrics = [metric, *(deepcopy(metric) for _ in sources[1:])]  # a critic for each source
    there = features.given(**{d: target})
    pairs = (match(features.given(**{d: s}), there, D) for s, D in zip(sources, metrics, strict=True))
    return reduce(add, (alpha * pair for pair in pairs), ELBO())


def dann_reversal(*, alpha: float | Schedule | None = None, y: str = "y", d: str = "d") -> Objective:
    """DANN by gradient reversal, for a program whose critic is its own: the losses of labels and alpha of domains.

    Features and critic move in one step by one optimizer, of which the critic's should not mind that its gradient is
    scaled by alpha; Adam does not. With as many rows of source as of target the features' gradient is that of `dann`.
    A penalty has no place in this step: give the model a critic whose slope spectral norms bound (`SpectralNorm`).
    """
    return Reconstruction(y) + Rate() + (Ramp(1.0, shape="sigmoid") if alpha is None else alpha) * Reconstruction(d)


@dataclass(frozen=True)
class CriticOptions:
    """What `ALIGNMENTS` may be asked of a critic."""

    hidden: Sequence[int] | None
    lr: float
    steps: int | None
    weight: float | None


def _jensen_shannon(o: CriticOptions) -> Metric:
    penalty = (
        m.ZeroCenteredGradientPenalty(o.weight, at="both") if o.weight else None
    )  # of both domains, whichever comes first
    return m.JensenShannon(hidden=o.hidden, lr=o.lr, steps=o.steps or 1, penalty=penalty, saturating=True)


def _wasserstein(o: CriticOptions) -> Metric:
    penalty = m.GradientPenalty(10.0 if o.weight is None else o.weight)
    return m.WassersteinDual(hidden=o.hidden, lr=o.lr, steps=o.steps or 5, penalty=penalty)


ALIGNMENTS: dict[str, Callable[[CriticOptions], Metric]] = {
    "jensen_shannon": _jensen_shannon,
    "wasserstein": _wasserstein,
    "mmd": lambda _: MMD(),
    "energy": lambda _: m.EnergyDistance(),
    "coral": lambda _: m.CORAL(),
    "sinkhorn": lambda _: m.Sinkhorn(),
    "sliced_wasserstein": lambda _: m.SlicedWasserstein(),
}

RECIPES: dict[str, Callable[..., Objective]] = {
    recipe.__name__: recipe
    for recipe in (
        *(ae, vae, wae, iwae, info_vae, maximum_likelihood, flow_kl, reverse_kl),
        *(wake_sleep, reweighted_wake_sleep, npe),
        *(ddpm, edm, vdm, flow_matching),
        *(gan, f_gan, lsgan, hinge_gan, r1_gan, r3_gan, wgan_clip, wgan_gp, progan),
        *(aae, ali, vae_gan, mmd_generator, sinkhorn_generator),
        *(dann, dann_reversal),
    )
}
