"""What people ask for is refused before PyTorch is imported, with exit code 2, by every command."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from regraft.checkpoint.hub import resolve
from regraft.checkpoint.locate import NoCheckpointError, located
from regraft.core.files import UnreadableError
from regraft.core.registry import experiments
from regraft.jobs import checks as asked
from regraft.jobs.checks import (
    DEVICES,
    TYPES,
    check_domains,
    check_model,
    check_opening,
    check_texts,
    named_texts,
)
from regraft.model.from_files import DTYPES

TRANSPLANT = ["tokenizer", "transplant", "--tokenizer", "specimen:gpt2"]
WRONG = [
    *(
        ("nowhere is not a folder", [name, "--model", "nowhere"])
        for name in [*experiments(), "inspect", "report", "rebuild"]
    ),
    *(
        ("there is no specimen 'x'", [name, "--model", "specimen:x"])
        for name in ("lens", "spectra", "rebuild", "inspect")
    ),
    *(("is not empty", [name, "--out", "full"]) for name in [*experiments(), "report", "rebuild"]),
    *(
        ("is not empty: choose another with --save", [name, "--save", "~/full"])
        for name in ("prune", "reorder", "quantize")
    ),
    *(
        ("is not empty: choose another with --save", [name, "--save", "full"])
        for name in ("repeat", "transplant")
    ),
    ("nowhere is not a folder", ["inspect", "nowhere"]),
    ("add --weights-only", ["inspect", "--pickle-shapes"]),
    ("nowhere is not a folder", ["inspect", "nowhere", "--weights-only"]),
    ("is not empty", ["inspect", "--weights-only", "--out", "full"]),
    ("is not empty: choose another with --skeleton, or remove it", ["rebuild", "--skeleton", "full"]),
    ("empty is not a model folder: it has no config.json", ["lens", "--model", "empty"]),
    ("device 'gpu' is not known", ["lens", "--device", "gpu"]),
    ("device 'cuda:' is not known", ["spectra", "--device", "cuda:"]),
    ("dtype 'int4' is not known", ["lens", "--dtype", "int4"]),
    ("nowhere is not a folder", ["lens", "--tokenizer", "nowhere"]),
    ("nowhere is not a folder", ["transplant", "--donor", "nowhere"]),
    ("full cannot be read (Is a directory): give --pairs a JSON list", ["patch", "--pairs", "full"]),
    ("latin.txt is no text in UTF-8: give --file a JSON list", ["trajectories", "--file", "latin.txt"]),
    ("none.txt is empty: give --corpus a text file", ["neurons", "--corpus", "none.txt"]),
    ("missing cannot be read (No such file or directory)", ["geometry", "--corpus", "missing"]),
    *(
        (sentence, ["graft", *command, "--out", "new", *words])
        for command in (["embedding", "fit"], ["head", "build"])
        for sentence, words in (
            ("nowhere is not a folder", ["--model", "nowhere"]),
            ("none.txt is empty", ["--text", "none.txt"]),
            ("latin.txt is no text in UTF-8", ["--text", "latin.txt"]),
            ("missing is neither a file nor a folder", ["--text", "missing"]),
            ("there is no text", ["--text", "empty"]),
        )
    ),
    ("is not empty: choose another with --out", ["graft", "embedding", "fit", "--out", "made"]),
    ("is not empty: choose another with --out", ["graft", "head", "build", "--out", "made"]),
    ("holds no graft", ["graft", "head", "fit", "--out", "new"]),
    *(("holds no graft", ["graft", part, "eval", "--graft", "new"]) for part in ("embedding", "head")),
    ("holds no graft", ["graft", "head", "export", "--graft", "new", "--save", "new"]),
    (
        "made/graft has no certificate",
        ["graft", "embedding", "bake", "--graft", "made/graft", "--save", "new"],
    ),
    *(
        (
            f"--{name} is {value}: write {least} or more",
            ["graft", "embedding", "fit", "--out", "new", f"--{name}={value}"],
        )
        for name, value, least in (
            ("patience", -1, 0),
            ("steps", 0, 1),
            ("length", 1, 2),
            ("kl", "nan", 0),
            ("byte-width", 0, 1),
            ("save-every", 0, 1),
            ("warmup", -1, 0),
            ("clip", "-1.0", 0),
            ("weight-decay", "-1.0", 0),
            ("table", "nan", 0),
            ("heads", 0, 1),
        )
    ),
    ("--states is 0: write 1 or more", ["graft", "head", "build", "--out", "new", "--states", "0"]),
    ("--adapter is -1.0: write 0 or more", ["graft", "head", "build", "--out", "new", "--adapter=-1"]),
    ("--patience is -1: write 0 or more", ["graft", "head", "fit", "--out", "made", "--patience=-1"]),
    *(
        ("--windows is 0: write 1 or more", ["graft", p, "eval", "--graft", "made/graft", "--windows", "0"])
        for p in ("embedding", "head")
    ),
    ("'x' names no domain", ["graft", "head", "eval", "--graft", "made/graft", "--text", "x"]),
    ("is not empty", ["tokenizer", "train", "--out", "full"]),
    ("none.txt is empty", ["tokenizer", "train", "--text", "none.txt", "--out", "new"]),
    ("nowhere is not a folder", ["tokenizer", "train", "--like", "nowhere", "--out", "new"]),
    ("is no distribution of chunk lengths", ["tokenizer", "train", "--lengths", "wrong", "--out", "new"]),
    (
        "lengths.yaml cannot be read (No such file",
        ["tokenizer", "train", "--lengths", "lengths.yaml", "--out", "new"],
    ),
    ("nowhere is not a folder", ["tokenizer", "compare", "nowhere", "--out", "new"]),
    ("is not empty", ["tokenizer", "compare", "specimen:gpt2", "--out", "full"]),
    (
        "two texts are called a",
        ["tokenizer", "compare", "specimen:gpt2", "--text", "a=x", "--text", "a=y", "--out", "new"],
    ),
    ("missing is neither", ["tokenizer", "compare", "specimen:gpt2", "--text", "a=missing", "--out", "new"]),
    ("is not empty: choose another with --save", [*TRANSPLANT, "--save", "full"]),
    ("nowhere is not a folder", [*TRANSPLANT, "--encoder", "nowhere", "--save", "new"]),
    ("none.txt is empty", [*TRANSPLANT, "--learn", "none.txt", "--save", "new"]),
    ("none.txt cannot be written to", [*TRANSPLANT, "--cache", "none.txt", "--save", "new"]),
    ("cannot be written to", ["lens", "--out", "none.txt/below"]),
    ("nowhere is not a folder", ["report", "--beside", "nowhere"]),
]
RUN = """
import json, sys
import typer.testing
from typer.testing import CliRunner

class Heavy:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "xarray"):
            raise SystemExit(77)

sys.meta_path.insert(0, Heavy())
from typer.main import get_command
from regraft.cli.main import app
# Built once: typer's runner builds every command anew for each line.
command = get_command(app)
typer.testing._get_command = lambda app: command
said = [CliRunner().invoke(app, words) for words in json.loads(sys.stdin.read())]
print(json.dumps([(one.exit_code, one.stderr, one.stdout) for one in said]))
"""


def test_every_wrong_word_is_told_before_anything_heavy_is_imported(tmp_path):
    for name in ("full", "made/graft", "empty"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "full" / "letter").write_text("dear")
    (tmp_path / "made" / "graft" / "graft.json").write_text(
        json.dumps({"kind": "byte embedding", "model": "y", "weights_sha256": "z"})
    )
    (tmp_path / "none.txt").write_text("")
    (tmp_path / "latin.txt").write_bytes("café, naïve, Gruß".encode("latin-1"))
    lines = [words for _, words in WRONG]
    environment = {**os.environ, "HOME": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-c", RUN], input=json.dumps([*lines, ["lens"]]), cwd=tmp_path, env=environment,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    *answers, control = json.loads(run.stdout)
    assert control[0] == 77
    for (sentence, words), (code, said, printed) in zip(WRONG, answers, strict=True):
        assert (code, printed) == (2, ""), (words, code, said)
        assert said.startswith("regraft: "), words
        assert sentence in said, words
        assert said.count("\n") == 1, words
    assert not (tmp_path / "new").exists()


def test_names_are_known_where_models_are_opened():
    assert tuple(DTYPES) == TYPES
    assert all(torch.device(name) for name in DEVICES if name != "auto")
    for device in ("", "cpu", "cuda", "cuda:1", "auto", "xpu:0"):
        check_opening("owner/name", device)
    for name in TYPES:
        check_opening("specimen:t5", "cpu", name, "owner/name")


def test_a_source_is_a_folder_a_specimen_or_an_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert located("owner/name") == (None, "owner/name")
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert located("owner/name") == (Path("owner/name"), "name")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert located("~/owner") == (tmp_path / "owner", "owner")
    assert located(None) == located("specimen") == located("specimen:qwen3") == resolve(None)
    for name in ("own er/name", "owner/name/more", "name", "./owner/none", "none/", "specimens", "n" * 300):
        with pytest.raises((NoCheckpointError, UnreadableError)):
            located(name)
        with pytest.raises((NoCheckpointError, UnreadableError)):
            resolve(name)


def test_a_closed_folder_is_one_sentence(tmp_path, monkeypatch):
    def closed(*given, **named):
        raise PermissionError(errno.EACCES, "Permission denied")

    (tmp_path / "model").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "iterdir", closed)
        with pytest.raises(
            UnreadableError, match=r"model cannot be read \(Permission denied\): give a model folder"
        ):
            located(tmp_path / "model")
    with monkeypatch.context() as patch:
        patch.setattr(asked, "model_files", closed)
        with pytest.raises(UnreadableError, match=r"whose files you may read"):
            check_model(str(tmp_path / "model"))
    (tmp_path / "texts" / "deep").mkdir(parents=True)
    (tmp_path / "texts" / "a.txt").write_text("text")
    assert check_texts([str(tmp_path / "texts")]) == [str(tmp_path / "texts")]
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: closed() if str(path).endswith("deep") else scandir(path))
    with pytest.raises(UnreadableError, match="name text that you may read"):
        check_texts([str(tmp_path / "texts")])


def test_domains_are_named_and_stand_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.txt").write_text("a")
    assert named_texts(["x=~/a.txt"], "~") == {"x": [str(tmp_path / "a.txt")], "a": [str(tmp_path / "a.txt")]}
    check_domains(["x=~/a.txt"], "~")
    with pytest.raises(ValueError, match="two texts are called a"):
        named_texts(["a=~/a.txt"], "~")
