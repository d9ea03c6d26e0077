"""Texts that go on with an emptied state."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import regraft
from regraft.core.tolerance import gap
from regraft.experiments.observe import attention_refresh
from regraft.experiments.observe.attention_refresh import refresh_dataset
from regraft.reporting.figures.attention_figures import _refresh_told
from regraft.systems.state_refresh import LEFT, NoRecurrenceError, check_goes_on, keeps_keys, losses_behind
from tools.small_architectures import tiny

PREFIX = 16


def texts(seed=0):
    return torch.randint(5, 90, (2, 40), generator=torch.Generator().manual_seed(seed))


def plain(model, ids, first):
    """Losses of a text's own forward from a place on."""
    logits = model.run(input_ids=ids).logits[:, first:-1].detach()
    return torch.nn.functional.cross_entropy(logits.mT, ids[:, first + 1 :], reduction="none")


@pytest.mark.parametrize("name", ["qwen3_5_text", "qwen3_next", "olmo_hybrid", "lfm2", "falcon_h1"])
def test_without_state_and_keys_a_text_goes_on_as_if_nothing_stood_in_front(name):
    hf = tiny("causal", name)
    for module in hf.modules():
        if isinstance(module, torch.nn.Conv1d):
            module.weight.data.mul_(8)  # so that a random convolution carries more than rounding
    model, ids = regraft.load(hf), texts()
    check_goes_on(model, ids, PREFIX)
    found = {left: losses_behind(model, ids, PREFIX, *how) for left, how in LEFT.items()}
    assert gap(found["all"], plain(model, ids, PREFIX)) <= model.rounding
    assert gap(found["neither"], plain(model, ids[:, PREFIX:], 0)) <= model.rounding
    for one, other in (("all", "no recurrent state"), ("all", "no keys"), ("no keys", "neither")):
        assert gap(found[one], found[other]) > 3 * model.rounding, (one, other)
    assert keeps_keys(model)
    assert not keeps_keys(regraft.load(tiny("causal", "mamba2")))


def test_emptying_what_is_empty_already_changes_nothing(monkeypatch):
    """A prefix whose every convolution and recurrence was given zeros leaves zeros."""
    model, ids = regraft.load(tiny("causal", "qwen3_5_text")), texts()
    for block in model.blocks:
        for name, module in block.module.named_modules():
            if name.endswith(("in_proj_qkv", "conv1d")):
                torch.nn.init.zeros_(module.weight)
    whole, emptied = (losses_behind(model, ids, PREFIX, empties, False) for empties in (False, True))
    assert gap(whole, emptied) <= model.rounding
    keys = losses_behind(model, ids, PREFIX, False, True)
    assert gap(whole, keys) > 3 * model.rounding, "what is left reads the prefix"


@pytest.mark.parametrize(
    ("name", "why"),
    [("qwen3", "no recurrent blocks"), ("rwkv", "does not return its state in a cache"),
     ("bamba", "does not go on from its state")],
)  # fmt: skip
def test_models_whose_state_cannot_be_emptied_are_refused(name, why):
    with pytest.raises(NoRecurrenceError, match=why):
        check_goes_on(regraft.load(tiny("causal", name)), texts(), PREFIX)


def test_the_experiment_tells_loss_over_distance(monkeypatch):
    model, ids = regraft.load(tiny("causal", "qwen3_5_text")), texts()
    monkeypatch.setattr(attention_refresh, "text_rows", lambda *given: ids.tolist())
    monkeypatch.setattr(attention_refresh, "longest_input", lambda config: 40)
    data = refresh_dataset(model, 0)
    assert data.left.values.tolist() == list(LEFT)
    alone = losses_behind(model, ids, 20, True, False).numpy()
    parts = np.array_split(alone, 4, axis=1)
    assert data.refresh_loss.sel(left="no recurrent state").values == pytest.approx(
        [part.mean() for part in parts], rel=1e-5
    )
    alone = regraft.load(tiny("causal", "mamba2"))
    assert refresh_dataset(alone, 0).left.values.tolist() == ["all", "no recurrent state"], "it has no keys"
    told = _refresh_told(data)
    costs = float((data.refresh_loss[1] - data.refresh_loss[0]).mean())
    assert f"the loss is {costs:+.3g} nats with no recurrent state, " in told
    with pytest.raises(ValueError, match="no recurrent blocks"):
        regraft.attention(regraft.load(), count=1, tokens=2, refresh=True)
