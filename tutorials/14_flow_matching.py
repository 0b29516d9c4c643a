# %% [markdown]
# # How straight is the way from noise to data? Flow matching, and pairs by optimal transport
#
# A flow can be learned without ever being solved: choose a path from each row of noise to a row of data, and regress
# the velocity. Which noise goes with which data is left to us, and decides how many steps a draw takes. This tutorial
# pairs rows at random and by optimal transport, looks at the paths, and then leaves noise behind: the way may begin
# at any distribution.

# %%
from functools import partial

import matplotlib.pyplot as plt
import pyro
import pyro.poutine as poutine
import torch

import ppgen
from ppgen import data
from ppgen.metrics import Wasserstein
from ppgen.models import FlowMatching

torch.set_num_threads(1)  # programs as small as these gain nothing from more
moons = data.load("moons", size=4000, scale="none")
x = 3 * torch.as_tensor(moons.train.x, dtype=torch.float32) - 1
held_out = 3 * torch.as_tensor(moons.test.x, dtype=torch.float32) - 1

# %% [markdown]
# ## A program of velocities
#
# With data $x$ and noise $e$ the straight path and its velocity are
#
# $$z_u = (1 - u)\, x + u\, e, \qquad \frac{dz_u}{du} = e - x.$$
#
# Through one point go many paths; the flow that carries the distribution of $z_1$ to that of $z_0$ follows their mean
# velocity, $F(z, u) = E[e - x \mid z_u = z]$. Two steps show it.
#
# **The mean velocity carries the distribution.** For any smooth function $h$ that vanishes far away,
#
# $$\frac{d}{du} E\, h(z_u) = E\, \nabla h(z_u) \cdot \frac{dz_u}{du} = E\, \nabla h(z_u) \cdot F(z_u, u),$$
#
# where the second step takes the mean of the velocity given $z_u$. In terms of the density $p_u$ of $z_u$, and by
# parts, this is $\partial_u p_u + \nabla \cdot (p_u F) = 0$, the equation of a density that is carried by the velocity
# $F$. So rows that begin as $z_1$ and follow $\dot z = F(z, u)$ have at each $u$ the distribution of $z_u$, and at
# $u = 0$ that of data.
#
# **Least squares find the mean.** For any function $v$, $E |v(z_u, u) - (e - x)|^2 = E |v - F|^2 + E |F - (e - x)|^2$,
# because the mixed term has mean zero given $z_u$. The last term does not depend on $v$. It is the variance of
# velocities at a point, and zero only if paths do not cross.
#
# So the model is a regression, a Pyro program that observes velocities, and its evidence is the loss of flow matching.

# %%
torch.manual_seed(0)
make = partial(FlowMatching, (2,), hidden=(64, 64, 64), sigma_data=3.0)
site = poutine.trace(make().model).get_trace(x[:4]).nodes["velocity"]
print(f"{site['name']}: observed, {tuple(site['value'].shape)}, under {type(site['fn'].base_dist).__name__}(F, 1)")

# %% [markdown]
# ## Pairs
#
# Pairs at random give paths that cross, and where they cross, a mean velocity that follows none of them: the flow
# bends. Transport within the batch gives pairs that do not cross (Tong et al. 2024; Pooladian et al. 2023): if two
# straight paths meet at the same $u$, exchanging their ends makes the sum of squared lengths smaller, so the best pairs
# have no such meeting. The distribution of $z_0$ is the same. Were all paths apart, $F$ would be constant along each,
# and one step of Euler's method would be exact.


# %%
def train(model, rows, *, steps=1200):
    """The model with its averaged weights in place, and its last loss."""
    torch.manual_seed(0)
    fit = ppgen.fit(
        *(model.model, model.guide, rows),
        loss=ppgen.recipes.flow_matching(),
        optim=partial(torch.optim.Adam, lr=3e-3),
        steps=steps,
        batch_size=256,
        ema=0.99,
        lr_scheduler="cosine",
        progress=False,
    )
    model.eval()
    return fit.chains[0].final


flows = {coupling: make(coupling=coupling) for coupling in ("independent", "exact")}
for coupling, model in flows.items():
    print(f"{coupling:12}: loss {train(model, x):.2f} nats")

# %% [markdown]
# The loss of the second is lower, and says nothing about draws: what is left of it is how much the velocities of
# pairs vary about their mean, which random pairs do more. Draws say it, and their paths.


# %%
def relative_length(path):
    """The mean length of paths over the distance from start to end."""
    states = torch.stack(path)
    length = states.diff(dim=0).norm(dim=-1).sum(0)
    return float((length / (states[-1] - states[0]).norm(dim=-1)).mean())


distance = Wasserstein(p=2, root=True)
figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained", sharey=True)
for axis, (coupling, model) in zip(axes, flows.items(), strict=True):
    torch.manual_seed(1)
    path = model.sample(200, sampler="euler", steps=60, return_path=True)
    states = torch.stack(path)
    axis.plot(states[:, :, 0], states[:, :, 1], color="C0", alpha=0.25, linewidth=0.7)
    axis.scatter(*states[-1].T, s=6, color="C1", zorder=3)
    axis.set(title=f"{coupling}: paths {relative_length(path):.3f} times as long as straight ones", aspect="equal")
plt.show()

# %%
print("Wasserstein-2 distance of 600 draws to held-out data")
for coupling, model in flows.items():
    distances = []
    for steps in (1, 2, 5, 20):
        torch.manual_seed(1)
        distances.append(float(distance(model.sample(600, sampler="euler", steps=steps), held_out[:600])))
    print(f"{coupling:12} in 1, 2, 5, 20 steps of Euler's: {', '.join(f'{d:.2f}' for d in distances)}")
print(f"{'data':12} beside data: {float(distance(x[:600], held_out[:600])):.2f}")

# %% [markdown]
# ## Densities
#
# The flow is a distribution like any other, with an exact density by the same equation, and can stand in anybody's
# program.

# %%
for coupling, model in flows.items():
    print(f"{coupling:12}: {float(model.log_prob(held_out[:200]).mean()):.3f} nats a held-out datum")


def program():
    with pyro.plate("rows", 3):
        return pyro.sample("x", flows["exact"].distribution())


with torch.no_grad():
    print("three draws in a program:", program().numpy().round(2).tolist())

# %% [markdown]
# ## From data to data
#
# Nothing asked the base to be Gaussian. Here the way goes from eight Gaussians on a ring to the moons, the pair of
# distributions that papers compare on: the base is a tensor of rows. And with the labels of the moons known,
# transport that does not see them would give each moon a part of the base for itself, from which a draw under a label
# would not start; so both sides get labels, and a pair of two labels costs (Cheng & Schwing 2025).

# %%
angle = torch.randint(8, (4000, 1)) * torch.pi / 4
ring = torch.cat([angle.cos(), angle.sin()], -1) * 5 + 0.56 * torch.randn(4000, 2)
labels = torch.as_tensor(moons.train.y)
between = make(base=ring, num_classes=2)
train(between, (x, labels))
figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained", sharey=True)
for axis, label in zip(axes, (0, 1), strict=True):
    torch.manual_seed(1)
    path = torch.stack(between.sample(200, torch.full((200,), label), sampler="heun", steps=12, return_path=True))
    axis.plot(path[:, :, 0], path[:, :, 1], color="C0", alpha=0.25, linewidth=0.7)
    axis.scatter(*path[0].T, s=6, color="C2")
    axis.scatter(*path[-1].T, s=6, color="C1", zorder=3)
    axis.set(title=f"to moon {label}", aspect="equal")
plt.show()
for label in (0, 1):
    torch.manual_seed(2)
    draws = between.sample(500, torch.full((500,), label), sampler="heun", steps=12)
    there = held_out[torch.as_tensor(moons.test.y) == label][:400]
    print(f"moon {label}: Wasserstein-2 distance {float(distance(draws, there)):.2f}")

# %% [markdown]
# `FlowMatching(..., bridge=0.5)` puts Brownian bridges in place of straight lines, with pairs by entropic transport:
# the Schrodinger bridge. From the command line: `ppgen train ot_fm moons`, then
# `ppgen sample runs/ot_fm-moons --sampler euler --steps 2`.
#
# ## Where it fails
#
# - Transport within a batch is not transport between distributions: pairs of a batch of 128 rows still cross those of
#   other batches, the more the higher the dimension.
# - The loss is a sum of two terms, so its value says little about draws; compare draws.
# - As with diffusions, a latent is as large as a row, and an exact density takes a solver and a divergence.
#
# ## Exercises
#
# 1. Let $x \sim N(2, 0.5^2)$ and $e \sim N(0, 1)$, independent. Derive $F(z, u)$, which is linear in $z$, and compare
#    it with least squares on draws at $u = 0.3$.
# 2. Check the decomposition of the loss in the same example: the loss of $v = 0$ is $E\, F^2$ plus the variance of
#    velocities given $z_u$.
# 3. Pair the same $x$ and $e$ by transport, which on the line is by rank. Show that paths do not meet, and that one
#    step of Euler's method from $u = 1$ with the velocity $e - x$ gives draws of $x$.
#
# [Solutions](../../tutorials/solutions/14_flow_matching.py), which are tested.
