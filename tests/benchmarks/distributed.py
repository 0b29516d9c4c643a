"""The time of a step of many processes: 2 ranks of 1 thread beside 1 process of 2 threads, and beside torch's DDP.

    python tests/benchmarks/distributed.py [--rounds 12] [--steps 30] [--ranks 2]

All train the VAE 784-400-20 on 256 rows a step with fused Adam; DDP trains the same VAE written by hand. They take
turns within one run, and the table has medians over rounds with the quartiles, since the speed of shared machines
varies. The sum over ranks is timed alone, on a tensor as long as the VAE's gradient.
"""

import argparse
import functools
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable

import pyro
import pyro.distributions as pd
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import ppgen
from ppgen.infer.distributed import Ranks

ROWS = 256  # of a global batch
adam = functools.partial(torch.optim.Adam, lr=1e-3, fused=True)


class VAE(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 40))
        self.decoder = nn.Sequential(nn.Linear(20, 400), nn.ReLU(), nn.Linear(400, 784))

    def forward(self, x: Tensor) -> Tensor:
        """The negative ELBO, by hand."""
        loc, log_scale = self.encoder(x).chunk(2, -1)
        z = loc + log_scale.exp() * torch.randn_like(loc)
        error = F.binary_cross_entropy_with_logits(self.decoder(z), x, reduction="sum")
        rate = 0.5 * (loc**2 + (2 * log_scale).exp() - 1 - 2 * log_scale).sum()
        return (error + rate) / len(x)

    def model(self, x: Tensor) -> None:
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", pd.Normal(x.new_zeros(20), 1.0).to_event(1))
            pyro.sample("x", pd.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            loc, log_scale = self.encoder(x).chunk(2, -1)
            pyro.sample("z", pd.Normal(loc, log_scale.exp()).to_event(1))


def ppgen_step(x: Tensor, compile: bool, ranks: Ranks) -> Callable[[], object]:
    vae = VAE()
    loss = ppgen.Reconstruction() + ppgen.Rate()
    svi = ppgen.SVI(vae.model, vae.guide, adam, loss, compile=compile, ranks=ranks)
    ranks.plates = ("data",)

    def step() -> object:
        ranks.begin_step(len(x), ROWS)
        return svi.step(x)

    return step


def ddp_step(x: Tensor) -> Callable[[], object]:
    vae = DistributedDataParallel(VAE())
    optimizer = adam(vae.parameters())

    def step() -> float:
        optimizer.zero_grad()
        loss = vae(x)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def process(rank: int, options: argparse.Namespace, path: str) -> None:
    torch.set_num_threads(1)
    size = options.ranks
    dist.init_process_group("gloo", store=dist.FileStore(path, size), rank=rank, world_size=size)
    whole = torch.rand(ROWS, 784).round()
    x = whole.tensor_split(size)[rank]
    numbers = sum(p.numel() for p in VAE().parameters())
    flat = torch.zeros(numbers)
    steps: dict[str, tuple[int, Callable[[], object]]] = {
        f"ppgen compiled, {size} ranks x 1 thread": (1, ppgen_step(x, True, Ranks())),
        f"ppgen eager, {size} ranks x 1 thread": (1, ppgen_step(x, False, Ranks())),
        f"DDP by hand, {size} ranks x 1 thread": (1, ddp_step(x)),
        f"sum of {numbers:,} numbers over {size} ranks": (1, lambda: dist.all_reduce(flat)),
    }
    for name, compile in (("compiled", True), ("eager", False)):
        steps[f"ppgen {name}, 1 process x {size} threads"] = size, ppgen_step(whole, compile, Ranks(alone=True))
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(options.rounds + 1):
        for name, (threads, step) in steps.items():
            dist.barrier()
            if threads > 1 and rank > 0:
                continue
            torch.set_num_threads(threads)
            start = time.perf_counter()
            for _ in range(options.steps):
                step()
            if turn:  # the first turn compiles
                times[name].append(1000 * (time.perf_counter() - start) / options.steps)
            torch.set_num_threads(1)
    dist.barrier()
    if rank == 0:
        show(times)
    dist.destroy_process_group()


def show(times: dict[str, list[float]]) -> None:
    print("| a step of 256 rows | ms | quartiles |\n|---|---|---|")
    for name, values in times.items():
        low, _, high = statistics.quantiles(values)
        print(f"| {name} | {statistics.median(values):.2f} | {low:.2f} to {high:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--ranks", type=int, default=2)
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        workers = [context.Process(target=process, args=(r, options, f"{folder}/store")) for r in range(options.ranks)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()


if __name__ == "__main__":
    main()
