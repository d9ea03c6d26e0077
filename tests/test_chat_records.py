"""Chat records: what is complete, short enough, and in the wanted shares."""

from __future__ import annotations

import json

import pytest

import regraft
from regraft.data.chat_records import PUBLISHED, chat_records, kept
from regraft.data.exchanges import Exchange, exchanges_in, is_chat_file
from regraft.data.records import COUNTED
from regraft.jobs.transcoder_jobs import fit_transcoder
from regraft.training.trainer import TrainingPlan


class Words:
    chat_template = None
    eos_token = "."

    def __call__(self, text, add_special_tokens):
        return {"input_ids": [len(word) for word in text.split()]}


def exchange(domain, number=0, trace="<think> a b </think> c", extra=0):
    return Exchange(f"question {number}", f"{trace} {number}{' x' * extra}", domain)


def written(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_complete_and_short_ones_are_kept_in_the_wanted_shares():
    some = [exchange("math", n) for n in range(70)] + [exchange("code", n) for n in range(40)]
    some += [exchange("science", n) for n in range(5)] + [exchange("", 1)]
    some += [
        exchange("math", 1, "<think> a"),
        exchange("math", 2, "a </think> <think> b"),
        exchange("math", 3, "a"),
    ]
    some += [exchange("code", 1, extra=60)]
    plain = kept(Words(), some, longest=30)
    assert (len(plain.exchanges), plain.incomplete, plain.too_long) == (116, 3, 1)
    mixed = kept(Words(), some, 30, PUBLISHED)
    counts = {
        name: sum(one.domain == name for one in mixed.exchanges) for name in ("math", "code", "science", "")
    }
    assert counts == {"math": 35, "code": 10, "science": 5, "": 0}, "the scarcest domain sets the measure"
    assert mixed.beyond_share == 66
    assert (
        kept(Words(), some, 30, PUBLISHED, count=20).exchanges
        != kept(Words(), some, 30, PUBLISHED, 20, 1).exchanges
    )
    assert len(kept(Words(), some, 30, PUBLISHED, count=20).exchanges) == 20
    for shares, said in (
        ({"math": 0.5}, "sum to 0.5: they must sum to 1"),
        (
            {"math": 0.5, "law": 0.5},
            "no exchange of the domain 'law' is left: the text has , code, math, science",
        ),
    ):
        with pytest.raises(ValueError, match=said):
            kept(Words(), some, 30, shares)


def test_both_layouts_are_read_and_wrong_lines_named(tmp_path):
    file = written(
        tmp_path / "a.jsonl",
        [
            {
                "domain": "math",
                "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}],
            },
            {"messages": [{"role": "user", "content": "r"}, {"role": "assistant", "content": "b"}]},
        ],
    )
    assert is_chat_file(file)
    assert list(exchanges_in(file)) == [Exchange("q", "a", "math"), Exchange("r", "b", "")]
    assert not is_chat_file(written(tmp_path / "b.jsonl", [{"text": "plain"}]))
    for wrong, said in (
        ("{", "line 1 of .* is no JSON"),
        ('{"conversations": [{"value": "q"}]}', "has no question and answer"),
        ('{"messages": [{"content": "q"}, {"content": ""}]}', "has a turn without text"),
    ):
        (tmp_path / "c.jsonl").write_text(wrong)
        with pytest.raises(ValueError, match=said):
            list(exchanges_in(tmp_path / "c.jsonl"))


class Templated(Words):
    chat_template = "there is one"

    def apply_chat_template(self, turns, tokenize, add_generation_prompt):
        assert (tokenize, add_generation_prompt) == (False, True)
        return f"<user> {turns[0]['content']} <model> "


def test_questions_are_written_by_the_template():
    made = chat_records(Templated(), [Exchange("one two", "three", "")], 20, prompts_count=False)
    assert made.ids_NT.tolist() == [[6, 3, 3, 7, 6]], "three. is one word with its end"
    assert (made.kinds_NT == COUNTED).tolist() == [[False] * 4 + [True]]
    plain = chat_records(Words(), [Exchange("one two", "three", "")], 20)
    assert plain.ids_NT.tolist() == [[3, 3, 5]]
    with pytest.raises(ValueError, match="there is no record to train on"):
        chat_records(Words(), [], 20)


def test_adapters_are_fitted_on_chat_records(tmp_path):
    models = regraft.load("specimen:qwen3"), regraft.load("specimen:tuned")
    lines = [
        {
            "domain": "math",
            "conversations": [{"value": f"{n} + 1?"}, {"value": f"<think> {n} </think> {n + 1}"}],
        }
        for n in range(6)
    ]
    file = written(
        tmp_path / "sums.jsonl", [*lines, {"conversations": [{"value": "x"}, {"value": "<think> y"}]}]
    )
    plan = TrainingPlan(steps=1, batch=2, warmup=1)
    told = fit_transcoder(*models, tmp_path / "t", [str(file)], features=4, plan=plan, length=64)
    assert "of 4 features are active" in told
    data = regraft.evaluate_transcoder(tmp_path / "t" / "graft", [f"sums={file}"], most=4)
    assert list(data.domain.values) == ["sums"]
    (tmp_path / "plain.txt").write_text("some text " * 200)
    with pytest.raises(ValueError, match="domains have shares in chat records alone"):
        fit_transcoder(
            *models, tmp_path / "u", [str(tmp_path / "plain.txt")], features=4, shares={"math": 1.0}
        )
