"""A classifier for a domain without labels, whose features transfer what is learned in one domain to another.

Rows x come from domains d: sources, whose labels y are known, and a target, whose labels are not (y = -1). The program

    h_i = F(x_i),    y_i ~ Categorical(softmax C(h_i)),    d_i given

observes y where it is known. On its own it is a classifier of the sources. A term of the loss matches the distribution
of h in the target to that in the source, so that what C learned in one holds in the other (Ben-David et al.,
https://doi.org/10.1007/s10994-009-5152-4):

    ELBO() + alpha * match(posterior("h").given(d=0), posterior("h").given(d=1), metric)

with any metric: `ppgen.recipes.dann`. With a critic it is the domain-adversarial neural network of Ganin et al.,
https://arxiv.org/abs/1505.07818, where F minimizes T1 - alpha T2, with T1 the loss of the labels and T2 the loss of the
critic, while the critic minimizes T2.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

from ppgen.data.labels import UNKNOWN
from ppgen.models.checks import check_event_shape
from ppgen.models.latent_variable import NETWORKS
from ppgen.models.options import NetworkOptions, constructed_from
from ppgen.nets import ACTIVATIONS, ContrastInvariant, Critic, DomainNorm, eval_mode, lookup, rows_of

__all__ = ["DANN", "UNKNOWN", "DANNOptions"]


@dataclass(frozen=True, kw_only=True)
class DANNOptions(NetworkOptions):
    """Options of :class:`DANN`; ``latent_dim`` is the width of h, and the network is that of the features.

    Attributes:
        num_classes: K, the number of labels.
        features: F, a module (n, *event_shape) -> (n, width), in place of ``latent_dim``, ``hidden`` and ``network``.
        classifier: C, a module (n, width) -> (n, K); None for a linear one.
        critic: a module (n, width) -> (n,) or (n, 1), or True for a `ppgen.nets.Critic`. It makes d a random site,
            d ~ Bernoulli(sigmoid v(R(h))), where R reverses gradients. Features and critic are then trained together
            by one optimizer (`ppgen.recipes.dann_reversal`).
        conditional: whether to add a site ``hy`` (n, width K), the outer product of h and the class probabilities,
            which is matched in place of h and passes no gradient to the probabilities, so that classes are matched to
            each other (CDAN, Long et al., https://arxiv.org/abs/1705.10667).
        contrast_invariant: whether h is the same for images and their negatives, which takes twice the time
            (`ppgen.nets.ContrastInvariant`). None is no, and where data are at hand
            (`ppgen.tuning.tune_adaptation`, `ppgen train dann`) whatever `ppgen.evaluation.contrast_inverted` says.
        bayesian: whether the weights of the linear classifier are a latent site ``w`` (width + 1, K), bias last, with
            prior N(0, 1) and a mean-field Gaussian guide. Predictions are then averages over draws of w.
    """

    kind: ClassVar[str] = "classifier"

    num_classes: int = field(kw_only=False)
    latent_dim: int = 32
    features: nn.Module | None = None
    classifier: nn.Module | None = None
    critic: nn.Module | bool = False
    conditional: bool = False
    contrast_invariant: bool | None = None
    bayesian: bool = False
    activation: str = "relu"

    def make_features(self) -> nn.Module:
        """F."""
        if self.features is not None:
            return self._invariant(self.features)
        network: Callable[..., nn.Module] = lookup(NETWORKS, self.network, option="network")[0]
        layers = [self._invariant(network(self.event_shape, self.latent_dim, **self.network_options()))]
        if self.norm == "domain":  # with other norms, which mix domains, h has none
            layers.append(DomainNorm(self.latent_dim))
        return nn.Sequential(*layers, lookup(ACTIVATIONS, self.activation, option="activation")())

    def _invariant(self, network: nn.Module) -> nn.Module:
        if not self.contrast_invariant:
            return network
        if len(self.event_shape) != 3:
            raise ValueError(
                f"contrast_invariant is for images (channels, height, width), got event_shape {tuple(self.event_shape)}"
            )
        return ContrastInvariant(self.event_shape[0], network)


class DANN(nn.Module):
    """Features and a classifier, for sources with labels and a target without; see `ppgen.models.dann`.

    ``model(x, y, d)`` and ``guide(x, y, d)`` are the programs, with sites ``h``, the features, ``y`` and ``d`` in the
    plate "data". The ELBO is per row of all domains, so that a label has the weight 1 / n, however many rows have one.

    The arguments are the fields of :class:`DANNOptions`.

    Raises:
        ValueError: if options are unknown, out of range, or exclude each other.

    Example:
        >>> import torch
        >>> import ppgen
        >>> dann, x, d = ppgen.models.DANN((2,), 3, latent_dim=4), torch.randn(20, 2), torch.arange(20) % 2
        >>> y = torch.where(d == 0, torch.randint(3, (20,)), ppgen.models.UNKNOWN)  # labels of the source alone
        >>> loss = ppgen.recipes.dann(distance="mmd")
        >>> fit = ppgen.fit(dann.model, dann.guide, (x, y, d), loss=loss, steps=2, compile=False, progress=False)
        >>> dann.predict(x[d == 1]).shape
        torch.Size([10])
    """

    @constructed_from(DANNOptions)
    def __init__(self, options: DANNOptions) -> None:
        super().__init__()
        self.options = options
        self.event_shape, self.num_classes = tuple(options.event_shape), options.num_classes
        self.conditional, self.bayesian = options.conditional, options.bayesian
        self.features = options.make_features()
        width = _output_width(self.features, self.event_shape)
        if self.bayesian and options.classifier is not None:
            raise ValueError("a Bayesian classifier is linear and built in; give either classifier or bayesian=True")
        if self.bayesian:
            self.loc = nn.Parameter(torch.randn(width + 1, self.num_classes) / (width + 1) ** 0.5)
            self.log_scale = nn.Parameter(torch.full((width + 1, self.num_classes), -3.0))
        else:
            self.classifier = nn.Linear(width, self.num_classes) if options.classifier is None else options.classifier
        aligned = width * self.num_classes if self.conditional else width
        self.critic = Critic((aligned,)) if options.critic is True else (options.critic or None)

    @property
    def config(self) -> dict[str, Any]:
        """The arguments of the constructor: ``type(model)(**model.config)`` builds an untrained copy."""
        return self.options.as_dict()

    def model(self, x: Tensor, y: Tensor | None = None, d: Tensor | None = None) -> Tensor:
        """The program h_i = F(x_i), d_i, y_i ~ Categorical(softmax C(h_i)), over the plate "data" of the rows of x.

        Args:
            x: data (n, *event_shape).
            y: integer labels (n,), `UNKNOWN` where there is none; if left out, labels are latent.
            d: integer domains (n,); if left out, they are no site.
        """
        pyro.module("dann", self)
        weights = self._sample_weights(dist.Normal(torch.zeros_like(self.loc), 1.0)) if self.bayesian else None
        with pyro.plate("data", x.shape[0], dim=-1):
            with rows_of(self.features, d):
                features = self.features(x.to(self._dtype))
            h = pyro.deterministic("h", features, event_dim=1)
            logits = self._logits(h, weights)
            if self.conditional:
                h = pyro.deterministic("hy", _outer(h, logits.softmax(-1).detach()), event_dim=1)
            if d is not None:
                self._observe_domain(h, d)
            distribution = dist.Categorical(logits=logits)
            if y is None:
                return pyro.sample("y", distribution)
            with poutine.mask(mask=y >= 0):
                return pyro.sample("y", distribution, obs=y.clamp(min=0))

    def guide(self, x: Tensor, y: Tensor | None = None, d: Tensor | None = None) -> None:
        """Draws the weights of a Bayesian classifier, and labels that are left out; arguments as in `model`."""
        pyro.module("dann", self)
        weights = self._sample_weights(self._posterior()) if self.bayesian else None
        if y is None:
            with pyro.plate("data", x.shape[0], dim=-1), rows_of(self.features, d):
                pyro.sample("y", dist.Categorical(logits=self._logits(self.features(x.to(self._dtype)), weights)))

    def check(self, x: Tensor, y: Tensor | None = None, d: Tensor | None = None) -> None:
        """Checks the data. This reads every value, so call it once for a data set.

        Args:
            x: as in `model`.
            y: as in `model`, but required.
            d: as in `model`, but required.

        Raises:
            TypeError: if x is not a tensor.
            ValueError: for shapes other than (n, *event_shape), (n,), (n,), values that are not finite, labels outside
                -1 .. K - 1, no known label, or fewer than two domains.
        """
        check_event_shape(x, self.event_shape)
        if not torch.isfinite(x).all():
            raise ValueError("expected x to be finite, it holds NaN or infinity")
        if y is None or d is None:
            raise ValueError("expected x, y and d: a DANN is fitted to all three")
        for name, values in (("y", y), ("d", d)):
            if values.shape != x.shape[:1] or values.is_floating_point() or values.dtype == torch.bool:
                raise ValueError(
                    f"expected {name} of shape ({len(x)},), integers, got {values.dtype} {tuple(values.shape)}"
                )
        if int(y.min()) < UNKNOWN or int(y.max()) >= self.num_classes:
            raise ValueError(
                f"expected labels y in 0 .. {self.num_classes - 1}, or {UNKNOWN} where there is none; got "
                f"{int(y.min())} .. {int(y.max())}"
            )
        if not (y >= 0).any():
            raise ValueError(f"no row has a label, all y are {UNKNOWN}: there is nothing to learn from")
        if len(domains := d.unique().tolist()) < 2:
            raise ValueError(
                f"all rows are of domain {domains[0]}: give rows of a source and of the target, d=0 and d=1"
            )

    def features_of(self, x: Tensor, *, d: int = 1) -> Tensor:
        """The features h = F(x): (n, width).

        Args:
            x: data (n, *event_shape).
            d: their domain, 1 for the target, which matters if features are normalized by domain.
        """
        x = x.to(next(self.parameters()))
        with eval_mode(self), rows_of(self.features, torch.tensor([d], device=x.device)):
            return self.features(x)

    def predict_proba(self, x: Tensor, *, d: int = 1, draws: int = 100) -> Tensor:
        """p(y | x).

        Args:
            x: data (n, *event_shape).
            d: their domain, as in `features_of`.
            draws: the number of draws of Bayesian weights, over which p is averaged.

        Returns:
            Probabilities (n, K).
        """
        h = self.features_of(x, d=d)
        with eval_mode(self):
            if not self.bayesian:
                return self._logits(h, None).softmax(-1)
            distribution = self._posterior()
            return torch.stack([self._logits(h, distribution.sample()).softmax(-1) for _ in range(draws)]).mean(0)

    def predict(self, x: Tensor, *, d: int = 1) -> Tensor:
        """The most probable labels (n,); arguments as in `features_of`."""
        return self.predict_proba(x, d=d).argmax(-1)

    def _posterior(self) -> dist.Normal:
        return dist.Normal(self.loc, self.log_scale.exp())

    def _sample_weights(self, distribution: dist.Normal) -> Tensor:
        return pyro.sample("w", distribution.to_event(2))

    def _logits(self, h: Tensor, weights: Tensor | None) -> Tensor:
        if weights is None:
            return self.classifier(h)
        return (h.unsqueeze(-2) @ weights[..., :-1, :]).squeeze(-2) + weights[..., -1, :]

    def _observe_domain(self, h: Tensor, d: Tensor) -> None:
        """The site of the domain: a constant, or with a critic in the model a random site with gradient reversal."""
        if self.critic is None:
            pyro.sample("d", dist.Delta(d), obs=d)
            return
        reversed_h = h.detach() - (h - h.detach())  # h in the forward pass, -h in the backward pass
        logits = self.critic(reversed_h).reshape(h.shape[:-1])
        pyro.sample("d", dist.Bernoulli(logits=logits), obs=d.to(logits.dtype))

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype


def _outer(h: Tensor, p: Tensor) -> Tensor:
    """The flattened outer product: (..., width) and (..., K) to (..., width K)."""
    return (h.unsqueeze(-1) * p.unsqueeze(-2)).flatten(-2)


def _output_width(features: nn.Module, event_shape: tuple[int, ...]) -> int:
    """The number of features that a module computes for a row."""
    with eval_mode(features):
        like = next(features.parameters(), torch.zeros(()))
        output = features(torch.zeros(2, *event_shape, dtype=like.dtype, device=like.device))
    if output.dim() != 2 or len(output) != 2:
        raise ValueError(
            f"features: expected (n, width) of (n, {', '.join(map(str, event_shape))}), got {tuple(output.shape[1:])}"
        )
    return output.shape[1]
