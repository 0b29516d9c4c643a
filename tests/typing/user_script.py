"""A user's script, which `mypy --strict` accepts: the public functions have real signatures and return types."""

from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

import ppgen
from ppgen import evaluation, flows, metrics, models, recipes, views
from ppgen.diagnostics import Verdict

decoder, encoder = nn.Linear(2, 5), nn.Linear(5, 4)


def model(x: Tensor) -> None:
    """A linear VAE."""
    pyro.module("decoder", decoder)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)


def guide(x: Tensor) -> None:
    """Its guide."""
    pyro.module("encoder", encoder)
    with pyro.plate("data", len(x)):
        loc, log_scale = encoder(x).chunk(2, -1)
        pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


x = torch.randn(100, 5)
loss = ppgen.ELBO() + 10 * ppgen.match(views.posterior("z"), views.prior("z"), metrics.MMD())
fit: ppgen.Fit = ppgen.fit(model, guide, x, loss=loss, steps=10, lr_scheduler="cosine", progress=False)
verdict: Verdict = fit.diagnose(x, draws=50)
level: str = verdict.level
page: Path = fit.report("page.html", x, draws=50)
terms: dict[str, float] = fit.breakdown(x)
idata = fit.to_arviz(x, draws=50)
flow: flows.Flow = flows.nsf(2)
vae = models.VAE((5,), latent_dim=2)
rows: Tensor = vae.sample(10)
svi = ppgen.SVI(vae.model, vae.guide, torch.optim.Adam, recipes.vae(beta=ppgen.Ramp(1.0, steps=10)))
value: float = svi.step(x)
p_value: float = evaluation.mmd_test(x, rows).p_value
