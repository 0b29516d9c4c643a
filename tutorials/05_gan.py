# %% [markdown]
# # What does a GAN play for, and why does it not sit still?
#
# A generator makes rows out of noise; a critic tries to tell them from data; each learns from the other. The game has
# a value, and the value has a meaning. This tutorial looks at the value where everything is known, then writes a GAN
# as a Pyro program, makes it fail, and lets the library say how.

# %%
import math
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import nn

import ppgen
from ppgen import data, nets, recipes
from ppgen import metrics as m
from ppgen.evaluation import estimate

torch.set_num_threads(1)  # networks as small as these gain nothing from more

# %% [markdown]
# ## What the value means
#
# A critic $v$ gives each row a number, and $\sigma(v(x))$ is its guess that $x$ is of the data $P$ rather than the
# generator's distribution $Q$. It raises (Goodfellow et al. 2014)
#
# $$V(v) = \log 2 + \frac12 E_P \log \sigma(v(x)) + \frac12 E_Q \log(1 - \sigma(v(y))).$$
#
# Which critic is the best? With $\sigma = \sigma(v(x))$ the value is
# $\log 2 + \frac12 \int [p \log \sigma + q \log (1 - \sigma)]\, dx$, and $\sigma$ can be chosen at each $x$ by itself.
# The derivative of the bracket is $p / \sigma - q / (1 - \sigma)$. It is zero at $\sigma = p / (p + q)$ and falls with
# $\sigma$, so that this is the maximum. It means $v = \log p - \log q$, and the value there is
#
# $$V(v^*) = \log 2 + \frac12 E_P \log \frac{p}{p + q} + \frac12 E_Q \log \frac{q}{p + q}
#   = \frac12 \mathrm{KL}\Big(P, \frac{P + Q}{2}\Big) + \frac12 \mathrm{KL}\Big(Q, \frac{P + Q}{2}\Big),$$
#
# the Jensen-Shannon divergence of $P$ and $Q$, in nats: zero for equal distributions, $\log 2 \approx 0.693$ for
# distributions that never overlap. Every other critic has less. So what a critic scores is a lower bound, and a value
# of zero says either that the distributions are equal or that the critic is no good.
#
# The generator wants the least of these largest values, $\min_G \max_v V$. Where the critic is the best for each $G$,
# the gradient in $G$ is that of the Jensen-Shannon divergence: a change of $G$ also changes the best critic, but at a
# maximum over $v$ a small change of $v$ changes nothing, so only the direct part counts. At $P = Q$ the best critic is
# constant, neither side can gain, and that is the saddle point of the game.
#
# For $P = N(0, 1)$ and $Q = N(s, 1)$ the best critic is linear, $v(x) = s^2 / 2 - s x$, and can be written down. A
# metric takes any module as its critic:


# %%
class Line(nn.Module):
    """v(x) = share (s² / 2 - s x): the best critic at share 1."""

    def __init__(self, s: float, share: float = 1.0):
        super().__init__()
        self.s, self.share = s, share

    def forward(self, x):
        return self.share * (self.s**2 / 2 - self.s * x[:, 0])


quantiles = torch.special.ndtri((torch.arange(2000) + 0.5) / 2000)[:, None]  # of N(0, 1): no sampling error
distances = (0.5, 1.0, 2.0, 4.0, 8.0)
print(f"{'critic':>20}" + "".join(f"{f's = {s:g}':>10}" for s in distances) + "   value in nats")
values = {}
for share, name in ((1.0, "the best"), (0.3, "too timid"), (3.0, "too sure of itself")):
    values[name] = [float(m.JensenShannon(Line(s, share))(quantiles, quantiles + s)) for s in distances]
    print(f"{name:>20}" + "".join(f"{value:10.3f}" for value in values[name]))

best, *others = values.values()
assert all(value < math.log(2) + 1e-6 for value in best)
assert all(value < most + 1e-4 for other in others for value, most in zip(other, best, strict=True))

# %% [markdown]
# A critic that is too sure of itself can even score below zero. That is worse than no critic at all, since giving
# every row the same number scores zero.
#
# ## To saturate or not
#
# The generator wants the value down, and the only part that it can reach is $\frac12 E_Q \log(1 - \sigma(v(y)))$.
# Where the critic is sure that a row is made up, $\sigma(v(y)) \approx 0$, this is flat: the generator learns nothing
# exactly when it has most to learn. The usual loss raises $\frac12 E_Q \log \sigma(v(y))$ instead, of the same
# direction, and steep where the other one is flat. Both gradients in $s$, under the best critic held still:


# %%
def gradient(s: float, saturating: bool) -> float:
    """d loss / ds of the generator."""
    shift = torch.tensor(s, requires_grad=True)
    loss = m.JensenShannon(Line(s), saturating=saturating)(quantiles, quantiles + shift)
    return torch.autograd.grad(loss, shift)[0].item()


shifts = np.linspace(0.1, 10, 100)
gradients = {kind: [gradient(s, kind == "saturating") for s in shifts] for kind in ("saturating", "not saturating")}
figure, axes = plt.subplots(figsize=(5, 3), layout="constrained")
for kind, line in gradients.items():
    axes.plot(shifts, line, label=kind)
axes.set(yscale="log", ylim=(1e-8, 20), xlabel="distance s of generator and data", ylabel="gradient of its loss")
axes.legend()
assert gradients["saturating"][-1] < 1e-5 < 1 < gradients["not saturating"][-1]
figure

# %% [markdown]
# `saturating=False` is the default. The number that ppgen reports is $V$ either way; only its gradient differs.
#
# ## The program
#
# The data are two moons, and to make it interesting nobody has centered them: they lie four units off the origin,
# where the generator starts. The model draws $z \sim N(0, I)$ and puts $x$ at $G(z)$, a distribution without a
# density. Nothing is inferred, so the guide is empty. The critic belongs to the loss: it is not part of the program.

# %%
moons = torch.as_tensor(data.moons(4096)[0]) + 4.0
held = torch.as_tensor(data.moons(2000, seed=1)[0]) + 4.0
generator = nets.Dense(2, 2, hidden=(64, 64))


def model(x):
    pyro.module("generator", generator)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Delta(generator(z), event_dim=1), obs=x)


def guide(x):
    pass


# %% [markdown]
# Four games, from the same weights and with the same generator's rate of 0.001. Two have a critic whose rate is far
# too high, 0.05; one of them saturates. A third has a calm critic. The fourth adds a penalty on the critic's gradient
# at data, $\frac{\gamma}{2} E_P |\nabla v|^2$ (R1, Mescheder et al. 2018).
#
# `fit` keeps the losses and gradients of both players in `adversarial_metrics`. Besides, a callback measures every 20
# steps what no player sees: the energy distance of draws from data held out.

# %%
games = {
    "fast critic, saturating": recipes.gan(hidden=(64, 64), lr=0.05, saturating=True),
    "fast critic": recipes.gan(hidden=(64, 64), lr=0.05),
    "calm critic": recipes.gan(hidden=(64, 64), lr=1e-3),
    "calm critic, R1": recipes.r1_gan(hidden=(64, 64), lr=5e-3, weight=1.0),
}
judge, probe = m.EnergyDistance(), torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
fits, distance, draws = {}, {}, {}


def watch(step, to: list) -> None:
    if step.number % 20 == 0:
        with torch.no_grad():
            to.append(float(judge(generator(probe), held[:1000])))


for name, loss in games.items():
    torch.manual_seed(0)
    generator = nets.Dense(2, 2, hidden=(64, 64))
    distance[name] = []
    fits[name] = ppgen.fit(
        model,
        guide,
        moons,
        loss=loss,
        optim=partial(torch.optim.Adam, lr=1e-3, betas=(0.5, 0.99)),
        steps=400 if "saturating" in name else 800,
        batch_size=256,
        callbacks=[partial(watch, to=distance[name])],
        compile=False,  # for so few steps
    )
    with torch.no_grad():
        draws[name] = generator(torch.randn(2000, 2))

# %% [markdown]
# ## What the library says
#
# `training_warnings` looks at the signals of a game and names what it sees, with what is known to help.

# %%
for name, fit in fits.items():
    adversarial_metrics = {
        key.split(" JensenShannon")[0]: values[-100:].mean()
        for key, values in fit.chains[0].adversarial_metrics.items()
    }
    late = ", ".join(f"{key} {value:.1e}" for key, value in adversarial_metrics.items())
    print(f"{name}: {fit.loss}\n   last 100 steps: {late}, energy distance {np.mean(distance[name][-5:]):.3f}")
    for warning in fit.training_warnings():
        print(f"   {warning}")

seen = {name: [warning.name for warning in fit.training_warnings()] for name, fit in fits.items()}
assert seen["fast critic, saturating"] == ["critic won"]
assert distance["fast critic, saturating"][-1] > 5  # the generator never got away
assert np.median(distance["calm critic, R1"][20:]) < np.median(distance["calm critic"][20:])

# %%
figure, axes = plt.subplots(2, 4, figsize=(9.5, 5), layout="constrained")
smooth = np.ones(20) / 20
for column, (name, fit) in enumerate(fits.items()):
    adversarial_metrics, upper, lower = fit.chains[0].adversarial_metrics, axes[0, column], axes[1, column]
    value = np.convolve(-adversarial_metrics["critic JensenShannon(x)"], smooth, mode="valid")
    upper.axhline(math.log(2), color="0.7", linewidth=0.8)
    upper.plot(np.arange(len(value)) + 20, value, color="C0", linewidth=1, label="critic's value V (nats)")
    upper.set(ylim=(-0.5, 0.8), xlim=(0, 800), xlabel="step")
    upper.set_title(name, fontsize=9)
    other = upper.twinx()
    other.plot(20 * np.arange(1, len(distance[name]) + 1), distance[name], "C1", linewidth=1, label="energy distance")
    other.set(yscale="log", ylim=(0.01, 20))
    lower.scatter(*held[:500].T, s=2, color="0.7")
    lower.scatter(*draws[name][:500].T, s=2, color="C1")
    lower.set(xlim=(-1, 7), ylim=(-1, 6), aspect="equal")
    if column:
        upper.set_yticklabels([])
    if column < 3:
        other.set_yticklabels([])
lines = [*upper.lines[1:], *other.lines]
figure.legend(lines, [line.get_label() for line in lines], loc="outside lower center", ncols=2, fontsize=8)
figure

# %% [markdown]
# Above, the value of the critic that plays (the gray line is $\log 2$) and the energy distance; below, data held out
# and draws at the end.
#
# - **Fast critic, saturating.** The critic wins at once: its value is $\log 2$, all that there is, and the gradient
#   of the programs is next to nothing. The generator stays where it started. `training_warnings` says so.
# - **Fast critic.** The same critic against the other loss: now the generator gets away. But a rate of 0.05 is too
#   high to follow it. Now and then the critic's value plunges below zero, where it points the wrong way, and the
#   draws leave the data until it has found them again.
# - **Calm critic.** No plunges, and yet it does not settle: the two go round each other, critic ahead, generator
#   ahead, and the draws swing across the data. This is not noise, and no small learning rate cures it: the gradient
#   of a game turns around the equilibrium rather than pointing to it.
# - **R1.** The penalty flattens the critic where the data are, and that ends the turning (Mescheder et al. 2018).
#   What is left to learn is the shape, which takes more steps than these.
#
# The last two points can be calculated in the smallest game there is (Mescheder et al. 2018). The data are one point at
# 0, the generator draws one point $\theta$, and the critic is $v(x) = \psi x$. Near the saddle point both players
# follow gradients of $\psi \theta$ (times a constant): $\dot\theta = -\psi$ and $\dot\psi = \theta$. Then
# $\theta \dot\theta + \psi \dot\psi = 0$: the distance from the saddle point never changes, and the two go round in a
# circle. Steps of length $h$ even lead outwards, since
# $(\theta - h \psi)^2 + (\psi + h \theta)^2 = (1 + h^2)(\theta^2 + \psi^2)$. The penalty $\frac{\gamma}{2} \psi^2$ adds
# $-\gamma \psi$ to the critic's gradient. The motion is then linear with the matrix
# $\begin{pmatrix} 0 & -1 \\ 1 & -\gamma \end{pmatrix}$, whose eigenvalues solve $\lambda^2 + \gamma \lambda + 1 = 0$.
# Their sum is $-\gamma$ and their product is one, so both real parts are negative: the game comes to the saddle point.
#
# In both calm games the value is about zero at the end. Do the critics say that the distributions are equal? The
# value is a lower bound by a critic that has been following a moving target. A fresh one is trained at leisure on
# draws that hold still, and judged on rows it has not seen:

# %%
fresh = m.JensenShannon(partial(nets.Critic, hidden=(64, 64)), lr=5e-3)
leisure = {name: estimate(fresh, held, draws[name], steps=250) for name in games}
for name, fit in fits.items():
    playing = -fit.chains[0].adversarial_metrics["critic JensenShannon(x)"][-100:].mean()
    print(f"{name:>23}: {playing:6.3f} nats by the critic that played, {leisure[name]:6.3f} by a fresh one")

assert all(value < math.log(2) + 1e-6 for value in leisure.values())

# %% [markdown]
# So a GAN's losses do not tell how good it is. They tell how the game goes: whether one side has won, whether it
# turns, whether it still moves. How good the draws are has to be asked of the draws, by a metric that took no part,
# and of the data that they miss ([mode drop](07_mode_drop.md)).

# %% [markdown]
# ## Where it fails
#
# - The losses do not say how good draws are, and there is no density to compare on held-out rows.
# - Kinds of data can be missing, without a trace in the losses ([mode drop](07_mode_drop.md)).
# - Where data and draws hardly overlap, the best critic has nothing to teach ([metrics](04_metrics.md)).
# - Results differ from seed to seed and with each rate, more than those of a model with a density.
#
# ## At 28 x 28 pixels
#
# With images nothing changes but the networks and the time. The garments below were drawn by a run of
#
#     ppgen train r3_gan fashion --preset images --fit.steps 6000 ...
#
# on 14,000 images of Fashion-MNIST, seven minutes of one core. That is too long for this page, which loads the run's
# folder, with the weights and a few held-out images; `tutorials/weights/train.py` has the whole command. R3GAN is the
# game of the last column above with a critic that compares pairs of a datum and a draw, and with the penalty at both.

# %%
garments = ppgen.load("weights/gan")
images = garments.run.kept.test.x[:16]
drawn = garments.sample(16, seed=1)


def tiled(x, across=8):
    """Images (n, 1, height, width) as one picture."""
    height, width = x.shape[-2:]
    return x.reshape(-1, across, height, width).swapaxes(1, 2).reshape(-1, across * width)


figure, axes = plt.subplots(2, 1, figsize=(7, 4), layout="constrained")
for ax, picture, name in zip(axes, (images, drawn), ("held out", "drawn"), strict=True):
    ax.imshow(tiled(picture), cmap="gray", vmin=0, vmax=1)
    ax.set(xticks=[], yticks=[], ylabel=name)
figure

# %% [markdown]
# What is missing? Precision asks how many draws lie among the data, recall how many data lie among draws, coverage how
# many data have a draw nearby, all in pixels, by nearest neighbors, on images that were held out. The run computed them
# when it ended:

# %%
for name in ("precision", "recall", "coverage", "labels drawn", "share of the rarest label"):
    print(f"{name:>26}: {garments.numbers[f'generated: {name}']:.2f}")

# %% [markdown]
# About three draws of four lie among the data, and nine data of ten have a draw nearby: no kind of garment is missing.
# What is missing is seen better than measured in pixels: some draws are torn, or between two garments, and the textures
# of the others are coarse. The rarest kind has 4 % of the draws, where it should have 10.
#
# The generator is a continuous function, so between two draws there are others. On a straight way from one $z$ to
# another a garment turns into the next:

# %%
ends = torch.randn(3, 2, garments.run.model.latent_dim, generator=torch.Generator().manual_seed(3))
ways = torch.cat([torch.lerp(one, other, torch.linspace(0, 1, 8)[:, None]) for one, other in ends])
figure, ax = plt.subplots(figsize=(7, 2.8), layout="constrained")
ax.imshow(tiled(garments.decode(ways)), cmap="gray", vmin=0, vmax=1)
ax.set(xticks=[], yticks=[])
figure

# %% [markdown]
# ## Exercises
#
# 1. On a grid, maximize $V$ over the values of the critic at each point for two mixtures of Gaussians, by gradient
#    ascent, and check that the result is $\log p - \log q$, and its value the Jensen-Shannon divergence.
# 2. Take steps of length $h$ in the game of two numbers above, and check that the distance from the saddle point grows
#    by $\sqrt{1 + h^2}$ a step.
# 3. Add the penalty, $\gamma = 1$, with $h = 0.1$, and check that the distance goes to zero. From which $h$ on is it
#    too long? (The eigenvalues of a step are $1 + h \lambda$.)
#
# [Solutions](../../tutorials/solutions/05_gan.py), which are tested.
