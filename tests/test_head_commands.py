"""The head's commands one after the other, both grafts at once, and what they refuse."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from typer.testing import CliRunner

from regraft.cli.main import app
from regraft.jobs.head_jobs import Build
from regraft.modules.hf_model import GraftedModel

SIZES = ["--batch", 2, "--length", 32]


def run(*words):
    return CliRunner().invoke(app, ["graft", *map(str, words), "--model", "specimen:gpt2"])


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("heads")
    (folder / "train.txt").write_text("She sells sea shells by the sea shore. " * 400)
    text = ["--text", folder / "train.txt"]
    built = run(
        "head",
        "build",
        *text,
        "--out",
        folder / "head",
        "--states",
        200,
        "--adapter",
        1,
        "--length",
        32,
        "--branching",
        4,
    )
    assert built.exit_code == 0, built.output
    assert "Untrained, its loss" in built.output
    sizes = ["--group", 8, "--byte-width", 8, "--neurons", 32, "--steps", 3, "--warm", 10, *SIZES]
    made = run("embedding", "fit", *text, "--out", folder / "bytes", *sizes)
    assert made.exit_code == 0, made.output
    assert "tied to the table: it keeps the old matrix" in " ".join(made.output.split())
    return folder


def test_build_fit_eval_export(work):
    graft = work / "head" / "graft"
    tensors = (graft / "graft.safetensors").read_bytes()
    fit = ["head", "fit", "--text", work / "train.txt", "--out", work / "head", "--steps", 6, *SIZES]
    done = run(*fit)
    assert done.exit_code == 0, done.output
    assert "after 6 steps the loss" in done.output
    assert (graft / "graft.safetensors").read_bytes() != tensors
    early = run("head", "export", "--graft", graft, "--save", work / "early")
    assert early.exit_code == 2
    assert "has no certificate" in early.output
    measure = ["--text", f"shells={work / 'train.txt'}", "--windows", 4, "--length", 32]
    measured = run("head", "eval", "--graft", graft, *measure)
    assert measured.exit_code == 0, measured.output
    for words in ("shells: ", "training step of the part: ", "MiB beyond the weights", "worst: "):
        assert words in measured.output
    page = (graft / "certificate.html").read_text(encoding="utf-8")
    assert "With the tree head in place: on shells" in page
    exported = run("head", "export", "--graft", graft, "--save", work / "out")
    assert exported.exit_code == 0, exported.output
    assert isinstance(transformers.AutoModelForCausalLM.from_pretrained(work / "out"), GraftedModel)
    fitted = run(*fit[:-4], *SIZES, "--loss", "divergence", "--rate", "5e-4")
    assert fitted.exit_code == 2
    assert "holds a run with another" in " ".join(fitted.output.split())


def test_both_grafts_at_once(work):
    head, embedding = work / "head" / "graft", work / "bytes" / "graft"
    measure = ["--text", f"shells={work / 'train.txt'}", "--windows", 2, "--length", 32]
    one = run("embedding", "eval", "--graft", embedding, *measure)
    assert one.exit_code == 0, one.output
    both = run("embedding", "eval", "--graft", embedding, "--with", head, *measure)
    assert both.exit_code == 0, both.output
    assert (
        json.loads((embedding / "certificate.json").read_text())["attrs"]["grafts"]
        == "byte embedding and tree head"
    )
    alone = run("embedding", "export", "--graft", embedding, "--save", work / "alone")
    assert alone.exit_code == 1
    assert "was measured on other tensors" in alone.output
    exported = run("embedding", "export", "--graft", embedding, "--with", head, "--save", work / "both")
    assert exported.exit_code == 0, exported.output
    model = transformers.AutoModelForCausalLM.from_pretrained(work / "both").eval()
    assert len(model.config.grafts) == 2
    assert model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=4, do_sample=False).shape == (1, 7)


def test_what_the_commands_refuse(work):
    for words, sentence in (
        (
            ("head", "build", "--out", work / "x", "--branching", 3),
            "a node cannot have 3 children: choose 2, 4, 8",
        ),
        (("head", "build", "--out", work / "head"), "is not empty"),
        (("head", "fit", "--out", work / "none"), "holds no graft"),
        (("head", "fit", "--out", work / "bytes"), "holds a byte embedding, not a tree head"),
        (
            ("embedding", "bake", "--graft", work / "head" / "graft", "--save", work / "y"),
            "holds a tree head, not a byte",
        ),
        (
            ("embedding", "fit", "--out", work / "z", "--group", 7),
            "7 bytes side by side do not divide the model's width",
        ),
    ):
        wrong = run(*words)
        assert wrong.exit_code in (1, 2), wrong.output
        assert sentence in " ".join(wrong.output.split()), wrong.output
        assert "Traceback" not in wrong.output


@pytest.mark.parametrize("wrong", [dict(states=0), dict(adapter=-1.0), dict(adapter=float("nan"))])
def test_a_head_of_nothing_is_refused_in_python_too(wrong):
    usual = dict(tree="scores", branching=2, adapter=4.0, start="states", states=4000)
    Build(**usual)
    with pytest.raises(ValueError, match="a head is fitted on 1 state or more, with an adapter of 0 or more"):
        Build(**{**usual, **wrong})
