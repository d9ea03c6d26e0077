"""Models in folders, opened block by block, for the tests of streaming."""

from __future__ import annotations

import pytest
import torch

from families import FAMILIES
from regraft.checkpoint.hub import resolve
from regraft.model.from_files import from_files
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
    """The model with two blocks at a time; how much that is, is told before its parts are looked for."""
    _, whole = from_files(resolve(folder)[0], "cpu", None, None, False, True, PLENTY)
    return load(folder, stream=True, memory=whole.sizes.least)


def prompts_of(model):
    return [ids(6, 1), ids(4, 2)], ([ids(5, 3), ids(3, 4)] if model.two_stacks else None)


def near(found, wanted, message=""):
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5, msg=message or None)
