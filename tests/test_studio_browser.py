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

from regraft.core.registry import experiments
from regraft.reporting.drawings import title_for
from regraft.studio.limits import Limits
from studio_server import SOON, Page
from tools.served_studio import START

pytestmark = pytest.mark.slow
LONG = {
    "layer": "0,1,2,3,4,5,6,7,8,9,10,11",
    "prompt": "The capital of Italy is Rome. The capital of Spain is Madrid. " * 4
    + "The capital of France is",
}
"""Fields of an ablation that takes long enough to be watched, and to be stopped."""


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
        page.at("apply").click()
        page.until("changes", site)
        page.until("effects", "→")
        page.undo()
    page.at("map").get_by_text("Features", exact=True).click()
    page.until("no-map", "switched on")
    page.at("theme").click()
    page.at("map").get_by_text("Lens", exact=True).click()


DONE = {
    "scale by": "regraft.Scale(",
    "put in what the second": "regraft.Replace(",
    "add second minus first": "other[",
    "add a token": "get_output_embeddings()",
    "add the vector": "read_vector(",
}
"""What can be done to a part beside setting it to 0, and what the Python lines then call."""


def test_everything_that_can_be_done_is_chosen_and_its_lines_are_copied(opened, served):
    served.runs.mkdir(exist_ok=True)
    np.save(served.runs / "v.npy", np.ones(192, np.float32))
    page = opened()
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.at("second").fill("The big capital of Italy is")
    page.at("read").click()
    page.at("chip-4").click()
    for does, called in DONE.items():
        page.menu("block-3", "pick-mlp_out")
        page.at("does").click()
        page.page.get_by_role("option", name=does, exact=False).first.click()
        if "vector" in does:
            page.at("vector").fill("v.npy")
        page.at("apply").click()
        page.until("changes", does)
        page.until("effects", "→")
        page.at("python").get_by_text("The same in Python").click()
        page.until("python", called)
        page.at("python").locator("button").last.click()
        copied = page.page.evaluate("navigator.clipboard.readText()")
        assert called in copied
        assert copied.startswith(("import regraft", "from pathlib"))
        page.undo()
    page.at("second").fill("")
    page.at("read").click()


def test_every_experiment_has_its_form_and_a_full_queue_takes_no_more(opened):
    page = opened()
    page.tab("experiments")
    for name, experiment in experiments().items():
        page.choose(title_for(name))
        for parameter in experiment.parameters:
            page.at(f"field-{parameter.name}").first.wait_for(timeout=SOON)
    page.choose("Neuron ablation")
    for name, value in LONG.items():
        page.at(f"field-{name}").fill(value)
    for _ in range(Limits().queued + 2):
        page.at("run").click()
        page.page.wait_for_timeout(300)
    page.page.get_by_text("experiments wait already").first.wait_for(timeout=SOON)
    cancels = page.page.locator("[data-testid^=cancel-]")
    while cancels.count():
        cancels.first.click()
        page.page.wait_for_timeout(500)
    page.choose("Knockout")


def test_blocks_are_skipped_repeated_moved_and_dragged(opened):
    page = opened()
    for name, wanted in (
        ("skip", "0 1 2 4"),
        ("repeat", "0 1 2 3 3"),
        ("move-left", "0 1 3 2"),
        ("move-right", "0 1 2 4 3"),
    ):
        page.menu("block-3", name)
        page.until("effects", "→")
        page.page.wait_for_timeout(300)
        assert page.at("blocks").inner_text().split()[: len(wanted.split())] == wanted.split()
        page.undo()
    page.at("block-2").drag_to(page.at("block-5"))
    page.until("effects", "→")
    assert page.at("blocks").inner_text().split()[:7] == ["0", "1", "3", "4", "5", "2", "6"]


def test_two_browsers_see_one_state(opened):
    one, other = opened(), opened((390, "dark"))
    one.menu("block-3", "pick-mlp_out")
    one.at("apply").click()
    other.until("changes", "3.mlp_out")
    assert one.until("effects", "→") == other.until("effects", "→")
    other.undo()
    one.at("changes").wait_for(state="detached", timeout=SOON)


def test_what_is_open_stays_open_whatever_another_page_changes(opened):
    one, other = opened(), opened((390, "dark"))
    one.menu("block-3", "pick-mlp_out")
    one.at("does").click()
    one.page.get_by_role("option", name="scale by", exact=False).first.click()
    one.at("does").click()
    one.page.get_by_role("option", name="set to 0", exact=False).first.wait_for(timeout=SOON)
    other.menu("block-5", "pick-mlp_out")
    other.at("apply").click()
    one.until("changes", "5.mlp_out")
    one.until("effects", "→")
    one.page.wait_for_timeout(1000)
    assert one.page.get_by_role("option", name="set to 0", exact=False).first.is_visible()
    one.page.keyboard.press("Escape")
    assert "scale by" in one.at("does").locator("xpath=ancestor::label").inner_text()
    other.undo()


def test_an_experiment_runs_is_opened_and_compared(opened):
    page = opened()
    page.tab("experiments")
    folders = []
    for _ in range(2):
        number = page.next_job()
        page.at("field-count").fill("4")
        page.at("run").click()
        page.until(f"state-{number}", "done")
        folders.append(shlex.split(page.at("command").inner_text())[-1].rpartition("/")[2])
    assert page.page.locator("[data-testid=pictures] .js-plotly-plot").count() >= 1
    command = page.at("command").inner_text()
    assert command.startswith("regraft knockout --model specimen:qwen3 --count 4 --out ")
    page.tab("runs")
    page.at("again").click()
    rows = [page.at("runs").locator("tbody tr").filter(has_text=folder) for folder in folders]
    rows[0].locator(".q-checkbox").click()
    page.at("open-run").click()
    page.at("finding").wait_for(timeout=SOON)
    rows[1].locator(".q-checkbox").click()
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

    long = run("Neuron ablation", **LONG)
    page.until(f"state-{long}", "%")
    button = page.at(f"cancel-{long}").element_handle()
    page.until(f"state-{long}", "s left")
    assert button.evaluate("one => one.isConnected"), "a click on it would be lost if it were made anew"
    button.click()
    page.until(f"state-{long}", "stopped")
    page.until(f"sentence-{long}", "keeps what was measured")
    other = run("Neuron ablation", **LONG)
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
    for name, value in LONG.items():
        page.at(f"field-{name}").fill(value)
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
    for name, value in LONG.items():
        page.at(f"field-{name}").fill(value)
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
