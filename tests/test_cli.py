"""The command line as a user meets it: exit codes, one sentence, whole folders or none."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
import typer
from safetensors.torch import load_file
from typer.testing import CliRunner

import regraft
from regraft.cli.columns import aligned
from regraft.cli.errors import errors_in_one_sentence
from regraft.cli.main import app
from regraft.core.files import RunFolderError, whole_folder
from regraft.core.registry import experiments
from regraft.core.runs import open_run
from regraft.model.load import load
from regraft.reporting.build import CHAPTERS, build, command_line
from regraft.reporting.chapter_inputs import Reading

FAST = ["--model", "specimen:gpt2", "--count", "2", "--tokens", "3"]


def run(*words):
    return CliRunner().invoke(app, list(words))


def refused(code, sentence, *words):
    result = run(*words)
    assert result.exit_code == code, result.output
    assert any(part in result.stderr for part in sentence.split("|")), result.stderr
    assert result.stderr.startswith("regraft: ")
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_help_names_every_command_and_loads_no_torch():
    code = (
        "import sys; from regraft.cli.main import app; import regraft; print(sorted(set(sys.modules) &"
        " {'torch', 'xarray'}))"
    )
    heavy = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert heavy.stdout.strip() == "[]"
    shown = run("--help").stdout
    assert all(name in shown for name in ("report", "inspect", *experiments()))
    for name in experiments():
        told = run(name, "--help").stdout
        assert all(f"--{p.name.replace('_', '-')}" in told for p in experiments()[name].parameters)


def test_the_package_offers_what_it_says():
    for name in dir(regraft):
        assert getattr(regraft, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        regraft.nonsense  # noqa: B018


def test_inspect_prints_parts_sites_and_check():
    shown = run("inspect", "specimen:gpt2").stdout
    assert "1,383,168" in shown
    assert "resid_mid" in shown
    as_json = json.loads(run("inspect", "specimen:gpt2", "--json").stdout)
    assert as_json["self_check"]["replay"] == 0.0
    assert as_json["parts"][-1]["parameters"] == 1_383_168


def test_a_run_folder_can_be_read_again(tmp_path):
    out = tmp_path / "run"
    result = run("knockout", *FAST, "--out", str(out))
    assert result.exit_code == 0, result.output
    assert "units: loss: nats per token" in " ".join(result.stdout.split())
    data = open_run(out)
    assert data.attrs["experiment"] == "knockout"
    assert data.sizes["block"] == 4
    mark = json.loads((out / "run.json").read_text())
    assert mark["weights_sha256"] == data.attrs["weights_sha256"]
    assert (out / "data.csv").read_text().startswith("block,")
    assert sum(file.stat().st_size for file in out.rglob("*") if file.is_file()) < 100_000, "no script in it"
    assert run("knockout", *FAST, "--out", str(out)).exit_code == 0
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_foreign_folders_are_refused_and_left_alone(tmp_path):
    out = tmp_path / "run"
    assert run("lens", *FAST, "--out", str(out)).exit_code == 0
    before = {p.name: p.stat().st_mtime_ns for p in out.iterdir()}
    refused(2, "holds a run of the experiment lens", "knockout", *FAST, "--out", str(out))
    refused(2, "holds a run of another model", "lens", "--count", "2", "--tokens", "3", "--out", str(out))
    mark = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps({**mark, "regraft": "0.0.1"}))
    refused(2, "holds a run of another version of regraft: 0.0.1", "lens", *FAST, "--out", str(out))
    (out / "run.json").write_text("{")
    refused(2, "run.json cannot be read", "lens", *FAST, "--out", str(out))
    other = tmp_path / "letters"
    other.mkdir()
    (other / "dear.txt").write_text("dear")
    refused(2, "is not empty and is no run of regraft", "lens", *FAST, "--out", str(other))
    assert before.keys() == {p.name for p in out.iterdir()}
    assert (other / "dear.txt").read_text() == "dear"
    with pytest.raises(RunFolderError, match="no run of regraft"):
        open_run(other)


def test_an_unwritable_folder(tmp_path):
    file = tmp_path / "file"
    file.write_text("x")
    refused(2, "is a file): choose another with --out", "lens", *FAST, "--out", str(file))
    refused(2, "cannot be written to", "lens", *FAST, "--out", str(file / "below"))
    refused(2, "cannot be written to", "report", "--model", "specimen:gpt2", "--out", str(file))


def test_a_run_that_fails_leaves_what_was_there(tmp_path):
    out = tmp_path / "kept"
    out.mkdir()
    (out / "old").write_text("old")
    writing = whole_folder(out)
    folder = writing.__enter__()
    (folder / "new").write_text("new")
    interrupt = KeyboardInterrupt()
    assert not writing.__exit__(KeyboardInterrupt, interrupt, None)
    assert [p.name for p in out.iterdir()] == ["old"]
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]


@pytest.mark.parametrize(
    ("code", "sentence", "words"),
    [
        (2, "is not a folder", ["inspect", "./nowhere"]),
        (2, "there is no specimen 'x'", ["inspect", "specimen:x"]),
        (2, "the prompt is empty", ["lens", "--prompts", ""]),
        (2, "choose one that is one token", ["patch", "--answer", " in the morning"]),
        (2, "pattern cannot be patched as a whole", ["patch", "--site", "pattern"]),
        (2, "needs a number", ["patch", "--site", "neuron"]),
        (2, "device 'gpu' is not known", ["lens", "--device", "gpu"]),
        (2, "attention 'nonsense' cannot be used|nonsense", ["lens", "--attention", "nonsense"]),
        (
            2,
            "leaves no room for an answer in 512 positions",
            ["lens", "--model", "specimen:gpt2", "--prompts", "word " * 2000],
        ),
        (2, "is no site", ["patch", "--site", "nonsense"]),
        (2, "tokens long", ["patch", "--clean", "It is 9:00 am and"]),
        (2, "dtype 'int4' is not known", ["lens", "--dtype", "int4"]),
        (2, "k is 0", ["lens", "--k", "0"]),
        (2, "is too few", ["lens", "--count", "0"]),
    ],
)
def test_wrong_use_gets_one_sentence(code, sentence, words):
    refused(code, sentence, *words)


def test_damaged_weights_end_with_code_1(tmp_path):
    source = load("specimen:gpt2")
    folder = tmp_path / "model"
    source.hf.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    assert all(torch.isfinite(t).all() for t in tensors.values())
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-4])
    refused(1, "cut short", "inspect", str(folder))


def test_wrong_options_are_refused_by_the_parser():
    assert run("knockout", "--mode", "sideways").exit_code == 2
    assert run("nonsense").exit_code == 2


def test_debug_shows_where():
    result = run("patch", "--site", "nonsense", "--debug")
    assert "Traceback" in result.stderr
    assert result.exit_code == 2


def test_a_folder_without_a_tokenizer_takes_ids(tmp_path):
    folder = tmp_path / "no tokenizer"
    load("specimen:gpt2").hf.save_pretrained(folder)
    words = ["lens", "--model", str(folder), "--tokens", "3"]
    assert run(*words, "--prompts", "5,6,7").exit_code == 0
    refused(
        2, "write token ids (5,6,7), or name a tokenizer with --tokenizer", *words, "--prompts", "some words"
    )
    assert run(*words, "--prompts", "some words", "--tokenizer", "specimen:gpt2").exit_code == 0
    path, left_out = build(load(folder), tmp_path / "report")
    assert _named(left_out) == _all_but("spectra", "correlations")
    assert "regraft inspect --model &#x27;" in path.read_text(encoding="utf-8")


def test_commands_in_a_report_can_be_run(tmp_path):
    model = load("specimen:gpt2")
    line = command_line(
        "spectra", model, {"dtype": "float64", "device": "cpu", "remote_code": True, "attention": "eager"}
    )
    assert line == "regraft spectra --model specimen:gpt2"
    line = command_line("lens", model, {"dtype": "float64", "remote_code": True})
    assert line == "regraft lens --model specimen:gpt2 --dtype float64 --remote-code"


def _named(left_out):
    return [one.name for one in left_out]


def _all_but(*names):
    return [name for name, _ in CHAPTERS if name not in names]


def test_tables_are_aligned_and_not_cut():
    lines = aligned([["depth", "text"], ["0", " a"], ["10", "⏎"]])
    assert lines == ["depth  text", "0       a", "10     ⏎"]
    shown = run("lens", *FAST).stdout.splitlines()
    header = next(i for i, line in enumerate(shown) if line.startswith("depth"))
    starts = [shown[header].index(name) for name in ("rank", "probability", "entropy")]
    assert all(
        shown[header + row][start - 1] == " " != shown[header + row][start]
        for row in (1, 5, 12)
        for start in starts
    )


def test_json_output():
    value = json.loads(run("knockout", *FAST, "--json").stdout)
    assert value["data_vars"]["ratio"]["attrs"]["units"] == "times the clean loss"


def test_the_report_is_one_offline_page(tmp_path):
    path, left_out = build(load("specimen:t5"), tmp_path / "report", reading=Reading(count=2))
    text = path.read_text(encoding="utf-8")
    assert [str(one) for one in left_out if "reads its answer in the decoder" not in str(one)] == []
    titles = (
        "Logit lens",
        "Residual geometry",
        "Weight spectra",
        "Layer linearity",
        "Contrastive trajectories",
        "Neurons",
    )
    for words in (
        "Anatomy",
        "Self-check",
        *titles,
        "Knockout",
        "Swap cost",
        "Activation patching",
        "What goes with what",
        "csv;",
    ):
        assert words in text
    script = text.index('<script type="text/plain"')
    assert "http://" not in text[:script]
    assert "https://" not in text[:script]
    assert 'src="' not in text[:script]
    assert "default-src 'none'" in text[:script], "a browser asks nobody"
    assert (tmp_path / "report" / "knockout" / "run.json").is_file()


def test_a_model_that_cannot_be_measured_still_has_a_page(tmp_path):
    from families import FAMILIES

    torch.manual_seed(0)
    path, left_out = build(load(FAMILIES["bert"]().eval(), pack=False), tmp_path / "report")
    assert _named(left_out) == _all_but("spectra", "correlations")
    assert "does not write text from left to right" in left_out[0].reason
    assert "Anatomy" in path.read_text(encoding="utf-8")


def test_a_missing_library_is_named_with_its_extra(capsys):
    with pytest.raises(typer.Exit) as stopped, errors_in_one_sentence(False):
        raise ModuleNotFoundError("No module named 'accelerate.utils'", name="accelerate.utils")
    assert stopped.value.exit_code == 1
    assert capsys.readouterr().err.endswith("pip install -c constraints.txt -e '.[train]'\n")
