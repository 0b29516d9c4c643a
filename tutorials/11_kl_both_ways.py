# %% [markdown]
# # KL both ways, in both spaces
#
# The Kullback-Leibler divergence has a direction. With $p$ the distribution of the data and $q$ the model,
#
# $$\mathrm{KL}(p, q) = E_p \log \frac{p}{q} \quad \text{(forward)}, \qquad
#   \mathrm{KL}(q, p) = E_q \log \frac{q}{p} \quad \text{(reverse)}.$$
#
# Forward is infinite where $q$ leaves out what $p$ has; reverse is infinite where $q$ has what $p$ leaves out. A
# model that can be $p$ itself does not care. One that is too small must choose, and the direction chooses for it.
# Here the data have two modes and the model is a Gaussian, written as a flow of one map, $x = \mu + \sigma z$.

# %%
from functools import partial

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch

import ppgen
from ppgen import recipes
from ppgen.evaluation import base_space_test
from ppgen.flows import maf
from ppgen.models import FlowModel

torch.set_num_threads(1)  # networks as small as these gain nothing from more
torch.manual_seed(0)

parts = dist.Normal(torch.tensor([-2.0, 2.0]), torch.tensor([0.5, 0.5]))
p = dist.MixtureSameFamily(dist.Categorical(torch.tensor([0.5, 0.5])), parts)
data = p.sample((4000, 1))
grid = torch.linspace(-12, 12, 24001)[:, None]


def kls(distribution) -> tuple[float, float]:
    """KL(p, q) and KL(q, p), sums over a fine grid."""
    with torch.no_grad():
        log_p, log_q = p.log_prob(grid[:, 0]), distribution.log_prob(grid)
        step = grid[1, 0] - grid[0, 0]
        return float((log_p.exp() * (log_p - log_q)).sum() * step), float((log_q.exp() * (log_q - log_p)).sum() * step)


def start(model: torch.nn.Module, loc: float) -> None:
    """Sets the Gaussian to N(loc, 1). The map's two numbers, from x to z, are a shift and the logarithm of a scale."""
    shift, log_scale = model.parameters()
    with torch.no_grad():
        shift.fill_(-loc)
        log_scale.zero_()


# %% [markdown]
# What each direction asks of the Gaussian can be read from the derivatives. Forward,
# $-E_p \log q = \log \sigma + E_p (x - \mu)^2 / 2 \sigma^2$ plus a constant. The derivative in $\mu$ is zero at
# $\mu = E_p x$, that in $\sigma$ at $\sigma^2 = E_p (x - \mu)^2$: the best Gaussian has the moments of the data,
# however many modes these have. Reverse, there is no such formula. But let $p$ be an equal mixture of two parts that
# hardly overlap, and $q$ one of them. Then $p = q / 2$ wherever $q$ draws, so
# $\mathrm{KL}(q, p) = E_q \log 2 = \log 2$, and no small step improves it.
#
# ## Forward: data under the model
#
# The flow observes the data, and `ELBO()` is then $-E_p \log q$: the forward KL but for the entropy of $p$. This is
# maximum likelihood.

# %%
adam = partial(torch.optim.Adam, lr=0.02)
distributions = {}


def train(name: str, loss, model: FlowModel, steps: int = 400) -> None:
    """Fits a model to the data and keeps its distribution."""
    options = {"steps": steps, "batch_size": 256, "compile": False, "progress": False}
    ppgen.fit(model.model, model.guide, data, loss=loss, optim=adam, **options)
    distributions[name] = model.distribution()


def gaussian(loc: float) -> FlowModel:
    model = FlowModel((1,), flow="maf", layers=1)
    start(model, loc)
    return model


train("forward", ppgen.ELBO(), gaussian(1.0))

# %% [markdown]
# ## Reverse: the model's draws under the target
#
# Put the flow into the *guide*, and a program with the distribution $p$ in the place of the model. `ELBO()` is now
# $E_q[\log q - \log p]$, the reverse KL itself. It asks for the density $p$ (up to a constant, in general), and for
# no data.


# %%
def target():
    with pyro.plate("data", 256):
        pyro.sample("x", dist.Independent(p.expand([256, 1]), 1))


def reverse_from(loc: float):
    """The distribution that the reverse KL leads to from N(loc, 1)."""
    flow = maf(1, layers=1)
    start(flow, loc)

    def guide():
        pyro.module("flow", flow)
        with pyro.plate("data", 256):
            pyro.sample("x", flow())

    pyro.clear_param_store()
    svi = ppgen.SVI(target, guide, adam, loss=ppgen.ELBO(), compile=False)
    for _ in range(400):
        svi.step()
    return flow()


distributions["reverse"], distributions["reverse, other start"] = reverse_from(1.0), reverse_from(-1.0)


def table(names) -> None:
    for name in names:
        forward, reverse = kls(distributions[name])
        x = distributions[name].sample((4000,))
        share = f"{(x > 0).float().mean():4.0%} of draws on the right, standard deviation {x.std():.1f}"
        print(f"{name:>21}: KL(p, q) = {forward:6.3f}, KL(q, p) = {reverse:6.3f} nats; {share}")


table(distributions)

# %% [markdown]
# Forward covers: mean and deviation are those of the data, and many draws fall where there are none. Reverse seeks a
# mode: which one, the start decides, and it never learns that there is another. What that costs it is $\log 2 =
# 0.693$ nats, since half of the data are missing, whereas by the forward KL it is fourteen nats off.
#
# ## In z
#
# A flow is a bijection, and KL does not change under one. Pull both distributions back by $z = T^{-1}(x)$. By the
# change of variables, and with the Jacobian $T'$ at $z = T^{-1}(x)$,
#
# $$p_z(z) = p(T(z))\, |\det T'(z)|, \qquad q_z(z) = q(T(z))\, |\det T'(z)| = p_0(z).$$
#
# The same factor stands in both, so it cancels in the ratio: $p_z(z) / p_0(z) = p(x) / q(x)$ at every pair of a point
# and its image. And a mean over $x \sim p$ is a mean over $z \sim p_z$, since these are the same draws with other
# coordinates. So both directions are the same number in either space:
#
# $$\mathrm{KL}(p, q) = E_p \log \frac{p(x)}{q(x)} = E_{p_z} \log \frac{p_z(z)}{p_0(z)} = \mathrm{KL}(p_z, p_0),
#   \qquad \mathrm{KL}(q, p) = \mathrm{KL}(p_0, p_z).$$
#
# The forward KL in $x$ is that of *pulled-back data* against the base, and maximum likelihood makes pulled-back data
# look like the base. The reverse KL is that of the base against pulled-back data. Sums over a grid in $z$, which know
# of $x$ only through $p_z$, say the same as those over $x$. Where $p$ is not known, `base_space_test` estimates the
# first of them from rows of data alone, by nearest neighbors: it can, since the second distribution is known.

# %%
z = torch.linspace(-16, 16, 32001)[:, None]
normal = dist.Normal(0.0, 1.0)
pulled = {}
for name in ("forward", "reverse"):
    distribution = distributions[name]
    with torch.no_grad():
        x = distribution.transform(z)
        log_pz, log_base = p.log_prob(x[:, 0]) - distribution.inverse_and_log_det(x)[1], normal.log_prob(z[:, 0])
        pulled[name] = log_pz.exp()
        step = float(z[1] - z[0])
        in_z = [float((a.exp() * (a - b)).sum()) * step for a, b in ((log_pz, log_base), (log_base, log_pz))]
        found = base_space_test(distribution.inverse(data[:1000]))
    in_x = kls(distribution)
    print(f"{name}: KL(p, q) = {in_x[0]:.3f}, in z {in_z[0]:.3f}; from 1000 rows {found.kl:.2f} +- {found.error:.2f}")
    print(f"{'':>{len(name)}}  KL(q, p) = {in_x[1]:.3f}, in z {in_z[1]:.3f}")
    print(f"{'':>{len(name)}}  p-value of z following the base: {found.sliced.p_value}")
    assert all(abs(a - b) < 2e-3 * a for a, b in zip(in_x, in_z, strict=True))

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
line = grid[:, 0]
left.fill_between(line, p.log_prob(line).exp(), color="0.85", label="p, the data")
for color, (name, distribution) in zip(("C0", "C3", "C1"), distributions.items(), strict=True):
    left.plot(line, distribution.log_prob(grid).exp().detach(), color=color, label=name)
left.set(xlim=(-6, 6), ylim=(0, 1.15), xlabel="x", title="in x")
right.fill_between(z[:, 0], normal.log_prob(z[:, 0]).exp(), color="0.85", label="the base")
for color, (name, density) in zip(("C0", "C3"), pulled.items(), strict=True):
    right.plot(z[:, 0], density, color=color, label=f"data pulled back, {name}")
right.set(xlim=(-11, 4), xlabel="z", title="in z")
for axis in (left, right):
    axis.legend(fontsize=7, loc="upper left")
figure

# %% [markdown]
# The reverse solution, seen in $z$: half of the data follow the base, and the other half is eight deviations away.
#
# ## Reverse from samples alone, and both together
#
# With data and no density $p$, a critic stands in for the ratio $p / q$: `recipes.flow_kl(reverse=w)` is
#
# ```
# forward * ELBO() + reverse * match(data("x"), generated("x"), FDivergence(critic, "reverse_kl"))
# ```
#
# Under the best critic its gradient is that of $\mathrm{KL}(q, p)$. Here with weights from mostly forward to reverse
# alone, and last a flow that is large enough, a spline, by the forward KL alone:

# %%
critic = {"hidden": (32, 32), "lr": 5e-3, "betas": (0.0, 0.99), "steps": 2}
weights = ((1.0, 1.0), (0.1, 1.0), (0.0, 1.0))
for forward, reverse in weights:
    loss = recipes.flow_kl(forward=forward, reverse=reverse, **critic)
    train(f"{forward:g} and {reverse:g}", loss, gaussian(1.0))
train("a spline, forward", ppgen.ELBO(), FlowModel((1,), flow="nsf_autoregressive", layers=2))
table(list(distributions)[3:])

# %% [markdown]
# With a tenth of the forward divergence the Gaussian keeps both modes; the critic alone leads it into one, as the
# known density did. And a flow that can be $p$ need not choose: what is small in one direction is small in the other.
#
# ## Where it fails
#
# - Forward KL puts draws where there are no data, if the model is too small; it never says so on its own, since
#   held-out rows do not lie there.
# - Reverse KL drops modes, and its value does not show it: $\log 2$ more than the best is a number nobody knows.
# - The critic's reverse KL is an estimate from samples, with the limits of [every critic](04_metrics.md).
#
# ## Exercises
#
# 1. For the mixture $\frac12 N(-4, 1) + \frac12 N(4, 1)$ and a grid of $(\mu, \sigma)$, check that the forward KL is
#    least at mean 0 and variance 17.
# 2. Check that the reverse KL has a local minimum at one of the modes, near $\log 2$.
# 3. With $T(z) = \sinh z$ and a Gaussian $p$, compute all four divergences, both directions in $x$ and in $z$, by sums
#    over grids, and check that they agree in pairs.
#
# [Solutions](../../tutorials/solutions/11_kl_both_ways.py), which are tested.
