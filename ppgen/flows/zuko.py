"""The parts of zuko that ppgen uses. Importing zuko turns off torch's validation of distributions; this undoes it."""

from torch.distributions import Distribution

from ppgen.utils.torch_private import distributions_validate

_before = distributions_validate()

from zuko import flows, lazy, transforms  # noqa: E402
from zuko import nn as networks  # noqa: E402
from zuko.flows import gaussianization  # noqa: E402

Distribution.set_default_validate_args(_before)

__all__ = ["flows", "gaussianization", "lazy", "networks", "transforms"]
