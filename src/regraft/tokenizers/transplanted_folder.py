"""A model with its new vocabulary as a plain Hugging Face folder, read again and compared before it is
kept."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import xarray as xr
from tokenizers.processors import TemplateProcessing
from torch import nn
from transformers import PreTrainedConfig

from regraft.core.files import NotKeptError, check_empty
from regraft.core.progress import advance
from regraft.core.strict_json import json_text
from regraft.export.card import card, table
from regraft.export.verified_folder import (
    CARD,
    CERTIFICATE,
    Probe,
    Verified,
    Writing,
    outputs_of,
    probe_inputs,
    write_verified,
)
from regraft.model.load import read_tokenizer
from regraft.model.model import Model
from regraft.modules.placement import all_placed
from regraft.tokenizers.tokenizer_folder import special_roles, specials_of, wrapped
from regraft.tokenizers.transplantation import Transplant
from regraft.tokenizers.vocab_map import Matching

SAMPLE = (
    "The capital of France is Paris.\n\n  12 + 34 = 46; Gr\u00fc\u00dfe, d\u00e9j\u00e0 vu.\tdef f(x):\n   "
    " return x"
)
OTHERWISE = "read again, the folder's outputs differ from the model's by {gap} of the largest: it is not kept"
STARTS = ("decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id")
ID_LISTS = ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "force_words_ids")
DROPPED = ("sequence_bias", "forced_decoder_ids")
SPECIAL_IDS = {
    **{f"{role}_token_id": (f"{role}_token_id",) for role in ("pad", "unk", "sep", "cls", "mask")},
    "bos_token_id": ("bos_token_id", "cls_token_id"),
    "eos_token_id": ("eos_token_id", "sep_token_id"),
}
"""Ids that a config names, and which of the tokenizer's take their place."""


def write_model(
    done: Transplant, certificate: xr.Dataset, target: Path, pages: Mapping[str, str] | None = None
) -> str:
    """Write the model with its new tables and tokenizer, and `pages` by name beside them; returns one
    sentence.

    Raises:
        RunFolderError: the target is not empty.
        NotKeptError: the folder, read again, gives other outputs or other ids.
        ValueError: the target is the source model.
    """
    check_target(done.model, target)
    advance("writing", 0, 2)
    inputs = probe_inputs(done.model, len(done.new.table), seed=5)
    with all_placed(done.model.hf, done.swaps):
        probe = Probe(inputs, outputs_of(done.model.hf, inputs), OTHERWISE)

    def texts(fresh: Path, verified: Verified) -> dict[str, str]:
        written = {
            CERTIFICATE: json_text(certificate.to_dict(), indent=1) + "\n",
            CARD: transplant_card(done, certificate),
        }
        return {**(pages or {}), **written}

    def same_ids(fresh: Path) -> None:
        advance("writing", 1, 2)
        ids = [
            r(SAMPLE, add_special_tokens=False)["input_ids"]
            for r in (read_tokenizer(fresh, False), done.new.tokenizer)
        ]
        if ids[0] != ids[1]:
            raise NotKeptError("read again, the folder's tokenizer cuts text in another way: it is not kept")

    how = Writing(written_tokenizer(done), also=same_ids)
    verified = write_verified(done.model, with_new_vocabulary(done), probe, target, texts, how)
    advance("writing", 2, 2)
    return (
        f"{target} opens in plain transformers with its new tokenizer; read again, its outputs differ by"
        f" {verified}"
    )


def check_target(model: Model, target: Path) -> None:
    """Make sure that a folder can be written without touching the source.

    Raises:
        RunFolderError: it is not empty.
        ValueError: it is the source model.
    """
    if model.folder is not None and target.resolve() == model.folder.resolve():
        raise ValueError(f"{target} is the source model itself: choose another folder with --save")
    check_empty(target, "--save")


def with_new_vocabulary(done: Transplant) -> Any:
    """A copy of the model with the new modules in place, its config and generation config saying so."""
    check_media(done.model, done.matching)
    done.model.check_whole("a model is written from all its weights")
    with all_placed(done.model.hf, done.swaps):
        changed: Any = copy.deepcopy(done.model.hf)
    _share_bias(done.model, changed)
    rows = done.tables.rows
    configs = {id(config): config for config in (changed.config, changed.config.get_text_config())}
    for config in configs.values():
        config.vocab_size = rows
        _say_ids(config, done)
    for config in nested_configs(changed.config):
        if id(config) not in configs:
            _say_media(config, done)
    for module in changed.modules():
        if isinstance(getattr(module, "vocab_size", None), int):
            module.vocab_size = rows
    if getattr(changed, "generation_config", None) is not None:
        _say_ids(changed.generation_config, done)
    return changed


def _share_bias(model: Model, changed: nn.Module) -> None:
    """Where a masked head holds its output matrix's biases under a second name, give that the new ones,
    too."""
    head = model.parts.head
    bias = getattr(head, "bias", None)
    if bias is None:
        return
    own = next(name for name, module in model.hf.named_modules() if module is head)
    for name in [name for name, p in model.hf.named_parameters(remove_duplicate=False) if p is bias]:
        path, _, attribute = name.rpartition(".")
        setattr(changed.get_submodule(path), attribute, changed.get_parameter(f"{own}.bias"))


def is_token_id(name: str) -> bool:
    """Whether a configuration's attribute names a token, or several, by id."""
    return name.endswith(("_token_id", "_token_ids", "_token_index"))


def nested_configs(config: Any) -> Iterator[Any]:
    """A configuration and all inside it."""
    yield config
    for value in vars(config).values():
        if isinstance(value, PreTrainedConfig):
            yield from nested_configs(value)


def _media(config: Any) -> dict[str, int]:
    """Ids of tokens that stand for what is no text (a picture, a sound, where one begins), by the attribute's
    name."""
    named = {
        name: value for name, value in vars(config).items() if is_token_id(name) and isinstance(value, int)
    }
    return {name: value for name, value in named.items() if name not in SPECIAL_IDS and name not in STARTS}


def _say_media(config: Any, done: Transplant) -> None:
    places = {int(old): place for place, old in reversed(list(enumerate(done.matching.source_V))) if old >= 0}
    for name, old in _media(config).items():
        setattr(config, name, places.get(old, old))


def check_media(model: Model, matching: Matching) -> None:
    """Make sure that every token that a configuration names for pictures or sounds has a new id.

    Raises:
        ValueError: one has none.
    """
    known = {int(old) for old in matching.source_V}
    for config in nested_configs(model.hf.config):
        for name, old in _media(config).items():
            if 0 <= old < model.table_rows and old not in known:
                raise ValueError(
                    f"the configuration names token {old} ({model.token_text(old)!r}) as {name}, and the new"
                    " tokenizer has no token of that text: add it there"
                )


def check_start(model: Model, matching: Matching) -> None:
    """Make sure that what an encoder-decoder's decoder starts with has a new id.

    Raises:
        ValueError: it has none.
    """
    start = getattr(model.hf.config, "decoder_start_token_id", None)
    if start is not None and start not in matching.source_V:
        raise ValueError(
            "the decoder's start token has no counterpart in the new tokenizer: give it a token of that role"
        )


def _say_ids(config: Any, done: Transplant) -> None:
    """New ids for all ids that a config names: of special tokens by role, of others where the token was taken
    over.

    A sequence of ids moves whole or not at all; biases and forced places of sequences are dropped.
    """
    tokenizer = done.new.tokenizer
    new = {int(old): place for place, old in reversed(list(enumerate(done.matching.source_V))) if old >= 0}

    def moved(value: Any, whole: bool = False) -> Any:
        if isinstance(value, int):
            return new.get(value)
        found = [moved(one, True) for one in value]
        kept = [one for one in found if one not in (None, [])]
        return [] if whole and len(kept) < len(found) and not isinstance(value[0], list) else kept

    for name in [key for key in vars(config) if is_token_id(key) or key in ID_LISTS]:
        value = getattr(config, name)
        own = next(
            (found for role in SPECIAL_IDS.get(name, ()) if (found := getattr(tokenizer, role)) is not None),
            None,
        )
        if name == "eos_token_id":
            stops = value if isinstance(value, list) else [] if value is None else [value]
            others = moved([i for i in stops if own is None or i != done.old.tokenizer.eos_token_id])
            found = list(dict.fromkeys([*([own] if own is not None else []), *others]))
            setattr(config, name, found[0] if len(found) == 1 else found or None)
        elif own is not None and (value is not None or name == "bos_token_id"):
            setattr(config, name, own)
        elif value is not None:
            setattr(config, name, moved(value) if isinstance(value, int) else moved(value) or None)
    for name in DROPPED:
        if getattr(config, name, None) is not None:
            setattr(config, name, None)


def written_tokenizer(done: Transplant) -> Any:
    """The new tokenizer as it is written: for a decoder without segment ids, and without special tokens
    behind a text.

    A tokenizer of an encoder closes each text, after which a decoder would have nothing to go on with.
    """
    tokenizer = copy.deepcopy(done.new.tokenizer)
    if done.model.two_stacks or not done.model.causal:
        return tokenizer
    tokenizer.model_input_names = [name for name in tokenizer.model_input_names if name != "token_type_ids"]
    ids, alone = (tokenizer("a", add_special_tokens=added)["input_ids"] for added in (True, False))
    if ids[-1:] != alone[-1:]:
        front = tokenizer.convert_ids_to_tokens(ids[: ids.index(alone[0])] if alone else [])
        named = [(token, tokenizer.convert_tokens_to_ids(token)) for token in dict.fromkeys(front)]
        backend = copy.deepcopy(tokenizer.backend_tokenizer)
        backend.post_processor = TemplateProcessing(single=" ".join([*front, "$A"]), special_tokens=named)
        plain = wrapped(backend, special_roles(tokenizer), tokenizer.chat_template)
        for name in ("model_input_names", "padding_side", "truncation_side", "model_max_length"):
            setattr(plain, name, getattr(tokenizer, name))
            plain.init_kwargs[name] = getattr(tokenizer, name)
        others = [token for token in specials_of(tokenizer) if token not in special_roles(tokenizer).values()]
        plain.add_special_tokens({"extra_special_tokens": others})
        return plain
    return tokenizer


def transplant_card(done: Transplant, certificate: xr.Dataset) -> str:
    """The text of a model card in Markdown."""
    made = f", method {certificate.attrs['method']}. {done.sentence}."
    return card(
        done.model,
        f"{done.model.name} with another tokenizer",
        made,
        _table(certificate),
        certificate.attrs,
        "tokenizer-transplant",
    )


def _table(certificate: xr.Dataset) -> list[str]:
    """The certificate by domain as a table in Markdown."""
    writes = "bits_per_byte" in certificate
    quality = ["bits per byte before", "after"] if writes else ["embeddings move by (1 - cosine)"]
    heads = ["text", *quality, "bytes per token before", "after", "pieces that both tokenizers keep"]
    lines = []
    for name in map(str, certificate.domain.values):
        one = certificate.sel(domain=name)
        numbers = one.bits_per_byte.values.tolist() if writes else [float(one.distance)]
        length = [f"{value:.3f}" for value in one.bytes_per_token.values]
        lines.append(
            [name, *(f"{number:.4f}" for number in numbers), *length, f"{float(one.exact.min()):.0%}"]
        )
    if "apart" in certificate:
        apart, same = float(certificate.apart), float(certificate.same_nearest)
        after = [
            "",
            (
                f"Two different texts are {apart:.4f} apart; {same:.1%} of the texts keep their nearest other"
                " text."
            ),
        ]
    else:
        after = []
    return [*table(heads, lines), *after]
