"""The time of a step of adversarial training: WGAN-GP in ppgen, stock Pyro and hand-written torch.

A step is five steps of the critic and one of the generator. Generator and critic have three hidden layers of `--width`
units, ReLU; the data are the ring of eight Gaussians in the plane, batch 256. All peers use one batch of data in the
five steps of the critic, and new draws in each.

The hand-written compiled peer compiles loss and gradients of each network as one function (torch.func, since
torch.compile takes no second derivatives through autograd) and uses torch's fused Adam.

    python tests/benchmarks/adversarial_steps.py [--blocks 20] [--threads 1] [--device cpu] [--width 128]
"""

import argparse
from collections.abc import Callable
from functools import partial

import pyro
import pyro.distributions as dist
import torch
from peers import PPGEN, PPGEN_EAGER, Peer
from steps import WIDTH, machine, medians, warm_up
from torch import Tensor, nn

import ppgen
from ppgen.data import gaussians_ring

BATCH, LATENT, CRITIC_STEPS, WEIGHT = 256, 2, 5, 10.0
ADAM = {"lr": 1e-4, "betas": (0.5, 0.9)}


def networks(width: int, device: str) -> tuple[nn.Module, nn.Module]:
    """Generator and critic, with the same initial weights in each call."""
    torch.manual_seed(0)

    def dense(inputs: int, outputs: int) -> nn.Sequential:
        widths = [inputs, width, width, width]
        layers = [layer for i in range(3) for layer in (nn.Linear(widths[i], widths[i + 1]), nn.ReLU())]
        return nn.Sequential(*layers, nn.Linear(width, outputs)).to(device)

    return dense(LATENT, 2), dense(2, 1)


def pyro_program(name: str, width: int, device: str) -> tuple[Callable, Callable, ppgen.Objective]:
    """The model, the guide and the loss, in Pyro."""
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


def ppgen_step(x: Tensor, width: int, device: str, *, compile: bool) -> Callable[[], float]:
    model, guide, loss = pyro_program(f"ppgen {compile}", width, device)
    svi = ppgen.SVI(model, guide, partial(torch.optim.Adam, **ADAM), loss, compile=compile)
    return lambda: svi.step(x)


def pyro_step(x: Tensor, width: int, device: str) -> Callable[[], float]:
    model, guide, loss = pyro_program("stock", width, device)
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam(ADAM), loss)
    return lambda: svi.step(x)


def torch_step(x: Tensor, width: int, device: str) -> Callable[[], float]:
    """The step as it is usually written in torch."""
    generator, critic = networks(width, device)
    generator_optim = torch.optim.Adam(generator.parameters(), **ADAM)
    critic_optim = torch.optim.Adam(critic.parameters(), **ADAM)

    def step() -> float:
        for _ in range(CRITIC_STEPS):
            with torch.no_grad():
                y = generator(torch.randn(BATCH, LATENT, device=device))
            t = torch.rand(BATCH, 1, device=device)
            u = (t * x + (1 - t) * y).requires_grad_()
            norm = torch.autograd.grad(critic(u).sum(), u, create_graph=True)[0].norm(dim=1)
            loss = critic(y).mean() - critic(x).mean() + WEIGHT * ((norm - 1) ** 2).mean()
            critic_optim.zero_grad()
            loss.backward()
            critic_optim.step()
        loss = critic(x).mean() - critic(generator(torch.randn(BATCH, LATENT, device=device))).mean()
        generator_optim.zero_grad()
        loss.backward()
        generator_optim.step()
        return loss.item()

    return step


def compiled_torch_step(x: Tensor, width: int, device: str) -> Callable[[], float]:
    """Loss and gradients of each network are compiled as one function; the optimizers are fused."""
    generator, critic = networks(width, device)
    parameters = [dict(network.named_parameters()) for network in (generator, critic)]
    generator_values, critic_values = ({name: p.detach() for name, p in part.items()} for part in parameters)  # aliases
    generator_optim, critic_optim = (torch.optim.Adam(part.values(), **ADAM, fused=True) for part in parameters)
    run = torch.func.functional_call

    def critic_loss(critic_values: dict, generator_values: dict) -> Tensor:
        y = run(generator, generator_values, (torch.randn(BATCH, LATENT, device=device),))
        t = torch.rand(BATCH, 1, device=device)
        u = t * x + (1 - t) * y
        norm = torch.func.grad(lambda u: run(critic, critic_values, (u,)).sum())(u).norm(dim=1)
        scores = run(critic, critic_values, (y,)).mean() - run(critic, critic_values, (x,)).mean()
        return scores + WEIGHT * ((norm - 1) ** 2).mean()

    def generator_loss(generator_values: dict, critic_values: dict) -> Tensor:
        y = run(generator, generator_values, (torch.randn(BATCH, LATENT, device=device),))
        return run(critic, critic_values, (x,)).mean() - run(critic, critic_values, (y,)).mean()

    critic_gradients = torch.compile(torch.func.grad_and_value(critic_loss))
    generator_gradients = torch.compile(torch.func.grad_and_value(generator_loss))

    def update(gradients: dict, parameters: dict, optimizer: torch.optim.Optimizer) -> None:
        for name, gradient in gradients.items():
            parameters[name].grad = gradient
        optimizer.step()

    def step() -> float:
        for _ in range(CRITIC_STEPS):
            gradients, _ = critic_gradients(critic_values, generator_values)
            update(gradients, parameters[1], critic_optim)
        gradients, value = generator_gradients(generator_values, critic_values)
        update(gradients, parameters[0], generator_optim)
        return value.item()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--blocks", type=int, default=20, help="the number of turns of each peer, of 20 steps")
    parser.add_argument("--threads", type=int, help="the number of torch's threads")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--width", type=int, default=128, help="the width of the hidden layers")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {machine()}")
    x = torch.as_tensor(gaussians_ring(BATCH)[0], device=options.device)
    setting = (x, options.width, options.device)
    peers = {
        PPGEN: Peer(PPGEN, ppgen_step(*setting, compile=True)),
        PPGEN_EAGER: Peer(PPGEN_EAGER, ppgen_step(*setting, compile=False)),
        "stock Pyro SVI, the same loss": Peer("stock", pyro_step(*setting)),
        "hand-written torch, eager": Peer("eager", torch_step(*setting), aim=3.0),
        "hand-written torch, loss and gradients compiled": Peer("compiled", compiled_torch_step(*setting), aim=1.2),
    }
    description = f"{CRITIC_STEPS} critic steps and one of the generator, 3 x {options.width}, batch {BATCH}"
    print(f"\nstep time: WGAN-GP, {description}")
    first = {name: warm_up(peer) for name, peer in peers.items()}
    times = medians(peers, options.blocks)
    print(f"  {'':{WIDTH}}{'ms a step':>10}{'peer / ppgen':>14}{'aim':>6}{'first steps, s':>16}")
    for name, peer in peers.items():
        aim = "-" if peer.aim is None else f"{peer.aim:g}"
        print(f"  {name:{WIDTH}}{times[name]:#10.4g}{times[name] / times[PPGEN]:14.2f}{aim:>6}{first[name][1]:16.2f}")


if __name__ == "__main__":
    main()
