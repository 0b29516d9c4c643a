"""What ``ppgen train NAME`` trains: a model class and a recipe, one row each. A new system is a new row."""

from collections.abc import Callable
from dataclasses import dataclass

from ppgen import recipes
from ppgen.models import VAE, Autoencoder
from ppgen.objective import Objective

__all__ = ["SYSTEMS", "System"]


@dataclass(frozen=True)
class System:
    """`model` is built as ``model(event_shape, **options)`` and trained under ``recipe(**options)``."""

    model: type
    recipe: Callable[..., Objective]
    about: str


SYSTEMS = {
    "ae": System(Autoencoder, recipes.ae, "autoencoder: a code for each datum, and no law over codes"),
    "wae": System(Autoencoder, recipes.wae, "generative autoencoder: codes matched to N(0, I) as a whole, by MMD"),
    "vae": System(VAE, recipes.vae, "variational autoencoder: a posterior for each datum, by the evidence bound"),
    "iwae": System(VAE, recipes.iwae, "importance weighted autoencoder: the bound of k draws"),
    "info_vae": System(VAE, recipes.info_vae, "InfoVAE: the evidence bound, and the codes matched as a whole"),
}

# the form of data that each likelihood scores
FORM_OF_LIKELIHOOD = {"gaussian": "continuous", "bernoulli": "binary", "categorical": "integer"}
