"""How far an MLP bends as some rows of a matrix grow, by writing the grown matrix into the model itself."""

from __future__ import annotations

import pytest
import torch

from regraft.model.packed import PackedLayout, _bend, pattern
from small import opened, recorded


def outputs(model, recording, block, path, change):
    """The MLP's output in a full run, the parameter changed."""
    seen = []
    module = block.branch("mlp").module
    handle = module.register_forward_hook(lambda module, args, out: seen.append(out.double()))
    weight = block.module.get_parameter(path)
    kept = weight.data.clone()
    try:
        weight.data = change(kept.clone())
        with torch.no_grad():
            model.hf(input_ids=recording.ids_BT)
    finally:
        weight.data = kept
        handle.remove()
    return seen[0]


@pytest.mark.parametrize(
    ("name", "path", "dim"), [("gpt2", "mlp.c_fc.weight", 1), ("gpt2", "mlp.c_proj.weight", 0)]
)
def test_bends_are_second_differences_over_the_whole_change(name, path, dim):
    """GPT-2's MLP has biases and no gate, so it says something at every scale, 0 too."""
    model = opened(name)
    with torch.no_grad():
        for block in model.blocks:
            block.module.mlp.c_fc.bias.normal_()
            block.module.mlp.c_proj.bias.normal_()
    recording, block = recorded(model, 6), model.blocks[0]
    half = torch.arange(0, block.module.get_parameter(path).shape[dim], 3)

    def scaled(scale):
        def change(weight):
            weight.index_copy_(dim, half, weight.index_select(dim, half) * scale)
            return weight

        return outputs(model, recording, block, path, change)

    none, once, twice = (scaled(scale) for scale in (0, 1, 2))
    wanted = float((none - 2 * once + twice).abs().max() / (twice - none).abs().max())
    assert (wanted > 1e-3) == (path == "mlp.c_fc.weight"), "behind the curve it is linear"
    assert _bend(recording, block, path, dim, half) == pytest.approx(wanted, rel=1e-3, abs=1e-5)


def test_a_layout_takes_the_rows_or_columns_of_a_role():
    matrix = torch.arange(12).view(3, 4)
    rows, columns = (
        PackedLayout(0, {"gate": torch.tensor([0, 2])}),
        PackedLayout(1, {"up": torch.tensor([3, 1, 0])}),
    )
    assert rows.take(matrix, "gate").tolist() == [[0, 1, 2, 3], [8, 9, 10, 11]]
    assert columns.take(matrix, "up").tolist() == [[3, 1, 0], [7, 5, 4], [11, 9, 8]]
    assert rows.shape((3, 4), "gate") == (2, 4)
    assert columns.shape((3, 4), "up") == (3, 3)
    assert pattern("mlp.experts.12.up.weight") == "mlp.experts.#.up"
