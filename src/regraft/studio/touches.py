"""What one click changes, as an edit of the model and as the line of Python that makes the same edit.

Shapes: D width of the stream, W width at a site.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from torch import Tensor

from regraft.model.model import Model
from regraft.model.recording import Recording
from regraft.model.sites import SiteError
from regraft.studio.limits import RefusedError
from regraft.sweeps.edit_words import read_vector
from regraft.sweeps.variants import Add, Edit, Replace, Scale, Zero

Does = Literal["zero", "scale", "second", "difference", "token", "vector"]
WORDS: dict[Does, str] = {
    "zero": "set to 0",
    "scale": "scale by",
    "second": "put in what the second prompt has",
    "difference": "add second minus first, times",
    "token": "add a token's direction, times",
    "vector": "add the vector of a file or a run of steer, times",
}
"""What a touch does, as a page says it."""
WITH_AMOUNT = ("scale", "difference", "token", "vector")
MOST = 1e6
"""The largest factor: beyond it the stream leaves the numbers of its type."""


@dataclass(frozen=True)
class Touch:
    """One change: at a site, at one token of the prompt (None: at every token, written ones too).

    `amount` is a factor; `named` the token whose row of the output matrix is added, or the file of a vector.
    """

    site: str
    does: Does
    position: int | None = None
    amount: float = 1.0
    named: str = ""

    @property
    def target(self) -> tuple[str, int | None, Does]:
        """What tells two touches apart: a second one of a kind at one place replaces the first."""
        return (self.site, self.position, self.does)

    def __str__(self) -> str:
        amount = f" {self.amount:g}" if self.does in WITH_AMOUNT else ""
        where = "every token" if self.position is None else f"token {self.position}"
        named = f" {self.named!r}" if self.does in ("token", "vector") else ""
        return f"{self.site} at {where}: {WORDS[self.does]}{amount}{named}"


def check_touch(touch: Touch, model: Model, length: int) -> None:
    """Make sure that a touch means something here.

    Raises:
        RefusedError: it does not; the sentence says why.
    """
    if touch.does not in WORDS:
        raise RefusedError(f"nothing is called {touch.does!r}: choose one of {', '.join(WORDS)}")
    if not math.isfinite(touch.amount) or abs(touch.amount) > MOST:
        raise RefusedError(f"a factor of {touch.amount:g} is out of bounds: write one up to {MOST:,.0f}")
    if touch.position is not None and not 0 <= touch.position < length:
        raise RefusedError(f"there is no token {touch.position}: the prompt has tokens 0 to {length - 1}")
    if touch.position is None and touch.does in ("second", "difference"):
        raise RefusedError("what the second prompt has stands at one token: click one, not every token")
    try:
        site = model.site(touch.site)
    except SiteError as error:
        raise RefusedError(str(error)) from error
    if site.name in ("pattern", "logits", "embed", "final_norm"):
        raise RefusedError(f"{touch.site} is no part of a block: touch a block, head, neuron or cell")


def edit_of(touch: Touch, clean: Recording, other: Recording | None) -> Edit:
    """The edit that a touch is.

    Args:
        touch: what was clicked.
        clean: the first prompt's recording.
        other: the second prompt's.

    Raises:
        RefusedError: it needs a second prompt, or a token, that is not there.
    """
    check_touch(touch, clean.model, clean.positions)
    if touch.does == "zero":
        return Zero(touch.site, touch.position)
    if touch.does == "scale":
        return Scale(touch.site, touch.amount, touch.position)
    if touch.does == "token":
        row_D = _token_row(clean.model, touch)
        return Add(touch.site, touch.amount * row_D, touch.position)
    if touch.does == "vector":
        return Add(touch.site, touch.amount * _vector(clean.model, touch), touch.position)
    assert touch.position is not None
    theirs_W = _there(touch.site, other, second_position(touch.position, clean, other))
    if touch.does == "second":
        return Replace(touch.site, theirs_W, touch.position)
    return Add(
        touch.site, touch.amount * (theirs_W - _there(touch.site, clean, touch.position)), touch.position
    )


def second_position(position: int, clean: Recording, other: Recording | None) -> int:
    """The token of the second prompt that stands as far from its end as `position` from the first one's.

    Raises:
        RefusedError: there is no second prompt, or it is too short.
    """
    if other is None:
        raise RefusedError("there is no second prompt: write one, then put in what it has")
    found = position + other.positions - clean.positions
    if found < 0:
        raise RefusedError(
            f"token {position} stands {clean.positions - position} from the end, and the second prompt has"
            f" {other.positions} tokens: write a longer one"
        )
    return found


def _there(site: str, recording: Recording | None, position: int) -> Tensor:
    assert recording is not None
    return recording[site][0, position].flatten()


def token_id(model: Model, text: str) -> int:
    """The one token that a text is.

    Raises:
        RefusedError: it is none, or several.
    """
    if not text:
        raise RefusedError("no token is named: write one, for example ' Paris' with its space")
    try:
        return model.single_token(text)
    except ValueError as error:
        raise RefusedError(str(error)) from error


def _token_row(model: Model, touch: Touch) -> Tensor:
    """The token's row of the output matrix, (D,)."""
    head = model.parts.head
    token = token_id(model, touch.named)
    weight_VD = None if head is None else getattr(head, "weight", None)
    if not isinstance(weight_VD, Tensor) or weight_VD.shape[1] != model.width:
        raise RefusedError(f"{model.name} has no output matrix as wide as its stream to take a row of")
    if touch.site.split(".")[-1] not in ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"):
        raise RefusedError(f"{touch.site} is not as wide as the stream: add a direction to the stream")
    return weight_VD[token].detach().float()


def _vector(model: Model, touch: Touch) -> np.ndarray:
    """The numbers of the file, (W,) or several of them."""
    if not touch.named:
        raise RefusedError("no file is named: write a .npy or .safetensors, or the folder of a run of steer")
    try:
        return read_vector(Path(touch.named), touch.site, Path(touch.named).name)
    except ValueError as error:
        raise RefusedError(str(error)) from error


def line_of(touch: Touch, clean: Recording, other: Recording | None) -> str:
    """The Python expression that makes the same edit, with `model`, `clean` and `other` as `code` names
    them."""
    where = "" if touch.position is None else f", position={touch.position}"
    site = repr(touch.site).replace("'", '"')
    if touch.does == "zero":
        return f"regraft.Zero({site}{where})"
    if touch.does == "scale":
        return f"regraft.Scale({site}, {touch.amount:g}{where})"
    if touch.does == "token":
        row = f"model.hf.get_output_embeddings().weight[{token_id(clean.model, touch.named)}].detach()"
        return f"regraft.Add({site}, {touch.amount:g} * {row}{where})"
    if touch.does == "vector":
        read = f"read_vector(Path({touch.named!r}), {site}, {Path(touch.named).name!r})"
        return f"regraft.Add({site}, {touch.amount:g} * {read}{where})"
    assert touch.position is not None
    theirs = f"other[{site}][0, {second_position(touch.position, clean, other)}].flatten()"
    if touch.does == "second":
        return f"regraft.Replace({site}, {theirs}{where})"
    mine = f"clean[{site}][0, {touch.position}].flatten()"
    return f"regraft.Add({site}, {touch.amount:g} * ({theirs} - {mine}){where})"
