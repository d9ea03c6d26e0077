"""What a training run is held to beside its loss: the bound of its gradients, its random state, its rates,
files and windows."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from regraft.checkpoint.locate import CheckpointError
from regraft.data.windows import cut
from regraft.training import trainer as distill
from regraft.training.checkpointing import checkpoints, newest, restore, write_checkpoint
from regraft.training.distributed import average, mean_over
from regraft.training.optimizers import optimisers, set_rates
from regraft.training.sensitivity import Sensitivity
from regraft.training.tasks.embedding_task import (
    relative_error,
    warm_up,
)
from regraft.training.trainer import (
    NotANumberError,
    Plateau,
    TrainingPlan,
    _read_lines,
    _TrainingRun,
    clip,
    train,
    words_of,
)


class Graft(nn.Module):
    """A table, a matrix and a bias that are to reach fixed values; dropout draws random numbers at every
    step."""

    def __init__(self, drop=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.linear, self.drop = nn.Embedding(20, 6), nn.Linear(6, 6), nn.Dropout(drop)

    def forward(self, ids):
        return self.linear(self.drop(self.table(ids)))


class Task:
    """Squared distance from ones; behind it a measured number that is not trained on."""

    def __init__(self, graft):
        self.graft, self.root = graft, nn.Sequential(graft)

    def blocks(self):
        return []

    def losses(self, ids):
        self.graft.train()
        made = self.graft(ids)
        return {"distance": ((made - 1) ** 2).mean(), "_size": 100 * made.detach().abs().mean()}


def text(tokens=400, length=8):
    return cut(np.random.default_rng(0).integers(0, 20, tokens).astype(np.uint32), length)


def gradients(*values):
    found = [nn.Parameter(torch.zeros(len(v))) for v in values]
    for parameter, value in zip(found, values, strict=True):
        parameter.grad = torch.tensor(value)
    return found


def test_gradients_within_the_bound_are_left_as_they_are():
    for share in (1.0, 1e-7, 0.0):
        parameters = gradients([0.3 * share, 0.4 * share], [0.0, 1.2 * share])
        before = [p.grad.clone() for p in parameters]
        assert float(clip(parameters, 2.0)) == pytest.approx(1.3 * share)
        assert all(torch.equal(p.grad, old) for p, old in zip(parameters, before, strict=True)), (
            "nothing is made larger"
        )


def test_gradients_beyond_the_bound_are_brought_down_to_it():
    parameters = [*gradients([3.0, 4.0], [0.0, 12.0]), nn.Parameter(torch.zeros(2))]
    assert float(clip(parameters, 0.5)) == pytest.approx(13.0)
    assert torch.allclose(parameters[0].grad, torch.tensor([3.0, 4.0]) * 0.5 / 13)
    assert math.hypot(*(float(p.grad.norm()) for p in parameters[:2])) == pytest.approx(0.5, rel=1e-4)
    assert parameters[2].grad is None


@pytest.mark.parametrize(("bound", "length"), [(0.01, 0.01), (1e9, 5.0)])
def test_a_step_is_taken_with_gradients_no_longer_than_the_plans_bound(bound, length):
    """By plain descent at rate 1, which moves the parameters by exactly what the gradient is."""
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([3.0, 4.0])
    optimiser = torch.optim.SGD([parameter], lr=1.0)
    accelerator = SimpleNamespace(scaler=None, num_processes=1)
    _TrainingRun(None, text(), TrainingPlan(clip=bound), None, accelerator, [optimiser])._apply(
        [parameter], 0, []
    )
    assert float(parameter.detach().norm()) == pytest.approx(length, rel=1e-4)
    assert parameter.grad is None


def test_a_run_that_is_continued_draws_the_random_numbers_that_it_would_have_drawn(tmp_path):
    class BreakError(Exception):
        pass

    def stop(step):
        if step == 4:
            raise BreakError

    plan = TrainingPlan(steps=9, batch=2, warmup=2, save_every=3)
    torch.manual_seed(5)
    whole = Graft(drop=0.5)
    log = train(Task(whole), text(), plan, tmp_path / "whole")
    with pytest.raises(BreakError):
        train(Task(Graft(drop=0.5)), text(), plan, tmp_path / "broken", watch=stop)
    again = Graft(drop=0.5)
    torch.manual_seed(123)
    went_on = train(Task(again), text(), plan, tmp_path / "broken")
    assert [line["distance"] for line in went_on[3:]] == [line["distance"] for line in log[3:]]
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), again.parameters(), strict=True))
    assert len({round(line["distance"], 6) for line in log}) == 9


def stepped(graft, found, seed):
    torch.manual_seed(seed)
    for _ in range(3):
        for optimiser in found:
            optimiser.zero_grad()
        Task(graft).losses(torch.arange(20))["distance"].backward()
        for optimiser in found:
            optimiser.step()


def test_a_checkpoint_holds_weights_optimisers_random_state_and_scale(tmp_path):
    graft = Graft()
    found = optimisers(graft, 1e-2)
    stepped(graft, found, 1)
    scaler = torch.amp.GradScaler("cpu", init_scale=512.0)
    scaler.scale(torch.ones(()))
    random = torch.get_rng_state()
    path = write_checkpoint(tmp_path, 3, graft, found, scaler)
    stepped(graft, found, 2)
    wanted = torch.cat([p.detach().flatten() for p in graft.parameters()])
    other, its_scaler = Graft(), torch.amp.GradScaler("cpu", init_scale=2.0)
    others = optimisers(other, 1e-2)
    torch.manual_seed(77)
    assert restore(path, other, others, its_scaler) == 3
    assert torch.equal(torch.get_rng_state(), random)
    assert its_scaler.get_scale() == 512.0
    stepped(other, others, 2)
    assert torch.equal(torch.cat([p.detach().flatten() for p in other.parameters()]), wanted)
    fresh = Graft()
    fresh.load_state_dict(
        {
            n.removeprefix("graft."): t
            for n, t in load_file(path / "state.safetensors").items()
            if "graft." in n
        }
    )
    stepped(fresh, optimisers(fresh, 1e-2), 2)
    assert not torch.allclose(
        torch.cat([p.detach().flatten() for p in fresh.parameters()]), wanted, atol=1e-5
    )
    restore(path, Graft(), others, None)


def test_one_checkpoint_stands_and_only_whole_ones_count(tmp_path):
    graft = Graft()
    found = optimisers(graft, 1e-2)
    assert newest(tmp_path) is None
    for step in (2, 10, 9):
        write_checkpoint(tmp_path, step, graft, found)
        assert [path.name for path in checkpoints(tmp_path)] == [f"step-{step:07d}"]
    write_checkpoint(tmp_path, 9, graft, found)
    (tmp_path / "step-0000050").mkdir()
    assert newest(tmp_path).name == "step-0000009", "a folder without its numbers is not whole"
    (tmp_path / "step-0000030").mkdir()
    (tmp_path / "step-0000030" / "state.json").write_text("{}")
    assert newest(tmp_path).name == "step-0000030"
    (tmp_path / "step-0000009" / "state.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="damaged"):
        restore(tmp_path / "step-0000009", graft, found)


def test_the_rate_rises_in_a_line_and_falls_as_half_a_cosine():
    plan = TrainingPlan(steps=110, warmup=10)
    assert [plan.scale(step) for step in range(10)] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert plan.scale(10) == 1.0
    assert plan.scale(60) == pytest.approx(0.5)
    assert plan.scale(35) == pytest.approx(0.5 + math.sqrt(0.125))
    assert plan.scale(110) == pytest.approx(0.0)
    assert TrainingPlan(steps=5, warmup=5).scale(5) == 1.0
    assert TrainingPlan(steps=3, warmup=0).scale(0) == 1.0


def test_rates_are_shares_of_each_optimisers_highest():
    graft = Graft()
    found = optimisers(graft, 0.01, weight_decay=0.25)
    assert [type(o).__name__ for o in found] == ["Muon", "AdamW"]
    for scale in (0.5, 0.5, 1.0):
        set_rates(found, scale)
        assert [group["lr"] for o in found for group in o.param_groups] == pytest.approx(
            [0.05 * scale, 0.01 * scale]
        )
    assert [group["weight_decay"] for o in found for group in o.param_groups] == [0.25, 0.25]
    graft.linear.requires_grad_(False)
    assert [type(o).__name__ for o in optimisers(graft, 0.01)] == ["AdamW"]


@pytest.mark.parametrize("name", ["patience", "rate", "warmup", "clip", "weight_decay"])
def test_a_plan_of_less_than_nothing_is_refused(name):
    for wrong in (-1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"{name} is {wrong}: write 0 or more"):
            TrainingPlan(**{name: wrong})
    TrainingPlan(**{name: 0})


@pytest.mark.parametrize("wrong", [dict(steps=0), dict(batch=0), dict(accumulate=0), dict(save_every=0)])
def test_a_plan_with_nothing_to_do_is_refused(wrong):
    with pytest.raises(ValueError, match="at least one"):
        TrainingPlan(**wrong)
    TrainingPlan(**{name: 1 for name in wrong})


def stalled(losses, patience):
    """By its definition, over the whole history: the lowest mean of 20 steps is so many steps back."""
    smooth = [np.mean(losses[max(0, end - 20) : end]) for end in range(1, len(losses) + 1)]
    return 0 < patience <= len(smooth) - 1 - int(np.argmin(smooth))


def stops(losses, patience):
    plateau = Plateau(patience)
    return [plateau.reached(loss) for loss in losses]


def test_patience_counts_from_the_lowest_smoothed_loss():
    assert stops([1.0] * 4, 3) == [False, False, False, True]
    falling = [100.0 - i for i in range(60)]
    assert not any(stops(falling, 1))
    level = [*falling, *([45.0] * 30)]
    assert stops(level, 15)[-1], (
        "the last 20 losses have their lowest mean 15 steps behind the turn from 41 to 45"
    )
    assert not stops(level, 16)[-1]
    assert not any(stops(level, 0)), "no patience is asked for: it never stops"


@pytest.mark.parametrize("patience", [1, 5, 30])
def test_patience_step_by_step_is_that_of_the_whole_history(patience):
    draw = np.random.default_rng(patience)
    losses = [round(float(value), 2) for value in 3 - np.linspace(0, 1, 90) + draw.normal(0, 0.3, 90)]
    assert stops(losses, patience) == [stalled(losses[: n + 1], patience) for n in range(len(losses))]


@pytest.mark.parametrize(
    ("own", "fine", "kept"), [(0, True, "not-a-number-3-1"), (1, False, "not-a-number-3-1")]
)
def test_of_several_processes_the_one_without_a_number_keeps_its_batch(
    own, fine, kept, tmp_path, monkeypatch
):
    """Not the first one, whose batch was fine."""
    other = torch.tensor([[7, 8]])
    many = SimpleNamespace(
        num_processes=2, process_index=own, is_main_process=own == 0, wait_for_everyone=lambda: None
    )
    monkeypatch.setattr(distill, "mean_over", lambda value, accelerator: 0.5)
    if own == 0:
        save_file({"ids": other}, tmp_path / "not-a-number-3-1.safetensors")
    run = _TrainingRun(None, None, TrainingPlan(), tmp_path, many, [])  # type: ignore[arg-type]
    words = (
        rf"{'the loss of another process is no number' if fine else 'the loss is nan'} at step 3: its batch"
        rf" is kept as {kept}"
    )
    with pytest.raises(NotANumberError, match=words):
        run._stop_unless(
            torch.tensor(fine), "the loss is nan", 3, [other] if own else [torch.tensor([[5, 6]])]
        )
    assert [file.stem for file in tmp_path.iterdir()] == [kept]
    assert torch.equal(load_file(tmp_path / f"{kept}.safetensors")["ids"], other)


def test_a_log_is_read_up_to_the_checkpoint(tmp_path):
    file = tmp_path / "log.jsonl"
    assert _read_lines(file, 5) == []
    file.write_text(
        "".join(json.dumps({"step": i, "loss": 1.0}) + "\n" for i in range(4)) + '{"step": 0, "lo'
    )
    assert [line["step"] for line in _read_lines(file, 3)] == [0, 1, 2]


def test_a_step_is_told_with_its_parts():
    line = {"step": 4, "distance": 0.25, "loss": 1.5, "agreement": 0.5, "tokens_per_second": 1234.0}
    assert words_of(line) == "loss 1.500 (distance 0.250), same token 50%, 1,234 tokens/s"
    assert "same token" not in words_of({name: value for name, value in line.items() if name != "agreement"})


def test_parts_of_several_batches_are_means_and_measured_ones_are_not_trained_on(tmp_path):
    graft = Graft()
    with torch.no_grad():
        ids = [text().batch(number, 2) for number in (0, 1)]
        parts = [Task(graft).losses(some) for some in ids]
    (line,) = train(
        Task(graft), text(), TrainingPlan(steps=1, batch=2, accumulate=2, warmup=0, save_every=1), tmp_path
    )
    assert line["distance"] == pytest.approx(np.mean([float(part["distance"]) for part in parts]), rel=1e-5)
    assert line["size"] == pytest.approx(np.mean([float(part["_size"]) for part in parts]), rel=1e-5)
    assert line["loss"] == pytest.approx(line["distance"], rel=1e-6)
    assert line["tokens_per_second"] > 0
    assert (tmp_path / "step-0000001").is_dir()


def test_checkpoints_are_written_every_so_many_steps_and_at_the_end(tmp_path):
    seen = []
    train(
        Task(Graft()),
        text(),
        TrainingPlan(steps=5, batch=1, warmup=1, save_every=2),
        tmp_path,
        watch=lambda s: seen.append(newest(tmp_path)),
    )
    assert [path and int(path.name[5:]) for path in seen] == [None, 2, 2, 4, 5]


def test_one_process_is_its_own_mean():
    parameter = gradients([1.0, 2.0])[0]
    average([parameter], SimpleNamespace(num_processes=1))
    assert parameter.grad.tolist() == [1.0, 2.0]
    assert mean_over(3.5, SimpleNamespace(num_processes=1)) == 3.5


def test_a_warm_up_draws_tokens_by_how_often_they_occur_where_that_is_known():
    table, seen = torch.randn(20, 6, generator=torch.Generator().manual_seed(0)), []

    class Heard(Graft):
        def forward(self, ids):
            seen.append(ids)
            return super().forward(ids)

    felt = Sensitivity(torch.eye(6), torch.tensor([8 if i < 10 else 0 for i in range(20)]))
    for metric, share in ((None, 0.5), (felt, 0.75)):
        seen.clear()
        graft = Heard()
        errors = warm_up(graft, table, 300, metric, batch=6, rate=1e-2)
        assert {len(ids) for ids in seen} == {6}
        assert all(len(ids.unique()) == 6 for ids in seen)
        drawn_first = torch.stack([ids[0] for ids in seen])
        assert float((drawn_first < 10).float().mean()) == pytest.approx(share, abs=0.1)
        assert np.mean(errors[-20:]) < 0.5 * np.mean(errors[:20])
    first = warm_up(Graft(), table, 1, felt, batch=99)
    assert first[0] == pytest.approx(
        float(relative_error(Graft()(torch.arange(20)), table).detach()), rel=1e-4
    )
