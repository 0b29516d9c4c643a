"""A classifier for a domain without labels: features that carry what is learned in one domain over to another.

Rows x come from domains d: sources, whose labels y are known, and a target, whose labels are not (y = -1). The program

    h_i = F(x_i),    y_i ~ Categorical(softmax C(h_i)),    d_i given

observes y where it is known. On its own it is a classifier of the source. A term of the loss brings the law of h in the
target to that in the source, so that what C learned of one holds of the other (Ben-David et al. 2010):

    ELBO() + alpha * match(posterior("h").given(d=0), posterior("h").given(d=1), metric)

with any metric: `ppgen.recipes.dann`. A critic's is the domain-adversarial network of Ganin et al. 2016, which lowers
T1 - alpha T2 in F, T1 the loss of labels and T2 that of the critic, while the critic lowers T2.
"""

from collections.abc import Callable, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

from ppgen.data.labels import UNKNOWN
from ppgen.models.generative import NETWORKS, arguments, check_rows
from ppgen.nets import ACTIVATIONS, Critic, lookup, evaluation

__all__ = ["DANN", "UNKNOWN"]


class DANN(nn.Module):
    """Features and a classifier, for sources with labels and a target without; see `ppgen.models.dann`.

    ``model(x, y, d)`` and ``guide(x, y, d)`` are the programs: x (n, *event_shape), y (n,) integer labels, `UNKNOWN`
    where there is none, d (n,) numbers of domains, from 0 on. Sites: ``h`` the features, ``y``, ``d``; all in the plate
    "data". Since the evidence is per datum of all domains, a label counts 1 / n, whatever part of the rows has one.

    Args:
        event_shape: (features,) of a table or (channels, height, width) of images.
        num_classes: K, the number of labels.
        latent_dim: the width of h.
        hidden: of the network of features; None for the network's own: (256, 256) dense, (32, 64) convolutional.
        network: "dense", or "convolutional" for images.
        features: F, a module (n, *event_shape) -> (n, width), in place of the four above.
        classifier: C, a module (n, width) -> (n, K); a linear one if left out.
        critic: a module (n, width) -> (n,) or (n, 1) makes d a random site, d ~ Bernoulli(sigmoid v(R(h))), where R is
            gradient reversal: identity forwards, minus identity backward. Features and critic then learn in one step,
            by one optimizer (`ppgen.recipes.dann_reversal`). True for a `ppgen.nets.Critic`.
        conditional: adds a site ``hy`` (n, width K), the outer product of h and of the class probabilities, which pass
            no gradient on, to be matched in place of h, so that classes meet their own kind (CDAN, Long et al. 2018).
        bayesian: draws the linear classifier's weights, site ``w`` (width + 1, K), bias last, from N(0, 1); the guide's
            law of them is Gaussian and independent. Predictions are then averages over draws of w.
        norm, dropout, activation: of the network of features, as in :class:`ppgen.nets.Dense`.

    Raises:
        ValueError: for options that are out of range, unknown, or exclude each other.
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        num_classes: int,
        *,
        latent_dim: int = 32,
        hidden: Sequence[int] | None = None,
        network: str = "dense",
        features: nn.Module | None = None,
        classifier: nn.Module | None = None,
        critic: nn.Module | bool = False,
        conditional: bool = False,
        bayesian: bool = False,
        norm: str | None = None,
        dropout: float = 0.0,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        self._config: dict[str, Any] = arguments(locals())
        self.event_shape, self.num_classes = self._config["event_shape"], num_classes
        self.conditional, self.bayesian = conditional, bayesian
        if features is None:
            encoding: Callable[..., nn.Module] = lookup(NETWORKS, network, option="network")[0]
            options: dict[str, Any] = {"norm": norm, "dropout": dropout, "activation": activation}
            options |= {} if hidden is None else {"hidden": hidden}
            last = lookup(ACTIVATIONS, activation, option="activation")()
            features = nn.Sequential(encoding(self.event_shape, latent_dim, **options), last)
        self.features = features
        width = _width(features, self.event_shape)
        if bayesian and classifier is not None:
            raise ValueError("a Bayesian classifier is linear and made here; give either classifier or bayesian=True")
        if bayesian:
            self.loc = nn.Parameter(torch.randn(width + 1, num_classes) / (width + 1) ** 0.5)
            self.log_scale = nn.Parameter(torch.full((width + 1, num_classes), -3.0))
        else:
            self.classifier = nn.Linear(width, num_classes) if classifier is None else classifier
        aligned = width * num_classes if conditional else width
        self.critic = Critic((aligned,)) if critic is True else (critic or None)

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments: ``type(model)(**model.config)`` builds the same class anew."""
        return dict(self._config)

    def model(self, x: Tensor, y: Tensor | None = None, d: Tensor | None = None) -> Tensor:
        """h_i = F(x_i), d_i, y_i ~ Categorical(softmax C(h_i)), over the plate "data" of x's rows.

        Args:
            x: (n, *event_shape).
            y: (n,) integer labels, `UNKNOWN` where there is none; left out, labels are drawn.
            d: (n,) domains; left out, they are no site.
        """
        pyro.module("dann", self)
        weights = self._weights(dist.Normal(torch.zeros_like(self.loc), 1.0)) if self.bayesian else None
        with pyro.plate("data", x.shape[0], dim=-1):
            h = pyro.deterministic("h", self.features(x.to(self._dtype)), event_dim=1)
            logits = self._logits(h, weights)
            if self.conditional:
                h = pyro.deterministic("hy", _outer(h, logits.softmax(-1).detach()), event_dim=1)
            if d is not None:
                self._domain(h, d)
            distribution = dist.Categorical(logits=logits)
            if y is None:
                return pyro.sample("y", distribution)
            with poutine.mask(mask=y >= 0):
                return pyro.sample("y", distribution, obs=y.clamp(min=0))

    def guide(self, x: Tensor, y: Tensor | None = None, d: Tensor | None = None) -> None:
        """Draws the classifier's weights if they are Bayesian, and labels that are not given."""
        pyro.module("dann", self)
        weights = self._weights(self._posterior()) if self.bayesian else None
        if y is None:
            with pyro.plate("data", x.shape[0], dim=-1):
                pyro.sample("y", dist.Categorical(logits=self._logits(self.features(x.to(self._dtype)), weights)))

    def check(self, x: Tensor, y: Tensor | None = None, d: Tensor | None = None) -> None:
        """Whether the data are what this model expects; looks at every value, so call it once a data set.

        Raises:
            TypeError: x is no tensor.
            ValueError: for shapes that differ from (n, *event_shape), (n,), (n,), values that are not finite, labels
                outside of -1 .. K - 1, no known label, no domain, or one domain only.
        """
        check_rows(x, self.event_shape)
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
        if len(found := d.unique().tolist()) < 2:
            raise ValueError(f"all rows are of domain {found[0]}: give rows of a source and of the target, d=0 and d=1")

    def features_of(self, x: Tensor) -> Tensor:
        """h = F(x): (n, width)."""
        with evaluation(self):
            return self.features(x.to(self._dtype))

    def predict_proba(self, x: Tensor, *, draws: int = 100) -> Tensor:
        """p(y | x): (n, K); of Bayesian weights an average over draws of them."""
        h = self.features_of(x)
        with evaluation(self):
            if not self.bayesian:
                return self._logits(h, None).softmax(-1)
            distribution = self._posterior()
            return torch.stack([self._logits(h, distribution.sample()).softmax(-1) for _ in range(draws)]).mean(0)

    def predict(self, x: Tensor) -> Tensor:
        """The likeliest labels: (n,)."""
        return self.predict_proba(x).argmax(-1)

    def _posterior(self) -> dist.Normal:
        return dist.Normal(self.loc, self.log_scale.exp())

    def _weights(self, distribution: dist.Normal) -> Tensor:
        return pyro.sample("w", distribution.to_event(2))

    def _logits(self, h: Tensor, weights: Tensor | None) -> Tensor:
        if weights is None:
            return self.classifier(h)
        return (h.unsqueeze(-2) @ weights[..., :-1, :]).squeeze(-2) + weights[..., -1, :]

    def _domain(self, h: Tensor, d: Tensor) -> None:
        """The domain, given; with a critic of the model's own a random site, whose features learn to hide it."""
        if self.critic is None:
            pyro.sample("d", dist.Delta(d), obs=d)
            return
        hidden = h.detach() - (h - h.detach())  # h forwards, -h backward
        logits = self.critic(hidden).reshape(h.shape[:-1])
        pyro.sample("d", dist.Bernoulli(logits=logits), obs=d.to(logits.dtype))

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype


def _outer(h: Tensor, p: Tensor) -> Tensor:
    """(..., width) and (..., K) to (..., width K)."""
    return (h.unsqueeze(-1) * p.unsqueeze(-2)).flatten(-2)


def _width(features: nn.Module, event_shape: tuple[int, ...]) -> int:
    """The number of features that a module makes of a row."""
    with evaluation(features):
        there = next(features.parameters(), torch.zeros(()))
        made = features(torch.zeros(2, *event_shape, dtype=there.dtype, device=there.device))
    if made.dim() != 2 or len(made) != 2:
        raise ValueError(
            f"features: expected (n, width) of (n, {', '.join(map(str, event_shape))}), got {tuple(made.shape[1:])}"
        )
    return made.shape[1]
