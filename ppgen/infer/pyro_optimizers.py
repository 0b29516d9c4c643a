"""Pyro's own optimizers with the step count in a tensor, so that a recorded step can update it.

Pyro counts steps in a Python number and multiplies ``group["lr"]`` in each step; a recording would make both constants.
The optimizers here have the same arguments and make the same updates. Notation, elementwise throughout: θ is a
parameter, g its gradient, n the number of steps in which the parameter had a gradient, including this one; moments
start at 0. All state is created with the optimizer and overwritten in place. Gradients and ``param_groups`` are only
read, and a learning rate may be a number or a scalar tensor.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from pyro.optim.adagrad_rmsprop import AdagradRMSProp as PyroAdagradRMSProp
from pyro.optim.clipped_adam import ClippedAdam as PyroClippedAdam
from torch import Tensor
from torch.optim import Optimizer

__all__ = ["EQUIVALENTS", "AdagradRMSProp", "ClippedAdam", "from_pyro_state", "to_pyro_state", "traceable_equivalent"]


class _Counted(Optimizer):
    """Keeps "step", n in float64 on the parameter's device, and the moments that a subclass names."""

    moments: tuple[str, ...]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group and creates the state of its parameters.

        Args:
            param_group: as for any torch optimizer.
        """
        super().add_param_group(param_group)
        for p in self.param_groups[-1]["params"]:
            self.state[p]["step"] = torch.zeros((), dtype=torch.float64, device=p.device)
            for name in self.moments:
                self.state[p][name] = torch.zeros_like(p, requires_grad=False)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            for p in group["params"]:  # load_state_dict leaves "step" on the device where it was saved
                self.state[p]["step"] = self.state[p]["step"].to(p.device)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Takes one step; parameters without a gradient do not change, nor does their count.

        Args:
            closure: computes the loss and its gradients again.

        Returns:
            The result of `closure`; None without one.

        Raises:
            TypeError: if a gradient is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                if p.grad.is_sparse:
                    raise TypeError(
                        f"{type(self).__name__} needs dense gradients, got a sparse one for a parameter of shape "
                        f"{tuple(p.shape)}; create the layer, such as torch.nn.Embedding, with sparse=False"
                    )
                self.state[p]["step"].add_(1)
                p.sub_(self._update(p, p.grad, group, **self.state[p]))
        return loss

    def _update(self, p: Tensor, g: Tensor, group: dict[str, Any], step: Tensor, **moments: Tensor) -> Tensor:
        """Updates the moments and returns the amount to subtract from the parameter."""
        raise NotImplementedError


class ClippedAdam(_Counted):
    """Adam with clipped gradients and a decaying learning rate, as ``pyro.optim.ClippedAdam``.

    With c = clip_norm, w = weight_decay, (β₁, β₂) = betas::

        g ← clamp(g, -c, c) + w θ
        m ← β₁ m + (1 - β₁) g
        v ← β₂ v + (1 - β₂) g²                  (g - m)² for g² if centered_variance
        θ ← θ - lr lrdⁿ √(1 - β₂ⁿ) / (1 - β₁ⁿ) · m / (√v + eps)

    `lr` is thus the learning rate before decay, whereas Pyro's is that of the last step: a new value of ``group["lr"]``
    also decays by lrdⁿ from the parameter's first step on.

    Kingma and Ba, "Adam: a method for stochastic optimization" (https://arxiv.org/abs/1412.6980), Algorithm 1 in the
    form at the end of section 2. The centered variance is equation 2 of Rengaraj et al., "A two-step machine learning
    method for predicting the formation energy of ternary compounds" (2023).

    Args:
        params: parameters or groups of them.
        lr: the learning rate.
        betas: decay of the moments.
        eps: added to √v.
        weight_decay: w.
        clip_norm: c, a bound on each entry of the gradient.
        lrd: the learning rate is multiplied by this in each step.
        centered_variance: whether v is the variance of gradients rather than their second moment.
    """

    moments = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        clip_norm: float = 10.0,
        lrd: float = 1.0,
        centered_variance: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "clip_norm": clip_norm,
            "lrd": lrd,
            "centered_variance": centered_variance,
        }
        super().__init__(params, defaults)

    def _update(self, p: Tensor, g: Tensor, group: dict[str, Any], step: Tensor, **moments: Tensor) -> Tensor:
        m, v = moments["exp_avg"], moments["exp_avg_sq"]
        beta1, beta2 = group["betas"]
        g = g.clamp(-group["clip_norm"], group["clip_norm"])
        if group["weight_decay"] != 0:
            g = g.add(p, alpha=group["weight_decay"])
        m.mul_(beta1).add_(g, alpha=1 - beta1)
        residual = g - m if group["centered_variance"] else g
        v.mul_(beta2).addcmul_(residual, residual, value=1 - beta2)
        rate = group["lr"] * group["lrd"] ** step * (1 - beta2**step).sqrt() / (1 - beta1**step)
        return rate.to(p.dtype) * m / (v.sqrt() + group["eps"])


class AdagradRMSProp(_Counted):
    """The step sizes of automatic differentiation variational inference, as ``pyro.optim.AdagradRMSProp``.

    ::

        s ← g²                                  in the first step, t g² + (1 - t) s afterward
        θ ← θ - eta n^(-1/2 + delta) · g / (1 + √s)

    Kucukelbir et al., "Automatic differentiation variational inference" (https://arxiv.org/abs/1603.00788), equations
    10 and 11 with τ = 1.

    Args:
        params: parameters or groups of them.
        eta: the scale of the step size.
        delta: added to the exponent of n.
        t: the weight of the last squared gradient.
    """

    moments = ("sum",)

    def __init__(self, params: Iterable[Any], eta: float | Tensor = 1.0, delta: float = 1e-16, t: float = 0.1) -> None:
        super().__init__(params, {"eta": eta, "delta": delta, "t": t})

    def _update(self, p: Tensor, g: Tensor, group: dict[str, Any], step: Tensor, **moments: Tensor) -> Tensor:
        s, t = moments["sum"], group["t"]
        s.copy_(torch.where(step == 1, g * g, t * g * g + (1 - t) * s))
        rate = group["eta"] * step ** (group["delta"] - 0.5)
        return rate.to(p.dtype) * g / (1 + s.sqrt())


EQUIVALENTS: dict[type, type] = {PyroClippedAdam: ClippedAdam, PyroAdagradRMSProp: AdagradRMSProp}


def traceable_equivalent(constructor: Any) -> Any:
    """Exchanges one of Pyro's optimizers for the equivalent here; anything else is returned unchanged.

    Args:
        constructor: what a Pyro optimizer builds its optimizers with, ``PyroOptim.pt_optim_constructor``.
    """
    return EQUIVALENTS.get(constructor, constructor) if isinstance(constructor, type) else constructor


def to_pyro_state(
    optimizer: Optimizer, state: Mapping[str, Any], group: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The state of a parameter and its options as Pyro's own optimizer has them; those of torch's are unchanged.

    Args:
        optimizer: the optimizer.
        state: the state of the parameter.
        group: the parameter's group.
    """
    state, options = dict(state), {key: value for key, value in group.items() if key != "params"}
    if isinstance(optimizer, _Counted) and state:
        state["step"] = int(state["step"])
        if isinstance(optimizer, ClippedAdam):
            options["lr"] = options["lr"] * options["lrd"] ** state["step"]
    return state, options


def from_pyro_state(
    optimizer: Optimizer, state: Mapping[str, Any], options: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The inverse of `to_pyro_state`.

    Args:
        optimizer: the optimizer.
        state: the state of the parameter in Pyro's optimizer.
        options: its options there.
    """
    state, options = dict(state), dict(options)
    if isinstance(optimizer, _Counted) and state:
        steps = state["step"]
        state["step"] = torch.tensor(steps, dtype=torch.float64, device=state[optimizer.moments[0]].device)
        if isinstance(optimizer, ClippedAdam):
            options["lr"] = options["lr"] / options["lrd"] ** steps
    return state, options
