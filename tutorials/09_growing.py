# %% [markdown]
# # Can a generator learn small images first?
#
# A GAN of large images has much to get wrong at once: what is drawn, where its parts are, and every edge. Progressive
# growing (Karras et al. 2018) takes these in turn. Generator and critic begin with images of a few pixels; whenever
# that goes well, both get layers for twice as many pixels a side, which fade in, so that nothing that was learned is
# lost.

# %%
import time
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import torch

import ppgen
from ppgen import data, nets, recipes
from ppgen.evaluation import pyramid_distance, pyramid_noise
from ppgen.models import Generator

torch.set_num_threads(1)  # networks as small as these gain nothing from more
torch.manual_seed(0)

digits = data.load("digits", form="unit", validation=0.0, test=0.5)
x = torch.as_tensor(digits.train.x)

# %% [markdown]
# ## Levels
#
# A growing network has scales, here of 2, 4 and 8 pixels a side, and a level, the one it stands at. Its images are of
# the whole size at every level. At a whole level it sees what blocks of pixels have for a mean; between two levels,
# the next scale has faded in by so much. That is how the data look to it, too:

# %%
network = nets.GrowingDecoder(32, (1, 8, 8), hidden=(64, 32, 16), norm="pixel")
print("scales:", network.sides)


def show(rows, titles, limits=(0.0, 1.0)):
    across = len(rows[0])
    _, axes = plt.subplots(len(rows), 1, figsize=(0.62 * across, 0.72 * len(rows)), layout="constrained")
    for ax, images, title in zip(axes, rows, titles, strict=True):
        strip = np.concatenate([np.pad(np.asarray(image)[0], 1, constant_values=limits[1]) for image in images], 1)
        ax.imshow(strip, cmap="gray", vmin=limits[0], vmax=limits[1])
        ax.set(xticks=[], yticks=[])
        ax.set_ylabel(title, rotation=0, ha="right", va="center")
    plt.show()


levels = (0.0, 1.0, 1.5, 2.0)
seen = []
for level in levels:
    network.grow(level)
    seen.append(network.seen(x[:10]))
show(seen, [f"level {level:g}" for level in levels])

# %% [markdown]
# The generator's images move in the same way from one scale to the next. At level $k + a$ they are
# $(1 - a)\,\mathrm{up}(\mathrm{rgb}_k(h_k)) + a\,\mathrm{rgb}_{k+1}(h_{k+1})$, so that a scale joins without a jump:
# where it begins, its images are those of the scale before, each pixel repeated. Means over blocks of $2 \times 2$
# pixels undo the repetition, so the critic, too, is the same function as a step earlier.
#
# A new layer must not be louder or learn faster than those that are there. A layer with $n$ inputs of mean square $m$
# and independent weights of mean zero and variance $v$ has outputs of variance $n v m$, and a ReLU, which cuts off one
# half, halves their mean square. So $v = 2 / n$ keeps the mean square from layer to layer (He et al. 2015). But Adam's
# steps have about the same length for every parameter, so the small weights of a wide layer change faster, relative to
# their size, than those of a narrow one. An equalized learning rate stores weights of unit variance and multiplies them
# by $\sqrt{2 / n}$ whenever they are used: then the relative change is the same in all layers.

# %%
z = torch.randn(10, 32)
with torch.no_grad():
    network.grow(1.0)
    before = network(z)
    network.grow(1.0 + 1e-6)
    print("changed by the first millionth of a fade:", float((network(z) - before).abs().max()))
    network.grow(2.0)
    print("changed by the whole of it:              ", float((network(z) - before).abs().max()))

# %% [markdown]
# ## Growing
#
# Nothing else is new. The program is the generator of any game, $z \sim N(0, I)$, $x = G(z)$; the loss is a game
# whose critic grows too, here Jensen-Shannon with a penalty on the critic's gradient at data; and a
# `ProgressiveGrowing` says when. `fit` follows it: here the last of the three stages is as long as the other two, and
# a scale fades in during the first half of its stage. The callback draws from the same latents whenever a stage ends,
# by the averaged weights, which are the ones that the run would leave.

# %%
STEPS, BATCH = 1000, 32
adam = partial(torch.optim.Adam, lr=1e-3, betas=(0.0, 0.99))


def generator():
    torch.manual_seed(1)
    return Generator((1, 8, 8), latent_dim=32, network="growing", hidden=(16, 32, 64), norm="pixel")


def train(model, growth, steps, callbacks=()):
    began = time.process_time()
    fitted = ppgen.fit(
        model.model,
        model.guide,
        x,
        loss=recipes.progan(distance="jensen_shannon", hidden=(16, 32, 64)),
        optim=adam,
        steps=steps,
        batch_size=BATCH,
        ema=0.995,
        growth=growth,
        compile=False,
        callbacks=list(callbacks),
        progress=False,
    )
    return fitted, time.process_time() - began


growth = ppgen.ProgressiveGrowing(stages=(1, 1, 2))
model = generator()
stages, seconds, latents = [], [time.process_time()], torch.randn(12, 32)


def picture(step):
    if step.stage_done:
        with step.eval_mode():
            stages.append(model.decode(latents).sample())
        seconds.append(time.process_time())


_, grown_in = train(model, growth, STEPS, [picture])
show(stages, ["2 x 2", "4 x 4", "8 x 8"])
steps = np.diff([0, *growth.ends(STEPS, scales=3)])
for sides, spent, count in zip(network.sides, np.diff(seconds), steps, strict=True):
    print(f"{sides[0]} x {sides[1]}: {count} steps of {1e3 * spent / count:.0f} ms")

# %% [markdown]
# A column is one latent. What is laid out at a small scale stays where it is, and is worked out at the next. The
# early stages are also the cheap ones, which is the other half of the idea.
#
# ## Did it pay?
#
# A fair comparison gives both the same time. The networks at full size from the first step on get as many steps as
# fit into the seconds that growing took. The measure is the paper's: the sliced Wasserstein distance between patches
# of each level of the Laplacian pyramid, here in units of the data's own deviations, of draws and of digits that
# neither has seen. Two halves of the data tell what zero looks like.

# %%
each = []
fixed = generator()
pilot = lambda step: each.append(time.process_time())  # noqa: E731
train(generator(), None, 30, [pilot])
as_many = int(grown_in / np.median(np.diff(each)))
_, fixed_in = train(fixed, None, as_many)

held_out = digits.test.x
print(f"{'':10}{'steps':>7}{'seconds':>9}", *(f"{level:>9}" for level in pyramid_noise(held_out).levels))
for name, (which, steps, spent) in {
    "growing": (model, STEPS, grown_in),
    "fixed": (fixed, as_many, fixed_in),
}.items():
    torch.manual_seed(2)
    distance = pyramid_distance(which.sample(len(held_out)).numpy(), held_out)
    print(f"{name:10}{steps:7}{spent:9.0f}", *(f"{value:9.3f}" for value in distance.levels.values()))
print(f"{'halves':26}", *(f"{value:9.3f}" for value in pyramid_noise(held_out).levels.values()))

# %%
torch.manual_seed(3)
show([x[:12], model.sample(12), fixed.sample(12)], ["data", "growing", "fixed"])

# %% [markdown]
# Here it did not: at 8 x 8 pixels there is little to lay out beforehand, and the steps that went into small scales
# are missing at the last one. What growing is for are images whose full size is expensive and hard to begin with. The
# benchmark `tests/benchmarks/growing.py` asks the same question of Fashion-MNIST at 32 x 32, and of two other ways to
# work at several scales: a critic that sees all of them at once (`multi_scale=True`), and a generator that adds up
# the levels of a Laplacian pyramid (`network="pyramid"`). Its figures, in `docs/results.md`, are the ones to go by.
#
# ## At 32 x 32 pixels
#
# This is what growing looks like where there is more to grow: Fashion-MNIST, padded to 32 x 32, at four scales. The run
# took six minutes of one core, so it was made beforehand (`tutorials/weights/train.py` has the command, one of
# `ppgen train progan fashion`). This page loads its folder, with what the run drew from the same six latents at the end
# of each stage.

# %%
from ppgen.runs.stages import read_stage_images

grown = ppgen.load("weights/growing")
stages = read_stage_images(grown.run.folder, chain=0)
show(stages, ["4 x 4", "8 x 8", "16 x 16", "32 x 32"])

# %%
show([grown.run.kept.test.x[:10], grown.sample(10, seed=1), grown.sample(10, seed=2)], ["held out", "drawn", ""])
levels = [name for name in grown.numbers if "sliced Wasserstein" in name]
for name in levels:
    print(f"{name.removeprefix('generated: ')}: {grown.numbers[name]:.3f}")

# %% [markdown]
# What is laid out at 4 x 4 pixels is worked out at each scale that follows: a boot stays a boot. The draws are outlines
# of garments, and little more: the last scale, the expensive one, had 800 steps of 32 images, and sleeves, collars and
# textures are missing. In about the same time R3GAN, whose networks are convolutional ones of full size from the start,
# took 6000 steps of 64 images, and its garments are better by far ([GANs](05_gan.md)). So on two cores growing does not
# pay at 32 pixels either. Its reasons are images of hundreds of pixels, where a step at full size costs a hundred times
# one at the start.
#
# On the command line: `ppgen train progan digits`, whose report shows the same latents at every stage;
# `--fit.growth null` trains at full size from the start, `--conditional true` by label.
#
# ## Where it fails
#
# - Small images: the steps that go into the first scales are missing at the last one.
# - What is laid out at a small scale is hardly ever changed later, even where it is wrong.
# - A run has one more schedule to choose, that of its stages.
#
# ## Exercises
#
# 1. Show that means over blocks of $2 \times 2$ pixels undo the repetition of pixels, and that the blend of two scales
#    is continuous at both ends, for random images.
# 2. Pass normal vectors through eight ReLU layers with weights of variance $2 / n$, of different widths, and compare
#    the mean squares of all layers. What happens with $1 / n$?
# 3. Add up the levels of `evaluation.laplacian_pyramid` from the coarsest to the finest and show that nothing was lost:
#    level by level, what a scale adds to the one before is all that it has to learn.
#
# [Solutions](../../tutorials/solutions/09_growing.py), which are tested.
