"""The causal bottleneck: restored updates held to hooks, the trap of whole streams, pairs that part late."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest
import torch

from regraft.core.registry import experiments
from regraft.data.minimal_pairs import GENERAL, KINDS, SPECIMEN
from regraft.experiments.observe.paired import rank_correlation
from regraft.experiments.running import run_experiment
from regraft.model.load import load
from regraft.reporting.drawings import drawing_of
from small import opened

RUN = partial(run_experiment, experiments()["bottleneck"])


@pytest.fixture(scope="module")
def model():
    return load("specimen:qwen3")


@pytest.fixture(scope="module")
def data(model):
    return RUN(model, count=2)


def test_pairs_are_of_three_kinds_and_differ_in_their_answer():
    for pairs in (GENERAL, SPECIMEN):
        assert {pair.kind for pair in pairs} == set(KINDS)
        assert min(sum(pair.kind == kind for pair in pairs) for kind in KINDS) >= 6
        for pair in pairs:
            assert pair.clean != pair.corrupt
            assert pair.answer != pair.wrong
            assert len(pair.clean.split()) == len(pair.corrupt.split()), pair
        assert len({pair.clean for pair in pairs}) == len(pairs)


@torch.no_grad()
def test_a_restored_update_against_hooks(model, data):
    """One block's own output in the clean run, less its input, added to the corrupted run's input there."""
    pair = SPECIMEN[0]
    clean, corrupt = (torch.tensor([model.encode(text)]) for text in (pair.clean, pair.corrupt))
    answer, wrong = (model.continuation(text)[0] for text in (pair.answer, pair.wrong))

    def difference(ids):
        logits = model.hf(input_ids=ids).logits[0, -1]
        return float(logits[answer] - logits[wrong])

    best, worst = difference(clean), difference(corrupt)
    for block in (0, 4, 9):
        layer, kept = model.hf.model.layers[block], {}

        def keep(module, args, out, kept=kept):
            kept["update"] = (out[0] if isinstance(out, tuple) else out) - args[0]

        handle = layer.register_forward_hook(keep)
        model.hf(input_ids=clean)
        handle.remove()

        def put(module, args, out, kept=kept):
            made = args[0] + kept["update"]
            return (made, *out[1:]) if isinstance(out, tuple) else made

        handle = layer.register_forward_hook(put)
        found = difference(corrupt)
        handle.remove()
        effect = (found - worst) / (best - worst)
        assert float(data.pair_effect[0, block]) == pytest.approx(effect, abs=2e-3)


@torch.no_grad()
def test_what_skipping_adds_against_hooks(model, data):
    pair = SPECIMEN[0]
    ids = torch.tensor([model.encode(pair.clean)])
    answer = model.continuation(pair.answer)[0]
    clean = model.hf(input_ids=ids).logits[0, -1].log_softmax(-1)[answer]
    for block in (0, 5):
        handle = model.hf.model.layers[block].register_forward_hook(
            lambda m, args, out: (args[0], *out[1:]) if isinstance(out, tuple) else args[0]
        )
        without = model.hf(input_ids=ids).logits[0, -1].log_softmax(-1)[answer]
        handle.remove()
        assert float(data.pair_delta[0, block]) == pytest.approx(float(clean - without), abs=1e-3)


def test_whole_streams_would_give_one_everywhere(data):
    """The trap that the definition avoids: the stream behind a block carries every earlier block's work."""
    assert (data.restored_effect.max("block") > 0.5).all()
    assert (data.restored_effect.median("block") < 0.7).all()
    assert float(data.restored_effect.min()) < 0.2


def test_the_two_blocks_and_their_agreement(data):
    assert data.pairs_of_kind.values.tolist() == [2, 2, 2]
    for kind in data.kind.values:
        one = data.sel(kind=kind)
        rows = data.pair_kind.values == kind
        assert np.allclose(one.restored_effect, data.pair_effect.values[rows].mean(0))
        assert str(one.bottleneck_block.values) == str(
            data.block.values[int(one.restored_effect.values.argmax())]
        )
        assert str(one.critical_block.values) == str(
            data.block.values[int(one.knockout_delta.values.argmax())]
        )
        assert bool(one.same_block) == (str(one.bottleneck_block.values) == str(one.critical_block.values))
        wanted = rank_correlation(one.restored_effect.values, one.knockout_delta.values)
        assert float(one.agreement) == pytest.approx(wanted)


def written(tmp_path, *pairs):
    file = tmp_path / "pairs.json"
    names = ("kind", "clean", "corrupt", "answer", "wrong")
    file.write_text(json.dumps([dict(zip(names, pair, strict=True)) for pair in pairs]))
    return str(file)


def test_answers_that_begin_alike_are_read_where_they_part(model, tmp_path):
    """“57” and “56” share their first digit: it is written into both prompts."""
    file = written(tmp_path, ("sums", "14 + 43 =", "14 + 42 =", " 57", " 56"))
    data = RUN(model, pairs=file)
    shared = [a for a, b in zip(model.continuation(" 57"), model.continuation(" 56"), strict=True) if a == b]
    assert shared, "the case needs answers that share a token"
    assert data.kind.values.tolist() == ["sums"]
    assert np.isfinite(data.pair_effect).all()


def test_pairs_that_cannot_be_measured_are_left_out_or_refused(model, tmp_path):
    known = ("a", "The capital of France is", "The capital of Italy is", " Paris", " Rome")
    longer = ("a", "The capital of France is", "The capital of the land of Italy is", " Paris", " Rome")
    unknown = ("a", "The capital of France is", "The capital of Italy is", " Rome", " Paris")
    same = ("a", "The capital of France is", "The capital of Italy is", " Paris", " Paris")
    data = RUN(model, pairs=written(tmp_path, known, longer, unknown, same))
    assert data.attrs["pairs"] == 1
    for word in ("not as long", "is not known", "do not part"):
        assert word in data.attrs["left_out"]
    with pytest.raises(ValueError, match="knows none of 1 pairs"):
        RUN(model, pairs=written(tmp_path, unknown))
    with pytest.raises(ValueError, match="no pair that this tokenizer can say"):
        RUN(model, pairs=written(tmp_path, longer))
    with pytest.raises(ValueError, match="-1 is no number of pairs"):
        RUN(model, count=-1)
    with pytest.raises(ValueError, match="predicts no next token"):
        RUN(opened("bert"))


def test_drawing(data):
    drawing = drawing_of(data)
    assert len(drawing.figures(data)) == 3
    told = drawing.finding(data)
    assert told.startswith("On every kind of prompt block 0 both restores most and is missed most. Behind it")
    assert told.count("%") == 3, "the next block of each kind"
    apart = data.assign(critical_block=("kind", ["0", "4", "0"]), same_block=("kind", [True, False, True]))
    assert "on linguistic prompts (2 pairs) block 0 restores most" in drawing.finding(apart)
    lacking = data.assign_attrs(left_out="“a” is not known; “b” is not known; “c” is not known")
    assert drawing.finding(lacking).endswith("Left out: “a” is not known; “b” is not known and 1 more.")
    assert len(drawing.folded(data)) == 1
