"""Problems with one right answer: how they are read, when an answer counts, what models solve."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import pytest
import torch

import regraft
from regraft.data.problems import Problem, judged, of_one_length, read_problems, worked_problems
from regraft.export.solved_problems import MODELS, solve
from regraft.jobs import transcoder_jobs
from regraft.jobs.transcoder_jobs import opened_pair, transcoder_sentences
from test_transcoder_jobs import SHORT, margins_of

SURE = 0.05
"""Logits by which the best token must lead where texts are compared: rounding moves them by far less."""


@pytest.mark.parametrize(
    ("written", "closed", "right"),
    [
        (" 3 + 4 = 7. </think> Answer: 7.", True, True),
        (" 3 + 4 = 7. </think> Answer: 8.", True, False),
        (" </think> Answer: 17.", True, False),
        (" </think> Answer: 70.", True, False),
        (" </think> Answer: 7.5", True, False),
        (" </think> Answer: 1.7", True, False),
        (" </think> It is 7, I think", True, True),
        (" 3 + 4 = 7. Answer: 7.", False, False),
        (" x </think> Answer: -7.", True, False),
        (" x </think> Answer: 2*7", True, False),
        (" x </think> it is 7/3", True, False),
        (" x </think> that is 7%", True, False),
        (" x </think> Answer: 8. Problem: Tom has 7 cups", True, False),
        (" x </think> Answer: 7. Problem: 1 + 1? <think> 2", True, True),
        (" x </think> Answer: 7. Problem: 1 + 1? <think> 2 </think> Answer: 2.", True, True),
        (" x </think> 3 + 4 = 7", True, True),
        (" x </think> 7 is more than 3 + 3 = 6", True, False),
        (" x </think> so \\boxed{7} of 9", True, True),
        (" x </think> The answer is 7, not 8", True, True),
        (" 7 </think> I do not know", True, False),
    ],
)
def test_an_answer_counts_by_itself_and_behind_a_closed_thought(written, closed, right):
    found = judged(Problem("3 + 4? <think>", "7"), written)
    assert (found.closed, found.right) == (closed, right)


@pytest.mark.parametrize(
    ("answer", "told", "right"),
    [
        ("1200", "Answer: 1,200", True),
        ("1,200", "it makes 1200", True),
        ("-7", "Answer: \N{MINUS SIGN}7", True),
        ("Paris", "The answer is Paris.", True),
        ("Paris", "The answer is Parisian.", False),
        ("x + 1", "so (x + 1) it is", True),
        ("7.5", "7.5", True),
        ("7", "7.5", False),
    ],
)
def test_numbers_are_compared_as_numbers_and_words_as_words(answer, told, right):
    assert judged(Problem("?", answer), told).right is right


def test_a_thought_that_the_text_opens_must_close_and_none_need_not():
    asked = Problem("3 + 4?", "7")
    assert judged(asked, " 7").right
    assert not judged(asked, "<think> 7").right
    assert judged(asked, "<think> 8 </think> 7").right
    assert not judged(Problem("7 + 0?", "7"), " 8").right, "what the question says is no answer"


def test_worked_problems_have_the_answer_of_the_almanac():
    made = worked_problems(50, 3)
    assert made == worked_problems(50, 3) != worked_problems(50, 4)
    for problem in made:
        assert problem.prompt.endswith(" <think>")
        assert sum(map(int, re.findall(r"\d+", problem.prompt))) == int(problem.answer)


def test_a_file_of_problems_is_read_by_the_template_and_wrong_lines_are_named(tmp_path):
    file = tmp_path / "problems.jsonl"
    file.write_text('{"question": "2 + 2?", "answer": 4}\n\n{"question": "3 + 4?", "answer": " 7 "}\n')
    plain = SimpleNamespace(chat_template=None)
    assert read_problems(file, plain) == [Problem("2 + 2?", "4"), Problem("3 + 4?", "7")]

    def template(turns, tokenize, add_generation_prompt):
        return f"<user>{turns[0]['content']}<assistant>" if add_generation_prompt and not tokenize else ""

    asked = SimpleNamespace(chat_template="x", apply_chat_template=template)
    assert read_problems(file, asked)[0].prompt == "<user>2 + 2?<assistant>"
    for text, said in (
        ('{"question": "a"}\n', "line 1 of .* is no problem: write question and answer"),
        ('{"question": "a", "answer": "b"}\nnothing\n', "line 2 of .* is no problem"),
        ('["a", "b"]\n', "line 1 of .* is no problem"),
        ('{"question": " ", "answer": "b"}\n', "line 1 of .* has an empty question or answer"),
        ("\n", "is empty: name a file with a question"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=said):
            read_problems(file, plain)
    file.write_text(
        json.dumps({"question": "a\u2028b?", "answer": "c"}, ensure_ascii=False), encoding="utf-8"
    )
    assert read_problems(file, plain) == [Problem("a\u2028b?", "c")], "a line ends at a line's end alone"
    with pytest.raises(ValueError, match=r"none\.jsonl .*name a file with a question and an answer"):
        read_problems(tmp_path / "none.jsonl", plain)


@pytest.mark.slow
@pytest.mark.usefixtures("quick_pairs")
def test_the_certificate_says_what_each_model_solves(tmp_path):
    base, target = regraft.load("specimen:qwen3"), regraft.load("specimen:tuned")
    regraft.fit_transcoder(base, target, tmp_path, features=8, plan=SHORT)
    file = tmp_path / "p.jsonl"
    made = worked_problems(5, 9)
    file.write_text("".join(json.dumps({"question": p.prompt, "answer": p.answer}) + "\n" for p in made))
    data = regraft.evaluate_transcoder(tmp_path / "graft", problems=file, most=2, new_tokens=60)
    assert data.attrs["problems"] == 5
    standing = opened_pair(tmp_path / "graft")
    tokenizer = target.tokenizer
    right, tokens = 0, 0
    for problem in made:
        ids = torch.tensor([tokenizer(problem.prompt, add_special_tokens=False)["input_ids"]])
        row = target.hf.generate(ids, max_new_tokens=60, do_sample=False)[0, ids.shape[1] :]
        kept = row[: row.tolist().index(target.hf.generation_config.eos_token_id)]
        assert float(margins_of(target.hf, ids, kept).min()) > SURE, "no token hangs on rounding"
        right += f"</think> Answer: {problem.answer}." in tokenizer.decode(kept)
        tokens += len(kept)
    assert float(data.right.sel(model="target")) == pytest.approx(right / 5)
    assert float(data.length.sel(model="target")) == pytest.approx(tokens / 5)
    assert right > 3
    # the others are less sure of their words: one problem of five may come out otherwise elsewhere
    for name, model, placed in standing.named():
        with placed:
            found = solve(model, made, 60)
        share = sum(one.attempt.right for one in found) / 5
        assert float(data.right.sel(model=name)) == pytest.approx(share, abs=0.2), name
        assert float(data.length.sel(model=name)) == pytest.approx(sum(o.tokens for o in found) / 5, abs=9), (
            name
        )
    assert float(data.length.sel(model="base")) > tokens / 5 + 15, "the base does not stop"
    told = transcoder_sentences(data)[-1]
    assert told.startswith("5 held-out problems: base 0.0% right, ")
    assert all(name in told for name in MODELS)
    assert "--problems=" in (tmp_path / "graft" / "certificate.html").read_text()
    assert transcoder_jobs._problems(standing, 3, file, 60) == made[:3]
    assert transcoder_jobs._problems(standing, 0, "", 60) == [], "none are asked for"
    with pytest.raises(
        ValueError, match=r"make 10000\d\d, more than the \d+ that .* reads: lower --new-tokens"
    ):
        transcoder_jobs._problems(standing, 2, "", 10**6)
    with pytest.raises(ValueError, match="solve is -1: write 0 or more"):
        regraft.evaluate_transcoder(tmp_path / "graft", solve=-1)


def test_models_are_asked_greedily_whatever_their_settings_are(tmp_path):
    """Repetition penalties and other ends of one model would make another contest of it."""
    model, problems = regraft.load("specimen:tuned"), worked_problems(4, 5)
    plain = solve(model, problems, 50)
    for problem, one in zip(problems, plain, strict=True):
        ids, written = (
            torch.tensor([model.tokenizer(text, add_special_tokens=False)["input_ids"]])
            for text in (problem.prompt, one.text)
        )
        assert float(margins_of(model.hf, ids, written[0]).min()) > SURE, "no token hangs on rounding"
    own = model.hf.generation_config
    model.hf.generation_config = type(own)(
        repetition_penalty=3.0, num_beams=2, do_sample=True, temperature=9.0, eos_token_id=own.eos_token_id
    )
    assert [one.text for one in solve(model, problems, 50)] == [one.text for one in plain]
    (wait,) = model.tokenizer(" Then", add_special_tokens=False)["input_ids"][:1]
    for one, short in zip(plain, solve(model, problems, 50, {wait}), strict=True):
        assert short.text == one.text.partition(" Then")[0], "another model's end ends this text, too"
        assert short.tokens < one.tokens


def test_problems_of_one_length_go_together():
    tokens = lambda text, add_special_tokens: {"input_ids": list(text)}  # noqa: E731
    problems = [Problem(text, "1") for text in ("aa", "b", "cc", "d")]
    assert of_one_length(tokens, problems) == [[0, 2], [1, 3]]
