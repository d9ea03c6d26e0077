"""Healing: texts lined up by bytes, only new rows moved, the loss falls."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from regraft.data.windows import windows_over
from regraft.model.load import load
from regraft.specimens import almanac
from regraft.tokenizers.bits_per_byte import pieces
from regraft.tokenizers.healing import HealTask
from regraft.tokenizers.init_methods import InitSettings
from regraft.tokenizers.tokenizer_folder import wrapped
from regraft.tokenizers.training import Recipe, train_bpe
from regraft.tokenizers.transplantation import measured, old_case, transplant
from regraft.training.trainer import TrainingPlan, train

TEXT = pieces(["\n".join(almanac.corpus(60_000, 5))], 60)


@pytest.fixture(scope="module")
def other():
    return wrapped(
        train_bpe(TEXT, Recipe(600, "superword")),
        {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"},
    )


@pytest.mark.parametrize("name", ["specimen:gpt2", pytest.param("specimen:qwen3", marks=pytest.mark.slow)])
def test_only_new_rows_move_and_the_text_is_predicted_better(name, other, tmp_path):
    model = load(name, pack=False)
    before = {key: tensor.clone() for key, tensor in model.hf.state_dict().items()}
    done = transplant(model, old_case(model, other, TEXT, None), InitSettings())
    start = [swap[1].weight.detach().clone() for swap in done.swaps]
    held = {"almanac": pieces(["\n".join(almanac.corpus(9_000, 77))], 8)}
    unhealed = measured(done, held, InitSettings())
    task = HealTask(done)
    text = windows_over(other, TEXT, 48, tmp_path / "ids")
    log = train(task, text, TrainingPlan(steps=12, batch=4, rate=task.rate, warmup=2), tmp_path / "run")
    task.keep()
    read = torch.cat([text.batch(number, 4) for number in range(12)]).unique().numpy()
    moved = np.intersect1d(done.matching.missing, read)
    kept = np.setdiff1d(np.arange(600), moved)
    assert 20 < len(moved) < len(done.matching.missing)
    for (_, module), old in zip(done.swaps, start, strict=True):
        assert torch.equal(module.weight[kept], old[kept])
        assert bool((module.weight[moved] != old[moved]).any(1).all())
    assert all(torch.equal(before[key], tensor) for key, tensor in model.hf.state_dict().items())
    assert (done.swaps[0][1].weight is done.swaps[1][1].weight) == bool(model.parts.tied)
    assert np.mean([line["loss"] for line in log[-3:]]) < np.mean([line["loss"] for line in log[:3]])
    healed = measured(done, held, InitSettings())
    assert float(healed.bits_per_byte[1, 0]) < float(unhealed.bits_per_byte[1, 0]) - 0.05
    assert float(healed.bits_per_byte[0, 0]) == float(unhealed.bits_per_byte[0, 0])


def test_places_where_both_cuts_meet(other):
    """Every place that is lined up has the same bytes in front of it, and none is missed."""
    model = load("specimen:qwen3", pack=False)
    done = transplant(model, old_case(model, other, TEXT, None), InitSettings("retok"))
    task = HealTask(done)
    ids = other(" ".join(TEXT[:2]) + " Grüße", add_special_tokens=False)["input_ids"][:60]
    rows = torch.tensor([ids[:30], ids[30:60], [other.eos_token_id, *ids[3:32]]])
    old_ids, places = task.aligned(rows)
    for number in range(3):
        ours, theirs = rows[number].tolist(), old_ids[number].tolist()
        found = {(int(i), int(j)) for row, i, j in places.tolist() if row == number}
        front = {len(done.new.decode(ours[: i + 1])): i for i in range(30) if done.new.table.bytes_V[ours[i]]}
        naive, text = set(), done.new.decode(ours)
        for j in range(len(theirs)):
            read = done.old.decode(theirs[: j + 1])
            if text.startswith(read) and len(read) in front and done.old.table.bytes_V[theirs[j]]:
                naive.add((front[len(read)], j))
        assert found == naive
        assert len(found) > 5
    assert float(task.losses(rows)["stream"].detach()) > 0


def test_what_cannot_be_healed():
    model = load("specimen:qwen3", pack=False)
    done = transplant(model, old_case(model, model.tokenizer, TEXT, None), InitSettings())
    with pytest.raises(ValueError, match="nothing to heal"):
        HealTask(done)
    t5 = load("specimen:t5", pack=False)
    with pytest.raises(ValueError, match="needs a decoder"):
        HealTask(transplant(t5, old_case(t5, t5.tokenizer, TEXT, None), InitSettings()))


def test_rows_in_the_text_have_the_gradient_of_the_whole_table_and_no_other_row_has_one(other, monkeypatch):
    model = load("specimen:gpt2", pack=False)
    task = HealTask(transplant(model, old_case(model, other, TEXT, None), InitSettings()))
    ids = torch.tensor(other(TEXT[0], add_special_tokens=False)["input_ids"][:40])[None]
    (part,) = task.tables.values()
    sum(task.losses(ids).values()).backward()
    found_ND = part.rows.weight.grad.coalesce().to_dense()
    part.rows.weight.grad = None
    monkeypatch.setattr(part, "whole", lambda used: part.table_VD.index_copy(0, part.ids_N, part.rows.weight))
    sum(task.losses(ids).values()).backward()
    read_N = torch.isin(part.ids_N, ids)
    torch.testing.assert_close(found_ND[read_N], part.rows.weight.grad[read_N])
    assert float(found_ND[~read_N].abs().sum()) == 0 < float(part.rows.weight.grad[~read_N].abs().sum())
