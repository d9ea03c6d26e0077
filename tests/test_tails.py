"""What of the last block is run, and which rows are not run at all; each against full forwards."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

import naive
from families import FAMILIES
from regraft.sweeps import recorded_layout
from regraft.sweeps import sweep as sweeping
from regraft.sweeps.metrics import kl_to_clean, logit_difference, loss
from regraft.sweeps.plan import keys_cost
from regraft.sweeps.prefix_cache import cone_holds, cone_of
from regraft.sweeps.recorded_layout import key_share
from regraft.sweeps.routes import Route
from regraft.sweeps.sweep import sweep
from regraft.sweeps.unchanged import ASKED
from regraft.sweeps.variants import Add, Replace, Scale, Variant, Zero
from small import METRIC, ids, opened, recorded, reference

CONED = [name for name in FAMILIES if name in (
    "llama", "gpt2", "gpt_neox", "gemma2", "gemma3", "mistral", "qwen3", "phi3", "gpt_oss", "bloom",
    "mixtral",
)]  # fmt: skip


def near(result, wanted):
    torch.testing.assert_close(result.values["d"], wanted, atol=1e-5, rtol=1e-4)


def edits(model):
    last = len(model.blocks) - 1
    return [
        Variant([Scale("1.mlp_out", 0.5, 2)]),
        Variant(route=Route.skip(last + 1, {1})),
        Variant([Add(f"{last}.resid_pre", torch.ones(model.width), 1)]),
        Variant(
            [Scale(f"{last}.k", 0.3, 1)] if model.taps.exists(last, "k") else [Zero(f"{last}.attn_out", 1)]
        ),
        Variant([Add(f"{last}.resid_post", torch.ones(model.width), -1)]),
        Variant([Zero("0.attn_out"), Scale(f"{last}.mlp_out", 2.0)]),
    ]


@pytest.mark.parametrize("name", CONED)
def test_only_what_is_read_leaves_the_last_block(name, monkeypatch):
    """Fewer positions, the same numbers, with prompts of one length and of several, and with a past."""
    model = opened(name)
    assert cone_holds(model)
    for lengths in ((9,), (9, 6)):
        recording = recorded(model, *lengths)
        variants = edits(model)
        found = sweep(recording, variants, METRIC)
        near(found, reference(model, recording, variants))
        assert found.work.executed == found.work.planned
        with monkeypatch.context() as whole:
            whole.setattr("regraft.sweeps.plan._cut_tails", lambda *words: None)
            wide = sweep(recording, variants, METRIC)
        torch.testing.assert_close(found.values["d"], wide.values["d"], atol=1e-5, rtol=1e-4)
        carried = min(lengths) - 1
        saved = carried - keys_cost(carried, key_share(model))
        rows = (wide.work.executed - found.work.executed) / len(lengths)
        assert rows == pytest.approx(3 * saved, abs=3), "rows that nothing edits in or behind that block"


def test_a_tail_on_top_of_a_past(monkeypatch):
    """Rows that carry a suffix already, in a grid large enough for suffixes to pay."""
    model = opened("llama")
    assert cone_holds(model), "proved by tails of its own"
    recording = model.record([ids(24, 1)])
    variants = [
        Variant([Scale(f"{b}.mlp_out", 0.3, p)]) for b in range(len(model.blocks) - 1) for p in range(24)
    ]
    calls, real = [], type(cone_of(recording)).run_tail

    def heard(self, block, stream, rows, start, tail):
        calls.append((block, start, tail))
        return real(self, block, stream, rows, start, tail)

    monkeypatch.setattr(type(cone_of(recording)), "run_tail", heard)
    found = sweep(recording, variants, METRIC)
    assert {start for _, start, _ in calls} >= {0, 4, 8, 12, 16}
    assert {(block, tail) for block, _, tail in calls} == {(len(model.blocks) - 1, 23)}
    near(found, reference(model, recording, variants))


def test_metrics_of_several_positions_cut_at_the_first():
    model = opened("gpt2")
    recording = model.record([ids(9, 1), ids(7, 2)], [ids(3, 3), ids(4, 4)])
    variants = edits(model)
    metrics = [loss(), kl_to_clean(), logit_difference(5, 9)]
    found = sweep(recording, variants, metrics)
    exact = sweep(recording, variants, metrics, exact=True)
    for metric in found.values:
        torch.testing.assert_close(found.values[metric], exact.values[metric], atol=1e-5, rtol=1e-4)
    assert found.work.executed < exact.work.executed
    logits = naive.logits(model, recording, variants[0])
    scored = recording.scored_BT[:, 1:]
    losses = -logits[:, :-1].log_softmax(-1).gather(-1, recording.ids_BT[:, 1:, None])[..., 0]
    wanted = (losses * scored).sum(1) / scored.sum(1)
    torch.testing.assert_close(found.values["loss"][0], wanted.float(), atol=1e-5, rtol=1e-4)


def test_the_share_of_keys_and_values():
    assert key_share(opened("gpt2")) == pytest.approx(3 / 12), "q, k, v of twelve squares of the width"
    model = opened("llama")
    block = model.blocks[-1].module
    sizes = {name: p.numel() for name, p in block.named_parameters() if p.dim() == 2}
    given = sum(size for name, size in sizes.items() if name.split(".")[-2] in ("q_proj", "k_proj", "v_proj"))
    assert key_share(model) == pytest.approx(given / sum(sizes.values()))


def counted(monkeypatch):
    asked = []
    real = sweeping.make_plan

    def heard(variants, *words, **more):
        asked.extend(variants)
        return real(variants, *words, **more)

    monkeypatch.setattr(sweeping, "make_plan", heard)
    return asked


def test_rows_that_put_in_what_is_there_are_not_run(monkeypatch):
    """Left of the first token that differs a patch is the clean run's own value."""
    model = opened("llama")
    first, second = ids(10, 1), ids(10, 1)
    second[6] = second[6] + 1 if second[6] < 90 else second[6] - 1
    clean, corrupt = model.record([first]), model.record([second])
    variants = [
        Variant([Replace(f"{b}.resid_pre", clean[f"{b}.resid_pre"], p)])
        for b in range(len(model.blocks)) for p in range(10)
    ]  # fmt: skip
    asked = counted(monkeypatch)
    found = sweep(corrupt, variants, [METRIC, kl_to_clean()])
    run = [v for v in asked if v.edits]

    def is_there(edit):
        return torch.equal(edit.value[0, edit.position], corrupt[edit.site][0, edit.position])

    equal = [variant for variant in variants if is_there(variant.edits[0])]
    assert len(equal) >= 6
    assert len(run) == len(variants) - len(equal)
    assert all(v.edits[0].position >= 6 or v not in equal for v in run)
    for number, variant in enumerate(variants):
        if variant in equal:
            assert torch.equal(found.values["d"][number], found.clean["d"])
            assert float(found.values["kl_to_clean"][number]) == float(found.clean["kl_to_clean"])
    near(found, reference(model, corrupt, variants))
    assert found.work.naive == len(model.blocks) * 10 * (len(variants) + 1)


@pytest.mark.parametrize("site", ["attn_out", "mlp_out", "z", "resid_mid", "mlp_act"])
def test_the_insides_of_a_block_are_compared_where_a_grid_asks(site, monkeypatch):
    """One run of each block tells which cells put in what is there; those are not run."""
    model = opened("llama")
    first, second = ids(24, 1), ids(24, 1)
    second[16] = (second[16] + 1) % 90
    source, target = model.record([first]), model.record([second])
    places = range(24)
    variants = [
        Variant([Replace(f"{b}.{site}", source[f"{b}.{site}"].flatten(2), p)])
        for b in range(len(model.blocks)) for p in places
    ]  # fmt: skip
    asked = counted(monkeypatch)
    found = sweep(target, variants, METRIC)
    run = [v.edits[0].position for v in asked if v.edits]
    assert len(run) <= len(model.blocks) * 12 * 2, "most cells in front of token 16 are answered"
    assert set(range(16, 24)) <= set(run)
    near(found, reference(model, target, variants))
    assert found.work.preparation >= 24 * len(model.blocks)
    asked.clear()
    changed = source["1." + site].flatten(2)[0, 3].clone()
    changed[0] = torch.nextafter(changed[0], torch.tensor(9.0))
    few = sweep(target, [Variant([Replace(f"1.{site}", changed, 3)]), *variants[24:48]], METRIC)
    assert any(v.edits and v.edits[0].value is changed for v in asked), "one bit is enough to run a row"
    near(few, reference(model, target, [Variant([Replace(f"1.{site}", changed, 3)]), *variants[24:48]]))
    asked.clear()
    sweep(target, variants[24 : 24 + ASKED - 1], METRIC)
    assert len([v for v in asked if v.edits]) == ASKED - 1, "a few cells do not pay for a run of the block"
    whole = [Variant([Replace(f"1.{site}", target["1." + site].flatten(2))]) for _ in range(ASKED)]
    asked.clear()
    sweep(target, whole, METRIC)
    assert len([v for v in asked if v.edits]) == ASKED, "nor do edits of all positions"


def test_one_bit_is_enough_to_run_a_row(monkeypatch):
    model = opened("llama")
    recording = model.record([ids(8, 1), ids(5, 2)])
    own = recording["2.resid_pre"]
    other = own.clone()
    other[1, 3, 7] = torch.nextafter(other[1, 3, 7], torch.tensor(9.0))
    lists = {
        "same": (Variant([Replace("2.resid_pre", own)]), False),
        "same at places": (Variant([Replace("2.resid_pre", own, [1, -1])]), False),
        "same behind": (Variant([Replace("3.resid_post", recording["3.resid_post"], 2)]), False),
        "one bit": (Variant([Replace("2.resid_pre", other)]), True),
        "one bit there": (Variant([Replace("2.resid_pre", other, 3)]), True),
        "one bit elsewhere": (Variant([Replace("2.resid_pre", other, 2)]), False),
        "two edits": (Variant([Replace("2.resid_pre", own), Zero("3.mlp_out", 1)]), True),
        "another kind": (Variant([Scale("2.resid_pre", 1.0)]), True),
        "another way": (Variant([Replace("2.resid_pre", own)], Route.order([0, 2, 3])), True),
        "inside": (Variant([Replace("2.attn_out", recording["2.attn_out"], 1)]), True),
    }
    asked = counted(monkeypatch)
    variants = [variant for variant, _ in lists.values()]
    found = sweep(recording, variants, METRIC)
    for name, (variant, runs) in lists.items():
        assert any(variant is one or variant.edits == one.edits for one in asked) == runs, name
    near(found, reference(model, recording, variants))
    before = len(asked)
    sweep(recording, variants, METRIC, exact=True)
    assert len(asked) - before == len(variants) + 1, "exact runs every row"


def test_wrong_replacements_are_refused_as_ever():
    model = opened("llama")
    recording = model.record([ids(8, 1)])
    with pytest.raises(ValueError, match="outside the prompt of 8 tokens"):
        sweep(recording, Replace("2.resid_pre", recording["2.resid_pre"], 8), METRIC)
    with pytest.raises(ValueError, match="wide, the activation"):
        sweep(recording, Replace("2.resid_pre", torch.zeros(5)), METRIC)


@pytest.mark.parametrize(("name", "why"), [("qwen3_5", "is recurrent"), ("mamba2", "is recurrent")])
def test_a_recurrent_model_says_why_all_is_run(name, why):
    model = opened(name)
    recording = recorded(model, 8)
    result = sweep(recording, Scale("1.resid_pre", 0.5, 5), METRIC)
    assert any("every position is run" in note and why in note for note in result.notes)
    assert not sweep(recording, Scale("1.resid_pre", 0.5), METRIC).notes
    assert not sweep(recorded(opened("llama"), 8), Scale("1.resid_pre", 0.5, 5), METRIC).notes


@pytest.mark.parametrize("name", ["mistral", "gemma3", "gemma2", "gpt_oss", "cohere2"])
def test_windows_shorter_than_the_prompt(name):
    model = opened(name)
    window = model.hf.config.sliding_window
    length = window + 7
    recording = model.record([ids(length, 1), ids(length - 3, 2)])
    assert cone_holds(model)
    variants = [
        Variant([Scale(f"{b}.mlp_out", 0.3, p)])
        for b in range(len(model.blocks))
        for p in range(1, length - 3, 2)
    ]
    found = sweep(recording, variants, METRIC)
    assert found.work.preparation > 0
    near(found, reference(model, recording, variants))


def test_keys_and_values_are_found_once_a_recording(monkeypatch):
    model = opened("llama")
    recording = model.record([ids(16, 1)])
    variants = [Variant([Scale(f"{b}.mlp_out", 0.3, p)]) for b in range(3) for p in range(16)]
    first, runs = sweep(recording, variants, METRIC), cone_of(recording).runs
    second = sweep(recording, variants, METRIC)
    assert cone_of(recording).runs == runs > 0
    torch.testing.assert_close(first.values["d"], second.values["d"], atol=1e-5, rtol=1e-4)
    assert recorded_layout.layout_of(recording, {"1.mlp_out"}).cone


def test_keys_and_values_go_with_their_recording():
    model = opened("llama")
    recording = model.record([ids(16, 1)])
    cone_of(recording).past(1)
    gone = weakref.ref(recording)
    del recording
    gc.collect()
    assert gone() is None
