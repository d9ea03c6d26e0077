"""Ablation and push on several prompts, patching and trajectories on some of them: against single runs, and
what they say."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest
import torch

from regraft.core.progress import listening
from regraft.core.registry import experiments
from regraft.core.tolerance import gap
from regraft.data.contrasts import general
from regraft.experiments.intervene.ablate import Ablated
from regraft.experiments.intervene.ablate import _dataset as ablated
from regraft.experiments.observe.trajectories import _in_turn
from regraft.experiments.running import run_experiment
from regraft.model.load import load
from regraft.reporting.figures.component_figures import (
    ablate_figures,
    ablate_finding,
    push_figures,
    push_finding,
)
from regraft.sweeps.plan import Work
from regraft.sweeps.sweep_result import SweepResult
from small import ids, opened

NAMES = ("ablate", "push", "patch", "trajectories")
ABLATE, PUSH, PATCH, FOLLOW = (partial(run_experiment, experiments()[name]) for name in NAMES)
THREE = ("llama", "gpt2", "t5")
NAN = float("nan")


def words(length, seed):
    return " ".join(map(str, ids(length, seed)))


def alike(model, found, wanted):
    return gap(torch.as_tensor(np.asarray(found)), torch.as_tensor(np.asarray(wanted))) <= model.rounding


@pytest.mark.parametrize("name", THREE)
def test_several_prompts_are_ablated_as_one_after_the_other(name):
    model = opened(name)
    texts = [words(6, 4), words(3, 5), words(8, 6)]
    heard = []
    with listening(lambda *told: heard.append(told)):
        joined = ABLATE(model, prompts=texts, layer="0,2", threshold=1e-4)
    assert [told for told in heard if told[0] == "prompts"] == [("prompts", i, 3) for i in (1, 2, 3)]
    alone = [ABLATE(model, prompt=text, layer="0,2") for text in texts]
    before = np.array([one.attrs["clean_probability"] for one in alone])
    assert alike(model, joined.clean_probability, before)
    assert alike(
        model,
        joined.prompt_change + before[:, None, None],
        [one.change + p for one, p in zip(alone, before, strict=True)],
    )
    assert alike(
        model, joined.change + before.mean(), np.mean([one.change.values for one in alone], 0) + before.mean()
    )
    assert np.allclose(joined.top1_changed, np.mean([one.top1_changed.values for one in alone], 0))
    assert joined.text.values.tolist() == texts
    assert joined.answer_id.values.tolist() == [one.attrs["target_id"] for one in alone]
    assert joined.top1.values.tolist() == [one.attrs["clean_top1"] for one in alone]
    assert not set(alone[0].attrs) - set(joined.attrs) - {"prompt", "clean_top1"}
    assert "prompt_change" not in alone[0]
    one_target = ABLATE(model, prompts=texts, layer="0,2", target="7")
    assert one_target.answer_id.values.tolist() == [7] * 3
    assert (one_target.attrs["target_id"], one_target.attrs["target"]) == (7, "7")
    assert alike(
        model,
        one_target.clean_probability,
        [ABLATE(model, prompt=t, target="7").attrs["clean_probability"] for t in texts],
    )


def test_one_of_several_prompts_is_that_prompt():
    model = opened("gpt2")
    texts = [words(6, 4), words(3, 5)]
    for one in (
        ABLATE(model, prompts=texts[:1]),
        ABLATE(model, prompts=texts, count=1),
        ABLATE(model, prompt=texts[0], prompts=[]),
    ):
        same = ABLATE(model, prompt=texts[0])
        assert np.array_equal(one.change, same.change)
        assert one.attrs["prompt"] == same.attrs["prompt"] == texts[0]
        assert one.change.attrs == same.change.attrs
        assert ablate_finding(one) == ablate_finding(same)
    assert (
        ABLATE(model, prompts=texts, count=5).attrs["prompts"]
        == ABLATE(model, prompts=texts, count=0).attrs["prompts"]
        == 2
    )


def many_ablated(*runs):
    """A result of so many prompts, each an answer with changes (L, F) and flips (L, F)."""
    result = SweepResult({}, {}, {}, {}, {}, Work(1, 0, 4, 1), 0.25, [])
    table = [
        Ablated(f"p{i}", a, a, 0.5 + i / 10, np.array(c), np.array(f, float), np.array(f, float), result)
        for i, (a, c, f) in enumerate(runs)
    ]
    model = opened("gpt2")
    return ablated(model, list(model.blocks[: len(runs[0][1])]), table, 0.1)


def test_means_shares_and_counts_by_hand():
    """The mean is large or it is not, whatever one prompt did; one prompt whose token changes is enough for a
    flip."""
    found = many_ablated(
        (7, [[0.3, -0.3, 0.0], [0.05, NAN, NAN]], [[1, 0, 0], [1, NAN, NAN]]),
        (9, [[0.1, 0.3, 0.0], [0.05, NAN, NAN]], [[1, 0, 1], [0, NAN, NAN]]),
    )
    assert found.change.values[0].tolist() == pytest.approx([0.2, 0.0, 0.0])
    assert np.isnan(found.change.values[1, 1:]).all()
    assert found.top1_changed.values[:, 0].tolist() == [1.0, 0.5]
    assert (found.attrs["large"], found.attrs["flips"]) == (1, 3), "a sum of shares would be 2"
    assert (found.attrs["target"], found.attrs["target_id"], found.attrs["prompts"]) == ("", -1, 2)
    assert found.attrs["clean_probability"] == pytest.approx(0.55)
    assert "share of the prompts" in found.top1_changed.attrs["units"]
    assert "mean over 2 prompts" in found.change.attrs["units"]
    assert "mean change" in found.attrs["large_unit"]
    assert "at least one prompt" in found.attrs["flips_unit"]
    assert (
        ablate_finding(found)
        == "2 prompts go on, each with its own most likely token, at a mean probability of 0.550. Of 4"
        " neurons, 1 changes it by more than 0.1 and 3 make another token the most likely in at least one"
        " prompt; N0@L0 changes it most, by +0.200."
    )
    titles = [title for title, _ in ablate_figures(found)]
    assert titles == [
        (
            "Block 0: mean change of the probability of the answers over 2 prompts (×: another answer in any"
            " of them)"
        ),
        "Largest mean change by any one neuron of a block over 2 prompts",
    ]
    crosses = ablate_figures(found)[0][1].data[1]
    assert len(crosses.x) == 2, "a share below one is marked too"


def test_changes_that_cancel_are_said_to_be_none_and_flips_still_told():
    zero, flip = [[0.2, 0.0]], [[1, 0]]
    same = many_ablated((7, zero, flip), (7, [[-0.2, 0.0]], [[0, 0]]))
    assert (
        ablate_finding(same)
        == "2 prompts go on with '7' at a mean probability of 0.550. No neuron alone changes it by 0.001, but"
        " 1 neuron makes another token the most likely in at least one prompt."
    )
    still = many_ablated((7, [[0.0, 0.0]], [[0, 0]]), (7, [[0.0, 0.0]], [[0, 0]]))
    assert ablate_finding(still).endswith("No neuron alone changes it by 0.001.")
    large = many_ablated((7, [[0.2, 0.0]], [[0, 0]]), (9, [[0.2, 0.0]], [[0, 0]]))
    assert (
        "none makes another token the most likely in any prompt; N0@L0 changes it most, by +0.200."
        in ablate_finding(large)
    )
    nothing = many_ablated((7, [[NAN, NAN]], [[NAN, NAN]]), (7, [[NAN, NAN]], [[NAN, NAN]]))
    assert ablate_finding(nothing).endswith("No neuron could be measured.")


@pytest.mark.parametrize("name", THREE)
def test_several_pairs_are_pushed_as_one_after_the_other(name, tmp_path):
    model = opened(name)
    pairs = [
        {"question": words(7, 1), "baseline": words(4, 2)},
        {"question": words(5, 3), "baseline": words(6, 4)},
    ]
    file = tmp_path / "pairs.json"
    file.write_text(json.dumps(pairs))
    targets = ["7", "9"]
    heard = []
    with listening(lambda *told: heard.append(told)):
        joined = PUSH(model, pairs=str(file), targets=targets)
    assert [told for told in heard if told[0] == "pairs"] == [("pairs", 1, 2), ("pairs", 2, 2)]
    alone = [PUSH(model, **pair, targets=targets) for pair in pairs]
    for variable in ("clean", "on_question"):
        apart = np.stack([one[variable].values for one in alone])
        assert alike(model, joined[f"pair_{variable}"], apart)
        assert alike(model, joined[variable], apart.mean(0))
        assert np.array_equal(alone[0][variable], alone[0][f"pair_{variable}"][0])
    whole = np.stack([(one.push + one.clean).values for one in alone])
    assert alike(model, joined.pair_push + joined.pair_clean, whole)
    assert alike(model, (joined.push + joined.clean), whole.mean(0))
    assert "pair_push" not in alone[0]
    assert [[q, b] for q, b in zip(joined.question.values, joined.baseline.values, strict=True)] == [
        list(p.values()) for p in pairs
    ]
    first = PUSH(model, pairs=str(file), targets=targets, count=1)
    assert np.array_equal(first.push, alone[0].push)
    assert push_finding(first) == push_finding(alone[0])
    assert first.attrs["question"] == pairs[0]["question"]
    asked = PUSH(
        model, prompts=[p["question"] for p in pairs], baseline=pairs[0]["baseline"], targets=targets
    )
    other = PUSH(model, question=pairs[1]["question"], baseline=pairs[0]["baseline"], targets=targets)
    assert np.array_equal(asked.pair_push[0], alone[0].push)
    assert alike(model, asked.pair_push[1] + asked.pair_clean[1], (other.push + other.clean).values)


def test_what_is_said_of_several_pairs(tmp_path):
    model = load("specimen:gpt2", pack=False)
    questions = [
        "Question: Is Madrid the capital of Spain? Answer:",
        "Question: Is Lima the capital of Peru? Answer:",
    ]
    found = PUSH(model, prompts=questions)
    said = push_finding(found)
    assert said.startswith(
        "2 questions into “The day after Tuesday is”, towards ' yes' rather than ' no', in nats, mean over 2"
        " pairs:"
    )
    assert "Mean log-probabilities on the questions themselves: ' yes' " in said
    assert [title for title, _ in push_figures(found)] == [
        "Mean push of every MLP layer, over 2 pairs of a question and a baseline",
        "Mean push of every head towards ' yes' rather than ' no', over 2 pairs of a question and a baseline",
    ]
    file = tmp_path / "pairs.json"
    file.write_text(
        json.dumps([{"question": questions[0], "baseline": text} for text in ("The sky looks", "Grass is")])
    )
    paired = PUSH(model, pairs=str(file))
    assert push_finding(paired).startswith(f"“{questions[0]}” into 2 baselines, towards")
    none = paired.assign(push=paired.push * 0)
    assert "no part pushes by a hundredth of a nat, mean over 2 pairs. Mean log" in push_finding(none)


def test_texts_that_contradict_each_other_are_refused(tmp_path):
    model = opened("gpt2")
    file = tmp_path / "pairs.json"
    file.write_text(json.dumps([{"question": "5 6", "baseline": "7 8"}]))
    for run, options, sentence in (
        (
            ABLATE,
            dict(prompt="5 6", prompts=["5 7"]),
            "prompt and prompts both say what is read: give one of them",
        ),
        (
            ABLATE,
            dict(prompts=["5 7"], count=-1),
            "-1 is too few: measure at least one of the prompts, or write 0 for all of them",
        ),
        (ABLATE, dict(prompt="5 7", count=-1), "-1 is too few"),
        (
            PUSH,
            dict(pairs=str(file), prompts=["5 6"]),
            "pairs and prompts both say which questions are asked",
        ),
        (PUSH, dict(pairs=str(file), question="5 6"), "give no question and no baseline beside them"),
        (PUSH, dict(pairs=str(file), baseline="5 6"), "give no question and no baseline beside them"),
        (PUSH, dict(prompts=["5 6"], question="5 6"), "question and prompts both say what is asked"),
        (PUSH, dict(pairs=str(file), targets=["7"], count=-2), "-2 is too few"),
        (PATCH, dict(count=-1), "-1 is too few: measure at least one of the pairs"),
    ):
        with pytest.raises(ValueError, match=sentence):
            run(model, **options)
    for content, sentence in (
        ("[]", "holds no pairs: write at least one"),
        ("{", "is not JSON"),
        ('{"question": "5"}', "holds no pairs but a dict"),
        ('[{"question": "5"}]', "pair 0 of .* has no baseline: write a list of objects with question and"),
        ('[{"question": "5", "baseline": "6", "x": "7"}]', "pair 0 of .* has x: "),
        ('[{"question": "5", "baseline": ""}]', "pair 0 of .* has a field that is empty or no text"),
        ('[{"question": "5", "baseline": 6}]', "pair 0 of .* has a field that is empty or no text"),
    ):
        file.write_text(content)
        with pytest.raises(ValueError, match=sentence):
            PUSH(model, pairs=str(file), targets=["7"])


def test_patching_takes_the_first_pairs(tmp_path):
    model = opened("llama")
    cases = [dict(clean=words(6, s), corrupt=words(6, s + 1), answer="7", wrong="9") for s in (1, 3, 5)]
    file = tmp_path / "pairs.json"
    file.write_text(json.dumps(cases))
    two = PATCH(model, pairs=str(file), count=2)
    assert two.attrs["pairs"] == 2
    alone = np.stack([PATCH(model, **case).effect.values for case in cases[:2]])
    assert np.allclose(two.pair_effect, alone, atol=1e-6)
    assert PATCH(model, pairs=str(file), count=1).effect.values == pytest.approx(alone[0], abs=1e-6)
    assert (
        PATCH(model, pairs=str(file), count=9).attrs["pairs"]
        == PATCH(model, pairs=str(file)).attrs["pairs"]
        == 3
    )


def test_groups_are_taken_in_turn_from_both_kinds():
    groups = list(general())
    assert _in_turn(groups, 0) == groups
    four = _in_turn(groups, 4)
    assert [group.kind for group in four] == ["immediate", "shared prefix"] * 2
    immediate, shared = ([g for g in groups if g.kind == kind] for kind in ("immediate", "shared prefix"))
    assert four == [immediate[0], shared[0], immediate[1], shared[1]]
    assert sorted(map(repr, _in_turn(groups, len(groups) + 5))) == sorted(map(repr, groups))
    with pytest.raises(ValueError, match="one contrastive group has nothing to be compared with"):
        _in_turn(groups, 1)
    with pytest.raises(ValueError, match="-3 is too few"):
        _in_turn(groups, -3)
    model = load("specimen:gpt2", pack=False)
    few = FOLLOW(model, count=4)
    assert few.attrs["groups"] == few.sizes["group"] == 4
    assert set(few.kind.values) == {"immediate", "shared prefix"}
