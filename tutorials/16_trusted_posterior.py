# %% [markdown]
# # From raw data to a posterior one can trust, and a fit that fails
#
# Variational inference always returns something. This tutorial takes a regression on raw covariates, finds its
# posterior without a guide, looks at it in ArviZ, and asks whether it can be trusted. Then it does the same with a
# guide and settings as one often sees them, whose loss looks fine, and sees how that fit is found out.

# %%
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import arviz as az
import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoNormal
from sklearn.datasets import load_diabetes

import ppgen
from ppgen.diagnostics import loo

torch.set_num_threads(1)  # programs as small as these gain nothing from more

# %% [markdown]
# ## The data, as they come
#
# Progress of diabetes in 442 patients, against age, sex, body mass index, blood pressure and six measurements of
# blood serum: no column is rescaled, and their deviations range from half a unit to more than thirty.

# %%
table = load_diabetes(scaled=False)
x, y = torch.as_tensor(table.data), torch.as_tensor(table.target)
dict(zip(table.feature_names, table.data.std(0).round(2).tolist(), strict=True))


# %%
def model(x, y):
    intercept = pyro.sample("intercept", dist.Normal(0.0, 1000.0))
    slopes = pyro.sample("slopes", dist.Normal(0.0, 1000.0).expand([x.shape[-1]]).to_event(1))
    noise = pyro.sample("noise", dist.HalfCauchy(100.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(intercept + x @ slopes, noise), obs=y)


# %% [markdown]
# ## No guide
#
# `guide="auto"` finds modes from four starts that lie far apart, and the curvature there. Here all starts reach one
# mode. The Gaussian of that curvature, with the moments of weighted draws around it, is good enough, so that nothing is
# fitted by steps.
#
# With $H$ the matrix of second derivatives of $-\log p(y, \theta)$ at the mode $\hat\theta$, a Taylor expansion gives
# $\log p(y, \theta) \approx \log p(y, \hat\theta) - \frac12 (\theta - \hat\theta)^\top H (\theta - \hat\theta)$: a
# Gaussian of covariance $H^{-1}$ (Laplace's approximation), whose integral is
# $\log p(y) \approx \log p(y, \hat\theta) + \frac{d}{2} \log 2 \pi - \frac12 \log \det H$. Modes are found by Newton's
# steps, $H^{-1} \nabla \log p$. In other units, $\theta = M \vartheta$, the gradient becomes $M^\top \nabla$ and the
# curvature $M^\top H M$, so the step is the same step: that is why scales of covariates drop out. A step of gradient
# descent has no such property, which is the failure below.

# %%
fit = ppgen.fit(model, "auto", (x, y))
[chain.stop_reason for chain in fit.chains]

# %%
idata = fit.to_arviz(x, y, dims={"slopes": ["covariate"]}, coords={"covariate": table.feature_names}, chunk=250)
az.summary(idata, kind="stats")

# %% [markdown]
# A regression with priors as weak as these has nearly the posterior of least squares, so there is an answer to hold
# it against: estimates, and their standard errors.

# %%
design = np.column_stack([np.ones(len(table.target)), table.data])
estimate, (rss,), *_ = np.linalg.lstsq(design, table.target, rcond=None)
errors = np.sqrt(np.diag(np.linalg.inv(design.T @ design)) * rss / (len(design) - 11))
drawn = np.concatenate([idata.posterior["intercept"].values[..., None], idata.posterior["slopes"].values], -1)
drawn = drawn.reshape(-1, 11)
print("largest distance of a mean, in standard errors:", float(np.abs((drawn.mean(0) - estimate) / errors).max()))
print(
    "ratios of deviations, from", (drawn.std(0) / errors).min().round(3), "to", (drawn.std(0) / errors).max().round(3)
)

# %% [markdown]
# ## May it be trusted?
#
# `diagnose` weights the guide's draws by p / q. The tail of these weights, k-hat, says whether the guide misses mass;
# `ess_ratio` how much precision the weights cost; R-hat, for several chains, whether they ended at the same place;
# `missed_mode_mass` whether a search from other starting points finds a mode that the guide misses; `shift` and
# `log_ratio` how far the weights move means and standard deviations.

# %%
verdict = fit.diagnose(x, y)
print(verdict)

# %% [markdown]
# The same groups serve ArviZ's comparison of models: leave-one-out densities of a model with all covariates and of
# one with two of them. They take the guide into account, as draws of a guide are not draws of the posterior.

# %%
two = x[:, [2, 3]]
less = ppgen.fit(model, "auto", (two, y)).to_arviz(two, y, chunk=250)
az.compare({"all ten": loo(idata), "mass index and pressure": loo(less)})

# %% [markdown]
# Leave-one-out needs no fit without the datum. For independent data given $\theta$, $p(\theta \mid y_{-i})$ is
# proportional to $p(\theta \mid y) / p(y_i \mid \theta)$, so
#
# $$\frac{1}{p(y_i \mid y_{-i})} = E\left[\frac{1}{p(y_i \mid \theta)}\, \Big|\, y\right]:$$
#
# a mean over the posterior, with weights $1 / p(y_i \mid \theta)$ on its draws, whose tail has a k-hat for each datum.
# Draws of a guide get the product of these weights and $p / q$.
#
# ## A fit that fails
#
# Now as it is often done: a factorized guide, Adam at one rate, some thousand steps.

# %%
pyro.clear_param_store()
single = x.float(), y.float()
usual = ppgen.fit(model, AutoNormal(model), single, optim=partial(torch.optim.Adam, lr=0.01), steps=2000)

# %%
fig, left = plt.subplots(figsize=(6, 3))
left.plot(usual.history["loss"], label="mean field, the usual settings")
left.axhline(fit.chains[fit.best].final, color="k", ls=":", label="no guide given")
left.set(xlabel="step", ylabel="negative evidence, nats a datum", ylim=(5, 12))
left.legend()
fig.tight_layout()

# %% [markdown]
# The loss has come down and goes flat, which is what one would look at. The posterior it leaves:

# %%
found = usual.to_arviz(*single, draws=500, predictive=False, chunk=250)
wrong = np.concatenate([found.posterior["intercept"].values[..., None], found.posterior["slopes"].values], -1)
wrong = wrong.reshape(-1, 11)
print(
    "largest distance of a mean, in standard errors:", float(np.abs((wrong.mean(0) - estimate) / errors).max().round(1))
)
print(
    "ratios of deviations, from", (wrong.std(0) / errors).min().round(3), "to", (wrong.std(0) / errors).max().round(3)
)

# %%
judged = usual.diagnose(*single)
print(judged)

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2))
names = ["intercept", *table.feature_names]
left.errorbar(range(11), (drawn.mean(0) - estimate) / errors, drawn.std(0) / errors, fmt="o", label="no guide given")
left.errorbar(
    np.arange(11) + 0.25, (wrong.mean(0) - estimate) / errors, wrong.std(0) / errors, fmt="s", label="mean field"
)
left.set(ylabel="mean and deviation\nin standard errors", ylim=(-12, 12))
left.set_xticks(range(11), names, rotation=60)
left.legend()
for part, label in ((idata, "no guide given"), (found, "mean field")):
    weights = np.sort(np.exp(part.sample_stats["log_weight_smoothed"].values[0]))[::-1]
    right.plot(np.cumsum(weights), label=label)
right.set(xscale="log", xlabel="draws, the heaviest first", ylabel="share of all weight")
right.legend()
fig.tight_layout()

# %% [markdown]
# A few draws of the factorized guide carry all the weight: where it draws, the posterior hardly is. k-hat says so
# without knowing the answer.

# %% [markdown]
# ## As a page
#
# `report` writes the verdict with the figures behind it: the tail of the weights, which latents they move, restarts,
# the evidence by step, replicated data sets, and leave-one-out PIT. Names of dimensions are given as to `to_arviz`.

# %%
names = {"dims": {"slopes": ["covariate"]}, "coords": {"covariate": table.feature_names}}
with TemporaryDirectory() as folder:
    page = fit.report(Path(folder) / "posterior.html", x, y, **names)
    print(page.name, "is written:", page.is_file())

# %%
assert verdict.level == "good"
assert judged.level == "not to be trusted"
assert float(np.abs((drawn.mean(0) - estimate) / errors).max()) < 0.15

# %% [markdown]
# ## Where it fails
#
# - k-hat sees the mass that draws reach. A mode that neither the guide nor the search for others finds is missing
#   without a sign.
# - The verdict is about the posterior of *this* program. Whether the program fits the data is another question:
#   predictive checks and leave-one-out.
# - Posteriors with a funnel need another form of the program ([three programs](18_three_posteriors.md)) or a sampler
#   ([a refused fit](19_refused_fit.md)).
#
# ## Exercises
#
# 1. For a linear regression with normal priors and known noise, check that Laplace's formula gives the evidence
#    exactly: that of a normal distribution of covariance $I + X X^\top$.
# 2. Check the identity of leave-one-out for the mean of normal data with a normal prior, by quadrature over the mean.
# 3. Let the posterior be normal with unit variances and a correlation of $\rho$. Show that the factorized guide that
#    minimizes the reverse KL has the variances $1 - \rho^2$.
#
# [Solutions](../../tutorials/solutions/16_trusted_posterior.py), which are tested.
