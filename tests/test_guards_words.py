"""Guards: what a reader is shown: tokens as they look, axes of figures, a student's next stage, ids at the
edges. By hand."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import xarray as xr

from regraft.cli import main as cli
from regraft.data.token_bytes import TokenBytes
from regraft.reference import skeleton
from regraft.reference.checkpoint_reader import Rebuilt
from regraft.reference.stage_compare import Row
from regraft.reporting.figures.observe_figures import visible
from regraft.reporting.figures.route_figures import shuffle_figures
from regraft.tokenizers.comparison import compare


@pytest.mark.parametrize(
    ("piece", "shown"),
    [
        ("<|endoftext|>", "⟨end⟩"), ("<|im_start|>", "⟨special⟩"), ("<|half", "<|half"), ("half|>", "half|>"),
        (" word", "word"), (" ", "·"), ("\n", "⏎"), (" a\n", "·a⏎"),
    ],
)  # fmt: skip
def test_a_token_is_shown_as_a_reader_sees_it(piece, shown):
    assert visible(piece) == shown


def test_the_true_places_are_drawn_place_by_method():
    data = xr.Dataset(
        {
            "recovered": (("method", "place"), [["0", "1", "2"], ["2", "0", "1"]]),
            "tau": ("method", [1.0, -0.3]),
            "loss": ("method", [0.5, 2.0]),
            "seconds": ("method", [0.1, 0.2]),
            "in_place": ("method", [1.0, 0.0]),
            "shuffled": ("place", ["2", "0", "1"]),
        },
        coords={"method": ["flow", "norm"], "place": [0, 1, 2]},
    )
    (_, tau), (_, found) = shuffle_figures(data)
    cells = found.data[0]
    assert np.array_equal(np.array(cells.z), [[0, 1, 2], [2, 0, 1]])
    assert [str(x) for x in cells.x] == ["0", "1", "2"]
    assert list(cells.y) == ["flow", "norm"]
    assert list(tau.data[0].x) == [1.0, -0.3]


@pytest.mark.parametrize(
    ("passed", "raises", "said", "status"),
    [
        (1, None, "next: b, the second, [2]", 1),
        (2, None, "2 of 2 stages", 0),
        (1, NotImplementedError("write b first"), "1 of 2 stages: write b first", 1),
        (2, NotImplementedError("write the rest"), "2 of 2 stages: write the rest", 1),
    ],
)
def test_a_student_is_told_the_next_stage_unless_something_stopped(
    passed, raises, said, status, tmp_path, monkeypatch, capsys
):
    stages = [
        {"stage": name, "what": f"the {place}", "shape": [2]}
        for name, place in (("a", "first"), ("b", "second"))
    ]
    (tmp_path / skeleton.TASK).write_text(json.dumps({"stages": stages}))

    def check(folder, verdict, carry):
        assert not carry
        verdict.rows += [Row(entry["stage"], (2,), (2,), 0.0, 0.0, 17, True) for entry in stages[:passed]]
        if raises:
            raise raises

    monkeypatch.setattr(skeleton, "check", check)
    assert skeleton.report(tmp_path) == status
    out = capsys.readouterr().out
    assert said in out
    assert ("next:" in out) == (said.startswith("next:"))


def test_ids_run_from_zero_to_the_last_row():
    rebuilt = SimpleNamespace(
        module=SimpleNamespace(TOKENS="table", POSITIONS=""), weights={"table": torch.zeros(5, 2)}
    )
    Rebuilt.check_ids(rebuilt, [[0, 4]])
    for wrong in (-1, 5):
        with pytest.raises(ValueError, match=f"token id {wrong} is outside the vocabulary of 5"):
            Rebuilt.check_ids(rebuilt, [[0, wrong]])


def test_tokens_of_two_words_are_listed_by_how_often_the_text_has_them():
    """The most frequent first, of equally frequent ones the lower id; those of one word, or of none in the
    text, are not."""
    contents = [b"a", b"b c", b" d", b"e f", b"g h", b"i j", b"k l"]
    reader = SimpleNamespace(
        table=TokenBytes(tuple(contents), ("text",) * 7, "byte-level"),
        id_of={content: i for i, content in enumerate(contents)},
        encode_texts=lambda texts: [[0, 0, 0, 0, 1, 3, 3], [2, 4, 4, 4, 6]],
        keeps=lambda content, ids: True,
        tokenizer=SimpleNamespace(backend_tokenizer=SimpleNamespace(to_str=lambda: "{}")),
    )
    data = compare({"it": reader}, {"one": ["some", "text"]})
    assert [text for text in data.crossing_token.values[0] if text] == ["g h", "e f", "b c", "k l"]
    assert data.crossing_count.values[0].tolist() == [3, 2, 1, 1, *[0] * 16]


def test_the_entry_point_hands_on_every_word_behind_its_name(monkeypatch):
    seen = []
    monkeypatch.setattr(cli, "app", lambda words: seen.append(words) or 3)
    monkeypatch.setattr(sys, "argv", ["regraft", "push", "--targets", " yes", " no", "--seed", "4"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 3
    assert seen == [["push", "--targets", " yes", "--targets", " no", "--seed", "4"]]
