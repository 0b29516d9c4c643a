"""Settings with a name, ``ppgen train METHOD SOURCE --preset NAME``: options that later options override.

"images" is for images of 28 or 32 pixels on two cores, where each method ends within about fifteen minutes. "gpu" is
for the same images on one GPU, with wider networks and larger batches. To add a setting, add its options to the rows of
`PRESETS`; `tests/benchmarks/images.py` trains and compares them.
"""

from collections.abc import Mapping
from typing import Any

__all__ = ["PRESETS", "preset", "presets_of"]

AUTOENCODERS = ("ae", "wae", "aae", "vae", "iwae", "info_vae", "vae_gan")
GANS = ("gan", "f_gan", "lsgan", "hinge_gan", "r1_gan", "r3_gan", "wgan", "wgan_gp", "wgan_clip")
DENOISERS = ("ddpm", "edm", "vdm", "fm", "ot_fm")

# Gray levels as they are: noise that dequantizes them would be one more thing to imitate.
SHARP = {"data.form": "unit"}
# One standard deviation for all pixels: with one for each, a decoder first explains strokes by noise, not by its means.
ONE_SCALE = {"model.covariance": "scalar", "model.scale": 0.2}
WIDE = [64, 128, 256]
# A game with zero-centered penalties converges without momentum, which would amplify its rotation, and small networks
# learn at a higher rate than that of the table of defaults.
CENTERED = {"lr": 1e-3, "betas": [0.0, 0.99], "loss.lr": 1e-3, "loss.betas": [0.0, 0.99]}
DECAY = {"fit.lr_scheduler": "cosine"}

Options = Mapping[str, Any]
Rows = tuple[tuple[tuple[str, ...], Options], ...]

# by the name of the setting: methods, and their options; a method has the options of all rows that name it
PRESETS: dict[str, Rows] = {
    "images": (
        (AUTOENCODERS, ONE_SCALE | {"model.latent_dim": 32, "fit.batch_size": 64, "fit.steps": 24_000} | DECAY),
        (("wae",), SHARP),  # which is drawn from, and has no density
        ((*GANS, "ali"), SHARP | {"model.latent_dim": 64, "fit.batch_size": 64, "fit.steps": 8000}),
        (("r1_gan", "r3_gan"), CENTERED),
        (("wgan", "wgan_gp", "wgan_clip"), {"fit.steps": 4000}),  # with five steps of the critic in each
        (("progan",), SHARP | {"model.latent_dim": 64, "fit.batch_size": 32, "fit.steps": 6000}),
        (("glow",), {"model.layers": 6, "fit.batch_size": 64, "fit.steps": 2000} | DECAY),
        (DENOISERS, {"model.hidden": [32, 64, 64], "fit.batch_size": 64, "fit.steps": 4000}),
    ),
    "gpu": (
        (AUTOENCODERS, ONE_SCALE | {"model.hidden": WIDE, "model.latent_dim": 64, "fit.batch_size": 256}),
        ((*GANS, "ali"), SHARP | {"model.hidden": WIDE, "model.latent_dim": 128, "fit.batch_size": 256}),
        (GANS, {"loss.hidden": WIDE}),
        (("progan",), SHARP | {"model.latent_dim": 128, "fit.batch_size": 64}),
        (("glow",), {"model.layers": 16, "model.hidden": [256, 256], "fit.batch_size": 128}),
        (DENOISERS, {"model.hidden": [64, 128, 128], "fit.batch_size": 256}),
        (
            (*AUTOENCODERS, *GANS, "ali", "progan", "glow", *DENOISERS),
            {"fit.device": "cuda", "fit.steps": 30_000} | DECAY,
        ),
        (("progan",), {"fit.lr_scheduler": None}),  # or the last scale would learn at the lowest rate
    ),
}


def presets_of(method: str) -> tuple[str, ...]:
    """The names of the settings that a method has.

    Args:
        method: A row of `ppgen.runs.methods.METHODS`.
    """
    return tuple(name for name, rows in PRESETS.items() if any(method in methods for methods, _ in rows))


def preset(name: str, method: str) -> dict[str, Any]:
    """The options of a setting for a method, by their names on the command line.

    Args:
        name: A row of `PRESETS`.
        method: A row of `ppgen.runs.methods.METHODS`.
    """
    options: dict[str, Any] = {}
    for methods, row in PRESETS[name]:
        if method in methods:
            options |= row
    return options
