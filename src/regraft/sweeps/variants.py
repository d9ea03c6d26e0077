"""What a sweep varies: edits (changes of an activation at a site), on a route or on the clean one.

Shapes: g edits of a group, B prompts, k positions, W features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regraft.sweeps.routes import Route

Position = int | Sequence[int] | str | None
PROMPT, NEW = "prompt", "new"
"""Positions of an edit while text is written: those of the prompt, and those of what is written behind it."""


@dataclass(frozen=True, eq=False)
class Edit:
    """A change of the activation at `site`, at all positions (None), one, or several.

    A negative position counts from the end of each prompt. Positions are numbers; a mask of booleans is
    refused. While text is written, `"prompt"` and `"new"` mean all tokens of either.

    Examples:
        >>> isinstance(regraft.Zero("6.mlp_out", position=-1), regraft.Edit)
        True
        >>> regraft.Zero("6.mlp_out", position=-1).site
        '6.mlp_out'
    """

    site: str
    position: Position = None

    @property
    def key(self) -> tuple[Any, ...]:
        """Two edits with one key do the same, so that variants can share their work."""
        return (type(self).__name__, id(self))

    @property
    def reads_beside(self) -> bool:
        """Whether it needs another activation of the block beside the one that it changes."""
        return False

    @property
    def named(self) -> tuple[Position, ...]:
        """All that it says of positions."""
        return (self.position,)

    def change(self, old_BkW: Tensor, value_BkW: Tensor | None) -> Tensor:
        """The new activation, for all edits of one kind at once."""
        raise NotImplementedError

    def operand(self, old_BkW: Tensor, pick: Callable[[Tensor], Tensor]) -> Tensor | None:
        """The tensor that `change` needs for this edit, in the shape of the activation; None where it needs
        none."""
        return None


@dataclass(frozen=True, eq=False)
class Zero(Edit):
    """Set the activation to 0.

    Examples:
        >>> clean = model.record("The capital of France is", " Paris")
        >>> regraft.sweep(clean, regraft.Zero("6.head.0"), regraft.loss()).values["loss"].shape
        torch.Size([1, 1])
    """

    @property
    def key(self) -> tuple[Any, ...]:
        return ("Zero", self.site, plain(self.position))

    def change(self, old_BkW: Tensor, value_BkW: Tensor | None) -> Tensor:
        return torch.zeros_like(old_BkW)


@dataclass(frozen=True, eq=False)
class _WithValue(Edit):
    value: Tensor | None = None

    def __init__(
        self, site: str, value: Tensor | np.ndarray | Sequence[Any] | float, position: Position = None
    ):
        object.__setattr__(self, "site", site)
        object.__setattr__(self, "value", _numbers(value, type(self).__name__))
        object.__setattr__(self, "position", position)

    def operand(self, old_BkW: Tensor, pick: Callable[[Tensor], Tensor]) -> Tensor:
        assert self.value is not None
        return pick(self.value).to(old_BkW).expand_as(old_BkW)


def _numbers(value: Any, noun: str) -> Tensor:
    """A tensor of what was given as an edit's value: one number for all features, a list, an array or a
    tensor.

    Raises:
        ValueError: it is none of these.
    """
    if isinstance(value, Tensor):
        return value
    try:
        found = torch.as_tensor(np.asarray(value, dtype=float), dtype=torch.get_default_dtype())
    except (TypeError, ValueError) as error:
        what = type(value).__name__
        raise ValueError(
            f"the value of {noun} is a {what}: give a number, a list of numbers, or a tensor"
        ) from error
    return found.reshape(1) if found.dim() == 0 else found


class Replace(_WithValue):
    """Put `value` in place of the activation.

    `value` is one number, one vector (W,), one for each position (k, W) or for each prompt and position (B,
    k, W), or a whole activation (B, T, W), of which the edited positions are taken. With a negative position
    a whole activation must come from prompts as long as the edited ones.

    Examples:
        >>> am = model.record("The time displayed is 9:00 am. Therefore, it is currently the")
        >>> pm = model.record("The time displayed is 9:00 pm. Therefore, it is currently the")
        >>> patched = regraft.Replace("3.resid_pre", am["3.resid_pre"], position=-1)
        >>> result = regraft.sweep(pm, patched, regraft.logit_difference(" morning", " night"))
        >>> result.values["logit_difference"].shape  # logits, (variants, prompts)
        torch.Size([1, 1])
    """

    def change(self, old_BkW: Tensor, value_BkW: Tensor | None) -> Tensor:
        assert value_BkW is not None
        return value_BkW


class Add(_WithValue):
    """Add `value`, in any of the shapes of `Replace`.

    Examples:
        >>> night = model.activations(" night", "6.resid_post", positions=-1)["6.resid_post"].values[0]
        >>> night.shape  # (D,)
        (192,)
        >>> written = model.generate("It is dark", edits=regraft.Add("6.resid_post", night, "new"), tokens=3)
    """

    def change(self, old_BkW: Tensor, value_BkW: Tensor | None) -> Tensor:
        assert value_BkW is not None
        return old_BkW + value_BkW


@dataclass(frozen=True, eq=False)
class Scale(Edit):
    """Multiply the activation by `factor`.

    Examples:
        >>> clean = model.record("It is dark")
        >>> same = regraft.sweep(clean, regraft.Scale("6.mlp_out", 1.0), regraft.stream_distance())
        >>> round(float(same.mean("stream_distance")), 3)
        0.0
    """

    factor: float = 1.0

    def __init__(self, site: str, factor: float, position: Position = None):
        object.__setattr__(self, "site", site)
        object.__setattr__(self, "factor", factor)
        object.__setattr__(self, "position", position)

    @property
    def key(self) -> tuple[Any, ...]:
        return ("Scale", self.site, self.factor, plain(self.position))

    def operand(self, old_BkW: Tensor, pick: Callable[[Tensor], Tensor]) -> Tensor:
        return torch.full_like(old_BkW, self.factor)

    def change(self, old_BkW: Tensor, value_BkW: Tensor | None) -> Tensor:
        assert value_BkW is not None
        return old_BkW * value_BkW


@dataclass(frozen=True, eq=False)
class Apply(Edit):
    """Pass the activation through a function of one's own, from (..., W) to (..., W).

    The function sees the edited positions alone, of one run, in any number; it answers for each position by
    itself. (Where rows carry only what an edit can change, there is nothing else to see.)

    Examples:
        >>> clean = model.record("It is dark")
        >>> clipped = regraft.Apply("6.mlp_out", lambda x: x.clamp(-1, 1))
        >>> regraft.sweep(clean, clipped, regraft.kl_to_clean()).values["kl_to_clean"].shape
        torch.Size([1, 1])
    """

    function: Callable[[Tensor], Tensor] | None = None

    def __init__(self, site: str, function: Callable[[Tensor], Tensor], position: Position = None):
        if not callable(function):
            raise ValueError(
                f"Apply({site!r}, ...) takes a function of the activation, not a {type(function).__name__}"
            )
        object.__setattr__(self, "site", site)
        object.__setattr__(self, "function", function)
        object.__setattr__(self, "position", position)

    @property
    def key(self) -> tuple[Any, ...]:
        return ("Apply", self.site, id(self.function), plain(self.position))

    def operand(self, old_BkW: Tensor, pick: Callable[[Tensor], Tensor]) -> Tensor:
        assert self.function is not None
        found = self.function(old_BkW.clone())
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        name = getattr(self.function, "__name__", type(self.function).__name__)
        if shape != tuple(old_BkW.shape):
            raise ValueError(
                f"the function {name} of the edit at {self.site} returned {shape} for an activation of"
                f" {tuple(old_BkW.shape)}: it must return the same shape"
            )
        if not bool(found.isfinite().all()):
            raise ValueError(
                f"the function {name} of the edit at {self.site} returned numbers that are not finite"
            )
        return found.to(old_BkW)

    def change(self, old_BkW: Tensor, value_BkW: Tensor | None) -> Tensor:
        assert value_BkW is not None
        return value_BkW


@dataclass(frozen=True, eq=False)
class Noise(Edit):
    """Add Gaussian noise whose standard deviation is `scale` times the activation's root mean square at each
    position.

    Examples:
        >>> clean = model.record("It is dark")
        >>> levels = [regraft.Noise("6.resid_pre", scale, seed=1) for scale in (0.1, 1.0)]
        >>> far = regraft.sweep(clean, levels, regraft.stream_distance()).values["stream_distance"]
        >>> bool(far[0] < far[1])
        True
    """

    scale: float = 0.0
    seed: int = 0

    def __init__(self, site: str, scale: float, seed: int = 0, position: Position = None):
        object.__setattr__(self, "site", site)
        object.__setattr__(self, "scale", scale)
        object.__setattr__(self, "seed", seed)
        object.__setattr__(self, "position", position)

    @property
    def key(self) -> tuple[Any, ...]:
        return ("Noise", self.site, self.scale, self.seed, plain(self.position))

    def operand(self, old_BkW: Tensor, pick: Callable[[Tensor], Tensor]) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.randn(old_BkW.shape, generator=generator).to(old_BkW)
        return self.scale * drawn * old_BkW.float().pow(2).mean(-1, keepdim=True).sqrt().to(old_BkW)

    def change(self, old_BkW: Tensor, value_BkW: Tensor | None) -> Tensor:
        assert value_BkW is not None
        return old_BkW + value_BkW


def listed(position: Any) -> list[Any] | None:
    """The positions of an edit one by one, as plain numbers where they come from a tensor or an array; None
    for all. A word is one position, which no recording has."""
    if isinstance(position, (Tensor, np.ndarray)):
        position = position.tolist()
    if position is None:
        return None
    return list(position) if isinstance(position, Iterable) and not isinstance(position, str) else [position]


def plain(position: Position) -> Any:
    """A position as a value that can be compared."""
    found = listed(position)
    return None if found is None else tuple(found)


@dataclass(frozen=True, eq=False)
class Variant:
    """One run that differs from the clean one: a route (None: the clean one) and edits on it, one or several.

    Raises:
        ValueError: something among the edits is no edit, or the route is none.

    Examples:
        >>> both = regraft.Variant([regraft.Zero("3.mlp_out"), regraft.Scale("6.head.2", 0.5)])
        >>> regraft.sweep(model.record("It is dark"), both, regraft.kl_to_clean()).values["kl_to_clean"].shape
        torch.Size([1, 1])
    """

    edits: Sequence[Edit] = ()
    route: Route | None = None
    name: str = ""

    def __post_init__(self) -> None:
        given = (self.edits,) if isinstance(self.edits, Edit) else self.edits
        wrong = (
            given
            if not isinstance(given, Iterable)
            else next((e for e in given if not isinstance(e, Edit)), None)
        )
        if wrong is not None:
            remedy = (
                "write Variant(route=...)" if isinstance(wrong, Route) else "give edits such as Zero(site)"
            )
            raise ValueError(f"a {type(wrong).__name__} among the edits of a variant is no edit: {remedy}")
        if self.route is not None and not isinstance(self.route, Route):
            raise ValueError(
                f"a {type(self.route).__name__} is no route: make one with Route.skip, Route.order, ..."
            )
        object.__setattr__(self, "edits", tuple(given))


def variants_of(given: Any) -> list[Variant]:
    """Variants, an edit alone being one.

    Raises:
        ValueError: something is neither.
    """
    listed = (
        [given]
        if isinstance(given, (Variant, Edit, Route)) or not isinstance(given, Iterable)
        else list(given)
    )
    made = [Variant((one,)) if isinstance(one, Edit) else one for one in listed]
    made = [Variant(route=one) if isinstance(one, Route) else one for one in made]
    wrong = next((one for one in made if not isinstance(one, Variant)), None)
    if wrong is not None:
        raise ValueError(f"a {type(wrong).__name__} is no variant: give Variant([edits]), an edit or a route")
    return made
