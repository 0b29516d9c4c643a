# %% [markdown]
# # What does the decoder's covariance buy, and how sure is the number?
#
# A variational autoencoder is a distribution $p(x) = \int p(x \mid z) p(z) dz$, so two of them can be compared by a
# number: the log evidence $\log p(x)$ of images held out. The number is an estimate, and has errors of more than one
# kind. Here the VAE is first written by hand, as a Pyro program; then four ready-made ones, which differ in the
# covariance of $p(x \mid z)$, are compared by it.

# %%
from functools import partial

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from torch import nn

import ppgen
from ppgen import data, recipes
from ppgen.models import VAE, mean

torch.set_num_threads(1)  # networks as small as these gain nothing from more
digits = data.load("digits")
train, test = torch.as_tensor(digits.train.x), torch.as_tensor(digits.test.x)
print(digits)

# %% [markdown]
# The digits are dequantized: level $j$ of 17 became $(j + u) / 17$ with $u$ uniform on $[0, 1)$, so that a density
# can describe them. Densities may exceed one, and log evidence may be positive: higher is better, the unit is nats.
#
# ## The evidence bound
#
# Let $q(z \mid x)$ be any distribution of codes. Since $p(x) = p(x, z) / p(z \mid x)$ for every $z$,
#
# $$\begin{aligned}
# \log p(x) &= E_q \log \frac{p(x, z)}{p(z \mid x)}
#            = E_q \log \frac{p(x, z)}{q(z \mid x)} + E_q \log \frac{q(z \mid x)}{p(z \mid x)} \\
#           &= \mathrm{ELBO}(x) + \mathrm{KL}(q(z \mid x), p(z \mid x)).
# \end{aligned}$$
#
# The KL divergence is never negative: by Jensen's inequality, $-E_q \log (p / q) \ge -\log E_q (p / q) = -\log 1 = 0$,
# with equality only if $p = q$. So the ELBO is a lower bound of the log evidence, and the gap is the divergence of the
# guide from the posterior. To raise the ELBO in the guide is to bring the guide closer to the posterior; to raise it in
# the model is to raise the evidence, or to make a posterior that this guide can follow. Written the other way,
#
# $$\mathrm{ELBO}(x) = \underbrace{E_q \log p(x \mid z)}_{\text{minus the reconstruction error}}
#   - \underbrace{\mathrm{KL}(q(z \mid x), p(z))}_{\text{the rate}}.$$
#
# With a guide $N(m, \mathrm{diag}(s^2))$ and the prior $N(0, I)$ the rate is a sum over dimensions of
# $E_q [-\log s - \frac{(z - m)^2}{2 s^2} + \frac{z^2}{2}]$, and since $E_q (z - m)^2 = s^2$ and $E_q z^2 = m^2 + s^2$,
#
# $$\mathrm{KL} = \frac12 \sum_j \left(m_j^2 + s_j^2 - 1 - \log s_j^2\right).$$
#
# The gradient passes through the draw, because $z = m + s\, e$ with $e \sim N(0, I)$ has the right distribution and is
# a differentiable function of $m$ and $s$: $\nabla E_q f(z) = E_e \nabla f(m + s\, e)$.
#
# ## By hand
#
# The model draws $z \sim N(0, I)$ and $x \sim N(\mu(z), \mathrm{diag}(\sigma^2(z)))$; the guide draws $z$ from a
# normal distribution whose mean and standard deviations the encoder makes of $x$. The plate is called "data": the
# terms of a loss are averages over the plate of that name.


# %%
class Normals(nn.Module):
    """A network from vectors to the mean and the standard deviation of each output."""

    def __init__(self, inputs: int, outputs: int, start: float):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(inputs, 128), nn.SiLU(), nn.Linear(128, 2 * outputs))
        self.start = start  # of the standard deviation

    def forward(self, value):
        loc, raw = self.layers(value).chunk(2, -1)
        return loc, 0.01 + self.start * nn.functional.softplus(raw + 0.54)  # softplus(0.54) is about 1


torch.manual_seed(0)
decoder, encoder = Normals(8, 64, 0.2), Normals(64, 8, 1.0)


def model(x):
    pyro.module("decoder", decoder)
    with pyro.plate("data", x.shape[0]):
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([8]).to_event(1))
        pyro.sample("x", dist.Normal(*decoder(z)).to_event(1), obs=x)


def guide(x):
    pyro.module("encoder", encoder)
    with pyro.plate("data", x.shape[0]):
        pyro.sample("z", dist.Normal(*encoder(x)).to_event(1))


EPOCHS = 80
settings = {
    "epochs": EPOCHS,
    "batch_size": 128,
    "optim": partial(torch.optim.Adam, lr=5e-3),
    "lr_scheduler": partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=EPOCHS * -(-len(train) // 128)),
}
fit = ppgen.fit(model, guide, train.flatten(1), loss=ppgen.ELBO(), **settings)

# %% [markdown]
# `ELBO()` is the negative evidence lower bound (ELBO), which splits into the reconstruction error and the rate, the
# KL divergence of the code from the prior. A breakdown runs the programs once, so it scatters from run to run.

# %%
held = test[:200]
parts = ppgen.Reconstruction() + ppgen.Rate()
torch.manual_seed(1)
runs = [fit.breakdown(held.flatten(1)) | parts.breakdown(model, guide, held.flatten(1)) for _ in range(20)]
for term in runs[0]:
    values = torch.tensor([run[term] for run in runs])
    print(f"{term:>14} {values.mean():7.2f} ± {values.std():.2f} nats (standard deviation of one run)")

idata = fit.to_arviz(held.flatten(1), draws=500, predictive=False)
by_hand = idata.vi_stats.log_marginal.values[0]
error = by_hand.std() / 200**0.5
print(f"  log evidence {by_hand.mean():7.2f} ± {error:.2f} nats (k = 500, standard error over images)")

# %% [markdown]
# ## Ready-made, with four covariances
#
# `VAE` is the same pair with options. All four start from a standard deviation of 0.2 a pixel; `fixed` keeps it,
# `scalar` learns one number, `diagonal` one a pixel as a function of $z$, `low_rank` adds four directions, also
# functions of $z$, in which pixels vary together. (`full` exists too, and takes the most time.)
#
# The evidence is estimated by importance sampling with $k$ draws of the guide (Burda et al. 2016),
# $L_k = \log \frac1k \sum_j w_j$ with $w_j = p(x, z_j) / q(z_j \mid x)$. Each weight has mean $p(x)$, since
# $\int q \cdot p / q = p(x)$, so by Jensen's inequality $E L_k \le \log E \frac1k \sum_j w_j = \log p(x)$. At $k = 1$
# it is the ELBO. It rises with $k$: a mean of $k$ weights is the mean of its own means over all subsets of $k - 1$ of
# them, and Jensen's inequality, now for that outer mean, gives $E L_k \ge E L_{k - 1}$. Each estimate is repeated eight
# times.

# %%
ks, repeats = (1, 10, 100, 500), 8
models, evidence = {}, {}
for name in ("fixed", "scalar", "diagonal", "low_rank"):
    torch.manual_seed(0)
    vae = VAE(digits.event_shape, latent_dim=8, network="dense", hidden=(128,), covariance=name, scale=0.2)
    fit = ppgen.fit(vae.model, vae.guide, train, loss=recipes.vae(), **settings)
    torch.manual_seed(1)
    estimates = [torch.stack([vae.log_evidence(held, particles=k) for _ in range(repeats)]) for k in ks]
    models[name], evidence[name] = vae, torch.stack(estimates)  # (k, repeat, image)
    seen = vae.log_evidence(train[:200], particles=500).mean()
    row = "  ".join(f"{e.mean():6.2f} ± {e.mean(-1).std():.2f}" for e in estimates)
    print(f"{name:>8}   {row}   training images {seen:6.2f}")
print("   k = " + "".join(f"{k:>15}" for k in ks) + "   (± standard deviation over repeats)")

# %% [markdown]
# Three things can be wrong with the last column of a row:
#
# - its Monte Carlo error, after the ±, which is small because it is averaged over images;
# - its bias, downwards, of which the step from $k = 100$ to $k = 500$ gives an idea: it is larger than the ±, so
#   repeating the estimate does not show it;
# - the choice of images, which is the largest of the three. Models are compared on the same images, so it is the
#   error of the difference that counts, image by image:

# %%
final = {name: e[-1].mean(0) for name, e in evidence.items()}
for name, per_image in final.items():
    difference = per_image - final["diagonal"]
    print(
        f"{name:>8}  {per_image.mean():6.2f} ± {per_image.std() / 200**0.5:.2f}"
        f"   minus diagonal {difference.mean():7.2f} ± {difference.std() / 200**0.5:.2f}   (standard error over images)"
    )

# %% [markdown]
# From `fixed` to `scalar` to `diagonal` the gains dwarf every error. The picture below shows where they come from:
# its last column is the standard deviation of each pixel about its mean. The outer columns of a digit are nearly
# always empty, and only `diagonal` and `low_rank` can say so. The draws of `low_rank` are the smoothest: where the
# others add grains, it adds strokes, noise in which pixels vary together.
#
# From `diagonal` to `low_rank` the difference is of the order of its error, and one error is still missing: that of
# training once, from one seed. So these data do not say which of the two is better. They do say that `low_rank` is
# far ahead on the images it was trained on; most of that does not carry over.

# %%
figure = plt.figure(figsize=(9.5, 7.5), layout="constrained")
grid = figure.add_gridspec(2, 2, height_ratios=(1, 1.5))
levels, gaps = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[0, 1])
for name, e in evidence.items():
    over_images, over_repeats = e.mean(1).std(-1) / 200**0.5, e.mean(-1).std(-1)
    style = {"marker": "o", "markersize": 3, "capsize": 3, "label": name}
    levels.errorbar(ks, e.mean((1, 2)), over_images, **style)
    gaps.errorbar(ks, e.mean((1, 2)) - e[-1].mean(), over_repeats, **style)
levels.set(xscale="log", xlabel="k", ylabel="nats per image")
levels.set_title("log evidence ± standard error over images", fontsize=10)
gaps.set(xscale="log", xlabel="k")
gaps.set_title("minus its value at k = 500 ± sd over repeats", fontsize=10)
levels.legend(loc="center right")

torch.manual_seed(2)
rows = {"data": torch.cat([held[:10], torch.ones(2, 1, 8, 8)])}
for name, vae in models.items():
    codes = vae.prior(1000).sample()
    noise = vae.decode(codes).sample() - mean(vae.decode(codes))
    rows[name] = torch.cat([vae.sample(10), torch.ones(1, 1, 8, 8), noise.std(0, keepdim=True) / 0.4])
tiles = nn.functional.pad(torch.stack(list(rows.values()))[:, :, 0], (0, 1, 0, 1), value=1.0)
draws = figure.add_subplot(grid[1, :])
draws.imshow(tiles.transpose(1, 2).flatten(0, 1).flatten(1), cmap="gray", vmin=0, vmax=1)
draws.set(xticks=[], yticks=[9 * i + 4 for i in range(len(rows))], yticklabels=rows)
draws.set_title(
    "data and draws x ~ p(x | z), z ~ N(0, I); last column: sd of a pixel given z, white is 0.4", fontsize=10
)
draws.tick_params(length=0)
draws.spines[:].set_visible(False)
figure

# %% [markdown]
# ## Where it fails
#
# - The guide is normal in each dimension. Where the posterior is not, the gap $\mathrm{KL}(q, p)$ stays, and the model
#   avoids posteriors that the guide cannot follow: the evidence can be higher than training by the bound finds.
# - A density that is learned without a lower limit of its standard deviation has no upper bound: it can give one pixel
#   that is always zero any density. Dequantization, and the 0.01 above, prevent that.
# - Draws contain the noise of each pixel, which no image has. `mean=True` leaves it out.
# - With few draws the estimate of the evidence is too low, and most for images whose posterior the guide misses.
#
# ## Exercises
#
# 1. Take $z \sim N(0, 1)$ and $x \sim N(z, \sigma^2)$, and a guide $N(m, s^2)$. Write down $\log p(x)$, the ELBO, and
#    the posterior, and check that the gap is $\mathrm{KL}(q, p(z \mid x))$, zero at the posterior.
# 2. In the same program, with a guide that is too narrow, check that $E L_k$ rises with $k$ toward $\log p(x)$, and
#    that the missing part at large $k$ is about $\mathrm{Var}(w) / (2 k\, p(x)^2)$.
# 3. For a decoder whose means are fixed, show that the best single variance for all pixels is the mean squared error.
#
# [Solutions](../../tutorials/solutions/02_vae.py), which are tested.
