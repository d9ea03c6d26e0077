"""The planned work of the default report of the embedded model, counted: so that it stays as it is."""

from __future__ import annotations

import inspect

import pytest

from regraft.core.defaults import REPORT_COUNT
from regraft.core.registry import experiments
from regraft.experiments.running import run_experiment
from regraft.model.load import load
from regraft.reporting.build import CHAPTERS
from regraft.reporting.chapter_inputs import Reading
from regraft.reporting.chosen_chapters import anchor_of
from regraft.sweeps.forecast import PlannedError, planning

WITHOUT = """completions attention lens contributions geometry spectra linearity trajectories neurons
    quantizers correlations""".split()
"""Chapters that make no sweep of their own, or gather others'."""
MOST = 900_000
"""Positions through a block that the first sweeps of all chapters may plan: 827,000 when this was written, in
a report of 80 s on two cores without AVX-512."""


@pytest.fixture(scope="module")
def planned():
    model, found = load(), {}
    for name, chosen in CHAPTERS:
        if name in WITHOUT:
            continue
        with pytest.raises(PlannedError) as told, planning():
            run_experiment(experiments()[name], model, 0, **chosen, **Reading().options(name, model)[0])
        found[anchor_of(name, chosen)] = told.value.forecast.work
    return found


def test_the_first_sweeps_of_the_report_plan_no_more_than_they_did(planned):
    assert len(planned) == len([name for name, _ in CHAPTERS if name not in WITHOUT]) == 13
    whole = {anchor: work.planned + work.preparation for anchor, work in planned.items()}
    assert 0.5 * MOST < sum(whole.values()) <= MOST, whole
    assert all(work.planned <= work.naive for work in planned.values())


def test_chapters_read_few_prompts_and_derivatives_are_taken_at_few_tokens():
    model = load()
    assert {Reading().options(name, model)[0].get("count", REPORT_COUNT) for name, _ in CHAPTERS} == {8}
    asked = inspect.signature(experiments()["linearity"].checked()).parameters
    assert asked["sample"].default * asked["directions"].default <= 256
    assert asked["published"].default is False, "what is published of linearity is for whoever asks"
