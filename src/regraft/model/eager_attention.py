"""Attention computed so that its weights can be read, for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from regraft.model.model import Model

EAGER = "eager"


@contextmanager
def eager_attention(model: Model) -> Iterator[None]:
    """While inside, new recordings run with attention that returns its weights; what was recorded before has
    the masks of another attention and must not be asked for them."""
    before = getattr(model.hf.config, "_attn_implementation", None) or EAGER
    if before == EAGER:
        yield
        return
    model.hf.set_attn_implementation(EAGER)
    try:
        yield
    finally:
        model.hf.set_attn_implementation(before)
