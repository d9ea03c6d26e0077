"""Models of a studio in a real browser: opened by folder, specimen and hub id, refused, with grafts and
adapters, and closed."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import save_file

import regraft
from hub_at_hand import at_hub, hub_at_hand
from studio_server import SOON, Page
from tools.served_studio import Served

pytestmark = pytest.mark.slow


def test_a_studio_whose_first_model_does_not_open_says_so_and_opens_another(browser, tmp_path):
    (tmp_path / "runs" / "broken").mkdir(parents=True)
    (tmp_path / "runs" / "broken" / "config.json").write_text("{")
    save_file({"a": np.zeros(2, np.float32)}, tmp_path / "runs" / "broken" / "model.safetensors")
    served = Served(tmp_path / "runs", "--model", str(tmp_path / "runs" / "broken"))
    page = Page(browser, served, shown="failed")
    assert "config.json of broken cannot be used" in page.at("failed").inner_text()
    page.at("model-name").fill("specimen:gpt2")
    page.at("open-model").click()
    page.until("effects", "loss")
    page.close()
    assert served.stop() == 130, "as Ctrl-C ends every command"


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
    page.menu("block-3", "skip")
    page.until("effects", "→")
    page.undo()
    page.tab("models")
    page.page.get_by_role("button", name="specimen:qwen3").click()
    page.until("model", "specimen:qwen3")
    page.tab("models")
    page.gone("[data-testid='close-specimen:gpt2']")


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
    page.gone("[data-testid^='close-specimen:tuned with']")


def test_a_hub_id_is_opened_and_one_that_the_hub_does_not_know_is_told(browser, tmp_path, monkeypatch):
    with hub_at_hand() as hub:
        for name, value in at_hub(hub, tmp_path).items():
            monkeypatch.setenv(name, value)
        served = Served(tmp_path / "runs")
        page = Page(browser, served)
        page.tab("models")
        page.at("model-name").fill("owner/other")
        page.at("open-model").click()
        page.page.get_by_text("owner/other is neither a folder here nor a model").wait_for(timeout=SOON)
        page.at("model-name").fill("owner/small")
        page.at("open-model").click()
        page.until("model", "owner/small")
        page.until("effects", "loss")
        page.close()
        served.stop()
