"""Models in folders, opened block by block, for the tests of streaming."""

from __future__ import annotations

import pytest
import torch

from families import FAMILIES
from regraft.model.load import load
from small import ids

PLENTY = 1 << 40


@pytest.fixture(autouse=True)
def bare(monkeypatch):
    """The limit is what weights may take: nothing is held yet, nothing kept free, and work needs nothing."""
    monkeypatch.setattr("regraft.model.streamed.held_now", lambda device: 0)
    monkeypatch.setattr("regraft.model.streamed.WORKING", 0)
    monkeypatch.setattr("regraft.model.streamed.Streamed.make_room", lambda streamed, needed: None)


def saved(folder, name, **changes):
    torch.manual_seed(1)
    model = FAMILIES[name]().eval()
    model.save_pretrained(folder, **changes)
    return folder


def least(folder):
    """The model with two blocks at a time."""
    whole = load(folder, stream=True, memory=PLENTY).streamed
    return load(folder, stream=True, memory=whole.sizes.least)


def prompts_of(model):
    return [ids(6, 1), ids(4, 2)], ([ids(5, 3), ids(3, 4)] if model.two_stacks else None)


def near(found, wanted, message=""):
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5, msg=message or None)
