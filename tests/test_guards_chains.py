"""Guards: what makes a list of blocks, in a traced run and in names alone; a folder that is none. By hand."""

from __future__ import annotations

import pytest
import torch

from regraft.checkpoint.block_lists import _is_list
from regraft.checkpoint.headers import Entry
from regraft.checkpoint.locate import CheckpointError, check_folder
from regraft.model.part_search import _hands_stream_on
from regraft.model.trace import Call


def call(given, returned):
    module = torch.nn.Identity()
    return [Call("block", module, (given,), returned)]


def test_a_stream_is_handed_on_by_every_element():
    """One link that is another tensor, wherever it is, makes no stack; nor an element that is called
    twice."""
    streams = [torch.full((1, 2, 3), float(i)) for i in range(5)]
    chain = [call(streams[i], streams[i + 1]) for i in range(4)]
    assert _hands_stream_on(chain)
    for broken in range(1, 4):
        parted = [*chain]
        parted[broken] = call(streams[broken] + 1, streams[broken + 1])
        assert not _hands_stream_on(parted), broken
    assert not _hands_stream_on([chain[0] * 2, *chain[1:]])
    assert not _hands_stream_on([call(streams[0], streams[1][:, :1]), call(streams[1][:, :1], streams[2])])
    assert not _hands_stream_on([call(torch.zeros(1, 2, dtype=torch.long), streams[1])])


def block(*names):
    return {f"{name}.weight": [Entry(f"{name}.weight", "F32", (4, 4), "model.safetensors")] for name in names}


@pytest.mark.parametrize(
    ("blocks", "is_list"),
    [
        ({0: block("q", "k", "v"), 1: block("q", "k", "v")}, True),
        ({0: block("q", "k", "v"), 1: block("q", "up", "down")}, False),
        ({0: block("q", "k", "v"), 1: block("q", "k", "up"), 2: block("q", "k", "v")}, True),
        ({0: block("q", "k"), 1: block("q", "k")}, False),
        ({0: block(*(f"self_attn.{n}_proj" for n in "qkvo"))}, True),
        ({0: block(*(f"self_attn.{n}_proj" for n in "qkv"))}, False),
        ({0: block("a", "b", "c", "d")}, False),
        ({7: block("q", "k", "v"), 8: block("q", "k", "v")}, False),
    ],
)
def test_numbered_groups_are_blocks_where_half_of_their_names_recur(blocks, is_list):
    assert _is_list(blocks) == is_list


def test_a_file_is_no_model_folder(tmp_path):
    (tmp_path / "file").write_text("words")
    for missing in (tmp_path / "file", tmp_path / "nothing"):
        with pytest.raises(
            CheckpointError, match="is not a folder: give a model folder, a hub id, or specimen:qwen3"
        ):
            check_folder(missing)
    with pytest.raises(CheckpointError, match="is not a model folder: it has no config"):
        check_folder(tmp_path)
