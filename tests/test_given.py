"""Texts of the user's own, what a tokenizer can say, and how tokens are read and found."""

from __future__ import annotations

import json
from functools import partial

import pytest
from typer.testing import CliRunner

import odd_models
from regraft import load
from regraft.cli.main import app, spread_lists
from regraft.core.registry import experiments
from regraft.data.corpus import corpus
from regraft.data.generation import completions, suited_prompts
from regraft.data.own_texts import given_prompts, pieces_per_word, unknown_share
from regraft.data.prompts import BOOK_PASSAGES, Prompt, general
from regraft.experiments.running import run_experiment
from regraft.reporting.chapter_inputs import LEAST, Reading
from regraft.tokenizers.bits_per_byte import fitted, score
from regraft.tokenizers.byte_codec import ByteIds

NAMES = ("knockout", "ablate", "push", "lens", "trajectories", "neurons", "linearity")
RUN = {name: partial(run_experiment, experiments()[name]) for name in NAMES}
SHORT = dict(count=2, tokens=3)


@pytest.fixture(scope="module")
def stories():
    hf, tokenizer = odd_models.stories()
    return load(hf, tokenizer, pack=False)


@pytest.fixture(scope="module")
def phonemes():
    hf, read, written = odd_models.graphemes_to_phonemes()
    return load(hf, read, target_tokenizer=written, pack=False)


def run(*words):
    return CliRunner().invoke(app, spread_lists(list(words)))


def test_prompts_are_lines_or_json_and_the_same_either_way(tmp_path):
    lines, listed, objects = (tmp_path / name for name in ("a.txt", "b.json", "c.json"))
    wanted = ["The capital of Peru is", "2:30 pm is in the"]
    lines.write_text("\n".join([wanted[0], "", wanted[1]]), encoding="utf-8")
    listed.write_text(json.dumps(wanted), encoding="utf-8")
    objects.write_text(json.dumps([{"prompt": text, "category": "x"} for text in wanted]), encoding="utf-8")
    model = load("specimen:gpt2", pack=False)
    assert all(given_prompts(model, None, str(file), "", 5) == wanted for file in (lines, listed, objects))
    common = ("--model", "specimen:gpt2", "--tokens", "3", "--json")
    made = [
        run("knockout", *ways, *common) for ways in (("--prompts-file", str(listed)), ("--prompts", *wanted))
    ]
    assert [one.exit_code for one in made] == [0, 0]
    losses = [json.loads(one.stdout)["data_vars"]["loss"]["data"] for one in made]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4), "two readings of one folder lie at two addresses"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("[1, 2]", "holds an entry that is no prompt"),
        ("[broken", "is no JSON list"),
        ("", "is empty"),
        ("[]", "holds an entry"),
    ],
)
def test_files_without_prompts_are_refused_before_anything_is_opened(content, sentence, tmp_path):
    file = tmp_path / "prompts"
    file.write_text(content, encoding="utf-8")
    for command in ("knockout", "report"):
        done = run(
            command, "--prompts-file", str(file), "--model", "specimen:gpt2", "--out", str(tmp_path / "out")
        )
        assert done.exit_code == 2
        assert sentence in done.stderr
    both = run("lens", "--prompts-file", str(file), "--prompts", "a")
    assert both.exit_code == 2
    assert "both say what is read" in both.stderr


def test_running_text_is_cut_by_tokens_not_by_letters(tmp_path):
    """Text in another script has many tokens a letter: pieces of 32 tokens fit whatever the script."""
    file = tmp_path / "ru.txt"
    file.write_text("Все счастливые семьи похожи друг на друга. " * 120, encoding="utf-8")
    model = load("specimen:qwen3", pack=False)
    found = given_prompts(model, None, "", str(file), 4)
    assert len(found) == 4
    assert all(len(model.encode(text)) <= 40 for text in found)
    assert len(model.encode(file.read_text(encoding="utf-8")[:800])) > 512, "the model reads 512 tokens"
    assert max(map(len, corpus(model, str(file)))) <= 128


def test_pieces_that_are_scored_fit_the_model_whatever_the_script():
    model = load("specimen:qwen3", pack=False)
    reader = ByteIds(model.tokenizer)
    text = "Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива по-своему. " * 20
    with pytest.raises(ValueError, match="give shorter pieces"):
        score(model, reader, [text])
    cut = fitted([text, "short"], [reader], 512)
    assert "".join(cut) == text + "short"
    assert max(len(reader.encode(piece.encode())) for piece in cut) < 511
    assert score(model, reader, cut).bytes > 0
    assert fitted([text], [reader], 0) == [text]


def test_a_report_reads_what_it_is_given(stories, tmp_path):
    file = tmp_path / "story.txt"
    file.write_text(odd_models.STORY * 3, encoding="utf-8")
    given, told = Reading(text=str(file), count=3).options("knockout", stories)
    assert len(given["prompts"]) == given["count"] == 3
    assert told == {"text": str(file), "count": 3}
    given, told = Reading(text=str(file)).options("neurons", stories)
    assert given["corpus"] == told["corpus"] == str(file)
    assert Reading(pairs="p.json").options("patch", stories) == ({"pairs": "p.json"}, {"pairs": "p.json"})
    assert Reading(prompts=("a", "b")).options("ablate", stories)[0] == {"prompts": ["a", "b"]}
    ten = ({"count": LEAST}, {"count": LEAST})
    assert Reading().options("knockout", stories) == ten
    gathered = Reading().options("correlations", stories)
    assert gathered == Reading().options("linearity", stories), "what it gathers was measured on as many"
    assert Reading().options("shuffle", stories) == ({}, {}), "it reads eight by itself"
    assert Reading().options("ablate", stories) == ({}, {}), "it counts no suiting prompts"
    assert Reading(prompts=("a", "b")).options("knockout", stories)[0] == {"prompts": ["a", "b"]}


def test_prompts_that_ship_are_read_only_where_the_tokenizer_knows_them(stories, phonemes):
    assert unknown_share(stories, [odd_models.STORY]) == 0.0
    with pytest.raises(
        ValueError, match=r"does not know \d+% of the tokens of the English prompts that ship with regraft"
    ):
        suited_prompts(stories)
    for name, what in (("trajectories", "groups"), ("ablate", "sentence|probab"), ("push", "question")):
        model = phonemes if name != "ablate" else load(*odd_models.three_tokens(), pack=False)
        with pytest.raises(ValueError, match=rf"does not know \d+% of the tokens of the English ({what})"):
            RUN[name](model)
    own = RUN["knockout"](stories, prompts=["Lily was sad", "The dog was happy"], tokens=3)
    assert own.sizes["prompt"] == 2


def test_prose_is_read_by_a_model_that_knows_it_better_and_general_prompts_by_any_other(monkeypatch):
    from regraft.data import generation as module

    model = load("specimen:gpt2", pack=False)
    monkeypatch.setattr(module, "is_specimen", lambda model: False)
    for losses, wanted in (((5.0, 3.0), BOOK_PASSAGES), ((3.0, 2.0), general()), ((5.0, 5.5), general())):
        model.proved.pop("suited", None)
        given = iter(losses)
        monkeypatch.setattr(module, "own_loss", lambda model, texts, given=given: next(given))
        assert suited_prompts(model) == wanted, losses
    assert pieces_per_word(model, ["The capital of France is", "antidisestablishmentarianism"]) > 1.0


def test_unknown_tokens_of_a_prompt_are_noted(stories):
    assert stories.record("Lily was sad").notes == []
    assert stories.record("Lily was sad 7").notes == [
        f"1 of {len(stories.encode('Lily was sad 7'))} tokens of a prompt are unknown to the tokenizer"
    ]


def test_pieces_keep_the_space_that_they_bear(stories):
    ids = stories.encode("She liked to play")
    assert "".join(stories.token_text(i) for i in ids) == " She liked to play"
    assert stories.tokenizer.decode([ids[1]]) == "liked", "decoded alone, a piece loses it"
    assert stories.single_token(" dog") == stories.single_token("dog") == stories.encode("dog")[0]
    with pytest.raises(ValueError, match="tokens here"):
        stories.single_token(" dog happy")


def test_what_is_written_may_have_a_tokenizer_of_its_own(phonemes):
    assert phonemes.single_token("AE") == phonemes.target_tokenizer.convert_tokens_to_ids("AE")
    recording = phonemes.record("cat", "K AE T")
    assert recording.ids_BT[0, 1:].tolist() == phonemes.target_tokenizer("K AE T")["input_ids"]
    assert recording.inputs["input_ids"][0, :3].tolist() == [
        phonemes.tokenizer.convert_tokens_to_ids(c) for c in "cat"
    ]
    begun, empty = (
        RUN["ablate"](phonemes, prompt="cat", target="T", decoder_text=text) for text in ("K AE", "")
    )
    assert begun.attrs["clean_probability"] != empty.attrs["clean_probability"]
    pushed = RUN["push"](phonemes, question="cat", baseline="dog", targets=["T", "K"], decoder_text="K AE")
    assert pushed.attrs["experiment"] == "push"
    single = load(*odd_models.one_block(), pack=False)
    for name, options in (
        ("ablate", {"prompt": "She was"}),
        ("push", {"question": "a", "baseline": "b", "targets": ["a"]}),
    ):
        with pytest.raises(ValueError, match="has no decoder of its own"):
            RUN[name](single, decoder_text="x", **options)
    with pytest.raises(ValueError, match="belongs to an encoder-decoder"):
        load(single.hf, single.tokenizer, target_tokenizer=single.tokenizer, pack=False)


def test_answers_fit_into_the_model_behind_their_prompts():
    model = load(*odd_models.three_tokens(), pack=False)
    said = completions(model, [Prompt("a b c a", "x"), Prompt("a b c a b c a b", "x")], 24)
    assert all(1 <= len(c.completion_ids) <= 3 for c in said)
    with pytest.raises(
        ValueError, match="a prompt of 11 tokens leaves no room for an answer in 11 positions"
    ):
        completions(model, [Prompt(" ".join("abc" * 4)[:21], "x")], 24)


def test_linear_maps_are_fitted_on_the_given_prompts_that_are_not_measured(stories):
    prompts = ["Lily was sad", "The dog was happy", "She liked to play", "One day she saw a small dog"]
    found = RUN["linearity"](stories, prompts=prompts, tokens=3, sample=2, directions=2)
    assert "linear_loss" in found or "reason" not in found.attrs
    alone = RUN["linearity"](stories, prompts=prompts[:1], tokens=3, sample=2, directions=2)
    assert "one is given" in json.dumps(alone.attrs, default=str)


def test_python_and_the_command_line_draw_from_the_same_seed():
    import regraft

    model = load("specimen:gpt2", pack=False)
    options = dict(prompts=["The capital of Peru is"], tokens=3, sample=2, directions=2)
    drawn = [regraft.linearity(model, **options).gap.values for _ in range(2)]
    ran = run_experiment(experiments()["linearity"], model, 0, **options).gap.values
    other = regraft.linearity(model, seed=1, **options).gap.values
    assert (drawn[0] == drawn[1]).all()
    assert (drawn[0] == ran).all()
    assert not (drawn[0] == other).all()
