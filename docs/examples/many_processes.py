"""A VAE that all processes train together.

torchrun --nproc-per-node=2 docs/examples/many_processes.py weights.safetensors
srun --ntasks=2 python docs/examples/many_processes.py weights.safetensors
"""

import sys

import torch

import ppgen
from ppgen.infer.distributed import joined


def main(path: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(200, 3)  # all processes have all data; each sees its share of every batch
    vae = ppgen.models.VAE((3,), latent_dim=2, hidden=(8,))
    with joined() as ranks:
        fit = ppgen.fit(vae.model, vae.guide, x, epochs=5, batch_size=20, compile=False, progress=False)
        if ranks.first:  # the fit is the same on all ranks
            fit.save(path)
            print(f"{ranks.size} processes: loss {fit.history['loss'][-1]:.4f}")


if __name__ == "__main__":
    main(sys.argv[1])
