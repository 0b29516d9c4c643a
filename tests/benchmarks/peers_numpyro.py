"""NumPyro as a peer: the same programs with jitted single steps, or scanned over many steps."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from numpyro.infer.autoguide import AutoNormal
from numpyro.infer.initialization import init_to_feasible
from peers import JITTED, RATE, SCANNED, Peer
from programs import LATENT, Program, vae_networks

SCAN_STEPS = 1000  # in one scan
AIMS = {("schools", SCANNED): 1.8, ("vae", JITTED): 1.1}


def schools():
    def model(y, s):
        mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
        with numpyro.plate("data", 8):
            theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
            numpyro.sample("y", dist.Normal(mu + tau * theta, s), obs=y)

    return model, AutoNormal(model, init_loc_fn=init_to_feasible), Trace_ELBO()


def vae():
    weights = {}
    for name, layers in zip(("encoder", "decoder"), vae_networks("cpu"), strict=True):
        values = {part: value.numpy() for part, value in layers.state_dict().items()}
        weights[name] = [(jnp.asarray(values[f"{i}.weight"].T), jnp.asarray(values[f"{i}.bias"])) for i in (0, 2)]

    def network(name, h):
        for i, (weight, bias) in enumerate(weights[name]):
            h = jax.nn.relu(h) if i else h
            h = h @ numpyro.param(f"{name} weight {i}", weight) + numpyro.param(f"{name} bias {i}", bias)
        return h

    def model(x):
        with numpyro.plate("data", x.shape[0]):
            z = numpyro.sample("z", dist.Normal(jnp.zeros((x.shape[0], LATENT)), 1.0).to_event(1))
            numpyro.sample("x", dist.Bernoulli(logits=network("decoder", z)).to_event(1), obs=x)

    def guide(x):
        with numpyro.plate("data", x.shape[0]):
            loc, log_scale = jnp.split(network("encoder", x), 2, -1)
            numpyro.sample("z", dist.Normal(loc, jnp.exp(log_scale)).to_event(1))

    return model, guide, TraceMeanField_ELBO()


def make(key: str, name: str, program: Program) -> Peer:
    """Makes the peer of a program: `JITTED` or `SCANNED`."""
    model, guide, elbo = {"schools": schools, "vae": vae}[key]()
    batch = tuple(jnp.asarray(part.numpy()) for part in program.batch)
    svi = SVI(model, guide, numpyro.optim.Adam(RATE), elbo)
    state = svi.init(jax.random.PRNGKey(0), *batch)
    one_step = jax.jit(svi.update)
    many_steps = jax.jit(lambda state: jax.lax.scan(lambda s, _: svi.update(s, *batch), state, None, length=SCAN_STEPS))

    def step() -> float:
        nonlocal state
        state, loss = one_step(state, *batch)
        return float(loss)

    def scan() -> list[float]:
        nonlocal state
        state, losses = many_steps(state)
        return np.asarray(losses).tolist()

    aim = AIMS.get((key, name))
    if name == SCANNED:
        return Peer(name, scan, program.rows, aim, SCAN_STEPS)
    return Peer(name, step, program.rows, aim)
