"""Known methods, each as one expression of the algebra of losses, for any program with a plate "data".

`x` names an observed site, or several that are compared jointly, and `z` a latent site. Terms are in nats per datum
where they are log densities; x' is a sample of the model. Where a method has a critic v, `critic` is its network, or a
function of the event shapes of the sites that makes it; if left out, it is a `ppgen.nets.Critic`. Further options are
those of the metric (`ppgen.metrics.CriticMetric`): hidden and frequencies of the default critic, lr, betas, optim,
steps, packing, smoothing, noise, saturating, and penalty if the recipe has none of its own.
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
from ppgen.losses.joint_transport import JointTransport
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
    """Autoencoder: -E log p(x | z) at the code z of x. Nothing is required of the distribution of codes.

    Reference: Hinton & Salakhutdinov 2006, https://doi.org/10.1126/science.1127647.
    """
    return Reconstruction()


def vae(*, beta: float | Schedule = 1.0) -> Objective:
    """VAE: -E log p(x | z) + beta KL(q(z | x), p(z)).

    References: Kingma & Welling 2014, https://arxiv.org/abs/1312.6114; beta-VAE: Higgins et al. 2017,
    https://openreview.net/forum?id=Sy2fzU9gl.

    Args:
        beta: the weight of the KL; a schedule gives a KL warm-up.

    Example:
        >>> import ppgen
        >>> print(ppgen.recipes.vae(beta=4.0))
        Reconstruction + 4 * Rate
    """
    return Reconstruction() + beta * Rate()


def wae(metric: Metric | None = None, *, weight: float | Schedule | None = None, z: str = "z") -> Objective:
    """Wasserstein autoencoder: -E log p(x | z) + weight D(q(z), p(z)), with the aggregate posterior q(z).

    Reference: Tolstikhin et al. 2018, equation 4, https://arxiv.org/abs/1711.01558.

    Args:
        metric: D; if left out, MMD with inverse multiquadric kernels, as in their WAE-MMD.
        weight: if left out 10, which is theirs, for squared errors. A decoder that learns its scale gains more nats: it
            needs about the number of elements of an event, which is the default of `ppgen train`.
        z: the latent site.
    """
    metric = MMD(kernel="imq") if metric is None else metric
    return Reconstruction() + (10.0 if weight is None else weight) * match(v.posterior(z), v.prior(z), metric)


def iwae(k: int = 10) -> Objective:
    """Importance weighted autoencoder: -E log 1/k sum_k p(x, z_k) / q(z_k | x).

    Reference: Burda et al. 2016, equation 8, https://arxiv.org/abs/1509.00519.

    Args:
        k: the number of draws of the guide.
    """
    return ELBO(elbo=RenyiELBO(alpha=0, num_particles=k, vectorize_particles=True))


def info_vae(*, alpha: float = 0.0, weight: float = 10.0, metric: Metric | None = None, z: str = "z") -> Objective:
    """InfoVAE: -E log p(x | z) + (1 - alpha) KL(q(z | x), p(z)) + (alpha + weight - 1) D(q(z), p(z)).

    alpha = 0, weight = 1 is the VAE; alpha = 1 does not restrict the mutual information of x and z (MMD-VAE).
    Reference: Zhao et al. 2019, equation 6, https://arxiv.org/abs/1706.02262.

    Args:
        alpha: the weight of the mutual information of x and z.
        weight: the weight of D at alpha = 1.
        metric: D; MMD if left out.
        z: the latent site.
    """
    aggregate = match(v.posterior(z), v.prior(z), MMD() if metric is None else metric)
    return Reconstruction() + (1.0 - alpha) * Rate() + (alpha + weight - 1.0) * aggregate


def wake_sleep() -> Objective:
    """Wake-sleep: -E_q log p(x, z) at data trains the model, -E_p log q(z | x) at its samples trains the guide.

    Reference: Hinton et al. 1995, https://doi.org/10.1126/science.7761831.
    """
    return Wake() + Sleep()


def reweighted_wake_sleep(k: int = 10, *, sleep: float | Schedule = 0.0) -> Objective:
    """Reweighted wake-sleep: both programs are trained by k importance weighted draws of the guide at data.

    -E log 1/k sum_k w_k for the model and -E sum_k w_k log q(z_k | x) / sum_k w_k for the guide, with weights
    w_k = p(x, z_k) / q(z_k | x). Reference: Bornschein & Bengio 2015, https://arxiv.org/abs/1406.2751.

    Args:
        k: the number of draws of the guide.
        sleep: the weight of the sleep phase of the guide; the paper has it at 1, or leaves it out.
    """
    loss = Wake(particles=k) + WakeInference(particles=k)
    return loss + sleep * Sleep() if not isinstance(sleep, int | float) or sleep else loss


def npe() -> Objective:
    """Neural posterior estimation: -E_{p(x, z)} log q(z | x), for a simulator as the model, which is not trained.

    Reference: Papamakarios & Murray 2016, https://arxiv.org/abs/1605.06376.
    """
    return Sleep()


def maximum_likelihood() -> Objective:
    """Maximum likelihood: -E log p(x) for a model without latents, such as a flow.

    It is the forward KL divergence KL(data, model) up to the entropy of the data. Reference: Papamakarios et al. 2021,
    section 2.3, https://arxiv.org/abs/1912.02762.
    """
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
    """Forward KL(data, model) + reverse KL(model, data), for a model with a density, such as a flow.

    The first is -E log p(x), up to the entropy of the data, and covers all data. The second is estimated from samples
    by a critic (Nowozin et al. 2016, https://arxiv.org/abs/1606.00709), and penalizes samples where there are no
    data; alone it may keep only one of several modes.

    Args:
        critic: the critic's network, or a function event shapes -> network; a `ppgen.nets.Critic` if left out.
        forward: the weight of the forward KL.
        reverse: the weight of the reverse KL.
        saturating: whether the gradient is that of the divergence itself, which does not saturate for this one.
        x: the observed site, or several that are compared jointly.
        **options: further options of the metric; see the module.

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
    """The reverse KL divergence E_q[log q(z) - log p(z)] of a reparameterized guide from an unnormalized density p.

    p may be the posterior of a model or an energy; the value is KL(q, p) up to log Z. The path derivative is that of
    Roeder et al. 2017, https://arxiv.org/abs/1703.09194.

    Args:
        base: the distribution from which to anneal; see `ppgen.AnnealedELBO`.
        particles: the number of draws of the guide in a step.
        path_derivative: whether to use the gradient through the draws alone; see `ppgen.ELBO`.
        anneal: the fraction of the run in which to anneal from the base; 0 for none.
        shape: the shape of the annealing schedule, see `ppgen.Anneal`. Modes separate early on the path, and their
            masses are settled then, so "cubic", which is slow at first, is best.
        max_plate_nesting: see Pyro's ELBOs, which find it if it is left out.
    """
    vectorized: dict[str, Any] = {"vectorize_particles": particles > 1, "max_plate_nesting": max_plate_nesting}
    elbo = Trace_ELBO(num_particles=particles, **vectorized)
    if anneal == 0:
        return ELBO(elbo=elbo, path_derivative=path_derivative)
    schedule = Anneal(1.0, cycles=1, rise=anneal, shape=shape)
    return AnnealedELBO(base, schedule=schedule, elbo=elbo, path_derivative=path_derivative)


def ddpm(*, weighting: str = "simple", times: str = "stratified") -> Objective:
    """DDPM: the squared error of the predicted noise, 1/2 E |e - e(z_t, t)|^2, at one random step per datum.

    Reference: Ho et al. 2020, equation 14, https://arxiv.org/abs/2006.11239.

    Args:
        weighting: a key of `ppgen.losses.diffusion_elbo.WEIGHTINGS`; "simple" is theirs.
        times: a key of `ppgen.diffusion.TIMES`.
    """
    return DiffusionELBO(weighting, times=times)


def edm(*, mean: float = -1.2, std: float = 1.2, times: str = "stratified") -> Objective:
    """EDM: 1/2 E w(noise) |x - D(z, noise)|^2 with log-normal noise levels.

    The weight makes the network's error of size one at every level. Reference: Karras et al. 2022, table 1,
    https://arxiv.org/abs/2206.00364.

    Args:
        mean: the mean of log (noise / (signal d)), where d is the standard deviation of the data.
        std: its standard deviation.
        times: a key of `ppgen.diffusion.TIMES`.
    """
    return DiffusionELBO("edm", lognormal=(mean, std), times=times)


def vdm(*, times: str = "stratified") -> Objective:
    """Variational diffusion: the negative ELBO of a diffusion model, by one random step per datum.

    KL(q(z_T | x), p(z_T)) + T E KL(q(z_{i-1} | z_i, x), p(z_{i-1} | z_i)) - E log p(x | z_0). Reference: Kingma et al.
    2021, https://arxiv.org/abs/2107.00630.

    Args:
        times: a key of `ppgen.diffusion.TIMES`.
    """
    return DiffusionELBO(times=times)


def flow_matching() -> Objective:
    """Conditional flow matching: E |F(z_u, u) - dz/du|^2 / 2, for `ppgen.models.FlowMatching`.

    It is the negative ELBO of a program that observes velocities; the model chooses the pairs and the paths. Reference:
    Lipman et al. 2023, https://arxiv.org/abs/2210.02747.
    """
    return ELBO()


def gan(critic: Critic = None, *, x: Sites = "x", **options: Any) -> Objective:
    """GAN: the Jensen-Shannon divergence JS(data, model), estimated by a critic; non-saturating.

    Reference: Goodfellow et al. 2014, https://arxiv.org/abs/1406.2661.

    Args:
        critic: the critic's network, or a function event shapes -> network; a `ppgen.nets.Critic` if left out.
        x: the observed site, or several that are compared jointly.
        **options: further options of the metric; see the module.
    """
    return _generate(x, m.JensenShannon(critic, **options))


def f_gan(
    critic: Critic = None,
    *,
    divergence: str = "kl",
    x: Sites = "x",
    **options: Any,
) -> Objective:
    """f-GAN: an f-divergence D_f(data, model), estimated by a critic.

    Reference: Nowozin et al. 2016, https://arxiv.org/abs/1606.00709.

    Args:
        critic: the critic's network, or a function event shapes -> network; a `ppgen.nets.Critic` if left out.
        divergence: a key of `ppgen.metrics.adversarial_losses.DIVERGENCES`.
        x: the observed site, or several that are compared jointly.
        **options: further options of the metric; see the module.
    """
    return _generate(x, m.FDivergence(critic, divergence, **options))


def lsgan(critic: Critic = None, *, x: Sites = "x", **options: Any) -> Objective:
    """LSGAN: a critic v trained by least squares, minimizing E (v(x) - 1)^2 + E v(x')^2.

    Reference: Mao et al. 2017, https://arxiv.org/abs/1611.04076.

    Args:
        critic: the critic's network, or a function event shapes -> network; a `ppgen.nets.Critic` if left out.
        x: the observed site, or several that are compared jointly.
        **options: further options of the metric; see the module.
    """
    return _generate(x, m.LeastSquares(critic, **options))


def hinge_gan(critic: Critic = None, *, x: Sites = "x", **options: Any) -> Objective:
    """The hinge loss E max(0, 1 - v(x)) + E max(0, 1 + v(x')), for a critic v under spectral normalization.

    References: Lim & Ye 2017, https://arxiv.org/abs/1705.02894; Miyato et al. 2018, https://arxiv.org/abs/1802.05957.

    Args:
        critic: the critic's network, or a function event shapes -> network; a `ppgen.nets.Critic` if left out.
        x: the observed site, or several that are compared jointly.
        **options: further options of the metric; see the module.
    """
    return _generate(x, m.Hinge(critic, penalty=m.SpectralNorm(), **options))


def r1_gan(critic: Critic = None, *, weight: float = 1.0, x: Sites = "x", **options: Any) -> Objective:
    """GAN with R1: the critic has a zero-centered gradient penalty weight/2 E |grad v(x)|^2 on data.

    Reference: Mescheder et al. 2018, https://arxiv.org/abs/1801.04406.

    Args:
        critic: the critic's network, or a function event shapes -> network; a `ppgen.nets.Critic` if left out.
        weight: the weight of the penalty; theirs is 10, for images.
        x: the observed site, or several that are compared jointly.
        **options: further options of the metric; see the module.
    """
    return _generate(x, m.JensenShannon(critic, penalty=m.ZeroCenteredGradientPenalty(weight), **options))


def r3_gan(critic: Critic = None, *, weight: float = 1.0, x: Sites = "x", **options: Any) -> Objective:
    """R3GAN: the relativistic loss E softplus(-(v(x) - v(x'))), with gradient penalties on data and on samples.

    It converges locally. To keep many narrow modes, use averaged weights, a learning rate that decays to zero, and a
    critic that can resolve the modes: frequencies=64, weight=0.1, betas=(0, 0.999), both learning rates 2e-3
    (docs/results.md, "Modes"). Reference: Huang et al. 2024, section 2.2, https://arxiv.org/abs/2501.05441.

    Args:
        critic: the critic's network, or a function event shapes -> network; a `ppgen.nets.Critic` if left out.
        weight: the weight of both penalties.
        x: the observed site, or several that are compared jointly.
        **options: further options of the metric; see the module.
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
    """WGAN: max_v E v(x) - E v(x') over a critic v with clipped weights, W_1 up to an unknown factor.

    Reference: Arjovsky et al. 2017, https://arxiv.org/abs/1701.07875.

    Args:
        critic: the critic's network, or a function event shapes -> network; a `ppgen.nets.Critic` if left out.
        bound: the bound on the absolute weights of the critic.
        steps: the steps of the critic for one step of the programs.
        x: the observed site, or several that are compared jointly.
        **options: further options of the metric; see the module.
    """
    return _generate(x, m.WassersteinDual(critic, penalty=m.WeightClipping(bound), steps=steps, **options))


def wgan_gp(
    critic: Critic = None,
    *,
    weight: float | None = None,
    one_sided: bool = False,
    steps: int = 5,
    x: Sites = "x",
    **options: Any,
) -> Objective:
    """WGAN-GP: W_1 = max_v E v(x) - E v(x'), with the penalty weight E (|grad v| - 1)^2 on the critic v.

    Reference: Gulrajani et al. 2017, equation 3, https://arxiv.org/abs/1704.00028.

    Args:
        critic: the critic's network, or a function event shapes -> network; a `ppgen.nets.Critic` if left out.
        weight: the weight of the penalty; if left out, 10 as in the paper, and with ``ppgen train`` that of
            `ppgen.nets.defaults_for`, which is smaller for tables.
        one_sided: whether only gradient norms above one are penalized.
        steps: the steps of the critic for one step of the programs.
        x: the observed site, or several that are compared jointly.
        **options: further options of the metric; see the module.

    Example:
        >>> import torch
        >>> import ppgen
        >>> loss = ppgen.recipes.wgan_gp(hidden=(8,), steps=2)
        >>> gan, x = ppgen.models.Generator((2,), latent_dim=2, hidden=(8,)), torch.randn(20, 2)
        >>> fit = ppgen.fit(gan.model, gan.guide, x, loss=loss, steps=2, compile=False, progress=False)
        >>> gan.sample(5).shape
        torch.Size([5, 2])
    """
    penalty = m.GradientPenalty(10.0 if weight is None else weight, one_sided=one_sided)
    return _generate(x, m.WassersteinDual(critic, penalty=penalty, steps=steps, **options))


def progan(
    critic: Critic = None,
    *,
    distance: str = "wasserstein",
    weight: float | None = None,
    multi_scale: bool = False,
    minibatch_std: bool = True,
    hidden: Sequence[int] | None = None,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.0, 0.99),
    x: Sites = "x",
    **options: Any,
) -> Objective:
    """The loss of progressively grown GANs, `wgan_gp` or `r1_gan`, with a `ppgen.nets.GrowingCritic`.

    The critic grows with the generator (``network="growing"``) under ``ppgen.fit(growth=ppgen.ProgressiveGrowing())``;
    without `growth` it is an ordinary critic. The drift term of the paper, 0.001 E v^2, is left out: it fixes a
    constant on which no value depends. Reference: Karras et al. 2018, https://arxiv.org/abs/1710.10196.

    Args:
        critic: the critic's network, or a function event shapes -> network; a `GrowingCritic` if left out.
        distance: "wasserstein", their WGAN-GP; or "jensen_shannon" with R1, which is faster and that of StyleGAN
            (Karras et al. 2019, https://arxiv.org/abs/1812.04948).
        weight: the weight of the gradient penalty; if left out, 10 for "wasserstein" and 1 for "jensen_shannon".
        multi_scale: an option of the default critic; see `ppgen.nets.GrowingEncoder`.
        minibatch_std: an option of the default critic; see `ppgen.nets.GrowingEncoder`.
        hidden: an option of the default critic; see `ppgen.nets.GrowingEncoder`.
        lr: the learning rate of the critic.
        betas: the momentum parameters of its Adam.
        x: the observed site, or several that are compared jointly.
        **options: further options of the metric; see the module.

    Raises:
        ValueError: for an unknown distance.
    """
    recipe, usual = lookup(GROWN, distance, option="distance")
    if critic is None:
        critic = partial(GrowingCritic, multi_scale=multi_scale, minibatch_std=minibatch_std, hidden=hidden)
    elif hidden is not None:
        options["hidden"] = hidden  # the metric refuses it for a given critic
    options = {"steps": 1, "lr": lr, "betas": betas, **options}
    return recipe(critic, weight=usual if weight is None else weight, x=x, **options)


# by distance: the recipe and the default weight of its penalty
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
    """Adversarial autoencoder: -E log p(x | z) + weight JS(p(z), q(z)), estimated by a critic of codes.

    Reference: Makhzani et al. 2016, https://arxiv.org/abs/1511.05644.

    Args:
        critic: the critic's network, or a function event shapes -> network; a `ppgen.nets.Critic` if left out.
        weight: the weight of the divergence.
        z: the latent site.
        **options: further options of the metric; see the module.
    """
    metric = m.JensenShannon(critic, **options)
    return Reconstruction() + weight * match(v.prior(z), v.posterior(z), metric)


def ali(critic: Critic = None, *, x: Sites = "x", z: Sites = "z", **options: Any) -> Objective:
    """ALI, or BiGAN: JS(q(x, z), p(x, z)), data and codes against samples and latents, by a critic of pairs.

    The guide must sample z with gradients. Where the joint distributions agree, so do all their conditionals.
    References: Dumoulin et al. 2017, https://arxiv.org/abs/1606.00704; Donahue et al. 2017,
    https://arxiv.org/abs/1605.09782.

    Args:
        critic: the critic's network, or a function event shapes -> network; a `ppgen.nets.Critic` if left out.
        x: the observed site, or several that are compared jointly.
        z: the latent site, or several.
        **options: further options of the metric; see the module.
    """
    encoded = _joint(v.data, x) & _joint(v.posterior, z)
    generated = _joint(v.generated, x) & _joint(v.prior, z)
    return match(encoded, generated, m.JensenShannon(critic, **options))


def vae_gan(
    critic: Critic = None,
    *,
    beta: float | Schedule = 1.0,
    weight: float | Schedule = 10.0,
    x: str = "x",
    **options: Any,
) -> Objective:
    """VAE and GAN with one decoder: -E log p(x | z) + beta KL(q(z | x), p(z)) + weight JS(data, decoder means).

    In the paper the reconstruction error is between features of the critic; here it is the decoder's likelihood.
    Reference: Larsen et al. 2016, https://arxiv.org/abs/1512.09300.

    Args:
        critic: the critic's network, or a function event shapes -> network; a `ppgen.nets.Critic` if left out.
        beta: the weight of the KL.
        weight: the weight of the divergence.
        x: the observed site.
        **options: further options of the metric; see the module.
    """
    metric = m.JensenShannon(critic, **options)
    return Reconstruction() + beta * Rate() + weight * match(v.data(x), v.generated(x, of="mean"), metric)


def mmd_generator(metric: Metric | None = None, *, x: Sites = "x") -> Objective:
    """A generator trained by MMD(data, model), without a critic.

    References: Dziugaite et al. 2015, https://arxiv.org/abs/1505.03906; Li et al. 2015,
    https://arxiv.org/abs/1502.02761.

    Args:
        metric: another metric instead of MMD.
        x: the observed site, or several that are compared jointly.
    """
    return _generate(x, MMD() if metric is None else metric)


def sinkhorn_generator(*, epsilon: float = 0.05, x: Sites = "x") -> Objective:
    """A generator trained by the Sinkhorn divergence S_epsilon(data, model).

    Reference: Genevay et al. 2018, https://arxiv.org/abs/1706.00292.

    Args:
        epsilon: the entropic regularization.
        x: the observed site, or several that are compared jointly.
    """
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
    """Domain adaptation: the negative ELBO of labels + alpha sum_s D(features in source s, features in the target).

    Args:
        metric: D, instead of `distance`.
        distance: a key of `ALIGNMENTS`: "jensen_shannon" by a critic is DANN (Ganin et al. 2016, equation 9,
            https://arxiv.org/abs/1505.07818: their T1 - alpha T2, where -T2 is D - log 2); "wasserstein" is WDGRL (Shen
            et al. 2018, https://arxiv.org/abs/1707.01217); "mmd" is DAN (Long et al. 2015,
            https://arxiv.org/abs/1502.02791); "coral" is deep CORAL (Sun & Saenko 2016,
            https://arxiv.org/abs/1607.01719); or "sinkhorn", "energy", "sliced_wasserstein". "joint_transport" is no
            distance of features alone: it transports them with their labels (DeepJDOT; `ppgen.losses.JointTransport`).
        alpha: the weight of D; if left out, Ganin's ramp from 0 to 1. The ELBO is per datum of all domains.
        h: the site of the features, or several.
        d: the site of the domain.
        sources: the values of d in the sources.
        target: the value of d in the target.
        hidden: the widths of the critic's hidden layers.
        lr: the learning rate of the critic.
        steps: the steps of the critic for one of the programs; if left out, 5 for Wasserstein, 1 for Jensen-Shannon.
        weight: the weight of its gradient penalty; if left out, 10 for Wasserstein, 0 for Jensen-Shannon.

    Raises:
        ValueError: for an unknown distance, no source, or a target that is a source.
    """
    if not sources or target in sources:
        raise ValueError(
            f"dann: expected at least one source, and a target that is not a source, got {sources} and {target}"
        )
    alpha = Ramp(1.0, shape="sigmoid") if alpha is None else alpha
    if metric is None and distance == JOINT_TRANSPORT:
        if h != "h":
            raise ValueError(
                f"dann: joint_transport matches classes by their labels and takes the features 'h', got {h!r}; leave "
                "conditional out"
            )
        terms = (JointTransport(d=d, source=s, target=target) for s in sources)
        return reduce(add, (alpha * term for term in terms), ELBO())
    if metric is None:
        make = lookup(ALIGNMENTS, distance, option="distance")
        metric = make(CriticOptions(hidden=hidden, lr=lr, steps=steps, weight=weight))
    features = _joint(v.posterior, h)
    metrics = [metric, *(deepcopy(metric) for _ in sources[1:])]  # each source has its own critic
    in_target = features.given(**{d: target})
    pairs = (match(features.given(**{d: s}), in_target, D) for s, D in zip(sources, metrics, strict=True))
    return reduce(add, (alpha * pair for pair in pairs), ELBO())


def dann_reversal(*, alpha: float | Schedule | None = None, y: str = "y", d: str = "d") -> Objective:
    """DANN by gradient reversal: -E log p(y | h) + KL - alpha E log p(d | h), for a program with its own critic.

    Features and critic move in one step of one optimizer, which should not depend on the scale alpha of the critic's
    gradient, as Adam does not. With as many rows of the source as of the target the gradient of the features is that of
    `dann`. A gradient penalty is not possible in one step; bound the critic by spectral norms (`SpectralNorm`).
    Reference: Ganin et al. 2016, https://arxiv.org/abs/1505.07818.

    Args:
        alpha: the weight of the domain loss; if left out, Ganin's ramp from 0 to 1.
        y: the site of the labels.
        d: the site of the domain.
    """
    return Reconstruction(y) + Rate() + (Ramp(1.0, shape="sigmoid") if alpha is None else alpha) * Reconstruction(d)


JOINT_TRANSPORT = "joint_transport"


@dataclass(frozen=True)
class CriticOptions:
    """The options of the critics in `ALIGNMENTS`; see `dann`."""

    hidden: Sequence[int] | None
    lr: float
    steps: int | None
    weight: float | None


def _jensen_shannon(o: CriticOptions) -> Metric:
    penalty = m.ZeroCenteredGradientPenalty(o.weight, at="both") if o.weight else None  # on both domains
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
