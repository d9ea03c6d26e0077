"""Corrections of different sizes together: equal to full forwards, and each corrected block runs once, which
is counted."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from regraft.model.recording import Recording
from regraft.sweeps.sweep import sweep
from regraft.sweeps.variants import Scale, Variant, Zero
from small import METRIC, opened, recorded, reference


def mixed(block, neurons):
    """Edits of one, two, three and all neurons of a block, and one twice in a row."""
    sites = [[0], [1, 2], [3], [4, 5, 6], [2], [7, 1]]
    rows = [Variant([Zero(f"{block}.neuron.{n}") for n in own]) for own in sites]
    return [
        *rows,
        Variant([Scale(f"{block}.mlp_act", 0.5)]),
        Variant([Zero(f"{block}.neuron.{neurons - 1}")]),
    ]


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "gemma2", "olmo2", "bert"])
def test_corrections_of_different_sizes_run_their_block_once(name, monkeypatch):
    model = opened(name)
    recording = recorded(model, 7, 5)
    width = model.tap("1.mlp_act").module.weight.shape[-1]
    variants = [v for block in (1, 2) for v in mixed(block, width)]
    calls, real = Counter(), Recording.run_block

    def counted(self, block, stream, rows, *others, **named):
        calls[block, rows] += 1
        return real(self, block, stream, rows, *others, **named)

    sweep(recording, variants, METRIC)  # the proof of the columns runs the block, once for a recording
    monkeypatch.setattr(Recording, "run_block", counted)
    result = sweep(recording, variants, METRIC)
    monkeypatch.undo()
    # one row alone: the control row, and once what is corrected (before: once a row)
    assert [calls[block, 1] for block in range(3)] == [1, 2, 2]
    assert result.work.preparation == 2 * recording.prompts * recording.positions
    found = result.values["d"]
    wanted = reference(model, recording, variants)
    assert torch.allclose(found, wanted, atol=1e-5)
    assert not torch.allclose(found, wanted.roll(1, 0), atol=1e-5), "each row has its own edits"
