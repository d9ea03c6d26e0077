"""The contrastive groups that ship: every rule of a group holds for each of them, and each rule is seen to
be broken where it is."""

from __future__ import annotations

from collections import Counter
from dataclasses import astuple, replace

import pytest

from regraft.data.contrasts import Contrast, general, specimen

GROUPS = [*general(), *specimen()]
FEWEST, LONGEST, APART, SHARED = 110, 8, 2, 2
"""General groups; words of a completion; words between two lengths; words of a shared prefix."""


def completions(group):
    return [group.base, group.synonym, group.antonym, group.style, group.unrelated]


def alike_at_start(rows):
    """How many words all the rows of words begin with."""
    places = list(zip(*rows, strict=False))
    return next((n for n, words in enumerate(places) if len(set(words)) > 1), len(places))


def shared_words(group):
    """Words that all five completions begin with."""
    return alike_at_start([said.split() for said in completions(group)])


def turns_on(group):
    """What is left of base and antonym without what they share on either side."""
    base, antonym = group.base.split(), group.antonym.split()
    start = alike_at_start([base, antonym])
    base, antonym = base[start:], antonym[start:]
    end = alike_at_start([base[::-1], antonym[::-1]])
    return tuple(" ".join(words[: len(words) - end]) for words in (base, antonym))


def broken(group):
    """The rules of a group that this one breaks, in a word each."""
    said = completions(group)
    lengths = [len(one.split()) for one in said]
    firsts = [one.split()[0] for one in said]
    parts = {"immediate": len(set(firsts)) == 5, "shared prefix": shared_words(group) >= SHARED}
    kept = {
        "prompt": group.prompt == group.prompt.strip() != "",
        "space": all(one == " " + " ".join(one.split()) for one in said),
        "full stop": not any("." in one for one in said),
        "alike": len({one.casefold() for one in said}) == 5,
        "words": min(lengths) >= 1 and max(lengths) <= LONGEST,
        "lengths": max(lengths) - min(lengths) <= APART,
        "kind": parts.get(group.kind, False),
        "whole prefix": group.kind == "immediate" or min(lengths) > shared_words(group),
    }
    return {rule for rule, holds in kept.items() if not holds}


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.prompt)
def test_a_group_keeps_the_rules(group):
    assert not broken(group)


IMMEDIATE = Contrast("The hall was", " big", " large", " small", " fair vast", " on fire", "immediate")
TWO = Contrast(
    "He has", " a very big hat", " a very large hat", " a very small hat", " a very whopping hat",
    " a very red nose", "shared prefix",
)  # fmt: skip
ONE = Contrast("It was", " a big lie", " a large lie", " a wee lie", " a huge lie", " a red hat", TWO.kind)


@pytest.mark.parametrize(
    ("group", "wrong", "rule"),
    [
        (IMMEDIATE, {"prompt": "The hall was "}, "prompt"),
        (IMMEDIATE, {"synonym": "large"}, "space"),
        (IMMEDIATE, {"synonym": "  large"}, "space"),
        (IMMEDIATE, {"synonym": " large "}, "space"),
        (IMMEDIATE, {"style": " vast."}, "full stop"),
        (TWO, {"style": " a very Big hat"}, "alike"),
        (IMMEDIATE, {"unrelated": " built on sand dunes"}, "lengths"),
        (TWO, {"unrelated": " a very " + "long " * 6 + "nose"}, "words"),
        (IMMEDIATE, {"antonym": " big no more"}, "kind"),
        (IMMEDIATE, {"kind": "sudden"}, "kind"),
        (TWO, {"style": " a right whopping hat"}, "kind"),
        (TWO, {"unrelated": " a very"}, "whole prefix"),
    ],
)
def test_a_broken_rule_is_seen(group, wrong, rule):
    assert not broken(group)
    assert rule in broken(replace(group, **wrong))


def test_one_shared_word_is_no_shared_prefix():
    assert shared_words(ONE) == 1
    assert broken(ONE) == {"kind"}


def test_as_many_groups_of_either_kind():
    assert len(general()) >= FEWEST
    for groups in (general(), specimen()):
        kinds = Counter(group.kind for group in groups)
        assert kinds["immediate"] == kinds["shared prefix"] == len(groups) / 2


def test_no_group_comes_twice():
    prompts = Counter(group.prompt.casefold() for group in GROUPS)
    assert [prompt for prompt, times in prompts.items() if times > 1] == []
    assert len({astuple(group)[1:-1] for group in general()}) == len(general())
    pairs = Counter((group.base, group.antonym) for group in general())
    assert [pair for pair, times in pairs.items() if times > 1] == []


def test_no_two_general_groups_of_a_kind_turn_on_the_same_opposites():
    assert turns_on(TWO) == ("big", "small")
    turns = Counter((group.kind, *turns_on(group)) for group in general())
    assert [turn for turn, times in turns.items() if times > 1] == []
