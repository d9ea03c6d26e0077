"""Options that stand in front of every command, wherever they are written: files of options, logs, no cache;
and Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading

import pytest
import torch
import typer
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner

from rebuilding import here, linked
from regraft.cli import console
from regraft.cli.common import common, hoisted
from regraft.cli.errors import errors_in_one_sentence
from regraft.cli.main import app, prepared
from regraft.core.interrupts import StoppedError, finishing_steps, kept_when_stopped
from regraft.core.runs import open_run
from regraft.data import generation
from regraft.reference.verify import rebuild
from regraft.reporting import build
from regraft.reporting.chapter_inputs import LEAST

FEW = ["--prompts", "14 + 43 =", "The capital of France is", "--tokens", "4"]
MODEL = ["--model", "specimen:gpt2"]


def run(*words):
    return CliRunner().invoke(app, prepared(list(words)))


def test_common_options_go_to_the_front_from_wherever_they_stand(tmp_path):
    assert hoisted(["swap", "--quiet", "--count", "3", "--log-file", "a", "--no-cache"]) == [
        "--quiet", "--log-file", "a", "--no-cache", "swap", "--count", "3",
    ]  # fmt: skip
    assert hoisted(["swap", "--log-file=a"]) == ["--log-file=a", "swap"]
    assert hoisted(["push", "--", "--quiet"]) == ["push", "--", "--quiet"]
    with pytest.raises(ValueError, match="--config needs a value behind it"):
        hoisted(["swap", "--config"])
    file = tmp_path / "run.yaml"
    file.write_text("command: graft head fit\nsteps: 3\n")
    assert hoisted([f"--config={file}", "--out", "o"]) == [
        f"--config={file}", "--config-for", "graft head fit", "graft", "head", "fit", "--out", "o",
    ]  # fmt: skip
    with pytest.raises(
        ValueError, match="holds the options of `regraft graft head fit`, not of `regraft graft head build`"
    ):
        hoisted(["graft", "head", "build", "--config", str(file)])


def test_a_run_folder_holds_the_options_that_make_it_again(tmp_path):
    done = run("knockout", *MODEL, *FEW, "--seed", "3", "--out", str(tmp_path / "a"))
    assert done.exit_code == 0, done.output
    said = yaml.safe_load((tmp_path / "a" / "run.yaml").read_text())
    assert said == {
        "command": "knockout", "prompts": ["14 + 43 =", "The capital of France is"], "tokens": 4,
        "model": "specimen:gpt2", "seed": 3,
    }  # fmt: skip
    again = run("--config", str(tmp_path / "a" / "run.yaml"), "--out", str(tmp_path / "b"))
    assert again.exit_code == 0, again.output
    assert (tmp_path / "a" / "run.yaml").read_text() == (tmp_path / "b" / "run.yaml").read_text()
    first, second = open_run(tmp_path / "a"), open_run(tmp_path / "b")
    # Whether layers are packed is decided by a trial at load, so the last bits may differ.
    assert first.loss.values.tolist() == pytest.approx(second.loss.values.tolist(), rel=1e-4)
    assert first.attrs["options"] == second.attrs["options"]
    other = run("knockout", "--config", str(tmp_path / "a" / "run.yaml"), "--tokens", "2", "--json")
    assert json.loads(other.stdout)["attrs"]["options"]["tokens"] == 2, "the line goes before the file"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("modee: pairs", "says 'modee', which is no option of this command (nearest: mode): it has"),
        ("- a\n- b", "is no table of options"),
        ("a: [", "cannot be read"),
        ("command: graft head\nsteps: 3", "says 'steps', which is no option of this command"),
        (None, "cannot be read"),
    ],
)
def test_a_file_that_holds_no_options_is_told(text, said, tmp_path):
    file = tmp_path / "run.yaml"
    if text is not None:
        file.write_text(text)
    command = ["graft", "head", "fit"] if text and text.startswith("command") else ["knockout"]
    entry = [sys.executable, "-c", "from regraft.cli.main import main; main()"]
    done = subprocess.run(
        [*entry, *command, "--config", str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("regraft: ")
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("words", [["graft", "head", "fit"], ["knockout", "specimen:gpt2"]])
def test_a_file_need_not_name_the_command_of_a_group(words, tmp_path):
    """Its options are those of the command on the line, however deep in groups that is."""
    file = tmp_path / "run.yaml"
    file.write_text("nothing: 3\n")
    done = run(*words, "--config", str(file))
    assert done.exit_code == 2
    assert "says 'nothing', which is no option of this command" in " ".join(done.stderr.split())
    assert ("steps" if words[0] == "graft" else "prompts") in done.stderr


def test_a_command_that_there_is_not_is_told_with_the_nearest(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("steps: 3\n")
    done = run("graft", "transcodr", "fit", "--config", str(file))
    assert done.exit_code == 2
    assert "there is no command 'graft transcodr' for the options of" in " ".join(done.stderr.split())
    assert "write one of transcoder, embedding, head" in " ".join(done.stderr.split())


def test_one_value_of_a_list_may_stand_alone_in_a_file(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(
        f"command: completions\nprompts: The capital of France is\ntokens: 2\nmodel: {MODEL[1]}\n"
    )
    done = run("--config", str(file), "--json")
    assert json.loads(done.stdout)["attrs"]["options"]["prompts"] == ["The capital of France is"]


def test_quiet_verbose_and_a_log(tmp_path):
    log = tmp_path / "log.txt"
    plain = run("knockout", *MODEL, *FEW)
    quiet = run("knockout", *MODEL, *FEW, "--quiet")
    assert "units:" in plain.stdout
    assert "units:" not in quiet.stdout
    assert quiet.stdout.splitlines()[0] in plain.stdout
    loud = run("knockout", *MODEL, *FEW, "--verbose", "--log-file", str(log))
    assert "variants: 1000 of 1000" in loud.stderr
    lines = log.read_text().splitlines()
    assert any(line.endswith("variants: 1000 of 1000") for line in lines)
    assert lines[-1].endswith("done")
    tenths = [line for line in lines if "variants:" in line]
    assert len(tenths) <= 11
    wrong = run("knockout", *MODEL, "--prompts", "", "--log-file", str(log))
    assert wrong.exit_code == 2
    assert "the prompt is empty" in log.read_text()
    assert wrong.stderr.count("the prompt is empty") == 1
    nowhere = run("knockout", "--log-file", str(tmp_path / "no" / "log.txt"))
    assert (nowhere.exit_code, "cannot be written" in nowhere.stderr) == (2, True)
    both = run("knockout", "--quiet", "--verbose")
    assert (both.exit_code, "contradict" in both.stderr) == (2, True)
    assert common().quiet is False, "what one command was told is not told to the next"


def test_nothing_is_written_that_was_not_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("REGRAFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    made = []
    real = generation._generate
    monkeypatch.setattr(generation, "_generate", lambda *words: made.append(1) or real(*words))
    assert run("knockout", *MODEL, *FEW, "--no-cache").exit_code == 0
    assert list(tmp_path.iterdir()) == []
    assert run("knockout", *MODEL, *FEW).exit_code == 0
    assert [p.name for p in tmp_path.iterdir()] == ["cache"], "completions alone, where the help says"
    assert run("knockout", *MODEL, *FEW).exit_code == 0
    assert len(made) == 2, "kept ones are read"
    assert run("knockout", *MODEL, *FEW, "--no-cache").exit_code == 0
    assert len(made) == 3, "and not where nobody wants that"
    assert "$REGRAFT_CACHE" in CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}).output


@pytest.fixture
def ctrl_c():
    """Python's own way with Ctrl-C, also where whoever began the tests has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_lets_a_step_end_and_a_second_one_does_not(ctrl_c):
    with finishing_steps() as asked:
        assert not asked()
        os.kill(os.getpid(), signal.SIGINT)
        assert asked()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), finishing_steps(alone=False):
        os.kill(os.getpid(), signal.SIGINT)
    heard = []

    def elsewhere():
        with finishing_steps() as asked:
            heard.append(asked())

    other = threading.Thread(target=elsewhere)
    other.start()
    other.join()
    assert heard == [False]


def test_who_stops_says_what_is_kept(capsys):
    with pytest.raises(StoppedError, match="outer"), kept_when_stopped(lambda: "outer"):
        raise KeyboardInterrupt
    with (
        pytest.raises(StoppedError, match="inner"),
        kept_when_stopped(lambda: "outer"),
        kept_when_stopped(lambda: "inner"),
    ):
        raise KeyboardInterrupt
    for error, said in (
        (KeyboardInterrupt(), "Nothing is kept but"),
        (StoppedError("kept in x"), "kept in x"),
    ):
        with pytest.raises(typer.Exit) as end, errors_in_one_sentence(False):
            raise error
        assert end.value.exit_code == 130
        assert said in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_keeps_training_on_ctrl_c_and_goes_on(tmp_path):
    code = (
        "import os, signal, sys\n"
        "from regraft.core import progress\n"
        "from regraft.training import trainer\n"
        "real = trainer.advance\n"
        "def advance(work, done, total):\n"
        "    real(work, done, total)\n"
        "    if total == 4 and done == 1 and stops:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "trainer.advance = advance\n"
        "stops = 'stop' in sys.argv\n"
        "sys.argv = [a for a in sys.argv if a != 'stop']\n"
        "from regraft.cli.main import main\nmain()\n"
    )
    options = [
        "--steps",
        "4",
        "--warm",
        "2",
        "--batch",
        "2",
        "--length",
        "16",
        "--neurons",
        "32",
        "--byte-width",
        "16",
    ]
    words = ["graft", "embedding", "fit", *MODEL, *options, "--out"]
    first = subprocess.run(
        [sys.executable, "-c", code, *words, str(tmp_path / "a"), "stop"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert first.returncode == 130, first.stderr
    assert "stopped behind step 2 of 4, which is kept in" in first.stderr
    assert "the same command goes on from there" in first.stderr
    again = subprocess.run(
        [sys.executable, "-c", code, *words, str(tmp_path / "a")], capture_output=True, text=True, check=False
    )
    assert again.returncode == 0, again.stderr
    whole = subprocess.run(
        [sys.executable, "-c", code, *words, str(tmp_path / "b")], capture_output=True, text=True, check=False
    )
    assert whole.returncode == 0, whole.stderr
    stopped, unbroken = (load_file(next((tmp_path / name / "graft").glob("*.safetensors"))) for name in "ab")
    assert stopped.keys() == unbroken.keys()
    for name, values in unbroken.items():
        torch.testing.assert_close(stopped[name], values, rtol=1e-3, atol=1e-5, msg=name)
    lines = [len((next((tmp_path / name).rglob("log.jsonl"))).read_text().splitlines()) for name in "ab"]
    assert lines == [4, 4], "no step twice"


def test_a_report_that_is_stopped_says_what_it_holds(tmp_path, monkeypatch, ctrl_c):
    real = build.Report.add

    def add(self, name, chosen):
        if name == "lens":
            os.kill(os.getpid(), signal.SIGINT)
        real(self, name, chosen)

    monkeypatch.setattr(build.Report, "add", add)
    out = tmp_path / "r"
    done = run(
        "report", *MODEL, "--prompts", "14 + 43 =", "The capital of", "--count", "2", "--out", str(out)
    )
    assert done.exit_code == 130, done.output
    told = " ".join(done.stderr.split())
    assert "report.html and the folders beside it hold the chapters that were measured" in told
    assert (out / "completions" / "run.json").is_file()
    assert "Not measured yet" in (out / "report.html").read_text()


def test_the_help_of_a_report_says_how_many_prompts_it_measures():
    told = " ".join(CliRunner().invoke(app, ["report", "--help"], env={"COLUMNS": "200"}).output.split())
    assert f"by default those given, or {LEAST}." in told


def test_help_version_and_wrong_words_load_nothing_heavy():
    """Under half a second here; held to it by what is not imported, and timed by `benchmarks`."""
    for words in (
        ["--help"],
        ["--version"],
        ["knockout", "--help"],
        ["nothing"],
        ["knockout", "--nothing"],
        ["--config"],
    ):
        code = (
            "import sys\nfrom regraft.cli.main import main\n"
            f"sys.argv = ['regraft', *{words!r}]\n"
            "try:\n    main()\nexcept SystemExit:\n    pass\n"
            "heavy = {'torch', 'transformers', 'xarray', 'plotly', 'yaml', 'huggingface_hub'}\n"
            "print('heavy', heavy & set(sys.modules))\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.stdout.rstrip().endswith("heavy set()"), (words, done.stdout, done.stderr)


def test_grafts_reports_and_rebuilt_models_hold_their_options_too(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("She sells sea shells by the sea shore. " * 300)
    text = ["--text", str(tmp_path / "a.txt")]
    begun = ["graft", "head", "build", *MODEL, *text, "--states", "60", "--adapter", "1", "--length", "16"]
    done = run(*begun, "--out", str(tmp_path / "head"))
    assert done.exit_code == 0, done.output
    said = yaml.safe_load((tmp_path / "head" / "run.yaml").read_text())
    assert said["command"].endswith("graft head build")
    assert (said["states"], said["text"], "out" in said) == (60, [str(tmp_path / "a.txt")], False)
    there = linked(MODEL[1], tmp_path / "asked")
    monkeypatch.setattr(
        console, "rebuild", lambda _, *given, **more: rebuild(there, *given, **more, official=here)
    )
    rebuilt = run("rebuild", *MODEL, "--stage", "0.heads", "--out", str(tmp_path / "r"))
    assert rebuilt.exit_code == 0, rebuilt.output
    assert yaml.safe_load((tmp_path / "r" / "run.yaml").read_text()) == {
        "command": "rebuild", "model": "specimen:gpt2", "stage": "0.heads",
    }  # fmt: skip
    monkeypatch.setattr("regraft.reporting.build.CHAPTERS", (("knockout", {}), ("spectra", {})))
    page = run("report", *MODEL, "--count", "2", "--out", str(tmp_path / "page"))
    assert page.exit_code == 0, page.output
    assert yaml.safe_load((tmp_path / "page" / "run.yaml").read_text())["command"] == "report"
    chapter = yaml.safe_load((tmp_path / "page" / "knockout" / "run.yaml").read_text())
    assert chapter == {"command": "knockout", "model": "specimen:gpt2", "count": 2}
    one = run("--config", str(tmp_path / "page" / "knockout" / "run.yaml"), "--json")
    assert json.loads(one.stdout)["attrs"]["options"]["count"] == 2
    alone = run("--config", str(tmp_path / "page" / "spectra" / "run.yaml"), "--roles", "q", "--json")
    assert alone.exit_code == 0, alone.output
