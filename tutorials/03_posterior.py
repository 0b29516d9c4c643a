# %% [markdown]
# # Can this posterior be trusted?
#
# Variational inference always returns a posterior. This tutorial asks of two of them whether they can be believed:
# the eight schools, where the exact answer is at hand to check the checks, and a VAE, where it is not.

# %%
import tempfile
from functools import partial
from pathlib import Path

import arviz as az
import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal

import ppgen
from ppgen import data, recipes
from ppgen.diagnostics import from_netcdf, to_netcdf
from ppgen.models import VAE

torch.set_num_threads(1)  # programs as small as these gain nothing from more

# %% [markdown]
# ## Eight schools
#
# Eight schools coached pupils for a test; school $i$ saw an effect $y_i$ with standard error $\sigma_i$ (Rubin 1981).
# The true effects $\theta_i$ are draws of $N(\mu, \tau)$. The model can be written in two ways: centered, with
# $\theta_i$ itself a latent, or not, with $\theta_i = \mu + \tau \eta_i$ and $\eta_i \sim N(0, 1)$ the latent. To the
# probabilities this makes no difference. To a guide it does.

# %%
y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
sigma = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def centered(y, sigma):
    mu, tau = pyro.sample("mu", dist.Normal(0.0, 5.0)), pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("data", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def non_centered(y, sigma):
    mu, tau = pyro.sample("mu", dist.Normal(0.0, 5.0)), pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("data", len(y)):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * eta, event_dim=0)
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


# %% [markdown]
# Given $\mu$ and $\tau$, each $y_i$ is $N(\mu, \sqrt{\sigma_i^2 + \tau^2})$, which leaves two dimensions: a grid over
# them gives the exact posterior and evidence, here beside the moments that posteriordb has from long MCMC runs.

# %%
grid_mu, grid_tau = torch.linspace(-25, 35, 601), torch.linspace(0.05, 100, 2000)
mu, tau = torch.meshgrid(grid_mu, grid_tau, indexing="ij")
joint = dist.Normal(0.0, 5.0).log_prob(mu) + dist.HalfCauchy(5.0).log_prob(tau)
for effect, error in zip(y, sigma, strict=True):
    joint = joint + dist.Normal(mu, (error**2 + tau**2).sqrt()).log_prob(effect)
cell = (grid_mu[1] - grid_mu[0]) * (grid_tau[1] - grid_tau[0])
evidence = float(joint.logsumexp((0, 1)) + cell.log())
mass = (joint - joint.logsumexp((0, 1))).exp()
posteriordb = {"mu": (4.41, 3.31), "tau": (3.60, 3.20)}
exact = {"mu": (grid_mu, mass.sum(1)), "tau": (grid_tau, mass.sum(0))}
for name, (values, p) in exact.items():
    center = (p * values).sum()
    spread = (p * (values - center) ** 2).sum().sqrt()
    reference = "mean {:.2f}, sd {:.2f}".format(*posteriordb[name])
    print(f"exact {name:>3}: mean {center:.2f}, sd {spread:.2f}   (posteriordb: {reference})")
print(f"exact log evidence: {evidence:.2f} nats")

# %% [markdown]
# Both programs, each with a guide that is normal in every latent (after a map to the real line) and one that is
# jointly normal. Each is fitted from four starts; `to_arviz` makes chains of them, so that R-hat compares the starts.

# %%
STEPS = 300
settings = {
    "loss": ppgen.ELBO(elbo=Trace_ELBO(num_particles=16, vectorize_particles=True, max_plate_nesting=1)),
    "steps": STEPS,
    "restarts": 4,
    "optim": partial(torch.optim.Adam, lr=0.1),
    "lr_scheduler": partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=STEPS),
}
idata = {}
for program in (centered, non_centered):
    for kind in (AutoNormal, AutoMultivariateNormal):
        fit = ppgen.fit(program, kind(program), (y, sigma), **settings)
        idata[program.__name__, kind.__name__] = fit.to_arviz(y, sigma, draws=4000, chunk=1000)
print(az.summary(idata["non_centered", "AutoNormal"], var_names=["mu", "tau"]).to_string())

# %% [markdown]
# A draw $z$ of a guide $q$ has the importance weight $w = p(y, z) / q(z)$. For any function $h$,
#
# $$E_q[w\, h(z)] = \int q(z) \frac{p(y, z)}{q(z)} h(z)\, dz = p(y)\, E[h(z) \mid y].$$
#
# With $h = 1$ the mean of the weights estimates the evidence; divided by it, weighted means of draws estimate means of
# the exact posterior. How precisely depends on the spread of the weights. With normalized weights
# $\bar w_j = w_j / \sum_i w_i$ the effective sample size is $1 / \sum_j \bar w_j^2$: it is $k$ if all weights are
# equal, and one if a single draw has all of the weight.
#
# The largest weights decide. Above a high threshold, weights have nearly a generalized Pareto distribution with a shape
# $k$, that is, $P(w > t)$ falls like $t^{-1/k}$, and the moment $E w^r$ is finite only for $r < 1 / k$. The estimate of
# $k$ is the Pareto k-hat (Vehtari et al. 2024): up to 0.5 the variance of weights is finite, up to 0.7 weighted means
# still converge at a practical rate, and above that they should not be believed. Here the weights are of whole draws,
# one k-hat for each start.
#
# R-hat compares chains, here starts. With $W$ the mean variance within a chain and $B$ the variance of the chains'
# means, $\hat R = \sqrt{(W + B) / W}$ but for terms in one over the number of draws: one if all chains agree.


# %%
def over_starts(values) -> str:
    return f"{np.mean(values):6.2f} ± {np.std(values, ddof=1):.2f}"


for which, each in idata.items():
    summary = az.summary(each, var_names=["mu", "tau"], round_to=3)
    weight = np.exp(each.sample_stats.log_weight - each.sample_stats.log_weight.max("draw"))
    print(", ".join(which), "(± standard deviation over starts)")
    for name in ("mu", "tau"):
        draws = each.posterior[name]
        weighted = (weight * draws).sum("draw") / weight.sum("draw")
        print(
            f"  {name:>3}: mean {over_starts(draws.mean('draw'))}, sd {over_starts(draws.std('draw'))},"
            f" weighted mean {over_starts(weighted)}, R-hat {float(summary.loc[name, 'r_hat']):.2f}"
        )
    print(f"  log evidence {over_starts(each.vi_stats.log_marginal)}, k-hat {each.vi_stats.pareto_k.values.round(2)}")

# %% [markdown]
# Held against the exact values:
#
# - Both fits of the centered program are wrong, and k-hat, near or above 0.7 from every start, says so. Where $\tau$
#   is small the $\theta_i$ must be nearly equal, a funnel that no normal guide has; it settles on one width of the
#   funnel, and the sd of $\tau$ is far too small. R-hat notices as well, since the starts settle on different widths.
#   Weights do not correct $\tau$: they cannot make up for what was never drawn.
# - The non-centered program is the same model, and its $\eta_i$ are nearly normal. Yet the guides' own mean of $\tau$
#   is too small, and the starts agree on it with an R-hat near one: R-hat compares starts with each other, not with
#   the truth. k-hat is in the usable range for most starts, and the weighted means and the evidence are right within
#   about their scatter. So a usable k-hat does not say that the guide is the posterior; it says that weights can make
#   up for the difference.
#
# ## A VAE
#
# Here every image has a posterior of its own, and so its own weights and k-hat.

# %%
digits = data.load("digits")
held = torch.as_tensor(digits.test.x)[:200]
torch.manual_seed(0)
vae = VAE(digits.event_shape, latent_dim=8, network="dense", hidden=(128,), scale=0.2)
adam = partial(torch.optim.Adam, lr=3e-3)
fit = ppgen.fit(vae.model, vae.guide, digits.train.x, loss=recipes.vae(), optim=adam, epochs=60, batch_size=128)
first, second = (fit.to_arviz(held, draws=1000, predictive=False, seed=seed).vi_stats.isel(chain=0) for seed in (0, 1))
khat, other = first.pareto_k.values, second.pareto_k.values
estimate, again = first.log_marginal.values, second.log_marginal.values
torch.manual_seed(1)
rise = vae.log_evidence(held, particles=10_000).numpy() - (estimate + again) / 2
print("log evidence of an image from 1000 draws: its Monte Carlo error, and how much it rises with 10000 (nats)")
for label, group in (
    ("up to 0.5", khat <= 0.5),
    ("0.5 to 0.7", (khat > 0.5) & (khat <= 0.7)),
    ("above 0.7", khat > 0.7),
):
    noise = np.sqrt(np.mean((again - estimate)[group] ** 2) / 2)
    error = rise[group].std() / group.sum() ** 0.5
    print(f"k-hat {label:>10}: {group.sum():3d} images, error {noise:.2f}, rise {rise[group].mean():.2f} ± {error:.2f}")
print(f"{np.sum((khat > 0.7) != (other > 0.7))} of {len(khat)} images cross 0.7 from one set of 1000 draws to the next")

# %% [markdown]
# The posterior of an image with a high k-hat reaches further in some direction than the encoder's normal
# distribution, and the draws that matter most come seldom. So its log evidence is noisy, and too low: it rises most
# with more draws. The mean over images, as in the tutorial on the [VAE](02_vae.md), hides both. k-hat is itself an
# estimate, as the last line shows: read it as a warning about a set of images rather than a verdict on one.
#
# ## Where it fails
#
# - k-hat judges the draws that there are. A mode that no draw reaches leaves no sign in the weights. Other starts may
#   find it, and `diagnose` searches for it (`missed_mode_mass`).
# - R-hat compares starts with each other: all of them can be wrong in the same way.
# - With many dimensions the weights of a guide that is slightly wrong in each dimension degenerate, even though every
#   margin is nearly right.
#
# ## To keep
#
# `save` writes all starts into one safetensors file, `load` reads it into programs built as they were; what
# `to_arviz` made goes to NetCDF, for ArviZ anywhere.

# %%
with tempfile.TemporaryDirectory() as folder:
    fit.save(Path(folder, "vae.safetensors"))
    to_netcdf(idata["non_centered", "AutoNormal"], Path(folder, "schools.nc"))
    again = VAE(**vae.config)
    ppgen.Fit.load(Path(folder, "vae.safetensors"), again.model, again.guide)
    stored = from_netcdf(Path(folder, "schools.nc"))
    print("the same reconstructions:", torch.equal(again.reconstruct(held), vae.reconstruct(held)))
    print("the same draws:", bool((stored.posterior.mu == idata["non_centered", "AutoNormal"].posterior.mu).all()))

# %%
figure, (left, middle, right) = plt.subplots(1, 3, figsize=(9.5, 3.2), layout="constrained")
for axes, name, limits in ((left, "mu", (-8, 16)), (middle, "tau", (0, 15))):
    values, p = exact[name]
    axes.fill_between(values, p / (values[1] - values[0]), color="0.8", label="exact")
    for program, color in (("centered", "C1"), ("non_centered", "C0")):
        each = idata[program, "AutoMultivariateNormal"]
        for chain, draws in enumerate(each.posterior[name].values):
            label = f"{program}, 4 starts" if chain == 0 else None
            axes.hist(draws, 60, range=limits, density=True, histtype="step", color=color, linewidth=0.8, label=label)
    axes.set(xlim=limits, xlabel=name, yticks=[])
left.set_title("eight schools, AutoMultivariateNormal", fontsize=10)
middle.legend(fontsize=8)
right.hist(khat, np.arange(-0.3, 1.3, 0.05), color="0.6")
for bound in (0.5, 0.7):
    right.axvline(bound, color="black", linestyle="--", linewidth=0.8)
right.set(xlabel="k-hat", ylabel="images")
right.set_title("VAE: k-hat of each image, 0.5 and 0.7", fontsize=10)
figure

# %% [markdown]
# ## Exercises
#
# 1. Let the posterior be $N(0, 1)$ and the guide $N(0, \sigma^2)$ with $\sigma < 1$. Show that the tail of the weights
#    has the shape $k = 1 - \sigma^2$, and compare `diagnostics.importance_summary` with it.
# 2. For the same pair, derive $E_q w^2 = \sigma^2 / \sqrt{2 \sigma^2 - 1}$ for $\sigma^2 > 1/2$, so that the effective
#    sample size is $k \sqrt{2 \sigma^2 - 1} / \sigma^2$ of $k$ draws.
# 3. Let one chain draw from $N(0, 1)$ and another from $N(\delta, 1)$. Derive $\hat R \approx \sqrt{1 + \delta^2 / 2}$
#    and check it.
#
# [Solutions](../../tutorials/solutions/03_posterior.py), which are tested.
