"""A checkpoint as a rebuilt model reads it: config, named tensors, tokenizer; nothing of transformers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from regraft.model.files import CheckpointError, check_folder, weights_digest
from regraft.rebuild import bert, gpt2, qwen3, t5

ARCHITECTURES: tuple[ModuleType, ...] = (bert, gpt2, t5, qwen3)
WRITTEN = 7
RENAMED = {"gamma": "weight", "beta": "bias"}


class Named(Mapping[str, Tensor]):
    """Tensors by name, which remember the names that were asked for."""

    def __init__(self, tensors: dict[str, Tensor]):
        self.tensors, self.asked = tensors, set()

    def __getitem__(self, name: str) -> Tensor:
        self.asked.add(name)
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    @property
    def unused(self) -> list[str]:
        """Names that nothing asked for, without copies of tensors that were."""
        used = [self.tensors[name] for name in self.asked if name in self.tensors]
        left = sorted(set(self.tensors) - self.asked)
        return [name for name in left if not any(_equal(self.tensors[name], other) for other in used)]


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)


@dataclass(eq=False)
class Rebuilt:
    """A rebuilt model: which architecture, its settings, its weights, and its folder."""

    module: ModuleType
    settings: Any
    weights: Named
    config: dict[str, Any]
    folder: Path
    name: str
    dtype: torch.dtype = torch.float32
    device: str = "cpu"

    @property
    def architecture(self) -> str:
        """The architecture's name, that of its file."""
        return self.module.__name__.rpartition(".")[2]

    @property
    def heads(self) -> int:
        """Number of heads that ask."""
        return self.settings.heads

    @property
    def two_stacks(self) -> bool:
        """Whether a decoder reads an encoder's output."""
        return self.module is t5

    @property
    def weights_sha256(self) -> str:
        """SHA-256 over the weight files."""
        return weights_digest(self.folder)

    def proof(self) -> dict[str, Any]:
        """What was proved when it was opened: nothing, that is what the comparison is for."""
        return {}

    def stages(self, inputs: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Every named stage as it is computed."""
        return self.module.stages(self.weights, self.settings, inputs)

    def greedy(self, inputs: Mapping[str, Tensor], tokens: int) -> list[int]:
        """The most probable next token, again and again, up to the end-of-text token."""
        current, found = self.module.first_inputs(inputs), []
        ends = self.config.get("eos_token_id")
        ends = set(ends) if isinstance(ends, list) else {ends}
        while len(found) < tokens and not (found and found[-1] in ends):
            *_, (_, logits_BTV) = self.stages(current)
            found.append(int(logits_BTV[0, -1].argmax()))
            current = self.module.with_token(current, found[-1])
        return found


def open_rebuilt(folder: Path, dtype: torch.dtype = torch.float32, name: str = "") -> Rebuilt:
    """Read a checkpoint's files and choose the architecture by the names of its tensors.

    Raises:
        CheckpointError: the folder is not whole, or no architecture here has such tensors.
        ValueError: a variant that is not rebuilt.
    """
    files = check_folder(folder)
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors.update(load_file(file))
    config = read_settings(folder)
    for module in ARCHITECTURES:
        named = {_own_name(name, module.PREFIX): t.to(dtype) for name, t in tensors.items() if t.is_floating_point()}
        if module.MARK in named:
            return Rebuilt(module, module.Settings.read(config), Named(named), config, folder, name or folder.name, dtype)
    known = ", ".join(f"{m.__name__.rpartition('.')[2]} ({m.MARK})" for m in ARCHITECTURES)
    raise CheckpointError(f"no architecture that is rebuilt here has the tensors of {folder.name}; known are {known}")


def _own_name(name: str, prefix: str) -> str:
    """A tensor's name without the base model's prefix, old names of norms made new."""
    stem, dot, last = name.removeprefix(prefix).rpartition(".")
    return f"{stem}{dot}{RENAMED.get(last, last)}"


def read_settings(folder: Path) -> dict[str, Any]:
    """config.json, with the pooling of a sentence encoder's folder under `pooling`.

    Raises:
        CheckpointError: a file cannot be read, or a pooling that is not one.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        pooling = folder / "1_Pooling" / "config.json"
        said = json.loads(pooling.read_text(encoding="utf-8")) if pooling.is_file() else {}
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"a configuration of {folder.name} cannot be read: {error}") from error
    modes = [name.removeprefix("pooling_mode_") for name, on in said.items() if name.startswith("pooling_mode_") and on is True]
    config["pooling"] = {"mean_tokens": "mean", "cls_token": "cls"}.get("+".join(modes), "+".join(modes))
    return config


def token_ids(folder: Path, texts: Sequence[str]) -> list[list[int]]:
    """Ids of each text by the folder's tokenizer.json; where there is none, the texts are ids themselves.

    Raises:
        ValueError: an empty text, or one that is neither.
    """
    file = folder / "tokenizer.json"
    if file.is_file():
        tokenizer = Tokenizer.from_file(str(file))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        found = [tokenizer.encode(text).ids for text in texts]
    else:
        try:
            found = [[int(word) for word in text.replace(",", " ").split()] for text in texts]
        except ValueError as error:
            raise ValueError(f"{folder.name} has no tokenizer.json: write token ids, for example --text 5,6,7") from error
    if not found or not all(found):
        raise ValueError("the text is empty: give at least one token")
    return found


def model_inputs(
    config: Mapping[str, Any],
    rows: Sequence[Sequence[int]],
    two_stacks: bool,
    types: Sequence[Sequence[int]] | None = None,
) -> dict[str, Tensor]:
    """The tensors that both models are given: ids padded on the right, a mask where they differ in length, types, targets.

    A decoder behind an encoder is given its start token and the first tokens of the same text.
    """
    length = max(map(len, rows))
    pad = config.get("pad_token_id") or 0
    inputs = {"input_ids": _padded(rows, length, pad)}
    if min(map(len, rows)) < length:
        inputs["attention_mask"] = _padded([[1] * len(row) for row in rows], length, 0)
    if types is not None:
        inputs["token_type_ids"] = _padded(types, length, 0)
    if two_stacks:
        start, shortest = config["decoder_start_token_id"], min(map(len, rows))
        inputs["decoder_input_ids"] = torch.tensor([[start, *row[: min(WRITTEN, shortest)]] for row in rows])
    return inputs


def _padded(rows: Sequence[Sequence[int]], length: int, value: int) -> Tensor:
    return torch.tensor([[*row, *[value] * (length - len(row))] for row in rows])
