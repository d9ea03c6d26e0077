"""Byte-level BPE tokenizers of three kinds, trained in one pass: of words, of superwords, and of chunks that
ignore words.

`supertoken`: merges are counted in chunks of random length, so a frequent run of several words, or of a word
and a piece of the next, becomes one token. `ordinary`: merges stay within words. `superword`: the second part
of the vocabulary is merged across words, from the tokens of the first ("SuperBPE: Space Travel for Language
Models", Liu et al., 2025). Every byte is a token in all three, so any text comes back as it was.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from regraft.core.progress import advance
from regraft.data.text_files import text_of
from regraft.tokenizers.text_chunks import ChunkLengths, chunks, gaussian, sampled

Kind = Literal["supertoken", "ordinary", "superword"]
Digits = Literal["keep", "single", "threes"]

WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DIGITS = {"single": r"\p{N}", "threes": r"\p{N}{1,3}"}
MOST, LEAST_CHARACTERS = 10_000_000, 1000
"""The largest vocabulary, and the fewest characters that text may be held in."""
RUN = 64
"""Tokens of the first vocabulary in one piece of the text that superwords are counted in."""
FIRST_CHARACTER = 0x10000
"""Pieces become single characters from here on: behind all that a text of the basic plane has."""


@dataclass(frozen=True)
class Recipe:
    """What is trained: kind, size with all special tokens, chunks, digits, share of words in a superword
    vocabulary.

    Raises:
        ValueError: the size does not hold every byte and the special tokens or is absurd, a share is not
            between 0 and 1, or there is nothing to merge or to hold.

    Examples:
        >>> regraft.Recipe(600, "superword").words  # share of the vocabulary spent within words
        0.5
        >>> regraft.Recipe(100)
        Traceback (most recent call last):
        ...
        ValueError: ...
    """

    vocabulary: int = 16384
    """Tokens, special ones included."""
    kind: Kind = "supertoken"
    """Merge within chunks that ignore words, within words, or within words first and across them then."""
    lengths: ChunkLengths = field(default_factory=lambda: gaussian(200, 50))
    digits: Digits = "single"
    """Digits merge freely, not or by three."""
    specials: tuple[str, ...] = ("<|endoftext|>",)
    words: float = 0.5
    """Share of a superword vocabulary that is merged within words."""
    least: int = 2
    """Times that a pair must occur to be merged."""
    characters: int = 500_000_000
    """Characters held at once; of more text an even sample is taken."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.vocabulary < 256 + len(self.specials):
            raise ValueError(
                f"a vocabulary of {self.vocabulary:,} does not hold the 256 bytes and"
                f" {len(self.specials)} special tokens: ask for at least {256 + len(self.specials):,}"
            )
        if self.vocabulary > MOST:
            raise ValueError(f"a vocabulary of {self.vocabulary:,} is too large: ask for at most {MOST:,}")
        if len(set(self.specials)) < len(self.specials) or any(len(token) < 2 for token in self.specials):
            raise ValueError(
                "a special token is named twice or has fewer than two characters: text would be full of it"
            )
        if self.least < 1 or self.characters < LEAST_CHARACTERS or self.seed < 0:
            raise ValueError(
                f"a pair must occur at least once (--least), at least {LEAST_CHARACTERS:,} characters must be"
                " held (--characters), and a seed is not negative"
            )
        if not 0 < self.words < 1:
            raise ValueError(
                f"a share of {self.words:g} for words leaves nothing for one of the two: choose between 0"
                " and 1"
            )


def train_bpe(texts: Iterable[str | Mapping[str, Any]], recipe: Recipe) -> Tokenizer:
    """Train a tokenizer on a stream of texts, of which at most `recipe.characters` are held.

    Args:
        texts: strings, or rows with a string under `text`, as a `datasets` stream gives them.

    Raises:
        ValueError: the texts are empty, or a row has none.
    """
    pieces = sampled(_counted(texts), recipe.characters, recipe.seed)
    if not pieces:
        raise ValueError("the corpus is empty: give text to train on")
    if recipe.kind == "superword":
        made = _superword(pieces, recipe)
    else:
        made = _plain(pieces, recipe, recipe.vocabulary - len(recipe.specials))
    made.add_special_tokens(list(recipe.specials))
    return made


def _counted(texts: Iterable[str | Mapping[str, Any]]) -> Iterator[str]:
    for number, text in enumerate(map(text_of, texts), 1):
        advance("reading text", number, number + 1)
        yield text


def splitting(kind: Kind, digits: Digits) -> pre_tokenizers.PreTokenizer:
    """What stands between text and merges: digits by their policy, words only where merges stay within them,
    then bytes."""
    steps = [pre_tokenizers.Split(Regex(DIGITS[digits]), "isolated")] if digits in DIGITS else []
    if kind == "ordinary":
        steps.append(pre_tokenizers.Split(Regex(WORDS), "isolated"))
    return pre_tokenizers.Sequence(
        [*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )


def _empty(kind: Kind, digits: Digits) -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = splitting(kind, digits)
    made.decoder = decoders.ByteLevel()
    return made


def _plain(pieces: Sequence[str], recipe: Recipe, size: int) -> Tokenizer:
    """BPE over pieces or over chunks of them."""
    made = _empty(recipe.kind, recipe.digits)
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=recipe.least,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    items = chunks(pieces, recipe.lengths, recipe.seed) if recipe.kind == "supertoken" else pieces
    advance("merging", 0, 1)
    made.train_from_iterator(items, trainer)
    advance("merging", 1, 1)
    return made


def _superword(pieces: Sequence[str], recipe: Recipe) -> Tokenizer:
    """Merge within words first, then runs of the tokens found, each written as one character of its own."""
    size = recipe.vocabulary - len(recipe.specials)
    whole = Recipe(
        max(256, round(size * recipe.words)),
        "ordinary",
        digits=recipe.digits,
        specials=(),
        least=recipe.least,
    )
    first = _plain(pieces, whole, whole.vocabulary)
    stated = json.loads(first.to_str())["model"]
    names = {number: token for token, number in stated["vocab"].items()}
    second = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=2 * size,
        min_frequency=recipe.least,
        initial_alphabet=[_character(i) for i in names],
        show_progress=False,
    )
    second.train_from_iterator(_runs(first, pieces, recipe.digits), trainer)
    vocabulary, merges = dict(stated["vocab"]), [tuple(merge) for merge in stated["merges"]]
    known = set(merges)
    for left, right in json.loads(second.to_str())["model"]["merges"]:
        pair = _written(left, names), _written(right, names)
        if pair in known:
            continue
        if len(vocabulary) == size and "".join(pair) not in vocabulary:
            break
        known.add(pair)
        merges.append(pair)
        vocabulary.setdefault("".join(pair), len(vocabulary))
    made = _empty("superword", recipe.digits)
    made.model = models.BPE(vocabulary, merges)
    return made


def _character(number: int) -> str:
    return chr(FIRST_CHARACTER + number)


def _written(characters: str, names: dict[int, str]) -> str:
    return "".join(names[ord(character) - FIRST_CHARACTER] for character in characters)


def _runs(first: Tokenizer, pieces: Sequence[str], digits: Digits) -> Iterator[str]:
    """Runs of tokens as characters; where digits are set apart, a run ends in front of them as it will in
    use."""
    apart = digits in DIGITS
    for start in range(0, len(pieces), 256):
        some = list(pieces[start : start + 256])
        for text, encoding in zip(
            some, first.encode_batch(some) if apart else first.encode_batch_fast(some), strict=True
        ):
            run: list[str] = []
            letters = [text[start] for start, _ in encoding.offsets] if apart else []
            for place, number in enumerate(encoding.ids):
                digit = apart and unicodedata.category(letters[place]).startswith("N")
                if digit or len(run) == RUN:
                    yield "".join(run)
                    run = []
                if not digit:
                    run.append(_character(number))
            yield "".join(run)
        advance("superwords: writing the text in tokens", min(start + 256, len(pieces)), len(pieces))
