# %% [markdown]
# # Which distance between two distributions?
#
# A generative model is taught by a number that says how far its distribution $Q$ is from that of the data, $P$. There
# are many such numbers, and they agree on one thing only: that the distance of a distribution from itself is zero.
# Here two Gaussians move apart and every metric of ppgen looks on. What a generator feels is not the number but its
# gradient, so the question to keep in mind is where each gradient dies.

# %%
import math
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import torch

from ppgen import metrics as m
from ppgen import nets
from ppgen.evaluation import estimate

torch.set_num_threads(1)  # samples as small as these gain nothing from more

# %% [markdown]
# ## Two Gaussians that move apart
#
# $P = N(0, 1)$ and $Q = N(s, 1)$, with $s$ from 0 to 12. As a sample of each distribution we take $n$ of its
# quantiles, $\Phi^{-1}((i - \frac12) / n)$: they stand for the distribution without sampling error. A metric of
# samples is a differentiable function of the rows, so the gradient in $s$ comes from autograd, the very way in which
# a generator gets it.
#
# The distribution functions of samples are steps, which have no gradient; `temperature` makes them smooth, as one has
# to for training.

# %%
n = 200
quantiles = torch.special.ndtri((torch.arange(n, dtype=torch.float64) + 0.5) / n)[:, None]
distances = torch.linspace(0, 12, 49, dtype=torch.float64)
of_samples = {
    "MMD², σ = 1": m.MMD(bandwidth=1.0, scales=(1.0,), unbiased=False),
    "MMD², σ = median": m.MMD(unbiased=False),
    "energy": m.EnergyDistance(unbiased=False),
    "Wasserstein-1": m.Wasserstein(p=1),
    "Wasserstein-2²": m.Wasserstein(p=2),
    "sliced Wasserstein-2²": m.SlicedWasserstein(),
    "Sinkhorn": m.Sinkhorn(),
    "Fréchet": m.Frechet(),
    "KolmogorovSmirnov": m.KolmogorovSmirnov(temperature=0.1),
    "Cramér-von Mises": m.CramerVonMises(temperature=0.1),
}


def along(metric: m.Metric) -> tuple[np.ndarray, np.ndarray]:
    """D and dD/ds at every distance."""
    values, gradients = [], []
    for distance in distances:
        s = distance.clone().requires_grad_()
        value = metric(quantiles, quantiles + s)
        values.append(value.item())
        gradients.append(torch.autograd.grad(value, s)[0].item())
    return np.array(values), np.array(gradients)


curves = {name: along(metric) for name, metric in of_samples.items()}

# %% [markdown]
# The divergences compare densities $p$ and $q$ rather than places:
#
# $$D_f(P, Q) = \int q(x) \, f\!\left(\frac{p(x)}{q(x)}\right) dx, \qquad f \text{ convex}, \; f(1) = 0.$$
#
# Three have closed forms here. KL divergence: $s^2 / 2$, in either direction. Squared Hellinger distance
# $\int (\sqrt p - \sqrt q)^2 = 2 - 2 e^{-s^2 / 8}$. Total variation $\frac12 \int |p - q| = 2 \Phi(s / 2) - 1$. The
# Jensen-Shannon divergence, $\frac12 \mathrm{KL}(P, M) + \frac12 \mathrm{KL}(Q, M)$ with $M = (P + Q) / 2$, has none,
# and is a sum over a fine grid.

# %%
grid = torch.linspace(-10, 22, 6401, dtype=torch.float64)


def normal(x: torch.Tensor, mean, sd=1.0) -> torch.Tensor:
    """Log density of N(mean, sd²)."""
    return -(((x - mean) / sd) ** 2) / 2 - torch.as_tensor(sd).log() - math.log(2 * math.pi) / 2


def jensen_shannon(s: torch.Tensor) -> torch.Tensor:
    p, q = normal(grid, 0.0), normal(grid, s)
    middle = torch.logaddexp(p, q) - math.log(2)
    return ((p.exp() * (p - middle) + q.exp() * (q - middle)) / 2).sum() * (grid[1] - grid[0])


of_densities = {
    "KL": lambda s: s**2 / 2,
    "Jensen-Shannon": jensen_shannon,
    "Hellinger²": lambda s: 2 - 2 * (-(s**2) / 8).exp(),
    "total variation": lambda s: 2 * torch.special.ndtr(s / 2) - 1,
}
for name, divergence in of_densities.items():
    gradient = torch.func.grad_and_value(divergence)
    pairs = [gradient(s) for s in distances]
    curves[name] = np.array([float(d) for _, d in pairs]), np.array([float(g) for g, _ in pairs])

assert abs(curves["Jensen-Shannon"][0][-1] - math.log(2)) < 1e-6  # the ceiling
assert np.allclose(curves["Wasserstein-1"][0], distances, atol=1e-6)
assert np.allclose(curves["Wasserstein-1"][1][1:], 1.0)  # derivative one, from the first step to the last
assert np.allclose(curves["Fréchet"][0], distances**2, atol=1e-6)  # between Gaussians it is Wasserstein-2²

# %% [markdown]
# ## Why the bounded ones have no gradient
#
# None of these divergences is negative. For convex $f$ Jensen's inequality gives
# $E_q f(p / q) \ge f(E_q\, p / q) = f(1) = 0$. Now let $q$ depend on parameters $\theta$, and remember that
# $E_q \nabla \log q = \int \nabla q = \nabla 1 = 0$.
#
# $$\begin{aligned}
# \nabla \mathrm{KL}(P, Q_\theta) &= -E_P \nabla \log q, \\
# \nabla \mathrm{KL}(Q_\theta, P) &= \nabla \int q \log \frac{q}{p}
#    = \int \nabla q\, \Big(\log \frac{q}{p} + 1\Big) = E_Q \Big[\log \frac{q}{p}\, \nabla \log q\Big], \\
# \nabla \mathrm{JS}(P, Q_\theta) &= \frac12\, E_Q \Big[\log \frac{q}{m}\, \nabla \log q\Big], \; m = \tfrac{p + q}{2}.
# \end{aligned}$$
#
# In the third line the derivatives of $m$ cancel, for $-\frac12 \int (p + q) \nabla m / m = -\int \nabla m = 0$. The
# first gradient needs rows of $P$ and the density of the model: this is maximum likelihood. The second needs draws of
# the model and the density $p$. The third is the one that dies. Since $m \ge q / 2$, the logarithm is at most $\log 2$,
# and where $P$ and $Q$ do not overlap it *is* $\log 2$ at nearly every draw of $Q$. A constant times
# $E_Q \nabla \log q = 0$ is no gradient. What is left comes from the overlap alone, and for Gaussians at a distance $s$
# that is of the order of $e^{-s^2 / 8}$, the value of either density half way between them, relative to its peak.
#
# For two Gaussians of unit variance $\log (p / q) = s^2 / 2 - s x$, whose mean under $P$ is $s^2 / 2$: that is the
# parabola of both KL divergences. In one dimension the best transport keeps the order of rows, so that
# $W_1 = \int_0^1 |F_P^{-1}(u) - F_Q^{-1}(u)|\, du = \int |F_P - F_Q|\, dx$, which is $s$: the areas to the left of and
# between the two distribution functions are the same region, read by rows or by columns.
#
# ## Where each gradient dies
#
# Value and, in brackets, gradient at three distances; then the distance from which the gradient stays below a
# thousandth of the largest it ever was.


# %%
def death(gradients: np.ndarray) -> str:
    """Where the gradient falls below a thousandth of its largest for good."""
    alive = np.flatnonzero(gradients >= 1e-3 * gradients.max())[-1]
    return f"{distances[alive + 1]:.1f}" if alive + 1 < len(gradients) else "never"


places = [int((distances - s).abs().argmin()) for s in (1.0, 4.0, 12.0)]
print(f"{'':>21}" + "".join(f"{f's = {distances[i]:.0f}':>20}" for i in places) + "   gradient dies at")
for name, (values, gradients) in curves.items():
    cells = "".join(f"{values[i]:9.3f} ({gradients[i]:8.1e})" for i in places)
    print(f"{name:>21} {cells}   {death(gradients)}")

dying = ("MMD², σ = 1", "Jensen-Shannon", "Hellinger²", "total variation")
assert all(death(curves[name][1]) != "never" for name in dying)
assert all(death(curves[name][1]) == "never" for name in ("energy", "Wasserstein-1", "Sinkhorn", "KL"))

# %%
bounded = (*dying, "MMD², σ = median", "KolmogorovSmirnov", "Cramér-von Mises")
unbounded = ("Wasserstein-1", "Wasserstein-2²", "energy", "KL")
colors = {name: f"C{i}" for i, name in enumerate((*bounded, *unbounded[:3]))} | {"KL": "black"}
figure, (left, middle, right) = plt.subplots(1, 3, figsize=(9.5, 4.4), layout="constrained")
for name, (values, gradients) in curves.items():
    if name not in colors:
        continue  # sliced Wasserstein, Sinkhorn and Fréchet lie on Wasserstein-2² here
    style = {"color": colors[name], "label": name, "linewidth": 1.2}
    if name in ("KolmogorovSmirnov", "KL"):
        style["linestyle"] = "--"  # over total variation, and over Wasserstein-2²
    (left if name in bounded else middle).plot(distances, values / (values.max() if name in bounded else 1), **style)
    right.plot(distances, np.where(gradients > 0, gradients, np.nan) / gradients.max(), **style)
left.set_title("bounded: D over its largest", fontsize=10)
middle.set(ylim=(0, 30))
middle.set_title("unbounded: D", fontsize=10)
right.set(yscale="log", ylim=(1e-6, 2))
right.set_title("gradient dD/ds over its largest", fontsize=10)
for panel in (left, middle, right):
    panel.set_xlabel("distance s")
for panel in (left, middle):
    panel.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
figure

# %% [markdown]
# - **Divergences with a ceiling** (Jensen-Shannon: $\log 2$, squared Hellinger: 2, total variation: 1) see densities
#   overlap or not overlap. Once they do not, further apart is no worse, and the gradient dies like $e^{-s^2 / 8}$.
# - **KL** does not saturate, but it is finite only where $q > 0$ wherever $p > 0$: a distribution on a line in the
#   plane is at an infinite distance from the same line shifted at all.
# - **MMD** with a fixed bandwidth is as blind beyond some bandwidths. The median bandwidth grows with the distance
#   and keeps a gradient, which falls only like $1 / s$.
# - **Energy distance and Wasserstein** measure how far mass has to go. Wasserstein-1 has derivative one everywhere,
#   Wasserstein-2² is a parabola. Between Gaussians of one shape the sliced, the entropic (Sinkhorn) and the moments'
#   version (Fréchet) are all the same parabola; in $d$ dimensions the sliced one is a $d$-th of it.
# - **Distribution functions** saturate too. Smooth ones even turn back: their width is a share of the spread of both
#   samples, so it grows with the distance, and the far gradient has the wrong sign. Good for judging, and for
#   teaching only from near by.
#
# ## By a critic
#
# A divergence needs the densities, and a generator has none. A critic gets along with samples: for every function
# $v$,
#
# $$D_f(P, Q) \ge E_P\, a(v(x)) + E_Q\, b(v(x)),$$
#
# with equality at the best $v$, so a network that raises the right side estimates the left (Nguyen et al. 2010; Nowozin
# et al. 2016). The reason is that a convex function is the largest of its tangents: $f(u) = \max_t\, (u t - f^*(t))$
# with $f^*(t) = \max_u\, (u t - f(u))$. With any function $t(x)$ in the place of the best one at each $x$,
#
# $$D_f(P, Q) = \int q \max_t \Big(\frac{p}{q}\, t - f^*(t)\Big) \ge \int \big(p\, t - q f^*(t)\big)
#   = E_P\, t(x) - E_Q\, f^*(t(x)).$$
#
# The best $t$ is the slope $f'(p / q)$. The network's output $v$ is mapped to values that $t$ may take, $a(v)$, and
# $b(v) = -f^*(a(v))$. `estimate` trains one on half of the samples and judges it on the other half. Here it is beside
# the truth, with 4000 draws of each distribution.

# %%
critic = partial(nets.Critic, hidden=(32, 32))
of_critics = {
    "Jensen-Shannon": m.JensenShannon(critic, lr=5e-3),
    "Hellinger²": m.FDivergence(critic, "squared_hellinger", lr=5e-3),
    "total variation": m.FDivergence(critic, "total_variation", lr=5e-3),
    "KL": m.FDivergence(critic, "kl", lr=5e-3),
    "Wasserstein-1": m.WassersteinDual(critic, lr=5e-3, penalty=m.GradientPenalty(50.0)),
}
generator = torch.Generator().manual_seed(0)
x, y = torch.randn(4000, 1, generator=generator), torch.randn(4000, 1, generator=generator)
stops = (0.0, 1.0, 4.0, 8.0)
estimates = {}
print(f"{'estimate (truth)':>16} " + "".join(f"{f's = {s:.0f}':>18}" for s in stops))
for name, metric in of_critics.items():
    truth = [abs(curves[name][0][int((distances - s).abs().argmin())].round(6)) for s in stops]
    estimates[name] = [estimate(metric, x, y + s, steps=250) for s in stops]
    cells = "".join(f"{a:10.3g} ({b:5.3g})" for a, b in zip(estimates[name], truth, strict=True))
    print(f"{name:>16} {cells}")

assert all(abs(values[0]) < 0.05 for values in estimates.values())  # nothing found where there is nothing
assert estimates["Jensen-Shannon"][-1] < math.log(2) + 1e-6

# %% [markdown]
# The bounded divergences come out a little below the truth, as a lower bound should. Two caveats:
#
# - **KL fails from afar.** Its payoff is $E_P v - E_Q e^{v - 1}$, and one row of $Q$ with a large $v$ undoes it. No
#   estimate from samples can do much better: a lower bound that holds with high probability is at most about the
#   logarithm of the number of rows (McAllester and Stratos 2020), and that of 2000 is 7.6.
# - **Wasserstein-1 is too large from afar.** The bound holds for 1-Lipschitz critics, and a gradient penalty is only
#   a penalty: at weight $w$ it pays to have a gradient norm of about $1 + W_1 / 2w$. The tutorial on the [Wasserstein
#   critic](06_wasserstein.md) looks into that.
#
# ## What each prefers when it cannot have all
#
# Metrics agree on when two distributions are equal. They differ on what is least bad, which is what matters to a
# model that is too small. Here one Gaussian $Q = N(\mu, \sigma)$ is to stand for a mixture $P$ of two, and for each
# metric the best $(\mu, \sigma)$ is looked up on a grid.

# %%
t = torch.linspace(-8, 8, 801)
step = float(t[1] - t[0])
log_p = torch.logaddexp(math.log(0.7) + normal(t, -2.0, 0.6), math.log(0.3) + normal(t, 2.0, 0.6))
mu, sigma = torch.meshgrid(torch.linspace(-3, 1, 81), torch.linspace(0.3, 3, 55), indexing="ij")
log_q = normal(t, mu[..., None], sigma[..., None])
p, q, log_m = log_p.exp(), log_q.exp(), torch.logaddexp(log_p, log_q) - math.log(2)
gap = (p - q).cumsum(-1) * step  # F - G
badness = {
    "KL(P, Q)": (p * (log_p - log_q)).sum(-1),
    "KL(Q, P)": (q * (log_q - log_p)).sum(-1),
    "Jensen-Shannon": (p * (log_p - log_m) + q * (log_q - log_m)).sum(-1),
    "Wasserstein-1": gap.abs().sum(-1),  # on a line, the area between the distribution functions
    "energy": gap.square().sum(-1),  # on a line, half of it
}
best = {}
for name, value in badness.items():
    at = np.unravel_index(int(value.argmin()), value.shape)
    best[name] = float(mu[at]), float(sigma[at])
    print(f"{name:>14}: μ = {best[name][0]:5.2f}, σ = {best[name][1]:.2f}")

assert abs(best["KL(P, Q)"][0] + 0.8) < 0.06  # the mean of P
assert abs(best["KL(Q, P)"][0] + 2.0) < 0.06  # the larger mode

# %%
figure, axes = plt.subplots(figsize=(9.5, 2.8), layout="constrained")
axes.fill_between(t, p, color="0.85", label="P")
for name, (mean, sd) in best.items():
    axes.plot(t, normal(t, mean, sd).exp(), "--" if name == "Jensen-Shannon" else "-", label=name, linewidth=1.2)
axes.set(xlim=(-6, 6), yticks=[])
axes.legend(fontsize=8)
figure

# %% [markdown]
# $\mathrm{KL}(P, Q)$ pays for every row of $P$ that $Q$ makes unlikely, so it covers all and draws from the gap
# between the modes too; this is maximum likelihood. $\mathrm{KL}(Q, P)$ pays for what $Q$ draws where $P$ has
# nothing, so it takes the larger mode and drops the other; this is the KL of variational inference. Jensen-Shannon
# sides with it here, line upon line; Wasserstein-1 and the energy distance, which count how far mass has to go,
# cover.
#
# ## From few rows
#
# Last, a number is an estimate. Two samples of 200 rows in ten dimensions: what does each metric say of equal
# distributions, and does it notice a shift of 0.2 in every coordinate? The last column is the rise in units of the
# scatter.

# %%
d, rows, repeats = 10, 200, 20
judges = {
    "MMD²": m.MMD(),
    "energy": m.EnergyDistance(),
    "sliced Wasserstein-2²": m.SlicedWasserstein(),
    "Wasserstein-1": m.Wasserstein(p=1),
    "Wasserstein-2²": m.Wasserstein(p=2),
    "Sinkhorn": m.Sinkhorn(),
    "Fréchet": m.Frechet(),
    "KolmogorovSmirnov": m.KolmogorovSmirnov(),
    "Cramér-von Mises": m.CramerVonMises(),
}
torch.manual_seed(0)
pairs = [(torch.randn(rows, d), torch.randn(rows, d)) for _ in range(repeats)]
told = {}
for name, judge in judges.items():
    equal = torch.stack([judge(x, y) for x, y in pairs])
    shifted = torch.stack([judge(x, y + 0.2) for x, y in pairs])
    told[name] = float((shifted.mean() - equal.mean()) / equal.std())
    print(f"{name:>21}: equal {equal.mean():7.4f} ± {equal.std():.4f}, shifted {shifted.mean():7.4f}{told[name]:8.1f}")

assert min(told["energy"], told["sliced Wasserstein-2²"]) > told["Wasserstein-2²"]

# %% [markdown]
# Unbiased estimates (MMD, energy) are zero for equal distributions on average. Exact transport is far from zero,
# since in ten dimensions 200 rows are lonely, and what a shift adds is small beside that. Never read such a number
# alone: put beside it the number of two samples of real data.
#
# ## Which one, then?
#
# | when | take |
# |---|---|
# | the model has a density, or a bound of it | KL: maximum likelihood, the evidence lower bound |
# | samples only, and no second network | MMD with the median bandwidth, energy distance, sliced Wasserstein |
# | samples only, distributions far apart or on thin sets | Wasserstein-1 by a critic (`recipes.wgan_gp`), Sinkhorn |
# | samples only, and the sharpest eye | a critic under Jensen-Shannon with a penalty (`recipes.r1_gan`, `r3_gan`) |
# | to judge, not to train | energy distance or MMD with a permutation test (`ppgen.diagnostics`), Kolmogorov |
# | images, to compare with others | Fréchet distance of features, at equal numbers of rows |
#
# ## Where it fails
#
# No metric is good at everything, which is the point of this page. In short: divergences with an upper bound have no
# gradient far away; KL is infinite on thin sets; kernels are blind beyond their bandwidths; transport needs many rows
# in many dimensions; a critic's number depends on its network and on how long it was trained.
#
# ## Exercises
#
# 1. On a grid, check that the Jensen-Shannon divergence of $N(0, 1)$ and $N(s, 1)$ is at most $\log 2$, and that its
#    derivative in $s$ is $\frac12 E_Q[\log(q / m)\, (x - s)]$.
# 2. Check $W_1 = \int |F_P - F_Q|$ for two samples of equal size: the mean absolute difference of sorted rows, the area
#    between the two distribution functions, and `m.Wasserstein(p=1)` are one number.
# 3. The conjugate of $f(u) = u \log u$ is $f^*(t) = e^{t - 1}$. Check on a grid that $E_P t - E_Q e^{t - 1}$ is largest
#    at $t = 1 + \log (p / q)$, and that it is $\mathrm{KL}(P, Q)$ there.
#
# [Solutions](../../tutorials/solutions/04_metrics.py), which are tested.
