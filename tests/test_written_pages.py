"""Pages that scripts write are what the scripts write now from the results that are kept: none was edited by
hand, and none is older than its figures."""

from __future__ import annotations

import json

import torch

from benchmarks.peers import speed_page
from benchmarks.tasks import merges
from benchmarks.tasks import run as tasks


def test_the_page_of_tasks_is_that_of_its_results():
    kept = json.loads(tasks.RESULT.read_text(encoding="utf-8"))
    assert tasks.PAGE.read_text(encoding="utf-8") == tasks.page(kept)


def test_the_page_of_merges_is_that_of_its_results():
    kept = json.loads(merges.RESULT.read_text(encoding="utf-8"))
    assert kept["differ"] == []
    assert merges.PAGE.read_text(encoding="utf-8") == merges.page(kept)


def test_the_page_of_speed_is_that_of_its_results():
    assert speed_page.PAGE.read_text(encoding="utf-8") == speed_page.page()


def test_a_case_that_was_measured_again_later_takes_the_place_of_its_row(tmp_path, monkeypatch):
    whole = json.loads(max(speed_page.RESULTS.glob("20*.json")).read_text(encoding="utf-8"))
    monkeypatch.setattr(speed_page, "RESULTS", tmp_path)
    (tmp_path / "2026-11-29.json").write_text(json.dumps(whole))
    first = whole["cases"][0]
    for name, time in (("part-1.json", "2000-01-01"), ("part-2.json", "2999-01-01")):
        (tmp_path / name).write_text(json.dumps({**whole, "time": time, "cases": [first]}))
    _, cases = speed_page.comparisons()
    files = {key: made["file"] for key, (_, made) in cases.items()}
    assert files.pop(first["case"]["key"]) == "part-2.json"
    assert set(files.values()) == {"2026-11-29.json"}


def test_a_tensor_that_differs_by_a_bit_or_a_type_or_is_missing_is_told():
    same = {"a": torch.ones(3), "b": torch.ones(2)}
    bit = torch.nextafter(torch.ones(3), torch.tensor(2.0))
    assert merges.differing(same, {name: tensor.clone() for name, tensor in same.items()}) == []
    assert merges.differing(same, {**same, "a": bit}) == ["a"]
    assert merges.differing(same, {**same, "b": torch.ones(2, dtype=torch.float64)}) == ["b"]
    assert merges.differing(same, {"a": same["a"], "c": same["b"]}) == ["b", "c"]
