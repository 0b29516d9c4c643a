# %% [markdown]
# # From a data frame to plots with names
#
# A regression usually starts from a data frame: columns with names, groups that are written as text, a cell that is
# missing. A program that takes the columns by name needs no arrays in between, and its posterior, plots and predictions
# have the names of the frame. The data are the weights of 30 rats on five days (Gelfand et al. 1990), the standard
# example of growth curves that differ among individuals.

# %%
import io
import tempfile
from pathlib import Path

import arviz as az
import matplotlib.pyplot as plt
import pandas as pd
import pyro
import pyro.distributions as dist
import torch

import ppgen

torch.set_num_threads(1)

# %% [markdown]
# ## The frame
#
# The table is wide: a line for each rat, a column for each day. One weight was lost, here that of the ninth rat on the
# last day. A long table, with one row for each weight, is what a program can take: text makes groups, and a row without
# a weight is dropped, since it says nothing.

# %%
CSV = """8,15,22,29,36
151,199,246,283,320\n145,199,249,293,354\n147,214,263,312,328\n155,200,237,272,297\n135,188,230,280,323
159,210,252,298,331\n141,189,231,275,305\n159,201,248,297,338\n177,236,285,350,\n134,182,220,260,296
160,208,261,313,352\n143,188,220,273,314\n154,200,244,289,325\n171,221,270,326,358\n163,216,242,281,312
160,207,248,288,324\n142,187,234,280,316\n156,203,243,283,317\n157,212,259,307,336\n152,203,246,286,321
154,205,253,298,334\n139,190,225,267,302\n146,191,229,272,302\n157,211,250,285,323\n132,185,237,286,331
160,207,257,303,345\n169,216,261,295,333\n157,205,248,289,316\n137,180,219,258,291\n153,200,244,286,324
"""
wide = pd.read_csv(io.StringIO(CSV))
wide.insert(0, "rat", [f"rat {i:02d}" for i in range(1, 31)])
frame = wide.melt("rat", var_name="day", value_name="weight").astype({"day": float})
rows = frame.dropna()
rows.sort_values("rat").head()

# %% [markdown]
# ## A program of columns
#
# The arguments of the program are columns. "day" and "weight" have numbers and come as floats. "rat" has text and comes
# as codes 0, 1, .., which index the latents of the rats; `num_rat` is the number of rats, the size of their plate. The
# default of the response is None, so that new rows need not have it.
#
# Rat $r$ has the weight $a_r + b_r (t - 22)$ on day $t$, up to noise with the standard deviation $\sigma$, and
# $a_r \sim N(\mu_a, \tau_a^2)$, $b_r \sim N(\mu_b, \tau_b^2)$.


# %%
def growth(rat, day, num_rat, weight=None):
    level = pyro.sample("level", dist.Normal(240.0, 50.0))
    gain = pyro.sample("gain", dist.Normal(6.0, 3.0))
    spread = pyro.sample("spread", dist.HalfNormal(torch.tensor([20.0, 1.0])).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfNormal(10.0))
    with pyro.plate("rat", num_rat):
        a = pyro.sample("a", dist.Normal(level, spread[..., 0]))
        b = pyro.sample("b", dist.Normal(gain, spread[..., 1]))
    with pyro.plate("data", len(day)):
        pyro.sample("weight", dist.Normal(a[rat] + b[rat] * (day - 22), sigma), obs=weight)


fit = ppgen.fit(growth, "auto", rows, restarts=1)
print(fit.diagnose(starts=1))

# %% [markdown]
# ## Plots with names
#
# `fit.to_arviz()` draws the posterior on the frame of the fit. The plate "rat" has the name of a column, so it has the
# names of the rats; the plate "data" has the index of the frame. Other dimensions get names as in ArviZ, by `dims` and
# `coords`.

# %%
idata = fit.to_arviz(predictive=False, dims={"spread": ["of"]}, coords={"of": ["level", "gain"]})
print(az.summary(idata, var_names=["level", "gain", "spread", "sigma"], kind="stats"))
idata.posterior["a"].sel(rat=["rat 04", "rat 09"]).mean(("chain", "draw")).to_series()

# %% [markdown]
# The classic analysis has a gain of 6.19 ± 0.11 a day, and $\sigma$ of 6.1, with wider priors and the lost weight in
# its place.

# %% The daily gain of each rat
assert abs(float(idata.posterior["gain"].mean()) - 6.19) < 0.1
assert abs(float(idata.posterior["sigma"].mean()) - 6.1) < 0.4
gains = idata.posterior["b"].quantile([0.05, 0.5, 0.95], dim=("chain", "draw"))
gains = gains.sortby(gains.sel(quantile=0.5))
figure, axis = plt.subplots(figsize=(6, 5), constrained_layout=True)
axis.hlines(gains["rat"], *gains.sel(quantile=[0.05, 0.95]), color="#9aa3af")
axis.plot(gains.sel(quantile=0.5), gains["rat"], "o", markersize=3)
axis.axvline(float(idata.posterior["gain"].mean()), color="gray", linewidth=1)
axis.tick_params(axis="y", labelsize=7)
axis.set_xlabel("grams a day, intervals of 90 %")
figure

# %% [markdown]
# ## Predictions are a frame
#
# What was the lost weight? `fit.predict` takes a frame, and returns draws as a frame: a row for each draw and row.

# %%
lost = frame[frame["weight"].isna()]
draws = fit.predict(lost, draws=2000)
print(draws.head(3))
draws["weight"].groupby("row").quantile([0.05, 0.5, 0.95]).round(1)

# %% [markdown]
# The experiment has the weight in its records: 376 grams. Next, a rat that nobody has weighed. By default a category
# that the fit did not have is an error which names it and its row; with `new_groups="draw"` the latents of the new rat
# come from the population, $N(\mu_a, \tau_a^2)$ and $N(\mu_b, \tau_b^2)$, at each draw of these.

# %%
low, high = draws["weight"].quantile([0.005, 0.995])
assert low < 376 < high
new = pd.DataFrame({"rat": ["rat 04", "rat 31"], "day": 36.0})
try:
    fit.predict(new)
except ValueError as error:
    print(str(error)[:130], "...")
spread = fit.predict(new, draws=2000, new_groups="draw")["weight"].unstack("row").quantile([0.05, 0.95]).T.round(1)
spread.set_index(new["rat"])

# %% [markdown]
# A saved fit keeps the columns, so that new frames can be predicted without the data of the fit.

# %%
path = Path(tempfile.mkdtemp()) / "growth.safetensors"
fit.save(path)
again = ppgen.Fit.load(path, growth, "auto")
assert again.predict(lost, draws=10).equals(fit.predict(lost, draws=10))

# %% [markdown]
# ## In scikit-learn
#
# `ppgen.sklearn.Regressor` makes an estimator of the same program, for cross-validation and pipelines. A category in
# pandas knows all rats, so that one whose weights are all held out is still a rat of the fit, with the prior of its
# curve.

# %%
from sklearn.model_selection import train_test_split

from ppgen.sklearn import Regressor

known = rows.astype({"rat": "category"})
train, test = train_test_split(known, test_size=0.3, random_state=0)
estimator = Regressor(growth, response="weight", restarts=1, draws=100).fit(train[["rat", "day"]], train["weight"])
interval = estimator.predict_interval(test[["rat", "day"]], level=0.9)
inside = ((interval[:, 0] < test["weight"]) & (test["weight"] < interval[:, 1])).mean()
r2 = estimator.score(test[["rat", "day"]], test["weight"])
print(f"R² of {len(test)} weights: {r2:.3f}; in their intervals of 90 %: {inside:.0%}")
assert r2 > 0.95

# %% [markdown]
# ## Where it fails
#
# - A category is a code. A program that computes with it as if it were a number gets an order that nobody meant;
#   nothing notices.
# - New groups are drawn as if the new rat were one more of the same population. Groups whose latents are not in a plate
#   of `num_rat` entries cannot be extended, and are refused.
# - A row whose covariate is missing has to be dropped or filled, or the program has to give the covariate a
#   distribution. A missing response may stay if the program masks it.
# - Dates are refused: which unit and which origin they have is a choice that the program depends on.
#
# ## Exercises
#
# 1. With known $\mu$, $\tau$, $\sigma$ and one number a group, the posterior mean of group $r$ moves toward $\mu$.
#    Fit such a program to a frame, and check it against the formula.
# 2. Permute the rows and the columns of a frame, and the order of the categories. Show that the posterior mean of each
#    group by name stays the same.
# 3. Predict a new group, and show that its variance is that of the population plus that of the noise, while that of a
#    group with many rows is close to that of the noise alone.
#
# [Solutions](../../tutorials/solutions/22_regression_from_a_frame.py), which are tested.
