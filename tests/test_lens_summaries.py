"""What the lens says over depth, held to loops over single tokens; a tuned lens, from training to reading."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest
import torch

from families import FAMILIES
from regraft.checkpoint.locate import CheckpointError, NoCheckpointError
from regraft.core.registry import experiments
from regraft.data.windows import cut
from regraft.experiments.running import run_experiment
from regraft.export.lens_folder import LENS_ABOUT, open_lens, save_lens
from regraft.jobs.lens_job import fit_lens
from regraft.model.load import load
from regraft.modules.tuned_lens import TunedLens
from regraft.reporting.drawings import drawing_of
from regraft.training.tasks.lens_task import LensTask
from regraft.training.trainer import TrainingPlan, train
from small import opened

RUN = partial(run_experiment, experiments()["lens"])


@pytest.fixture(scope="module")
def model():
    return load("specimen:qwen3")


@pytest.fixture(scope="module")
def data(model):
    return RUN(model, count=4, tokens=10)


def test_every_depth_against_loops_over_tokens(data):
    rank = data["rank"].values
    for depth in range(data.sizes["depth"]):
        row = rank[depth].tolist()
        assert float(data.rank_median[depth]) == sorted(row)[len(row) // 2] or len(row) % 2 == 0
        assert float(data.rank_mean[depth]) == pytest.approx(sum(row) / len(row))
        for place, k in enumerate((1, 5, 10)):
            within = sum(value < k for value in row) / len(row)
            assert float(data.topk_accuracy[depth, place]) == pytest.approx(within)
            assert data.k.values[place] == k
    assert float(data.target_probability[3]) == pytest.approx(float(data.probability[3].mean()))
    assert float(data.entropy_mean[3]) == pytest.approx(float(data.entropy[3].mean()))
    assert float(data.topk_accuracy[-1, 0]) == 1.0, "greedy completions are first at the end"


def test_gain_and_both_hurt_rates(data):
    rank = data["rank"].values
    for block in range(data.sizes["block"]):
        pairs = list(zip(rank[block].tolist(), rank[block + 1].tolist(), strict=True))
        gain = sum(b == 0 for _, b in pairs) - sum(a == 0 for a, _ in pairs)
        assert float(data.accuracy_gain[block]) == pytest.approx(gain / len(pairs))
        near = sum(b > a and a < 100 for a, b in pairs) / len(pairs)
        assert float(data.hurt_rate_top100[block]) == pytest.approx(near)
    assert (data.hurt_rate_top100 <= data.hurt_rate).all()
    assert float(data.hurt_rate_top100[0]) < float(data.hurt_rate[0]), "tokens far away got worse, too"


def test_kinds_add_up_to_the_whole(data):
    """A census: every token is of one kind and of one category, and the parts' means are the whole's."""
    for by in ("type", "category"):
        counts = data[f"tokens_by_{by}"].values
        assert counts.sum() == data.sizes["token"]
        for name in ("rank_mean", "topk_accuracy", "target_probability", "entropy_mean"):
            parts, whole = data[f"{name}_by_{by}"].values, data[name].values
            assert np.allclose(np.tensordot(counts, parts, (0, 0)) / counts.sum(), whole, atol=1e-5), name


def test_prompts_and_settling(data):
    rank, prompt = data["rank"].values, data.prompt.values
    for number, row in enumerate(data.rank_by_prompt.values):
        assert np.allclose(row, np.log(1 + rank[:, prompt == number].mean(1)))
    first, within = data.first_top1.values, data.crystallization.values
    gap = np.nanmean(first) - np.nanmean(within)
    assert float(data.crystallization_gap) == pytest.approx(gap)
    assert float(data.crystallization_median) == np.nanmedian(within)
    assert float(data.crystallization_std) == pytest.approx(np.nanstd(within))


def test_divergence_from_the_end_ends_at_nothing(data):
    assert float(data.kl_mean[-1]) < 1e-6
    assert float(data.kl_mean[0]) > 1


def test_folded_figures_say_how_to_read_them(data):
    folded = drawing_of(data).folded(data)
    assert len(folded) == 12
    assert all(len(one.reading) > 20 for one in folded)


def text(length=16, high=93):
    return cut(np.random.default_rng(0).integers(3, high, 3000).astype(np.uint32), length)


def small_lens(model, steps, folder, seed=0):
    lens = TunedLens(len(model.main_blocks), model.width)
    plan = TrainingPlan(steps=steps, batch=4, rate=1e-2, warmup=2, save_every=50)
    return lens, train(LensTask(model, lens, positions=32, seed=seed), text(), plan, folder)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_a_fresh_lens_is_the_plain_one(name, tmp_path):
    model = opened(name)
    task = LensTask(model, TunedLens(len(model.main_blocks), model.width), positions=24)
    parts = task.losses(text().batch(0, 3))
    assert float(parts["kl"].detach()) == pytest.approx(float(parts["_plain"]), rel=1e-5)
    before = [t.clone() for t in model.hf.state_dict().values()]
    small_lens(model, 3, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(before, model.hf.state_dict().values(), strict=True))


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    """A lens of the specimen after a few steps on its almanac, as the command makes it."""
    out = tmp_path_factory.mktemp("lens")
    plan = TrainingPlan(steps=25, batch=2, rate=3e-3, warmup=3)
    said = fit_lens(model, out, plan=plan, positions=48, length=32)
    assert "Next: `regraft lens --tuned" in said
    return out


def test_training_brings_a_lens_nearer_to_the_end(folder):
    log = [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]
    assert log[0]["kl"] == pytest.approx(log[0]["plain"], rel=1e-4)
    assert np.mean([line["kl"] / line["plain"] for line in log[-5:]]) < 0.8


def test_a_run_that_was_broken_off_ends_with_the_lens_of_one_that_was_not(tmp_path):
    """Which places are read follows from the batch, not from how many were drawn before."""
    whole, _ = small_lens(opened("llama"), 8, tmp_path / "whole")

    class Stop(Exception):
        pass

    def stop(step):
        if step == 3:
            raise Stop

    model = opened("llama")
    plan = TrainingPlan(steps=8, batch=4, rate=1e-2, warmup=2, save_every=4)
    begun = TunedLens(len(model.main_blocks), model.width)
    with pytest.raises(Stop):
        train(LensTask(model, begun, positions=32), text(), plan, tmp_path / "parts", stop)
    again = TunedLens(len(model.main_blocks), model.width)
    train(LensTask(model, again, positions=32), text(), plan, tmp_path / "parts")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))


def test_the_loss_is_the_divergence_at_every_depth(tmp_path):
    """Held to full logits of the model and of each depth's stream through its own norm and head."""
    model = opened("llama")
    lens = TunedLens(len(model.main_blocks), model.width)
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in lens.parameters():
            parameter.copy_(0.05 * torch.randn(parameter.shape, generator=draw))
    ids = text().batch(0, 2)
    found = float(LensTask(model, lens, positions=10_000).losses(ids)["kl"].detach())
    with torch.no_grad():
        out = model.hf(input_ids=ids, output_hidden_states=True)
        end = out.logits.log_softmax(-1)
        wanted = []
        for depth in range(len(model.main_blocks)):
            h = out.hidden_states[depth]
            moved = h + lens.maps[depth](h)
            said = model.hf.lm_head(model.hf.model.norm(moved)).log_softmax(-1)
            wanted.append(float((end.exp() * (end - said)).sum(-1).mean()))
    assert found == pytest.approx(np.mean(wanted), rel=1e-4)


def test_a_lens_is_written_read_back_and_bound_to_its_model(tmp_path):
    model = opened("gpt2")
    lens, _ = small_lens(model, 12, tmp_path / "run")
    save_lens(lens, model, tmp_path / "lens", steps=12)
    again = open_lens(tmp_path, model)
    assert open_lens(tmp_path / "lens", model).depths == again.depths, "the command's own folder holds it"
    assert all(torch.equal(a, b) for a, b in zip(lens.parameters(), again.parameters(), strict=True))
    with pytest.raises(CheckpointError, match="a lens fits only the weights it was tuned on"):
        open_lens(tmp_path / "lens", opened("gpt2", seed=2))
    with pytest.raises(NoCheckpointError, match="holds no tuned lens: make one with `regraft tuned-lens`"):
        open_lens(tmp_path / "run", model)
    about = json.loads((tmp_path / "lens" / LENS_ABOUT).read_text())
    (tmp_path / "lens" / LENS_ABOUT).write_text(json.dumps({**about, "kind": "tree head"}))
    with pytest.raises(NoCheckpointError, match="describes none"):
        open_lens(tmp_path / "lens", model)


def test_reading_through_a_tuned_lens(model, data, folder, tmp_path):
    """A fresh lens reads what the plain one reads; a trained one is nearer to the end, drawn beside it."""
    save_lens(TunedLens(len(model.main_blocks), model.width), model, tmp_path / "fresh")
    same = RUN(model, count=4, tokens=10, tuned=str(tmp_path / "fresh"))
    assert (same.tuned_rank == same["rank"]).all()
    assert np.allclose(same.tuned_kl_mean, same.kl_mean, atol=1e-5)
    tuned = RUN(model, count=4, tokens=10, tuned=str(folder / "lens"))
    assert (tuned["rank"] == data["rank"]).all()
    assert float(tuned.tuned_kl_mean[1:-1].mean()) < 0.8 * float(tuned.kl_mean[1:-1].mean())
    assert float(tuned.tuned_kl_mean[-1]) == pytest.approx(float(tuned.kl_mean[-1]), abs=1e-6)
    assert len(drawing_of(tuned).folded(tuned)) == 14


def test_what_has_no_lens_to_tune_is_refused(tmp_path):
    for name in ("bert", "t5"):
        model = load(FAMILIES[name]().eval(), pack=False)
        with pytest.raises(ValueError, match="there is no lens to tune"):
            fit_lens(model, tmp_path / name)
        assert not (tmp_path / name).exists()


def test_a_choice_that_does_not_exist_is_refused_from_python():
    from regraft import contributions
    from regraft import load as opened_by

    with pytest.raises(ValueError, match="against='median' of contributions is not one of nothing, mean"):
        contributions(opened_by("specimen:gpt2"), against="median")
