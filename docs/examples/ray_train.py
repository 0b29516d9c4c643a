"""A VAE that two workers of Ray Train train together: python docs/examples/ray_train.py RESULTS

Needs ``pip install ppgen[ray]``. Ray makes the process group; `ppgen.fit` finds it.
"""

import sys
from pathlib import Path

import ray.train
import torch
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

import ppgen


def train(config: dict) -> None:
    torch.manual_seed(0)
    x = torch.randn(200, 3)
    vae = ppgen.models.VAE((3,), latent_dim=2, hidden=(8,))
    fit = ppgen.fit(vae.model, vae.guide, x, epochs=5, batch_size=20, compile=False, progress=False)
    if ray.train.get_context().get_world_rank() == 0:
        fit.save(config["path"])
    ray.train.report({"loss": float(fit.history["loss"][-1])})


def main(folder: str) -> None:
    results = Path(folder).resolve()
    trainer = TorchTrainer(
        train,
        train_loop_config={"path": str(results / "weights.safetensors")},
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(storage_path=str(results)),
        torch_config=TorchConfig(backend="gloo"),
    )
    trainer.fit()


if __name__ == "__main__":
    main(sys.argv[1])
