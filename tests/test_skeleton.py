"""The student's folder: solved, half solved, and stopped in every way."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from regraft.checkpoint.locate import CheckpointError
from regraft.core.files import RunFolderError
from regraft.reference import gpt2
from regraft.reference.skeleton import check, report, write_skeleton
from regraft.reference.stage_compare import SameTensorError


def run_check(folder, *words):
    return subprocess.run(
        [sys.executable, str(folder / "check.py"), *words], capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_the_skeleton_is_solved(tmp_path):
    """First nothing, then a solution with one mistake, then a right one: rebuilt/gpt2.py itself."""
    folder = tmp_path / "task"
    stages = write_skeleton("specimen:gpt2", folder, ["She sells sea shells"])
    assert {file.name for file in folder.iterdir()} == {
        "README.md",
        "check.py",
        "model.py",
        "task.json",
        "truth.safetensors",
    }
    assert (folder / "truth.safetensors").stat().st_size < 2_000_000
    for stage, shape in stages:
        assert f"`{stage}` | {' x '.join(map(str, shape))}" in (folder / "README.md").read_text()
        assert stage in (folder / "model.py").read_text()
    empty = run_check(folder)
    assert empty.returncode == 1
    assert f"0 of {len(stages)} stages: yield ('embed.tokens', ...) first" in empty.stdout
    text = Path(gpt2.__file__).read_text()
    solved = (
        text.replace("def stages(", "def own(")
        + "\n\ndef stages(weights, config, inputs):\n    return own(weights, Gpt2Settings.read(config),"
        " inputs)\n"
    )
    (folder / "model.py").write_text(solved.replace("0.044715", "0.04"))
    wrong = run_check(folder)
    assert wrong.returncode == 1
    assert "PART 0.mlp_act" in wrong.stdout
    assert "behind the activation" in wrong.stdout
    on = run_check(folder, "--carry")
    assert on.returncode == 1
    assert "0.mlp_act is behind the activation" in on.stdout
    assert on.stdout.count("The official one went on in its place.") == on.stdout.count("PART") == 4
    assert f"{len(stages) - 4} of {len(stages)} stages" in on.stdout
    (folder / "model.py").write_text(solved)
    right = run_check(folder)
    assert right.returncode == 0, right.stdout + right.stderr
    assert f"{len(stages)} of {len(stages)} stages" in right.stdout
    assert "PART" not in right.stdout


@pytest.mark.slow
def test_a_students_other_mistakes_are_said_in_words(tmp_path):
    folder = tmp_path / "task"
    total = len(write_skeleton("specimen:t5", folder, ["She sells"]))

    def said(body):
        (folder / "model.py").write_text(body)
        with pytest.raises((ValueError, SameTensorError)) as caught:
            check(folder)
        return str(caught.value)

    assert "has no function stages" in said("x = 1")
    assert "line 1 of model.py stops with SyntaxError" in said("def stages(")
    assert "stages returns NoneType; it has to yield a pair" in said("def stages(w, c, i):\n    pass")
    missing = said("def stages(w, c, i):\n    yield 'encoder.embed.tokens', w['shared.wieght']")
    assert (
        "line 2 of model.py stops with KeyError: 'shared.wieght'; names like it are shared.weight" in missing
    )
    assert "what is yielded for 'encoder.embed.tokens' is list, not a torch tensor" in said(
        "def stages(w, c, i):\n    yield 'encoder.embed.tokens', [1]"
    )
    assert "stage 1 is int, not a pair" in said("def stages(w, c, i):\n    yield 1")
    assert "stage 1 is called 'logits'; the task asks for 'encoder.embed.tokens' there" in said(
        "def stages(w, c, i):\n    yield 'logits', w['shared.weight']"
    )
    half = "def stages(w, c, i):\n    yield 'encoder.embed.tokens', w['shared.weight'][i['input_ids']]"
    (folder / "model.py").write_text(half)
    assert check(folder).parted == ""
    assert report(folder) == 1, "a stage that is missing at the end is not a pass"
    (folder / "model.py").write_text(half + "\n    raise OSError('a file')")
    stopped = run_check(folder)
    assert stopped.returncode == 1
    assert "ok   encoder.embed.tokens" in stopped.stdout, "what was earned is shown"
    assert f"1 of {total} stages: line 3 of model.py stops with OSError: a file" in stopped.stdout
    assert "Traceback" not in stopped.stderr
    with pytest.raises(RunFolderError, match="is not empty"):
        write_skeleton("specimen:t5", folder)
    with pytest.raises(CheckpointError, match="is no skeleton"):
        check(tmp_path)
