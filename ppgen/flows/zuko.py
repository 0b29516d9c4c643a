"""zuko's maps. To import zuko turns off torch's validation of distributions for the whole process; here it stays."""

from torch.distributions import Distribution

_before = Distribution._validate_args

from zuko import flows, lazy, nn, transforms  # noqa: E402

Distribution.set_default_validate_args(_before)

__all__ = ["flows", "lazy", "nn", "transforms"]
