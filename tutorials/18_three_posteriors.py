# %% [markdown]
# # Three programs, from raw data to ArviZ
#
# A classification on raw covariates, a hierarchy, and a mixture of which each datum belongs to an unknown part. Each
# time the same four lines: write the program, `fit(model, "auto", data)`, `diagnose`, `to_arviz`. The hierarchy fails
# at first, and the verdict says what to do; the mixture has as many posterior modes as its parts have orders.

# %%
import arviz as az
import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from sklearn.datasets import load_breast_cancer, load_iris

import ppgen
from ppgen.diagnostics import predictive_check

torch.set_num_threads(1)  # programs as small as these gain nothing from more

# %% [markdown]
# ## A classification
#
# 569 tumours, benign or not, by four measurements as they come: from fractions of a unit (smoothness) to more than
# two thousand (area).

# %%
table = load_breast_cancer()
names = ["mean texture", "mean area", "mean smoothness", "mean concavity"]
columns = [list(table.feature_names).index(name) for name in names]
x, benign = torch.as_tensor(table.data[:, columns]), torch.as_tensor(table.target).double()
dict(zip(names, x.std(0).numpy().round(3).tolist(), strict=True))


# %%
def classification(x, benign):
    intercept = pyro.sample("intercept", dist.Normal(0.0, 100.0))
    slopes = pyro.sample("slopes", dist.Normal(0.0, 100.0).expand([4]).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("benign", dist.Bernoulli(logits=intercept + x @ slopes), obs=benign)


fit = ppgen.fit(classification, "auto", (x, benign))
tumours = fit.diagnose(x, benign)
print(tumours)

# %%
idata = fit.to_arviz(x, benign, dims={"slopes": ["measurement"]}, coords={"measurement": names}, chunk=250)
az.summary(idata, kind="stats")

# %% [markdown]
# Slopes are in units of their columns, so a forest of them would show the smallest column alone. Times the columns'
# deviations they can be laid side by side.

# %%
slopes = idata.posterior["slopes"].values.reshape(-1, 4) * x.std(0).numpy()
az.plot_forest({name: slopes[None, :, i] for i, name in enumerate(names)}, combined=True)
plt.tight_layout()

# %% [markdown]
# ## A hierarchy
#
# Eight schools, an estimated effect of coaching in each, and its standard error (Rubin 1981). How alike the effects
# are, `tau`, is learned as well.

# %%
effect = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0], dtype=torch.float64)
error = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0], dtype=torch.float64)


def centered(effect):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", 8):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("effect", dist.Normal(theta, error), obs=effect)


first = ppgen.fit(centered, "auto", effect)
doubted = first.diagnose(effect)
print(doubted)

# %% [markdown]
# Where `tau` is small, all effects have to be near `mu`, so that a narrow neck joins a wide body: no guide of finite
# size follows it to its end. The advice is another form of the program, of the same distribution: each effect by its
# distance from `mu` in units of `tau`.
#
# That it is the same follows from a change of variables. With $\theta_i = \mu + \tau \eta_i$ the Jacobian in $\eta_i$
# is $\tau$, and $N(\theta_i;\, \mu, \tau)\, \tau = N(\eta_i;\, 0, 1)$: prior and posterior of all quantities are
# unchanged. What changes is the shape in the coordinates of the latents. Given $\tau$, the posterior of $\theta_i$
# narrows like $\tau$, while that of $\eta_i$ tends to its prior. With much data in each group it is the other way
# round: data determine $\theta_i$, and then $\eta_i = (\theta_i - \mu) / \tau$ moves with $\mu$ and $\tau$.


# %%
def schools(effect):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", 8):
        distance = pyro.sample("distance", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * distance)
        pyro.sample("effect", dist.Normal(theta, error), obs=effect)


second = ppgen.fit(schools, "auto", effect)
believed = second.diagnose(effect)
print(believed)

# %%
letters = list("ABCDEFGH")
taught = second.to_arviz(effect, draws=2000, coords={"schools": letters}, chunk=500)
az.plot_forest(taught.posterior_resampled[["mu", "tau", "theta"]], combined=True)
plt.tight_layout()

# %% [markdown]
# The posterior of the published reference draws has `mu` 4.4 (deviation 3.3) and `tau` 3.6 (3.2).

# %%
found = taught.posterior_resampled
for name in ("mu", "tau"):
    print(f"{name}: {float(found[name].mean()):.2f} ({float(found[name].std()):.2f})")

# %% [markdown]
# ## A mixture
#
# Petals of 150 irises by their length alone. Which part a flower belongs to is a discrete latent: it is summed out
# while the rest is found, and drawn from its own posterior after. The sum is $\log p(x) = \log \sum_k w_k\, p_k(x)$,
# and its derivative in $\log w_k$, with the weights taken as free, is $r_k = w_k p_k(x) / \sum_j w_j p_j(x)$: the
# probability that the flower belongs to part $k$. Nothing in the program says which part is the first. A permutation of
# the parts changes neither prior nor likelihood, so $K$ parts have $K!$ modes of the same mass.

# %%
length = torch.as_tensor(load_iris().data[:, 2])


def parts(length):
    share = pyro.sample("share", dist.Dirichlet(2 * torch.ones(2)))
    center = pyro.sample("center", dist.Normal(4.0, 3.0).expand([2]).to_event(1))
    width = pyro.sample("width", dist.LogNormal(-1.0, 1.0).expand([2]).to_event(1))
    with pyro.plate("data", len(length)):
        part = pyro.sample("part", dist.Categorical(share))
        pyro.sample("length", dist.Normal(center[part], width[part]), obs=length)


swapping = ppgen.fit(parts, "auto", length)
print(swapping.metadata["auto"])
print(swapping.diagnose(length))

# %% [markdown]
# Restarts found the parts in both orders, and the guide mixes the two modes: a true answer to the question asked, and
# of little use, since `center[0]` is either. Ordering the centers asks the question that was meant.


# %%
def ordered(length):
    share = pyro.sample("share", dist.Dirichlet(2 * torch.ones(2)))
    low = pyro.sample("low", dist.Normal(4.0, 3.0))
    gap = pyro.sample("gap", dist.LogNormal(0.0, 1.0))
    width = pyro.sample("width", dist.LogNormal(-1.0, 1.0).expand([2]).to_event(1))
    with pyro.plate("data", len(length)):
        part = pyro.sample("part", dist.Categorical(share))
        pyro.sample("length", dist.Normal(low + gap * part, width[part]), obs=length)


single = ppgen.fit(ordered, "auto", length)
petals = single.diagnose(length)
print(petals)

# %%
irises = single.to_arviz(length, chunk=250)
az.summary(irises, var_names=["low", "gap", "width", "share"], kind="stats")

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2))
both = swapping.to_arviz(length, draws=1000, predictive=False, chunk=250).posterior["center"].values.reshape(-1, 2)
left.plot(*both.T, ".", ms=2)
left.set(xlabel="center[0]", ylabel="center[1]", title="without an order")
share = irises.posterior["part"].mean(("chain", "draw"))
right.plot(length, share, ".")
right.set(xlabel="length, cm", ylabel="probability of the upper part", title="with one")
fig.tight_layout()

# %% [markdown]
# Whether data as these could have come from the program: how extreme their standard deviation and their median are
# among those of posterior predictive draws.

# %%
print(predictive_check(irises, statistics={"deviation": np.std, "median": np.median}))

# %%
assert tumours.level in ("good", "usable with weights")
assert doubted.level == "not to be trusted"
assert believed.level in ("good", "usable with weights")
assert petals.level in ("good", "usable with weights")
assert swapping.metadata["auto"] == "mixture of Gaussians"
assert 0.2 < (both[:, 0] < both[:, 1]).mean() < 0.8

# %% [markdown]
# ## Where it fails
#
# - A mixture with several parts has $K!$ modes, and restarts that are too few find some of them. An order removes the
#   copies, but not modes in which two parts share one cluster.
# - The non-centered form is the worse one where groups have much data.
# - Summing out is exact for a few values. Many discrete latents that depend on each other need another method.
#
# ## Exercises
#
# 1. For a mixture of three parts, check by autograd that the derivative of $\log p(x)$ in the log weights is the
#    probability of each part.
# 2. For eight schools, check that both forms have the same joint density at random points, up to the Jacobian $\tau^8$,
#    in logarithms $8 \log \tau$.
# 3. Show that the density of a mixture is unchanged by a permutation of its parts, and that two chains that settled on
#    different orders have an R-hat far above one for `center[0]`, and near one for the smallest center.
#
# [Solutions](../../tutorials/solutions/18_three_posteriors.py), which are tested.
