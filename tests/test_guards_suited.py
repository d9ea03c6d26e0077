"""What ships with regraft is read only by models that know it: each threshold from just below and just
above."""

from __future__ import annotations

import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch

import odd_models
from regraft import load
from regraft.core.registry import experiments
from regraft.data import generation as choosing
from regraft.data import own_texts as given
from regraft.data.generation import suited_prompts
from regraft.data.own_texts import ASKED, check_sayable, own_loss, pieces_per_word, unknown_share, writes_on
from regraft.data.prompts import BOOK_PASSAGES, general
from regraft.experiments.running import run_experiment
from small import opened

VOCABULARY = 50
WORDS = [f"w{i}" for i in range(40)]


class Tokens:
    """One token for each word, the last letter of the alphabet unknown; a begin token where special ones are
    asked for."""

    unk_token_id = 0

    def __call__(self, text, add_special_tokens):
        return {
            "input_ids": (
                [1] * add_special_tokens + [0 if word == "z" else 2 + len(word) for word in text.split()]
            )
        }


class Reader:
    """A model that gives each next token of what it reads one probability, so that its loss is known."""

    def __init__(self, share=0.5, positions=0, labels=0, causal=True, two_stacks=False, head=True):
        self.loss = share * math.log(VOCABULARY)
        self.name, self.folder, self.device, self.vocabulary, self.tokenizer = (
            "it",
            None,
            "cpu",
            VOCABULARY,
            Tokens(),
        )
        self.hf = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=positions))
        self.parts = SimpleNamespace(head=object() if head else None, labels=labels)
        self.causal, self.two_stacks, self.proved, self.read = causal, two_stacks, {}, []

    def encode(self, text):
        return self.tokenizer(text, add_special_tokens=True)["input_ids"]

    def run(self, input_ids):
        self.read.append(input_ids[0].tolist())
        likely = math.exp(-self.loss)
        logits = torch.full((*input_ids.shape, VOCABULARY), (1 - likely) / (VOCABULARY - 1))
        logits[0, torch.arange(input_ids.shape[1] - 1), input_ids[0, 1:]] = likely
        return SimpleNamespace(logits=logits.log())


def test_a_loss_is_that_of_the_next_tokens_and_reads_no_more_than_fits():
    model = Reader(0.3, positions=4)
    texts = ["a bb ccc dddd eeeee", "a bb"]
    assert own_loss(model, texts) == pytest.approx(model.loss, rel=1e-5)
    assert model.read == [[1, 3, 4, 5], [1, 3, 4]]
    assert own_loss(Reader(), []) == own_loss(Reader(positions=1), texts) == math.inf


@pytest.mark.parametrize(("share", "fine"), [(0.5, True), (0.965, True), (0.975, False), (1.0, False)])
def test_a_model_no_better_than_chance_is_not_given_what_ships(share, fine):
    """Beyond 0.97 of the logarithm of the vocabulary."""
    model = Reader(share)
    if fine:
        check_sayable(model, ["a bb ccc"], "the words")
    else:
        wanted = (
            rf"it predicts the words no better than chance \({model.loss:.1f} nats per token, 3.9 where every"
            r" token"
        )
        with pytest.raises(ValueError, match=wanted):
            check_sayable(model, ["a bb ccc"], "the words")


def test_chance_is_asked_once_for_each_set_of_texts_and_of_ten_of_them():
    model = Reader()
    for what in ("these", "those"):
        for _ in range(2):
            check_sayable(model, ["a bb"] * 15, what)
    assert len(model.read) == 2 * ASKED == 20
    model.proved["loss of these"] = 3.9
    with pytest.raises(ValueError, match="these no better than chance"):
        check_sayable(model, ["a bb"], "these")
    check_sayable(model, ["a bb"], "those")


@pytest.mark.parametrize("other", [{"causal": False}, {"two_stacks": True}, {"head": False}, {"labels": 3}])
def test_only_a_model_that_writes_on_is_asked_for_its_loss(other):
    assert writes_on(Reader())
    model = Reader(1.0, **other)
    assert not writes_on(model)
    check_sayable(model, ["a bb ccc"], "the words")
    assert model.read == []
    with pytest.raises(ValueError, match="does not know 50% of the tokens of the words"):
        check_sayable(model, ["a z"], "the words")


@pytest.mark.parametrize(
    ("known", "unknown", "fine"), [(19, 1, True), (38, 2, True), (18, 1, False), (37, 2, False)]
)
def test_one_unknown_token_in_twenty_is_borne(known, unknown, fine):
    texts = [" ".join("a" * known), " ".join("z" * unknown)]
    assert unknown_share(Reader(), texts) == unknown / (known + unknown)
    if fine:
        check_sayable(Reader(), texts, "the words")
    else:
        with pytest.raises(
            ValueError, match="the tokenizer of it does not know 5% of the tokens of the words"
        ):
            check_sayable(Reader(), texts, "the words")


def test_without_a_tokenizer_or_an_unknown_token_nothing_is_unknown():
    model = Reader(1.0)
    model.tokenizer.unk_token_id = None
    assert unknown_share(model, ["z z"]) == 0.0
    model.tokenizer = None
    assert unknown_share(model, ["z z"]) == 0.0
    check_sayable(model, ["z z"], "the words")


def test_pieces_of_a_word_are_counted_without_what_is_put_around_a_text():
    assert pieces_per_word(Reader(), ["a bb", "ccc"]) == 1.0
    stories = load(*odd_models.stories(), pack=False)
    assert (
        pieces_per_word(stories, ["Lily", "zqxv"]) == len(stories.encode("Lily") + stories.encode("zqxv")) / 2
    )


def chosen(monkeypatch, losses=(1.0, 0.1), shares=(0.0, 0.0), pieces=(1.0, 1.0), **reader):
    """Which prompts suit, by the losses (as shares of chance), unknown tokens and pieces of the general ones
    and of prose."""
    model = Reader(**reader)
    prose = BOOK_PASSAGES[0].text

    def one(pair):
        return lambda model, texts: pair[int(texts[0].startswith(prose))]

    losses = tuple(share * math.log(VOCABULARY) for share in losses)
    for name, pair in (("own_loss", losses), ("unknown_share", shares), ("pieces_per_word", pieces)):
        for module in (choosing, given):
            monkeypatch.setattr(module, name, one(pair))
    found = suited_prompts(model)
    assert found in (general(), BOOK_PASSAGES)
    monkeypatch.setattr(choosing, "own_loss", lambda model, texts: pytest.fail("asked again"))
    assert suited_prompts(model) == found
    return found == BOOK_PASSAGES


@pytest.mark.parametrize(
    ("made", "prose"),
    [
        ({"losses": (0.61, 0.6)}, True),
        ({"losses": (0.59, 0.1)}, False),
        ({"losses": (0.61, 0.62)}, False),
        ({"losses": (0.9, 0.1), "pieces": (1.0, 8.1)}, False),
        ({"losses": (0.9, 0.1), "pieces": (1.0, 8.0)}, True),
        ({"losses": (0.1, 0.9), "pieces": (8.1, 1.0)}, True),
        ({"losses": (0.1, 0.9), "pieces": (8.0, 1.0)}, False),
        ({"losses": (0.9, 0.1), "pieces": (8.1, 8.1)}, False),
        ({"losses": (0.1, 0.9), "shares": (0.051, 0.0)}, True),
        ({"losses": (0.1, 0.9), "shares": (0.05, 0.0)}, False),
        ({"losses": (0.9, 0.1), "shares": (0.0, 0.051)}, False),
        ({"losses": (0.9, 0.1), "causal": False}, False),
    ],
)
def test_prose_is_chosen_where_the_general_prompts_are_foreign_and_it_is_less_so(monkeypatch, made, prose):
    """Beyond 0.6 of chance, 8 pieces of a word and one unknown token in twenty."""
    assert chosen(monkeypatch, **made) == prose


def test_where_neither_is_known_that_is_said(monkeypatch):
    model = Reader()
    model.tokenizer = lambda text, add_special_tokens: {"input_ids": [0, 5]}
    model.tokenizer.unk_token_id = 0
    with pytest.raises(
        ValueError, match="the tokenizer of it does not know 50% of the tokens of the English prompts"
    ):
        suited_prompts(model)


def test_a_single_block_cannot_be_left_out_and_that_is_said_before_anything_is_measured(monkeypatch):
    prune = partial(run_experiment, experiments()["prune"])
    alone = load(*odd_models.one_block(), pack=False)
    decoder = opened("t5")
    monkeypatch.setattr(type(alone), "record", lambda *args, **kwargs: pytest.fail("something was measured"))
    for drop in (None, [0], []):
        with pytest.raises(ValueError, match=r"^the model has a single block: none can be left out$"):
            prune(alone, drop=drop, prompts=["The dog was sad"], tokens=2)
    object.__setattr__(decoder.parts.stacks[-1], "blocks", decoder.parts.stacks[-1].blocks[:1])
    with pytest.raises(ValueError, match=r"^decoder has a single block"):
        prune(decoder, drop=[0], prompts=["5 6"], tokens=2)


def test_of_two_blocks_one_may_be_left_out():
    model = load(*odd_models.three_tokens(), pack=False)
    assert len(model.blocks) == 2
    found = run_experiment(experiments()["prune"], model, drop=[1, 1], prompts=["a b c a"], tokens=2)
    assert (found.attrs["change"], found.kept.values.tolist()) == ("without block 1", ["0"])
    greedy = run_experiment(experiments()["prune"], model, limit=1e9, prompts=["a b c a"], tokens=2)
    assert greedy.kept.size == 1, "one remains however much may be lost"
    for drop, sentence in (
        ([2], "there is no block 2 .*: there are 2 blocks, 0 to 1"),
        ([-1], "no block -1"),
        ([0, 1], "no block would"),
    ):
        with pytest.raises(ValueError, match=sentence):
            run_experiment(experiments()["prune"], model, drop=drop, prompts=["a b c a"], tokens=2)
