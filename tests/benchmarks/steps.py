"""Median time of a whole training step: ppgen's SVI, stock Pyro's SVI and hand-written torch, side by side in one run.

Programs: the VAE 784-400-20 of Kingma & Welling at batch 128 (Bernoulli, KL in closed form), and eight schools with a
mean-field Gaussian guide. Peers alternate in short blocks, so that a slow moment of the machine meets all of them.

    python tests/benchmarks/steps.py [--blocks 20]
"""

import argparse
import statistics
import time
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

import ppgen

Y = torch.tensor([28.0, 8, -3, 7, -1, 1, 18, 12])
S = torch.tensor([15.0, 10, 16, 11, 9, 11, 10, 18])


def vae_steps() -> dict[str, Callable[[], object]]:
    x = (torch.rand(128, 784) > 0.5).float()

    def networks():
        encoder = nn.Sequential(nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 40))
        decoder = nn.Sequential(nn.Linear(20, 400), nn.ReLU(), nn.Linear(400, 784))
        return encoder, decoder

    def programs(name):  # Pyro's store goes by name: under one name the second would train the first's networks
        encoder, decoder = networks()

        def model(x):
            pyro.module(f"{name} decoder", decoder)
            with pyro.plate("data", x.shape[0]):
                z = pyro.sample("z", dist.Normal(x.new_zeros(x.shape[0], 20), 1.0).to_event(1))
                pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

        def guide(x):
            pyro.module(f"{name} encoder", encoder)
            with pyro.plate("data", x.shape[0]):
                loc, log_scale = encoder(x).chunk(2, -1)
                pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

        return model, guide

    ours = ppgen.SVI(*programs("ppgen"), torch.optim.Adam, ppgen.Reconstruction() + ppgen.Rate())
    stock = pyro.infer.SVI(*programs("stock"), pyro.optim.Adam({"lr": 1e-3}), TraceMeanField_ELBO())
    encoder, decoder = networks()
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()])

    def hand():
        optimizer.zero_grad()
        loc, log_scale = encoder(x).chunk(2, -1)
        z = loc + log_scale.exp() * torch.randn_like(loc)
        kl = 0.5 * (loc**2 + (2 * log_scale).exp() - 1 - 2 * log_scale).sum()
        loss = binary_cross_entropy_with_logits(decoder(z), x, reduction="sum") + kl
        loss.backward()
        optimizer.step()
        return loss.item()

    return {"ppgen": lambda: ours.step(x), "stock Pyro": lambda: stock.step(x), "hand-written torch": hand}


def schools_steps() -> dict[str, Callable[[], object]]:
    def model(y, s):
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = pyro.sample("tau", dist.HalfCauchy(5.0))
        with pyro.plate("data", 8):
            theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(mu + tau * theta, s), obs=y)

    ours = ppgen.SVI(model, AutoNormal(model), torch.optim.Adam, ppgen.Evidence())
    # another name, so that Pyro's store keeps the two guides apart
    stock_guide = pyro.nn.PyroModule("stock")
    stock_guide.guide = AutoNormal(model)
    stock = pyro.infer.SVI(model, stock_guide.guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
    loc, raw = nn.Parameter(torch.zeros(10)), nn.Parameter(torch.full((10,), -2.0))
    optimizer = torch.optim.Adam([loc, raw])

    def hand():
        optimizer.zero_grad()
        q = torch.distributions.Normal(loc, softplus(raw))
        z = q.rsample()
        mu, tau, theta = z[0], z[1].exp(), z[2:]
        log_p = torch.distributions.Normal(0.0, 5.0).log_prob(mu)
        log_p = log_p + torch.distributions.HalfCauchy(5.0).log_prob(tau) + z[1]
        log_p = log_p + torch.distributions.Normal(0.0, 1.0).log_prob(theta).sum()
        log_p = log_p + torch.distributions.Normal(mu + tau * theta, S).log_prob(Y).sum()
        loss = q.log_prob(z).sum() - log_p
        loss.backward()
        optimizer.step()
        return loss.item()

    return {"ppgen": lambda: ours.step(Y, S), "stock Pyro": lambda: stock.step(Y, S), "hand-written torch": hand}


def medians(steps: dict[str, Callable[[], object]], blocks: int, block: int = 20) -> dict[str, float]:
    """Median milliseconds a step, after a warm-up block of each."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(blocks + 1):
        for name, step in steps.items():
            for _ in range(block):
                start = time.perf_counter()
                step()
                if number:
                    times[name].append(time.perf_counter() - start)
    return {name: 1e3 * statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--blocks", type=int, default=20)
    blocks = parser.parse_args().blocks
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; median ms a step, and ppgen's speed-up")
    for program, make in {"VAE 784-400-20, batch 128": vae_steps, "eight schools, mean field": schools_steps}.items():
        result = medians(make(), blocks)
        print(program)
        for name, value in result.items():
            print(f"  {name:20s} {value:8.3f} ms   {value / result['ppgen']:5.2f} x")


if __name__ == "__main__":
    main()
