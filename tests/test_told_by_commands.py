"""What a command says beside its numbers: that a model was saved, how settings differ, and nothing that
libraries say as they are imported."""

from __future__ import annotations

import importlib
import sys

import numpy as np
import pytest
import xarray as xr
from typer.testing import CliRunner

import regraft
from regraft.cli.columns import WIDE, cut
from regraft.cli.main import app, prepared
from regraft.cli.options import open_model
from regraft.jobs.run_folders import difference


@pytest.mark.parametrize("words", ["repeat --block 1 --times 2", "prune --drop 1"])
def test_a_saved_model_is_told_once(words, tmp_path):
    short = ["--model", "specimen:gpt2", "--count", "1", "--tokens", "2", "--save", str(tmp_path / "made")]
    done = CliRunner().invoke(app, prepared([*words.split(), *short]))
    assert done.exit_code == 0, done.output
    assert " ".join(done.output.split()).count("opens with transformers") == 1


def test_a_long_setting_is_cut_in_a_table():
    assert cut("short") == "short"
    assert cut("1.23456789") == "1.2346"
    assert len(cut("x" * 5000)) == WIDE
    assert cut("x" * 5000).endswith("…")


def test_runs_of_models_with_other_numbers_of_blocks_are_sent_to_the_page_of_two_models():
    over = {
        dim: [xr.DataArray(np.ones(n), dims=dim, name="loss") for n in (12, 13)] for dim in ("block", "token")
    }
    assert "regraft report --beside" in difference(*over["block"]).reason
    assert "--beside" not in difference(*over["token"]).reason


class Loud:
    """Says something when a module is looked for, as libraries do when they are imported."""

    def __init__(self, name):
        self.name, self.heard = name, 0

    def find_spec(self, name, path=None, target=None):
        if name == self.name:
            self.heard += 1
            print("noise of a library")


def test_a_command_is_silent_about_what_it_imports(monkeypatch, capsys):
    loud = Loud("regraft.jobs.helping")
    monkeypatch.delitem(sys.modules, loud.name, raising=False)
    monkeypatch.setattr(sys, "meta_path", [loud, *sys.meta_path])
    assert open_model("specimen:gpt2", "cpu", "", "", False, "").width == 128
    assert loud.heard == 1
    said = capsys.readouterr()
    assert "noise" not in said.out + said.err
    importlib.import_module("regraft.jobs.helping")


def test_a_public_name_is_imported_in_silence(monkeypatch, capsys):
    def importing(name):
        print("noise of a library")
        return importlib.import_module(name)

    monkeypatch.setattr(regraft, "import_module", importing)
    assert regraft.__getattr__("tree_head").__name__ == "tree_head"
    assert capsys.readouterr().out == ""
