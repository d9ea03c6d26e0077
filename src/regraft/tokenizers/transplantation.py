"""Another tokenizer for a model: rows taken over where tokens are the same, estimated where they are new,
measured, healed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import xarray as xr
from torch import Tensor

from regraft.core.quantities import quantity
from regraft.core.strict_json import json_text
from regraft.model.block_call import longest_input
from regraft.model.model import Model
from regraft.modules.placement import Swaps, all_placed
from regraft.sweeps.provenance import provenance
from regraft.tokenizers.bits_per_byte import Score, fitted, score
from regraft.tokenizers.byte_codec import ByteIds
from regraft.tokenizers.comparison import digest
from regraft.tokenizers.control_rows import USUAL_RANGE, DrawnRows
from regraft.tokenizers.embedding_distance import Embedded, apart, distance, embed, same_nearest
from regraft.tokenizers.encoder import Vectors
from regraft.tokenizers.init_methods import InitSettings, TransplantCase, estimate
from regraft.tokenizers.mixtures import Mixture
from regraft.tokenizers.tables import Tables, build_tables, check_padding, check_tables, modules, rows_needed
from regraft.tokenizers.vocab_map import Matching, match

EXACT = "share of the pieces that the tokenizer keeps as they are; below 1 bits per byte are not comparable"
MOVED = "1 - cosine between a text's embedding with its own tokenizer and with the new one, mean over texts"
APART = "1 - cosine between two different texts, own tokenizer, mean over all pairs"
PUBLISHED = "TokenAdapt (Sharthak et al., 2025)"
SAME_NEAREST = "share of texts whose nearest other text is the same with both tokenizers"


@dataclass(eq=False)
class Transplant:
    """A model, its own and the new tokenizer, and the modules that take its embedding's and output matrix's
    places."""

    model: Model
    old: ByteIds
    new: ByteIds
    matching: Matching
    mixed: Mixture | DrawnRows
    tables: Tables
    swaps: Swaps

    @property
    def sentence(self) -> str:
        """How many tokens take rows over, how many are estimated, and how many have nothing to be estimated
        from."""
        text = len(self.matching.missing)
        bare = int((self.mixed.mean_N > 0).sum())
        alone = len(self.new.table) - self.matching.shared - text
        return (
            f"{len(self.new.table):,} tokens in {self.tables.rows:,} rows: {self.matching.shared:,} take over"
            f" an old token's, {text:,} are estimated{f', {bare:,} of them as the mean row' if bare else ''},"
            f" {alone:,} special or reserved ones have no counterpart and take the mean row{self._unframed()}"
        )

    def _unframed(self) -> str:
        """What to say where an encoder's own tokenizer puts special tokens around a text and the new one puts
        none."""
        if writes_text(self.model):
            return ""
        old, new = (reader.tokenizer("")["input_ids"] for reader in (self.old, self.new))
        around = " ... ".join(map(str, self.old.tokenizer.convert_ids_to_tokens(old)))
        return (
            f". The new tokenizer puts no special tokens around a text, as the old one does ({around})"
            if old and not new
            else ""
        )


def old_case(
    model: Model,
    tokenizer: Any,
    texts: Sequence[str],
    vectors: Vectors | None,
    donor_VD: Tensor | None = None,
) -> TransplantCase:
    """What the methods look at; one case serves them all.

    Raises:
        ValueError: a tokenizer gives no way to its bytes, the old one is not the model's, the model's
            vocabulary is more than two tables, or its positions hang on another padding token.
    """
    if model.tokenizer is None:
        raise ValueError(
            f"{model.name} has no tokenizer of its own to take rows over from: name one with --old-tokenizer"
        )
    check_tables(model)
    check_padding(model, tokenizer.pad_token_id)
    old, new = ByteIds(model.tokenizer, model.table_rows), ByteIds(tokenizer)
    if len(old.table) > model.table_rows:
        raise ValueError(
            f"the old tokenizer has {len(old.table):,} ids and {model.name} only {model.table_rows:,} rows:"
            " it is not its own; name the right one with --old-tokenizer"
        )
    stated = getattr(model.hf.config.get_text_config(), "initializer_range", None)
    spread = stated if isinstance(stated, float) else USUAL_RANGE
    return TransplantCase(
        old, new, match(old, new), model.parts.embedding.weight, vectors, texts, donor_VD, spread
    )


def transplant(
    model: Model, case: TransplantCase, settings: InitSettings, multiple: int = 0, seed: int = 0
) -> Transplant:
    """Give the model tables for the new vocabulary; the model itself stays as it is."""
    mixed = estimate(case, settings, seed)
    rows = rows_needed(model, len(case.new.table), len(case.old.tokenizer), multiple)
    tables = build_tables(model, case.matching, mixed, rows)
    return Transplant(model, case.old, case.new, case.matching, mixed, tables, modules(model, tables))


def measured(done: Transplant, domains: Mapping[str, Sequence[str]], settings: InitSettings) -> xr.Dataset:
    """The certificate, by domain: the model with its own tokenizer and with the new one.

    Bits per byte of text where the model writes some; of any other, how far its embeddings of the texts move.

    Raises:
        ValueError: no text is given.
    """
    if not domains:
        raise ValueError("there is no text to measure on: name at least one domain")
    began = time.perf_counter()
    measure = _bits if writes_text(done.model) else _embeddings
    weight = done.model.parts.embedding.weight
    tables = 1 if done.model.parts.tied or done.model.parts.head is None else 2
    counts = [tables * weight.shape[1] * rows for rows in (weight.shape[0], done.tables.rows)]
    total = sum(p.numel() for p in done.model.hf.parameters())
    return xr.Dataset(
        {
            **measure(done, domains),
            "parameters": (
                "state",
                [total, total - counts[0] + counts[1]],
                {"units": "parameters of the model"},
            ),
            "vocabulary": ("state", [len(done.old.tokenizer), len(done.new.table)], {"units": "tokens"}),
            "taken_over": ((), done.matching.shared, {"units": "tokens"}),
            "estimated": ((), len(done.matching.missing), {"units": "tokens"}),
            "mean_rows": (
                (),
                int(np.sum(done.mixed.mean_N > 0)),
                {"units": "estimated tokens that are the mean row"},
            ),
        },
        coords={"state": ["before", "after"], "domain": list(domains)},
        attrs={
            **provenance(done.model),
            "experiment": "tokenizer transplant",
            "tokenizer_sha256": digest(done.new),
            "method": settings.method,
            "settings": json_text(asdict(settings)),
            "seconds": time.perf_counter() - began,
        },
    )


def writes_text(model: Model) -> bool:
    """Whether a model predicts tokens one after the other, so that text has a loss."""
    return model.parts.head is not None and (model.causal or model.two_stacks)


def _bits(done: Transplant, domains: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Bits per byte of text, and what the pieces are."""
    both = [
        [score(done.model, done.old, texts) for texts in _pieces(done, domains)],
        scores_after(done, domains),
    ]
    bits = [[one.bits_per_byte for one in scores] for scores in both]
    perplexities = np.array([[one.perplexity for one in scores] for scores in both])
    return {
        "bits_per_byte": (("state", "domain"), bits, {"units": "bits per byte of text"}),
        "perplexity": quantity(
            ("state", "domain"), perplexities, "per token, each state's own",
            "Of how many equally probable tokens each is one. A longer token is harder to guess, so two"
            " tokenizers' do not compare; bits per byte do.", PUBLISHED,
        ),
        "perplexity_ratio": quantity(
            "domain", perplexities[1] / perplexities[0], "perplexity per token after / before",
            "As transplants were published. It grows with the length of the new tokens, too: read it beside"
            " bits per byte.", PUBLISHED,
        ),
        **_read(both, "predicted "),
    }  # fmt: skip


def _embeddings(done: Transplant, domains: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """How far a model that writes no text has its embeddings of texts moved, and what the texts are."""
    before, after = _embedded(done, domains)
    moved = [distance(*pair) for pair in zip(before, after, strict=True)]
    found: dict[str, Any] = {"distance": ("domain", moved, {"units": MOVED}), **_read([before, after], "")}
    if sum(len(one.vectors_BD) for one in before) > 1:
        found |= {"apart": ((), apart(before), {"units": APART})}
        found |= {"same_nearest": ((), same_nearest(before, after), {"units": SAME_NEAREST})}
    return found


def distances_after(done: Transplant, domains: Mapping[str, Sequence[str]]) -> list[float]:
    """How far the rows as they are now move the embeddings of each domain's texts."""
    return [distance(*pair) for pair in zip(*_embedded(done, domains), strict=True)]


def _embedded(
    done: Transplant, domains: Mapping[str, Sequence[str]]
) -> tuple[list[Embedded], list[Embedded]]:
    """Each domain's texts as vectors, with the model's own tokenizer and with the new one."""
    before = [embed(done.model, done.old, texts) for texts in _pieces(done, domains)]
    with all_placed(done.model.hf, done.swaps):
        return before, [embed(done.model, done.new, texts) for texts in _pieces(done, domains)]


def _read(both: Sequence[Sequence[Score | Embedded]], what: str) -> dict[str, Any]:
    """Bytes, bytes per token and exactness of what was read with each tokenizer."""
    per_token = [[one.bytes / one.tokens for one in side] for side in both]
    dims = ("state", "domain")
    return {
        "bytes_per_token": (dims, per_token, {"units": f"bytes of text for each {what}token"}),
        "bytes": (
            dims,
            [[one.bytes for one in side] for side in both],
            {"units": f"bytes {what or 'read'}".strip()},
        ),
        "exact": (dims, [[one.exact for one in side] for side in both], {"units": EXACT}),
    }


def scores_after(done: Transplant, domains: Mapping[str, Sequence[str]]) -> list[Score]:
    """What the model with the new tokenizer, as its rows are now, makes of each domain."""
    with all_placed(done.model.hf, done.swaps):
        return [score(done.model, done.new, texts, _begin(done)) for texts in _pieces(done, domains)]


def _pieces(done: Transplant, domains: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """Each domain's texts, cut so that the model reads every piece with either tokenizer."""
    room = 0 if done.model.two_stacks else longest_input(done.model.hf.config)
    return [fitted(texts, [done.old, done.new], room) for texts in domains.values()]


def _begin(done: Transplant) -> int | None:
    """The new id of what an encoder-decoder's decoder begins with."""
    if not done.model.two_stacks:
        return None
    old = getattr(done.model.hf.config, "decoder_start_token_id", None)
    found = np.flatnonzero(done.matching.source_V == old)
    return int(found[0]) if len(found) else None
