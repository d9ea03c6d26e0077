"""An adapted model made linear at one prompt: what every activation adds to a score, exactly up to biases.

What is frozen, by the rules of relevance propagation ("RelP", Jafari et al., 2025; Arras et al., 2025):
attention patterns, the denominators of norms, and the ratio of what an activation function gives to what it
is given; a product of two activations is halved between them. A score is then the sum of what flows to it
from token embeddings, features and biases. Rules are applied to PyTorch's own functions while the model
runs, so that no architecture is written anew.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode


class Linearised(TorchFunctionMode):
    """While inside, gradients are those of the linear model; values are those of the model as it is."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        rule = RULES.get(func)
        if rule is None or not torch.is_grad_enabled():
            return func(*args, **kwargs)
        return rule(func, *args, **kwargs)


def _frozen(func: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    """A result that is a constant: patterns, denominators."""
    return func(*args, **kwargs).detach()


def _ratio(func: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """An activation function as a constant multiple of its argument."""
    found = func(x.detach(), *args, **kwargs)
    safe = torch.where(x.detach() == 0, torch.ones_like(x), x.detach())
    return x * torch.where(x.detach() == 0, torch.zeros_like(x), found / safe)


def _halved(func: Callable[..., Tensor], a: Any, b: Any, **kwargs: Any) -> Tensor:
    """A product of two activations, half of it by each."""
    both = isinstance(a, Tensor) and isinstance(b, Tensor) and a.requires_grad and b.requires_grad
    if not both:
        return func(a, b, **kwargs)
    return 0.5 * func(a, b.detach(), **kwargs) + 0.5 * func(a.detach(), b, **kwargs)


def _attention(func: Callable[..., Tensor], query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return func(query.detach(), key.detach(), *args, **kwargs)


def _layer_norm(
    func: Callable[..., Tensor], x: Tensor, shape: Any, weight: Any = None, bias: Any = None,
    eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    axes = tuple(range(-len(shape), 0))
    centred = x - x.mean(axes, keepdim=True)
    scale = (x.detach().var(axes, unbiased=False, keepdim=True) + eps).rsqrt()
    made = centred * scale.detach()
    made = made if weight is None else made * weight
    return made if bias is None else made + bias


def _rms_norm(
    func: Callable[..., Tensor], x: Tensor, shape: Any, weight: Any = None, eps: float | None = None
) -> Tensor:
    axes = tuple(range(-len(shape), 0))
    small = torch.finfo(x.dtype).eps if eps is None else eps
    made = x * (x.detach().pow(2).mean(axes, keepdim=True) + small).rsqrt().detach()
    return made if weight is None else made * weight


RULES: dict[Any, Callable[..., Tensor]] = {
    **dict.fromkeys((torch.softmax, functional.softmax, Tensor.softmax), _frozen),
    **dict.fromkeys((torch.rsqrt, Tensor.rsqrt, torch.tanh, Tensor.tanh, functional.tanh), _frozen),
    **dict.fromkeys((torch.sigmoid, Tensor.sigmoid, functional.sigmoid, torch.erf, Tensor.erf), _frozen),
    **dict.fromkeys((functional.silu, functional.gelu, functional.relu, torch.relu, Tensor.relu), _ratio),
    **dict.fromkeys((torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__), _halved),
    functional.scaled_dot_product_attention: _attention,
    functional.layer_norm: _layer_norm,
    functional.rms_norm: _rms_norm,
}
"""How each function is run; all others as they are. A tanh, a sigmoid or an inverse root stands in front of
what it multiplies, so as a constant it makes the product linear in that."""
