"""Grafts and adapters in a studio: switched on, measured, told in Python, taken out, and what is refused."""

from __future__ import annotations

import asyncio
import json

import numpy as np
import pytest
import torch

import regraft
from regraft.core.tolerance import gap
from regraft.jobs.head_jobs import Build, build_head
from regraft.modules.placement import all_placed
from regraft.studio import page_models
from regraft.studio.bench import Bench
from regraft.studio.job_queue import Jobs
from regraft.studio.limits import Limits, RefusedError
from regraft.studio.opening import check_source
from regraft.studio.places import Places
from regraft.studio.studio_state import Studio
from regraft.studio.touches import Touch

pytestmark = pytest.mark.usefixtures("quick_pairs")
LIMITS = Limits()


@pytest.fixture(scope="module")
def graft(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grafts") / "byte"
    few = regraft.TrainingPlan(steps=2, batch=2)
    regraft.fit_embedding(regraft.load("specimen:gpt2"), folder, plan=few, warm=2, length=16)
    return (folder / "graft").resolve()


def test_a_graft_is_switched_on_measured_told_in_python_and_taken_out(graft):
    async def played():
        bench = Bench("specimen:gpt2", LIMITS, lambda: None, lambda: None)
        before = bench.plain.fingerprint()
        assert await bench.ask(lambda asked: asked) == ""
        plain = bench.reading
        for _ in range(2):  # the second time, no recording of the first is taken for this one's
            assert await bench.switch(graft, True) == ""
            ids = bench.model.record(bench.asked.prompt).ids_BT
            changed = bench.reading
            program = bench.program
            assert await bench.switch(graft, False) == ""
            assert bench.plain.fingerprint() == before
        assert bench.reading.next_clean == plain.next_clean
        swaps = regraft.swaps_of(bench.plain, [bench.grafts[graft]])
        with all_placed(bench.plain.hf, swaps):
            wanted = bench.plain.hf(ids).logits[0, -1].softmax(-1)
        assert changed.next_clean[0][0] == bench.plain.token_text(int(wanted.argmax()))
        assert changed.next_clean != plain.next_clean
        there = {}
        exec(program, there)
        loss = next(one.clean for one in changed.effects if one.name == "loss on the prompt")
        assert (
            gap(torch.tensor(there["result"].clean_mean("loss")), torch.tensor(loss)) <= bench.plain.rounding
        )

    asyncio.run(played())


def test_a_graft_of_another_model_is_refused_and_what_was_on_stays(graft):
    async def played():
        bench = Bench("specimen:qwen3", LIMITS, lambda: None, lambda: None)
        before = bench.plain.fingerprint()
        assert "was made for specimen:gpt2" in await bench.switch(graft, True)
        assert bench.on == ()
        assert bench.plain.fingerprint() == before

    asyncio.run(played())


def test_grafts_are_found_in_the_folders_alone(graft, tmp_path):
    root = graft.parents[1]
    assert page_models.graft_folders([root]) == [graft]
    (tmp_path / "link").symlink_to(graft)
    assert page_models.graft_folders([tmp_path]) == []


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    plan = regraft.TrainingPlan(steps=3, batch=2, warmup=1, rate=1e-2)
    pair = regraft.load("specimen:qwen3"), regraft.load("specimen:tuned")
    regraft.fit_transcoder(*pair, folder, features=16, plan=plan)
    return (folder / "graft").resolve()


def effects(bench):
    return {one.name: one.changed for one in bench.reading.effects}


def test_adapters_open_the_model_that_they_stand_in_and_their_features_are_touched(adapters):
    async def played():
        studio = Studio(adapters.parent)
        bench = await studio.open(str(adapters))
        assert bench.on == (adapters,)
        before = bench.plain.fingerprint()
        shown = await bench.parts("features", 4)
        strongest = shown.sites[5][0]
        assert await bench.touch(Touch(strongest, "scale", None, -50.0)) == ""
        adapted, own = regraft.open_transcoder(adapters)
        ids = adapted.record(bench.asked.prompt).ids_BT
        with torch.no_grad(), own.switch(scaled={(5, int(strongest.rpartition(".")[2])): -50.0}):
            wanted_V = adapted.hf(ids).logits[0, -1].softmax(-1)
        token, share = bench.reading.next_changed[0]
        assert token == adapted.token_text(int(wanted_V.argmax()))
        assert gap(torch.tensor(share), wanted_V.max()) <= adapted.rounding
        there = {}
        exec(bench.program, there)
        told = torch.tensor(effects(bench)["loss on the prompt"])
        assert gap(there["result"].mean("loss")[0], told) <= adapted.rounding
        assert await bench.touch(Touch("3.mlp_out", "zero", 4)) == ""
        assert await bench.switch(adapters, False) == ""
        assert [touch.site for touch in bench.asked.touches] == ["3.mlp_out"], "features went with them"
        assert await bench.ask(lambda asked: asked) == ""
        assert bench.plain.fingerprint() != before, "their places are the model's own again"
        there = {}
        exec(bench.program, there)
        told = torch.tensor(effects(bench)["loss on the prompt"])
        assert gap(there["result"].mean("loss")[0], told) <= adapted.rounding
        with pytest.raises(ValueError, match="no transcoder adapters are switched on"):
            await bench.parts("features", 4)
        await studio.end()

    asyncio.run(played())


def test_adapters_name_models_inside_the_folders_or_are_not_opened(adapters, tmp_path):
    about = json.loads((adapters / "graft.json").read_text())
    for name, why in (("/etc", "outside the folders"), ("specimen:nobody", "there is no specimen 'nobody'")):
        (tmp_path / "graft.json").write_text(json.dumps({**about, "pair": {**about["pair"], "base": name}}))
        with pytest.raises(ValueError, match=why):
            check_source(str(tmp_path), Places(tmp_path))
    with pytest.raises(RefusedError, match="write the whole model with `regraft graft transcoder export"):
        Jobs(Places(adapters.parent), LIMITS, lambda: None).submit("knockout", str(adapters), {})


def test_a_tree_head_is_refused_and_no_model_by_itself(tmp_path):
    build_head(regraft.load("specimen:gpt2"), tmp_path, how=Build(states=200))
    head = (tmp_path / "graft").resolve()
    with pytest.raises(RefusedError, match="is a tree head of specimen:gpt2: open that model"):
        check_source(str(head), Places(tmp_path))

    async def played():
        bench = Bench("specimen:gpt2", LIMITS, lambda: None, lambda: None)
        assert await bench.ask(lambda asked: asked) == ""
        before, shown = bench.plain.fingerprint(), bench.reading.next_clean
        assert "measure it with `regraft graft head eval`" in await bench.switch(head, True)
        assert bench.on == ()
        assert (bench.plain.fingerprint(), bench.reading.next_clean) == (before, shown)
        assert await bench.touch(Touch("3.mlp_out", "zero")) == "", "it is played with as before"

    asyncio.run(played())


def test_a_vector_of_a_file_is_added_as_the_command_line_would(tmp_path):
    drawn = np.random.default_rng(0).normal(size=192).astype(np.float32)
    np.save(tmp_path / "v.npy", drawn)

    async def played():
        bench = Bench("specimen:qwen3", LIMITS, lambda: None, lambda: None)
        assert await bench.ask(lambda asked: asked) == ""
        touch = Touch("3.resid_post", "vector", 4, 2.5, str(tmp_path / "v.npy"))
        assert await bench.touch(touch) == ""
        clean = bench.model.record(bench.asked.prompt)
        wanted = regraft.sweep(clean, regraft.Add("3.resid_post", 2.5 * drawn, 4), regraft.loss())
        told = torch.tensor(effects(bench)["loss on the prompt"])
        assert gap(told, wanted.mean("loss")[0]) <= bench.model.rounding
        there = {}
        exec(bench.program, there)
        assert gap(there["result"].mean("loss")[0], wanted.mean("loss")[0]) <= bench.model.rounding
        for named, why in (("", "no file is named"), (str(tmp_path / "none.npy"), "cannot be read")):
            assert why in await bench.touch(Touch("3.resid_post", "vector", 4, 1.0, named))
        assert bench.asked.touches == (touch,)

    asyncio.run(played())
