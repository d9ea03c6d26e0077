"""The tokens that a graft costs most and what stands in front of them, and how many windows are read, counted
one by one."""

from __future__ import annotations

import copy
import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from regraft.data.token_bytes import token_bytes
from regraft.data.windows import cut
from regraft.export import certificate
from regraft.export.certificate import certify
from regraft.model.load import load


@pytest.fixture(scope="module")
def certified():
    model = load("specimen:gpt2", pack=False)
    said = {
        "prose": "The capital of France is Paris. She sells sea shells by the shore. ",
        "code": "def f(x):\n    return x\n",
    }
    domains = {
        name: cut(np.array(model.tokenizer(text * 12)["input_ids"], np.uint32), 16)
        for name, text in said.items()
    }
    torch.manual_seed(0)
    old = model.parts.embedding
    graft = nn.Embedding.from_pretrained(old.weight.detach() + 0.05 * torch.randn_like(old.weight))
    ticks = itertools.count(1000.0, 2.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(certificate, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
        data = certify(model, [(old, graft)], domains, token_bytes(model.tokenizer, model.table_rows), most=5)
    return model, graft, domains, data


def test_the_worst_tokens_of_all_batches(certified):
    """Five windows are a batch of four and one more; every token is looked at, whichever batch it is in."""
    model, graft, domains, data = certified
    found = []
    for name, windows in domains.items():
        ids = windows.rows(range(5))
        with torch.no_grad():
            before = model.hf(input_ids=ids).logits.double().log_softmax(-1)
            after = model.hf(inputs_embeds=graft(ids)).logits.double().log_softmax(-1)
        for b in range(5):
            for t in range(15):
                to_come = int(ids[b, t + 1])
                front = "".join(model.tokenizer.decode([i]) for i in ids[b, max(0, t - 12) : t + 1].tolist())
                found.append(
                    (
                        float(before[b, t, to_come] - after[b, t, to_come]),
                        model.tokenizer.decode([to_come]),
                        front,
                        name,
                    )
                )
    wanted = sorted(found, key=lambda one: -one[0])[:12]
    assert data.excess.values == pytest.approx([one[0] for one in wanted], abs=1e-4)
    rows = list(
        zip(
            data.token.values.tolist(),
            data.context.values.tolist(),
            data.worst_domain.values.tolist(),
            strict=True,
        )
    )
    assert rows == [one[1:] for one in wanted]
    assert len({len(one[2]) for one in wanted}) > 1


def test_windows_tokens_and_bytes_are_counted_by_domain(certified):
    model, graft, domains, data = certified
    assert data.windows.values.tolist() == [5, 5]
    assert data.tokens.values.tolist() == [75, 75]
    assert (data.attrs["window"], data.attrs["experiment"]) == (16, "certificate")
    assert data.depth.values.tolist() == list(range(len(model.blocks) + 1))
    assert data.attrs["seconds"] == 2.0, "of a clock that goes on by 2 whenever it is looked at"
    for name, windows in domains.items():
        ids = windows.rows(range(5))
        with torch.no_grad():
            taught = model.hf(input_ids=ids, output_hidden_states=True)
            learnt = model.hf(inputs_embeds=graft(ids), output_hidden_states=True)
        nats = nn.functional.cross_entropy(
            taught.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="sum"
        )
        text = sum(len(model.tokenizer.decode([i]).encode()) for i in ids[:, 1:].flatten().tolist())
        one = data.sel(domain=name)
        assert float(one.bits_per_byte_before) == pytest.approx(float(nats) / math.log(2) / text, rel=1e-5)
        for depth in (0, 1):
            like = torch.cosine_similarity(
                taught.hidden_states[depth], learnt.hidden_states[depth], dim=-1
            ).mean()
            assert float(one.cosine.sel(depth=depth)) == pytest.approx(float(like), rel=1e-5)
    rows, width = model.parts.embedding.weight.shape
    assert data.part_parameters.values.tolist() == [rows * width] * 2
    whole = sum(p.numel() for p in model.hf.parameters())
    assert data.parameters.values.tolist() == [
        whole,
        whole + rows * width,
    ], "the head is tied to the table and keeps it"
    assert data.bytes.values.tolist() == [4 * whole, 4 * (whole + rows * width)]


def test_a_domain_that_is_shorter_than_asked_is_read_whole(certified):
    model, _, domains, _ = certified
    old, table = model.parts.embedding, token_bytes(model.tokenizer, model.table_rows)
    data = certify(model, [(old, copy.deepcopy(old))], domains, table, most=10**6)
    assert data.windows.values.tolist() == [len(windows) for windows in domains.values()]
