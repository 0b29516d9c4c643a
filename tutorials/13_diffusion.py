# %% [markdown]
# # What does a diffusion know about its data, and at which step does it learn it?
#
# A diffusion is a hierarchical VAE with a guide that is given rather than learned: it adds noise, step by step. So it
# has an evidence bound like any other, and the bound is a sum over steps. This tutorial writes the pair, takes its
# bound apart, trains it on one random step at a time, and then asks how many steps are worth having.

# %%
import time
from functools import partial

import matplotlib.pyplot as plt
import pyro.poutine as poutine
import torch

import ppgen
from ppgen import data
from ppgen.models import Diffusion

torch.set_num_threads(1)  # programs as small as these gain nothing from more
moons = data.load("moons", size=4000)
x = torch.as_tensor(moons.train.x, dtype=torch.float32)
held_out = torch.as_tensor(moons.test.x, dtype=torch.float32)

# %% [markdown]
# ## The pair
#
# The guide has no parameters. With rates $a_i$ of signal, falling, and $s_i$ of noise, rising,
#
# $$q(z_T \mid x) = N(a_T x, s_T^2 I), \qquad q(z_{i-1} \mid z_i, x) = N(b_i z_i + c_i x,\ g_i^2 I),$$
#
# where $b_i, c_i, g_i$ are such that every $z_i$ by itself is $N(a_i x, s_i^2 I)$. They follow from adding noise. Going
# from $z_{i-1}$ to $z_i = \alpha z_{i-1} + \text{noise}$, the signal asks for $\alpha = a_i / a_{i-1}$ and the variance
# for noise of $\tau^2 = s_i^2 - \alpha^2 s_{i-1}^2$. Given $x$ and $z_i$, the density of $z_{i-1}$ is proportional to
# the product $N(z_{i-1};\, a_{i-1} x, s_{i-1}^2)\, N(z_i;\, \alpha z_{i-1}, \tau^2)$. Precisions add up, and the mean
# is weighted by them:
#
# $$\frac{1}{g_i^2} = \frac{1}{s_{i-1}^2} + \frac{\alpha^2}{\tau^2} = \frac{s_i^2}{\tau^2 s_{i-1}^2}, \qquad
#   b_i = \frac{g_i^2 \alpha}{\tau^2} = \frac{\alpha s_{i-1}^2}{s_i^2}, \qquad
#   c_i = \frac{g_i^2 a_{i-1}}{s_{i-1}^2} = \frac{a_{i-1} \tau^2}{s_i^2}.$$
#
# The model goes the same way without knowing $x$: it begins at noise, and puts a network's guess $E[x \mid z_i]$ where
# the guide has $x$,
#
# $$p(z_T) = N(0, I), \qquad p(z_{i-1} \mid z_i) = N(b_i z_i + c_i E[x \mid z_i],\ \ldots), \qquad p(x \mid z_0).$$
#
# Both are ordinary Pyro programs, which any handler of Pyro can run.

# %%
torch.manual_seed(0)
steps = 8
ends = {"sigma_min": 0.05, "sigma_max": 20.0}  # noise over signal, first and last: eight steps cannot span more
make = partial(Diffusion, (2,), variance="learned", hidden=(64, 64), options=ends)
chain = make(steps=steps)
trace = poutine.trace(chain.guide).get_trace(x)
for name in trace.stochastic_nodes:
    if name.startswith("z_"):
        z = trace.nodes[name]["value"]
        correlation = torch.corrcoef(torch.stack([z[:, 0], x[:, 0]]))[0, 1]
        print(f"{name}: {tuple(z.shape)}, correlation with x {float(correlation):.2f}")

# %%
figure, axes = plt.subplots(1, 5, figsize=(11, 2.4), layout="constrained")
for axis, i in zip(axes, (0, 2, 4, 6, 8), strict=True):
    z = trace.nodes[f"z_{i}"]["value"]
    axis.scatter(z[:600, 0], z[:600, 1], s=2)
    axis.set(title=f"$z_{i}$", aspect="equal", xlim=(-4, 4), ylim=(-4, 4))
plt.show()

# %% [markdown]
# ## The bound, whole and by one step
#
# $$-\log p(x) \le \mathrm{KL}(q(z_T \mid x), p(z_T))
# + \sum_{i=1}^{T} E\, \mathrm{KL}\big(q(z_{i-1} \mid z_i, x), p(z_{i-1} \mid z_i)\big) - E \log p(x \mid z_0)$$
#
# This is the evidence bound of any pair. Both programs are chains that run from $z_T$ to $z_0$, so in
# $E_q \log [q(z_0, \ldots, z_T \mid x) / p(x, z_0, \ldots, z_T)]$ the factors pair up, and the mean of each logarithm
# over $z_{i-1}$, given $z_i$, is a KL divergence. Between Gaussians of one variance $g_i^2$ that is the squared
# distance of means over $2 g_i^2$. The means differ by $c_i (x - \hat x)$ with $\hat x = E[x \mid z_i]$, and with the
# formulas above
#
# $$\mathrm{KL}_i = \frac{c_i^2}{2 g_i^2} |x - \hat x|^2
#   = \frac12 \left(\frac{a_{i-1}^2}{s_{i-1}^2} - \frac{a_i^2}{s_i^2}\right) |x - \hat x|^2 :$$
#
# the loss of signal-to-noise ratio in a step, times the squared error of a guess of $x$ (Kingma et al. 2021). So a
# diffusion is trained by regression. With steps that become small the sum becomes an integral over the ratio.
#
# `ppgen.ELBO()` runs the two programs and adds it all up, $T$ runs of the network a step of training. But $z_i$ can
# be drawn without the steps before it. So one step, chosen at random and weighed by $T$, has the same mean:
# `ppgen.DiffusionELBO()`. Its number is noisier, and its price is that of one run.

# %%
whole, single = ppgen.ELBO(), ppgen.DiffusionELBO()


def estimates(loss, model, rows, repeats):
    """Mean and standard error of a loss over repeats, and the time of one."""
    model.eval()
    start = time.perf_counter()
    values = torch.tensor([loss.loss(model.model, model.guide, rows) for _ in range(repeats)])
    seconds = (time.perf_counter() - start) / repeats
    return float(values.mean()), float(values.std()) / repeats**0.5, seconds


for name, loss, repeats in (("whole", whole, 50), ("one step", single, 400)):
    mean, error, seconds = estimates(loss, chain, x[:512], repeats)
    print(f"{name:9}: {mean:.3f} +- {error:.3f} nats a datum, {1000 * seconds:.1f} ms")

# %% [markdown]
# ## Trained
#
# The steps that a batch of rows gets are spread evenly over the chain (`times="stratified"`), which takes out most of
# the noise.


# %%
def train(model, rows, loss, *, steps=1200):
    """The model, trained and with its averaged weights in place."""
    torch.manual_seed(0)
    ppgen.fit(
        *(model.model, model.guide, rows),
        loss=loss,
        optim=partial(torch.optim.Adam, lr=3e-3),
        steps=steps,
        batch_size=256,
        ema=0.995,
        lr_scheduler="cosine",
        progress=False,
    )
    return model.eval()


chain = train(chain, x, single)
mean, error, _ = estimates(whole, chain, held_out, 50)
print(f"eight steps: {mean:.3f} +- {error:.3f} nats a held-out datum")

# %% [markdown]
# ## Step by step
#
# What each step costs: how much the guide knows of $z_{i-1}$, told $x$, that the model does not. At the noisy end
# there is little to know; at the other the guess of $x$ is nearly right. What the data are is settled in between.

# %%
with torch.no_grad():
    rows = held_out.repeat(20, 1)
    costs = {}
    for i in range(1, steps + 1):
        u = torch.full((len(rows),), (i - 0.5) / steps)
        costs[i] = float(chain.rate(u, rows).mean()) / steps
    last = float(chain.ends(rows).mean())
for i, cost in costs.items():
    print(f"z_{i} to z_{i - 1}: {cost:.3f} nats")
print(f"both ends: {last:.3f}; sum {last + sum(costs.values()):.3f}")

# %% [markdown]
# The ends can be below zero: a density has no units of its own, and the last decoder is narrow.
#
# ## How many steps?
#
# The same noise, in more and smaller steps. Each reverse step is Gaussian, and the smaller it is, the nearer the
# truth is to a Gaussian: the bound rises to that of continuous time (`steps=None`), where there are no sites any
# more. The same denoiser then has a second distribution, that of an ordinary differential equation, the probability
# flow, whose density is exact (`Diffusion.distribution`). Were the denoiser perfect the two would agree; what it errs
# costs the bound more.
#
# Where does an equation without noise come from? First, the guess of $x$ is also the gradient of the log density of
# noisy data, its *score*. For $p(z) = \int N(z; a x, s^2 I)\, p(x)\, dx$,
#
# $$\nabla \log p(z) = \frac{\int \frac{a x - z}{s^2} N(z; a x, s^2 I)\, p(x)\, dx}{p(z)}
#   = \frac{a\, E[x \mid z] - z}{s^2}.$$
#
# So regression to $x$ is score matching: $E |S(z) - (a x - z) / s^2|^2$ differs from $E |S(z) - \nabla \log p(z)|^2$ by
# a constant only, because the mean of $(a x - z) / s^2$ given $z$ *is* the score. Second, let noise be added by
# $dz = f z\, dt + g\, dW$, with $f = \dot a / a$ and $g^2 = \frac{d}{dt} s^2 - 2 f s^2$. The densities then follow the
# Fokker-Planck equation
#
# $$\frac{\partial p}{\partial t} = -\nabla \cdot (f z\, p) + \frac{g^2}{2} \nabla \cdot \nabla p
#   = -\nabla \cdot \Big[\Big(f z - \frac{g^2}{2} \nabla \log p\Big)\, p\Big],$$
#
# where only $\nabla p = p \nabla \log p$ was used. The right side is also what a flow without noise does to a density,
# if its velocity is the bracket. So $\dot z = f z - \frac{g^2}{2} \nabla \log p(z)$ carries the same densities (Song et
# al. 2021), can be run in both directions, and has a change of variables: $\frac{d}{dt} \log p(z_t)$ is minus the
# divergence of the velocity.

# %%
torch.manual_seed(0)
for count in (4, 16, 64):
    model = train(make(steps=count), x, single, steps=800)
    mean, error, _ = estimates(single, model, held_out, 200)
    print(f"{count:3} steps: {-mean:.3f} +- {error:.3f} nats")
continuous = train(make(steps=None), x, single)
mean, error, _ = estimates(single, continuous, held_out, 400)
density = continuous.log_prob(held_out[:300])
print(f"continuous: {-mean:.3f} +- {error:.3f} nats; its flow's exact log density {float(density.mean()):.3f}")

# %% [markdown]
# ## Draws
#
# To draw is to run the model. But one trained denoiser serves every way back: the chain of any length, the
# deterministic ones of Song et al. (DDIM), Heun's method on the flow. The way there is straight enough that few steps
# do.

# %%
torch.manual_seed(0)
path = continuous.sample(600, sampler="heun", steps=12, return_path=True)
figure, axes = plt.subplots(1, 5, figsize=(11, 2.4), layout="constrained")
for axis, k in zip(axes, (0, 4, 7, 10, len(path) - 1), strict=True):
    axis.scatter(path[k][:, 0], path[k][:, 1], s=2, color="C1")
    axis.set(title=f"after {k} steps", aspect="equal")
plt.show()

# %%
from ppgen.metrics import SlicedWasserstein

distance = SlicedWasserstein(root=True)
for sampler in ("ancestral", "ddim", "heun", "dpm++2m"):
    distances = []
    for count in (3, 10, 30):
        torch.manual_seed(1)
        distances.append(float(distance(continuous.sample(2000, sampler=sampler, steps=count), x[:2000])))
    print(f"{sampler:10} in 3, 10, 30 steps: {', '.join(f'{d:.3f}' for d in distances)}")
torch.manual_seed(1)
print(f"{'data':10} beside data: {float(distance(x[: len(x) // 2], x[len(x) // 2 :])):.3f}")

# %% [markdown]
# ## Images of 28 x 28 pixels
#
# With a U-Net in the place of the dense network the same program draws images. This one had 14,000 images of
# Fashion-MNIST and nine minutes of one core; `tutorials/weights/train.py` has the command, one of
# `ppgen train edm fashion`, and the run folder is loaded here. First the question of this tutorial: at which level is
# what known? Below each held-out image with more and more noise stands the guess $E[x \mid z]$.

# %%
garments = ppgen.load("weights/diffusion")
images = torch.as_tensor(garments.run.kept.test.x[:2])
denoiser = garments.run.model.denoiser
v = 2 * images / 255 - 1


def tiled(x, across):
    """Images (n, 1, height, width) as one picture."""
    height, width = x.shape[-2:]
    return x.reshape(-1, across, height, width).swapaxes(1, 2).reshape(-1, across * width)


levels = garments.run.model.schedule(torch.linspace(0.15, 0.7, 8))
torch.manual_seed(0)
noise = torch.randn(8, 1, 28, 28)
rows = []
with torch.no_grad():
    for image in v:
        a, s, _ = levels.unsqueeze_like(noise)
        z = a * image + s * noise
        rows += [z / (a**2 + s**2).sqrt(), denoiser(z, levels)]
figure, ax = plt.subplots(figsize=(7, 3.7), layout="constrained")
ax.imshow(tiled(torch.cat(rows), 8), cmap="gray", vmin=-1, vmax=1)
ax.set(xticks=3.5 + 28 * torch.arange(8) + 10, yticks=[], xlabel="standard deviation of the noise, data from -1 to 1")
ax.set_xticklabels([f"{float(s):.2g}" for s in levels.noise / levels.signal])
plt.show()

# %% [markdown]
# Up to a deviation of 0.3 only the texture is in doubt. At 2 the outline is still known and the cloth is not; at 7 both
# guesses have become the same garment, and at 12 the mean of all. On the way back all of that is decided in this order,
# the kind first and the texture last. Draws with few and with more steps, from the same noise:

# %%
pictures = {"held out": garments.run.kept.test.x[:16]}
for count in (4, 18):
    pictures[f"{count} steps"] = garments.sample(16, seed=1, sampler="heun", steps=count)
figure, axes = plt.subplots(3, 1, figsize=(6.5, 5.4), layout="constrained")
for ax, (name, x) in zip(axes, pictures.items(), strict=True):
    ax.imshow(tiled(x, 8), cmap="gray", vmin=0, vmax=255)
    ax.set(xticks=[], yticks=[], ylabel=name)
plt.show()

# %% [markdown]
# Four steps, eight runs of the network, settle what is drawn and leave noise behind; eighteen clean it up. What is
# missing are small sharp things, such as laces and prints, and some shoes are none: the held-out loss was still falling
# when the time was over.
#
# Ask of a diffusion its bound, and it is a VAE with many layers; ask for draws, and it is a differential equation
# with a choice of solvers. From the command line: `ppgen train vdm moons`, then `ppgen sample runs/vdm-moons
# --sampler heun`.
#
# ## Where it fails
#
# - A draw takes many runs of a network, where a GAN or a coupling flow takes one.
# - The bound counts every level of noise by its share of the density, most of which is fine texture. Draws look better
#   if training weights the levels otherwise (`recipes.ddpm`, `recipes.edm`), and the bound is then worse.
# - There are no latents of few dimensions: $z$ is as large as $x$.
#
# ## Exercises
#
# 1. Check the formulas of $b_i, c_i, g_i$: draw $z_i$, then $z_{i-1}$ given $z_i$ and $x$, and compare mean and
#    variance of $z_{i-1}$ with $a_{i-1} x$ and $s_{i-1}^2$; and check the formula of $\mathrm{KL}_i$.
# 2. Let $x$ be $-1$ or $1$ with equal probability. Then $E[x \mid z] = \tanh(a z / s^2)$. Check the formula of the
#    score against the derivative of $\log p(z)$ by autograd.
# 3. For $x \sim N(0, 1)$, $a = 1$, $s^2 = t$, solve the probability flow backwards from draws at $t = 4$ to $t = 0$, by
#    Euler's method, and check that the variance is one.
#
# [Solutions](../../tutorials/solutions/13_diffusion.py), which are tested.
