"""What a certificate says of memory and work: bytes that are known, and a training step that is the plain
one's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from regraft.core.memory import peak_bytes
from regraft.data.windows import cut
from regraft.export.profile import measured_costs, next_token_loss, only_these
from regraft.modules.logits_view import LogitsView
from regraft.modules.tree_head import tree_head
from regraft.modules.trees import by_id
from regraft.training.sensitivity import sensitivity
from small import opened


def test_the_peak_is_that_of_the_bytes_held_at_once():
    def work():
        first = torch.empty(1_000_000)
        second = first + 1
        del first
        third = second * 2
        del second, third

    assert peak_bytes(work) == pytest.approx(8_000_000, abs=4096)
    kept = []
    assert peak_bytes(lambda: kept.append(torch.empty(500_000))) == pytest.approx(2_000_000, abs=4096)
    assert peak_bytes(lambda: kept.clear()) == 0


def head(model):
    torch.manual_seed(0)
    made = tree_head(by_id(model.table_rows), model.width, 8)
    with torch.no_grad():
        made.rows.weight[:-1].normal_()
    return made


def test_a_tree_heads_training_loss_is_that_of_its_whole_distribution():
    model = opened("llama")
    view = LogitsView(head(model))
    ids = torch.randint(5, 90, (3, 12), generator=torch.Generator().manual_seed(0))
    swaps = [(model.parts.head, view)]
    found = next_token_loss(model, swaps, ids)
    with torch.no_grad():
        hidden = model.hf.model(ids).last_hidden_state
        wanted = nn.functional.cross_entropy(view(hidden)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(found.detach(), wanted)


def test_costs_leave_the_model_as_it_was():
    model = opened("llama")
    model.hf.lm_head.weight.requires_grad_(False)
    before = [p.requires_grad for p in model.hf.parameters()]
    text = cut(np.random.default_rng(0).integers(5, 90, 400).astype(np.uint32), 16)
    found = measured_costs(model, [(model.parts.head, LogitsView(head(model)))], text)
    assert [p.requires_grad for p in model.hf.parameters()] == before
    assert all(p.grad is None for p in model.hf.parameters())
    for name in ("forward", "step", "forward_peak", "step_peak"):
        assert all(value > 0 for value in found[name][1]), name
    assert found["part_parameters"][1][0] == model.hf.lm_head.weight.numel()


def test_only_these_take_gradients():
    model = opened("llama")
    own = [model.parts.head.weight]
    with only_these(model.hf, own):
        next_token_loss(model, [], torch.arange(5, 17)[None]).backward()
    assert own[0].grad is not None
    assert all(p.grad is None for p in model.hf.parameters() if p is not own[0])


@pytest.mark.slow
def test_sensitivity_is_the_fisher_information_by_enumeration():
    """Every place's every token, by its own probability: the mean over draws must come to it."""
    model = opened("llama")
    ids = torch.tensor([[5, 40, 60, 22]])
    windows = cut(ids.numpy().repeat(1, 0).ravel().astype(np.uint32), 4)
    embedded = model.parts.embedding(ids).detach().requires_grad_()
    logs = model.hf(inputs_embeds=embedded, use_cache=False).logits[0].log_softmax(-1)
    wanted = torch.zeros(model.width, model.width)
    for place in range(4):
        for token in range(logs.shape[1]):
            (slope,) = torch.autograd.grad(logs[place, token], embedded, retain_graph=True)
            wanted += logs[place, token].exp().detach() * slope[0].T @ slope[0]
    found = sensitivity(model, windows, batches=1500, batch=1).fisher_DD
    assert float((found * 4 - wanted).norm() / wanted.norm()) < 0.1
    assert sensitivity(model, windows, batches=1).counts_V[[5, 40, 60, 22, 7]].tolist() == [1, 1, 1, 1, 0]
    assert all(p.requires_grad for p in model.hf.parameters())
