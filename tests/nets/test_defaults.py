"""The table of defaults: invariants over all kinds, shapes and numbers of rows, and every model class reads it."""

import itertools

import pytest
import torch
from torch import nn

from ppgen import models, nets, recipes
from ppgen.flows.coupling import Coupling
from ppgen.nets import KINDS, Defaults, defaults_for
from ppgen.runs.methods import METHODS

IMAGES = [(1, 8, 8), (3, 9, 13), (1, 16, 16), (1, 28, 28), (3, 31, 33), (3, 32, 32), (3, 64, 64)]
SHAPES = [(1,), (13,), (1, 4, 4), *IMAGES]
ROWS = [None, 1, 20, 178, 1797, 60_000]


@pytest.mark.parametrize("kind", KINDS)
def test_defaults_of_every_shape_and_number_of_rows_are_plausible(kind):
    for shape, rows in itertools.product(SHAPES, ROWS):
        chosen = defaults_for(kind, shape, rows)
        assert 1 <= chosen.batch_size <= 128
        assert 1e-5 < chosen.lr < 1e-2
        assert chosen.norm in (None, *nets.NORMS)
        assert all(width >= 16 for width in chosen.hidden)
        assert (chosen.network == "dense") or len(shape) == 3
        fewer = defaults_for(kind, shape, 1)
        assert sum(fewer.hidden) <= sum(chosen.hidden)
        assert fewer.batch_size <= chosen.batch_size


@pytest.mark.parametrize("shape", IMAGES)
def test_images_have_convolutions_down_to_about_four_pixels_with_normalization(shape):
    chosen = defaults_for("autoencoder", shape)
    assert chosen.network == "convolutional"
    assert chosen.norm in ("group", "batch")
    side = min(shape[1:])
    for _ in chosen.hidden:
        side = -(-side // 2)
    assert 2 <= side <= 4
    assert defaults_for("critic", shape).norm is None


def test_a_classifier_of_counts_of_words_is_narrow_with_dropout():
    words, few = defaults_for("classifier", (2000,), 60_000), defaults_for("classifier", (20,), 60_000)
    assert (words.hidden, words.dropout) == ((64, 64), 0.5)
    assert (few.hidden, few.dropout) == ((256, 256), 0.0)
    assert defaults_for("autoencoder", (2000,), 60_000).dropout == 0
    assert models.DANN((2000,), 2).config["dropout"] == 0.5
    assert models.DANN((2000,), 2, dropout=0.0).config["dropout"] == 0


def test_a_given_network_has_the_widths_that_suit_it():
    assert defaults_for("autoencoder", (1, 28, 28), network="dense").hidden == (256, 256)
    assert defaults_for("autoencoder", (1, 28, 28), network="dense").norm is None
    assert defaults_for("generator", (1, 28, 28), network="growing").hidden is None  # by the scales of the images
    with pytest.raises(ValueError, match=r"kind: expected one of 'autoencoder', .*, got 'gan'"):
        defaults_for("gan", (2,))


# A model of each class, and the kind of its network.
MODELS = {
    "Autoencoder": (models.Autoencoder, "autoencoder"),
    "VAE": (models.VAE, "autoencoder"),
    "Generator": (models.Generator, "generator"),
    "ALI": (models.ALI, "generator"),
    "DANN": (lambda shape, **options: models.DANN(shape, 3, **options), "classifier"),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("shape", [(5,), (1, 4, 4), (1, 8, 8), (2, 9, 13), (1, 28, 28)])
def test_every_model_class_reads_the_table_and_given_arguments_win(name, shape, monkeypatch):
    build, kind = MODELS[name]
    chosen = defaults_for(kind, shape)
    config = build(shape).config
    assert (config["network"], config["hidden"], config["norm"]) == (chosen.network, chosen.hidden, chosen.norm)
    given = build(shape, network="dense", hidden=(7,), norm="layer").config
    assert (given["network"], given["hidden"], given["norm"]) == ("dense", (7,), "layer")
    assert build(shape, norm=None).config["norm"] is None
    other = Defaults(network="dense", hidden=(3,), norm=None, lr=1.0, betas=(0.0, 0.0), batch_size=1)
    monkeypatch.setattr("ppgen.models.options.defaults_for", lambda *args, **options: other)
    assert build(shape).config["hidden"] == (3,)


@pytest.mark.parametrize(("shape", "widths"), [((4,), {128}), ((1, 8, 8), {32, 64}), ((1, 28, 28), {32, 64, 128})])
def test_denoisers_and_flows_read_the_table(shape, widths):
    for model in (models.Diffusion(shape), models.FlowMatching(shape)):
        network = model.denoiser.network
        blocks = network.down if isinstance(network, nets.UNet) else network.blocks
        norms = [part for block in blocks for part in block.modules() if isinstance(part, nn.GroupNorm | nn.LayerNorm)]
        assert {getattr(part, "num_channels", None) or part.normalized_shape[0] for part in norms} == widths
    (first, *_) = [part.network for part in models.FlowModel((4,), flow="nsf").modules() if isinstance(part, Coupling)]
    assert first[0].out_features == defaults_for("flow", (4,)).hidden[0]


@pytest.mark.parametrize("side", [8, 9, 16, 28, 33, 64])
def test_default_networks_of_all_sides_run_and_normalize_but_no_critic_does(side):
    shape = (1, side, side)
    x = torch.rand(2, *shape)
    model = models.VAE(shape)
    assert model.encode(x).mean.shape == (2, model.latent_dim)
    assert model.sample(2).shape == x.shape
    for part in (model.encoder, model.decoder):
        assert any(isinstance(layer, nn.GroupNorm | nn.BatchNorm2d) for layer in part.modules())
    critic = nets.Critic(shape)
    assert critic(x).shape == (2,)
    assert not any("Norm" in type(layer).__name__ for layer in critic.modules())


CRITICS = ("gan", "f_gan", "lsgan", "hinge_gan", "r1_gan", "r3_gan", "wgan_clip", "wgan_gp", "progan", "ali", "vae_gan")


@pytest.mark.parametrize("recipe", [*CRITICS, "aae", "dann"])
def test_no_critic_of_a_recipe_has_batch_normalization(recipe):
    ((term, *_),) = getattr(recipes, recipe)().critics.values()
    network = term.critic.build(torch.rand(4, 1, 16, 16) if recipe in CRITICS else torch.rand(4, 5))
    assert not any(isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d) for part in network.modules())


def test_methods_name_rows_of_the_table():
    assert {method.network for method in METHODS.values()} == set(KINDS) - {"critic"}
