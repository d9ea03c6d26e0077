"""What a training run is held to: one origin, finite gradients, one scale for all optimisers, sparse rows
clipped."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from regraft.data.windows import cut
from regraft.training.optimizers import optimisers
from regraft.training.tasks.embedding_task import EmbeddingTask
from regraft.training.tasks.head_task import HeadTask
from regraft.training.trainer import NotANumberError, TrainingPlan, _TrainingRun, clip, train
from test_distill import made, text
from test_head_task import made as made_head

PLAN = TrainingPlan(steps=6, batch=2, warmup=2, save_every=2)


def test_a_run_goes_on_with_its_own_model_text_and_start_only(tmp_path):
    model, graft = made()
    train(EmbeddingTask(model, graft), text(), PLAN, tmp_path, origin={"model": "a"})
    for other_text, origin, said in (
        (text(), {"model": "b"}, "another origin"),
        (text(tokens=3000), {"model": "a"}, "another text"),
    ):
        with pytest.raises(ValueError, match=said):
            train(EmbeddingTask(model, graft), other_text, PLAN, tmp_path, origin=origin)
    before = (tmp_path / "plan.json").read_text()
    with pytest.raises(ValueError, match="another plan"):
        train(
            EmbeddingTask(model, graft),
            text(),
            TrainingPlan(steps=9, batch=2),
            tmp_path,
            origin={"model": "a"},
        )
    assert (tmp_path / "plan.json").read_text() == before
    for wrong in (dict(steps=0), dict(batch=0), dict(accumulate=0)):
        with pytest.raises(ValueError, match="at least one step"):
            TrainingPlan(**wrong)


def test_a_gradient_without_a_number_stops_before_it_is_applied(tmp_path):
    model, graft = made()

    class Poisoned(EmbeddingTask):
        def losses(self, ids_BT):
            parts = dict(super().losses(ids_BT))
            self.calls = getattr(self, "calls", 0) + 1
            if self.calls == 2:
                place = self.graft.places
                parts["table"] = parts["table"] + (place - place.detach()).abs().sum().sqrt()
            return parts

    with pytest.raises(NotANumberError, match=r"the gradient's norm is (nan|inf) at step 1"):
        train(Poisoned(model, graft), text(), PLAN, tmp_path)
    assert (tmp_path / "not-a-number-1.safetensors").is_file()
    assert all(bool(torch.isfinite(p).all()) for p in graft.parameters())
    assert not list(tmp_path.glob("step-*"))


def test_clipping_takes_sparse_rows_into_the_norm():
    model, head = made_head()
    task = HeadTask(model, head)
    sum(task.losses(text().batch(0, 2)).values()).backward()
    parameters = [p for p in head.parameters() if p.grad is not None]
    dense = [p.grad.to_dense() if p.grad.is_sparse else p.grad.clone() for p in parameters]
    whole = math.sqrt(sum(float((g**2).sum()) for g in dense))
    alone = math.sqrt(sum(float((p.grad**2).sum()) for p in parameters if not p.grad.is_sparse))
    assert alone < 0.9 * whole
    assert float(clip(parameters, whole / 4)) == pytest.approx(whole, rel=1e-5)
    for parameter, before in zip(parameters, dense, strict=True):
        after = parameter.grad.to_dense() if parameter.grad.is_sparse else parameter.grad
        torch.testing.assert_close(after, before / 4, rtol=1e-4, atol=1e-8)


def test_one_scale_serves_all_optimisers():
    """In half precision gradients are divided by the scale once, whichever optimiser they belong to."""
    results = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=2.0**12)):
        model, head = made_head()
        accelerator = SimpleNamespace(scaler=scaler, num_processes=1)
        task = HeadTask(model, head)
        run = _TrainingRun(task, text(), PLAN, None, accelerator, optimisers(head, 1e-2))
        loss = sum(task.losses(text().batch(0, 2)).values())
        (loss if scaler is None else scaler.scale(loss)).backward()
        run._apply([p for p in head.parameters() if p.grad is not None], 0, [])
        results.append([p.detach().clone() for p in head.parameters()])
        assert scaler is None or scaler.get_scale() == 2.0**12
    for plain, scaled in zip(*results, strict=True):
        torch.testing.assert_close(plain, scaled, rtol=1e-4, atol=1e-6)


def test_a_short_last_batch_reads_what_was_not_read():
    found = cut(np.arange(96, dtype=np.uint32), 16)
    rows = torch.cat([found.rows(range(start, min(start + 4, 6))) for start in (0, 4)])
    assert sorted(rows[:, 0].tolist()) == [0, 16, 32, 48, 64, 80]
    assert torch.equal(found.batch(1, 3), found.rows(range(3, 6)))
    assert np.array_equal(found.counts(96), np.ones(96))


def test_a_parameter_without_dimensions_is_summed_too(tmp_path):
    model, graft = made()
    model.hf.register_parameter("scale", nn.Parameter(torch.tensor(2.0)))
    train(EmbeddingTask(model, graft), text(), PLAN, tmp_path)
