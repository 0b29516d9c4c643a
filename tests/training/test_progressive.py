"""Laws of networks that grow, and of the schedule that takes them through their scales."""

import copy
import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ppgen
from ppgen import nets, recipes
from ppgen import views as v
from ppgen.metrics import JensenShannon
from ppgen.models import ALI, VAE, Generator
from ppgen.nets import Growing, GrowingCritic, GrowingDecoder, GrowingEncoder

SHAPES = [(1, 8, 8), (2, 16, 16), (1, 13, 9), (3, 17, 30)]
DECODERS = {"each": {}, "pyramid": {"pyramid": True}, "pixel": {"norm": "pixel"}}
ENCODERS = {"one": {}, "multi-scale": {"multi_scale": True}, "deviation": {"deviation": True}}

every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
every_decoder = pytest.mark.parametrize("options", DECODERS.values(), ids=DECODERS)
every_encoder = pytest.mark.parametrize("options", ENCODERS.values(), ids=ENCODERS)


@pytest.fixture(autouse=True)
def _seeded():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    pyro.clear_param_store()
    yield
    torch.set_num_threads(threads)


def fade(network: Growing, stage: int, weight: float) -> None:
    """Stands where a stage has faded in by so much, both of its branches worked out."""
    network.grow(float(stage), fading=True)
    with torch.no_grad():
        network.level.fill_(stage - 1 + weight)
    network._known, network._version = stage - 1 + weight, network.level._version


def of_scale(network: Growing, x: torch.Tensor, scale: int) -> torch.Tensor:
    """Whole images as what blocks of a scale's size have for a mean, written out."""
    block = 2 ** (network.top - scale)
    height, width = x.shape[-2:]
    x = F.pad(x, (0, -width % block, 0, -height % block), mode="replicate")
    means = x.unfold(-2, block, block).unfold(-2, block, block).mean((-2, -1))
    whole = means.repeat_interleave(block, -2).repeat_interleave(block, -1)
    return whole[..., :height, :width]


def within_blocks(network: Growing, scale: int) -> bool:
    """Whether no block of a scale lies in the padding alone: it would then be made of a mean in place of a pixel."""
    return max(network._padding) < 2 ** (network.top - scale)


# Networks


@every_shape
@every_decoder
def test_a_decoder_at_fade_0_is_the_smaller_one_upsampled_exactly(shape, options):
    decoder, z = GrowingDecoder(3, shape, **options), torch.randn(5, 3)
    for stage in range(1, decoder.top + 1):
        decoder.grow(stage - 1)
        smaller = decoder(z)
        block = 2 ** (decoder.top - stage + 1)
        assert torch.equal(smaller, smaller[..., ::block, ::block].repeat_interleave(block, -2).repeat_interleave(
            block, -1
        )[..., : shape[1], : shape[2]])  # fmt: skip
        fade(decoder, stage, 0.0)
        assert torch.equal(decoder(z), smaller)
        decoder.grow(stage)
        assert not torch.equal(decoder(z), smaller)


@every_shape
@every_encoder
def test_an_encoder_at_fade_0_is_the_smaller_one_exactly(shape, options):
    encoder, x = GrowingEncoder(shape, 2, **options), torch.randn(5, *shape)
    for stage in range(1, encoder.top + 1):
        encoder.grow(stage - 1)
        smaller = encoder(x)
        fade(encoder, stage, 0.0)
        assert torch.equal(encoder(x), smaller)
        encoder.grow(stage)
        assert not torch.allclose(encoder(x), smaller)


@every_shape
@pytest.mark.parametrize("make", [partial(GrowingDecoder, 3), lambda shape: GrowingEncoder(shape, 3)])
def test_at_fade_1_there_is_no_trace_of_the_old_branch(shape, make):
    """Neither in the value, nor in a gradient, whether the branch is still worked out or not."""
    network = make(shape)
    value = torch.randn(4, *network.in_shape)
    for stage in range(1, network.top + 1):
        layers = network.rgb if isinstance(network, GrowingDecoder) else network.from_rgb
        network.grow(stage)
        settled = network(value)
        network.grow(stage, fading=True)
        assert torch.equal(network(value), settled)
        old = list(layers[stage - 1].parameters())
        gradients = torch.autograd.grad(network(value).sum(), old, allow_unused=True)
        assert all(gradient is None or not gradient.any() for gradient in gradients)
        with torch.no_grad():
            for parameter in old:
                parameter.add_(1.0)
        assert torch.equal(network(value), settled)
        network.grow(stage - 1)
        changed = network(value)
        with torch.no_grad():
            for parameter in old:
                parameter.sub_(1.0)
        assert not torch.equal(network(value), changed)


@every_shape
def test_half_way_is_the_mean_of_both(shape):
    decoder, z = GrowingDecoder(3, shape), torch.randn(5, 3)
    for stage in range(1, decoder.top + 1):
        ends = []
        for level in (stage - 1, stage):
            decoder.grow(level)
            ends.append(decoder(z))
        decoder.grow(stage - 0.5)
        torch.testing.assert_close(decoder(z), (ends[0] + ends[1]) / 2)


@every_shape
def test_data_are_seen_at_the_level(shape):
    decoder, x = GrowingDecoder(3, shape), torch.randn(6, *shape)
    assert decoder.seen(x) is x
    for stage in range(decoder.top + 1):
        decoder.grow(stage)
        torch.testing.assert_close(decoder.seen(x), of_scale(decoder, x, stage))
        if within_blocks(decoder, stage):
            torch.testing.assert_close(decoder.seen(decoder.seen(x)), decoder.seen(x))
        if stage:
            decoder.grow(stage - 0.25)
            mixed = 0.25 * of_scale(decoder, x, stage - 1) + 0.75 * of_scale(decoder, x, stage)
            torch.testing.assert_close(decoder.seen(x), mixed)
    decoder.grow(decoder.top, fading=True)
    assert torch.equal(decoder.seen(x), x)


@every_shape
@every_encoder
def test_an_encoder_sees_no_more_than_its_level_shows(shape, options):
    encoder, x = GrowingEncoder(shape, 2, **options), torch.randn(6, *shape)
    for stage in range(encoder.top + 1):
        encoder.grow(stage)
        if within_blocks(encoder, stage):
            torch.testing.assert_close(encoder(of_scale(encoder, x, stage)), encoder(x), atol=1e-5, rtol=1e-4)


@every_shape
def test_scales_halve_down_to_four_pixels_a_side(shape):
    decoder = GrowingDecoder(3, shape)
    assert decoder.sides[-1] == tuple(math.ceil(side / 2**decoder.top) * 2**decoder.top for side in shape[1:])
    assert 4 <= min(decoder.sides[0]) < 8
    assert all(b == (2 * a[0], 2 * a[1]) for a, b in zip(decoder.sides, decoder.sides[1:], strict=False))
    assert nets.GrowingDecoder(3, shape, hidden=(4, 4, 4)).top == 2


def test_a_pyramid_adds_up_to_the_image():
    decoder, z = GrowingDecoder(3, (1, 16, 16), pyramid=True), torch.randn(5, 3)
    images = []
    for level in range(3):
        decoder.grow(level)
        images.append(decoder(z))
    decoder.grow(1.25)
    torch.testing.assert_close(decoder(z), images[1] + 0.25 * (images[2] - images[1]))


def test_the_deviation_tells_a_batch_that_varies_too_little():
    encoder = GrowingEncoder((1, 8, 8), 1, deviation=True)
    x = torch.randn(16, 1, 8, 8)
    alone = encoder(x[:1].expand(16, 1, 8, 8))[0]
    assert not torch.allclose(encoder(x)[0], alone)
    plain = GrowingEncoder((1, 8, 8), 1)
    torch.testing.assert_close(plain(x)[0], plain(x[:1].expand(16, 1, 8, 8))[0])


@torch.no_grad()
def test_equalized_layers_start_with_outputs_of_their_inputs_size():
    """Weights are N(0, 1) whatever the width, and a layer of gain one keeps the mean square of white noise."""
    for width in (8, 512):
        layer = nets.growing.EqualLinear(width, 4096, gain=1.0)
        assert abs(float(layer.weight.std()) - 1) < 0.05
        assert abs(float(layer(torch.randn(64, width)).square().mean()) - 1) < 0.15
        conv = nets.growing.EqualConv2d(width, 64, 3, gain=1.0)
        inner = conv(torch.randn(16, width, 8, 8))[..., 1:-1, 1:-1]
        assert abs(float(inner.square().mean()) - 1) < 0.15


@pytest.mark.parametrize("make", [partial(GrowingDecoder, 3, (1, 16, 16)), partial(GrowingEncoder, (1, 16, 16), 3)])
def test_weights_bring_their_level_along(make):
    trained, value = make(), None
    for level in (0.0, 1.0, 1.5, 2.0):
        trained.grow(level)
        fresh = make()
        fresh.load_state_dict(trained.state_dict())
        value = torch.randn(2, *trained.in_shape) if value is None else value
        assert (fresh.stage, fresh.fading) == (trained.stage, trained.fading) == (math.ceil(level), level == 1.5)
        assert torch.equal(fresh(value), trained(value))
        assert torch.equal(copy.deepcopy(trained)(value), trained(value))
    trained.grow(1.0, fading=True)
    trained.level.copy_(trained.level.clone())  # as when weights are swapped and put back
    assert trained.fading


def test_a_batch_of_particles_and_a_context():
    decoder, encoder = GrowingDecoder(3, (1, 8, 8), context_dim=2), GrowingEncoder((1, 8, 8), 3, context_dim=2)
    z, context = torch.randn(4, 5, 3), torch.randn(5, 2)
    x = decoder(z, context)
    assert x.shape == (4, 5, 1, 8, 8)
    torch.testing.assert_close(x[1], decoder(z[1], context))
    assert not torch.allclose(decoder(z, context + 1), x)
    torch.testing.assert_close(encoder(x, context)[2], encoder(x[2], context))
    assert not torch.allclose(encoder(x, context + 1), encoder(x, context))


@pytest.mark.parametrize("options", ENCODERS.values(), ids=ENCODERS)
def test_a_critic_gives_a_number_a_row_with_slopes_of_slopes(options):
    critic = GrowingCritic((1, 9, 9), (3,), **{"deviation": False, **options})
    x, z = torch.randn(6, 1, 9, 9, requires_grad=True), torch.randn(6, 3)
    critic.network.grow(0.5)
    value = critic(x, z)
    assert value.shape == (6,)
    (slope,) = torch.autograd.grad(value.sum(), x, create_graph=True)
    slope.square().sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in critic.parameters())


# The schedule


@pytest.mark.parametrize("fade", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("stages", [None, (1, 2, 4), (3, 1, 1)])
@pytest.mark.parametrize("total", [3, 10, 101])
def test_levels_rise_by_stages(fade, stages, total):
    growth = ppgen.ProgressiveGrowing(fade=fade, stages=stages)
    ends = growth.ends(total, 3)
    levels = [growth.level(step, ends) for step in range(1, total + 1)]
    assert ends[-1] == total
    assert len(set(ends)) == 3
    assert levels == sorted(levels)
    assert levels[: ends[0]] == [0.0] * ends[0]
    for stage, end in enumerate(ends):
        assert levels[end - 1] == stage  # each is whole when it ends, and the last at the end of the run
    for stage in (1, 2):
        begins, ended = ends[stage - 1], ends[stage]
        assert all(math.ceil(level) == stage for level in levels[begins:ended])
        fading = sum(level < stage for level in levels[begins:ended])
        assert abs(fading - fade * (ended - begins)) <= 1


def test_a_growth_that_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="fraction of a stage"):
        ppgen.ProgressiveGrowing(fade=1.5)
    with pytest.raises(ValueError, match="positive lengths"):
        ppgen.ProgressiveGrowing(stages=(1, 0))
    with pytest.raises(ValueError, match=r"2 stages .* 3 scales"):
        ppgen.ProgressiveGrowing(stages=(1, 1)).ends(10, 3)
    with pytest.raises(ValueError, match="2 steps are fewer than the 3 scales"):
        ppgen.ProgressiveGrowing().ends(2, 3)


# Under fit


def images(n: int = 40, side: int = 8) -> torch.Tensor:
    """Bars at random places, on noise."""
    x = 0.1 * torch.randn(n, 1, side, side)
    for row in x:
        row[:, :, int(torch.randint(side, ())) :] += 1.0
    return x


def game(**options):
    torch.manual_seed(0)
    model = Generator((1, 8, 8), latent_dim=2, hidden=(4, 6), network="growing", norm="pixel")
    return model, recipes.progan(hidden=(4, 6), **options)


def train(model, loss, x, *, steps=12, **options):
    kept = {"batch_size": 10, "steps": steps, "progress": False, "compile": False, "growth": ppgen.ProgressiveGrowing()}
    return ppgen.fit(model.model, model.guide, x, loss=loss, **{**kept, **options})


def test_fit_takes_programs_and_critics_through_their_scales():
    model, loss = game()
    seen, x = [], images()

    def note(step):
        (metric,) = step.svi.critics.metrics.values()
        parts = [model.decoder.network, metric.network.network]
        assert [float(part.level) for part in parts] == pytest.approx([step.level] * 2)
        seen.append((step.level, step.stage_done, parts[0].structure))
        if step.stage_done:
            with step.eval_mode():
                drawn = model.decoder(torch.zeros(2, 2)).sample()
            block = drawn[..., ::2, ::2].repeat_interleave(2, -1).repeat_interleave(2, -2)
            assert torch.equal(drawn, block) == (step.level == 0)

    train(model, loss, x, callbacks=[note])
    levels, done, structures = zip(*seen, strict=True)
    assert levels == pytest.approx((0,) * 6 + (1 / 3, 2 / 3) + (1,) * 4)
    assert [step for step, last in enumerate(done, start=1) if last] == [6, 12]
    assert set(structures) == {(0, False), (1, True)}  # one structure a stage
    assert model.decoder.network.structure == (1, False)  # and nothing left of the old branch afterward


def test_all_weights_are_kept_and_trained_from_their_stage_on():
    model, loss = game()
    start = copy.deepcopy(model.state_dict())
    network, at_stage = model.decoder.network, {}

    def note(step):
        at_stage[step.number] = copy.deepcopy(model.state_dict())
        optimizer = step.svi.optimizer.torch_optimizer
        steps = {
            name: optimizer.state[leaf].get("step")
            for name, leaf in step.svi.optimizer.parameters.items()
            if leaf in optimizer.state
        }
        young = [name for name in steps if ".blocks.1." in name or ".rgb.1." in name]
        old = next(name for name in steps if "start.weight" in name)
        assert float(steps[old]) == step.number  # its optimizer's state goes along
        assert all(float(steps[name]) == step.number - 6 for name in young)

    fitted = train(model, loss, images(), callbacks=[note])
    for name in ("blocks.1.0.weight", "rgb.1.weight"):
        key = f"decoder.network.{name}"
        assert torch.equal(at_stage[6][key], start[key])
        assert not torch.equal(at_stage[12][key], start[key])
    key = "decoder.network.start.weight"
    assert not torch.equal(at_stage[6][key], start[key])
    named = {name.split("$$$")[-1] for name in fitted.chains[0].weights}
    assert {name for name, _ in network.named_parameters()} <= {n.removeprefix("network.") for n in named}


def test_the_data_of_a_step_are_at_the_resolution_of_its_level():
    model, _ = game()
    x = images()
    for level in (0.0, 0.5, 1.0):
        model.decoder.network.grow(level)
        rows = v.data("x")(ppgen.tracing.traces.Traces(model.model, model.guide, (x,))).values
        assert torch.equal(rows, model.decoder.network.seen(x))


def test_a_run_that_is_stopped_in_a_fade_is_loaded_in_that_fade(tmp_path):
    model, loss = game()
    stop = lambda step: step.stop("enough") if step.number == 7 else None  # noqa: E731
    fitted = train(model, loss, images(), callbacks=[stop])
    assert model.decoder.network.structure == (1, True)
    drawn = model.decoder(torch.ones(2, 2)).sample()
    fitted.save(tmp_path / "weights.safetensors")
    again, loss = game()
    ppgen.Fit.load(tmp_path / "weights.safetensors", again.model, again.guide, loss=loss)
    assert again.decoder.network.structure == (1, True)
    assert torch.equal(again.decoder(torch.ones(2, 2)).sample(), drawn)


@pytest.mark.parametrize("stopped_at", [3, 6, 7, 8, 11])
def test_a_run_that_is_stopped_in_a_fade_goes_on_to_the_same_weights(stopped_at, tmp_path):
    """Before a scale joins, at its first step, in its fade and after it, bitwise."""
    options = {"ema": 0.9, "lr_scheduler": "cosine"}
    x = images()
    levels: list = []
    whole, loss = game()
    train(whole, loss, x, callbacks=[lambda step: levels.append(step.level)], **options)
    stop = lambda step: step.stop("enough") if step.number == stopped_at else None  # noqa: E731
    path, later = tmp_path / "checkpoint.safetensors", []
    for callback in (stop, lambda step: later.append(step.level)):
        pyro.clear_param_store()
        model, loss = game()
        train(model, loss, x, callbacks=[callback], checkpoint=path, **options)
    assert later == levels[stopped_at:]
    assert not path.exists()
    for name, tensor in whole.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_restarts_grow_anew():
    model, loss = game()
    levels: dict[int, list] = {0: [], 1: []}
    with pytest.warns(UserWarning, match="the best of restarts goes by the loss"):
        train(
            model, loss, images(), restarts=2, ema=0.9, callbacks=[lambda step: levels[step.chain].append(step.level)]
        )
    assert levels[0] == levels[1]


@pytest.mark.parametrize("make", [VAE, ALI])
@pytest.mark.parametrize("network", ["growing", "pyramid"])
def test_other_models_grow_too(make, network):
    model = make((1, 8, 8), latent_dim=2, hidden=(4, 6), network=network)
    loss = ppgen.ELBO() if make is VAE else recipes.ali(partial(nets.Critic, hidden=(4,)))
    levels = []
    train(model, loss, images(), callbacks=[lambda step: levels.append(step.level)])
    assert (levels[0], levels[-1]) == (0, 1)
    assert model.sample(3).shape == (3, 1, 8, 8)


def test_a_growing_generator_is_conditional_if_asked():
    model = Generator((1, 8, 8), latent_dim=2, hidden=(4, 6), network="growing", num_classes=3)
    y = torch.randint(3, (40,))
    ppgen.fit(
        model.model,
        model.guide,
        (images(), y),
        loss=recipes.progan(hidden=(4, 6), x=("x", "y")),
        steps=4,
        batch_size=10,
        growth=ppgen.ProgressiveGrowing(),
        progress=False,
    )
    with torch.no_grad():
        z = torch.zeros(2, 2)
        x = model.decode(z, torch.tensor([0, 1])).sample()
    assert not torch.equal(x[0], x[1])


class Sketch(Growing):
    """Somebody's own growing network: an affine map for each scale."""

    def __init__(self) -> None:
        super().__init__((1, 8, 8), (2,), (1, 8, 8), scales=2, context_dim=0)
        self.layers = nn.ModuleList(nn.Linear(2, height * width) for height, width in self.sides)

    def image(self, z, scale):
        height, width = self.sides[scale]
        small = self.layers[scale](z).reshape(-1, 1, height, width)
        return F.interpolate(small, (8, 8))

    def run(self, value, context):
        new = self.image(value, self.stage)
        return self.mix(self.image(value, self.stage - 1), new) if self.fading else new


def test_a_users_own_networks_and_programs_grow():
    sketch, levels = Sketch(), []

    def model(x):
        pyro.module("sketch", sketch)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Delta(sketch(z), event_dim=3), obs=sketch.seen(x))

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    def note(step):
        levels.append((step.level, sketch.structure))

    options = {"steps": 8, "batch_size": 10, "progress": False, "compile": False, "growth": ppgen.ProgressiveGrowing()}
    critic = GrowingCritic((1, 8, 8), hidden=(4, 6))
    before = copy.deepcopy(sketch.state_dict())
    ppgen.fit(model, guide, images(), loss=recipes.r1_gan(critic), callbacks=[note], **options)
    assert [level for level, _ in levels] == [0, 0, 0, 0, 0.5, 1, 1, 1]
    assert [structure for _, structure in levels] == [(0, False)] * 4 + [(1, True)] * 4
    assert all(not torch.equal(sketch.state_dict()[name], before[name]) for name in before if "layers" in name)


def test_what_cannot_grow_is_told():
    x = images()
    with pytest.raises(ValueError, match="no network of the programs or their critics grows"):
        train(Generator((1, 8, 8), latent_dim=2), recipes.r1_gan(), x)
    model, loss = game()
    with pytest.raises(ValueError, match="patience compares losses"):
        train(model, loss, x, validation=0.2, patience=2)
    with pytest.raises(ValueError, match="2 and 3 scales cannot grow together"):
        train(model, recipes.progan(hidden=(4, 4, 4)), x)
    with pytest.raises(ValueError, match="8 x 8 pixels have no 4 scales"):
        GrowingDecoder(2, (1, 8, 8), hidden=(4, 4, 4, 4))
    with pytest.raises(ValueError, match="event shape"):
        GrowingDecoder(2, (8,))
    decoder = GrowingDecoder(2, (1, 8, 8))
    with pytest.raises(ValueError, match="level from 0 to 1"):
        decoder.grow(1.5)
    with pytest.raises(ValueError, match="between two scales"):
        decoder.grow(0.5, fading=False)
    with pytest.raises(ValueError, match="categorical"):
        VAE((1, 8, 8), network="growing", likelihood="categorical", levels=3)


@pytest.mark.slow
def test_compiled_steps_follow_the_growth():
    """Each stage is compiled for itself; the weights are those of eager steps, to float tolerance."""
    weights = {}
    for compile in (False, True):
        pyro.clear_param_store()
        torch.manual_seed(0)
        model = VAE((1, 8, 8), latent_dim=2, hidden=(4, 6), network="growing")
        said: list[str] = []
        note = [lambda step, to=said: to.append(step.svi.compile_status)]
        train(model, ppgen.ELBO(), images(), steps=24, compile=compile, callbacks=note)
        weights[compile] = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert "compiled" in said[11]
    assert not said[12]  # a new stage
    assert "compiled" in said[23]
    for name, weight in weights[False].items():
        torch.testing.assert_close(weights[True][name], weight, atol=2e-4, rtol=2e-3)


def test_a_compiled_step_is_dropped_when_the_structure_changes():
    """Outside of fit too, where a user takes the network to another level in the middle."""
    model = VAE((1, 8, 8), latent_dim=2, hidden=(4, 6), network="growing")
    svi = ppgen.SVI(model.model, model.guide, partial(torch.optim.SGD, lr=0.0), ppgen.Reconstruction(), compile=True)
    x = images()
    metric = JensenShannon(GrowingCritic((1, 8, 8), hidden=(4, 6)))
    assert nets.growing_parts([metric.critic])[0].top == 1
    for level in (0.0, 1.0, 0.0):
        for part in nets.growing_parts([model]):
            part.grow(level)
        for _ in range(4):
            torch.manual_seed(3)
            compiled = svi.step(x)
            torch.manual_seed(3)
            assert compiled == pytest.approx(svi.evaluate_loss(x), rel=1e-4)
