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
# would leave one in thirty of them (`ess_ratio`).

# %%
fit = ppgen.fit(horseshoe, "auto", (x, y))
refused = fit.diagnose(x, y)
print(refused)

# %% [markdown]
# ## A sampler that starts from the guide
#
# `refine` takes four populations of points from the guide to the posterior in steps: each applies a small part of the
# importance weights, and then moves the points by Hamiltonian Monte Carlo (Del Moral et al. 2006). The moves are made
# in the coordinates of the flow, where the posterior is far rounder than in its own. They end when R-hat and effective
# sample sizes are good. Populations know nothing of each other's points, so each is a chain.

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
