# %% [markdown]
# # A table with 20,000 groups
#
# Shops, schools, patients, users: many tables have a few rows for each of many groups. A hierarchical model gives each
# group parameters of its own and learns from all groups how much these differ. With two parameters in each of 20,000
# groups the posterior has 40,004 dimensions. This tutorial goes from such a table, in a CSV file, to draws for ArviZ in
# about two minutes.

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch

import ppgen

torch.set_num_threads(1)

# %% [markdown]
# ## The table
#
# Daily sales of one article in 20,000 shops on five days each, some of which had a discount. The numbers are simulated,
# so that we know what is true: each shop has its own level and its own response to a discount.

# %%
rng = np.random.default_rng(0)
SHOPS, DAYS = 20_000, 5
shop = np.repeat(np.arange(SHOPS), DAYS)
level = rng.normal(1.0, 0.5, SHOPS)
response = rng.normal(0.4, 0.2, SHOPS)
discount = rng.uniform(0, 1, len(shop)).round(2)
sales = rng.poisson(np.exp(level[shop] + response[shop] * discount))
path = Path(tempfile.mkdtemp()) / "sales.csv"
pd.DataFrame({"shop": shop, "discount": discount, "sales": sales}).to_csv(path, index=False)

table = pd.read_csv(path)
table.head()

# %% [markdown]
# ## The program
#
# The plate "shops" declares that shops are independent given the four numbers $\phi$ above it. So the integral over all
# latents is a product of small ones,
#
# $$p(y \mid \phi) = \prod_j \int p(\theta_j \mid \phi)\, p(y_j \mid \theta_j, \phi)\, d\theta_j,$$
#
# and that is all that `guide="auto"` needs: it computes each of them by quadrature around the mode of its integrand,
# and looks for the posterior of the four numbers alone. Their density takes half a second at a point, since all shops
# have a part in it. So it is computed at some tens of points, and interpolated between them.

# %%
index = torch.tensor(table["shop"].values)
x, y = (torch.tensor(table[name].values, dtype=torch.float64) for name in ("discount", "sales"))


def model(index, x, y):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    spread = pyro.sample("spread", dist.HalfNormal(1.0).expand([2]).to_event(1))
    with pyro.plate("shops", int(index.max()) + 1):
        effect = pyro.sample("effect", dist.Normal(mean, spread).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Poisson((effect[index, 0] + effect[index, 1] * x).exp()), obs=y)


fit = ppgen.fit(model, "auto", (index, x, y), restarts=1)
print(fit.metadata["auto"], fit.metadata["rows"])

# %% [markdown]
# `subset` is the number of points. `error` is the standard deviation, in nats, of the interpolated log p around its
# exact value, over draws of the posterior. The verdict judges it with the rest.

# %%
print(fit.diagnose(index, x, y, starts=1))

# %% [markdown]
# ## All latents, for ArviZ
#
# Draws of the four numbers come with draws of the parameters of each shop given them.

# %%
idata = fit.to_arviz(index, x, y, draws=100, predictive=False)
effect = idata.posterior["effect"].isel(chain=fit.best)
for name, true in (("mean", (1.0, 0.4)), ("spread", (0.5, 0.2))):
    draws = idata.posterior[name].isel(chain=fit.best).values
    print(name, draws.mean(0).round(3), "+-", draws.std(0).round(3), "true", true)
effect.sizes

# %% [markdown]
# A shop with few sales tells little, so its estimate moves toward that of all shops. For a mean $\bar y$ of $n$ sales
# with noise $\sigma$, and levels that vary among shops by $\tau$ about $\mu$, precisions add up: the posterior mean is
# $\kappa \mu + (1 - \kappa) \bar y$ with $\kappa = \frac{\sigma^2 / n}{\sigma^2 / n + \tau^2}$. Intervals of 90 % have
# the true level of about 90 % of the shops.

# %%
low, high = np.quantile(effect[..., 0], [0.05, 0.95], axis=0)
covered = ((low < level) & (level < high)).mean()
print(f"covered: {covered:.1%}")
assert 0.86 < covered < 0.94

alone = np.log(table.groupby("shop")["sales"].mean().clip(lower=0.1)) - 0.4 * table.groupby("shop")["discount"].mean()
figure, axis = plt.subplots(figsize=(5, 4), constrained_layout=True)
some = slice(None, None, 20)
axis.scatter(level[some], alone[some], s=4, alpha=0.5, label="each shop alone")
axis.scatter(level[some], effect[..., 0].mean("draw")[some], s=4, alpha=0.5, label="posterior mean")
axis.plot([-1, 3], [-1, 3], color="gray", linewidth=1)
axis.set_xlabel("true level")
axis.set_ylabel("estimate")
axis.legend(frameon=False)
figure

# %% [markdown]
# ## Where it fails
#
# - Latents of the groups are integrated out if each group has a few of them. Groups of groups, and latents that are
#   shared in other ways than by plates, go the slower way of a guide over all.
# - Quadrature around a mode presumes one mode for each group.
# - The interpolation is for few shared numbers, and `error` says how far it can be relied on.
#
# ## Exercises
#
# 1. For one group with $\theta \sim N(\mu, \tau^2)$ and $n$ normal sales, check the integral by Gauss-Hermite
#    quadrature against the density of a normal mean.
# 2. Draw levels and sales of 20,000 groups, and check that $\kappa \mu + (1 - \kappa) \bar y$ has a smaller squared
#    error than $\bar y$ and than $\mu$, and which one it is: $(1 - \kappa)\, \sigma^2 / n$.
# 3. Show that intervals of 90 % from the posterior of each group have the true level of 90 % of groups on average, and
#    that intervals of groups with an extreme level have it less often.
#
# [Solutions](../../tutorials/solutions/20_many_groups.py), which are tested.
