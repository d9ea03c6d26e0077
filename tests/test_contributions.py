"""Direct logit attribution: shares that add up to the model's own logits, held to formulas written out."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from families import FAMILIES
from regraft.core.registry import experiments
from regraft.experiments.running import run_experiment
from regraft.model.load import load
from regraft.reporting.drawings import drawing_of
from small import opened

RUN = partial(run_experiment, experiments()["contributions"])
TEXTS = ["5 6 7 8", "9 10 11 12 13"]
DECODERS = [n for n in FAMILIES if n not in ("bert", "bert_headless", "roberta", "modernbert", "gemma2")]
WITHOUT_HEADS = ("gemma3", "olmo2", "mamba2", "qwen3_5", "bart", "opt")
"""A norm stands behind the attention's output (or no attention in some blocks), or its projection has a bias:
heads alone do not add up to it."""


@pytest.mark.parametrize("name", DECODERS)
def test_shares_add_up_to_the_logit(name):
    data = RUN(opened(name), prompts=TEXTS, tokens=4)
    summed = data.by_embedding + data.by_block.sum("block") + data.by_between + data.by_offset
    largest = float(np.abs(data.logit).max())
    assert float(np.abs(summed - data.logit).max()) < 1e-5 * largest
    assert float(data.contribution.sum()) == pytest.approx(float(data.logit.mean()), abs=1e-5 * largest)
    if name != "bart":  # its blocks norm the stream itself: no branch adds up plainly
        assert float(np.abs(data.by_branch.sum("branch") - data.by_block).max()) < 1e-5 * largest
    if name not in WITHOUT_HEADS:
        heads = data.by_head.sum("head") - data.by_branch.sel(branch="attention")
        assert float(np.abs(heads).max()) < 1e-5 * largest


@pytest.mark.parametrize("against", ["nothing", "mean"])
def test_every_part_by_the_formula_of_an_rms_norm(against):
    """The model's own norm weight, scale and output rows, by hand; the mean over the vocabulary taken away
    where it is asked for."""
    model = opened("llama")
    with torch.no_grad():
        model.hf.model.norm.weight.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(0))
    data = RUN(model, prompts=TEXTS[:1], tokens=3, against=against)
    ids = [[int(t) for t in TEXTS[0].split()] + data.token_id.values.tolist()]
    with torch.no_grad():
        out = model.hf(input_ids=torch.tensor(ids), output_hidden_states=True)
        streams = torch.stack(out.hidden_states[:-1]).double()[:, 0]
        last = model.record(ids).post(3)[0].double()
    weight, rows = model.hf.model.norm.weight.double(), model.hf.lm_head.weight.double()
    rows = rows - rows.mean(0) if against == "mean" else rows
    states = [*streams, last]
    for n, target in enumerate(data.token_id.values.tolist()):
        at = 3 + n
        scale = (last[at].pow(2).mean() + model.hf.config.rms_norm_eps).sqrt()
        along = rows[target] * weight / scale
        for block in range(4):
            share = float(((states[block + 1][at] - states[block][at]) @ along).detach())
            assert float(data.by_block[block, n]) == pytest.approx(share, abs=1e-5)
        logits = out.logits[0, at].double()
        wanted = float((logits[target] - (logits.mean() if against == "mean" else 0)).detach())
        assert float(data.logit[n]) == pytest.approx(wanted, abs=1e-5)


def test_a_head_that_writes_the_answer_is_found():
    """Planted: one head's part of the output projection becomes the direction of every answer's row."""
    model = opened("llama")
    with torch.no_grad():
        model.hf.lm_head.weight[:] = model.hf.lm_head.weight[:1]  # every answer has one row
        model.hf.model.norm.weight.fill_(1.0)
        project = model.hf.model.layers[2].self_attn.o_proj.weight
        project[:, 8:16] = 0
        project[:, 8] = 50 * model.hf.lm_head.weight[0]
    data = RUN(load(model.hf, pack=False), prompts=TEXTS, tokens=3)
    size = np.abs(data.by_head.values).mean(2)
    assert np.unravel_index(int(size.argmax()), size.shape) == (2, 1)


@pytest.mark.parametrize("tokens", [1, 3])
def test_logits_behind_a_cap_are_refused(tokens):
    """Also where one token is scored: no constant makes a capped row of the vocabulary of a plain one."""
    model = opened("gemma2")
    model.hf.config.final_logit_softcapping = 0.05
    with pytest.raises(ValueError, match=r"they differ by \d\.\de[+-]\d+ of the largest: a soft cap"):
        RUN(model, prompts=TEXTS[:1], tokens=tokens)
    plain = opened("gemma2")
    plain.hf.config.final_logit_softcapping = None
    assert np.isfinite(RUN(plain, prompts=TEXTS[:1], tokens=tokens).contribution).all()


def test_a_constant_factor_of_the_logits_is_found():
    model = opened("cohere2")
    model.hf.config.logit_scale = model.hf.logit_scale = 0.25
    data = RUN(load(model.hf, pack=False), prompts=TEXTS, tokens=3)
    assert float(data.contribution.sum()) == pytest.approx(float(data.logit.mean()), abs=1e-5)


def test_figures_and_finding():
    model = opened("gpt2")
    with torch.no_grad():
        model.hf.transformer.ln_f.bias.fill_(0.1)
    data = RUN(load(model.hf, pack=False), prompts=TEXTS, tokens=3)
    drawing = drawing_of(data)
    assert [name.split()[0] for name, _ in drawing.figures(data)] == ["What", "Attention", "Single"]
    assert "offset" in drawing.figures(data)[0][1].data[0].x, "the norm's bias is a part of its own"
    assert "the true next token's logit is" in drawing.finding(data)
    assert len(drawing.folded(data)) == 1
    with pytest.raises(ValueError, match="does not write text from left to right"):
        RUN(opened("bert"), prompts=TEXTS)
