"""A flow as a model of data: p(x) itself, without latents, by the exact likelihood.

Data on a grid of levels k in {0, .., K - 1}^D have probabilities rather than densities, and a density would grow on the
grid without end. So noise fills the gaps: a flow p on (0, K)^D is trained on k + u, u ~ U[0, 1)^D drawn anew each time,
and is a law of levels by P(k) = P(floor x = k), for which

    log P(k) = log E_u p(k + u) >= E_u log p(k + u)                                  Theis et al. 2016, section 3.1
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from ppgen.flows import FLOWS, IMAGE_FLOWS, FlowDistribution, bounded
from ppgen.models.checks import check_event_shape, check_labels, check_levels, check_support, one_hot
from ppgen.nets import evaluation, lookup

__all__ = ["FlowModel"]


class FlowModel(nn.Module):
    """x_i ~ flow, or flow given the label y_i. Its guide is empty: under `ppgen.ELBO` it learns by the forward KL.

    Args:
        event_shape: of a row. A flow of `ppgen.flows.FLOWS` has it flattened, one of `IMAGE_FLOWS` as it is.
        flow: a row of `ppgen.flows.FLOWS` or of `IMAGE_FLOWS`.
        layers: how many maps it is made of; None for its own number.
        hidden: the widths of its networks (channels, of a flow of images).
        scales: of a flow of images; None for its own number.
        levels: K, of data that are integers 0 .. K - 1: noise is added in training and in scoring (above).
        bounds: of continuous data, the interval (low, high) that they lie in; None for all real numbers.
        alpha: how near the ends of their range data with `levels` or `bounds` come, before their logarithmic odds are
            taken; see `ppgen.flows.bounded`.
        num_classes: the number of labels when the model is conditioned on them, None when it is not.
        kinetic: of a flow in continuous time, the weight of its paths' kinetic energy, a factor of the model while it
            trains (Finlay et al. 2020): the straighter they are, the fewer steps a solver needs.
        options: further ones of the flow, such as ``{"solver": "dopri5"}`` of "continuous".

    Raises:
        ValueError: an option is out of range, unknown, or not one of this flow.
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        flow: str = "maf",
        layers: int | None = None,
        hidden: Sequence[int] = (64, 64),
        scales: int | None = None,
        levels: int | None = None,
        bounds: tuple[float, float] | None = None,
        alpha: float = 0.05,
        num_classes: int | None = None,
        kinetic: float = 0.0,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.event_shape, self.num_classes, self.levels = tuple(event_shape), num_classes, levels
        if kinetic < 0 or (kinetic and flow != "continuous"):
            raise ValueError(f"expected kinetic of at least 0, and 0 of any flow but 'continuous', got {kinetic}")
        self.kinetic = kinetic
        make = lookup(FLOWS | IMAGE_FLOWS, flow, option="flow")
        given: dict[str, Any] = {} if flow == "lu_linear" else {"hidden": tuple(hidden)}
        given |= {key: value for key, value in (("layers", layers), ("scales", scales)) if value is not None}
        given |= dict(options or {})
        shape: Any = self.event_shape if flow in IMAGE_FLOWS else math.prod(self.event_shape)
        try:
            self.flow = make(shape, context_dim=num_classes or 0, **given)
        except TypeError as error:
            raise ValueError(f"flow={flow!r} has no such option: {error}") from error
        if levels is not None:
            if bounds is not None:
                raise ValueError(f"expected levels or bounds, got both, {levels} and {bounds}")
            if levels < 2 or not alpha > 0:
                raise ValueError(f"expected levels of at least 2 and alpha above 0, got {levels} and {alpha}")
            bounds = 0, levels
        self.bounds = bounds
        if bounds is not None:
            self.flow = bounded(self.flow, *bounds, alpha=alpha)

    @classmethod
    def data_form(cls, options: Mapping[str, Any]) -> str:
        """The model scores gray levels where the data have them, whatever the options are."""
        return "levels"

    def initialize(self, x: Tensor, y: Tensor | None = None) -> None:
        """Lets the flow's norms take their start from a batch, see `ppgen.flows.Flow.initialize`."""
        self.flow.initialize(self._scored(x), self._context(y))

    def model(self, x: Tensor, y: Tensor | None = None) -> None:
        """x_i ~ flow(y_i), over the plate "data" of x's rows (n, *event_shape)."""
        pyro.module("flow", self.flow)
        distribution, scored = self.flow(self._context(y)), self._scored(x)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", distribution, obs=scored)
            if self.kinetic and self.training:
                pyro.factor("kinetic", -self.kinetic * distribution.kinetic_energy(scored))

    def guide(self, x: Tensor, y: Tensor | None = None) -> None:
        """Nothing is inferred."""

    def check(self, x: Tensor, y: Tensor | None = None) -> None:
        """Whether the data are what this model expects; looks at every value, so call it once a data set.

        Raises:
            TypeError: x is no tensor.
            ValueError: x is not (n, *event_shape), or outside the support; of a continuous model, x is made of
                integers, or a feature has one value alone; y is missing, not wanted, not (n,) integers, or outside
                0 .. num_classes - 1.
        """
        self._check_values(x, y)
        if self.levels is not None:
            return
        if not x.is_floating_point():
            raise ValueError(f"a density has no bound on integers, got {x.dtype}; build the model with their levels")
        flat = x.flatten(1)
        constant = (flat == flat[:1]).all(0).nonzero().flatten().tolist() if len(x) > 1 else []
        if constant:
            which = f"{', '.join(map(str, constant[:8]))}{' and more' if len(constant) > 8 else ''}"
            raise ValueError(
                f"features {which} have one value in all {len(x)} rows, where a flow's density has no bound; leave "
                "them out, or add noise"
            )

    def sample(self, n: int, y: Tensor | None = None, *, mean: bool = False) -> Tensor:
        """n draws (n, *event_shape), integers where there are levels; a flow has no noise of its own, so no means.

        Raises:
            ValueError: for means, and labels that `check` refuses.
        """
        if mean:
            raise ValueError("a flow's draws have no means: it has no noise beside its base")
        check_labels(y, torch.Size([n]), self.num_classes)
        with evaluation(self):
            x = self.flow(self._context(y)).sample((n,) if y is None else ()).reshape(n, *self.event_shape)
        # what little lies beyond the ends belongs to the last levels
        return x if self.levels is None else x.floor().clamp(0, self.levels - 1).long()

    def log_prob(self, x: Tensor, y: Tensor | None = None, *, particles: int = 1) -> Tensor:
        """log p(x_i), or log p(x_i | y_i), in nats: (n,).

        Of levels, log (1 / m) sum_j p(x_i + u_j) with m draws u_j, `particles`: in the mean a lower bound of
        log P(x_i), which rises to it with m. Divided by -D log 2 it is bits per dimension.

        Raises:
            ValueError: for particles below 1, and values, shapes and labels that `check` refuses.
        """
        self._check_values(x, y)
        if particles < 1:
            raise ValueError(f"expected particles of at least 1, got {particles}")
        with evaluation(self):
            distribution = self.flow(self._context(y))
            if self.levels is None:
                return distribution.log_prob(self._scored(x))
            draws = torch.stack([distribution.log_prob(self._scored(x)) for _ in range(particles)])
            return draws.logsumexp(0) - math.log(particles)

    def _check_values(self, x: Tensor, y: Tensor | None) -> None:
        """Shapes, support and labels."""
        check_event_shape(x, self.event_shape)
        check_labels(y, x.shape[:1], self.num_classes)
        if self.levels is not None:
            check_levels(x, self.levels, f"the support of a model of levels={self.levels}")
        elif self.bounds is not None:
            low, high = float(self.flow.support.lower_bound), float(self.flow.support.upper_bound)
            expected = f"above {low:g} and below {high:g}, the support of a flow of bounds {self.bounds}"
            check_support(x, (x > low) & (x < high), expected, "scale the data, or change bounds")

    def _scored(self, x: Tensor) -> Tensor:
        """x as the flow scores it: in its shape and type, and without gaps between levels."""
        x = x.reshape(len(x), *self.flow.event_shape).to(self.flow.zero.dtype)
        return x if self.levels is None else x + torch.rand_like(x)

    def distribution(self, y: Tensor | None = None) -> FlowDistribution:
        """p(x), or p(x | y) for labels y of any shape: a law of events in the flow's own shape."""
        return self.flow(self._context(y))

    def pull_back(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """z_i = T^-1(x_i), in the flow's own shape, and log |det dz_i / dx_i| (n,), in nats."""
        with evaluation(self):
            return self.distribution(y).inverse_and_log_det(self._scored(x))

    def _context(self, y: Tensor | None) -> Tensor | None:
        return one_hot(y, self.num_classes, self.flow.zero.dtype)
