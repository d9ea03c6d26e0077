"""Reports that go on: stopped between chapters, killed at any moment, on a full disk, side by side."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest
import torch
from typer.testing import CliRunner

import regraft
from regraft.cli.main import app, prepared
from regraft.core.runs import open_run
from regraft.experiments import running
from regraft.experiments.observe import correlations
from regraft.reporting.chapter_inputs import Reading
from stores import alike, chunks

FEW_PROMPTS = Reading(count=2)
SHORT = (("completions", {}), ("lens", {}), ("knockout", {}), ("correlations", {}))
FEW = (
    "from regraft.reporting import build\n"
    "build.CHAPTERS = (('completions', {}), ('lens', {}), ('knockout', {}), ('patch', {}))\n"
    "from regraft.cli.main import main\nmain()\n"
)


def test_a_report_goes_on_with_its_chapters(tmp_path, monkeypatch):
    from regraft.reporting import build

    chapters = (("completions", {}), ("lens", {}), ("knockout", {}), ("swap", {}))
    monkeypatch.setattr(build, "CHAPTERS", chapters)
    model = regraft.load("specimen:gpt2")
    done, real = [], build.measured

    def heard(model, name, *words, **more):
        done.append(name)
        if name == "knockout" and done.count(name) == 1:
            raise KeyboardInterrupt
        return real(model, name, *words, **more)

    monkeypatch.setattr(build, "measured", heard)
    with pytest.raises(KeyboardInterrupt):
        regraft.report(model, tmp_path / "r", reading=FEW_PROMPTS)
    regraft.report(model, tmp_path / "r", reading=FEW_PROMPTS)
    assert done == ["completions", "lens", "knockout", "knockout", "swap"]
    assert not (tmp_path / "r" / build.BEGUN_CHAPTERS).exists()
    page = (tmp_path / "r" / "report.html").read_text()
    assert "Not measured yet" not in page
    regraft.report(model, tmp_path / "r", reading=FEW_PROMPTS)
    assert len(done) == 5, "finished chapters are read"
    regraft.report(model, tmp_path / "r", seed=3, reading=FEW_PROMPTS)
    assert len(done) == 9, "with another seed they are others"


def reporting(out, **more):
    words = ["report", "--model", "specimen:gpt2", "--count", "2", "--out", str(out)]
    return subprocess.Popen(
        [sys.executable, "-c", FEW, *words], env={**os.environ, **more}, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


@pytest.mark.slow
def test_a_report_killed_at_twenty_moments_ends_with_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setenv("REGRAFT_CACHE", str(tmp_path / "cache"))
    start = time.monotonic()
    whole = reporting(tmp_path / "whole")
    _, told = whole.communicate()
    assert whole.returncode == 0, told
    took, draw, killed = time.monotonic() - start, random.Random(5), 0
    for _ in range(60):
        child = reporting(tmp_path / "broken")
        with suppress(subprocess.TimeoutExpired):
            child.wait(draw.uniform(0.3, 0.8) * took)
        if child.poll() is None:
            killed += 1
            os.killpg(child.pid, signal.SIGKILL)
        child.communicate()
        if killed == 20:
            break
        if all(
            (tmp_path / "broken" / name / "result.zarr").is_dir() for name in ("lens", "knockout", "patch")
        ):
            shutil.rmtree(tmp_path / "broken" / draw.choice(["lens", "knockout", "patch"]))
    assert killed == 20
    last = reporting(tmp_path / "broken")
    _, told = last.communicate()
    assert last.returncode == 0, told
    for name in ("completions", "lens", "knockout", "patch"):
        stores = [chunks(tmp_path / which / name / "result.zarr") for which in ("broken", "whole")]
        assert stores[0] == stores[1], name
    assert "Not measured yet" not in (tmp_path / "broken" / "report.html").read_text()


IN_A_SMALL_DISK = """
set -u
mount -t tmpfs -o size=16k tmpfs "$1"
for size in 16k 48k 96k 160k 320k 64m; do
    mount -o remount,size=$size "$1"
    "$2" -m regraft knockout --model specimen:gpt2 --count 2 --out "$1/run" 2> "$3/told-$size" > /dev/null
    echo "$size $?" >> "$3/codes"
done
cp -r "$1/run" "$3/run"
"""


@pytest.mark.slow
def test_a_disk_that_is_really_full(tmp_path, monkeypatch):
    """A file system of a few pages, which grows until the run fits: told in a sentence, then gone on with."""
    monkeypatch.setenv("REGRAFT_CACHE", str(tmp_path / "cache"))
    names = [tmp_path / name for name in ("disk", "kept")]
    for folder in names:
        folder.mkdir()
    own = subprocess.run(["unshare", "-rm", "true"], check=False, capture_output=True)
    assert own.returncode == 0, f"this test mounts a file system of its own: {own.stderr.decode()}"
    words = ["sh", "-c", IN_A_SMALL_DISK, "sh", str(names[0]), sys.executable, str(names[1])]
    subprocess.run(["unshare", "-rm", *words], check=True)
    codes = dict(line.split() for line in (names[1] / "codes").read_text().splitlines())
    assert codes["16k"] == "1"
    assert codes["64m"] == "0", (names[1] / "told-64m").read_text()
    for size, code in codes.items():
        told = (names[1] / f"told-{size}").read_text()
        assert code == "0" or "No space left on device" in " ".join(told.split()), (size, told)
        assert "Traceback" not in told
    plain = [sys.executable, "-m", "regraft", "knockout", "--model", "specimen:gpt2", "--count", "2"]
    subprocess.run([*plain, "--out", str(tmp_path / "plain")], check=True, capture_output=True)
    assert chunks(names[1] / "run" / "result.zarr") == chunks(tmp_path / "plain" / "result.zarr")


class Copies:
    """What a cluster is to a report: other copies of the model that run a function, in any order."""

    def __init__(self, fails=()):
        self.copy, self.asked, self.fails = regraft.load("specimen:gpt2"), [], fails

    def each(self, function, jobs):
        for number, words in reversed(list(enumerate(jobs))):
            self.asked.append(words[0])
            yield number, None if words[0] in self.fails else function(self.copy, *words)


def test_chapters_side_by_side_make_the_same_report(tmp_path, monkeypatch):
    from regraft.reporting import build

    monkeypatch.setattr(build, "CHAPTERS", SHORT)
    monkeypatch.setattr(correlations, "SOURCES", ("lens", "spectra", "knockout", "swap"))
    model = regraft.load("specimen:gpt2")
    here, real = [], build.measured

    def heard(one, name, *words, **more):
        here.append((name, one is model))
        return real(one, name, *words, **more)

    monkeypatch.setattr(build, "measured", heard)
    regraft.report(model, tmp_path / "alone", reading=FEW_PROMPTS)
    here.clear()
    model, copies = regraft.load("specimen:gpt2"), Copies(fails=("lens",))
    regraft.report(model, tmp_path / "beside", reading=FEW_PROMPTS, cluster=copies)
    assert copies.asked == ["knockout", "lens", "completions"], "what is made of others is made here"
    assert here == [("knockout", False), ("completions", False), ("lens", True), ("correlations", True)]
    for name, _ in SHORT:
        mine, theirs = (open_run(tmp_path / which / name) for which in ("alone", "beside"))
        alike(mine, theirs)
    again = Copies()
    regraft.report(model, tmp_path / "beside", reading=FEW_PROMPTS, cluster=again)
    assert again.asked == [], "what is there is not asked for"
    assert "Not measured yet" not in (tmp_path / "beside" / "report.html").read_text()


def test_what_was_measured_elsewhere_is_not_measured_again():
    """What other chapters ask for is what came back from them."""
    model = regraft.load("specimen:gpt2")
    result = regraft.knockout(model, count=2)
    running.remember(model, "knockout", 0, {"count": 2}, result)
    assert running.measured(model, "knockout", 0, count=2) is result
    assert running.measured(model, "knockout", 0, count=2, mode="single") is result, "mode is single anyway"
    with torch.no_grad():
        model.blocks[0].branch("mlp").projection.weight.mul_(2)
    assert running.measured(model, "knockout", 0, count=2) is not result, "of other weights"


def test_a_report_shares_its_sweeps_with_other_devices(tmp_path, monkeypatch):
    from regraft.jobs import helping
    from regraft.reporting import build

    monkeypatch.setattr(build, "CHAPTERS", (("knockout", {}),))
    made, real = [], helping.Devices

    def counted(model, copies):
        made.append(len(copies))
        return real(model, copies)

    monkeypatch.setattr(helping, "Devices", counted)
    found = []
    for device in ("cpu", "cpu,cpu"):
        out = tmp_path / device.replace(",", "-")
        words = ["report", "--model", "specimen:gpt2", "--count", "2", "--device", device, "--out", str(out)]
        done = CliRunner().invoke(app, prepared(words))
        assert done.exit_code == 0, done.output
        found.append(open_run(out / "knockout"))
    assert made == [1]
    alike(*found)
