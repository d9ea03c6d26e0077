"""Every limit of the comparison rule fires just above rounding and not below it: faults of known size,
planted."""

from __future__ import annotations

import pytest

from regraft.model.load import load
from regraft.model.recording import Recording
from regraft.model.selfcheck import check
from regraft.sweeps import prefix_cache as cone_module
from regraft.sweeps.prefix_cache import Cone, cone_holds
from regraft.sweeps.sweep import sweep
from regraft.sweeps.variants import Variant
from regraft.training.tasks.head_task import check_head
from small import METRIC, opened, recorded

SIZES = [(20.0, False), (1 / 20, True)]
"""How many times rounding a planted fault is, and whether it passes."""


@pytest.mark.parametrize(("times", "passes"), SIZES)
def test_suffixes_are_used_where_they_agree(times, passes, monkeypatch):
    model = opened("llama")
    own = Cone.run_block
    monkeypatch.setattr(
        cone_module.Cone, "run_block", lambda *a, **k: own(*a, **k) * (1 + times * model.rounding)
    )
    assert cone_holds(model) == passes
    assert model.proved["cone"] == pytest.approx(times * model.rounding, rel=0.5)


@pytest.mark.parametrize(("times", "passes"), SIZES)
def test_a_block_that_does_not_close_is_refused(times, passes):
    model = opened("llama")
    handle = model.blocks[1].module.register_forward_hook(
        lambda m, args, out: out * (1 + times * model.rounding)
    )
    found = check(model)
    handle.remove()
    assert ("1.attn_out" in found.refused) != passes
    assert not any(site.startswith(("0.", "2.")) for site in found.refused)
    assert found.closure == pytest.approx(times * model.rounding, rel=0.5)


@pytest.mark.parametrize(("times", "passes"), SIZES)
def test_a_model_whose_replay_differs_is_refused(times, passes, monkeypatch):
    model = opened("llama")
    own = Recording.head
    monkeypatch.setattr(Recording, "head", lambda self, x: own(self, x) * (1 + times * model.rounding))
    model.check = check(model)
    assert model.check.replays == passes
    if passes:
        assert sweep(recorded(model, 6), [Variant()], METRIC).deviation == 0.0
    else:
        with pytest.raises(ValueError, match="cannot be replayed"):
            sweep(recorded(model, 6), [Variant()], METRIC)


@pytest.mark.parametrize(("times", "passes"), SIZES)
def test_a_model_that_looks_ahead_is_not_causal(times, passes):
    """The last token leaks to all positions, by a share of its own size."""
    model = opened("llama")

    def leak(module, args, out):
        return out + times * model.rounding * out.abs().max() * out[:, -1:].sign()

    handle = model.blocks[-1].module.register_forward_hook(leak)
    assert check(model).causal == passes
    handle.remove()


@pytest.mark.parametrize(("times", "passes"), SIZES)
def test_a_head_whose_scores_are_changed_bears_no_tree(times, passes):
    model = load("specimen:gpt2", pack=False)
    own = model.hf.forward

    def changed(*args, **kwargs):
        out = own(*args, **kwargs)
        if out.logits.shape[-1] == model.vocabulary:
            out.logits = out.logits * (1 + times * model.rounding)
        return out

    model.hf.forward = changed
    if passes:
        check_head(model)
    else:
        with pytest.raises(ValueError, match="changes the scores of its output matrix"):
            check_head(model)


def test_the_control_row_is_held_to_rounding(monkeypatch):
    """What `exact` promises: the calls of the clean run, so the recorded bits; a row in a batch is held to
    the rule."""
    model = opened("llama")
    recording = recorded(model, 9)
    variants = [Variant() for _ in range(7)]
    assert sweep(recording, variants, METRIC, exact=True).deviation == 0.0
    own = Recording.run_block
    for times, passes in SIZES:
        changed = lambda *a, times=times, **k: own(*a, **k) * (1 + times / 4 * model.rounding)  # noqa: E731
        monkeypatch.setattr(Recording, "run_block", changed)
        if passes:
            assert 0 < sweep(recording, variants, METRIC).deviation <= model.rounding
        else:
            with pytest.raises(RuntimeError, match="the control row, which changes nothing, deviates by"):
                sweep(recording, variants, METRIC)
        monkeypatch.setattr(Recording, "run_block", own)
