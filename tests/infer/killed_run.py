"""A run of several ranks, of which one may kill itself: STEP (0 for none) CHECKPOINT WEIGHTS."""

import os
import signal
import sys
import weakref

import torch
import torch.distributed as dist

import ppgen
from ppgen.fitting import TrainingStep
from ppgen.infer.distributed import joined


def main(step: int, checkpoint: str, weights: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(200, 3)
    vae = ppgen.models.VAE((3,), latent_dim=2, hidden=(8,))
    with joined() as ranks:
        group = weakref.ref(dist.group.WORLD)

        def die(training: TrainingStep) -> None:
            if ranks.rank == 1 and training.number == step:
                os.kill(os.getpid(), signal.SIGKILL)

        options = {"steps": 40, "batch_size": 20, "compile": False, "progress": False, "callbacks": [die]}
        fit = ppgen.fit(vae.model, vae.guide, x, checkpoint=checkpoint, **options)
        if ranks.first:
            fit.save(weights)
    assert group() is None, "the group outlives its end, and its threads may abort the process when Python ends"


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
