"""The studio in a real browser: everything by clicking, at both sizes and in both themes, without a word on
the console and without a request that leaves this machine."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import save_file

import regraft
from studio_server import SOON, Page
from tools.served_studio import START

pytestmark = pytest.mark.slow
VIEWS = [(width, scheme) for width in (1280, 390) for scheme in ("light", "dark")]
"""Pixels across and the theme, for everything that is clicked."""
EVERY = "0,1,2,3,4,5,6,7,8,9,10,11"
"""Blocks of an ablation that takes long enough to be watched, and to be stopped."""


@pytest.fixture(params=VIEWS, ids=lambda view: f"{view[0]}-{view[1]}")
def opened(request, browser, served):
    """Opens pages of the view, and puts back what they changed."""
    made = []

    def open_page(view=request.param):
        made.append(Page(browser, served, *view))
        return made[-1]

    yield open_page
    for page in made[:1]:
        page.tab("prompt")
        page.undo()
    for page in made:
        page.close()


def test_a_part_is_clicked_and_changed_and_put_back(opened):
    page = opened()
    page.pick(0.9, 0.5, "resid_post")
    page.at("apply").click()
    assert "→" in page.until("effects", "→")
    page.until("text-clean", "Paris")
    page.at("text-changed").wait_for()
    page.undo()
    assert "→" not in page.at("effects").inner_text()
    for name, site in (("Heads", ".head."), ("Neurons", ".neuron.")):
        page.at("map").get_by_text(name, exact=True).click()
        page.pick(0.05, 0.5, site)
    page.at("map").get_by_text("Features", exact=True).click()
    page.until("no-map", "switched on")
    page.at("theme").click()
    page.at("map").get_by_text("Lens", exact=True).click()


def test_blocks_are_skipped_repeated_moved_and_dragged(opened):
    page = opened()
    for name, wanted in (
        ("skip", "0 1 2 4"),
        ("repeat", "0 1 2 3 3"),
        ("move-left", "0 1 3 2"),
        ("move-right", "0 1 2 4 3"),
    ):
        page.at("block-3").click()
        page.at(name).click()
        page.until("effects", "→")
        page.page.wait_for_timeout(300)
        assert page.at("blocks").inner_text().split()[: len(wanted.split())] == wanted.split()
        page.undo()
    page.at("block-2").drag_to(page.at("block-5"))
    page.until("effects", "→")
    assert page.at("blocks").inner_text().split()[:7] == ["0", "1", "3", "4", "5", "2", "6"]


BAD_MODELS = {
    "/etc": "lies outside the folders",
    "nothing": "config.json of nothing cannot be used",
    "code": "contains custom code",
    "specimen:nobody": "there is no specimen 'nobody'",
}
"""Names that are typed under Models, and what is said of each."""


def test_what_cannot_be_is_said_and_the_page_lives_on(opened, served):
    for name, config in (("nothing", "{"), ("code", '{"auto_map": {"AutoConfig": "own.Config"}}')):
        (served.runs / name).mkdir(parents=True, exist_ok=True)
        (served.runs / name / "config.json").write_text(config)
        save_file({"a": np.zeros(2, np.float32)}, served.runs / name / "model.safetensors")
    page = opened()
    page.at("prompt").fill("word " * 400)
    page.at("read").click()
    page.page.get_by_text("a page takes 256").wait_for(timeout=SOON)
    page.at("prompt").fill("The capital of Italy is")
    page.at("read").click()
    page.until("chip-3", "Italy")
    page.tab("models")
    for name, why in BAD_MODELS.items():
        page.at("model-name").fill(name)
        page.at("open-model").click()
        page.page.get_by_text(why).wait_for(timeout=SOON)
    page.tab("prompt")
    page.at("prompt").fill("The capital of France is")
    page.at("read").click()
    page.until("chip-3", "France")


def test_another_model_is_opened_played_with_and_closed(opened):
    page = opened()
    page.tab("models")
    page.at("model-name").fill("specimen:gpt2")
    page.at("open-model").click()
    page.until("model", "specimen:gpt2")
    page.at("block-3").click()
    page.at("skip").click()
    page.until("effects", "→")
    page.undo()
    page.tab("models")
    page.page.get_by_role("button", name="specimen:qwen3").click()
    page.until("model", "specimen:qwen3")
    page.tab("models")
    page.at("close-specimen:gpt2").click()
    page.at("close-specimen:gpt2").wait_for(state="detached", timeout=SOON)


@pytest.fixture(scope="module")
def grafts(served):
    """A byte embedding and adapters in the studio's folder."""
    few = regraft.TrainingPlan(steps=2, batch=2, warmup=1)
    base, tuned = regraft.load(), regraft.load("specimen:tuned")
    regraft.fit_embedding(base, served.runs / "byte", plan=few, warm=2, length=16)
    regraft.fit_transcoder(base, tuned, served.runs / "adapters", features=16, plan=few, length=64)


@pytest.mark.usefixtures("grafts")
def test_grafts_are_switched_on_and_off_and_features_are_touched(opened):
    page = opened()
    before = page.until("effects", "loss")
    page.tab("models")
    byte = page.at("graft").filter(has_text="byte")
    byte.click()
    page.tab("prompt")
    page.differs("effects", before)
    page.tab("models")
    byte.click()
    page.tab("prompt")
    page.until("effects", before)
    page.tab("models")
    page.at("open-adapters").click()
    page.until("model", "with the MLPs of")
    page.at("map").get_by_text("Features", exact=True).click()
    page.pick(0.05, 0.5, ".feature.")
    page.at("apply").click()
    page.until("changes", ".feature.")
    page.tab("models")
    page.at("graft").filter(has_text="adapters").click()
    page.tab("prompt")
    page.until("no-map", "switched on")
    page.tab("models")
    page.page.get_by_role("button", name="specimen:qwen3", exact=True).click()
    page.until("model", "specimen:qwen3")
    page.tab("models")
    page.page.locator("[data-testid^='close-specimen:tuned with']").click()
    page.page.locator("[data-testid^='close-specimen:tuned with']").wait_for(state="detached", timeout=SOON)


def test_two_browsers_see_one_state(opened):
    one, other = opened(), opened(VIEWS[-1])
    one.at("block-3").click()
    one.at("pick-mlp_out").click()
    one.at("apply").click()
    other.until("changes", "3.mlp_out")
    assert one.until("effects", "→") == other.until("effects", "→")
    other.undo()
    one.at("changes").wait_for(state="detached", timeout=SOON)


def test_an_experiment_runs_is_opened_and_compared(opened):
    page = opened()
    page.tab("experiments")
    for _ in range(2):
        number = page.next_job()
        page.at("field-count").fill("4")
        page.at("run").click()
        page.until(f"state-{number}", "done")
    assert page.page.locator("[data-testid=pictures] .js-plotly-plot").count() >= 1
    command = page.at("command").inner_text()
    assert command.startswith("regraft knockout --model specimen:qwen3 --count 4 --out ")
    page.tab("runs")
    page.at("again").click()
    rows = page.at("runs").locator("tbody .q-checkbox")
    rows.nth(0).click()
    page.at("open-run").click()
    page.at("finding").wait_for(timeout=SOON)
    rows.nth(1).click()
    page.at("compare-runs").click()
    page.until("compared", "loss")


def test_the_command_that_is_shown_finds_the_run_finished(opened):
    page = opened()
    page.tab("experiments")
    number = page.next_job()
    page.at("field-count").fill("3")
    page.at("run").click()
    page.until(f"state-{number}", "done")
    words = shlex.split(page.at("command").inner_text())
    said = subprocess.run(
        [sys.executable, "-c", START, *words[1:]],
        capture_output=True, text=True, check=True, timeout=300,
    )  # fmt: skip
    assert "finished: nothing was run" in " ".join(said.stdout.split())


def test_a_job_is_cancelled_and_a_killed_worker_is_told_and_replaced(opened, served):
    page = opened()
    page.tab("experiments")

    def run(experiment, **fields):
        number = page.next_job()
        page.choose(experiment)
        for name, value in fields.items():
            page.at(f"field-{name}").fill(value)
        page.at("run").click()
        return number

    long = run("Neuron ablation", layer=EVERY)
    page.until(f"state-{long}", "%")
    page.at(f"cancel-{long}").click()
    page.until(f"state-{long}", "stopped")
    page.until(f"sentence-{long}", "keeps what was measured")
    other = run("Neuron ablation", layer=EVERY)
    page.until(f"state-{other}", "%")
    (worker,) = served.workers
    worker.send_signal(signal.SIGKILL)
    page.until(f"sentence-{other}", "signal SIGKILL")
    third = run("Knockout", count="3")
    page.until(f"state-{third}", "done")
    page.choose("Knockout")


def test_a_figure_grows_while_its_run_goes_on(opened):
    page = opened()
    page.tab("experiments")
    number = page.next_job()
    page.choose("Neuron ablation")
    page.at("field-layer").fill(EVERY)
    page.at("run").click()
    page.until(f"state-{number}", "%")
    page.page.locator("[data-testid=pictures] .js-plotly-plot").first.wait_for(timeout=SOON)
    assert "%" in page.at(f"state-{number}").inner_text()
    page.at(f"cancel-{number}").click()
    page.until(f"state-{number}", "stopped")
    page.choose("Knockout")


def test_a_closed_page_leaves_nothing_running(browser, served):
    page = Page(browser, served)
    page.tab("experiments")
    page.choose("Neuron ablation")
    number = page.next_job()
    page.at("field-layer").fill(EVERY)
    page.at("run").click()
    page.until(f"state-{number}", "%")
    assert len(served.workers) == 1
    page.close()
    for _ in range(400):
        if not served.workers:
            break
        time.sleep(0.1)
    assert served.workers == []
    again = Page(browser, served)
    again.tab("experiments")
    assert "keeps what was measured" in again.at(f"sentence-{number}").inner_text()
    again.close()
