# %% [markdown]
# # What can the lower half be? A diffusion as the prior of a Pyro program
#
# A diffusion that has learned images is a distribution $p(x)$ like any other. A Pyro program can take it for its
# prior and say what is seen of an image; the posterior is then drawn by the same sampler, its denoiser guided by the
# program. No network is trained for the question that is asked, and the next question is another program.

# %%
import time
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import torch

import ppgen
from ppgen import data
from ppgen.losses.diffusion_elbo import DiffusionELBO
from ppgen.models import Diffusion

torch.set_num_threads(1)  # networks as small as these gain nothing from more
torch.manual_seed(0)

digits = data.load("digits", form="unit", validation=0.0, test=0.2)
x, held = (2 * torch.as_tensor(part.x) - 1 for part in (digits.train, digits.test))
print(tuple(x.shape), "to learn from,", len(held), "held out, values from", float(x.min()), "to", float(x.max()))

# %% [markdown]
# ## The prior
#
# A U-Net that sees digits of 8 x 8 pixels under noise of all levels and learns their mean $D(z) = E[x | z]$.

# %%
model = Diffusion((1, 8, 8), hidden=(16, 32), sigma_data=0.75, steps=None)
began = time.perf_counter()
ppgen.fit(
    model.model,
    model.guide,
    x,
    loss=DiffusionELBO("edm"),
    ema=0.999,
    batch_size=64,
    steps=1200,
    optim=partial(torch.optim.Adam, lr=4e-3),
    lr_scheduler="cosine",
    compile=False,
)
print(f"{time.perf_counter() - began:.0f} s")


def show(rows, titles):
    """Rows of images; NaN is shown in blue."""
    tones = plt.get_cmap("gray").with_extremes(bad="#3b5b8c")
    _, axes = plt.subplots(len(rows), 1, figsize=(0.62 * len(rows[0]) + 1, 0.7 * len(rows)), layout="constrained")
    for axis, images, title in zip(np.atleast_1d(axes), rows, titles, strict=True):
        axis.imshow(
            np.concatenate([np.pad(image[0], 1, constant_values=1) for image in images], 1), tones, vmin=-1, vmax=1
        )
        axis.set(xticks=[], yticks=[])
        axis.set_ylabel(title, rotation=0, ha="right", va="center")
    plt.show()


show([x[:12].numpy(), model.sample(12).numpy()], ["data", "draws"])

# %% [markdown]
# ## Half an image
#
# The program says what is seen: the four upper lines, with an error of 0.1. `condition` makes a posterior of it. In
# each step of a draw it needs $E[x \mid z, y]$ in the place of $E[x \mid z] = D(z)$. Two formulas give that.
#
# **What noisy data say.** With $z = a x + s e$, $p(x \mid z)$ is proportional to
# $p(x) \exp(-a^2 |x|^2 / 2 s^2)\, \exp(x \cdot \eta)$ with $\eta = a z / s^2$: an exponential family in $\eta$. Its log
# normalizer $A(\eta)$ has the mean for its gradient and the covariance for its second derivative, so the covariance is
# the derivative of the mean,
#
# $$V = \mathrm{Cov}[x \mid z] = \frac{dD}{d\eta} = \frac{s^2}{a} \frac{dD}{dz},$$
#
# which the denoiser's derivative gives.
#
# **What the program adds.** Take $p(x \mid z)$ for $N(D, V)$, and linearize the program at $D$:
# $y = A x + \text{noise}$ of covariance $S$. Then $x$ and $y$ are jointly normal, with covariance $V A^\top$ between
# them and $S + A V A^\top$ of $y$. The residual $x - D - K (y - A D)$ is uncorrelated with $y$, hence independent of
# it, if $V A^\top = K (S + A V A^\top)$. So the mean given $y$ is
#
# $$D + V A^\top (S + A V A^\top)^{-1} (y - A(D))$$
#
# (Rozet et al. 2024), solved within a few directions (a Krylov space). For a normal prior and a linear program that
# is exact; of digits it is an approximation, which is checked below.

# %%
seen = held[:6, :, :4]


def half(x):
    pyro.sample("y", dist.Normal(x[..., :4, :], 0.1).to_event(3), obs=seen.repeat_interleave(8, 0))


draws = model.condition(half).sample(6 * 8).unflatten(0, (6, 8))
hidden = held.clone()
hidden[:, :, 4:] = torch.nan
spread = 2 * draws.std(1) - 1  # black where all draws agree, white at a deviation of one
rows = [
    torch.cat([torch.stack([hidden[i], held[i]]), draws[i], draws[i].mean(0)[None], spread[i][None]]).numpy()
    for i in range(6)
]
show(rows, [f"{i}" for i in range(6)])

# %% [markdown]
# From left to right: what is seen, the truth, eight draws, their mean and their spread. The draws keep to what is
# seen and go on as digits do: where an upper half may be of several, so are they; where it is of one, they differ
# along its edges.
#
# ## Is the spread right?
#
# If the posterior is right, the truth is one more draw. Its difference from the mean of $k$ draws then has the variance
# $\sigma^2 + \sigma^2 / k$, so its distance is on average $\sqrt{1 + 1/k}$ times their standard deviation. And all
# orders of the $k + 1$ are equally probable, so the truth is the least or the greatest in $2 / (k + 1)$ of all cases.
# Digits held out, and the pixels of their lower halves that ever vary:

# %%
n, k = 60, 8
wide = held[:n].repeat_interleave(k, 0)


def halves(x):
    pyro.sample("y", dist.Normal(x[..., :4, :], 0.1).to_event(3), obs=wide[:, :, :4])


free = model.sample(n * k)
guide_trace = model.condition(halves).sample(n * k)
varied = x[:, :, 4:].std(0) > 0.2
print(f"lines that are seen: off by {float((guide_trace - wide)[:, :, :4].square().mean() ** 0.5):.3f}")
for name, drawn in (("prior", free), ("posterior", guide_trace)):
    lower, truth = drawn[:, :, 4:].unflatten(0, (n, k)), held[:n, :, 4:]
    off = (lower.mean(1) - truth)[:, varied].square().mean() ** 0.5
    std = (lower.var(1)[:, varied].mean() * (1 + 1 / k)) ** 0.5
    outer = ((lower > truth[:, None]).all(1) | (lower < truth[:, None]).all(1))[:, varied].float().mean()
    print(f"{name:9}: off by {float(off):.3f}, expected {float(std):.3f}; outermost {float(outer):.0%}, expected 22%")

# %% [markdown]
# What is seen is met within its error, and the draws know much more of the lower half than the prior does. Their
# spread errs on the wide side: a network trained for two minutes has a blurred idea of digits, and the posterior
# inherits it.
#
# ## Another question
#
# The same prior, and a program of its own: two digits are seen only as their sum. Here the diffusion's distribution
# is a site of the program, of two rows at once, and `condition` is told its name.

# %%
two = held[[0, 7]]


def mixed():
    x = pyro.sample("x", model.distribution().expand([2]))
    pyro.sample("sum", dist.Normal(x.sum(-4), 0.1).to_event(3), obs=two.sum(0))


pairs = model.condition(mixed, site="x").sample(5, steps=36)
show(
    [
        torch.cat([two.sum(0, keepdim=True) / 2, two[:1], pairs[:, 0]]).numpy(),
        torch.cat([torch.full_like(two[:1], torch.nan), two[1:], pairs[:, 1]]).numpy(),
    ],
    ["sum, first", "second"],
)

# %% [markdown]
# A column is one draw of both, the truth first. Nothing tells which of the two comes first, so some draws have them
# the other way round.
#
# ## Where it fails
#
# - The Gaussian approximation of $p(x \mid z)$ is wrong where an image may be of two kinds, and at high noise it always
#   may.
# - Programs that are far from linear, or that see a digit in two ways at once, get draws of one way more often than
#   right.
# - The posterior is as good as the prior: check its spread on held-out data, as above.
#
# ## Exercises
#
# 1. Let $x$ be $-1$ or $1$. Check $\mathrm{Cov}[x \mid z] = (s^2 / a)\, dD/dz$ for $D(z) = \tanh(a z / s^2)$.
# 2. Check the formula of the conditional mean for random $V$, $A$, $S$ against the form with precisions,
#    $(V^{-1} + A^\top S^{-1} A)^{-1} (V^{-1} D + A^\top S^{-1} y)$.
# 3. Simulate: with $k = 8$ draws and a truth from the same distribution, how often is the truth the least or the
#    greatest? And if the draws are too narrow by a factor of two?
#
# [Solutions](../../tutorials/solutions/15_diffusion_prior.py), which are tested.
