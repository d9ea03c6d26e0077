"""What `regraft tokenizer train | compare` do once their options are read."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

import xarray as xr

from regraft.core.files import check_empty, expanded, keeping, whole_folder
from regraft.core.results import as_result
from regraft.core.runs import store
from regraft.data.text_files import dataset_rows, text_files, text_of, texts_in
from regraft.jobs.checks import named_texts
from regraft.model.load import load
from regraft.reporting.chapter_section import result_section
from regraft.reporting.page import footer, sheet
from regraft.specimens import almanac
from regraft.tokenizers.bits_per_byte import pieces
from regraft.tokenizers.byte_codec import ByteIds
from regraft.tokenizers.comparison import compare
from regraft.tokenizers.tokenizer_folder import (
    open_tokenizer,
    special_roles,
    specials_of,
    wrapped,
    write_tokenizer,
)
from regraft.tokenizers.training import Recipe, train_bpe

DEFAULT_ROLES = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}


def roles_and_specials(like: str) -> tuple[dict[str, str], tuple[str, ...], str | None]:
    """Roles, special tokens and chat template: of the tokenizer that is named, else one end-of-text token."""
    if not like:
        return DEFAULT_ROLES, tuple(dict.fromkeys(DEFAULT_ROLES.values())), None
    other = open_tokenizer(like)
    roles = special_roles(other)
    return roles, tuple(dict.fromkeys([*specials_of(other), *roles.values()])), other.chat_template


class _Weighed:
    """Texts of files and data sets, one after the other, and how many bytes of them have been read."""

    def __init__(self, texts: Sequence[str], sets: Sequence[str]):
        files = text_files(texts) if texts or not sets else []
        self.sources = [*map(texts_in, files), *map(dataset_rows, sets)]
        self.bytes = 0

    def __iter__(self) -> Iterator[str]:
        for text in map(text_of, chain.from_iterable(self.sources)):
            self.bytes += len(text.encode("utf-8", errors="replace"))
            yield text


def train_tokenizer(
    out: Path | str,
    texts: Sequence[str] = (),
    sets: Sequence[str] = (),
    recipe: Recipe | None = None,
    *,
    like: str = "",
) -> str:
    r"""Train a tokenizer on files and data sets, write its folder, and say what came out.

    Args:
        out: the folder, which `AutoTokenizer` opens.
        texts: files and folders of text.
        sets: data sets with a column `text`, a hub id or a folder each, read as a stream.
        recipe: what is trained.
        like: a tokenizer whose special tokens and chat template are carried over.

    Returns:
        What came out, in a sentence.

    Raises:
        ValueError: there is no text, or the recipe does not fit.
        RunFolderError: the folder is not empty.

    Examples:
        >>> from regraft.specimens import almanac
        >>> _ = pathlib.Path("books.txt").write_text("\n".join(almanac.corpus(20_000, 7)))
        >>> print(regraft.train_tokenizer("made", ["books.txt"], recipe=regraft.Recipe(600)))
        600 tokens, kind supertoken, trained on ...
    """
    out = expanded(out)
    check_empty(out, "--out")
    roles, specials, template = roles_and_specials(like)
    recipe = replace(recipe or Recipe(), **({"specials": specials} if like else {}))
    read = _Weighed(texts, sets)
    began = time.perf_counter()
    made = train_bpe(read, recipe)
    seconds = time.perf_counter() - began
    write_tokenizer(wrapped(made, roles, template), out)
    count = made.get_vocab_size()
    short = (
        f" (asked for {recipe.vocabulary:,}: the text has no more to merge)"
        if count < recipe.vocabulary
        else ""
    )
    size = read.bytes / 1e6
    return (
        f"{count:,} tokens{short}, kind {recipe.kind}, trained on {size:,.1f} MB in {seconds:.1f} s"
        f" ({size / seconds:.2f} MB/s); written to {out}. Next:"
        f" `{shlex.join(['regraft', 'tokenizer', 'compare', str(out), 'specimen:qwen3'])}`"
    )


def domain_pieces(texts: Sequence[str], each: str, most: int, seed: int = 99) -> dict[str, list[str]]:
    """Pieces of text by domain, or of an almanac where none is named."""
    named = named_texts(texts, each)
    if not named:
        return {"almanac": pieces(["\n".join(almanac.corpus(most * 900, seed))], most)}
    return {
        name: pieces((t for f in text_files(paths) for t in texts_in(f)), most)
        for name, paths in named.items()
    }


def compare_tokenizers(
    names: Sequence[str],
    out: Path | str,
    texts: Sequence[str] = (),
    each: str = "",
    *,
    most: int = 200,
    bits: bool = False,
) -> xr.Dataset:
    r"""Compare tokenizers on the same text, and write the page and the data.

    Args:
        names: folders, hub ids or specimens.
        out: folder for the page and the data.
        texts: NAME=PATH of each domain; without them an almanac.
        each: a folder whose every text file is a domain of its own.
        most: pieces of about 800 characters drawn from each domain.
        bits: the names are models: measure bits per byte, too.

    Returns:
        By domain and tokenizer: bytes, characters and words per token, and shares of tokens that cross words.

    Raises:
        ValueError: two tokenizers have one name, or there is no text.
        RunFolderError: the folder is not empty.

    Examples:
        >>> from regraft.specimens import almanac
        >>> _ = pathlib.Path("books.txt").write_text("\n".join(almanac.corpus(20_000, 7)))
        >>> both = ["specimen:qwen3", "specimen:gpt2"]
        >>> data = regraft.compare_tokenizers(both, "compared", ["books=books.txt"], most=4)
        >>> dict(data.bytes_per_token.sizes), data.bytes_per_token.attrs["units"]
        ({'tokenizer': 2, 'domain': 1}, 'bytes of text for each token')
    """
    out = expanded(out)
    check_empty(out, "--out")
    began = time.perf_counter()
    called = {Path(name).name if Path(name).is_dir() else name: name for name in names}
    if len(called) < len(names):
        raise ValueError("two tokenizers have one name: rename a folder")
    readers = {short: ByteIds(open_tokenizer(name)) for short, name in called.items()}
    models = {short: load(name) for short, name in called.items()} if bits else None
    data = compare(readers, domain_pieces(texts, each, most), models)
    words = [
        "regraft",
        "tokenizer",
        "compare",
        *names,
        *(word for text in texts for word in ("--text", text)),
    ]
    words += [*(["--each", each] if each else []), *(["--bits"] if bits else []), "--pieces", str(most)]
    page = sheet(
        ("Tokenizers compared", "Tokenizers, compared", f"{', '.join(called)} read the same text."),
        [result_section(data, shlex.join(words), "result-0")], footer([data], time.perf_counter() - began),
    )  # fmt: skip
    with keeping(data), whole_folder(out) as fresh:
        store(data, fresh)
        (fresh / "tokenizers.html").write_text(page, encoding="utf-8")
    return as_result(data)


def comparison_rows(data: xr.Dataset) -> Iterator[str]:
    """A comparison in words, one line for each tokenizer and domain, and examples."""
    for tokenizer in map(str, data.tokenizer.values):
        one = data.sel(tokenizer=tokenizer)
        yield (
            f"{tokenizer}: {int(one.vocabulary):,} tokens, {float(one.vocabulary_crossing):.1%} of them cross"
            " words"
        )
        for domain in map(str, data.domain.values):
            here = one.sel(domain=domain)
            bits = f", {float(here.bits_per_byte):.4f} bits per byte" if "bits_per_byte" in data else ""
            yield (
                f"  {domain}: {float(here.bytes_per_token):.3f} bytes and"
                f" {float(here.characters_per_token):.3f} characters per token,"
                f" {float(here.tokens_per_word):.3f} tokens per word, {float(here.crossing):.1%} cross"
                f" words{bits}"
                + (
                    ""
                    if float(here.exact) == 1
                    else f"; {float(here.exact):.0%} of the pieces come back as they were"
                )
            )
        crossing = [
            repr(str(t))
            for t, n in zip(one.crossing_token.values[:6], one.crossing_count.values, strict=False)
            if n
        ]
        if crossing:
            yield f"  most frequent that cross words: {', '.join(crossing)}"
        yield f"  longest: {', '.join(repr(str(t)) for t in one.longest_token.values[:4])}"
    if data.sizes["tokenizer"] > 1:
        pairs = [
            (a, b, float(data.overlap.sel(tokenizer=a, other=b)))
            for a in data.tokenizer.values
            for b in data.other.values
        ]
        yield "shared by bytes: " + ", ".join(f"{share:.1%} of {a} in {b}" for a, b, share in pairs if a != b)
