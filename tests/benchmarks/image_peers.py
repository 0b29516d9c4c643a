"""Images by other libraries, each trained for the same seconds of processor time as the rows of `images.py`.

    python tests/benchmarks/images.py --out OUT --export --only
    python tests/benchmarks/image_peers.py --out OUT [--only pythae_vae torchcfm ...] [--seconds 120] [--draws 1000]

Each peer trains on OUT/train.npy and writes OUT/NAME.npy, draws with values from 0 to 1, and OUT/NAME.json, the row
of the table as far as it is known here: steps, minutes, parameters, and bits per dimension of OUT/test.npy for a flow.
`images.py --draws NAME=OUT/NAME.npy` measures them. A peer that has a file there is not trained again.

Networks: pythae's are its own convolutional benchmark networks for MNIST (128 to 1024 channels); "same network" has
those of ppgen's VAE in their place. torchcfm and azula have ppgen's U-Net with its embedding of the noise level,
normflows a glow of about the size of ppgen's. Training: Adam, batches of 64, and a learning rate that falls from 1e-3
as a cosine over the time that there is; flow matching and denoisers have averaged weights, as in ppgen. pythae has no
GAN; its VAE-GAN is what comes closest.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from ppgen.diffusion.denoiser import NoiseEmbedding
from ppgen.models import VAE
from ppgen.nets import UNet, eval_mode

LATENT = 32
CHUNK = 250  # draws at a time
SOLVER_STEPS = 18  # of two evaluations, as the default sampler of ppgen
LEVELS = 256
CHANNELS = (32, 64, 64)  # of the U-Net


class Trained(NamedTuple):
    """What a peer leaves.

    Attributes:
        sample: a function of the number of draws.
        steps: the steps of training.
        module: the parameters.
        bits: bits per dimension of images, for a flow.
    """

    sample: Callable[[int], Tensor]
    steps: int
    module: nn.Module
    bits: Callable[[Tensor], float] | None = None


class Average:
    """Averaged weights of a module, with the decay of ppgen: 0.999 a step, less at the start."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.average = module, AveragedModel(module, avg_fn=self.moved)

    @staticmethod
    def moved(average: Tensor, new: Tensor, steps: Tensor | int) -> Tensor:
        """The average after a step."""
        return average + (1 - min(0.999, (1 + int(steps)) / (10 + int(steps)))) * (new - average)

    def __call__(self) -> None:
        self.average.update_parameters(self.module)

    def keep(self) -> None:
        """Gives the module the averaged weights."""
        self.module.load_state_dict(self.average.module.state_dict())


def loop(
    x: Tensor,
    seconds: float,
    loss: Callable[[Tensor], Tensor],
    modules: list[nn.Module],
    *,
    batch_size: int = 64,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    after: Callable[[], None] = lambda: None,
) -> int:
    """Takes steps of Adam until the time is over, with a learning rate that falls to zero as a cosine: their number.

    Args:
        x: the images.
        seconds: of processor time.
        loss: a function of a batch.
        modules: what is trained.
        batch_size: the rows of a batch.
        lr: the learning rate at the start.
        betas: the decay rates of Adam's moments.
        after: what follows each step.
    """
    optim = torch.optim.Adam([p for module in modules for p in module.parameters()], lr=lr, betas=betas)
    start, steps, rows = time.process_time(), 0, torch.empty(0, dtype=torch.long)
    while (part := (time.process_time() - start) / seconds) < 1:
        if len(rows) < batch_size:
            rows = torch.randperm(len(x))
        batch, rows = x[rows[:batch_size]], rows[batch_size:]
        for group in optim.param_groups:
            group["lr"] = lr * 0.5 * (1 + math.cos(math.pi * part))
        optim.zero_grad()
        loss(batch).backward()
        optim.step()
        after()
        steps += 1
    return steps


class NoisyUNet(nn.Module):
    """ppgen's U-Net with its embedding of the noise level, given as the logarithm of the signal-to-noise ratio."""

    def __init__(self, *, by_noise_fraction: bool) -> None:
        super().__init__()
        self.embed = NoiseEmbedding(by_noise_fraction=by_noise_fraction)
        self.network = UNet((1, 28, 28), 1, hidden=CHANNELS, context_dim=NoiseEmbedding.dim)

    def forward(self, z: Tensor, log_snr: Tensor) -> Tensor:
        """The output for images z (n, 1, 28, 28) at the levels log_snr (n,) or (1,)."""
        return self.network(z, self.embed(log_snr.reshape(-1).expand(len(z))))


def wrapped_networks() -> tuple[nn.Module, nn.Module]:
    """The networks of ppgen's VAE as pythae's encoder and decoder."""
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    vae = VAE((1, 28, 28), latent_dim=LATENT, covariance="fixed")

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.network = vae.encoder.network

        def forward(self, x: Tensor) -> Any:
            out = self.network(x)
            return ModelOutput(embedding=out[:, :LATENT], log_covariance=out[:, LATENT:])

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.network = vae.decoder.network

        def forward(self, z: Tensor) -> Any:
            return ModelOutput(reconstruction=self.network(z).reshape(-1, 1, 28, 28).sigmoid())

    return Encoder(), Decoder()


def pythae_model(x: Tensor, seconds: float, *, name: str, same_network: bool = False) -> Trained:
    """An autoencoder of pythae with its defaults; draws are the decoder's outputs at draws of the prior."""
    from pythae import models
    from pythae.models.nn.benchmarks import mnist

    kind = getattr(models, name)
    config = getattr(models, f"{name}_Config" if name == "WAE_MMD" else f"{name}Config")
    config = config(input_dim=(1, 28, 28), latent_dim=LATENT)
    encoder = mnist.Encoder_Conv_AE_MNIST if name == "WAE_MMD" else mnist.Encoder_Conv_VAE_MNIST
    parts = wrapped_networks() if same_network else (encoder(config), mnist.Decoder_Conv_AE_MNIST(config))
    model = kind(config, *parts).train()
    steps = loop(x, seconds, lambda batch: model({"data": batch}).loss, [model])
    model.eval()
    return Trained(lambda n: model.decoder(torch.randn(n, LATENT)).reconstruction, steps, model)


def pythae_vae_gan(x: Tensor, seconds: float) -> Trained:
    """pythae's VAE-GAN, with one Adam for each of the three networks as in its trainer."""
    from pythae.models import VAEGAN, VAEGANConfig
    from pythae.models.nn.benchmarks import mnist

    config = VAEGANConfig(input_dim=(1, 28, 28), latent_dim=LATENT)
    networks = [mnist.Encoder_Conv_VAE_MNIST(config), mnist.Decoder_Conv_AE_MNIST(config)]
    model = VAEGAN(config, *networks, mnist.Discriminator_Conv_MNIST(config)).train()
    parts = {"encoder": model.encoder, "decoder": model.decoder, "discriminator": model.discriminator}

    def loss(batch: Tensor) -> Tensor:
        """Zero, with the gradient of its own loss at each network that the model updates."""
        out = model({"data": batch})
        total = torch.zeros(())
        for part, module in parts.items():
            if not out[f"update_{part}"]:
                continue
            parameters = list(module.parameters())
            gradients = torch.autograd.grad(out[f"{part}_loss"], parameters, retain_graph=True)
            total = total + sum(
                (p * g).sum() - (p * g).sum().detach() for p, g in zip(parameters, gradients, strict=True)
            )
        return total

    steps = loop(x, seconds, loss, [*parts.values()], lr=1e-4)
    model.eval()
    return Trained(lambda n: model.decoder(torch.randn(n, LATENT)).reconstruction, steps, model)


def torchcfm(x: Tensor, seconds: float) -> Trained:
    """Flow matching with independent pairs by torchcfm, and the midpoint rule of torchdiffeq."""
    from torchcfm import ConditionalFlowMatcher
    from torchdiffeq import odeint

    matcher = ConditionalFlowMatcher(sigma=0.0)
    network = NoisyUNet(by_noise_fraction=True).train()
    average = Average(network)

    def loss(batch: Tensor) -> Tensor:
        t, z, velocity = matcher.sample_location_and_conditional_flow(torch.randn_like(batch), batch)
        return (network(z, 2 * t.logit()) - velocity).square().mean()

    steps = loop(2 * x - 1, seconds, loss, [network], after=average)
    average.keep()
    network.eval()

    def sample(n: int) -> Tensor:
        times = torch.linspace(0, 1, SOLVER_STEPS + 1)
        path = odeint(lambda t, z: network(z, 2 * t.logit()), torch.randn(n, 1, 28, 28), times, method="midpoint")
        return (path[-1] + 1) / 2

    return Trained(sample, steps, network)


def azula(x: Tensor, seconds: float) -> Trained:
    """azula's denoiser with EDM's preconditioning, on its variance-preserving schedule, and Heun's method."""
    from azula.denoise import KarrasDenoiser
    from azula.noise import VPSchedule
    from azula.sample import HeunSampler

    class Backbone(NoisyUNet):
        """The network of azula's log (noise / signal)."""

        def forward(self, z: Tensor, t: Tensor) -> Tensor:
            return super().forward(z, -2 * t)

    denoiser = KarrasDenoiser(Backbone(by_noise_fraction=False), VPSchedule()).train()
    average = Average(denoiser)
    steps = loop(
        2 * x - 1,
        seconds,
        lambda batch: denoiser.loss(batch, torch.rand(len(batch))),
        [denoiser],
        after=average,
    )
    average.keep()
    denoiser.eval()
    sampler = HeunSampler(denoiser, steps=SOLVER_STEPS, silent=True)
    return Trained(lambda n: (sampler(sampler.init((n, 1, 28, 28))) + 1) / 2, steps, denoiser)


def normflows_glow(x: Tensor, seconds: float) -> Trained:
    """Two scales of glow blocks of normflows, as in its example, on dequantized gray levels."""
    import normflows as nf

    blocks, hidden, scales = 8, 64, 2
    bases, flows, merges = [], [], []
    for scale in range(scales):
        channels = 2 ** (scales + 1 - scale)
        flows.append([nf.flows.GlowBlock(channels, hidden) for _ in range(blocks)] + [nf.flows.Squeeze()])
        side = 28 // 2 ** (scales - scale)
        bases.append(nf.distributions.DiagGaussian((channels // 2 if scale else channels, side, side)))
        if scale:
            merges.append(nf.flows.Merge())
    model = nf.MultiscaleFlow(bases, flows, merges, class_cond=False).train()

    def dequantized(x: Tensor) -> Tensor:
        return ((x * (LEVELS - 1)).round() + torch.rand_like(x)) / LEVELS

    with torch.no_grad():
        model.forward_kld(dequantized(x[:512]))  # initializes the activation normalization
    steps = loop(x, seconds, lambda batch: model.forward_kld(dequantized(batch)), [model])
    model.eval()

    def bits(x: Tensor) -> float:
        return float(-model.log_prob(dequantized(x), None).mean() / (x[0].numel() * math.log(2)) + math.log2(LEVELS))

    return Trained(lambda n: (model.sample(n)[0] * LEVELS).floor() / (LEVELS - 1), steps, model, bits)


PEERS: dict[str, Callable[[Tensor, float], Trained]] = {
    "pythae_vae": partial(pythae_model, name="VAE"),
    "pythae_vae, same network": partial(pythae_model, name="VAE", same_network=True),
    "pythae_wae": partial(pythae_model, name="WAE_MMD"),
    "pythae_wae, same network": partial(pythae_model, name="WAE_MMD", same_network=True),
    "pythae_rhvae": partial(pythae_model, name="RHVAE"),
    "pythae_rhvae, same network": partial(pythae_model, name="RHVAE", same_network=True),
    "pythae_vae_gan": pythae_vae_gan,
    "torchcfm": torchcfm,
    "azula": azula,
    "normflows_glow": normflows_glow,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=[*PEERS], choices=[*PEERS])
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    x, test = (torch.as_tensor(np.load(options.out / f"{name}.npy")).float() for name in ("train", "test"))
    for name in options.only:
        path = options.out / f"{name.replace(', ', '_').replace(' ', '_')}.npy"
        if path.exists():
            continue
        torch.manual_seed(options.seed)
        start = time.process_time()
        trained = PEERS[name](x, options.seconds)
        row: dict[str, Any] = {"steps": trained.steps, "minutes": (time.process_time() - start) / 60}
        row["parameters"] = sum(part.numel() for part in trained.module.parameters())
        with eval_mode(trained.module):
            sizes = [min(CHUNK, options.draws - done) for done in range(0, options.draws, CHUNK)]
            drawn = torch.cat([trained.sample(size) for size in sizes]).clamp(0, 1)
            if trained.bits is not None:
                row["bits"] = trained.bits(test)
        path.with_suffix(".json").write_text(json.dumps(row))
        np.save(path, drawn.numpy())
        print(name, row, flush=True)


if __name__ == "__main__":
    main()
