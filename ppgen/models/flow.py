"""A flow as a model of data: p(x) itself, without latents, fitted by its exact likelihood.

Data on a grid of levels k in {0, .., K - 1}^D have probabilities. A density fitted to them would grow without bound at
the grid points, so noise fills the gaps: a flow p on (0, K)^D is trained on k + u, where u ~ U[0, 1)^D is sampled again
each time. It defines probabilities P(k) = P(floor x = k) of levels, with (Theis et al.,
https://arxiv.org/abs/1511.01844, section 3.1)

    log P(k) = log E_u p(k + u) >= E_u log p(k + u)
"""

import math
from collections import ChainMap
from collections.abc import Mapping, Sequence
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from ppgen.flows import FLOWS, IMAGE_FLOWS, FlowDistribution, bounded
from ppgen.flows.build import build_flow
from ppgen.flows.composition import whitened
from ppgen.models.checks import check_event_shape, check_labels, check_levels, check_support, one_hot
from ppgen.nets import defaults_for, eval_mode

__all__ = ["AFFINE", "FlowModel", "default_activation"]

AFFINE = ("maf", "iaf", "iaf_tails", "realnvp")  # flows of affine maps whose scale depends on the row


def default_activation(flow: str, event_shape: Sequence[int]) -> str | None:
    """The activation of a flow's networks if none is given; None for that of the flow itself.

    Kinks help splines to draw sharp edges in the plane, and cost nats in more columns, see docs/defaults.md.

    Args:
        flow: a row of `ppgen.flows.FLOWS` or `ppgen.flows.IMAGE_FLOWS`.
        event_shape: the shape of a row.
    """
    if flow != "nsf":
        return None
    return "relu" if math.prod(event_shape) <= 2 else "silu"


class FlowModel(nn.Module):
    """The program x_i ~ p(x), or x_i ~ p(x | y_i), with p a flow.

    The guide is empty, so that `ppgen.ELBO` is the negative log-likelihood, which minimizes the forward KL divergence.

    Args:
        event_shape: the shape of a row; a flow of `ppgen.flows.FLOWS` sees it flattened.
        flow: a row of `ppgen.flows.FLOWS` or `ppgen.flows.IMAGE_FLOWS`.
        layers: the number of layers; None for the default of the flow.
        hidden: hidden widths of its networks (channels, of a flow of images); None for those of
            `ppgen.nets.defaults_for`.
        activation: that of its networks, of a flow that has this option; None for that of `default_activation`.
        scales: the number of scales of a flow of images; None for its default.
        full_resolution: whether a flow of images has couplings at the scale of the image; None for its default.
        levels: K, of data that are integers 0 .. K - 1; None for real numbers.
        bounds: the interval (low, high) of continuous data; None for all real numbers.
        alpha: the margin that keeps data with `levels` or `bounds` from the ends of their range before the logit, see
            `ppgen.flows.bounded`.
        whiten: whether a flow of `ppgen.flows.FLOWS` begins with a `ppgen.flows.whitening.Whitening`, so that training
            starts at the Gaussian of the data, whatever their units and correlations are; None for true unless its
            maps are affine (`AFFINE`): these extrapolate without bound, which whitening makes worse.
        marginals: whether whitening is part of a `ppgen.flows.marginals.Gaussianization`, for skewed columns and
            outliers; None for the same as `whiten`.
        num_classes: the number of labels of a conditional model; None without labels.
        kinetic: the weight of the kinetic energy of the paths of a continuous flow, which is a factor of the model in
            training (Finlay et al., https://arxiv.org/abs/2002.02798). A solver needs fewer steps on straighter paths.
        options: further options of the flow, such as ``{"solver": "dopri5"}`` of "continuous".

    Raises:
        ValueError: if an option is unknown, out of range, or not accepted by the flow.

    Example:
        >>> import torch
        >>> import ppgen
        >>> flow = ppgen.models.FlowModel((2,), flow="nsf", layers=2, hidden=(8,))
        >>> x = torch.randn(20, 2)
        >>> fit = ppgen.fit(flow.model, flow.guide, x, steps=2, compile=False, progress=False)
        >>> flow.log_prob(x).shape
        torch.Size([20])
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        flow: str = "maf",
        layers: int | None = None,
        hidden: Sequence[int] | None = None,
        activation: str | None = None,
        scales: int | None = None,
        full_resolution: bool | None = None,
        levels: int | None = None,
        bounds: tuple[float, float] | None = None,
        alpha: float = 0.05,
        whiten: bool | None = None,
        marginals: bool | None = None,
        num_classes: int | None = None,
        kinetic: float = 0.0,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        of_images = {"scales": scales, "full_resolution": full_resolution}
        self.event_shape, self.num_classes, self.levels = tuple(event_shape), num_classes, levels
        if kinetic < 0 or (kinetic and flow != "continuous"):
            raise ValueError(f"expected kinetic of at least 0, and 0 of any flow but 'continuous', got {kinetic}")
        self.kinetic = kinetic
        self.flow = build_flow(
            flow,
            self.event_shape if flow in IMAGE_FLOWS else math.prod(self.event_shape),
            hidden=defaults_for("flow", self.event_shape).hidden or () if hidden is None else hidden,
            activation=activation or default_activation(flow, self.event_shape),
            layers=layers,
            context_dim=num_classes or 0,
            table=ChainMap(FLOWS, IMAGE_FLOWS),
            options={name: value for name, value in of_images.items() if value is not None} | dict(options or {}),
        )
        if flow not in IMAGE_FLOWS and (flow not in AFFINE if whiten is None else whiten):
            self.flow = whitened(self.flow, marginals=marginals is not False)
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
        """Initializes whitening and normalization layers of the flow from rows, see `ppgen.flows.Flow.initialize`."""
        self.flow.initialize(self._flow_input(x), self._context(y))

    def model(self, x: Tensor, y: Tensor | None = None) -> None:
        """The program x_i ~ p(x | y_i), over the plate "data" of the rows of x.

        Args:
            x: data (n, *event_shape).
            y: integer labels (n,), if and only if the model has ``num_classes``.
        """
        pyro.module("flow", self.flow)
        distribution, value = self.flow(self._context(y)), self._flow_input(x)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", distribution, obs=value)
            if self.kinetic and self.training:
                pyro.factor("kinetic", -self.kinetic * distribution.kinetic_energy(value))

    def guide(self, x: Tensor, y: Tensor | None = None) -> None:
        """The empty program: nothing is inferred."""

    def check(self, x: Tensor, y: Tensor | None = None) -> None:
        """Checks the data. This reads every value, so call it once for a data set.

        Args:
            x: as in `model`.
            y: as in `model`.

        Raises:
            TypeError: if x is not a tensor.
            ValueError: if x is not (n, *event_shape) or lies outside the support; in a continuous model, if x has
                integers or a constant feature; if y is missing, not expected, not (n,) integers, or outside
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
                f"features {which} have one value in all {len(x)} rows, where the density of a flow has no bound; "
                "leave them out, or add noise"
            )

    def sample(self, n: int, y: Tensor | None = None, *, mean: bool = False) -> Tensor:
        """Draws data.

        Args:
            n: the number of draws.
            y: as in `model`.
            mean: accepted for the interface of other models; must be False.

        Returns:
            Draws (n, *event_shape), integers if the model has levels.

        Raises:
            ValueError: for ``mean=True``, because a flow adds no noise to its output, and for labels that `check`
                refuses.
        """
        if mean:
            raise ValueError("a flow has no mean of x given z: x is a function of z; leave mean=True out")
        check_labels(y, torch.Size([n]), self.num_classes)
        with eval_mode(self):
            x = self.flow(self._context(y)).sample((n,) if y is None else ()).reshape(n, *self.event_shape)
        # the flow may put a little mass beyond the first and the last level
        return x if self.levels is None else x.floor().clamp(0, self.levels - 1).long()

    def log_prob(self, x: Tensor, y: Tensor | None = None, *, particles: int = 1) -> Tensor:
        """The log density of x, or of x given y.

        For levels, it is log (1 / m) sum_j p(x_i + u_j) with m draws u_j. Its expectation is a lower bound of
        log P(x_i), which becomes tight as m grows. Divided by -D log 2 it is in bits per dimension.

        Args:
            x: as in `model`.
            y: as in `model`.
            particles: the number m of draws, for levels.

        Returns:
            log p(x_i) in nats, (n,).

        Raises:
            TypeError: as `check` does.
            ValueError: for particles below 1, and for values, shapes and labels that `check` refuses.
        """
        self._check_values(x, y)
        if particles < 1:
            raise ValueError(f"expected particles of at least 1, got {particles}")
        with eval_mode(self):
            distribution = self.flow(self._context(y))
            if self.levels is None:
                return distribution.log_prob(self._flow_input(x))
            draws = torch.stack([distribution.log_prob(self._flow_input(x)) for _ in range(particles)])
            return draws.logsumexp(0) - math.log(particles)

    def _check_values(self, x: Tensor, y: Tensor | None) -> None:
        """Shapes, support and labels."""
        check_event_shape(x, self.event_shape)
        check_labels(y, x.shape[:1], self.num_classes)
        if self.levels is not None:
            check_levels(x, self.levels, f"the support of a model of levels={self.levels}")
        elif self.bounds is not None:
            low, high = float(self.flow.support.lower_bound), float(self.flow.support.upper_bound)
            expected = f"above {low:g} and below {high:g}, the support of a flow with bounds {self.bounds}"
            check_support(x, (x > low) & (x < high), expected, "scale the data, or change bounds")

    def _flow_input(self, x: Tensor) -> Tensor:
        """The data in the shape and dtype of the flow, levels with uniform noise."""
        x = x.reshape(len(x), *self.flow.event_shape).to(self.flow.zero.dtype)
        return x if self.levels is None else x + torch.rand_like(x)

    def distribution(self, y: Tensor | None = None) -> FlowDistribution:
        """p(x), or p(x | y) for labels y of any shape; events have the shape of the flow."""
        return self.flow(self._context(y))

    def pull_back(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """z_i = T^-1(x_i) in the shape of the flow, and log |det dz_i / dx_i| (n,) in nats; arguments as in `model`."""
        with eval_mode(self):
            return self.distribution(y).inverse_and_log_det(self._flow_input(x))

    def _context(self, y: Tensor | None) -> Tensor | None:
        return one_hot(y, self.num_classes, self.flow.zero.dtype)
