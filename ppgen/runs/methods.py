"""What ``ppgen train NAME`` trains: a model class and a recipe, one row each. A new system is a new row."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ppgen.losses import recipes
from ppgen.flows import FLOWS, IMAGE_FLOWS
from ppgen.infer import AutoFlow
from ppgen.models import ALI, DANN, ENERGIES, VAE, Autoencoder, Diffusion, FlowMatching, FlowModel, Generator
from ppgen.losses.objective import Objective

__all__ = ["SYSTEMS", "System"]


@dataclass(frozen=True)
class System:
    """`model` is built as ``model(event_shape, **options)`` and trained under ``recipe(**options)``.

    `defaults` are those of the command line's options that differ from the others'.
    """

    model: type
    recipe: Callable[..., Objective]
    about: str
    defaults: Mapping[str, Any] = field(default_factory=dict)

    @property
    def of_domains(self) -> bool:
        """Whether the data are a source and a target."""
        return self.model is DANN

    @property
    def of_energy(self) -> bool:
        """Whether there are no data, but an energy, whose guide the model is."""
        return self.model is AutoFlow

    @property
    def of_levels(self) -> bool:
        """Whether the model scores levels where data have them, and other data as they are."""
        return self.model in (FlowModel, Diffusion, FlowMatching)

    def form(self, options: Mapping[str, Any]) -> str:
        """The form of data that the model scores, built with these options."""
        if self.of_levels:
            return "levels"
        return FORM_OF_LIKELIHOOD.get(options.get("likelihood", "gaussian"), "continuous")

    def sites(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The sites that the recipe compares, as the options of the model settle them."""
        if self.of_energy:
            return {"base": ENERGIES[config["energy"]].base, "max_plate_nesting": 0}
        if self.model in (Generator, ALI) and config["conditional"]:
            return {"x": ("x", "y")}  # whose labels are a site
        return {"h": "hy" if config["model"]["conditional"] else "h"} if self.recipe is recipes.dann else {}


# a game: short memory of gradients, averaged weights, rates that decay; there is no posterior to store
GAME = {"lr": 2e-4, "betas": (0.5, 0.99), "fit.ema": 0.999, "fit.lr_scheduler": "cosine"}

# its images grow, and the last scale is not to learn the least, so rates are constant; batches are small, as there
GROWING = GAME | {
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

# a flow against an energy: draws take the place of data
REVERSE = {
    "fit.batch_size": None,
    "fit.steps": 8000,
    "fit.lr_scheduler": "cosine",
    "lr": 2e-3,
    "model.layers": 3,
    "model.init_scale": 1.0,
    "loss.anneal": 0.3,
    "particles": 50_000,
}

# a game of features, whose rate decays (Ganin et al. 2016, 5.2.2)
ADAPT = {"fit.lr_scheduler": "cosine"}

# weights are averaged, since single steps are noisy, and rates decay
DIFFUSION = {"fit.ema": 0.999, "fit.lr_scheduler": "cosine", "particles": 10}

SYSTEMS = {
    "ae": System(Autoencoder, recipes.ae, "autoencoder: a code for each datum, and no law over codes"),
    "wae": System(Autoencoder, recipes.wae, "generative autoencoder: codes matched to N(0, I) as a whole, by MMD"),
    "vae": System(VAE, recipes.vae, "variational autoencoder: a posterior for each datum, by the evidence bound"),
    "iwae": System(VAE, recipes.iwae, "importance weighted autoencoder: the bound of k draws"),
    "info_vae": System(VAE, recipes.info_vae, "InfoVAE: the evidence bound, and the codes matched as a whole"),
    "aae": System(Autoencoder, recipes.aae, "adversarial autoencoder: codes matched to N(0, I) by a critic"),
    "vae_gan": System(VAE, recipes.vae_gan, "VAE whose decoder a critic judges too"),
    "gan": System(Generator, recipes.gan, "GAN: draws matched to data by a critic, Jensen-Shannon", GAME),
    "f_gan": System(Generator, recipes.f_gan, "f-GAN: any f-divergence by a critic", GAME),
    "lsgan": System(Generator, recipes.lsgan, "GAN whose critic learns by least squares", GAME),
    "hinge_gan": System(Generator, recipes.hinge_gan, "GAN of the hinge loss, spectral norms", GAME),
    "r1_gan": System(Generator, recipes.r1_gan, "GAN with a zero-centered penalty on data", GAME),
    "r3_gan": System(Generator, recipes.r3_gan, "R3GAN: relativistic pairs, penalties on both sides", GAME),
    "wgan": System(Generator, recipes.wgan_gp, "Wasserstein GAN with gradient penalty, as wgan_gp", GAME),
    "wgan_gp": System(Generator, recipes.wgan_gp, "Wasserstein GAN with gradient penalty", GAME),
    "wgan_clip": System(Generator, recipes.wgan_clip, "Wasserstein GAN with clipped weights", GAME),
    "progan": System(Generator, recipes.progan, "progressive GAN: images that grow, WGAN-GP", GROWING),
    "ali": System(ALI, recipes.ali, "ALI, BiGAN: pairs of data and codes matched by a critic", GAME),
    "mmd_generator": System(Generator, recipes.mmd_generator, "draws matched to data by MMD"),
    "sinkhorn_generator": System(Generator, recipes.sinkhorn_generator, "draws matched to data by optimal transport"),
    **{
        name: System(FlowModel, recipes.flow_kl, f"a flow, {name}, by maximum likelihood", {"model.flow": name})
        for name in (*FLOWS, *IMAGE_FLOWS)
    },
    "ddpm": System(
        *(Diffusion, recipes.ddpm, "diffusion whose network tells the noise, by one step of the chain at a time"),
        DIFFUSION | {"model.schedule": "linear", "model.prediction_type": "noise"},
    ),
    "edm": System(
        *(Diffusion, recipes.edm, "diffusion of log-normal noise levels, its network preconditioned"),
        DIFFUSION | {"model.schedule": "karras"},
    ),
    "vdm": System(
        *(Diffusion, recipes.vdm, "diffusion by its evidence bound, with a learned variance"),
        DIFFUSION | {"model.variance": "learned"},
    ),
    "fm": System(
        *(FlowMatching, recipes.flow_matching, "flow matching: velocities from noise to data, pairs at random"),
        DIFFUSION | {"model.coupling": "independent"},
    ),
    "ot_fm": System(
        *(FlowMatching, recipes.flow_matching, "flow matching whose pairs are those of optimal transport"),
        DIFFUSION | {"model.coupling": "exact"},
    ),
    "flow": System(AutoFlow, recipes.reverse_kl, "a flow, by the reverse KL from an energy on the plane", REVERSE),
    "dann": System(DANN, recipes.dann, "domain adaptation: labels of a source carried over to a target", ADAPT),
}

# the form of data that each likelihood scores
FORM_OF_LIKELIHOOD = {"gaussian": "continuous", "bernoulli": "binary", "categorical": "integer"}

# arguments of recipes that no command line can give, or that the systems' own models settle
NOT_ASKED_OF_RECIPES: set[str | int] = {
    "metric",
    "critic",
    "base",
    "max_plate_nesting",
    "x",
    "name",
    "optim",
    "penalty",
    "h",
    "d",
    "sources",
    "target",
}
