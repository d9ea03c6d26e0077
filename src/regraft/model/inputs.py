"""What people give as a prompt, turned into rows of token ids: texts, ids, a tokenizer's output, a chat.

Shapes: B prompts, T positions, padding wherever the giver put it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regraft.model.block_call import text_config
from regraft.model.model import Model

Given = str | Sequence[int] | Tensor | Mapping[str, Any]
READ = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
PASSED_OVER = (
    "special_tokens_mask",
    "offset_mapping",
    "overflow_to_sample_mapping",
    "length",
    "mm_token_type_ids",
)
ALL = "all"


@dataclass
class Rows:
    """Real tokens only, prompt by prompt; `extra` are the further arguments of the same lengths."""

    ids: list[list[int]]
    extra: dict[str, list[list[int]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def rows_of(model: Model, prompts: Any, attention_mask: Any = None) -> Rows:
    """Rows of token ids.

    Args:
        prompts: a text, ids (a list, or a tensor or array of integers), a tokenizer's output, a chat (a list
            of role and content), or a list of texts, of ids or of chats.
        attention_mask: for ids, (B, T) or (T,) of 1 on tokens and 0 on padding; "all" where the pad token is
            meant.

    Raises:
        ValueError: nothing of the kind; ids that hold the pad token without a mask; a mask that does not fit.
    """
    if isinstance(prompts, Mapping):
        return _from_mapping(model, prompts, attention_mask)
    rows = Rows([])
    for prompt in _one_by_one(prompts):
        ids = (
            _spoken(model, prompt, rows.notes)
            if isinstance(prompt, str) or _is_chat(prompt)
            else _numbers(prompt)
        )
        rows.ids.append(ids)
    if not rows.ids:
        raise ValueError("there is no prompt: give at least one")
    check_ids(model, rows.ids)
    given = [not isinstance(prompt, str) and not _is_chat(prompt) for prompt in _one_by_one(prompts)]
    if attention_mask is None or isinstance(attention_mask, str):
        _check_word(attention_mask)
        if attention_mask is None:
            _refuse_pads(model, [row for row, ids in zip(rows.ids, given, strict=True) if ids])
    elif all(given):
        masks = _masks(attention_mask, rows.ids)
        rows.ids = [_kept(row, mask) for row, mask in zip(rows.ids, masks, strict=True)]
    else:
        raise ValueError("an attention_mask belongs to token ids: texts are tokenized here and get their own")
    check_ids(model, rows.ids)
    return rows


def check_ids(model: Model, rows: Sequence[Sequence[int]], empty: bool = False) -> None:
    """Make sure that every id is a row of the token table.

    Raises:
        ValueError: one is not, or a row is empty where it may not be.
    """
    if not empty and not all(rows):
        raise ValueError("the prompt is empty: give at least one token")
    most = model.table_rows
    wrong = next((i for row in rows for i in row if not 0 <= i < most), None)
    if wrong is not None:
        raise ValueError(
            f"token id {wrong} is outside the vocabulary of {most}: ids run from 0 to {most - 1}"
        )


def completion_rows(
    model: Model, completions: Any, prompts: int, attention_mask: Any = None
) -> list[list[int]]:
    """Rows of token ids that follow the prompts; a text is cut as it is behind other text.

    Raises:
        ValueError: not one for each prompt, something that is neither text nor ids, or a tensor of ids that
            holds the pad token where the mask is not "all".
    """
    given = _one_by_one(completions) if not isinstance(completions, str) else [completions]
    if len(given) != prompts:
        raise ValueError(f"{prompts} prompts but {len(given)} completions: give one for each")
    rows = [model.continuation(c) if isinstance(c, str) else _numbers(c) for c in given]
    check_ids(model, rows, empty=True)
    if isinstance(completions, (Tensor, np.ndarray)) and not isinstance(attention_mask, str):
        _refuse_pads(model, rows)
    return rows


def _one_by_one(prompts: Any) -> list[Any]:
    """The prompts as a list: a text, a row of ids or a chat is one."""
    if isinstance(prompts, (bytes, bytearray)):
        raise ValueError("a prompt of bytes is not text: decode it first, for example with .decode('utf-8')")
    if isinstance(prompts, str) or _is_chat(prompts):
        return [prompts]
    if isinstance(prompts, (Tensor, np.ndarray)):
        if prompts.ndim not in (1, 2):
            raise ValueError(
                f"ids of shape {tuple(prompts.shape)} are no prompts: give (positions,) or (prompts,"
                " positions)"
            )
        return list(prompts) if prompts.ndim == 2 else [prompts]
    if not isinstance(prompts, Sequence):
        raise ValueError(
            f"a {type(prompts).__name__} is no prompt: give a text, token ids, a tokenizer's output, a chat,"
            " or a list of them"
        )
    found = list(prompts)
    return [found] if found and isinstance(found[0], (int, np.integer)) else found


def _is_chat(prompt: Any) -> bool:
    if not isinstance(prompt, (list, tuple)) or not prompt:
        return False
    return all(isinstance(turn, Mapping) and "role" in turn and "content" in turn for turn in prompt)


def _numbers(prompt: Any) -> list[int]:
    """The ids of one prompt.

    Raises:
        ValueError: they are no whole numbers.
    """
    if isinstance(prompt, (Tensor, np.ndarray)):
        whole = not prompt.is_floating_point() if isinstance(prompt, Tensor) else prompt.dtype.kind in "iub"
        if prompt.ndim != 1 or not whole or prompt.dtype in (torch.bool, np.dtype(bool)):
            kind = str(prompt.dtype).removeprefix("torch.")
            raise ValueError(
                f"a prompt of {kind} of shape {tuple(prompt.shape)} is no row of token ids: give whole"
                " numbers"
            )
        return [int(i) for i in prompt]
    if isinstance(prompt, (str, bytes, Mapping)) or not isinstance(prompt, Sequence):
        raise ValueError(
            f"a {type(prompt).__name__} among the prompts is neither text nor a row of token ids"
        )
    wrong = next(
        (i for i in prompt if isinstance(i, bool) or not isinstance(i, (int, np.integer, Tensor))), None
    )
    if wrong is not None:
        raise ValueError(f"{wrong!r} among the prompt's ids is no token id: give whole numbers")
    return [int(i) for i in prompt]


def _spoken(model: Model, prompt: Any, notes: list[str]) -> list[int]:
    """The ids of a text or a chat; what a reader of the result should know of them goes to `notes`."""
    if isinstance(prompt, str):
        ids = model.encode(prompt)
        unknown = getattr(model.tokenizer, "unk_token_id", None)
        if unknown is not None and (count := ids.count(unknown)):
            notes.append(f"{count} of {len(ids)} tokens of a prompt are unknown to the tokenizer")
        begin = getattr(model.tokenizer, "bos_token_id", None)
        if begin is not None and ids[:2] == [begin, begin]:
            notes.append(
                "a prompt begins with two begin tokens: its text holds one already (a chat template's, say),"
                " and the tokenizer adds another; give the ids, or the chat itself as a list of role and"
                " content"
            )
        return ids
    if not getattr(model.tokenizer, "chat_template", None):
        raise ValueError(f"{model.name} has no chat template: give the text of the chat as it should be read")
    notes.append("a chat was written out by the tokenizer's template, up to where the answer begins")
    made = model.tokenizer.apply_chat_template(list(prompt), add_generation_prompt=True, return_dict=True)
    return list(made["input_ids"])


def _from_mapping(model: Model, given: Mapping[str, Any], attention_mask: Any) -> Rows:
    """What a tokenizer returned: ids with their mask, token types and positions."""
    if "input_ids" not in given:
        raise ValueError(
            f"a prompt of {', '.join(map(str, given)) or 'nothing'} has no input_ids: give a tokenizer's"
            " output"
        )
    unknown = [name for name in given if name not in (*READ, *PASSED_OVER)]
    if unknown:
        raise ValueError(f"{', '.join(unknown)} cannot be recorded: a prompt has {', '.join(READ)}")
    if attention_mask is not None and given.get("attention_mask") is not None:
        raise ValueError(
            "there are two attention masks, one in the tokenizer's output and one beside it: give one"
        )
    rows = [_numbers(row) for row in _one_by_one(given["input_ids"])]
    check_ids(model, rows)
    mask = given.get("attention_mask") if attention_mask is None else attention_mask
    if mask is None or isinstance(mask, str):
        _check_word(mask)
        if mask is None:
            _refuse_pads(model, rows)
        masks = [[1] * len(row) for row in rows]
    else:
        masks = _masks(mask, rows)
    found = Rows([_kept(row, one) for row, one in zip(rows, masks, strict=True)])
    check_ids(model, found.ids)
    for name in ("token_type_ids", "position_ids"):
        if given.get(name) is None:
            continue
        values = [_numbers(row) for row in _one_by_one(given[name])]
        if [len(row) for row in values] != [len(row) for row in rows]:
            raise ValueError(f"the {name} do not have the shape of the input_ids")
        kept = [_kept(row, one) for row, one in zip(values, masks, strict=True)]
        if any(row != usual for row, usual in zip(kept, _usual(name, kept), strict=True)):
            found.extra[name] = kept
    return found


def _usual(name: str, rows: list[list[int]]) -> list[list[int]]:
    """What a model takes when nothing is said: type 0, positions counted from 0."""
    return [list(range(len(row))) if name == "position_ids" else [0] * len(row) for row in rows]


def _check_word(word: Any) -> None:
    if word not in (None, ALL):
        raise ValueError(f"attention_mask={word!r} is not known: give a mask of 0 and 1, or {ALL!r}")


def _masks(mask: Any, rows: list[list[int]]) -> list[list[int]]:
    """The mask of every row.

    Raises:
        ValueError: it has another shape, other numbers than 0 and 1, or a hole.
    """
    found = np.asarray(mask.tolist() if isinstance(mask, Tensor) else mask, dtype=object)
    found = found[None] if found.ndim == 1 and len(rows) == 1 and not isinstance(found[0], list) else found
    masks = [list(row) for row in found]
    if [len(m) for m in masks] != [len(row) for row in rows]:
        raise ValueError(
            f"the attention_mask has {len(masks)} rows of {[len(m) for m in masks]}, the ids"
            f" {[len(r) for r in rows]}"
        )
    if any(value not in (0, 1) for one in masks for value in one):
        raise ValueError(
            "the attention_mask holds other numbers than 0 and 1: masks of scores cannot be recorded"
        )
    for one in masks:
        kept = [i for i, value in enumerate(one) if value]
        if kept and kept[-1] - kept[0] + 1 != len(kept):
            raise ValueError(
                "the attention_mask has a hole between tokens: only padding at either end can be left out"
            )
    return [[int(value) for value in one] for one in masks]


def _kept(row: list[int], mask: list[int]) -> list[int]:
    return [value for value, keep in zip(row, mask, strict=True) if keep]


def _refuse_pads(model: Model, rows: list[list[int]]) -> None:
    """Ids with the pad token in them are most often padded ones, whose pads would be read as tokens.

    Raises:
        ValueError: there is one.
    """
    pads = {
        getattr(model.tokenizer, "pad_token_id", None),
        getattr(text_config(model.hf.config), "pad_token_id", None),
    } - {None}
    found = next((i for row in rows for i in row if i in pads), None)
    if found is not None:
        raise ValueError(
            f"the ids hold the pad token {found}: say which are tokens with attention_mask= (as the tokenizer"
            f" returns it), or attention_mask={ALL!r} where it is meant as one"
        )


def batch_inputs(
    model: Model, sources: list[list[int]], follow: list[list[int]]
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """What the model is given for a batch of prompts with what follows each; and the ids and the mask (B, T)
    of the stack that makes the logits."""
    if model.two_stacks:
        return _two_stack_inputs(model, sources, follow)
    ids_BT, mask_BT = padded([source + rest for source, rest in zip(sources, follow, strict=True)], model)
    with_mask = {} if bool(mask_BT.all()) else {"attention_mask": mask_BT.long()}
    return {"input_ids": ids_BT, **with_mask}, ids_BT, mask_BT


def _two_stack_inputs(
    model: Model, sources: list[list[int]], follow: list[list[int]]
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    start = getattr(model.hf.config, "decoder_start_token_id", None)
    if start is None:
        raise ValueError(
            f"{model.name} does not say which token its decoder starts with (decoder_start_token_id)"
        )
    encoder_BS, encoder_mask = padded(sources, model)
    ids_BT, mask_BT = padded([[start, *rest] for rest in follow], model)
    inputs = {"input_ids": encoder_BS, "decoder_input_ids": ids_BT}
    if not bool(encoder_mask.all()):
        inputs["attention_mask"] = encoder_mask.long()
    if not bool(mask_BT.all()):
        inputs["decoder_attention_mask"] = mask_BT.long()
    return inputs, ids_BT, mask_BT


def padded(rows: list[list[int]], model: Model, fill: int | None = None) -> tuple[Tensor, Tensor]:
    """Rows of numbers padded on the right with the pad token, and where they are real."""
    length = max(map(len, rows))
    pad = getattr(text_config(model.hf.config), "pad_token_id", None) if fill is None else fill
    pad = pad if isinstance(pad, int) and pad >= 0 else 0
    ids = torch.tensor([row + [pad] * (length - len(row)) for row in rows], device=model.device)
    mask = torch.tensor(
        [[True] * len(row) + [False] * (length - len(row)) for row in rows], device=model.device
    )
    return ids, mask
