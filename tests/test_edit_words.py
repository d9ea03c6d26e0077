"""Edits as words of a command line: what they say, and what they do to completions."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

from regraft.cli.main import app
from regraft.core.registry import experiments
from regraft.core.runs import store
from regraft.experiments.running import run_experiment
from regraft.model.load import load
from regraft.sweeps.edit_words import edit_of
from regraft.sweeps.variants import Add, Scale, Zero
from small import ids, opened


def test_words_say_what_is_done_and_where(tmp_path):
    assert (edit_of("5.mlp_out=0").site, type(edit_of("5.mlp_out=0"))) == ("5.mlp_out", Zero)
    half = edit_of("decoder.1.head.2*-0.5@new")
    assert (half.site, half.factor, half.position, type(half)) == ("decoder.1.head.2", -0.5, "new", Scale)
    vector = np.arange(4, dtype=np.float32)
    np.save(tmp_path / "v.npy", vector)
    save_file({"v": vector}, tmp_path / "v.safetensors")
    for name in ("v.npy", "v.safetensors"):
        added = edit_of(f"6.resid_post+-2.5*{tmp_path / name}@-1,3")
        assert (added.site, added.position, type(added)) == ("6.resid_post", [-1, 3], Add)
        assert added.value.tolist() == (-2.5 * vector).tolist()
    assert edit_of(f"embed+{tmp_path / 'v.npy'}").value.tolist() == vector.tolist()
    assert edit_of("logits*2").position is None


def test_what_is_no_edit_is_told_with_the_form(tmp_path):
    np.save(tmp_path / "words.npy", np.array(["a"]))
    np.save(tmp_path / "cube.npy", np.zeros((2, 2, 2)))
    (tmp_path / "broken.npy").write_bytes(b"no array")
    save_file({"a": np.zeros(2), "b": np.zeros(2)}, tmp_path / "two.safetensors")
    for word, told in {
        "5.mlp_out": "is no edit: write SITE=0",
        "5.mlp_out=1": "only 0 can be set",
        "5.mlp_out=x": "'x' in '5.mlp_out=x' is no number",
        "5.mlp_out*much": "is no number",
        "5.mlp_out=0@first": "'first' in '5.mlp_out=0@first' is no position",
        "5.mlp_out+v.txt": "is no file of a vector",
        f"5.mlp_out+{tmp_path / 'none.npy'}": "cannot be read",
        f"5.mlp_out+{tmp_path / 'broken.npy'}": "broken.npy",
        f"5.mlp_out+{tmp_path / 'words.npy'}": "give one vector of floats",
        f"5.mlp_out+{tmp_path / 'cube.npy'}": "give one vector of floats",
        f"5.mlp_out+{tmp_path / 'two.safetensors'}": "holds 2 tensors: give a file of one",
    }.items():
        with pytest.raises(ValueError, match=re.escape(told)):
            edit_of(word)


def test_the_vector_of_a_run_of_steer_is_added_behind_its_block(tmp_path):
    model = opened("llama")
    for number, name in enumerate(("a", "b")):
        rows = [" ".join(map(str, ids(4, 40 * number + i))) for i in range(4)]
        (tmp_path / name).write_text("\n".join(rows))
    files = {"towards": str(tmp_path / "a"), "away": str(tmp_path / "b")}
    prompts = [" ".join(map(str, ids(5, 90)))]
    data = run_experiment(
        experiments()["steer"], model, blocks=[1, 2], strengths=[3.0], prompts=prompts, tokens=4, **files
    )
    store(data, tmp_path / "run")
    edit = edit_of(f"2.resid_post+3*{tmp_path / 'run'}")
    assert np.allclose(edit.value, 3 * data.vector.sel(block="2"))
    assert str(model.generate(prompts[0], edits=edit, tokens=4)) == str(data.written.sel(block="2").values[0])
    with pytest.raises(ValueError, match=r"has blocks 1, 2, not one for 0\.resid_post"):
        edit_of(f"0.resid_post+{tmp_path / 'run'}")


def test_completions_are_shown_with_the_edit_beside_them(tmp_path, monkeypatch):
    monkeypatch.setenv("REGRAFT_CACHE", str(tmp_path / "cache"))
    words = "completions --model specimen:gpt2 --tokens 5 --json --edit 1.mlp_out=0@new --edit 2.head.1*3"
    shown = CliRunner().invoke(app, [*words.split(), "--prompts", "The river"])
    assert shown.exit_code == 0, shown.output
    told = json.loads(shown.stdout)
    model = load("specimen:gpt2")
    edits = [Zero("1.mlp_out", "new"), Scale("2.head.1", 3.0)]
    assert told["data_vars"]["changed"]["data"] == [str(model.generate("The river", edits=edits, tokens=5))]
    assert told["data_vars"]["completion"]["data"] == [str(model.generate("The river", tokens=5))]
    refused = CliRunner().invoke(app, ["completions", "--model", "specimen:gpt2", "--edit", "9.mlp_out=0"])
    assert refused.exit_code == 2
    assert "there are 4 blocks here" in " ".join(refused.stderr.split())
