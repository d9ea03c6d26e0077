"""A short training of the new rows only: the next new token, and the old model's own stream where both cuts
meet.

Old and new ids of one text are lined up by bytes. At every byte where a token ends in both, the model has
read the same text either way, so its last stream should be the same. Shapes: B texts, T new tokens, S old
tokens, D width, N new rows, M meetings.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from regraft.model.model import Model
from regraft.modules.placement import all_placed, logits_of, streams, trunk_blocks
from regraft.tokenizers.byte_codec import ByteIds
from regraft.tokenizers.transplantation import Transplant
from regraft.training.tasks.embedding_task import relative_error

RATE_OVER_RMS = 0.05
"""The rate in times the table's own root mean square: a step of Adam moves every number by about the rate."""


class NewRows(nn.Module):
    """The rows of a table that are trained, beside the frozen rows.

    A step moves only rows whose tokens are in its text. The softmax has a gradient for every row, but of a
    row that the text lacks it says only "less", and an optimiser that scales gradients would follow it at
    full rate until the row is lost.
    """

    def __init__(self, table_VD: Tensor, ids_N: Tensor):
        super().__init__()
        self.register_buffer("table_VD", table_VD.detach().clone())
        self.register_buffer("ids_N", ids_N)
        place_V = torch.full((len(table_VD),), -1, dtype=torch.long, device=table_VD.device)
        place_V[ids_N] = torch.arange(len(ids_N), device=table_VD.device)
        self.register_buffer("place_V", place_V)
        self.rows = nn.Embedding.from_pretrained(table_VD.detach()[ids_N].clone(), freeze=False, sparse=True)

    table_VD: Tensor
    ids_N: Tensor
    place_V: Tensor

    def whole(self, used_U: Tensor | None = None) -> Tensor:
        """The table (V, D) with the trained rows in it; gradients reach the rows of these ids alone."""
        self.table_VD[self.ids_N] = self.rows.weight.detach().to(self.table_VD.dtype)
        if used_U is None:
            return self.table_VD
        used_U = used_U[self.place_V[used_U] >= 0]
        return self.table_VD.index_copy(0, used_U, self.rows(self.place_V[used_U]).to(self.table_VD.dtype))


def check_healing(model: Model) -> None:
    """Make sure that a model can be healed.

    Raises:
        ValueError: it is no decoder.
    """
    if model.two_stacks or not model.causal:
        raise ValueError("healing reads a text from left to right: it needs a decoder, so leave --heal out")


class HealTask:
    """Rows of the embedding, and of an output matrix of its own, taught by the model with its own tokenizer.

    Loss: nats per new token, and the squared error of the last stream over its mean square at the bytes where
    both cuts meet.

    Raises:
        ValueError: an encoder-decoder, whose two halves are not one text, or no new rows.
    """

    def __init__(self, done: Transplant, stream: float = 1.0):
        check_healing(done.model)
        if not len(done.matching.missing):
            raise ValueError("no row is new: there is nothing to heal")
        self.done, self.stream, self.root = done, stream, done.model.hf
        ids_N = torch.from_numpy(done.matching.missing).to(done.model.device)
        embedding = done.swaps[0][1]
        assert isinstance(embedding, nn.Embedding)
        parts = {"embedding": NewRows(embedding.weight, ids_N)}
        if done.tables.head_VD is not None:
            parts["head"] = NewRows(done.tables.head_VD.to(done.model.device), ids_N)
        self.tables = parts
        self.graft: nn.Module = nn.ModuleDict(parts)

    @property
    def model(self) -> Model:
        """The model, which stays as it is."""
        return self.done.model

    @property
    def rate(self) -> float:
        """A rate for these rows: a twentieth of their root mean square."""
        return RATE_OVER_RMS * float(
            self.tables["embedding"].rows.weight.detach().float().square().mean().sqrt()
        )

    def blocks(self) -> list[nn.Module]:
        """Blocks of the trunk."""
        return trunk_blocks(self.model)

    def losses(self, ids_BT: Tensor) -> Mapping[str, Tensor]:
        """Parts of the loss on a batch of new ids."""
        depth = len(self.model.parts.stacks[-1].blocks)
        old_BS, places = self.aligned(ids_BT)
        with torch.no_grad(), streams(self.model, [depth]) as taught:
            logits_of(self.model, {"input_ids": old_BS})
        with self.standing(ids_BT.unique()), streams(self.model, [depth]) as learnt:
            logits_BTV = logits_of(self.model, {"input_ids": ids_BT})
        assert logits_BTV is not None
        loss = nn.functional.cross_entropy(logits_BTV[:, :-1].float().flatten(0, 1), ids_BT[:, 1:].flatten())
        parts = {"next": loss}
        if len(places) and self.stream:
            row_M, new_M, old_M = places.to(ids_BT.device).T
            parts["stream"] = self.stream * relative_error(
                learnt[depth][row_M, new_M], taught[depth][row_M, old_M]
            )
        return parts

    def aligned(self, ids_BT: Tensor) -> tuple[Tensor, Tensor]:
        """The same texts in old ids (B, S), padded, and (row, new place, old place) of every byte where
        tokens end in both.

        A text that the old tokenizer does not keep has no such place.
        """
        old, new = self.done.old, self.done.new
        rows: list[Tensor] = []
        places: list[tuple[int, int, int]] = []
        for number, ids in enumerate(ids_BT.tolist()):
            start = next((i for i, token in enumerate(ids) if new.table.bytes_V[token]), len(ids))
            stop = next((i for i in range(start, len(ids)) if not new.table.bytes_V[ids[i]]), len(ids))
            spans = old.spans(new.decode(ids[start:stop])) or []
            ends = {end: place for place, (_, end, _) in enumerate(spans)}
            places += [
                (number, start + i, ends[end])
                for i, end in enumerate(_ends(new, ids[start:stop]))
                if end in ends
            ]
            rows.append(torch.tensor([token for *_, token in spans] or [0]))
        return nn.utils.rnn.pad_sequence(rows, batch_first=True).to(ids_BT.device), torch.tensor(
            places
        ).reshape(-1, 3)

    def standing(self, used_U: Tensor | None = None):
        """While inside, the model has the new modules with the rows as they are now; gradients reach those of
        these ids."""
        (old_embedding, fresh), *head = self.done.swaps
        table_VD = self.tables["embedding"].whole(used_U)
        matrix_VD = self.tables["head"].whole(used_U) if "head" in self.tables else table_VD
        swaps = [(old_embedding, _Standing(fresh, table_VD))]
        swaps += [(old, _Standing(made, matrix_VD)) for old, made in head]
        return all_placed(self.root, swaps)

    def keep(self) -> None:
        """Write the trained rows into the transplant's modules."""
        with torch.no_grad():
            for rows, (_, made) in zip(self.tables.values(), self.done.swaps, strict=False):
                made.get_parameter("weight").copy_(rows.whole())


class _Standing(nn.Module):
    """A module run with another weight than its own, so that gradients reach what the weight is made of."""

    def __init__(self, module: nn.Module, weight: Tensor):
        super().__init__()
        self.held = [module, weight]

    @property
    def weight(self) -> Tensor:
        return self.held[1]  # type: ignore[return-value]

    def forward(self, given: Tensor) -> Tensor:
        return torch.func.functional_call(self.held[0], {"weight": self.held[1]}, (given,))  # type: ignore[arg-type]


def _ends(reader: ByteIds, ids: list[int]) -> list[int]:
    ends, at = [], 0
    for token in ids:
        at += len(reader.table.bytes_V[token])
        ends.append(at)
    return ends
