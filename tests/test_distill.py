"""The trainer: a frozen trunk, runs that go on where they broke off, NaN, and the byte embedding that it
trains."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from regraft.core.interrupts import StoppedError
from regraft.core.tolerance import gap
from regraft.data.token_bytes import TokenBytes, token_bytes
from regraft.data.windows import cut
from regraft.model.load import load
from regraft.modules.byte_codes import byte_embedding, coded, cut_share
from regraft.modules.byte_embedding import ByteConfig, parameters
from regraft.modules.placement import placed, streams
from regraft.training.checkpointing import newest
from regraft.training.tasks.embedding_task import EmbeddingTask, relative_error, warm_up
from regraft.training.trainer import NotANumberError, TrainingPlan, only_trainable, train
from small import opened

SMALL = ByteConfig(group=4, byte_width=8, blocks=1, heads=2, neurons=16)
WORDS = [bytes([65 + i % 26, 97 + i // 26]) for i in range(90)]
TABLE = TokenBytes(
    (b"", b"", b"", *WORDS, b"", b"", b""),
    ("special",) * 3 + ("text",) * 90 + ("reserved",) * 3,
    "byte-level",
)


def made(name="llama", config=SMALL):
    model = opened(name)
    torch.manual_seed(0)
    return model, byte_embedding(TABLE, model.width, config)


def text(tokens=4000, length=16):
    return cut(np.random.default_rng(0).integers(3, 93, tokens).astype(np.uint32), length)


@pytest.mark.parametrize("readout", ["flatten", "pool"])
def test_each_token_alone(readout):
    """The vector of a token depends on its own bytes: not on its neighbours, not on padding, and on their
    order."""
    _, graft = made(config=ByteConfig(4, 8, 1, 2, 16, readout))
    ids = torch.tensor([[5, 9, 5], [70, 5, 0]])
    out = graft(ids)
    assert out.shape == (2, 3, 32)
    assert torch.equal(out[0, 0], out[0, 2])
    assert torch.allclose(out[0, 0], graft(torch.tensor([5]))[0], atol=1e-6)
    table = graft.table(rows=7)
    assert torch.allclose(table[ids], out, atol=1e-6)
    swapped = TokenBytes((b"ab", b"ba", b"ab"), ("text",) * 3, "byte-level")
    torch.manual_seed(0)
    two = byte_embedding(swapped, 32, ByteConfig(4, 8, 1, 2, 16, readout))(torch.arange(3))
    assert not torch.allclose(two[0], two[1])
    assert torch.allclose(two[0], two[2], atol=1e-6)
    with torch.no_grad():
        graft.bytes.weight[256] += 100.0
    assert torch.allclose(graft(ids), out, atol=1e-5), "padding is not seen"


def test_special_and_reserved_tokens_have_entries_of_their_own():
    _, graft = made()
    assert graft.own.num_embeddings == 6
    assert torch.equal(graft(torch.tensor([0, 1, 2, 93, 94, 95])), graft.own.weight)
    codes, own = coded(TABLE, 4)
    assert codes[3].tolist() == [65, 97, 256, 256]
    assert own[:4].tolist() == [0, 1, 2, -1]
    long = TokenBytes((b"abcdefgh", b"abcd"), ("text", "text"), "byte-level")
    assert cut_share(long, 4) == 0.5
    assert coded(long, 4)[0].tolist() == [[97, 98, 99, 100]] * 2


def test_sizes_that_do_not_fit_are_refused():
    for config, sentence in (
        (ByteConfig(byte_width=10, heads=4), "4 heads do not divide"),
        (ByteConfig(neurons=0), "at least one"),
        (ByteConfig(group=12), "12 bytes side by side do not divide the model's width of 32: choose 8 or 16"),
    ):
        with pytest.raises(ValueError, match=sentence):
            byte_embedding(TABLE, 32, config)


def test_the_graft_takes_every_place_of_the_embedding_and_gives_it_back():
    model, graft = made("t5")
    old = model.parts.embedding
    every = dict(model.hf.named_modules(remove_duplicate=False))
    places = {
        n: m
        for n, m in every.items()
        if getattr(m, "weight", None) is old.weight and isinstance(m, nn.Embedding)
    }
    assert set(places) == {"shared", "encoder.embed_tokens", "decoder.embed_tokens"}
    with placed(model.hf, old, graft):
        assert all(model.hf.get_submodule(name) is graft for name in places)
        assert model.hf.lm_head.weight is old.weight, "a tied head keeps the matrix"
    assert all(model.hf.get_submodule(name) is module for name, module in places.items())
    with pytest.raises(ValueError, match="holds no such Linear"), placed(model.hf, nn.Linear(2, 2), graft):
        pass
    with pytest.raises(ValueError, match="there is no depth 9"), streams(model, [9]):
        pass


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "t5", "bert"])
def test_a_graft_that_is_the_table_itself_loses_nothing(name):
    """Teacher and student agree to the bit where the graft holds the original rows; a row moved shows in
    every part."""
    model, _ = made(name)
    same = nn.Embedding.from_pretrained(model.parts.embedding.weight.detach().clone())
    same.__class__ = type("Same", (nn.Embedding,), {})
    task = EmbeddingTask(model, _scaled(model, same))
    ids = text().batch(0, 2)
    parts = {part: value.detach() for part, value in task.losses(ids).items()}
    assert float(parts["hidden"]) < 1e-12
    assert float(parts["table"]) < 1e-12
    if "kl" in parts:
        assert abs(float(parts["kl"])) < 1e-6
        assert float(parts["_agreement"]) == 1
    with torch.no_grad():
        same.weight[ids[0, 0], :5] += 1.0
    moved = {part: value.detach() for part, value in task.losses(ids).items()}
    assert float(moved["hidden"]) > 1e-4
    assert float(moved["table"]) > 1e-4


def _scaled(model, same):
    """Some models scale inside their embedding module: the copy must do so too."""
    scale = getattr(model.parts.embedding, "embed_scale", None)
    if scale is None:
        return same

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = same

        def forward(self, ids):
            return self.inner(ids) * scale

    return Scaled()


def test_training_lowers_the_loss_and_leaves_the_trunk_alone(tmp_path):
    model, graft = made()
    before = {name: p.detach().clone() for name, p in model.hf.named_parameters()}
    own = {name: p.detach().clone() for name, p in graft.named_parameters()}
    errors = warm_up(graft, model.parts.embedding.weight.detach(), 60, batch=96)
    assert errors[-1] < 0.9 * errors[0]
    log = train(EmbeddingTask(model, graft), text(), TrainingPlan(steps=40, batch=4, warmup=5), tmp_path)
    assert np.mean([line["loss"] for line in log[-5:]]) < 0.9 * log[0]["loss"]
    assert all(torch.equal(p, before[name]) for name, p in model.hf.named_parameters())
    assert all(p.requires_grad for p in model.hf.parameters())
    assert not any(
        torch.equal(p, own[name]) for name, p in graft.named_parameters() if "over_bytes" not in name
    )
    assert {"hidden", "kl", "table", "agreement", "loss", "tokens_per_second", "step"} == set(log[0])


def test_a_trunk_that_changes_is_caught():
    model, graft = made()
    with pytest.raises(AssertionError, match="frozen trunk"), only_trainable(model.hf, graft):
        model.blocks[0].module.mlp.up_proj.weight.data[0, 0] += 1e-6
    with (
        pytest.raises(AssertionError, match="was written to"),
        only_trainable(model.hf, graft),
        torch.no_grad(),
    ):
        model.blocks[0].module.mlp.up_proj.weight.mul_(1.0)


PLAN = TrainingPlan(steps=12, batch=2, warmup=2, save_every=4)


def test_a_run_that_breaks_off_ends_with_the_same_weights(tmp_path):
    class BreakError(Exception):
        pass

    def stop(step):
        if step == 6:
            raise BreakError

    model, graft = made()
    whole = train(EmbeddingTask(model, graft), text(), PLAN, tmp_path / "whole")
    wanted = {name: p.detach().clone() for name, p in graft.named_parameters()}
    model, graft = made()
    with pytest.raises(BreakError):
        train(EmbeddingTask(model, graft), text(), PLAN, tmp_path / "broken", watch=stop)
    assert newest(tmp_path / "broken").name == "step-0000004"
    model, graft = made()
    torch.manual_seed(99)
    again = train(EmbeddingTask(model, graft), text(), PLAN, tmp_path / "broken")
    assert all(torch.equal(p, wanted[name]) for name, p in graft.named_parameters())
    assert [line["loss"] for line in again] == [line["loss"] for line in whole]
    lines = (tmp_path / "broken" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(12)), "no step is logged twice"
    with pytest.raises(ValueError, match="holds a run with another plan"):
        train(EmbeddingTask(model, graft), text(), TrainingPlan(steps=13), tmp_path / "broken")


def test_ctrl_c_lets_the_step_end_and_keeps_it(tmp_path):
    """Of a run that nobody stopped the same weights; the step at which it came is not run twice."""

    def stop(step):
        if step == 5:
            os.kill(os.getpid(), signal.SIGINT)

    model, graft = made()
    train(EmbeddingTask(model, graft), text(), PLAN, tmp_path / "whole")
    wanted = {name: p.detach().clone() for name, p in graft.named_parameters()}
    model, graft = made()
    with pytest.raises(
        StoppedError, match=r"stopped behind step 7 of 12, which is kept in .*: the same command goes on"
    ):
        train(EmbeddingTask(model, graft), text(), PLAN, tmp_path / "stopped", watch=stop)
    assert newest(tmp_path / "stopped").name == "step-0000007"
    model, graft = made()
    torch.manual_seed(99)
    train(EmbeddingTask(model, graft), text(), PLAN, tmp_path / "stopped")
    assert all(torch.equal(p, wanted[name]) for name, p in graft.named_parameters())
    lines = (tmp_path / "stopped" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(12))


ANYWHERE = replace(PLAN, matrices="adamw")


def made_double():
    model, graft = made()
    model.hf.double()
    return model, graft.double()


KILLED = """
import sys; sys.path.insert(0, {tests!r})
import torch; torch.set_num_threads(1)
from test_distill import *
from other_library import as_here
model, graft = made_double()
with as_here():
    show = lambda s: print(s, flush=True)
    train(EmbeddingTask(model, graft), text(), ANYWHERE, Path({folder!r}), watch=show)
torch.save(None, "/dev/null")
"""


@pytest.mark.slow
def test_a_run_that_is_killed_at_any_moment_ends_with_the_same_weights(tmp_path):
    """Killed with -9 three times, at whatever it was doing; then run to its end.

    In float64 and without Muon, whose steps in half precision make the last bits grow: what the kernels of
    another process change stays below 1e-9 (a library with other sums: 1e-12), and a step more or less makes
    1e-4.
    """
    tests = str(Path(__file__).parent)
    model, graft = made_double()
    train(EmbeddingTask(model, graft), text(), ANYWHERE, tmp_path / "whole")
    wanted = load_file(newest(tmp_path / "whole") / "state.safetensors")
    code = KILLED.format(tests=tests, folder=str(tmp_path / "killed"))
    for last in ("2", "5", "9"):
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
            for line in process.stdout:
                if line.strip() == last:
                    os.kill(process.pid, signal.SIGKILL)
                    break
        assert process.returncode == -signal.SIGKILL, f"it ended by itself before step {last}"
    model, graft = made_double()
    train(EmbeddingTask(model, graft), text(), ANYWHERE, tmp_path / "killed")
    found = load_file(newest(tmp_path / "killed") / "state.safetensors")
    assert set(found) == set(wanted)
    apart = {name: gap(found[name].double(), wanted[name].double()) for name in wanted if name != "random"}
    assert max(apart.values()) <= 1e-9, apart
    lines = [json.loads(line) for line in (tmp_path / "killed" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(12)), "no step is logged twice"


def test_not_a_number_stops_with_its_batch(tmp_path):
    model, graft = made()

    class Poisoned(EmbeddingTask):
        def losses(self, ids_BT):
            parts = dict(super().losses(ids_BT))
            self.calls = getattr(self, "calls", 0) + 1
            return {**parts, "kl": parts["kl"] * float("nan")} if self.calls == 3 else parts

    with pytest.raises(
        NotANumberError, match=r"the loss is nan at step 2: its batch is kept as not-a-number-2\.safetensors"
    ):
        train(Poisoned(model, graft), text(), PLAN, tmp_path)
    assert torch.equal(load_file(tmp_path / "not-a-number-2.safetensors")["ids"], text().batch(2, 2))
    assert all(p.requires_grad for p in model.hf.parameters()), "the model is given back even so"


def test_accumulation_is_one_larger_batch(tmp_path, monkeypatch):
    """The gradient that the optimiser is given, of one batch of four and of two batches of two."""
    gradients = []
    step = torch.optim.AdamW.step

    def keep(self, *args, **kwargs):
        gradients.append(
            torch.cat([p.grad.flatten().clone() for group in self.param_groups for p in group["params"]])
        )
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", keep)
    for name, plan in (
        ("one", TrainingPlan(steps=1, batch=4, clip=1e9)),
        ("two", TrainingPlan(steps=1, batch=2, accumulate=2, clip=1e9)),
    ):
        model, graft = made()
        task = EmbeddingTask(model, graft)
        task.losses = lambda ids, task=task: {"kl": EmbeddingTask.losses(task, ids)["kl"]}
        train(task, text(), plan, tmp_path / name)
    one, two = gradients
    assert float(one.norm()) > 0
    assert float((one - two).norm() / one.norm()) < 1e-5


def test_a_loss_that_does_not_fall_stops_early(tmp_path):
    model, graft = made()
    task = EmbeddingTask(model, graft)
    task.losses = lambda ids: {"flat": (graft(ids) * 0).sum() + 1}
    log = train(task, text(), TrainingPlan(steps=100, patience=7), tmp_path)
    assert len(log) == 8


def test_the_specimens_vocabulary_fits():
    model = load("specimen:qwen3")
    table = token_bytes(model.tokenizer, model.table_rows)
    graft = byte_embedding(table, model.width, ByteConfig(group=12))
    assert cut_share(table, 12) < 0.01
    assert parameters([graft]) < 0.5 * model.parts.embedding.weight.numel()
    assert float(relative_error(graft.table(), model.parts.embedding.weight.detach())) > 0.9
