"""The one way that a model is written: into a new folder, read again, compared, and only then kept.

Blocks left out, weights rounded, a table baked in, grafts, another vocabulary: whatever was changed, the
folder must give the outputs that were measured, keep every tensor to the bit, and generate as the model that
it was made from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from regraft.checkpoint.locate import CheckpointError
from regraft.core.files import NotKeptError, check_empty, whole_folder
from regraft.core.silence import silent
from regraft.export.readback import check_generation, check_outputs, check_tensors, probe_ids
from regraft.export.sentence_files import copy_sentence_files
from regraft.export.stored_types import rounding_note, settle, stored_types
from regraft.model.block_call import without_cache
from regraft.model.from_files import read_checkpoint
from regraft.model.model import Model

CARD, CERTIFICATE = "README.md", "certificate.json"


@dataclass(frozen=True)
class Probe:
    """What a written model is compared on: inputs, the outputs that it must give, and what to say where it
    does not.

    `refusal` has a field `{gap}` for how far they lie apart, as a share of the largest; `unreadable` one
    `{reason}` for why the folder cannot be opened.
    """

    inputs: dict[str, Tensor]
    wanted: Tensor
    refusal: str
    unreadable: str = "what was written cannot be opened: {reason}"


@dataclass(frozen=True)
class Verified:
    """How far a written model's outputs lie from what they should be, and what rounding to its types on disk
    did."""

    difference: float
    rounded: str = ""

    def __str__(self) -> str:
        return f"{self.difference:.1g}{self.rounded}"


@dataclass(frozen=True)
class Writing:
    """How a folder is filled where it is not a plain checkpoint with the model's own tokenizer.

    Args:
        tokenizer: what is written with it; by default the model's own, if it has one.
        fill: puts the changed model into the folder; by default as transformers saves it.
        types: whether numbers are written in the types of the model's own files.
        read: opens the folder; by default as a plain checkpoint.
        tensors: what must be read back to the bit, by name; by default everything that is written by
            `save_pretrained`.
        also: one more thing that the folder must show.
    """

    tokenizer: Any = None
    fill: Callable[[Any, Path], None] | None = None
    types: bool = True
    read: Callable[[Path], nn.Module] | None = None
    tensors: Mapping[str, Tensor] | None = None
    also: Callable[[Path], None] | None = None


def probe_inputs(model: Model, rows: int, seed: int) -> dict[str, Tensor]:
    """Random ids below `rows` for a model, longer than any window that it has; both stacks of two read
    them."""
    ids = torch.tensor([probe_ids(model.hf, rows, seed)], device=model.device)
    return {"input_ids": ids, **({"decoder_input_ids": ids} if model.two_stacks else {})}


@torch.no_grad()
def outputs_of(hf: Any, inputs: dict[str, Tensor]) -> Tensor:
    """Logits of a model, or its last hidden states where it has no output matrix; no cache is used."""
    return hf(**inputs, **without_cache(hf))[0]


@dataclass
class _Folder:
    model: Model
    changed: Any
    probe: Probe
    how: Writing

    def settle(self) -> tuple[Tensor, str]:
        """Round numbers as the model's own files do; what the outputs then must be, and what that did."""
        if not self.how.types:
            return self.probe.wanted, ""
        types, wanted = stored_types(self.model), self.probe.wanted
        depth, width = len(self.model.blocks), self.model.width
        found, bound = settle(
            self.changed, types, lambda: outputs_of(self.changed, self.probe.inputs), wanted, depth, width
        )
        return found, rounding_note(types, check_outputs(found, wanted, bound, self.probe.refusal))

    def fill(self, fresh: Path) -> None:
        (self.how.fill or _save_plainly)(self.changed, fresh)
        tokenizer = self.how.tokenizer or self.model.tokenizer
        if tokenizer is not None:
            tokenizer.save_pretrained(fresh)
        copy_sentence_files(self.model.folder, fresh)

    def read(self, fresh: Path) -> Any:
        if self.how.read is not None:
            return self.how.read(fresh).to(self.model.device).eval()
        return read_checkpoint(fresh, str(self.model.device), self.model.dtype, self.model.attention)

    def verify(self, fresh: Path, wanted: Tensor, rounded: str) -> Verified:
        read = self.read(fresh)
        tensors = (
            self.changed.state_dict()
            if self.how.tensors is None and self.how.fill is None
            else self.how.tensors
        )
        check_tensors(read, tensors or {})
        found = outputs_of(read, self.probe.inputs)
        difference = check_outputs(found, wanted, self.model.rounding, self.probe.refusal)
        check_generation(read, self.model.hf, self.probe.inputs, self.model.rounding)
        if self.how.also is not None:
            self.how.also(fresh)
        return Verified(difference, rounded)


def write_verified(
    model: Model,
    changed: Any,
    probe: Probe,
    target: Path,
    texts: Callable[[Path, Verified], Mapping[str, str]],
    how: Writing | None = None,
) -> Verified:
    """Write a model made from another, read it again, compare, and keep the folder only then.

    Args:
        model: the model that it was made from.
        changed: the changed Hugging Face model, or what `how.fill` writes; its numbers are rounded to the
            types of the model's own files where `how.types` says so.
        probe: what it is compared on.
        target: the folder.
        texts: files of text that stand beside the weights, by name, from the folder so far and what was
            found: the card.
        how: what is special about this folder.

    Raises:
        RunFolderError: the target is not empty.
        NotWrittenError: the disk is full or closed.
        NotKeptError: read again, a tensor, the outputs or the generation are not as they were.
    """
    check_empty(target, "--save")
    folder = _Folder(model, changed, probe, how or Writing())
    wanted, rounded = folder.settle()
    with whole_folder(target) as fresh:
        with silent():
            folder.fill(fresh)
        try:
            verified = folder.verify(fresh, wanted, rounded)
        except CheckpointError as error:
            raise NotKeptError(
                probe.unreadable.format(reason=str(error).replace(fresh.name, target.name))
            ) from error
        for name, text in texts(fresh, verified).items():
            (fresh / name).write_text(text, encoding="utf-8")
    return verified


def _save_plainly(changed: Any, fresh: Path) -> None:
    changed.save_pretrained(fresh)
