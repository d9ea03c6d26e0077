"""The certificate against its definitions, computed by hand; a graft that is the part itself costs
nothing."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from regraft.data.token_bytes import token_bytes
from regraft.data.windows import cut
from regraft.export.certificate import certify
from regraft.model.load import load


@pytest.fixture(scope="module")
def case():
    model = load("specimen:gpt2", pack=False)
    ids = model.tokenizer("The capital of France is Paris. She sells sea shells by the sea shore. " * 30)[
        "input_ids"
    ]
    other = model.tokenizer("def f(x):\n    return x + 1\n" * 40)["input_ids"]
    domains = {"prose": cut(np.array(ids, np.uint32), 24), "code": cut(np.array(other, np.uint32), 24)}
    return model, domains, token_bytes(model.tokenizer, model.table_rows)


def test_the_part_itself_changes_nothing(case):
    model, domains, table = case
    old = model.parts.embedding
    data = certify(model, [(old, copy.deepcopy(old))], domains, table, most=6)
    assert np.array_equal(data.bits_per_byte_before, data.bits_per_byte_after)
    assert float(np.abs(data.kl).max()) < 1e-7
    assert (data.top1 == 1).all()
    assert np.allclose(data.top5, 1)
    assert float(data.nmse.max()) == 0
    assert data.part_parameters.values.tolist() == [old.weight.numel()] * 2


def test_numbers_by_hand(case):
    model, domains, table = case
    old = model.parts.embedding
    torch.manual_seed(0)
    graft = nn.Embedding.from_pretrained(old.weight.detach() + 0.05 * torch.randn_like(old.weight))
    data = certify(model, [(old, graft)], domains, table, most=4)
    ids = domains["code"].batch(0, 4)
    with torch.no_grad():
        before = model.hf(input_ids=ids).logits.log_softmax(-1)
        after = model.hf(inputs_embeds=graft(ids)).logits.log_softmax(-1)
        taught = model.hf(input_ids=ids, output_hidden_states=True).hidden_states
        learnt = model.hf(inputs_embeds=graft(ids), output_hidden_states=True).hidden_states
    text = sum(len(table.bytes_V[i]) for i in ids[:, 1:].flatten().tolist())
    nats = -sum(float(after[b, t, ids[b, t + 1]]) for b in range(4) for t in range(23))
    one = data.sel(domain="code")
    assert float(one.bits_per_byte_after) == pytest.approx(nats / math.log(2) / text, rel=1e-5)
    kl = (before.exp() * (before - after)).sum(-1)[:, :-1].mean()
    assert float(one.kl) == pytest.approx(float(kl), rel=1e-4)
    assert float(one.top1) == pytest.approx(
        float((before.argmax(-1) == after.argmax(-1))[:, :-1].float().mean()), abs=1e-6
    )
    firsts = [
        [{*x[b, t].topk(5).indices.tolist()} for b in range(4) for t in range(23)] for x in (before, after)
    ]
    share = [len(a & b) / 5 for a, b in zip(*firsts, strict=True)]
    assert float(one.top5) == pytest.approx(np.mean(share), abs=1e-6)
    for depth in (0, 2):
        wanted = float(((learnt[depth] - taught[depth]) ** 2).sum() / (taught[depth] ** 2).sum())
        assert float(one.nmse.sel(depth=depth)) == pytest.approx(wanted, rel=1e-4)
    assert float(one.tokens) == 4 * 23
    assert (np.diff(data.excess.values) <= 0).all()
    assert (data.kl > 0).all()


def test_a_tied_matrix_is_kept_and_counted(case):
    """GPT-2's head is its embedding: a graft comes on top. Qwen3's is not: the table goes."""
    model, domains, table = case
    whole = sum(p.numel() for p in model.hf.parameters())
    same = certify(
        model, [(model.parts.embedding, copy.deepcopy(model.parts.embedding))], domains, table, most=1
    )
    assert same.parameters.values.tolist() == [whole, whole + model.parts.embedding.weight.numel()]
    other = load("specimen:qwen3", pack=False)
    same = certify(
        other, [(other.parts.embedding, copy.deepcopy(other.parts.embedding))], domains, table, most=1
    )
    assert float(same.parameters[0]) == float(same.parameters[1])


def test_no_text_is_refused(case):
    model, _, table = case
    with pytest.raises(ValueError, match="no text to certify on"):
        certify(model, [(model.parts.embedding, model.parts.embedding)], {}, table)


def test_tokens_by_length_frequency_and_type(case):
    """Every group's mean is that of its tokens, one by one; the groups of each kind together hold all that
    was read."""
    model, domains, table = case
    old = model.parts.embedding
    torch.manual_seed(1)
    graft = nn.Embedding.from_pretrained(old.weight.detach() + 0.05 * torch.randn_like(old.weight))
    data = certify(model, [(old, graft)], {"code": domains["code"]}, table, most=5)
    ids = domains["code"].rows(range(5))
    with torch.no_grad():
        before = model.hf(input_ids=ids).logits.log_softmax(-1)
        after = model.hf(inputs_embeds=graft(ids)).logits.log_softmax(-1)
        taught = model.hf(input_ids=ids, output_hidden_states=True).hidden_states[1]
        learnt = model.hf(inputs_embeds=graft(ids), output_hidden_states=True).hidden_states[1]
    groups = [str(name) for name in data.group.values]
    behind, to_come = [], []
    for b in range(5):
        for t in range(23):
            kl = float((before[b, t].exp() * (before[b, t] - after[b, t])).sum())
            read, wanted = int(ids[b, t]), int(ids[b, t + 1])
            behind += [kl] if 3 <= len(table.bytes_V[read]) <= 4 else []
            loss = float(before[b, t, wanted] - after[b, t, wanted])
            to_come += [loss] if table.bytes_V[wanted][:1] in b" \n" else []
    lengths, spaced = data.sel(group="3 to 4 bytes"), data.sel(group="opens with white space")
    assert float(lengths.group_tokens) == len(behind) > 0
    assert float(lengths.group_kl) == pytest.approx(np.mean(behind), rel=1e-4)
    assert float(spaced.group_excess) == pytest.approx(np.mean(to_come), rel=1e-4, abs=1e-6)
    for kind in ("byte", "times", ("opens", "does not", "part of")):
        these = [
            name
            for name in groups
            if any(word in name for word in ([kind] if isinstance(kind, str) else kind))
        ]
        assert float(data.group_tokens.sel(group=these).sum()) == 5 * 23
    cosine = torch.cosine_similarity(learnt, taught, dim=-1).mean()
    assert float(data.cosine.sel(domain="code", depth=1)) == pytest.approx(float(cosine), rel=1e-5)
