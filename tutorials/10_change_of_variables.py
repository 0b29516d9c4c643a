# %% [markdown]
# # Change of variables, by hand
#
# A normalizing flow is a bijection $x = T(z)$ of a simple distribution of $z$. Its density is the base's, times how
# much the way back stretches:
#
# $$\log p(x) = \log p_0(z) + \log \left| \det \frac{\partial z}{\partial x} \right|, \qquad z = T^{-1}(x).$$
#
# Why? For any set $A$, the probability that $x$ is in $A$ is that of $z$ in $T^{-1}(A)$. Substituting $z = T^{-1}(x)$
# in the integral,
#
# $$P(x \in A) = \int_{T^{-1}(A)} p_0(z)\, dz
#   = \int_A p_0(T^{-1}(x)) \left| \det \frac{\partial z}{\partial x} \right| dx.$$
#
# A density whose integral over every set is right is the density. The determinant is the factor by which $T^{-1}$
# scales a small volume around $x$: probability is kept, so where volume shrinks, density grows.
#
# A determinant of $d \times d$ costs $d^3$, and a Jacobian by autograd $d$ passes. Four facts about determinants are
# all that flows use to avoid that.
#
# - **Triangular.** Expand along the first row of a lower triangular matrix: only its first entry is not zero, so
#   $\det J = J_{11} \det J'$, where $J'$ lacks the first row and column and is triangular again. So
#   $\det J = \prod_i J_{ii}$. In blocks, $\det \begin{pmatrix} A & 0 \\ C & D \end{pmatrix} = \det A \det D$; a
#   coupling has $A = I$ and $D$ diagonal.
# - **Products.** By the chain rule the Jacobian of a composition is the product of Jacobians, and determinants of
#   products multiply. So log determinants of layers add up.
# - **LU.** Elimination writes a matrix, up to an order of its rows, as $L U$ with ones on the diagonal of $L$. Its
#   determinant is then $\pm \prod_i U_{ii}$, in $d$ operations instead of $d^3$, if $L$ and $U$ are what is learned.
# - **Low rank.** $\det (I + u w^T) = 1 + w^T u$ for vectors: those orthogonal to $w$ stay as they are, and $u$ becomes
#   $(1 + w^T u)\, u$. Planar flows use this, and Sylvester flows the same for matrices.
#
# This tutorial builds triangular maps by hand: with a matrix, with a function, with a network under masks; and then it
# takes the library's.

# %%
import math
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.collections import LineCollection
from sklearn.datasets import load_wine
from torch import nn

import ppgen
from ppgen import data
from ppgen.models import FlowModel

torch.set_num_threads(1)  # networks as small as these gain nothing from more
torch.manual_seed(0)
torch.set_printoptions(precision=3, sci_mode=False)


def log_normal(z: torch.Tensor) -> torch.Tensor:
    """log N(z; 0, I), summed over the last axis."""
    return (-0.5 * z**2 - 0.5 * math.log(2 * math.pi)).sum(-1)


# %% [markdown]
# ## A triangular matrix
#
# $x = L z + b$ with $L$ lower triangular is solved from the top, one unknown after another, and $\log |\det \partial
# z / \partial x| = -\sum_i \log |l_{ii}|$. The distribution is a Gaussian of covariance $L L^T$, and every Gaussian
# is one of these (Cholesky), so that there is something to check against.

# %%
L = torch.tensor([[1.5, 0.0], [1.2, 0.5]])
b = torch.tensor([1.0, -1.0])
x = torch.randn(5, 2) @ L.T + b
z = torch.linalg.solve_triangular(L, (x - b).T, upper=False).T
by_hand = log_normal(z) - L.diagonal().log().sum()
known = torch.distributions.MultivariateNormal(b, scale_tril=L).log_prob(x)
print("by hand:", by_hand)
print("known:  ", known)
assert torch.allclose(by_hand, known, atol=1e-5)

# %% [markdown]
# ## A triangular function
#
# The matrix may depend on $x$, as long as the order stays: coordinate $i$ is moved and stretched by functions of
# those before it. This is one autoregressive layer,
#
# $$z_i = x_i \, e^{s_i(x_{<i})} + m_i(x_{<i}), \qquad
#   \frac{\partial z_i}{\partial x_j} = 0 \text{ for } j > i, \qquad
#   \log \left| \det \frac{\partial z}{\partial x} \right| = \sum_i s_i(x_{<i}).$$
#
# From $x$ to $z$ is one pass, all coordinates at once. The way back has to find $x_1$ before it can know $s_2$ and
# $m_2$.


# %%
def s_and_m(first: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What x_1 does to x_2: any functions will do."""
    return torch.sin(first), -(first**2) + 1


def pull_back(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """z and log |det dz/dx|."""
    s, m = s_and_m(x[..., 0])
    return torch.stack([x[..., 0], x[..., 1] * s.exp() + m], -1), s


def push_forward(z: torch.Tensor) -> torch.Tensor:
    """x, one coordinate after the other."""
    s, m = s_and_m(z[..., 0])
    return torch.stack([z[..., 0], (z[..., 1] - m) * (-s).exp()], -1)


x = push_forward(torch.randn(3, 2))
z, log_det = pull_back(x)
jacobian = torch.func.vmap(torch.func.jacrev(lambda row: pull_back(row)[0]))(x)
print("a Jacobian, by autograd:")
print(jacobian[0])
print("log |det|, by autograd:", torch.linalg.slogdet(jacobian).logabsdet)
print("sum of the diagonal's: ", log_det)
assert torch.allclose(push_forward(z), x, atol=1e-5)
assert torch.allclose(torch.linalg.slogdet(jacobian).logabsdet, log_det, atol=1e-5)

# %% [markdown]
# A grid shows what such maps do. Where its lines come close, volume is lost and density gained. The matrix shears and
# stretches alike everywhere; the function bends, but only up and down, since the first coordinate stays; and a second
# layer, with the coordinates the other way round, bends the other way. The Jacobian of a composition is the product
# of Jacobians, so log determinants add up.


# %%
def grid(reach: float = 2.5, lines: int = 21, points: int = 101) -> torch.Tensor:
    """Lines of a grid, (2 * lines, points, 2): half of them each way."""
    across, along = torch.linspace(-reach, reach, lines), torch.linspace(-reach, reach, points)
    upright = torch.stack(torch.meshgrid(across, along, indexing="ij"), -1)
    return torch.cat([upright.flip(-1), upright])


def draw(axis, lines: torch.Tensor, points: torch.Tensor, title: str, reach: float) -> None:
    for half, color in zip(lines.detach().chunk(2), ("C0", "C1"), strict=True):
        axis.add_collection(LineCollection(list(half.numpy()), colors=color, linewidths=0.6))
    axis.scatter(*points.detach().T, s=2, color="black", zorder=2)
    axis.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", title=title)


def two_layers(z: torch.Tensor) -> torch.Tensor:
    return push_forward(push_forward(z).flip(-1) * 0.6).flip(-1)


dots = torch.randn(400, 2)
maps = {
    "base": lambda z: z,
    "a matrix": lambda z: z @ L.T,
    "a function": push_forward,
    "two functions": two_layers,
}
figure, axes = plt.subplots(1, 4, figsize=(10, 2.8), layout="constrained")
for axis, (title, T) in zip(axes, maps.items(), strict=True):
    draw(axis, T(grid()), T(dots), title, 5.0)
figure

# %% [markdown]
# ## Masks that make a network triangular
#
# For $d$ coordinates one wants all $s_i(x_{<i})$ and $m_i(x_{<i})$ from one network, in one pass (MADE, Germain et
# al. 2015). Give each unit a number: input $i$ has number $i$, hidden units have numbers from 1 to $d - 1$, outputs
# $i$. A weight is kept where information flows upward: into a hidden unit from numbers up to its own, into output $i$
# from numbers *below* $i$. The product of the masks is then strictly lower triangular: output $i$ has no path from
# $x_i$ or what comes after.


# %%
class Masked(nn.Linear):
    """A linear layer of which a mask keeps some weights."""

    def __init__(self, mask: torch.Tensor) -> None:
        super().__init__(mask.shape[1], mask.shape[0])
        self.register_buffer("mask", mask.float())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.mask * self.weight, self.bias)


class Autoregression(nn.Module):
    """z_i = x_i exp(s_i(x_<i)) + m_i(x_<i), both of one masked network."""

    def __init__(self, d: int, hidden: int = 64) -> None:
        super().__init__()
        inputs, units = torch.arange(1, d + 1), torch.arange(hidden) % (d - 1) + 1
        into = units[:, None] >= inputs
        out = inputs[:, None] > units
        self.paths = out.int() @ into.int()  # how many lead from an input to an output
        self.network = nn.Sequential(Masked(into), nn.SiLU(), Masked(torch.cat([out, out])))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        s, m = self.network(x).chunk(2, -1)
        return x * s.exp() + m, s.sum(-1)

    def inverse(self, z: torch.Tensor) -> torch.Tensor:
        """As many passes as coordinates, each of which finds one more."""
        x = torch.zeros_like(z)
        for _ in range(z.shape[-1]):
            s, m = self.network(x).chunk(2, -1)
            x = (z - m) * (-s).exp()
        return x


layer = Autoregression(4)
print("paths from inputs (columns) to outputs (rows):")
print(layer.paths)
x = torch.randn(4)
jacobian = torch.func.jacrev(lambda row: layer(row)[0])(x)
print("the Jacobian of z, by autograd:")
print(jacobian)
assert torch.equal(jacobian, jacobian.tril())
assert torch.allclose(jacobian.diagonal().log().sum(), layer(x)[1], atol=1e-5)
assert torch.allclose(layer.inverse(layer(x)[0]), x, atol=1e-4)

# %% [markdown]
# That is one layer of a masked autoregressive flow (Papamakarios et al. 2017). Several of them, the order turned
# round in between, trained by the log density itself, are what the library calls `maf`:

# %%
moons, _ = data.moons(4096)
rows = torch.as_tensor(moons).float()
layers = nn.ModuleList(Autoregression(2) for _ in range(4))


def log_prob(x: torch.Tensor) -> torch.Tensor:
    total = torch.zeros(len(x))
    for layer in layers:
        x, log_det = layer(x.flip(-1))
        total = total + log_det
    return log_normal(x) + total


adam = torch.optim.Adam(layers.parameters(), 3e-3)
for _ in range(1000):
    loss = -log_prob(rows[torch.randint(len(rows), (256,))]).mean()
    adam.zero_grad()
    loss.backward()
    adam.step()
held = torch.as_tensor(data.moons(2000, seed=1)[0]).float()
print(f"four layers by hand: {log_prob(held).mean():.3f} nats a row of held-out moons")

# %% [markdown]
# ## The library's
#
# `FlowModel` is a Pyro program around any flow of `ppgen.flows`, and `ELBO()` is minus its log density. Splines in
# the place of $x e^s + m$ (`nsf`) bend more with as many layers.

# %%
fits = {}
for name in ("maf", "nsf"):
    torch.manual_seed(0)
    fits[name] = model = FlowModel((2,), flow=name)
    optim = partial(torch.optim.Adam, lr=3e-3)
    options = {"steps": 600, "batch_size": 256, "compile": False, "progress": False}
    ppgen.fit(model.model, model.guide, rows, loss=ppgen.ELBO(), optim=optim, lr_scheduler="cosine", **options)
    print(f"{name}: {model.log_prob(held).mean():.3f} nats a row")

# %% [markdown]
# The grid of the base, carried through the four maps of `nsf` one after another, and the density that comes out:

# %%
distribution = fits["nsf"].distribution()
lines, points = grid(), torch.randn(400, 2)
steps = [(lines, points)]
with torch.no_grad():
    for transform in reversed(distribution.flow.maps(None).transforms):  # they lead from data to base
        steps.append(tuple(transform.inv(part) for part in steps[-1]))
    side = torch.linspace(-2, 3, 120)
    density = distribution.log_prob(torch.stack(torch.meshgrid(side, side, indexing="xy"), -1)).exp()
figure, axes = plt.subplots(2, 3, figsize=(8.5, 5.6), layout="constrained")
for k, (axis, step) in enumerate(zip(axes.flat, steps, strict=False)):
    draw(axis, *step, f"after map {k} of 4" if k else "base", 3.0)
axes.flat[5].imshow(density, origin="lower", extent=(-2, 3, -2, 3), cmap="Blues")
axes.flat[5].set(title="density", aspect="equal", xlim=(-1.8, 2.8), ylim=(-1.8, 2.8))
figure

# %% [markdown]
# ## A real table
#
# Thirteen measurements of 178 wines, by their standard scores. A linear flow is a Gaussian by maximum likelihood; a
# nonlinear one has more freedom, and 100 rows to learn from. Training stops where the validation says so.

# %%
wine = load_wine()
table = (wine.data - wine.data.mean(0)) / wine.data.std(0)
order = np.random.default_rng(0).permutation(len(table))
train, validation, test = (torch.as_tensor(table[part]).float() for part in np.split(order, [100, 130]))
for name, options in (("lu_linear", {}), ("maf", {"layers": 2, "hidden": (32,)})):
    torch.manual_seed(0)
    model = FlowModel((13,), flow=name, whiten=False, **options)
    stop = {"validation": validation, "patience": 20, "epochs": 300, "compile": False, "progress": False}
    ppgen.fit(model.model, model.guide, train, loss=ppgen.ELBO(), optim=optim, batch_size=50, **stop)
    fitted, held_out = model.log_prob(train).mean(), model.log_prob(test).mean()
    print(f"{name:>9}: {fitted:6.2f} nats a row of those fitted, {held_out:6.2f} of those held out")

# %% [markdown]
# The freedom pays on the rows that were fitted, and costs on those that were not: a density has no ceiling, and a
# table this small cannot hold a flow down. Compare on held-out rows, with a Gaussian beside it.
#
# ## Images of 28 x 28 pixels
#
# An image has 784 coordinates, and a triangular map in one order of all of them knows nothing of neighbors. A flow of
# images (Glow, Kingma & Dhariwal 2018) splits channels instead: 2 x 2 pixels become four channels, one half of the
# channels is moved and stretched by a convolutional network of the other half, a 1 x 1 convolution mixes them, and so
# on; the Jacobian of a coupling is triangular again. This one had 14,000 images of Fashion-MNIST and four minutes of
# one core; `tutorials/weights/train.py` has the command, one of `ppgen train glow fashion`, and its folder is loaded
# here. Gray levels from 0 to 255 get uniform noise, so that there is a density.

# %%
garments = ppgen.load("weights/flow")
images = garments.run.kept.test.x[:16]
name = "held-out bits per dimension"
print(f"{name}: {garments.numbers[name][0]:.2f} of the 8 that uniform gray levels have")


def tiled(x, across=8):
    """Images (n, 1, height, width) as one picture."""
    height, width = x.shape[-2:]
    return x.reshape(-1, across, height, width).swapaxes(1, 2).reshape(-1, across * width)


glow, images = garments.run.model, torch.as_tensor(images)
z, _ = glow.pull_back(images)
with torch.no_grad():
    drawn = {f"{t:g} z": glow.distribution().transform(t * torch.randn(16, 1, 28, 28)) for t in (1.0, 0.7)}
panels = {"held out": images, "held out, pulled back": z, **drawn}
figure, axes = plt.subplots(2, 2, figsize=(9, 3.2), layout="constrained")
for ax, (title, x) in zip(axes.flat, panels.items(), strict=True):
    ax.imshow(tiled(x), cmap="gray", vmin=-3 if x is z else 0, vmax=3 if x is z else 255)
    ax.set(xticks=[], yticks=[], title=title)
figure

# %% [markdown]
# Pulled back, images look like noise, as they should; a few dots in rows are left of them. Pushed forward, noise
# does not look like garments, but like cloth: parts fit their neighbors, and the whole is none. Both belong to one
# density of four bits a pixel. Most bits are spent on fine texture, so that is what likelihood teaches first; which
# garment it is, is worth three bits of 3000. Less noise (0.7 z) gives calmer draws, not better ones.
#
# The map is a bijection, so there is a way between any two images: pull both back, go straight from one $z$ to the
# other, push forward.

# %%
with torch.no_grad():
    ways = torch.cat([torch.lerp(z[i], z[i + 1], torch.linspace(0, 1, 8)[:, None, None, None]) for i in (0, 2, 4)])
    between = glow.distribution().transform(ways)
figure, ax = plt.subplots(figsize=(7, 2.8), layout="constrained")
ax.imshow(tiled(between), cmap="gray", vmin=0, vmax=255)
ax.set(xticks=[], yticks=[])
figure

# %% [markdown]
# On the command line, `ppgen train nsf moons` and `ppgen train maf wine.csv` do the same and leave a report behind:
# the density beside the data, the grid through all maps, the log determinants, and whether data pulled back follow
# the base, which is the next tutorial's subject.
#
# ## Where it fails
#
# - A flow has as many latents as there are columns, so it cannot find a few factors, and a table with columns that
#   follow from others has no density.
# - A continuous bijection keeps the topology: from one Gaussian it cannot make two separate clusters, and a thin bridge
#   of density joins them.
# - Autoregressive maps are quick in one direction only.
# - On few rows a flow fits the sample. Keep a held-out part and a Gaussian beside it.
#
# ## Exercises
#
# 1. Compose an LU-linear map and an autoregressive affine one, and check that the sum of their log determinants is the
#    log determinant of the Jacobian by autograd.
# 2. Check the three other facts on random matrices: the triangular and the block rule, LU with `torch.linalg.lu`, and
#    $\det (I + u w^T) = 1 + w^T u$.
# 3. Let $x = \sinh z$ with $z \sim N(0, 1)$. Write down $\log p(x)$ and check on a grid that it integrates to one, and
#    that the share of draws below 2 is what it says.
#
# [Solutions](../../tutorials/solutions/10_change_of_variables.py), which are tested.
