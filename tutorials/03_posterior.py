# %% [markdown]
# # Can this posterior be trusted?
#
# Variational inference always returns a posterior. This tutorial asks of two of them whether they can be believed: the
# eight schools, where the exact answer is at hand to check the checks, and a VAE, where it is not.

# %%
import tempfile
import warnings
from functools import partial
from pathlib import Path

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

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # ArviZ 0.23 announces 1.0
    import arviz as az

# %% [markdown]
# ## Eight schools
#
# Eight schools coached pupils for a test; school $i$ saw an effect $y_i$ with standard error $\sigma_i$ (Rubin 1981).
# The true effects $\theta_i$ are draws of $N(\mu, \tau)$. The model can be written in two ways: centred, with
# $\theta_i$ itself a latent, or not, with $\theta_i = \mu + \tau \eta_i$ and $\eta_i \sim N(0, 1)$ the latent. To the
# probabilities this makes no difference. To a guide it does.

# %%
y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
sigma = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def centred(y, sigma):
    mu, tau = pyro.sample("mu", dist.Normal(0.0, 5.0)), pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("data", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def non_centred(y, sigma):
    mu, tau = pyro.sample("mu", dist.Normal(0.0, 5.0)), pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("data", len(y)):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * eta, event_dim=0)
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


# %% [markdown]
# Given $\mu$ and $\tau$, each $y_i$ is $N(\mu, \sqrt{\sigma_i^2 + \tau^2})$, so that the exact posterior of the two is a
# sum over a grid.

# %%
grid_mu, grid_tau = torch.linspace(-25, 35, 601), torch.linspace(0.05, 100, 2000)
mu, tau = torch.meshgrid(grid_mu, grid_tau, indexing="ij")
joint = dist.Normal(0.0, 5.0).log_prob(mu) + dist.HalfCauchy(5.0).log_prob(tau)
joint = joint + sum(dist.Normal(mu, (s**2 + tau**2).sqrt()).log_prob(effect) for effect, s in zip(y, sigma, strict=True))
cell = (grid_mu[1] - grid_mu[0]) * (grid_tau[1] - grid_tau[0])
evidence = float(joint.logsumexp((0, 1)) + cell.log())
mass = (joint - joint.logsumexp((0, 1))).exp()
exact = {"mu": (grid_mu, mass.sum(1)), "tau": (grid_tau, mass.sum(0))}
for name, (values, p) in exact.items():
    center = (p * values).sum()
    print(f"exact {name:>3}: mean {center:.2f}, sd {(p * (values - center) ** 2).sum().sqrt():.2f}")
print(f"exact log evidence: {evidence:.2f} nats")

# %% [markdown]
# Both programs, each with a guide that is normal in every latent (after a map to the real line) and one that is jointly
# normal. Each is fitted from four starts; `to_arviz` makes chains of them, so that R-hat compares the starts.

# %%
STEPS = 300
settings = {
    "loss": ppgen.Evidence(elbo=Trace_ELBO(num_particles=16, vectorize_particles=True, max_plate_nesting=1)),
    "steps": STEPS,
    "restarts": 4,
    "optim": partial(torch.optim.Adam, lr=0.1),
    "schedule": partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=STEPS),
}
idata = {}
for program in (centred, non_centred):
    for kind in (AutoNormal, AutoMultivariateNormal):
        fit = ppgen.fit(program, kind(program), (y, sigma), **settings)
        idata[program.__name__, kind.__name__] = fit.to_arviz(y, sigma, draws=4000, chunk=1000)
print(az.summary(idata["non_centred", "AutoNormal"], var_names=["mu", "tau", "theta"]))


def over_starts(values) -> str:
    return f"{np.mean(values):6.2f} ± {np.std(values, ddof=1):.2f}"


for which, each in idata.items():
    draws, summary = each.posterior, az.summary(each, var_names=["mu", "tau"], round_to=3)
    log_weight = each.sample_stats.log_weight
    weight = np.exp(log_weight - log_weight.max("draw"))
    weighted = (weight * draws).sum("draw") / weight.sum("draw")
    print("\n" + ", ".join(which))
    for name in ("mu", "tau"):
        print(
            f"  {name:>3}  mean {over_starts(draws[name].mean('draw'))}, sd {over_starts(draws[name].std('draw'))},"
            f" weighted mean {over_starts(weighted[name])}, R-hat {float(summary.loc[name, 'r_hat']):.2f}"
        )
    print("  log evidence", over_starts(each.vi_stats.log_marginal), " k-hat", each.vi_stats.pareto_k.values.round(2))
