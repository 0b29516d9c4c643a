# %% [markdown]
# # How much of a posterior does a guide have? A flow as the guide of somebody's Pyro program
#
# A guide can only find posteriors of its own shape. This tutorial takes a program whose posterior is curved and in
# two pieces, gives it three of Pyro's and ppgen's guides, and asks of each how much of the posterior it has, where a
# grid knows the answer.

# %%
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from sklearn.datasets import load_diabetes

import ppgen
from ppgen import recipes

torch.set_num_threads(1)  # programs as small as these gain nothing from more

# %% [markdown]
# ## A posterior with a curve
#
# The progress of diabetes $y$ in 60 patients against their body mass index $x$ (scikit-learn's diabetes data), both
# brought to unit scale. The slope is a product of two factors, as in the smallest of factor models:
#
# $$a, b \sim N(0, 1.5), \qquad y_i \sim N(a\, b\, x_i, 0.8)$$
#
# The data know the product and nothing else, so the posterior lies along a hyperbola; and since $(-a)(-b) = ab$,
# there are two of it.

# %%
table = load_diabetes(scaled=False)
rows = np.stack([table.data[:60, 2], table.target[:60]])
x, y = torch.as_tensor((rows - rows.mean(1, keepdims=True)) / rows.std(1, keepdims=True), dtype=torch.float32)


def model(x, y):
    a, b = pyro.sample("a", dist.Normal(0.0, 1.5)), pyro.sample("b", dist.Normal(0.0, 1.5))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(a * b * x, 0.8), obs=y)


side = torch.linspace(-6, 6, 801)
a, b = torch.meshgrid(side, side, indexing="ij")
joint = dist.Normal(0.0, 1.5).log_prob(a) + dist.Normal(0.0, 1.5).log_prob(b)
for x_i, y_i in zip(x, y, strict=True):
    joint = joint + dist.Normal(a * b * x_i, 0.8).log_prob(y_i)
evidence = float(joint.double().logsumexp((0, 1)) + 2 * (side[1] - side[0]).log())
print(f"slope by least squares {float((x * y).mean()):.2f}; exact log evidence {evidence:.2f} nats")

# %% [markdown]
# ## Three guides
#
# `AutoFlow` is a guide like Pyro's own: all latents, mapped to the real line, get one distribution, here an affine
# map after a flow of splines. It starts as a Gaussian, so it is never worse than one at the start. All three minimize
# the reverse KL by `recipes.reverse_kl`: 64 draws a step, path derivatives (below). The posterior's constant is not
# needed: $\mathrm{KL}(q, p(z \mid y)) = E_q[\log q(z) - \log p(z, y)] + \log p(y) = \log p(y) - \mathrm{ELBO}$.

# %%
adam = partial(torch.optim.Adam, lr=0.01)


def learn(guide, program=model, *, steps=600, **options):
    """A guide by the reverse KL."""
    torch.manual_seed(0)
    loss = recipes.reverse_kl(particles=64, max_plate_nesting=1, **options)
    options = {"optim": adam, "lr_scheduler": "cosine", "compile": False}
    return ppgen.fit(program, guide, (x, y), loss=loss, steps=steps, **options)


def judge(name, fit):
    """Says what importance weights say of a guide; returns its draws."""
    idata = fit.to_arviz(x, y, draws=4000, chunk=2000, predictive=False)
    stats, draws = idata.vi_stats.isel(chain=0), idata.posterior.isel(chain=0)
    print(
        f"{name:22}: KL {evidence - float(stats.elbo):.2f} nats, k-hat {float(stats.pareto_k):5.2f}, "
        f"log evidence {float(stats.log_marginal):.2f}, a > 0 in {float((draws.a > 0).mean()):.0%} of draws"
    )
    return draws


flow = partial(ppgen.AutoFlow, model, layers=2, hidden=(32, 32), init_scale=1.0)
guides = {"AutoNormal": AutoNormal(model), "AutoMultivariateNormal": AutoMultivariateNormal(model), "AutoFlow": flow()}
shown = {name: judge(name, learn(guide)) for name, guide in guides.items()}

# %% [markdown]
# ## Annealing
#
# The reverse KL asks that draws lie where the posterior has mass, not that all of the mass is drawn. Once every draw
# is at one branch there is no gradient toward the other. The way out is to begin where there is only one: minimize
#
# $$E_q[\log q - t \log p - (1 - t) \log \mathrm{base}]$$
#
# with $t$ from 0 to 1. By default the base is the program's own prior, so that $t$ weighs the likelihood; another is
# a Pyro program of the same latents (`ppgen.AnnealedELBO`). Here the way takes the first 80% of the steps, slowly at
# first: as soon as the likelihood has a say, the two branches part.

# %%
annealed = learn(flow(), anneal=0.8)
shown["AutoFlow, annealed"] = judge("AutoFlow, annealed", annealed)

# %%
figure, axes = plt.subplots(1, 4, figsize=(11, 3.1), layout="constrained", sharey=True)
for axis, (name, draws) in zip(axes, shown.items(), strict=True):
    axis.contourf(side, side, joint.exp().T / joint.exp().max(), levels=[0.01, 0.1, 0.4, 1.0], cmap="Blues")
    axis.scatter(draws.a[:600], draws.b[:600], s=2, color="C1")
    axis.set(xlim=(-4, 4), ylim=(-4, 4), xlabel="a", aspect="equal")
    axis.set_title(name, fontsize=10)
axes[0].set_ylabel("b")
figure

# %% [markdown]
# - A normal guide has no curve: it covers a part of one arm.
# - The flow has one arm, whole. Its KL is about $\log 2 = 0.69$, and its weighted draws estimate an evidence that is
#   too low by as much: the other arm, which it never draws. No weight of a draw can tell: k-hat judges the draws that
#   there are. Without the grid, the sign of it is that other seeds end at the other arm.
# - From the prior, the flow follows both, and the evidence is right. How the mass is shared between them is settled
#   on the way, while there is a path across, and not precisely: the exact share is one half. Importance weights
#   correct that.
#
# ## Path derivatives
#
# With $z = T(e; \phi)$ the integrand $\log q(z; \phi) - \log p(z, y)$ depends on $\phi$ in two ways, through the draw
# and directly:
#
# $$\frac{d}{d\phi} \big[\log q(T(e; \phi); \phi) - \log p(T(e; \phi), y)\big]
#   = \underbrace{\Big(\frac{\partial T}{\partial \phi}\Big)^{\top}
#     \nabla_z \big[\log q(z; \phi) - \log p(z, y)\big]}_{\text{path}}
#   + \underbrace{\frac{\partial}{\partial \phi} \log q(z; \phi)}_{\text{score}}.$$
#
# The score is zero on average, $\int q\, \partial_\phi \log q = \int \partial_\phi q = \partial_\phi 1 = 0$, but not at
# each draw. `path_derivative=True` leaves it out (Roeder et al. 2017). What that is worth depends on how near the guide
# is: where $q$ is the posterior, $\log q - \log p$ is constant in $z$, the path part is zero at every draw, and the
# last steps have no noise. A regression whose posterior is normal, and the annealed flow; standard deviations of
# gradients of 64 draws, all parameters together.


# %%
def linear(x, y):
    level, slope = pyro.sample("level", dist.Normal(0.0, 1.5)), pyro.sample("slope", dist.Normal(0.0, 1.5))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(level + slope * x, 0.8), obs=y)


def noise(model, guide, path_derivative) -> float:
    loss = recipes.reverse_kl(particles=64, path_derivative=path_derivative, max_plate_nesting=1)
    gradients = []
    for seed in range(30):
        pyro.set_rng_seed(seed)
        guide.zero_grad()
        loss.loss_and_grads(model, guide, x, y)
        gradients.append(torch.cat([p.grad.flatten() for p in guide.parameters()]))
    return float(torch.stack(gradients).var(0).sum() ** 0.5)


normal = learn(AutoMultivariateNormal(linear), linear, steps=400)
for name, program, fit in (("regression", linear, normal), ("two arms, flow", model, annealed)):
    print(f"{name}: plain {noise(program, fit.guide, False):.4f}, by paths {noise(program, fit.guide, True):.4f}")

# %% [markdown]
# The flow is not yet the posterior at the thin ends of the arms, and there the paths are as noisy as the whole.
#
# ## Amortized
#
# Where a model has latents of its own for each row of a plate, `amortized="x"` makes the flow's context a function of
# the row: the argument of the model that has the rows is named, and new rows need no new fit. Here a row is the
# length of a vector of the plane, measured with an error of 0.2, and each posterior is a ring.


# %%
def local(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        pyro.sample("x", dist.Normal(z.norm(dim=-1), 0.2), obs=x)


torch.manual_seed(0)
radius = torch.randn(500, 2).norm(dim=-1) + 0.2 * torch.randn(500)
amortized = ppgen.AutoFlow(local, amortized="x", layers=2, hidden=(32, 32), init_scale=1.0)
loss = ppgen.ELBO(path_derivative=True)
options = {"optim": adam, "lr_scheduler": "cosine", "compile": False}
fit = ppgen.fit(local, amortized, radius, loss=loss, batch_size=128, steps=400, **options)
new = torch.tensor([0.5, 1.5, 2.5])
idata = fit.to_arviz(new, draws=2000, chunk=1000, predictive=False)
figure, axes = plt.subplots(1, 3, figsize=(8, 2.9), layout="constrained", sharey=True)
for i, (axis, r) in enumerate(zip(axes, new, strict=True)):
    z = idata.posterior.z.isel(chain=0, data=i)
    k = float(idata.vi_stats.pareto_k.isel(chain=0, data=i))
    axis.scatter(*z.values.T, s=1, color="C1")
    axis.add_patch(plt.Circle((0, 0), float(r), fill=False))
    axis.set(xlim=(-3.5, 3.5), ylim=(-3.5, 3.5), aspect="equal")
    axis.set_title(f"x = {float(r)}, k-hat {k:.2f}", fontsize=10)
figure

# %% [markdown]
# ## Where it fails
#
# - A branch that is lost is lost without a sign in the loss or in k-hat. Several starts are the only sign.
# - Annealing shares the mass among branches on the way, and not precisely; weights correct that only if all branches
#   have draws.
# - Funnels and tails much heavier than those of the base are beyond splines that end ([a refused
#   fit](19_refused_fit.md)).
# - With thousands of latents a flow over all of them is slow; plates of independent rows are better amortized.
#
# ## Exercises
#
# 1. For $q = N(\mu, \sigma^2)$ check that the score in $\mu$ and $\sigma$ has mean zero and the variances
#    $1 / \sigma^2$ and $2 / \sigma^2$.
# 2. Let the posterior be $N(1, 2^2)$ and $q$ the same. Compute gradients of 64 draws both ways, by autograd, and check
#    that the path part is zero at each draw, while the whole has the variance of the score.
# 3. Let $p$ be an equal mixture of two parts that do not overlap, and $q$ one of them. Show that weights of all draws
#    of $q$ are equal, the effective sample size is full, and the evidence too low by $\log 2$.
#
# [Solutions](../../tutorials/solutions/12_flow_guide.py), which are tested.
