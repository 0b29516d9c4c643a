# %% [markdown]
# # A simulator inverted by a flow
#
# Some models are easy to run and hard to score: a simulator draws data from parameters, and nobody can write down how
# probable given data are. Here such a simulator is a Pyro program, and a flow learns from its draws to give the
# posterior of any data. Whether it does is then asked, and not taken for granted: by simulation-based calibration.

# %%
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import nn

import ppgen
from ppgen.diagnostics import sbc

torch.set_num_threads(1)  # programs as small as these gain nothing from more

# %% [markdown]
# ## An epidemic
#
# 500 people, of whom three are infected. Each day everybody who is well is infected with probability
# $1 - e^{-\beta I / 500}$, and each of the $I$ infected recovers with probability $\gamma$. What is seen are the new
# cases of 40 days, of which about half are reported. The likelihood of the reports is a sum over all courses
# that the epidemic may have taken.
#
# `Implicit` makes a distribution of code: rows of parameters in, rows of data out. The rest is a model of one datum;
# priors may be bounded.


# %%
DAYS, PEOPLE = 40, 500.0


def epidemic(parameters):
    beta, gamma = parameters.unbind(-1)
    infected = torch.full_like(beta, 3.0)
    well, reports = PEOPLE - infected, []
    for _ in range(DAYS):
        new = torch.binomial(well, -torch.expm1(-beta * infected / PEOPLE))
        recovered = torch.binomial(infected, gamma)
        well, infected = well - new, infected + new - recovered
        reports.append(torch.binomial(new, torch.full_like(new, 0.5)))
    return torch.stack(reports, -1)


def model(reports=None):
    beta = pyro.sample("beta", dist.Uniform(0.1, 1.5))
    gamma = pyro.sample("gamma", dist.Uniform(0.05, 0.5))
    parameters = torch.stack([beta, gamma], -1)
    pyro.sample("reports", ppgen.Implicit(epidemic, parameters, event_shape=(DAYS,)), obs=reports)


simulator = ppgen.Simulator(model)
table = simulator.draw(10_000, seed=0)
print({name: tuple(part.shape) for name, part in table._asdict().items()})

# %% [markdown]
# ## Learning to invert it
#
# `Simulator` is the program of many simulations, in a plate of rows, so that guides, losses and `fit` take it as any
# other. `AutoFlow(..., amortized="reports")` is a flow over both parameters, mapped to the real line, whose context
# is a function of a row of reports: the `encoder`, an embedding network, here of the logarithms of the counts.
#
# `Sleep()` is the mean of $-\log q(\beta, \gamma \mid x)$ over simulations. With $\theta = (\beta, \gamma)$ and the
# joint distribution $p(\theta, x) = p(x)\, p(\theta \mid x)$ of prior and simulator,
#
# $$E_{p(\theta, x)} [-\log q(\theta \mid x)] = E_{p(x)}\, \mathrm{KL}\big(p(\theta \mid x), q(\theta \mid x)\big)
#   + E_{p(x)}\, \mathrm{H}[p(\theta \mid x)].$$
#
# The entropy does not depend on $q$. So the loss is least where $q$ is the posterior at every $x$ that the simulator
# makes, though no density of the simulator was ever computed. The KL divergence is the forward one, which
# [covers](11_kl_both_ways.md). With a table of simulations for data, `fit` draws batches of it, holds some out, and
# stops when those are no longer predicted better. Given reports alone, ``simulator.draw(256).reports``, it would
# simulate again in each step.


# %%
class Embedding(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(DAYS, 64), nn.ELU(), nn.Linear(64, 64), nn.ELU(), nn.Linear(64, width))

    def forward(self, reports):
        return self.layers(reports.log1p())


def learn(table, seed=0, **options):
    torch.manual_seed(seed)
    guide = ppgen.AutoFlow(
        simulator, amortized="reports", encoder=Embedding(), flow="nsf", layers=2, hidden=(32,), init_scale=1.0
    )
    options = {"epochs": 12, "patience": 4, "batch_size": 250, "validation": 0.1, **options}
    adam = partial(torch.optim.Adam, lr=3e-3)
    loss = ppgen.Sleep()
    return ppgen.fit(simulator, guide, table, loss=loss, optim=adam, lr_scheduler="cosine", compile=False, **options)


fit = learn(table)
print(f"{fit.chains[0].stop_reason}; held-out loss {fit.chains[0].final:.3f}, {len(fit.history['loss'])} steps")

# %% [markdown]
# ## A posterior
#
# The guide takes rows of data, so many draws for one course are one row repeated. Reports that rise and fall tell
# both parameters, along a line of nearly equal growth; where the epidemic died out at once, not much more is known
# than that few were infected for each who recovered.


# %%
def posterior(fit, reports, draws=1000):
    with torch.no_grad(), fit.eval_mode():
        return fit.guide(reports.expand(draws, DAYS))


shown = simulator.draw(200, seed=7)
rows = shown.reports.sum(-1).argsort()[[120, 0]].tolist()
figure, axes = plt.subplots(1, 4, figsize=(11, 2.8), layout="constrained")
for (left, right), row in zip(axes.reshape(2, 2), rows, strict=True):
    torch.manual_seed(0)
    draws = posterior(fit, shown.reports[row])
    left.bar(np.arange(DAYS), shown.reports[row])
    left.set(xlabel="day", title="reports", ylim=(0, max(5, float(shown.reports[row].max()))))
    right.scatter(draws["beta"], draws["gamma"], s=2, color="C1")
    right.plot(shown.beta[row], shown.gamma[row], "kx")
    right.set(xlim=(0.1, 1.5), ylim=(0.05, 0.5), xlabel="beta", ylabel="gamma", title="posterior, truth")
figure

# %% [markdown]
# ## Is it right?
#
# Draw $\theta$ from the prior and $x$ from the simulator: given $x$, that $\theta$ is a draw of the posterior. If the
# guide's 99 draws are draws of the posterior too, all 100 are alike, each order of them is equally probable, and the
# rank of the true value is uniform over 100 places. `sbc` ranks both parameters, and the distance to a random point for
# both together (TARP), with p-values that hold their level. Beside it a flow that has seen 200 simulations, for far too
# long.

# %%
calibration = sbc(simulator, fit.guide, simulations=1000, draws=99, seed=1)
print(calibration)
few = learn(simulator.draw(200, seed=2), batch_size=50, epochs=100, validation=None, patience=None)
overfitted = sbc(simulator, few.guide, simulations=1000, draws=99, seed=1)
print("\nof 200 simulations, without stopping:")
print(overfitted)

# %% [markdown]
# The shares of ranks up to each, less what is expected, are to stay within the gray band, which has all of a right
# path with probability .95. Where draws are too narrow, true values lie below or above them too often: the path is
# too high on the left and too low on the right.

# %%
figure, axes = plt.subplots(1, 4, figsize=(11, 2.8), layout="constrained", sharey=True)
for pair, (name, found) in zip(axes.reshape(2, 2), {"10,000": calibration, "200": overfitted}.items(), strict=True):
    for axis, ranks, what in zip(pair, (found.ranks, found.distances), ("ranks", "distances"), strict=True):
        path = ranks.path(0.95)
        axis.fill_between(path.expected, path.low - path.expected, path.high - path.expected, color="0.85")
        axis.plot(path.expected, path.found - path.expected[:, None], label=ranks.names)
        axis.set_title(f"{what}, {name} simulations", fontsize=10)
        axis.legend(fontsize=8)
figure

# %% [markdown]
# ## Where it fails
#
# - The guide is trained on data that the simulator makes. Real data unlike any of these get an answer too, and
#   calibration, which uses simulations, does not see it. Compare the data with prior predictive draws first.
# - Calibration holds on average over the prior. A guide that ignores the data and answers with the prior is calibrated.
# - Simulations are needed by the thousands, and more with each parameter.
#
# ## Exercises
#
# 1. For $\theta \sim N(0, 1)$ and $x \sim N(\theta, 1)$ the posterior is $N(x / 2, 1/2)$. Check that the ranks of true
#    values among 9 exact draws are uniform, and that draws from the prior have uniform ranks too.
# 2. Halve the standard deviation of the draws and show that the first and the last rank become the most frequent.
# 3. With $q(\theta \mid x) = N(a x + b, c^2)$ minimize the loss of `Sleep` over simulations (it is a regression), and
#    compare $a$, $b$, $c$ with the posterior.
#
# [Solutions](../../tutorials/solutions/17_simulator.py), which are tested.
