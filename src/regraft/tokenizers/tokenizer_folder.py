"""A tokenizer's folder: what `AutoTokenizer` loads, with special tokens by role and the chat template of
another one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from regraft.checkpoint.hub import resolve
from regraft.core.files import check_empty, whole_folder
from regraft.model.load import read_tokenizer

ROLES = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token")


def open_tokenizer(name: str) -> Any:
    """A tokenizer from a folder, a hub id, or of a specimen (`specimen:qwen3`).

    Raises:
        ValueError: there is no tokenizer, or it is not a fast one.
    """
    folder, called = resolve(name)
    try:
        found = read_tokenizer(folder, False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"the tokenizer of {called} cannot be opened: {str(error).splitlines()[0]}"
        ) from error
    if found is None:
        raise ValueError(f"{called} holds no tokenizer: name a folder or hub id with a tokenizer.json")
    if not found.is_fast:
        raise ValueError(f"{called} has no tokenizer.json: convert it to a fast tokenizer")
    return found


def special_roles(tokenizer: Any) -> dict[str, str]:
    """Special tokens by role, as far as the tokenizer has them."""
    return {role: str(token) for role in ROLES if (token := getattr(tokenizer, role)) is not None}


def specials_of(like: Any) -> tuple[str, ...]:
    """All special tokens of a tokenizer in the order of their ids."""
    return tuple(
        dict.fromkeys(str(token) for _, token in sorted(like.added_tokens_decoder.items()) if token.special)
    )


def wrapped(
    made: Tokenizer, roles: Mapping[str, str], chat_template: str | None = None
) -> PreTrainedTokenizerFast:
    """A trained tokenizer as transformers' own kind."""
    found = PreTrainedTokenizerFast(tokenizer_object=made, clean_up_tokenization_spaces=False, **roles)
    found.chat_template = chat_template
    return found


def write_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write a tokenizer into a new folder, which appears whole or not at all.

    Raises:
        RunFolderError: the folder is not empty.
    """
    check_empty(folder, "--out")
    with whole_folder(folder) as fresh:
        tokenizer.save_pretrained(fresh)
