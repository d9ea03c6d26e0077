"""A model's tables for another vocabulary: rows taken over to the bit, new rows from mixtures, and rows
behind the last token.

Shapes: V new tokens with padding, D width.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from regraft.core.progress import advance
from regraft.model.model import Model
from regraft.modules.placement import Swaps
from regraft.tokenizers.control_rows import DrawnRows
from regraft.tokenizers.mixtures import Mixture
from regraft.tokenizers.vocab_map import Matching


@dataclass(frozen=True)
class Tables:
    """The embedding's rows, and the output matrix's with its biases where it is not the embedding itself."""

    embedding_VD: Tensor
    head_VD: Tensor | None
    bias_V: Tensor | None

    @property
    def rows(self) -> int:
        """Rows of each table."""
        return len(self.embedding_VD)


def check_tables(model: Model) -> None:
    """Make sure that a model's vocabulary is its embedding and its output matrix, and nothing else.

    Raises:
        ValueError: the head is no plain matrix, or another tensor has a number for every token.
    """
    head, rows = model.parts.head, model.table_rows
    if head is not None and not isinstance(head, nn.Linear):
        raise ValueError(
            f"the output matrix of {model.name} is a {type(head).__name__}: only a linear one can get new"
            " rows"
        )
    own = {
        id(model.parts.embedding.weight),
        *(id(tensor) for tensor in (head.parameters() if head is not None else ())),
    }
    named = [*model.hf.named_parameters(), *model.hf.named_buffers()]
    other = [
        name
        for name, tensor in named
        if rows in tensor.shape and rows != model.width and id(tensor) not in own
    ]
    if other:
        raise ValueError(
            f"{other[0]} of {model.name} has a number for every token, too: it cannot be given another"
            " vocabulary"
        )


def check_padding(model: Model, padding: int | None) -> None:
    """Make sure that a model that counts its positions from the padding token (RoBERTa and its like) counts
    from the new one.

    Such a model's table of positions knows that token's id, as its table of tokens does.

    Raises:
        ValueError: it would count from another token.
    """
    leaves = [
        module
        for module in model.hf.modules()
        if not list(module.children()) and not _token_table(module, model)
    ]
    known = {i for module in leaves if isinstance(i := getattr(module, "padding_idx", None), int)}
    wrong = next((i for i in sorted(known) if i != padding), None)
    if wrong is not None:
        raise ValueError(
            f"{model.name} counts its positions from the padding token, whose id is {wrong}: give the new"
            " tokenizer a padding token of that id"
        )


def _token_table(module: nn.Module, model: Model) -> bool:
    return getattr(module, "weight", None) is model.parts.embedding.weight


def rows_needed(model: Model, tokens: int, old_tokens: int, multiple: int = 0) -> int:
    """Rows of the new tables: the tokens, up to a multiple; by default the power of two that the old table is
    padded to.

    A table with a row for each old token and no more stays like that.
    """
    if multiple < 0:
        raise ValueError(f"rows cannot be padded to a multiple of {multiple}")
    if not multiple:
        old = model.table_rows
        multiple = 1 if old <= old_tokens else min(old & -old, 1024)
    return -(-tokens // max(1, multiple)) * max(1, multiple)


def build_tables(model: Model, matching: Matching, mixed: Mixture | DrawnRows, rows: int) -> Tables:
    """Fill the tables: copies, mixtures, the mean row where nothing is known; behind the last token the old
    table's own."""
    head = model.parts.head
    embedding_VD = _filled(model.parts.embedding.weight, matching, mixed, rows)
    if head is None or model.parts.tied:
        bias_V = None if head is None else _filled_bias(head, matching, mixed, rows)
        return Tables(embedding_VD, None, bias_V)
    assert isinstance(head.weight, Tensor)
    head_VD = _filled(head.weight, matching, mixed, rows)
    return Tables(embedding_VD, head_VD, _filled_bias(head, matching, mixed, rows))


def _filled_bias(head: nn.Module, matching: Matching, mixed: Mixture | DrawnRows, rows: int) -> Tensor | None:
    bias_V = getattr(head, "bias", None)
    return None if bias_V is None else _filled(bias_V[:, None], matching, mixed, rows)[:, 0]


@torch.no_grad()
def _filled(old_VX: Tensor, matching: Matching, mixed: Mixture | DrawnRows, rows: int) -> Tensor:
    mean_X = old_VX.float().mean(0)
    advance("filling tables", 0, rows)
    found_VX = mean_X.to(old_VX).expand(rows, -1).clone()
    copied = np.flatnonzero(matching.source_V >= 0)
    found_VX[torch.from_numpy(copied)] = old_VX[torch.from_numpy(matching.source_V[copied])]
    if len(matching.missing):
        found_VX[torch.from_numpy(matching.missing)] = mixed.rows(old_VX, mean_X)
    spare = min(rows, len(old_VX)) - len(matching.source_V)
    if spare > 0 and len(old_VX) >= rows:
        found_VX[len(matching.source_V) : rows] = old_VX[len(matching.source_V) : rows]
    advance("filling tables", rows, rows)
    return found_VX


def modules(model: Model, tables: Tables) -> Swaps:
    """New modules with these tables, beside those whose places they take; a tied head shares the embedding's
    weight."""
    embedding = _with_weight(model.parts.embedding, tables.embedding_VD)
    assert isinstance(embedding, nn.Embedding)
    embedding.num_embeddings = tables.rows
    if embedding.padding_idx is not None:
        embedding.padding_idx = None
    head = model.parts.head
    if head is None:
        return [(model.parts.embedding, embedding)]
    fresh = _with_weight(head, tables.embedding_VD if tables.head_VD is None else tables.head_VD)
    assert isinstance(fresh, nn.Linear)
    if tables.head_VD is None:
        fresh.weight = embedding.weight
    fresh.out_features = tables.rows
    if tables.bias_V is not None:
        fresh.bias = nn.Parameter(tables.bias_V)
    return [(model.parts.embedding, embedding), (head, fresh)]


def _with_weight(module: nn.Module, weight: Tensor) -> nn.Module:
    """A copy of a module with another weight, without copying the old one."""
    old = module.weight
    assert isinstance(old, Tensor)
    memo = {id(old): None, **({id(module.bias): None} if getattr(module, "bias", None) is not None else {})}
    made = copy.deepcopy(module, memo)
    made.weight = nn.Parameter(weight)
    return made
