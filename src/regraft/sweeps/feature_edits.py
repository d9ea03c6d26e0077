"""Edits of a dictionary's features, made as edits of the activation that the dictionary stands for.

What the features' change writes is added; what the dictionary does not explain stays as it is. Shapes: k
positions, D width of what is read, E width of what is written, F features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from regraft.model.dictionary import Dictionary
from regraft.model.model import Model
from regraft.model.sites import DICTIONARY, FEATURE, Site, Tap
from regraft.sweeps.variants import Add, Apply, Edit, Replace, Scale, Variant, Zero


@dataclass(frozen=True, eq=False)
class FeatureEdit(Edit):
    """An edit of features as one of the activation that they are written to.

    A transcoder reads elsewhere than it writes: what it reads (`beside`) then stands behind what is written,
    in one tensor (..., E + D).
    """

    inner: Edit | None = None
    dictionary: Dictionary | None = None
    index: int | None = None
    beside: Tap | None = None

    @property
    def key(self) -> tuple[object, ...]:
        """Two of one key do the same."""
        return ("FeatureEdit", self.inner and self.inner.key)

    @property
    def reads_beside(self) -> bool:
        """Whether what it reads is not what it writes."""
        return self.beside is not None

    def operand(self, old_BkW: Tensor, pick: Callable[[Tensor], Tensor]) -> Tensor:
        """What the change of the features writes, (..., W)."""
        known = self.dictionary
        assert known is not None
        written = known.decoder_FE.shape[1]
        x_BkD = old_BkW[..., written:] if self.beside is not None else old_BkW
        if not x_BkD.numel():
            return torch.zeros_like(old_BkW)
        before = known.encode(x_BkD, self.index)
        change = self._changed(before) - before
        found = known.write(change, x_BkD, self.index).to(old_BkW.dtype)
        return found if self.beside is None else torch.cat([found, torch.zeros_like(x_BkD)], dim=-1)

    def _changed(self, features: Tensor) -> Tensor:
        edit = self.inner
        if isinstance(edit, Zero):
            return torch.zeros_like(features)
        if isinstance(edit, Scale):
            return features * edit.factor
        if isinstance(edit, Apply):
            return edit.operand(features, lambda value: value)
        assert isinstance(edit, (Add, Replace))
        assert edit.value is not None
        value = edit.value.to(features)
        return features + value if isinstance(edit, Add) else value.expand_as(features)

    def change(self, old_BkW: Tensor, value_BkW: Tensor | None) -> Tensor:
        """The activation with what the features' change writes."""
        assert value_BkW is not None
        return old_BkW + value_BkW


def spliced(model: Model, variant: Variant) -> Variant:
    """The variant with edits of features made into edits of activations.

    Raises:
        ValueError: a feature's edit is noise, or has a value that is neither one number nor one for each
            feature.
    """
    if not any(f".{word}" in edit.site for edit in variant.edits for word in (DICTIONARY, FEATURE)):
        return variant
    return replace(variant, edits=[_spliced(model, edit) for edit in variant.edits])


def _spliced(model: Model, edit: Edit) -> Edit:
    site = model.site(edit.site)
    if site.name != DICTIONARY:
        return edit
    known = model.dictionary(site)
    count = known.features if site.index is None else 1
    if not isinstance(edit, (Zero, Scale, Add, Replace, Apply)):
        raise ValueError(
            f"{type(edit).__name__} at {edit.site} is not offered: zero, scale, add or replace features"
        )
    if isinstance(edit, (Add, Replace)):
        shape = () if edit.value is None else tuple(edit.value.shape)
        if shape not in ((), (1,), (count,)):
            raise ValueError(
                f"the value of the edit at {edit.site} has shape {shape}: give one number, or ({count},)"
            )
    base = written_at(site, known)
    beside = model.tap(read_at(site, known)) if known.is_transcoder else None
    return FeatureEdit(base, edit.position, edit, known, site.index, beside)


def model_base(model: Model, site: Site) -> str:
    """The address of the model's own activation that a site is read from."""
    return read_at(site, model.dictionary(site)) if site.name == DICTIONARY else site.address


def written_at(site: Site, known: Dictionary) -> str:
    """The address of the activation that features are written to."""
    return f"{_block_of(site)}.{known.writes}"


def read_at(site: Site, known: Dictionary) -> str:
    """The address of the activation that features are computed from."""
    return f"{_block_of(site)}.{known.reads}"


def _block_of(site: Site) -> str:
    return site.address.partition(f".{DICTIONARY}")[0]
