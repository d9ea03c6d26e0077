"""Training a tree head: its losses by hand, sparse steps that move only the rows used, and what is
refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from regraft.data.windows import cut
from regraft.modules.tree_head import tree_head
from regraft.modules.trees import by_id
from regraft.training.optimizers import kinds, optimisers
from regraft.training.tasks.head_task import HeadTask, check_head, states
from regraft.training.trainer import TrainingPlan, train
from small import opened


def made(name="llama", sparse=True, neurons=8):
    model = opened(name)
    torch.manual_seed(0)
    head = tree_head(by_id(model.table_rows), model.width, neurons, sparse)
    with torch.no_grad():
        head.rows.weight[:-1].normal_(std=0.3)
    return model, head


def text(tokens=3000, length=16, high=93):
    return cut(np.random.default_rng(0).integers(3, high, tokens).astype(np.uint32), length)


@pytest.mark.parametrize("name", ["llama", "t5", "gpt2"])
def test_losses_are_those_of_the_definitions(name):
    model, head = made(name, sparse=False)
    ids = text().batch(0, 3)
    parts = HeadTask(model, head, path=2.0, kl=0.5).losses(ids)
    written = ids[:, 8:] if model.two_stacks else ids
    inputs = (
        {"input_ids": ids[:, :8], "decoder_input_ids": written} if model.two_stacks else {"input_ids": ids}
    )
    with torch.no_grad():
        heard = []
        handle = model.parts.head.register_forward_pre_hook(lambda m, a: heard.append(a[0]))
        logits = model.hf(**inputs).logits[:, :-1].flatten(0, 1)
        handle.remove()
        whole = head.log_probabilities(heard[0][:, :-1].flatten(0, 1))
    targets = written[:, 1:].flatten()
    path = -np.mean([float(whole[row, token]) for row, token in enumerate(targets.tolist())])
    assert float(parts["path"].detach()) == pytest.approx(2 * path, rel=1e-5)
    wanted = logits.log_softmax(-1)
    assert float(parts["kl"].detach()) == pytest.approx(
        0.5 * float((wanted.exp() * (wanted - whole)).sum(-1).mean().detach()), rel=1e-4
    )
    hidden, following = states(model, ids)
    assert torch.equal(following, targets)
    torch.testing.assert_close(hidden, heard[0][:, :-1].flatten(0, 1))


def test_a_sparse_step_moves_only_the_rows_on_the_paths(tmp_path):
    model, head = made()
    before = head.rows.weight.detach().clone()
    seen = text(3000, 16, high=6)
    train(HeadTask(model, head), seen, TrainingPlan(steps=3, batch=2), tmp_path)
    moved = set((head.rows.weight.detach() != before).any(1).nonzero()[:, 0].tolist())
    used = {int(token) for step in range(3) for token in seen.batch(step, 2)[:, 1:].flatten()}
    paths = {int(node) for token in used for node in head.nodes_VL[token].tolist() if node >= 0}
    assert moved == paths
    assert head.padding not in moved
    assert len(moved) < head.vocabulary / 4


@pytest.mark.parametrize("loss", ["path", "kl"])
def test_training_lowers_the_loss_and_goes_on_where_it_broke_off(loss, tmp_path):
    class BreakError(Exception):
        pass

    def stop(step):
        if step == 5:
            raise BreakError

    plan = TrainingPlan(steps=40, batch=4, warmup=5, save_every=4)
    weights = {"path": float(loss == "path"), "kl": float(loss == "kl")}
    model, head = made(sparse=loss == "path")
    seen = text(2000, 16, high=12)
    log = train(HeadTask(model, head, **weights), seen, plan, tmp_path / "whole")
    assert np.mean([line["loss"] for line in log[-5:]]) < 0.97 * log[0]["loss"]
    model, again = made(sparse=loss == "path")
    with pytest.raises(BreakError):
        train(HeadTask(model, again, **weights), seen, plan, tmp_path / "broken", watch=stop)
    model, again = made(sparse=loss == "path")
    train(HeadTask(model, again, **weights), seen, plan, tmp_path / "broken")
    assert all(torch.equal(p, q) for p, q in zip(head.parameters(), again.parameters(), strict=True))


def test_every_kind_of_parameter_has_its_optimiser():
    _, head = made()
    linear, sparse, rest = kinds(head)
    assert {id(p) for p in linear} == {id(head.adapter.up.weight), id(head.adapter.down.weight)}
    assert {id(p) for p in sparse} == {id(head.rows.weight), id(head.biases.weight)}
    assert {id(p) for p in rest} == {id(head.adapter.up.bias), id(head.adapter.down.bias)}
    assert [type(o).__name__ for o in optimisers(head, 1e-3)] == ["Muon", "SparseAdam", "AdamW"]
    assert [type(o).__name__ for o in optimisers(head, 1e-3, matrices="adamw")] == ["SparseAdam", "AdamW"]
    with pytest.raises(ValueError, match="choose muon or adamw"):
        optimisers(head, 1e-3, matrices="sgd")


def test_heads_that_a_tree_cannot_replace_are_refused():
    with pytest.raises(ValueError, match="changes the scores of its output matrix"):
        check_head(opened("gemma2"))
    with pytest.raises(ValueError, match="has no output matrix"):
        check_head(_headless())
    model, head = made(sparse=True)
    with pytest.raises(ValueError, match="moves every row"):
        HeadTask(model, head, kl=1.0)
    assert isinstance(model.parts.head, nn.Linear)


def _headless():
    from transformers import BertConfig, BertModel

    from regraft.model.load import load

    torch.manual_seed(0)
    sizes = dict(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, vocab_size=60
    )
    return load(BertModel(BertConfig(**sizes)).eval(), pack=False)
