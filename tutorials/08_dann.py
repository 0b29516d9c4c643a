# %% [markdown]
# # Can labels of one domain serve another?
#
# Somebody has labelled one kind of data, and what is wanted are the labels of another: the camera was changed, the
# hospital is a different one. A domain-adversarial network (Ganin et al. 2016) learns features on which a critic cannot
# tell the two domains apart, and a classifier on them that was taught by the first domain alone. It is the one game of
# this course in which the critic is meant to fail.

# %%
from functools import partial

import matplotlib.pyplot as plt
import torch

import ppgen
from ppgen import data, recipes
from ppgen import metrics as m
from ppgen import views as v
from ppgen.diagnostics import adaptation_risk
from ppgen.models import DANN, UNKNOWN

torch.set_num_threads(1)  # networks as small as these gain nothing from more

# %% [markdown]
# ## Two domains
#
# Two moons, labelled, are the source. The target is the same law turned by 35 degrees. Its labels are in this script,
# to judge by; training gets `UNKNOWN` in their place.

# %%
x, y = map(torch.as_tensor, data.moons(300, seed=0))
there, theirs = map(torch.as_tensor, data.rotated_moons(300, degrees=35.0, seed=1))
x, there = (2 * (rows - torch.tensor([0.5, 0.25])) for rows in (x, there))
rows = torch.cat([x, there])
labels = torch.cat([y, torch.full_like(theirs, UNKNOWN)])
domains = torch.arange(2).repeat_interleave(300)

# %% [markdown]
# ## The program and the loss
#
# `DANN` is a Pyro program with three sites: features $h = F(x)$, the domain $d$, and $y \sim \text{Categorical}(C(h))$,
# masked where it is not known. Its evidence is the source's label loss, $T_1$. Bringing the features of both domains
# together is one more term:

# %%
critic = {"hidden": (16,), "lr": 0.02}
by_hand = ppgen.Evidence() + ppgen.Ramp(1.0, shape="sigmoid") * ppgen.match(
    v.posterior("h").given(d=0),
    v.posterior("h").given(d=1),
    m.JensenShannon(**critic, penalty=m.ZeroCentred(0.2, at="both"), saturating=True),
)
print(by_hand)
print(recipes.dann(**critic, weight=0.2))
assert str(by_hand) == str(recipes.dann(**critic, weight=0.2))

# %% [markdown]
# The value of that match is $\log 2 - T_2$, where $T_2$ is the critic's loss: together $T_1 - \alpha T_2$, with
# $\alpha$ rising from 0 by Ganin's ramp, since features that have learned nothing yet should not be matched. Four ways,
# from the same weights: the source alone, which is $\alpha = 0$; the match; the same match of $h \otimes p(y | h)$, so
# that every class meets its own kind (CDAN, Long et al. 2018); and gradient reversal, where critic and features share
# one step.

# %%
ways = {
    "source alone": ({}, recipes.dann(distance="mmd", alpha=0.0)),
    "DANN": ({}, recipes.dann(**critic, weight=0.2)),
    "conditional": ({"conditional": True}, recipes.dann(**critic, weight=0.2, h="hy")),
    "reversal": ({"critic": True}, recipes.dann_reversal()),
}
models, fits = {}, {}
for name, (options, loss) in ways.items():
    torch.manual_seed(0)
    models[name] = model = DANN((2,), 2, latent_dim=15, hidden=(), activation="tanh", **options)
    adam = partial(torch.optim.Adam, lr=0.01)
    fits[name] = ppgen.fit(
        model.model,
        model.guide,
        (rows, labels, domains),
        loss=loss,
        optim=adam,
        steps=1000,
        batch_size=200,
        schedule="cosine",
        compile=False,  # for so few steps
    )

# %% [markdown]
# ## What came of it
#
# The first two columns nobody has who needs this method. The others are what can be said without the target's labels:
# the risk in the source, how well a classifier tells the domains apart by their features (0.5: not at all), and the
# source's risk weighted by how likely its rows would be in the target. New rows of both domains:

# %%
new, new_y = map(torch.as_tensor, data.moons(600, seed=2))
new_there, new_theirs = map(torch.as_tensor, data.rotated_moons(600, degrees=35.0, seed=3))
new, new_there = (2 * (part - torch.tensor([0.5, 0.25])) for part in (new, new_there))
right = {}
print(f"{'':13}   source   target | source risk   told apart   weighted risk")
for name, model in models.items():
    wrong = model.predict(new) != new_y
    risk = adaptation_risk(model.features_of(new), model.features_of(new_there), wrong, classifier="mlp")
    right[name] = float((model.predict(new_there) == new_theirs).float().mean())
    print(
        f"{name:13} {1 - risk.source:8.3f} {right[name]:8.3f} | {risk.source:11.3f}   {risk.distance.statistic:10.2f}"
        f"   {risk.weighted:6.3f} ± {risk.weighted_error:.3f}"
    )
assert right["source alone"] < 0.9 < right["DANN"]

# %% [markdown]
# All of them are right in the source, so the source's risk cannot choose between them, and neither can its weighted
# form: where no row of the source is wrong, no weight makes it so. The distance between the domains can: what lowers it
# without costing accuracy in the source is to be preferred. Reversal has come nearest to equal features, at the price
# of errors in the source; its one rate for both players is the wrong one here, and the critic's penalty is not part of
# it.
#
# Above, the decision that each has learned, data of the target as crosses coloured by their true labels; below,
# the features in the plane of their principal axes.

# %%
line = torch.linspace(-3.2, 3.2, 150)
square = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1).reshape(-1, 2)
figure, axes = plt.subplots(2, 3, figsize=(9.5, 6), layout="constrained")
for column, name in enumerate(("source alone", "DANN", "conditional")):
    model, (upper, lower) = models[name], axes[:, column]
    sure = model.predict_proba(square)[:, 1].reshape(150, 150)
    upper.contourf(line, line, sure, levels=[0, 0.5, 1], colors=["#dbe8f5", "#fbe5d6"])
    upper.scatter(*x.T, s=5, c=[f"C{label}" for label in y], alpha=0.3)
    upper.scatter(*there.T, s=5, c=[f"C{label}" for label in theirs], marker="x")
    upper.set(title=f"{name}: {right[name]:.0%} of the target", xticks=[], yticks=[], aspect="equal")
    h = torch.cat([model.features_of(x), model.features_of(there)])
    h = h - h.mean(0)
    plane = (h @ torch.linalg.svd(h, full_matrices=False).Vh[:2].T).numpy()
    lower.scatter(*plane[:300].T, s=5, color="0.6", label="source")
    lower.scatter(*plane[300:].T, s=5, color="C2", label="target")
    lower.set(xticks=[], yticks=[], title="features")
axes[1, 0].legend(fontsize=8)
figure
