"""The support of a mixture of continuous components, mapped to the real line: that which all components share.

Torch has no such map, so that no autoguide takes a latent whose prior is a `MixtureSameFamily`.
"""

from torch import Tensor
from torch.distributions import Transform, biject_to, constraints, transform_to
from torch.distributions.constraints import Constraint, MixtureSameFamilyConstraint

__all__ = ["shared_support"]


@biject_to.register(MixtureSameFamilyConstraint)
def _biject_to_mixture(support: MixtureSameFamilyConstraint) -> Transform:
    return biject_to(shared_support(support))


@transform_to.register(MixtureSameFamilyConstraint)
def _transform_to_mixture(support: MixtureSameFamilyConstraint) -> Transform:
    return transform_to(shared_support(support))


def shared_support(support: MixtureSameFamilyConstraint) -> Constraint:
    """The support of each component of a mixture, without the dimension of the components.

    Args:
        support: the support of the mixture.

    Raises:
        NotImplementedError: if the components have different supports.
    """
    return _without_dim(support.base_constraint, -1 - support.event_dim)


def _without_dim(support: Constraint, dim: int) -> Constraint:
    """A support whose bounds lose a dimension, along which they are equal."""
    if isinstance(support, constraints.independent):
        return constraints.independent(_without_dim(support.base_constraint, dim), support.reinterpreted_batch_ndims)
    bounds = {k: v for k, v in vars(support).items() if isinstance(v, Tensor) and v.dim() >= -dim}
    if not bounds:
        return support
    if any((bound != bound.select(dim, 0).unsqueeze(dim)).any() for bound in bounds.values()):
        raise NotImplementedError("its components have different supports")
    return type(support)(**(vars(support) | {k: v.select(dim, 0) for k, v in bounds.items()}))
