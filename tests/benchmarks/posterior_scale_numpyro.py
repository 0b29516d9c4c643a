"""NumPyro beside ``guide="auto"`` on the programs of `posterior_scale.py`: a mean-field guide, or NUTS.

    python tests/benchmarks/posterior_scale_numpyro.py rows 20000 --seconds 20
    python tests/benchmarks/posterior_scale_numpyro.py groups 300 --nuts

prints a row for each: AutoNormal by SVI for so many seconds (of the processor, without compiling), with batches of 1000
rows where rows are many and all rows for the others, in a scan of 100 steps; or one chain of NUTS, 500 steps of
adaptation and 500 draws. The error is that of `posterior_scale.py`. NumPyro is installed beside ppgen for this alone.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import torch
from numpyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal
from posterior_scale import BATCH, KINDS, error

SCAN, DRAWS = 100, 500


def logistic(x: Any, y: Any, size: int | None = None) -> None:
    intercept = numpyro.sample("intercept", dist.Normal(0.0, 2.0))
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0).expand([x.shape[1]]).to_event(1))
    with numpyro.plate("data", size or len(x), subsample_size=len(x)):
        numpyro.sample("y", dist.Bernoulli(logits=intercept + x @ slope), obs=y)


def hierarchy(groups: int) -> Callable[..., None]:
    def model(index: Any, x: Any, y: Any) -> None:
        mean = numpyro.sample("mean", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        spread = numpyro.sample("spread", dist.HalfNormal(1.0).expand([2]).to_event(1))
        with numpyro.plate("groups", groups):
            effect = numpyro.sample("effect", dist.Normal(mean, spread).to_event(1))
        with numpyro.plate("data", len(y)):
            numpyro.sample("y", dist.Poisson(jnp.exp(effect[index, 0] + effect[index, 1] * x)), obs=y)

    return model


def effects(persons: int, items: int) -> Callable[..., None]:
    def model(person: Any, item: Any, y: Any) -> None:
        noise = numpyro.sample("noise", dist.HalfNormal(1.0))
        mean = numpyro.sample("mean", dist.Normal(0.0, 2.0))
        spread = numpyro.sample("spread", dist.HalfNormal(1.0).expand([2]).to_event(1))
        with numpyro.plate("persons", persons):
            a = numpyro.sample("a", dist.Normal(0.0, spread[0]))
        with numpyro.plate("items", items):
            b = numpyro.sample("b", dist.Normal(0.0, spread[1]))
        with numpyro.plate("data", len(y)):
            numpyro.sample("y", dist.Normal(mean + a[person] + b[item], noise), obs=y)

    return model


def by_svi(model: Callable, data: tuple, seconds: float, *, batches: bool) -> tuple[str, float, dict[str, Any]]:
    """A text, the seconds, and draws of an AutoNormal guide."""
    guide, size = AutoNormal(model), len(data[0])
    svi = SVI(model, guide, numpyro.optim.Adam(0.01), Trace_ELBO())

    def step(state: Any, key: Any) -> tuple[Any, None]:
        if not batches:
            return svi.update(state, *data)[0], None
        chosen = jax.random.randint(key, (BATCH,), 0, size)
        return svi.update(state, *(part[chosen] for part in data), size)[0], None

    scan = jax.jit(lambda state, key: jax.lax.scan(step, state, jax.random.split(key, SCAN))[0])
    state = svi.init(jax.random.PRNGKey(0), *(part[:BATCH] if batches else part for part in data))
    jax.block_until_ready(scan(state, jax.random.PRNGKey(1)))
    begin, count = time.process_time(), 0
    while time.process_time() - begin < seconds:
        state = jax.block_until_ready(scan(state, jax.random.PRNGKey(count)))
        count += SCAN
    spent = time.process_time() - begin
    draws = guide.sample_posterior(jax.random.PRNGKey(1), svi.get_params(state), sample_shape=(DRAWS,))
    return f"NumPyro AutoNormal, {count} steps", spent, draws


def by_nuts(model: Callable, data: tuple) -> tuple[str, float, dict[str, Any]]:
    """A text, the seconds, and draws of one chain."""
    chain = MCMC(NUTS(model), num_warmup=DRAWS, num_samples=DRAWS, progress_bar=False)
    begin = time.process_time()
    chain.run(jax.random.PRNGKey(0), *data)
    return "NumPyro NUTS, one chain", time.process_time() - begin, chain.get_samples()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("rows", "groups", "rated"))
    parser.add_argument("size", type=int)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--nuts", action="store_true")
    options = parser.parse_args()
    made, truth = KINDS[options.kind][1](options.size)
    data = tuple(jnp.asarray(part.numpy()) for part in made)
    models = {"rows": logistic, "groups": hierarchy(options.size)}
    model = models.get(options.kind) or effects(options.size // 40, options.size // 400)
    if options.nuts:
        text, seconds, draws = by_nuts(model, data)
    else:
        batches = options.kind == "rows" and options.size > BATCH
        text, seconds, draws = by_svi(model, data, options.seconds, batches=batches)
    found = {k: torch.as_tensor(jax.device_get(draws[k]).copy()) for k in truth}
    print(f"| {options.kind} {options.size} | {text} | {seconds:.1f} | {error(found, truth):.1f} |")


if __name__ == "__main__":
    main()
