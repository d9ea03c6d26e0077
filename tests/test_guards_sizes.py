"""Guards: sums and schedules that a sign or a number one off would spoil. Truth: by hand."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from regraft.core.registry import experiments
from regraft.data.evaluation import evaluation
from regraft.data.windows import cut
from regraft.experiments.running import run_experiment
from regraft.jobs.head_jobs import MEASURED, loss_of
from regraft.model.load import load
from regraft.modules.tree_head import tree_head
from regraft.modules.trees import by_id
from regraft.sweeps.metrics import loss
from regraft.sweeps.recorded_layout import batch_rows
from regraft.sweeps.sweep import sweep
from regraft.sweeps.variants import Noise, Variant
from regraft.training.tasks import embedding_task
from regraft.training.tasks.head_task import states
from small import opened


def test_the_loss_of_a_tree_is_the_mean_of_its_windows_tokens():
    model = opened("llama")
    head = tree_head(by_id(model.vocabulary), model.width, 0)
    with torch.no_grad():
        head.rows.weight.normal_(generator=torch.Generator().manual_seed(0))
    text = cut(np.random.default_rng(0).integers(5, 90, 200).astype(np.uint32), 16)
    by_tree, by_head = loss_of(model, head, text)
    windows = [states(model, text.batch(number, 1)) for number in range(min(MEASURED, len(text)))]
    assert len(windows) > 1
    with torch.no_grad():
        hidden, following = (torch.cat(parts) for parts in zip(*windows, strict=True))
        wanted = -head.log_probability(hidden, following).mean()
        plain = nn.functional.cross_entropy(model.parts.head(hidden), following)
    assert by_tree == pytest.approx(float(wanted), rel=1e-5)
    assert by_head == pytest.approx(float(plain), rel=1e-5)


def test_a_warm_up_rises_for_fifty_steps_and_falls_to_the_end(monkeypatch):
    rates: list[float] = []
    monkeypatch.setattr(embedding_task, "set_rates", lambda found, share: rates.append(share))
    graft = nn.Embedding(9, 4)
    embedding_task.warm_up(graft, torch.randn(9, 4, generator=torch.Generator().manual_seed(0)), 80, batch=4)
    assert rates == pytest.approx([min(1.0, (step + 1) / 50) * (1 - step / 80) for step in range(80)])
    assert rates[49] == pytest.approx(1 - 49 / 80)


@pytest.mark.parametrize("seed", [0, 5])
def test_the_noise_of_an_experiment_is_that_of_its_seed(seed):
    model = load("specimen:gpt2", pack=False)
    given = {"levels": [0.3], "prompts": ["The capital of France is"], "tokens": 4}
    data = run_experiment(experiments()["noise"], model, seed, **given)
    text = evaluation(model, given["prompts"], 8, 4)
    edits = [Variant([Noise(f"{b}.resid_pre", 0.3, seed)]) for b in range(len(model.blocks))]
    wanted = sweep(text.recordings, edits, loss()).mean("loss")
    assert data.loss.values[:, 0] == pytest.approx(wanted.numpy(), abs=1e-5)


def test_rows_of_a_card_fill_half_of_what_is_free(monkeypatch):
    """Four times the widest layer's and eight times the stream's floats at each position; one row at
    least."""
    model = SimpleNamespace(
        device=torch.device("cuda"),
        hf=nn.Sequential(nn.Linear(8, 40), nn.Linear(8, 24)),
        width=8,
        dtype=torch.bfloat16,
    )
    recording = SimpleNamespace(model=model, prompts=3, taken=SimpleNamespace(stream=[torch.zeros(3, 5, 8)]))
    each = 15 * 4 * (40 + 64) * 2
    for free, rows in ((20 * each, 10), (20 * each - 2, 9), (10, 1)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 10**9))
        assert batch_rows(recording) == rows
