"""What a model can do, as protocols: a report, a run or a loss asks ``isinstance(model, Samples)``.

A model has a capability if it has the methods; it inherits from nothing. All protocols consist of methods alone, so
that ``issubclass`` answers for a class as well. Rows x have shape (n, *event_shape) and labels y shape (n,); a model
whose ``num_classes`` is None takes no labels. The methods of users run in evaluation mode and without gradients.

| protocol | what uses it |
|---|---|
| `ChecksData` | `ppgen.fit`, before training |
| `InitializesFromData` | `ppgen.fit`, before the first step of a chain |
| `HasDensityModel` | `Fit.to_arviz` and all diagnostics, in place of ``model`` |
| `ExpectsForm` | a run, to load the data in this form and to pass on their number of levels |
| `Samples` | report: samples, mode and data coverage; ``ppgen sample`` |
| `Reconstructs` | report: reconstructions |
| `Encodes` | report: latent codes |
| `Decodes` | report: means of the decoder, with `Encodes` a walk through the latent plane |
| `HasPrior` | report: latent codes, where the prior is a flow |
| `HasLogProb` | a run: held-out log-likelihood, bits per dimension |
| `HasLogEvidence` | a run: held-out log evidence, and a stored posterior |
| `HasBound` | a run: evidence lower bound of a chain with a finite number of steps |
| `TransportsToBase` | report: the flow; a run: base-space test |
| `Denoises` | report: from noise to data; a run: options of the sampler, no posterior to diagnose |
| `HasDenoisingError` | report: error by noise level |
| `Conditions` | report: imputation of images |
| `DiffusionChain` | `ppgen.DiffusionELBO` |
| `AdaptsDomains` | domain adaptation: runs and their report |
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from pyro.distributions import TorchDistribution
from torch import Tensor

from ppgen.diffusion import Denoise, NoiseLevel

__all__ = [
    "AdaptsDomains",
    "ChecksData",
    "Conditions",
    "Decodes",
    "Denoises",
    "DiffusionChain",
    "Encodes",
    "ExpectsForm",
    "HasBound",
    "HasDenoisingError",
    "HasDensityModel",
    "HasLogEvidence",
    "HasLogProb",
    "HasPrior",
    "InitializesFromData",
    "Reconstructs",
    "Samples",
    "TransportsToBase",
]


@runtime_checkable
class ChecksData(Protocol):
    """Validates data before training."""

    def check(self, *data: Tensor) -> None:
        """Raises TypeError or ValueError if the model cannot be fitted to these data."""


@runtime_checkable
class InitializesFromData(Protocol):
    """Sets parameters from a first batch, as activation normalization does."""

    def initialize(self, *data: Tensor) -> None:
        """Initializes the parameters that depend on data."""


@runtime_checkable
class HasDensityModel(Protocol):
    """Has a Pyro program of the density of x, because ``model`` is a regression and not a density of the data."""

    def density_model(self, *data: Tensor) -> None:
        """The program x_i ~ p(x)."""


@runtime_checkable
class ExpectsForm(Protocol):
    """Knows the form of data that its likelihood scores."""

    @classmethod
    def data_form(cls, options: Mapping[str, Any]) -> str:
        """A row of `ppgen.data.FORMS`, or "levels": integers where the data are gray levels, else continuous.

        Args:
            options: keyword arguments of the constructor.
        """


@runtime_checkable
class Samples(Protocol):
    """Generates data."""

    def sample(self, n: int, y: Tensor | None = None, *, mean: bool = False) -> Any:
        """Draws x, or with ``mean=True`` E[x | z], n times: a tensor (n, *event_shape)."""


@runtime_checkable
class Reconstructs(Protocol):
    """Maps data to latent codes and back."""

    def reconstruct(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """The reconstructions (n, *event_shape)."""


@runtime_checkable
class Encodes(Protocol):
    """Has an encoder."""

    def encode(self, x: Tensor, y: Tensor | None = None) -> TorchDistribution:
        """q(z | x): batch shape (n,), event shape (latent_dim,)."""


@runtime_checkable
class Decodes(Protocol):
    """Has a decoder."""

    def decode(self, z: Tensor, y: Tensor | None = None) -> TorchDistribution:
        """p(x | z): batch shape (n,), event shape (*event_shape)."""


@runtime_checkable
class HasPrior(Protocol):
    """Has a prior of the latent code."""

    def prior(self, n: int) -> TorchDistribution:
        """p(z): batch shape (n,), event shape (latent_dim,)."""


@runtime_checkable
class HasLogProb(Protocol):
    """Has a density of data, exact or estimated from below."""

    def log_prob(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """The log density log p(x_i) in nats: (n,)."""


@runtime_checkable
class HasLogEvidence(Protocol):
    """Estimates log p(x) by importance sampling from its encoder."""

    def log_evidence(self, x: Tensor, y: Tensor | None = None, *, particles: int = 100) -> Tensor:
        """The log density log p(x_i) in nats: (n,)."""


@runtime_checkable
class HasBound(Protocol):
    """Estimates a lower bound of log p(x) without bias."""

    def bound(self, x: Tensor, y: Tensor | None = None, *, particles: int = 1) -> Tensor:
        """The lower bound of log p(x_i) in nats: (n,)."""


@runtime_checkable
class TransportsToBase(Protocol):
    """A flow x = T(z) from a base distribution of z, with the density that follows from it."""

    if TYPE_CHECKING:  # a submodule, which isinstance would not find in Python 3.12
        flow: Any

    def distribution(self, y: Tensor | None = None) -> Any:
        """p(x), or p(x | y): a `ppgen.flows.FlowDistribution`."""

    def log_prob(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """The log density log p(x_i) in nats: (n,)."""

    def pull_back(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """z_i = T^-1(x_i) in the base space, and log |det dz_i / dx_i| (n,) in nats."""


@runtime_checkable
class Denoises(Protocol):
    """Generates data from noise by a denoiser, in steps of a sampler."""

    def denoise(self, y: Tensor | None = None, *, guidance: float = 1.0) -> Denoise:
        """The function (z, level) -> E[v | z], v the scaled data."""

    def sample(self, n: int, y: Tensor | None = None, *, mean: bool = False) -> Any:
        """Draws x n times; further options are ``sampler``, ``steps``, ``guidance`` and ``return_path``."""


@runtime_checkable
class HasDenoisingError(Protocol):
    """Measures the squared error of its denoiser."""

    def error(self, level: NoiseLevel, x: Tensor, y: Tensor | None = None) -> Tensor:
        """|v - E[v | z]|^2 for each row, at noise levels of shape (n,): (n,)."""


@runtime_checkable
class Conditions(Protocol):
    """Serves as the prior of x in a Pyro program."""

    def condition(self, program: Callable[..., Any], *, site: str | None = None) -> Samples:
        """The posterior of x given what the program observes."""


@runtime_checkable
class DiffusionChain(HasDenoisingError, Protocol):
    """A chain of latents whose evidence lower bound is a sum over steps."""

    def ends(self, x: Tensor) -> Tensor:
        """The terms of -log p(x) at both ends of the chain, in nats: (n,)."""

    def rate(self, u: Tensor, x: Tensor, y: Tensor | None = None) -> Tensor:
        """An unbiased estimate of the sum over steps from the one at time u (n,), in nats: (n,)."""


@runtime_checkable
class AdaptsDomains(Protocol):
    """A classifier that transfers labels from a source domain to a target domain."""

    def features_of(self, x: Tensor, *, d: int = 1) -> Tensor:
        """The features (n, width)."""

    def predict_proba(self, x: Tensor, *, d: int = 1) -> Tensor:
        """p(y | x): (n, num_classes)."""

    def predict(self, x: Tensor, *, d: int = 1) -> Tensor:
        """The most probable labels (n,)."""
