"""Runs that are kept as they are measured: killed at any moment, they go on and end with the same bytes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import regraft
from regraft.cli.main import app, prepared
from regraft.core import begun_runs
from regraft.core.begun_runs import LOCK, begun, finished, identity_of
from regraft.core.files import NotWrittenError, RunFolderError
from regraft.core.runs import open_run
from regraft.sweeps import kept_sweeps, shares
from regraft.sweeps.kept_sweeps import keeping
from regraft.sweeps.metrics import kl_to_clean, loss
from regraft.sweeps.provenance import opened_told, option_told
from regraft.sweeps.routes import Route
from regraft.sweeps.sweep import sweep
from regraft.sweeps.variants import Apply, Replace, Scale, Variant
from small import ids, opened
from stores import chunks

FEW = ["--model", "specimen:gpt2", "--prompts", "14 + 43 =", "The capital of France is", "--tokens", "4"]


def run(*words):
    return CliRunner().invoke(app, prepared(list(words)))


def variants(model, count=96):
    return [Variant([Scale(f"{n % 4}.mlp_out", 0.1 * n, n % 6)]) for n in range(count)]


def measured(model, recording, folder, count=96):
    with keeping(folder):
        return sweep(recording, variants(model, count), [loss(), kl_to_clean()])


def test_shares_give_what_all_together_give(tmp_path, monkeypatch):
    monkeypatch.setattr(shares, "variants_at_once", lambda recording: 40)
    model = opened("llama")
    recording = model.record([ids(7, 1), ids(6, 2)])
    together = sweep(recording, variants(model), [loss(), kl_to_clean()])
    for _ in range(2):  # measured, then read
        kept = measured(model, recording, tmp_path)
        for name in ("loss", "kl_to_clean"):
            torch.testing.assert_close(kept.values[name], together.values[name], rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(kept.clean[name], together.clean[name], rtol=1e-4, atol=1e-6)
            assert torch.equal(kept.weights[name], together.weights[name])
        assert kept.units == together.units
        assert kept.work.naive == together.work.naive + 2 * 4 * 2 * 7, "a control row for each share"


def test_what_is_kept_is_not_measured_again_and_what_is_damaged_is(tmp_path, monkeypatch):
    monkeypatch.setattr(shares, "variants_at_once", lambda recording: 40)
    model = opened("llama")
    recording = model.record([ids(7, 1)])
    whole = measured(model, recording, tmp_path)
    kept = chunks(tmp_path)
    asked = []
    real = shares._measured_here

    def heard(left, here, count):
        asked.extend(number for number, _ in left)
        return real(left, here, count)

    monkeypatch.setattr(shares, "_measured_here", heard)
    again = measured(model, recording, tmp_path)
    assert asked == []
    assert torch.equal(again.values["loss"], whole.values["loss"])
    store = tmp_path / kept_sweeps.STORE / "0000"
    harms = {
        "values/c/1/0/0": lambda raw: raw[:10] + bytes([raw[10] ^ 1]) + raw[11:],
        "parts/c/2/0/0/0": lambda raw: raw[:-3],
        "work/c/0/0": lambda raw: b"",
    }
    for place, harm in harms.items():
        file, number = store / place, int(place.split("/")[2])
        file.write_bytes(harm(file.read_bytes()))
        asked.clear()
        mended = measured(model, recording, tmp_path)
        assert asked == [number], place
        torch.testing.assert_close(mended.values["loss"], whole.values["loss"], rtol=1e-4, atol=1e-6)
        assert chunks(tmp_path).keys() == kept.keys()
    for gone in ("done/c/1", "values/c/0/0/0"):
        (store / gone).unlink()
        asked.clear()
        measured(model, recording, tmp_path)
        assert asked == [int(gone.split("/")[2])]
        assert chunks(tmp_path).keys() == kept.keys()


def test_another_sweep_in_the_same_place_begins_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(shares, "variants_at_once", lambda recording: 40)
    model = opened("llama")
    first, second = model.record([ids(7, 1)]), model.record([ids(7, 2)])
    measured(model, first, tmp_path)
    found = measured(model, second, tmp_path)
    plain = sweep(second, variants(model), [loss()])
    torch.testing.assert_close(found.values["loss"], plain.values["loss"], rtol=1e-4, atol=1e-6)


def test_other_values_in_the_same_place_begin_anew(tmp_path):
    """A run of one's own in Python has no command that would tell it from another."""
    model = opened("llama")
    recording = model.record([ids(7, 1)])
    ones, twos = torch.ones(model.width), torch.full((model.width,), 2.0)
    block, other = model.blocks[1].module, model.blocks[2].module

    def scaled(by):
        return Apply("1.mlp_out", lambda x: x * by)

    lists = [
        [Scale("1.mlp_out", 0.5)], [Scale("1.mlp_out", 0.7)], [Scale("2.mlp_out", 0.7)],
        [Scale("2.mlp_out", 0.7, 1)], [Replace("1.resid_pre", ones)], [Replace("1.resid_pre", twos)],
        [Route.replace(4, {0: block})], [Route.replace(4, {0: other})], [scaled(2.0)], [scaled(3.0)],
    ]  # fmt: skip
    for some in lists:
        with keeping(tmp_path):
            kept = sweep(recording, some, loss())
        torch.testing.assert_close(
            kept.values["loss"], sweep(recording, some, loss()).values["loss"], rtol=1e-4, atol=1e-6
        )


def test_the_division_is_that_which_the_run_began_with(tmp_path, monkeypatch):
    monkeypatch.setattr(shares, "variants_at_once", lambda recording: 40)
    model = opened("llama")
    recording = model.record([ids(7, 1)])
    measured(model, recording, tmp_path)
    monkeypatch.setattr(shares, "variants_at_once", lambda recording: 7)
    store = tmp_path / kept_sweeps.STORE / "0000"
    kept = chunks(tmp_path)
    (store / "done/c/1").unlink()
    measured(model, recording, tmp_path)
    assert chunks(tmp_path).keys() == kept.keys()
    assert len(list((store / "done/c").iterdir())) == 3


def test_a_run_that_is_not_finished_is_opened_with_what_it_has(tmp_path, monkeypatch):
    monkeypatch.setattr(shares, "variants_at_once", lambda recording: 40)
    model = opened("llama")
    recording = model.record([ids(7, 1)])
    with begun(tmp_path, {"a": 1}, {"experiment": "knockout"}):
        measured(model, recording, tmp_path)
    (tmp_path / kept_sweeps.STORE / "0000" / "done/c/1").unlink()
    data = open_run(tmp_path)
    assert data.attrs["finished"] == 0
    assert data["loss_0"].shape == (96, 1)
    assert data["loss_0"].attrs["units"] == "nats per token"
    assert np.isnan(data["loss_0"].values[:, 0]).nonzero()[0].tolist() == list(range(40, 80))


def test_the_command_prints_a_finished_run_and_refuses_another(tmp_path, monkeypatch):
    out = ["--out", str(tmp_path / "r")]
    first = run("knockout", *FEW, *out)
    assert first.exit_code == 0, first.output
    assert not (tmp_path / "r" / LOCK).exists()
    assert json.loads((tmp_path / "r" / "run.json").read_text())["finished"] is True
    monkeypatch.setattr(
        "regraft.jobs.experiment_job.run_experiment", lambda *words, **more: pytest.fail("it is run")
    )
    again = run("knockout", *FEW, *out)
    assert again.exit_code == 0, again.output
    assert "holds this run, finished: nothing was run" in " ".join(again.stdout.split())
    numbers = [line for line in first.stdout.splitlines() if line[:1].isdigit()]
    assert numbers == [line for line in again.stdout.splitlines() if line[:1].isdigit()]
    other = run("knockout", *FEW[:-1], "5", *out)
    assert other.exit_code in (1, 2)
    told = " ".join(other.stderr.split())
    assert "holds another run, with --tokens 4 where this one has 5" in told
    assert "--force" in told
    monkeypatch.undo()
    replaced = run("knockout", *FEW[:-1], "5", *out, "--force")
    assert replaced.exit_code == 0, replaced.output
    assert json.loads((tmp_path / "r" / "run.json").read_text())["told"]["--tokens"] == 5
    bare = run("knockout", *FEW, "--force")
    assert bare.exit_code == 2
    assert "name it with --out" in bare.stderr
    assert "force" not in (tmp_path / "r" / "run.yaml").read_text()


def test_what_a_file_holds_and_which_tokenizer_reads_belong_to_a_run(tmp_path):
    file = tmp_path / "pairs.json"
    file.write_text("one")
    first = option_told("TextFile", str(file))
    file.write_text("two")
    assert option_told("TextFile", str(file)) != first
    assert option_told("str", str(file)) == str(file)
    model = regraft.load("specimen:gpt2")
    own = opened_told(model, 0)
    model.tokenizer = SimpleNamespace(get_vocab=lambda: {"a": 0})
    assert opened_told(model, 0) != own
    assert {**opened_told(model, 0), "tokenizers": 0} == {**own, "tokenizers": 0}


def test_one_writer_a_folder(tmp_path):
    with begun(tmp_path, {"a": 1}, {}):
        with pytest.raises(RunFolderError, match=rf"process {os.getpid()} on .* writes to"):
            begun(tmp_path, {"a": 1}, {}).__enter__()
        assert (tmp_path / LOCK).is_file()
    assert not (tmp_path / LOCK).exists()
    me = {"pid": os.getpid(), "host": begun_runs.platform.node(), "started": begun_runs._started(os.getpid())}
    code = "import os; print(os.getpid())"
    gone = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for stale in ({**me, "pid": int(gone.stdout)}, {**me, "started": "1"}, "cut {"):
        (tmp_path / LOCK).write_text(stale if isinstance(stale, str) else json.dumps(stale))
        with begun(tmp_path, {"a": 1}, {}):
            assert json.loads((tmp_path / LOCK).read_text()) == me
    (tmp_path / LOCK).write_text(json.dumps({**me, "host": "elsewhere"}))
    with pytest.raises(RunFolderError, match=f"delete {LOCK} there"), begun(tmp_path, {"a": 1}, {}):
        pass


def test_identities():
    one = identity_of({"a": 1, "b": [2]})
    assert one == identity_of({"b": [2], "a": 1})
    assert one != identity_of({"a": 1, "b": [3]})


def test_a_run_of_another_identity_is_refused_with_what_differs(tmp_path):
    told = {"--count": 2, "--prompts": ["a"]}
    with begun(tmp_path, told, {"experiment": "x"}):
        pass
    assert finished(tmp_path, told) is False
    with pytest.raises(RunFolderError, match=r"with --count 2 where this one has 3: choose"):
        finished(tmp_path, {**told, "--count": 3})
    with pytest.raises(RunFolderError, match=r"with --count 2 where this one has none \(and --prompts\)"):
        finished(tmp_path, {})


SLOWED = (
    "import os, sys, time\n"
    "from regraft.sweeps import shares, kept_sweeps\n"
    "shares.variants_at_once = lambda recording: 16\n"
    "real = kept_sweeps.KeptSweep._array\n"
    "def slow(self, name):\n"
    "    time.sleep(float(os.environ.get('SLOW', '0')))\n"
    "    return real(self, name)\n"
    "kept_sweeps.KeptSweep._array = slow\n"
    "from regraft.cli.main import main\nmain()\n"
)
PATCH = ["patch", "--model", "specimen:gpt2", "--site", "resid_pre"]


def started(out, **more):
    """The command in a process of its own, which hears Ctrl-C also where the tests themselves do not."""
    environment = {**os.environ, **more}
    return subprocess.Popen(
        [sys.executable, "-c", SLOWED, *PATCH, "--out", str(out)], env=environment, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, start_new_session=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def killed_and_finished(tmp_path, moments, monkeypatch):
    """The same run unbroken, and killed so many times on its way."""
    monkeypatch.setenv("REGRAFT_CACHE", str(tmp_path / "cache"))
    whole = started(tmp_path / "whole")
    _, told = whole.communicate()
    assert whole.returncode == 0, told
    out, draw, killed = tmp_path / "broken", random.Random(5), 0
    for _ in range(moments):
        child = started(out, SLOW="0.02")
        until = time.monotonic() + 60
        while not (out / kept_sweeps.STORE).is_dir() and child.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.5))
        killed += child.poll() is None
        os.killpg(child.pid, signal.SIGKILL)
        child.communicate()
    last = started(out)
    _, told = last.communicate()
    assert last.returncode == 0, told
    return tmp_path / "whole", out, killed


@pytest.mark.slow
def test_a_run_killed_at_twenty_moments_ends_with_the_same_bytes(tmp_path, monkeypatch):
    whole, out, killed = killed_and_finished(tmp_path, 20, monkeypatch)
    assert killed >= 10
    assert chunks(out / "result.zarr") == chunks(whole / "result.zarr")


def test_ctrl_c_leaves_a_run_that_goes_on(tmp_path):
    child = started(tmp_path / "r", SLOW="1")
    while not (tmp_path / "r" / kept_sweeps.STORE).is_dir() and child.poll() is None:
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGINT)
    _, told = child.communicate()
    assert child.returncode == 130, told.decode()
    assert "keeps what was measured; the same command goes on from there" in told.decode()
    assert json.loads((tmp_path / "r" / "run.json").read_text())["finished"] is False
    assert not (tmp_path / "r" / LOCK).exists()


def test_a_full_disk_is_told_and_what_was_kept_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(shares, "variants_at_once", lambda recording: 40)
    model = opened("llama")
    recording = model.record([ids(7, 1)])
    real, count = kept_sweeps.KeptSweep._array, [0]

    def full(self, name):
        count[0] += name == "values"
        if count[0] > 1:
            raise OSError(28, "No space left on device")
        return real(self, name)

    with monkeypatch.context() as small:
        small.setattr(kept_sweeps.KeptSweep, "_array", full)
        with pytest.raises(NotWrittenError, match=r"written \(No space left on device\): make room"):
            measured(model, recording, tmp_path)
    kept = chunks(tmp_path)
    assert any("/done/c/0" in name for name in kept)
    found = measured(model, recording, tmp_path)
    plain = sweep(recording, variants(model), [loss()])
    torch.testing.assert_close(found.values["loss"], plain.values["loss"], rtol=1e-4, atol=1e-6)
