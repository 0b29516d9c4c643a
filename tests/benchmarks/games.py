"""The step of a game timed: WGAN-GP, five steps of the critic and one of the generator, against hand-written torch.

    python tests/benchmarks/games.py [--blocks 20] [--threads 1] [--device cpu] [--width 128]

Generator and critic have three hidden layers of `width` units, ReLU, on the ring of eight Gaussians in the plane, batch
256. A critic of all peers sees one batch of data in its five steps, and new draws each time. The hand-written compiled
peer compiles loss and gradients of each side as one function (torch.func, since torch.compile takes no second
derivatives through autograd) and steps torch's fused Adam.
"""

import argparse
from collections.abc import Callable
from functools import partial

import pyro
import pyro.distributions as dist
import torch
from peers import OURS, OURS_EAGER, Peer
from steps import machine, medians, warm_up
from torch import Tensor, nn

import ppgen
from ppgen.data import gaussians_ring

BATCH, LATENT, CRITIC_STEPS, WEIGHT = 256, 2, 5, 10.0
ADAM = {"lr": 1e-4, "betas": (0.5, 0.9)}


def networks(width: int, device: str) -> tuple[nn.Module, nn.Module]:
    """Generator and critic, of one seed."""
    torch.manual_seed(0)

    def dense(inputs: int, outputs: int) -> nn.Sequential:
        widths = [inputs, width, width, width]
        layers = [layer for i in range(3) for layer in (nn.Linear(widths[i], widths[i + 1]), nn.ReLU())]
        return nn.Sequential(*layers, nn.Linear(width, outputs)).to(device)

    return dense(LATENT, 2), dense(2, 1)


def pyro_game(name: str, width: int, device: str) -> tuple[Callable, Callable, ppgen.Objective]:
    """The game as a Pyro program and an objective."""
    generator, critic = networks(width, device)
    zero = torch.zeros(LATENT, device=device)

    def model(x: Tensor) -> None:
        pyro.module(name, generator)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(zero, 1.0).to_event(1))
            pyro.sample("x", dist.Delta(generator(z), event_dim=1), obs=x)

    def guide(x: Tensor) -> None:
        """Nothing is inferred."""

    optim = partial(torch.optim.Adam, **ADAM)
    return model, guide, ppgen.recipes.wgan_gp(critic, weight=WEIGHT, steps=CRITIC_STEPS, optim=optim)


def by_ppgen(x: Tensor, width: int, device: str, *, compile: bool) -> Callable[[], float]:
    model, guide, loss = pyro_game(f"ppgen {compile}", width, device)
    svi = ppgen.SVI(model, guide, partial(torch.optim.Adam, **ADAM), loss, compile=compile)
    return lambda: svi.step(x)


def by_pyro(x: Tensor, width: int, device: str) -> Callable[[], float]:
    model, guide, loss = pyro_game("stock", width, device)
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam(ADAM), loss)
    return lambda: svi.step(x)


def by_hand(x: Tensor, width: int, device: str) -> Callable[[], float]:
    """As its own users write it."""
    generator, critic = networks(width, device)
    of_generator = torch.optim.Adam(generator.parameters(), **ADAM)
    of_critic = torch.optim.Adam(critic.parameters(), **ADAM)

    def step() -> float:
        for _ in range(CRITIC_STEPS):
            with torch.no_grad():
                y = generator(torch.randn(BATCH, LATENT, device=device))
            t = torch.rand(BATCH, 1, device=device)
            u = (t * x + (1 - t) * y).requires_grad_()
            slope = torch.autograd.grad(critic(u).sum(), u, create_graph=True)[0].norm(dim=1)
            loss = critic(y).mean() - critic(x).mean() + WEIGHT * ((slope - 1) ** 2).mean()
            of_critic.zero_grad()
            loss.backward()
            of_critic.step()
        loss = critic(x).mean() - critic(generator(torch.randn(BATCH, LATENT, device=device))).mean()
        of_generator.zero_grad()
        loss.backward()
        of_generator.step()
        return loss.item()

    return step


def by_hand_compiled(x: Tensor, width: int, device: str) -> Callable[[], float]:
    """Loss and gradients of each side compiled as one function, the optimizers fused."""
    generator, critic = networks(width, device)
    parts = [{name: p for name, p in net.named_parameters()} for net in (generator, critic)]  # noqa: C416
    (g, c), run = parts, torch.func.functional_call
    held = [{name: p.detach() for name, p in part.items()} for part in parts]  # alias the parameters
    of_generator, of_critic = (torch.optim.Adam(part.values(), **ADAM, fused=True) for part in parts)

    def critic_loss(critics: dict, generators: dict) -> Tensor:
        y = run(generator, generators, (torch.randn(BATCH, LATENT, device=device),))
        t = torch.rand(BATCH, 1, device=device)
        u = t * x + (1 - t) * y
        slope = torch.func.grad(lambda u: run(critic, critics, (u,)).sum())(u).norm(dim=1)
        scores = run(critic, critics, (y,)).mean() - run(critic, critics, (x,)).mean()
        return scores + WEIGHT * ((slope - 1) ** 2).mean()

    def generator_loss(generators: dict, critics: dict) -> Tensor:
        y = run(generator, generators, (torch.randn(BATCH, LATENT, device=device),))
        return run(critic, critics, (x,)).mean() - run(critic, critics, (y,)).mean()

    fast_critic = torch.compile(torch.func.grad_and_value(critic_loss))
    fast_generator = torch.compile(torch.func.grad_and_value(generator_loss))

    def move(gradients: dict, part: dict, optimizer: torch.optim.Optimizer) -> None:
        for name, gradient in gradients.items():
            part[name].grad = gradient
        optimizer.step()

    def step() -> float:
        for _ in range(CRITIC_STEPS):
            gradients, _ = fast_critic(held[1], held[0])
            move(gradients, c, of_critic)
        gradients, value = fast_generator(held[0], held[1])
        move(gradients, g, of_generator)
        return value.item()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--blocks", type=int, default=20, help="turns of each peer, of 20 steps")
    parser.add_argument("--threads", type=int, help="torch's threads")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--width", type=int, default=128, help="of the hidden layers")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {machine()}")
    x = torch.as_tensor(gaussians_ring(BATCH)[0], device=options.device)
    of = (x, options.width, options.device)
    ready = {
        OURS: Peer(OURS, by_ppgen(*of, compile=True)),
        OURS_EAGER: Peer(OURS_EAGER, by_ppgen(*of, compile=False)),
        "stock Pyro, the same loss": Peer("stock", by_pyro(*of)),
        "hand-written, eager": Peer("eager", by_hand(*of), aim=3.0),
        "hand-written, compiled gradients": Peer("compiled", by_hand_compiled(*of), aim=1.2),
    }
    game = f"{CRITIC_STEPS} critic steps and one of the generator, 3 x {options.width}, batch {BATCH}"
    print(f"\nstep time: WGAN-GP, {game}")
    first = {name: warm_up(peer) for name, peer in ready.items()}
    times = medians(ready, options.blocks)
    print(f"  {'':34}{'ms a step':>10}{'x ours':>8}{'aim':>6}{'first steps, s':>16}")
    for name, peer in ready.items():
        aim = "-" if peer.aim is None else f"{peer.aim:g}"
        print(f"  {name:34}{times[name]:#10.4g}{times[name] / times[OURS]:8.2f}{aim:>6}{first[name][1]:16.2f}")


if __name__ == "__main__":
    main()
