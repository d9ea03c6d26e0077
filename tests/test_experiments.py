"""The experiments on the specimen: known facts, definitions, and planted cases."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from families import FAMILIES, VOCAB
from regraft.core.registry import experiments, read_experiment
from regraft.data.evaluation import evaluation
from regraft.data.generation import SYSTEM, cache_folder, completions, prompt_ids, spread, suited_prompts
from regraft.data.prompts import Prompt, general, specimen
from regraft.experiments.intervene.swap import cluster
from regraft.experiments.observe.lens import token_type
from regraft.experiments.running import run_experiment
from regraft.model.load import load
from regraft.sweeps.metrics import loss
from regraft.sweeps.routes import Route
from regraft.sweeps.sweep import sweep
from regraft.sweeps.variants import Variant
from unknown_decoder import OwnConfig, OwnDecoder

EXPERIMENTS = experiments()


@pytest.fixture(scope="module")
def model():
    return load()


@pytest.fixture(scope="module")
def lens(model):
    return run_experiment(EXPERIMENTS["lens"], model, count=6, tokens=8)


def test_prompt_sets():
    assert len(general()) == 50
    assert len({p.category for p in general()}) == 7
    assert len(specimen()) >= 40
    assert all(p.text and not p.text.endswith(" ") for p in (*general(), *specimen()))


def test_completions_are_greedy_cached_and_keyed_by_the_model(model, tmp_path, monkeypatch):
    monkeypatch.setenv("REGRAFT_CACHE", str(tmp_path))
    prompts = spread(suited_prompts(model), 4)
    made = completions(model, prompts, 5)
    for one in made:
        ids = list(one.prompt_ids)
        for token in one.completion_ids:
            assert token == int(model.hf(torch.tensor([ids])).logits[0, -1].argmax())
            ids.append(token)
    files = list(tmp_path.rglob("*.json"))
    assert len(files) == 1
    edited = json.loads(files[0].read_text())
    edited[0]["completion_ids"] = [7]
    files[0].write_text(json.dumps(edited))
    assert completions(model, prompts, 5)[0].completion_ids == (7,)
    assert completions(load("specimen:tuned"), prompts, 5)[0].completion_ids != (7,)


def test_a_cache_that_cannot_be_written_or_read_costs_time_only(model, tmp_path, monkeypatch):
    prompts = spread(suited_prompts(model), 2)
    monkeypatch.setenv("REGRAFT_CACHE", str(tmp_path / "good"))
    made = completions(model, prompts, 3)
    (kept,) = (tmp_path / "good").rglob("*.json")
    for content in ("", "{", "[5]", '[{"prompt": "x"}]'):
        kept.write_text(content)
        assert completions(model, prompts, 3) == made
        assert json.loads(kept.read_text())[0]["completion_ids"] == list(made[0].completion_ids), (
            "made and kept again"
        )
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("REGRAFT_CACHE", str(tmp_path / "file"))
    assert completions(model, prompts, 3) == made

    def full(self, *args, **kwargs):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setenv("REGRAFT_CACHE", str(tmp_path / "full"))
    with monkeypatch.context() as disk:
        disk.setattr(Path, "write_text", full)
        assert completions(model, prompts, 3) == made
    assert not [file for file in (tmp_path / "full").rglob("*") if file.is_file()]
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("REGRAFT_CACHE", "~/kept")
    completions(model, prompts, 3)
    assert len(list((tmp_path / "home" / "kept").rglob("*.json"))) == 1
    monkeypatch.setenv("REGRAFT_CACHE", "")
    assert cache_folder() == tmp_path / "home" / ".cache" / "regraft"


def test_completions_ignore_sampling_settings_and_work_without_generate(model, monkeypatch, tmp_path):
    monkeypatch.setenv("REGRAFT_CACHE", str(tmp_path))
    prompts = spread(suited_prompts(model), 3)
    plain = completions(model, prompts, 6)
    own = load()
    own.hf.generation_config.repetition_penalty = 9.0
    monkeypatch.setenv("REGRAFT_CACHE", str(tmp_path / "penalty"))
    assert completions(own, prompts, 6) == plain
    torch.manual_seed(0)
    unknown = load(OwnDecoder(OwnConfig()).eval(), pack=False)
    said = completions(unknown, [Prompt("5 6 7", "given")], 4)[0]
    ids = [5, 6, 7]
    for token in said.completion_ids:
        assert token == int(unknown.hf(torch.tensor([ids])).logits[0, -1].argmax())
        ids.append(token)


@pytest.mark.parametrize("roles", ["system", "user only"])
def test_chat_templates_are_applied(roles, tmp_path):
    chat = load("specimen:gpt2")
    refuse = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    )
    body = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
    chat.tokenizer.chat_template = body if roles == "system" else refuse + body
    text = chat.tokenizer.decode(prompt_ids(chat, "Who?"))
    wanted = (
        f"[system]{SYSTEM}[user]Who?[assistant]"
        if roles == "system"
        else f"[user]{SYSTEM}\n\nWho?[assistant]"
    )
    assert text == wanted


def test_only_completion_tokens_count(model):
    text = evaluation(model, count=6, tokens=5)
    assert text.scored_tokens == sum(len(c.completion_ids) for c in text.flat)
    for recording, batch in zip(text.recordings, text.order, strict=True):
        for row, completion in enumerate(batch):
            start = len(completion.prompt_ids)
            assert recording.scored_BT[row].nonzero()[:, 0].tolist() == list(
                range(start, start + len(completion.completion_ids))
            )
    assert suited_prompts(load("specimen:t5"))[0].text == specimen()[0].text


def test_completions_as_a_result(model):
    data = run_experiment(
        EXPERIMENTS["completions"],
        model,
        prompts=["The capital of France is", "The opposite of hot is"],
        tokens=2,
    )
    assert dict(zip(data.text.values, data.completion.values, strict=True)) == {
        "The capital of France is": " Paris.",
        "The opposite of hot is": " cold.",
    }
    assert data.prompt_tokens.values.tolist() == [len(model.encode(t)) for t in data.text.values]
    assert int(data.completion_tokens.sum()) == data.attrs["scored_tokens"]


def test_lens_ends_in_the_models_own_logits(lens):
    assert lens.attrs["last_depth_difference"] == 0.0
    assert int(lens["rank"].min()) >= 0
    assert int(lens["rank"].max()) < 4096
    assert bool((lens["rank"].isel(depth=-1) == 0).all())
    assert float(lens.probability.min()) >= 0.0
    assert lens.attrs["scored_tokens"] == lens.sizes["token"]


def test_lens_summaries_follow_their_definitions(lens):
    rank = lens["rank"].values
    for token in range(lens.sizes["token"]):
        stays = [d for d in range(13) if (rank[d:, token] < 10).all()]
        assert lens.crystallization.values[token] == stays[0]
        assert lens.first_top1.values[token] == next(d for d in range(13) if rank[d, token] == 0)
    worse = [(rank[b + 1] > rank[b]).mean() for b in range(12)]
    assert np.allclose(lens.hurt_rate.values, worse)


def test_lens_names_the_token_that_each_depth_ranks_first(lens, model):
    """In the table that a terminal shows, too."""
    assert lens["first"].values.tolist() == lens["top"].values[..., 0].tolist()
    assert lens["first"].values[0, 0] == model.token_text(int(lens["top_id"].values[0, 0, 0]))
    assert "first [token that is ranked first]" in lens.regraft.table().columns


def test_lens_at_a_middle_depth_is_the_head_of_that_stream(model):
    text = evaluation(model, ["The capital of France is"], tokens=3)
    data = run_experiment(EXPERIMENTS["lens"], model, prompts=["The capital of France is"], tokens=3)
    recording = text.recordings[0]
    with torch.no_grad():
        by_hand = model.hf.lm_head(model.hf.model.norm(recording["5.resid_pre"]))
    first = int(recording.scored_BT[0].nonzero()[0]) - 1
    assert data.top.values[5, 0, 0] == model.token_text(int(by_hand[0, first].argmax()))


@pytest.mark.parametrize(
    ("piece", "kind"),
    [(" the", "function word"), (" Paris", "content word"), (" 12", "number"), (".", "punctuation")],
)
def test_token_types(piece, kind):
    assert token_type(piece) == kind


def test_block_zero_is_the_critical_one(model):
    data = run_experiment(EXPERIMENTS["knockout"], model, count=8, tokens=8)
    ratio = data.ratio.values
    assert int(ratio.argmax()) == 0
    assert ratio[0] > 3 * np.delete(ratio, 0).max()
    assert data.attrs["control_deviation"] < 1e-5
    assert data.attrs["work_executed"] == data.attrs["work_planned"]


def test_synergy_is_what_the_definition_says(model):
    data = run_experiment(EXPERIMENTS["knockout"], model, mode="pairs", count=3, tokens=6)
    text = evaluation(model, count=3, tokens=6)
    result = sweep(text.recordings, [Variant(route=Route.skip(12, s)) for s in ({3}, {7}, {3, 7})], loss())
    one, other, both = (result.mean("loss") - result.clean_mean("loss")).tolist()
    assert float(data.synergy[3, 7]) == pytest.approx(both - one - other, abs=1e-6)
    assert float(data.synergy[7, 3]) == float(data.synergy[3, 7])
    assert np.isnan(np.diag(data.synergy)).all()


def test_greedy_measures_anew_after_each_removal(model):
    data = run_experiment(EXPERIMENTS["knockout"], model, mode="greedy", count=4, tokens=6, limit=1.6)
    removed = [int(name) for name in data.removed.values]
    text = evaluation(model, count=4, tokens=6)
    for step in range(len(removed)):
        route = Route.skip(12, set(removed[: step + 1]))
        value = float(sweep(text.recordings, [Variant(route=route)], loss()).mean("loss"))
        assert float(data["loss"][step]) == pytest.approx(value, abs=1e-5)
        row = data.candidate_loss.values[step]
        assert removed[step] == int(np.nanargmin(row))
        assert np.isnan(row[removed[:step]]).all()
    assert float(data.ratio[-1]) <= 1.6
    with pytest.raises(ValueError, match="must be above 1"):
        run_experiment(EXPERIMENTS["knockout"], model, mode="greedy", limit=0.5)


def test_swap_costs(model):
    data = run_experiment(EXPERIMENTS["swap"], model, count=3, tokens=6)
    cost = data.cost.values
    assert np.array_equal(cost, cost.T)
    assert np.array_equal(np.diag(cost), np.zeros(12))
    assert float(data.distance_cost[0]) == pytest.approx(np.diagonal(cost, 1).mean())
    assert sorted(data.leaf_order.values.tolist()) == list(range(12))
    text = evaluation(model, count=3, tokens=6)
    value = sweep(text.recordings, [Variant(route=Route.swap(12, 2, 9))], loss())
    assert cost[2, 9] == pytest.approx(float(value.mean("loss")) - value.clean_mean("loss"), abs=1e-6)


def test_clustering_joins_the_cheapest_pair_first():
    cost = np.array([[0, 5, 1, np.nan], [5, 0, 6, 2], [1, 6, 0, 7], [np.nan, 2, 7, 0]], dtype=float)
    tree = cluster(cost)
    assert set(tree[0, :2]) == {0, 2}
    assert tree[0, 2] == 1.0


def test_the_morning_moves_between_blocks_6_and_7(model):
    data = run_experiment(EXPERIMENTS["patch"], model)
    pm = int(np.flatnonzero(data.token.values == " pm")[0])
    difference = data.logit_difference.values
    assert (difference[:7, pm] > 0).all()
    assert (difference[7:, pm] < 0).all()
    assert (difference[:7, -1] < 0).all()
    assert (difference[7:, -1] > 0).all()
    assert data.attrs["source_value"] == pytest.approx(10.04, abs=0.05)
    assert data.attrs["target_value"] == pytest.approx(-6.59, abs=0.05)
    others = [p for p in range(17) if p not in (pm, 16)]
    assert np.abs(data.effect.values[:, others]).max() < 0.1


def effect_rounding(model, data):
    """How far a normalised effect may lie off by the comparison rule: two logits, as a share of what there is
    to carry."""
    return (
        2
        * model.rounding
        * model.check.largest
        / abs(data.attrs["source_value"] - data.attrs["target_value"])
    )


def test_patching_everything_and_nothing(model):
    everything = run_experiment(EXPERIMENTS["patch"], model, grid="block")
    near = effect_rounding(model, everything)
    assert near < 1e-3
    assert np.allclose(everything.effect.values, 1.0, atol=near)
    prompt = "The time displayed is 9:00 pm. Therefore, it is currently the"
    with pytest.raises(ValueError, match="same logit difference"):
        run_experiment(EXPERIMENTS["patch"], model, clean=prompt)
    back = run_experiment(EXPERIMENTS["patch"], model, direction="noise", grid="block")
    assert np.allclose(back.effect.values, 1.0, atol=near)
    assert back.attrs["source_value"] == everything.attrs["target_value"]


def test_patching_heads_sums_to_less_than_all_and_finds_some(model):
    data = run_experiment(EXPERIMENTS["patch"], model, grid="head")
    assert data.effect.shape == (12, 6)
    block, head = np.unravel_index(data.effect.values.argmax(), (12, 6))
    assert block >= 6
    assert data.effect.values[block, head] > 0.3


def test_unequal_prompts_need_a_map(model):
    short = "The time displayed is 9 pm. Therefore, it is currently the"
    with pytest.raises(ValueError, match=r"17 and 14 tokens long .*--map CLEAN:CORRUPT"):
        run_experiment(EXPERIMENTS["patch"], model, corrupt=short)
    data = run_experiment(EXPERIMENTS["patch"], model, corrupt=short, map=["9:6", "16:13"])
    assert data.token.values.tolist() == [" pm", " the"]
    assert data.effect.values[0, 0] > 0.5
    assert data.effect.values[11, 1] > 0.8
    for wrong, words in (
        ("9-6", "no pair of positions"),
        ("9:14", "outside the prompts of 17 and 14 tokens"),
    ):
        with pytest.raises(ValueError, match=words):
            run_experiment(EXPERIMENTS["patch"], model, corrupt=short, map=[wrong])


def test_encoders_are_refused_with_the_reason():
    torch.manual_seed(0)
    bert = load(FAMILIES["bert"]().eval(), pack=False)
    for name in ("lens", "knockout", "swap"):
        with pytest.raises(ValueError, match="does not write text from left to right"):
            run_experiment(EXPERIMENTS[name], bert)
    assert bert.vocabulary == VOCAB
    with pytest.raises(ValueError, match="predicts masked tokens: write the mask token"):
        run_experiment(EXPERIMENTS["patch"], bert, clean="5 6 7 8", corrupt="5 9 7 8", answer="7", wrong="8")


def test_a_site_that_some_blocks_lack_leaves_their_rows_empty():
    torch.manual_seed(0)
    hybrid = load(FAMILIES["qwen3_5"]().eval(), pack=False)
    hybrid.taps.refuse(2, "mlp_act", "refused for this test")
    data = run_experiment(
        EXPERIMENTS["patch"],
        hybrid,
        clean="5 6 7 8",
        corrupt="5 9 7 8",
        answer="7",
        wrong="8",
        site="mlp_act",
        grid="block",
    )
    assert np.isnan(data.effect.values[:, 0]).tolist() == [False, False, True, False]
    assert "mlp_act does not exist in block 2, whose rows are empty" in data.attrs["notes"]
    with pytest.raises(ValueError, match="linear attention mixes its projections"):
        run_experiment(
            EXPERIMENTS["patch"], hybrid, clean="5 6 7 8", corrupt="5 9 7 8", answer="7", wrong="8", site="q"
        )


@pytest.mark.parametrize("name", ["specimen:gpt2", "specimen:t5"])
def test_the_other_specimens_run_them_all(name):
    other = load(name)
    for experiment in ("lens", "knockout", "swap"):
        data = run_experiment(EXPERIMENTS[experiment], other, count=3, tokens=4)
        assert data.attrs["model"] == name
    data = run_experiment(EXPERIMENTS["patch"], other, grid="block")
    assert float(data.effect.values[0, 0]) == pytest.approx(1.0, abs=effect_rounding(other, data))
    assert data.block.values[0] in ("0", "encoder.0")


def test_results_carry_units_and_provenance(lens):
    assert all(values.attrs.get("units") for values in lens.data_vars.values())
    for key in ("model", "weights_sha256", "regraft", "torch", "transformers", "dtype", "device",
    "attention", "self_check",
                "command", "seed", "time", "seconds", "options"):  # fmt: skip
        assert key in lens.attrs, key


def test_an_experiment_is_one_file(tmp_path):
    file = tmp_path / "dummy.py"
    file.write_text(
        'def dummy(model, size: int = 3, words: list[str] | None = None):\n    """Do a thing.\n\n   '
        " More.\n\n    Args:\n        size: how large, in\n            tokens.\n        words: which.\n\n   "
        ' Raises:\n        ValueError: never.\n    """\n'
    )
    found = read_experiment("dummy", "dummy", file)
    assert found.summary == "Do a thing."
    assert [(p.name, p.annotation, p.default, p.help) for p in found.parameters] == [
        ("size", "int", 3, "how large, in tokens."),
        ("words", "list[str] | None", None, "which."),
    ]
    assert read_experiment("dummy", "other", file) is None
    assert set(EXPERIMENTS) >= {"lens", "knockout", "swap", "patch"}
