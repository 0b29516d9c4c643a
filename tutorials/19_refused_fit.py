# %% [markdown]
# # A fit that is refused, and draws that can be trusted
#
# Some posteriors have no guide of reasonable size. The horseshoe prior (Carvalho et al. 2010) is known for it: it lets
# a few coefficients be large and pulls all others to zero, and its tails are as heavy as those of a Cauchy. This
# tutorial fits a regression with it to a small table, sees the fit refused, and goes on from there: a sampler starts
# from the guide, in its coordinates, and its draws are judged by R-hat, effective sample sizes, and the same verdict.

# %%
import arviz as az
import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from sklearn.datasets import load_diabetes

import ppgen

torch.set_num_threads(1)  # programs as small as these gain nothing from more

# %% [markdown]
# ## Fifty patients, ten covariates
#
# A sample of the table of tutorial 16, small enough that data do not decide which of the covariates matter. All columns
# are standardized.

# %%
table = load_diabetes()
rows = np.random.default_rng(0).permutation(len(table.target))[:50]
x, y = torch.as_tensor(table.data[rows]), torch.as_tensor(table.target[rows])
x, y = (x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std()


# %%
def horseshoe(x, y):
    tau = pyro.sample("tau", dist.HalfCauchy(1.0))
    local = pyro.sample("local", dist.HalfCauchy(1.0).expand([10]).to_event(1))
    z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([10]).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfCauchy(1.0))
    slopes = pyro.deterministic("slopes", tau * local * z)
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(x @ slopes, sigma), obs=y)


# %% [markdown]
# ## The fit, and why it is refused
#
# `guide="auto"` ends with a flow, the richest guide that it has. The verdict refuses its draws as they are. Weights
# would leave one in five of them (`ess_ratio`).

# %%
fit = ppgen.fit(horseshoe, "auto", (x, y))
refused = fit.diagnose(x, y)
print(refused)

# %% [markdown]
# ## A sampler that starts from the guide
#
# `refine` takes four populations of points from the guide to the posterior in steps: each applies a small part of the
# importance weights, and then moves the points by Hamiltonian Monte Carlo (Del Moral et al. 2006). The moves are made
# in the coordinates of the flow, where the posterior is far rounder than in the program's, and at the end in both,
# since a flow can put what it was not trained on too far out for any move. They end when R-hat and effective sample
# sizes are good. Populations know nothing of each other's points, so each is a chain.
#
# On the way are the distributions $\pi_t \propto q^{1 - t} p^t$, from the guide $q$ at $t = 0$ to $p = p(y, \theta)$ at
# $t = 1$. From $t$ to $t'$ a point has the weight $(p / q)^{t' - t}$. Over points of $\pi_t$ with the constants $Z_t$,
#
# $$E_{\pi_t} \left(\frac{p}{q}\right)^{t' - t} = \int \frac{q^{1 - t} p^t}{Z_t} \left(\frac{p}{q}\right)^{t' - t}
#   = \frac{1}{Z_t} \int q^{1 - t'} p^{t'} = \frac{Z_{t'}}{Z_t},$$
#
# so the product of mean weights over all steps estimates $Z_1 / Z_0 = p(y)$, the evidence. Steps are as long as the
# effective sample size of these weights permits. That is what makes the difference to weights in one step: k-hat of
# $(p / q)^{t' - t}$ is $t' - t$ times that of $p / q$.

# %%
refined = fit.refine(x, y)
print(refined.chains[0].stop_reason)
trusted = refined.diagnose(x, y)
print(trusted)

# %% [markdown]
# To ArviZ these are chains as those of any sampler.

# %%
covariates = {"dims": {"slopes": ["covariate"]}, "coords": {"covariate": table.feature_names}}
drawn = refined.to_arviz(x, y, **covariates)
az.summary(drawn, var_names=["tau", "sigma", "slopes"], kind="diagnostics")

# %% [markdown]
# ## What the guide had missed
#
# Left, the global scale tau with the largest of the local scales: where tau is small, a single local scale can be very
# large, and the guide follows neither far enough. Right, the slopes, as means with intervals of 90 %.

# %%
guide = fit.to_arviz(x, y, draws=2000, predictive=False, **covariates)
fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6))
for groups, label, color, shift in ((drawn, "sampler", "C0", 0.0), (guide, "guide", "C1", 0.25)):
    posterior = groups.posterior.stack(sample=("chain", "draw"))
    every = slice(None, None, max(1, posterior.sizes["sample"] // 2000))
    largest = posterior["local"].max(posterior["local"].dims[0])
    left.plot(posterior["tau"][every], largest[every], ".", ms=2, color=color, label=label, alpha=0.6)
    low, high = np.quantile(posterior["slopes"], [0.05, 0.95], axis=1)
    mean = posterior["slopes"].mean("sample")
    bars = np.abs(np.stack([low, high]) - mean.values)
    right.errorbar(np.arange(10) + shift, mean, bars, fmt="o", ms=3, color=color, label=label)
left.set(xscale="log", yscale="log", xlabel="tau", ylabel="largest local scale")
left.legend(markerscale=4)
right.set_xticks(range(10), table.feature_names)
right.set(ylabel="slope")
right.legend(loc="upper left")
fig.tight_layout()

# %% [markdown]
# ## The evidence
#
# The weights on the way from the guide to the posterior also give the evidence, with a standard error. So the prior can
# be compared with another: normal slopes of one common scale, where `guide="auto"` does without a sampler.


# %%
def ridge(x, y):
    tau = pyro.sample("tau", dist.HalfCauchy(1.0))
    slopes = pyro.sample("slopes", dist.Normal(0.0, tau).expand([10]).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfCauchy(1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(x @ slopes, sigma), obs=y)


other = ppgen.fit(ridge, "auto", (x, y)).to_arviz(x, y, predictive=False)
for name, groups in (("horseshoe", drawn), ("normal", other)):
    value, error = (float(groups.vi_stats[part].max()) for part in ("log_marginal", "log_marginal_error"))
    print(f"log evidence, {name:<9}  {value:7.2f} +- {error:.2f} nats")

# %% [markdown]
# ## In one call
#
# `ppgen.fit(horseshoe, "auto", (x, y), otherwise="sample")` asks for the verdict itself and refines a fit that is not
# to be trusted; a `budget=` in seconds is shared by all of it. `save` and `load` keep the draws as they keep a guide.

# %%
assert refused.level != "good"
assert trusted.level == "good"
assert trusted.statistics["r_hat"] < 1.01

# %% [markdown]
# ## Where it fails
#
# - A mode that no point of the guide is near has no points afterward either; the four populations then agree, and are
#   wrong together.
# - It takes many runs of the program, so with large data a guide that can be mended is the better way: write the
#   program in another form first.
# - Discrete latents have to be summed out, and branches in a program are not for Hamiltonian steps.
#
# ## Exercises
#
# 1. With a half-Cauchy local scale $\lambda$, a coefficient with unit noise is shrunk by
#    $\kappa = 1 / (1 + \lambda^2)$. Show that $\kappa$ has the distribution Beta(1/2, 1/2), and check its quantiles: it
#    is near 0 or near 1.
# 2. Take $q = N(0, 1)$ and $p = 3 \cdot N(1, 0.5^2)$ (not normalized). Its $\pi_t$ are normal. Draw from each of ten of
#    them and check that the product of mean weights is 3.
# 3. For $q = N(0, \sigma^2)$ and $p = N(0, 1)$, as in tutorial 3, check with `importance_summary` that k-hat of
#    $(p / q)^{0.5}$ is about half that of $p / q$.
#
# [Solutions](../../tutorials/solutions/19_refused_fit.py), which are tested.
