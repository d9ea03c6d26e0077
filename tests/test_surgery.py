"""Models with other sequences of blocks: measured, written, opened by plain transformers, and refused where
that cannot be."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest
import torch
import transformers

from regraft.core.registry import experiments
from regraft.experiments.running import run_experiment
from regraft.model.load import load
from regraft.reporting.drawings import drawing_of
from regraft.sweeps.routes import Route
from small import ids, opened

TEXT = dict(prompts=["5 6 7 8 9", "10 11 12"], tokens=4)
NAMES = ("prune", "reorder", "transplant", "repeat")
PRUNE, REORDER, TRANSPLANT, REPEAT = (partial(run_experiment, experiments()[name]) for name in NAMES)
MANY = (
    "llama",
    "gpt2",
    "qwen3",
    "gemma2",
    "gemma3",
    "gpt_neox",
    "opt",
    "bloom",
    "mixtral",
    "qwen3_5",
    "cohere2",
    "mistral",
)


def by_hand(model, order, tokens):
    """Logits of a stack run block by block, each with the arguments that the model passes to that very
    block."""
    recording = model.record([tokens])
    stream = recording.pre(0)
    with torch.no_grad():
        for block in order:
            stream = recording.run_block(block, stream, rows=1)
        return recording.head(stream)


@pytest.mark.parametrize("name", MANY)
def test_a_saved_order_opens_in_plain_transformers_with_the_same_logits(name, tmp_path):
    model = opened(name)
    tokens = ids(9, 5)
    for order in ([0, 2, 1, 3], [0, 1, 3], [0, 1, 1, 1, 2, 3]):
        folder = tmp_path / "-".join(map(str, order))
        data = REORDER(model, order=order, save=str(folder), **TEXT)
        plain = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
        with torch.no_grad():
            found = plain(input_ids=torch.tensor([tokens])).logits
        assert torch.allclose(found, by_hand(model, order, tokens), atol=1e-4)
        assert "opens with transformers" in data.attrs["saved"]
        own = len(order) / 4
        blocks = sum(p.numel() for p in model.hf.parameters()) - int(data.parameters[1])
        assert (blocks == 0) == (own == 1)


def test_the_model_at_hand_is_not_touched(tmp_path):
    model = opened("qwen3")
    before, digest, config = model.fingerprint(), model.weights_sha256, model.hf.config.to_dict()
    PRUNE(model, drop=[1], save=str(tmp_path / "pruned"), **TEXT)
    assert model.fingerprint() == before
    assert model.weights_sha256 == digest
    assert model.hf.config.to_dict() == config
    assert [m.self_attn.layer_idx for m in model.hf.model.layers] == [0, 1, 2, 3]


def test_lists_that_are_not_about_blocks_are_left_alone(tmp_path):
    """Four end tokens in a model of four blocks: they are no list of blocks, however many there are."""
    model = opened("gemma2")
    model.hf.config.eos_token_id = [2, 3, 4, 5]
    PRUNE(model, drop=[1], save=str(tmp_path / "pruned"), **TEXT)
    config = json.loads((tmp_path / "pruned" / "config.json").read_text())
    assert config["eos_token_id"] == [2, 3, 4, 5]
    assert config["layer_types"] == [model.hf.config.layer_types[i] for i in (0, 2, 3)]


def test_what_the_configuration_cannot_say_is_refused_and_nothing_is_written(tmp_path):
    """T5 keeps its table of distances in block 0: without it, the other blocks have none."""
    model = opened("t5")
    with pytest.raises(ValueError, match=r"cannot be written|lacks|holds"):
        PRUNE(model, drop=[0], save=str(tmp_path / "headless"), **TEXT)
    assert list(tmp_path.iterdir()) == []
    PRUNE(model, drop=[2], save=str(tmp_path / "shorter"), **TEXT)
    plain = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "shorter")
    assert (len(plain.encoder.block), len(plain.decoder.block)) == (3, 2)


def test_a_planted_difference_is_caught_before_anything_is_saved(tmp_path, monkeypatch):
    from regraft.export import route_model as surgery

    real = surgery.rebuilt

    def damaged(model, blocks):
        changed = real(model, blocks)
        with torch.no_grad():
            changed.model.layers[0].mlp.down_proj.weight.add_(0.01)
        return changed

    monkeypatch.setattr(surgery, "rebuilt", damaged)
    with pytest.raises(
        ValueError,
        match=r"cannot be written as a checkpoint of LlamaForCausalLM: read back, its logits differ by",
    ):
        PRUNE(opened("llama"), drop=[2], save=str(tmp_path / "x"), **TEXT)
    assert list(tmp_path.iterdir()) == []


def test_the_card_holds_the_measurements(tmp_path):
    model = load("specimen:gpt2")
    data = PRUNE(model, drop=[2], save=str(tmp_path / "pruned"), count=4, tokens=6)
    card = (tmp_path / "pruned" / "README.md").read_text(encoding="utf-8")
    assert f"| loss | {float(data.loss[0]):,.4f} | {float(data.loss[1]):,.4f} | nats per token |" in card
    assert model.weights_sha256 in card
    facts = json.loads(card.split("```json\n")[1].split("```")[0])
    assert facts["change"] == "without block 2"
    again = load(tmp_path / "pruned")
    assert len(again.blocks) == 3
    knockout = run_experiment(experiments()["knockout"], model, count=4, tokens=6)
    assert float(data.loss[1]) == pytest.approx(float(knockout.loss[2]), abs=1e-5)
    assert "without block 2" in drawing_of(data).finding(data).lower()


def test_greedy_pruning_remeasures(monkeypatch):
    """Planted: two blocks are harmless alone and ruinous together; ranking single costs would remove both."""
    from regraft.experiments.intervene import knockout as module
    from regraft.sweeps.plan import Work
    from regraft.sweeps.sweep_result import SweepResult

    def planted(model, sets, text):
        cost = {0: 5.0, 1: 0.1, 2: 0.2, 3: 0.4}
        losses = [1 + sum(cost[b] for b in s) + (9.0 if {1, 2} <= s else 0.0) for s in sets]
        one, clean = {"loss": torch.tensor(losses)[:, None].repeat(1, 2)}, {"loss": torch.ones(2)}
        return SweepResult(one, clean, one, clean, {"loss": ""}, Work(1, 0, 1, 1))

    monkeypatch.setattr(module, "_skipping", planted)
    data = module.knockout(opened("llama"), mode="greedy", limit=3.0, **TEXT)
    assert data.removed.values.tolist() == ["1", "3"]
    alone = module.knockout(opened("llama"), **TEXT)
    assert np.argsort(alone.loss.values)[:2].tolist() == [
        1,
        2,
    ], "ranking the single costs picks the ruinous pair"
    pairs = module.knockout(opened("llama"), mode="pairs", **TEXT)
    assert float(pairs.synergy[1, 2]) == pytest.approx(9.0)
    assert float(pairs.synergy[0, 3]) == pytest.approx(0.0, abs=1e-5)


def test_synergy_of_two_copies_of_one_block():
    """By definition: dL of both out, less twice dL of one out (skipping either copy leaves the same
    model)."""
    model = opened("llama")
    model.blocks[2].module.load_state_dict(model.blocks[1].module.state_dict())
    data = run_experiment(experiments()["knockout"], model, mode="pairs", **TEXT)
    one, other = float(data.increase[1, 1]), float(data.increase[2, 2])
    assert one == pytest.approx(other, abs=1e-6)
    assert float(data.synergy[1, 2]) == pytest.approx(float(data.increase[1, 2]) - 2 * one, abs=1e-6)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "t5", "gpt_neox"])
def test_a_block_of_the_same_model_in_its_own_place_is_the_clean_run(name, tmp_path):
    model = opened(name)
    model.hf.save_pretrained(tmp_path / "twin")
    data = TRANSPLANT(model, donor=str(tmp_path / "twin"), **TEXT)
    assert np.allclose(np.diag(data.increase), 0, atol=1e-5)
    swap = run_experiment(experiments()["knockout"], model, **TEXT)
    assert data.sizes["donor_block"] == len(model.main_blocks)
    assert swap.attrs["clean_loss"] == pytest.approx(data.attrs["clean_loss"])
    off = data.increase.values[~np.eye(len(data.increase), dtype=bool)]
    assert np.abs(off).max() > 1e-4


def test_transplant_against_a_model_whose_block_was_exchanged(tmp_path):
    """The donor's block put into the live model by hand gives the loss of the cell, and the saved model gives
    its logits."""
    model, donor = opened("llama"), opened("llama", seed=7)
    donor.hf.save_pretrained(tmp_path / "donor")
    data = TRANSPLANT(model, donor=str(tmp_path / "donor"), **TEXT)
    put = TRANSPLANT(model, donor=str(tmp_path / "donor"), put=["2:1"], save=str(tmp_path / "made"), **TEXT)
    assert float(put.loss[1]) == pytest.approx(float(data.loss[2, 1]), abs=1e-5)
    by_hand_model = opened("llama")
    by_hand_model.blocks[1].module.load_state_dict(donor.blocks[2].module.state_dict())
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "made").eval()
    tokens = torch.tensor([ids(8, 3)])
    with torch.no_grad():
        assert torch.allclose(plain(tokens).logits, by_hand_model.hf(tokens).logits, atol=1e-5)


def test_repeating_saves_a_longer_model(tmp_path):
    model = opened("gpt2")
    data = REPEAT(model, times=3, block=1, save=str(tmp_path / "longer"), **TEXT)
    again = load(tmp_path / "longer", pack=False)
    assert len(again.blocks) == 6
    assert "opens with transformers" in data.attrs["saved"]
    assert torch.allclose(
        again.hf(torch.tensor([ids(7, 1)])).logits, by_hand(model, [0, 1, 1, 1, 2, 3], ids(7, 1)), atol=1e-4
    )


def test_wrong_use_is_refused(tmp_path):
    model = opened("llama")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty: choose another with --save"):
        PRUNE(model, drop=[1], save=str(tmp_path / "full"), **TEXT)
    assert (tmp_path / "full" / "note.txt").read_text() == "mine"
    with pytest.raises(ValueError, match="no block 4 to leave out"):
        PRUNE(model, drop=[4], **TEXT)
    with pytest.raises(ValueError, match="no block would remain"):
        PRUNE(model, drop=[0, 1, 2, 3], **TEXT)
    with pytest.raises(ValueError, match="no block -1 for the order"):
        REORDER(model, order=[0, -1], **TEXT)
    with pytest.raises(ValueError, match="say which blocks to put where"):
        TRANSPLANT(model, save="x", **TEXT)
    opened("gpt2").hf.save_pretrained(tmp_path / "wide")
    with pytest.raises(ValueError, match="is no pair of blocks"):
        TRANSPLANT(model, donor=str(tmp_path / "wide"), put=["3"], **TEXT)
    with pytest.raises(ValueError, match="a donor must be as wide"):
        TRANSPLANT(model, donor="specimen:gpt2", **TEXT)
    with pytest.raises(ValueError, match="say which block to repeat"):
        REPEAT(model, save=str(tmp_path / "y"), **TEXT)
    assert Route.order([0]).stops
