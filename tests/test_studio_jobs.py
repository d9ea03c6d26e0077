"""Jobs of a studio: the queue, the worker, what it says; grafts switched on and off; the command itself."""

from __future__ import annotations

import asyncio
import io
import json
import re
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

import regraft
from regraft.cli.main import app
from regraft.core.tolerance import gap
from regraft.data.generation import Sampling, write_on
from regraft.studio import studio_state, worker
from regraft.studio.job_queue import Jobs
from regraft.studio.limits import Limits, RefusedError
from regraft.studio.places import Places
from regraft.studio.port import names_of
from regraft.studio.readings import StaleError
from regraft.studio.run_pictures import pictures_of_sweeps
from regraft.studio.studio_state import Studio

LIMITS = Limits()
FEW = {"count": 2, "tokens": 2}


def queue(tmp_path, monkeypatch, limits=LIMITS):
    """A queue whose jobs wait."""
    monkeypatch.setattr(Jobs, "_go_on", lambda self: None)
    return Jobs(Places(tmp_path), limits, lambda: None)


def test_a_full_queue_takes_no_more_and_a_cancelled_job_makes_room(tmp_path, monkeypatch):
    jobs = queue(tmp_path, monkeypatch, Limits(queued=2))
    made = [jobs.submit("knockout", "specimen:gpt2", {}) for _ in range(2)]
    assert made[0].out != made[1].out
    with pytest.raises(RefusedError, match="2 experiments wait already"):
        jobs.submit("knockout", "specimen:gpt2", {})
    jobs.cancel(0)
    assert made[0].state == "stopped"
    jobs.submit("knockout", "specimen:gpt2", {})
    for number in (0, 99, -1):
        with pytest.raises(RefusedError, match="nothing to cancel"):
            jobs.cancel(number)
    jobs = queue(tmp_path, monkeypatch)
    with pytest.raises(RefusedError, match="no experiment"):
        jobs.submit("nonsense", "specimen:gpt2", {})
    with pytest.raises(RefusedError, match="outside"):
        jobs.submit("knockout", "/etc", {})


def test_what_is_left_of_a_job_is_told_from_how_it_went_so_far(tmp_path, monkeypatch):
    job = queue(tmp_path, monkeypatch).submit("knockout", "specimen:gpt2", {})
    assert job.left(5.0) is None
    job.state, job.began, job.done, job.total = "running", 10.0, 25, 100
    assert job.left(14.0) == 12.0
    assert job.share == 0.25


def test_a_job_cancelled_while_its_worker_begins_is_never_told_to_it(tmp_path, monkeypatch):
    jobs = Jobs(Places(tmp_path), LIMITS, lambda: None)

    async def begins():
        jobs.cancel(0)
        return SimpleNamespace()  # a worker that can be told nothing

    async def played():
        monkeypatch.setattr(jobs, "_worker", begins)
        job = jobs.submit("knockout", "specimen:gpt2", {})
        await jobs._going
        assert (job.state, job.sentence) == ("stopped", "cancelled before it began")

    asyncio.run(played())


def served(*jobs):
    """What a worker answers to some jobs."""
    answers = io.StringIO()
    worker.serve(io.StringIO("".join(json.dumps(job) + "\n" for job in jobs)), answers)
    return [json.loads(line) for line in answers.getvalue().splitlines()]


def told(out, number=0, **other):
    usual = {
        "experiment": "knockout",
        "model": "specimen:gpt2",
        "seed": 0,
        "settings": {"command": "knockout"},
    }
    return {"number": number, "out": str(out), "options": FEW, **usual, **other}


def test_a_worker_runs_one_after_the_other_and_says_how_each_ended(tmp_path, monkeypatch):
    opened = []
    kept = worker.load
    monkeypatch.setattr(worker, "load", lambda source: opened.append(source) or kept(source))
    first, again = told(tmp_path / "a"), told(tmp_path / "c", 2)
    wrong = told(tmp_path / "b", 1, options={**FEW, "mode": "sideways"})
    said = served(first, wrong, again)
    assert said[0] == {"state": "ready"}
    ends = {one["number"]: one for one in said if one.get("state") in ("done", "failed", "stopped")}
    assert [ends[n]["state"] for n in range(3)] == ["done", "failed", "done"]
    assert ends[1]["sentence"]
    assert any(one.get("total") == 1000 and one["work"] == "variants" for one in said)
    assert opened == ["specimen:gpt2"]
    assert regraft.open_run(tmp_path / "a").loss.equals(regraft.open_run(tmp_path / "c").loss)


def test_ctrl_c_stops_the_run_at_hand_and_the_next_one_goes(tmp_path, monkeypatch):
    runs = []

    def stopped(*words, **more):
        runs.append(words)
        if len(runs) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(worker, "run_kept", stopped)
    monkeypatch.setattr(worker, "load", lambda source: source)
    said = served(told(tmp_path / "a"), told(tmp_path / "b", 1))
    assert [one["state"] for one in said] == ["ready", "stopped", "done"]


def test_drawing_a_run_that_grows_takes_a_tenth_of_its_time(tmp_path, monkeypatch):
    clock, said = [0.0], []
    monkeypatch.setattr(worker.time, "monotonic", lambda: clock[0])
    grows = worker.Grows(lambda **words: said.append(words), tmp_path, lambda: None)

    def drawn():
        clock[0] += 3.0
        return []

    monkeypatch.setattr(grows, "_drawn", drawn)
    for _ in range(100):
        clock[0] += 1.0
        grows()
    assert 3 <= len(said) <= 1 + clock[0] * worker.SHARE / 3.0 + 1


def test_where_an_experiment_cannot_be_told_in_part_its_bare_numbers_are(tmp_path):
    model = regraft.load("specimen:gpt2")
    cells = [regraft.Route.skip(4, {block}) for block in range(4)]
    with regraft.keeping(tmp_path):
        result = regraft.sweep(model.record("It is dark"), cells, regraft.loss())
    (tmp_path / "run.json").write_text(json.dumps({"experiment": "it", "finished": False}), encoding="utf-8")

    def again():
        raise ValueError("not of a part")

    ((caption, figure),) = worker.Grows(lambda **words: None, tmp_path, again)._drawn()
    assert "4 of 4" in caption
    assert pictures_of_sweeps(regraft.open_run(tmp_path)) == [[caption, figure]]
    shown = torch.tensor(regraft.open_run(tmp_path).loss_0.values[:, 0])
    assert gap(shown, result.values["loss"][:, 0].double()) <= model.rounding


@pytest.mark.parametrize("whole", [True, False])
def test_a_text_is_heard_as_it_is_written_and_ends_where_nobody_wants_it(monkeypatch, whole):
    model, heard = regraft.load("specimen:gpt2"), []
    if not whole:
        monkeypatch.setattr("regraft.data.generation.GenerationMixin", str)  # a model that cannot generate
    ids = model.record("It is dark").ids_BT
    own = model.hf.generation_config
    (written,) = write_on(model, ids, Sampling(6), heard.append)
    assert heard == written
    assert len(written) == 6

    def stale(token):
        raise StaleError

    with pytest.raises(StaleError):
        write_on(model, ids, Sampling(6), stale)
    assert model.hf.generation_config is own


def test_models_and_pages_are_bounded_and_a_model_that_is_no_model_is_told(tmp_path, monkeypatch):
    async def nothing(change):
        return ""

    monkeypatch.setattr(
        studio_state, "Bench", lambda source, *rest: SimpleNamespace(source=source, ask=nothing)
    )

    async def played():
        studio = Studio(tmp_path, (), Limits(models=2, pages=1))
        await studio.open("specimen:gpt2")
        with pytest.raises(RefusedError, match="only model"):
            await studio.close("specimen:gpt2")
        await studio.open("specimen:qwen3")
        assert (await studio.open("specimen:gpt2")).source == "specimen:gpt2"
        with pytest.raises(RefusedError, match="2 models are open"):
            await studio.open("specimen:tuned")
        studio.came()
        with pytest.raises(RefusedError, match="1 pages are open"):
            studio.came()
        (tmp_path / "empty").mkdir()
        studio.benches.clear()
        with pytest.raises(ValueError, match="empty"):
            await studio.open("empty")
        assert studio.benches == {}

    asyncio.run(played())


def test_a_page_that_is_loaded_again_stops_nothing_and_the_last_one_everything(tmp_path, monkeypatch):
    left = []

    async def leave():
        left.append(1)

    async def played():
        studio = Studio(tmp_path)
        monkeypatch.setattr(studio.jobs, "leave", leave)
        monkeypatch.setattr(studio_state, "LOOKED_AWAY", 0.01)
        studio.came()
        studio.went()
        studio.came()
        await studio._leaving
        assert left == []
        studio.went()
        await studio._leaving
        assert left == [1]

    asyncio.run(played())


def test_who_listens_everywhere_is_called_by_each_of_its_addresses():
    assert names_of("127.0.0.1") == ("127.0.0.1", "localhost", "[::1]")
    assert names_of("10.1.2.3")[-1] == "10.1.2.3"
    everywhere = names_of("0.0.0.0")
    assert socket.gethostname() in everywhere
    assert "0.0.0.0" not in everywhere


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--model", "nowhere"], "nowhere"),
        (["--folder", "nowhere"], "--folder nowhere is no folder"),
        (["--port", "70000"], "write 0 to 65535"),
        (["--runs", "a-file"], "a-file"),
    ],
)
def test_what_the_command_cannot_do_is_told_before_anything_is_opened(tmp_path, monkeypatch, words, why):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a-file").write_text("", encoding="utf-8")
    found = CliRunner().invoke(app, ["studio", *words])
    assert found.exit_code in (1, 2)
    assert why in " ".join(found.output.split())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-file"]


def test_the_page_on_the_studio_tells_its_limits():
    page = Path("docs/studio.md").read_text(encoding="utf-8")
    told = dict(re.findall(r"(\d+) (tokens|waiting experiments|models at once)", page))
    assert told == {
        str(LIMITS.tokens): "tokens",
        str(LIMITS.queued): "waiting experiments",
        str(LIMITS.models): "models at once",
    }
