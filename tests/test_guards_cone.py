"""Recorded keys and values in front of new ones, row by row, and what edits of several sites on one row have
in common."""

from __future__ import annotations

import pytest
import torch

from regraft.core.tolerance import gap
from regraft.sweeps.linear_edits import _features
from regraft.sweeps.prefix_cache import PrefixCache
from regraft.sweeps.sweep import sweep
from regraft.sweeps.variants import Scale, Variant, Zero
from small import METRIC, opened, recorded, reference


@pytest.mark.parametrize("prompts", [1, 2, 3])
@pytest.mark.parametrize("rows", [1, 2, 3])
def test_a_prefix_stands_in_front_of_every_rows_new_keys_and_values(prompts, rows):
    draw = torch.Generator().manual_seed(0)
    keys, values = (torch.randn(prompts, 2, 4, 5, generator=draw) for _ in range(2))
    new_keys, new_values = (torch.randn(rows * prompts, 2, 3, 5, generator=draw) for _ in range(2))
    found = PrefixCache(keys, values, rows).update(new_keys, new_values, 0)
    for both, old, new in zip(found, (keys, values), (new_keys, new_values), strict=True):
        assert both.shape == (rows * prompts, 2, 7, 5)
        for row in range(rows):
            for prompt in range(prompts):
                one = row * prompts + prompt
                assert torch.equal(both[one], torch.cat([old[prompt], new[one]], dim=1))


def test_a_row_that_edits_a_whole_projection_and_a_part_of_it_is_corrected_over_all_of_it():
    model = opened("llama")
    width = model.blocks[0].module.self_attn.o_proj.in_features
    head = width // 4
    assert _features(model, [Zero("0.head.1")]).tolist() == list(range(head, 2 * head))
    assert _features(model, [Zero("0.head.2"), Zero("0.head.0")]).tolist() == [
        *range(head),
        *range(2 * head, 3 * head),
    ]
    for edits in ([Zero("0.z"), Zero("0.head.1")], [Zero("0.head.1"), Zero("0.z")], [Zero("0.z")]):
        assert _features(model, edits).tolist() == list(range(width))
    recording = recorded(model, 6, 4)
    variants = [
        Variant([Scale("1.z", 0.5), Zero("1.head.2")]),
        Variant([Zero("1.head.2")]),
        Variant([Zero("1.mlp_act"), Scale("1.neuron.3", 2.0)]),
        Variant([Scale("1.neuron.3", 2.0), Scale("1.mlp_act", 0.5)]),
    ]
    found = sweep(recording, variants, METRIC).values["d"]
    assert gap(torch.as_tensor(found), reference(model, recording, variants)) <= model.rounding
