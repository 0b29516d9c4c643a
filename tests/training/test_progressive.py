"""Progressive growing: the schedule of levels, and growing networks under `fit`."""

import copy
import itertools
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
from ppgen.nets import Growing, GrowingCritic, GrowingDecoder


@pytest.fixture(autouse=True)
def _seeded():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    pyro.clear_param_store()
    yield
    torch.set_num_threads(threads)


# The schedule


@pytest.mark.parametrize("stages", [None, (1, 2, 4), (3, 1, 1)])
def test_levels_rise_stage_by_stage(stages):
    for fade, total in itertools.product([0.0, 0.3, 0.5, 1.0], [3, 10, 101]):
        growth = ppgen.ProgressiveGrowing(fade=fade, stages=stages)
        ends = growth.ends(total, 3)
        levels = [growth.level(step, ends) for step in range(1, total + 1)]
        assert ends[-1] == total
        assert len(set(ends)) == 3
        assert levels == sorted(levels)
        assert levels[: ends[0]] == [0.0] * ends[0]
        for stage, end in enumerate(ends):
            assert levels[end - 1] == stage  # a stage ends with its scale complete
        for stage in (1, 2):
            begins, ended = ends[stage - 1], ends[stage]
            assert all(math.ceil(level) == stage for level in levels[begins:ended])
            fading = sum(level < stage for level in levels[begins:ended])
            assert abs(fading - fade * (ended - begins)) <= 1


def test_an_invalid_schedule_is_an_error():
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


def progan(**options):
    torch.manual_seed(0)
    model = Generator((1, 8, 8), latent_dim=2, hidden=(4, 6), network="growing", norm="pixel")
    return model, recipes.progan(hidden=(4, 6), **options)


def train(model, loss, x, *, steps=12, **options):
    defaults = {
        "batch_size": 10,
        "steps": steps,
        "progress": False,
        "compile": False,
        "growth": ppgen.ProgressiveGrowing(),
    }
    return ppgen.fit(model.model, model.guide, x, loss=loss, **{**defaults, **options})


def test_fit_grows_programs_and_critics_together():
    model, loss = progan()
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


def test_weights_train_from_their_stage_on_with_their_optimizer_state():
    model, loss = progan()
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


def test_data_views_have_the_resolution_of_the_level():
    model, _ = progan()
    x = images()
    for level in (0.0, 0.5, 1.0):
        model.decoder.network.grow(level)
        rows = v.data("x")(ppgen.tracing.traces.Traces(model.model, model.guide, (x,))).values
        assert torch.equal(rows, model.decoder.network.seen(x))


def test_a_fit_stopped_during_a_fade_is_loaded_at_that_level(tmp_path):
    model, loss = progan()
    stop = lambda step: step.stop("enough") if step.number == 7 else None  # noqa: E731
    fitted = train(model, loss, images(), callbacks=[stop])
    assert model.decoder.network.structure == (1, True)
    drawn = model.decoder(torch.ones(2, 2)).sample()
    fitted.save(tmp_path / "weights.safetensors")
    again, loss = progan()
    ppgen.Fit.load(tmp_path / "weights.safetensors", again.model, again.guide, loss=loss)
    assert again.decoder.network.structure == (1, True)
    assert torch.equal(again.decoder(torch.ones(2, 2)).sample(), drawn)


@pytest.mark.parametrize("stopped_at", [3, 6, 7, 8, 11])
def test_a_run_stopped_during_a_fade_continues_to_the_same_weights(stopped_at, tmp_path):
    """Before a scale joins, at its first step, in its fade and after it, bitwise."""
    options = {"ema": 0.9, "lr_scheduler": "cosine"}
    x = images()
    levels: list = []
    whole, loss = progan()
    train(whole, loss, x, callbacks=[lambda step: levels.append(step.level)], **options)
    stop = lambda step: step.stop("enough") if step.number == stopped_at else None  # noqa: E731
    path, later = tmp_path / "checkpoint.safetensors", []
    for callback in (stop, lambda step: later.append(step.level)):
        pyro.clear_param_store()
        model, loss = progan()
        train(model, loss, x, callbacks=[callback], checkpoint=path, **options)
    assert later == levels[stopped_at:]
    for name, tensor in whole.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_every_restart_begins_at_the_smallest_scale():
    model, loss = progan()
    levels: dict[int, list] = {0: [], 1: []}
    with pytest.warns(UserWarning, match="the best of restarts goes by the loss"):
        train(
            model, loss, images(), restarts=2, ema=0.9, callbacks=[lambda step: levels[step.chain].append(step.level)]
        )
    assert levels[0] == levels[1]


@pytest.mark.parametrize("make", [VAE, ALI])
@pytest.mark.parametrize("network", ["growing", "pyramid"])
def test_other_models_grow(make, network):
    model = make((1, 8, 8), latent_dim=2, hidden=(4, 6), network=network)
    loss = ppgen.ELBO() if make is VAE else recipes.ali(partial(nets.Critic, hidden=(4,)))
    levels = []
    train(model, loss, images(), callbacks=[lambda step: levels.append(step.level)])
    assert (levels[0], levels[-1]) == (0, 1)
    assert model.sample(3).shape == (3, 1, 8, 8)


def test_a_growing_generator_may_be_conditional():
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


def test_user_defined_networks_and_programs_grow():
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


def test_a_checkpoint_of_another_growth_is_refused(tmp_path):
    (model, loss), x, path = progan(), images(), tmp_path / "run"
    train(model, loss, x, checkpoint=path, callbacks=[lambda step: step.stop("enough") if step.number == 4 else None])
    with pytest.raises(ValueError, match=r"growth: ProgressiveGrowing\(fade=0\.5.* then, .*fade=0\.2.* now"):
        train(model, loss, x, checkpoint=path, growth=ppgen.ProgressiveGrowing(fade=0.2))


def test_networks_that_cannot_grow_are_an_error():
    x = images()
    with pytest.raises(ValueError, match="no network of the programs or their critics grows"):
        train(Generator((1, 8, 8), latent_dim=2), recipes.r1_gan(), x)
    model, loss = progan()
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
def test_each_stage_is_compiled_and_gives_the_eager_weights():
    """Each stage is compiled for itself; the weights are those of eager steps, to float tolerance."""
    weights = {}
    for compile in (False, True):
        pyro.clear_param_store()
        torch.manual_seed(0)
        model = VAE((1, 8, 8), latent_dim=2, hidden=(4, 6), network="growing")
        statuses: list[str] = []
        note = [lambda step, to=statuses: to.append(step.svi.compile_status)]
        train(model, ppgen.ELBO(), images(), steps=24, compile=compile, callbacks=note)
        weights[compile] = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert "compiled" in statuses[11]
    assert not statuses[12]  # a new stage
    assert "compiled" in statuses[23]
    for name, weight in weights[False].items():
        torch.testing.assert_close(weights[True][name], weight, atol=2e-4, rtol=2e-3)


@pytest.mark.slow
def test_a_change_of_level_outside_fit_recompiles_the_step():
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
