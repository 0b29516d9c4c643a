"""The methods of ``ppgen train METHOD``. To add a method, add a row to `METHODS`.

A row names its classes and functions as ``"module:name"``. They are imported when the method is used, so that this
module loads without torch and ``ppgen --help`` is quick.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pkgutil import resolve_name
from typing import Any, Literal

from ppgen.flows.registry import FLOWS, IMAGE_FLOWS

__all__ = ["METHODS", "Method"]


@dataclass(frozen=True)
class Method:
    """A model class that is trained with a recipe.

    Attributes:
        model: The model class, as ``"module:name"``.
        recipe: The function that makes the objective, as ``"module:name"``.
        summary: What the method is, for the help.
        defaults: Defaults of command-line options that are specific to this method.
        conditional: Arguments of the recipe when the model is conditioned on labels.
        network: What its network is for, a row of `ppgen.nets.KINDS`, from which other defaults follow.
        critic: What its critic sees, whose widths are those of this kind of data: "data", or "vectors" such as codes
            and features; None without a critic, or for one that chooses its widths.
        weight_by_elements: Whether the weight of its loss is by default the number of elements of an event: it is that
            of a match of codes, against a log density that is a sum over these elements.
        penalized: Whether the weight of its loss is that of a penalty (|gradient| - 1)^2 of its critic.
        kind: The class of its runs, as ``"module:name"``: a subclass of `ppgen.runs.run.Run`.
    """

    model: str
    recipe: str
    summary: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    conditional: Mapping[str, Any] = field(default_factory=dict)
    network: str = "autoencoder"
    critic: Literal["data", "vectors"] | None = None
    weight_by_elements: bool = False
    penalized: bool = False
    kind: str = "ppgen.runs.data_run:DataRun"

    def model_class(self) -> Callable[..., Any]:
        """Imports and returns the model class."""
        return resolve_name(self.model)

    def recipe_function(self) -> Callable[..., Any]:
        """Imports and returns the recipe."""
        return resolve_name(self.recipe)

    def run_class(self) -> Any:
        """Imports and returns the class of its runs."""
        return resolve_name(self.kind)


# Adversarial training: averaged weights and a decaying learning rate.
ADVERSARIAL = {"fit.ema": 0.999, "fit.lr_scheduler": "cosine"}

# The critic of a generator has the learning rate of the table of defaults, as the generator.
GAN = ADVERSARIAL | {"loss.lr": None}

# A generator that is trained without a critic learns as other networks do.
WITHOUT_CRITIC = {"lr": 1e-3, "betas": (0.9, 0.999)}

# Progressive growing uses small batches. The learning rate is constant, or the last scale would learn at the lowest.
PROGRESSIVE = ADVERSARIAL | {
    "fit.lr_scheduler": None,
    "fit.batch_size": 32,
    "fit.steps": 4000,
    "lr": 1e-3,
    "betas": (0.0, 0.99),
    "model.network": "growing",
    "model.norm": "pixel",
    "model.activation": "leaky_relu",
    "model.latent_dim": 32,
    "data.form": "unit",
    "fit.growth": {"fade": 0.5, "stages": None},
}

# A flow that is fitted to an unnormalized density. There are no data, hence no batches.
REVERSE_KL = {
    "fit.batch_size": None,
    "fit.steps": 8000,
    "fit.lr_scheduler": "cosine",
    "lr": 2e-3,
    "model.layers": 3,
    "model.init_scale": 1.0,
    "loss.anneal": 0.3,
}

# Domain-adversarial training decays its learning rate (Ganin et al. 2016, section 5.2.2).
ADAPTATION = {"fit.lr_scheduler": "cosine"}

# The gradients of diffusion models are noisy: the weights are averaged and the learning rate decays.
DIFFUSION = {"fit.ema": 0.999, "fit.lr_scheduler": "cosine"}

# A critic of a conditional generator compares pairs of data and labels.
_generator = partial(Method, "ppgen.models:Generator", conditional={"x": ("x", "y")}, network="generator")
_gan = partial(_generator, defaults=GAN, critic="data")
_flow = partial(Method, "ppgen.models:FlowModel", "ppgen.losses.recipes:flow_kl", network="flow", critic="data")
_denoiser = partial(Method, network="denoiser")

METHODS: dict[str, Method] = {
    "ae": Method("ppgen.models:Autoencoder", "ppgen.losses.recipes:ae", "an autoencoder, without a prior over codes"),
    "wae": Method(
        "ppgen.models:Autoencoder",
        "ppgen.losses.recipes:wae",
        "a Wasserstein autoencoder: MMD matches the aggregate posterior to the prior N(0, I)",
        weight_by_elements=True,
    ),
    "vae": Method("ppgen.models:VAE", "ppgen.losses.recipes:vae", "a variational autoencoder, with the ELBO"),
    "iwae": Method(
        "ppgen.models:VAE", "ppgen.losses.recipes:iwae", "an importance weighted autoencoder, with the k-sample bound"
    ),
    "info_vae": Method(
        "ppgen.models:VAE",
        "ppgen.losses.recipes:info_vae",
        "an InfoVAE: the ELBO, and MMD between the aggregate posterior and the prior",
    ),
    "aae": Method(
        "ppgen.models:Autoencoder",
        "ppgen.losses.recipes:aae",
        "an adversarial autoencoder: a critic matches the aggregate posterior to the prior N(0, I)",
        critic="vectors",
    ),
    "vae_gan": Method(
        "ppgen.models:VAE",
        "ppgen.losses.recipes:vae_gan",
        "a VAE with a critic of the decoder's outputs",
        critic="data",
    ),
    "gan": _gan("ppgen.losses.recipes:gan", "a GAN with the Jensen-Shannon divergence"),
    "f_gan": _gan("ppgen.losses.recipes:f_gan", "an f-GAN, with any f-divergence"),
    "lsgan": _gan("ppgen.losses.recipes:lsgan", "a least-squares GAN"),
    "hinge_gan": _gan("ppgen.losses.recipes:hinge_gan", "a GAN with the hinge loss and spectral normalization"),
    "r1_gan": _gan("ppgen.losses.recipes:r1_gan", "a GAN with R1, a zero-centered gradient penalty on data"),
    "r3_gan": _gan(
        "ppgen.losses.recipes:r3_gan", "an R3GAN: a relativistic loss, and gradient penalties on data and on samples"
    ),
    "wgan": _gan(
        "ppgen.losses.recipes:wgan_gp",
        "a Wasserstein GAN with gradient penalty (the same as wgan_gp)",
        penalized=True,
    ),
    "wgan_gp": _gan("ppgen.losses.recipes:wgan_gp", "a Wasserstein GAN with gradient penalty", penalized=True),
    "wgan_clip": _gan("ppgen.losses.recipes:wgan_clip", "a Wasserstein GAN with weight clipping"),
    "progan": _generator(
        "ppgen.losses.recipes:progan", "a progressively grown GAN of images, with WGAN-GP", defaults=PROGRESSIVE
    ),
    "ali": Method(
        "ppgen.models:ALI",
        "ppgen.losses.recipes:ali",
        "ALI, or BiGAN: a critic compares pairs of data and codes",
        defaults=GAN,
        conditional={"x": ("x", "y")},
        network="generator",
        critic="data",
    ),
    "mmd_generator": _generator(
        "ppgen.losses.recipes:mmd_generator", "a generator trained with MMD", defaults=WITHOUT_CRITIC
    ),
    "sinkhorn_generator": _generator(
        "ppgen.losses.recipes:sinkhorn_generator",
        "a generator trained with the Sinkhorn divergence",
        defaults=WITHOUT_CRITIC,
    ),
    **{
        name: _flow(f"the normalizing flow {name}, with maximum likelihood", defaults={"model.flow": name})
        for name in (*FLOWS, *IMAGE_FLOWS)
    },
    "ddpm": _denoiser(
        "ppgen.models:Diffusion",
        "ppgen.losses.recipes:ddpm",
        "a diffusion model that predicts the noise",
        defaults=DIFFUSION | {"model.schedule": "linear", "model.prediction_type": "noise"},
    ),
    "edm": _denoiser(
        "ppgen.models:Diffusion",
        "ppgen.losses.recipes:edm",
        "a diffusion model with log-normal noise levels and a preconditioned network",
        defaults=DIFFUSION | {"model.schedule": "karras"},
    ),
    "vdm": _denoiser(
        "ppgen.models:Diffusion",
        "ppgen.losses.recipes:vdm",
        "a variational diffusion model: the ELBO, with a learned variance",
        defaults=DIFFUSION | {"model.variance": "learned"},
    ),
    "fm": _denoiser(
        "ppgen.models:FlowMatching",
        "ppgen.losses.recipes:flow_matching",
        "flow matching with independent pairs of noise and data",
        defaults=DIFFUSION | {"model.coupling": "independent"},
    ),
    "ot_fm": _denoiser(
        "ppgen.models:FlowMatching",
        "ppgen.losses.recipes:flow_matching",
        "flow matching with optimal-transport pairs of noise and data",
        defaults=DIFFUSION | {"model.coupling": "exact"},
    ),
    "flow": Method(
        "ppgen.infer:AutoFlow",
        "ppgen.losses.recipes:reverse_kl",
        "a normalizing flow of an unnormalized density on the plane, with the reverse KL",
        defaults=REVERSE_KL,
        network="flow",
        kind="ppgen.runs.energy:EnergyRun",
    ),
    "dann": Method(
        "ppgen.models:DANN",
        "ppgen.losses.recipes:dann",
        "domain adaptation: a classifier of the source's labels for the target",
        defaults=ADAPTATION,
        conditional={"h": "hy"},
        network="classifier",
        critic="vectors",
        kind="ppgen.runs.adaptation:AdaptationRun",
    ),
}
