"""A checkpoint as a rebuilt model reads it: config, named tensors, tokenizer; nothing of transformers."""

from __future__ import annotations

import json
from collections.abc import ItemsView, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from regraft.checkpoint.locate import CheckpointError, check_folder, weights_digest
from regraft.reference import bert, gpt2, qwen3, t5

ARCHITECTURES: tuple[tuple[ModuleType, Any], ...] = (
    (bert, bert.BertSettings), (gpt2, gpt2.Gpt2Settings), (t5, t5.T5Settings), (qwen3, qwen3.Qwen3Settings),
)  # fmt: skip
WRITTEN = 7
"""Tokens that a decoder is given behind its start."""
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

    def items(self) -> ItemsView[str, Tensor]:
        """All names and tensors; looking them over is not asking for one."""
        return self.tensors.items()

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
    def ends(self) -> list[int]:
        """The tokens that end a text."""
        stated = self.config.get("eos_token_id")
        return stated if isinstance(stated, list) else [] if stated is None else [stated]

    def check_ids(self, rows: Sequence[Sequence[int]]) -> None:
        """Make sure that ids are in the token table and no text is longer than the position table.

        Raises:
            ValueError: they are not.
        """
        table = self.weights[self.module.TOKENS].shape[0]
        wrong = next((i for row in rows for i in row if not 0 <= i < table), None)
        if wrong is not None:
            raise ValueError(f"token id {wrong} is outside the vocabulary of {table}")
        longest, most = (
            max(map(len, rows)),
            self.module.POSITIONS and self.weights[self.module.POSITIONS].shape[0],
        )
        if most and longest > most:
            raise ValueError(
                f"{longest} tokens do not fit this model, whose longest input is {most} tokens: shorten the"
                " text"
            )

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
        current, found = first_inputs(inputs), []
        while len(found) < tokens and not (found and found[-1] in self.ends):
            *_, (_, logits_BTV) = self.stages(current)
            found.append(int(logits_BTV[0, -1].argmax()))
            current = with_token(current, found[-1])
        return found


def open_rebuilt(folder: Path, dtype: torch.dtype = torch.float32, name: str = "") -> Rebuilt:
    """Read a checkpoint's files and choose the architecture by the names of its tensors.

    Raises:
        CheckpointError: the folder is not whole, or no architecture here has such tensors.
        ValueError: a variant that is not rebuilt.
    """
    config = read_settings(folder)
    if config.get("quantization_config"):
        raise CheckpointError(
            f"the weights of {folder.name} are stored quantized: rebuild the model that they were made from"
        )
    tensors: dict[str, Tensor] = {}
    for file in _read_by_transformers(check_folder(folder)):
        tensors.update(load_file(file))
    for module, settings_of in ARCHITECTURES:
        named = {
            _own_name(name, module.PREFIX): t.to(dtype)
            for name, t in tensors.items()
            if t.is_floating_point()
        }
        if module.MARK in named:
            try:
                settings = settings_of.read(config)
            except KeyError as error:
                raise CheckpointError(
                    f"config.json of {folder.name} does not say {error}, so it cannot be rebuilt"
                ) from error
            return Rebuilt(module, settings, Named(named), config, folder, name or folder.name, dtype)
    known = ", ".join(f"{m.__name__.rpartition('.')[2]} ({m.MARK})" for m, _ in ARCHITECTURES)
    raise CheckpointError(
        f"no architecture that is rebuilt here has the tensors of {folder.name}; known are {known}"
    )


def _read_by_transformers(files: list[Path]) -> list[Path]:
    """Of several files without an index (a variant in another type, say) transformers reads model.safetensors
    alone."""
    index = files[0].parent / "model.safetensors.index.json"
    return [file for file in files if index.is_file() or file.name == "model.safetensors"] or files


def _own_name(name: str, prefix: str) -> str:
    """A tensor's name without the base model's prefix, old names of norms made new."""
    stem, dot, last = name.removeprefix(prefix).rpartition(".")
    return f"{stem}{dot}{RENAMED.get(last, last)}"


def read_settings(folder: Path) -> dict[str, Any]:
    """config.json, with a sentence encoder's pooling and whether it is normalised under `pooling` and
    `normalises`.

    Raises:
        CheckpointError: a file cannot be read.
        ValueError: a sentence encoder with modules that are not rebuilt.
    """
    config = _table(folder / "config.json")
    modules = folder / "modules.json"
    listed = _parsed(modules) if modules.is_file() else []
    if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
        raise CheckpointError(f"modules.json of {folder.name} is no list of modules")
    kinds = [str(one.get("type", "")).rpartition(".")[2] for one in listed]
    strange = [kind for kind in kinds if kind not in ("Transformer", "Pooling", "Normalize")]
    if strange:
        raise ValueError(f"this sentence encoder has a module {strange[0]}, which is not rebuilt")
    place = next(
        (str(one.get("path", "")) for one, kind in zip(listed, kinds, strict=True) if kind == "Pooling"), ""
    )
    config["pooling"] = _pooling(_table(folder / place / "config.json")) if place else ""
    config["normalises"] = "Normalize" in kinds
    return config


def _pooling(stated: dict[str, Any]) -> str:
    """The pooling's name, from either form of its configuration."""
    modes = [
        name.removeprefix("pooling_mode_")
        for name, on in stated.items()
        if name.startswith("pooling_mode_") and on is True
    ]
    mode = "+".join(modes) or str(stated.get("pooling_mode", ""))
    return {"mean_tokens": "mean", "cls_token": "cls"}.get(mode, mode)


def _table(file: Path) -> dict[str, Any]:
    value = _parsed(file)
    if not isinstance(value, dict):
        raise CheckpointError(f"{file.name} of {file.parent.name} is no table of settings")
    return value


def _parsed(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{file.name} of {file.parent.name} cannot be read: {str(error).splitlines()[0]}"
        ) from error


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
            raise ValueError(
                f"{folder.name} has no tokenizer.json: write token ids, for example --text 5,6,7"
            ) from error
    if not found or not all(found):
        raise ValueError("the text is empty: give at least one token")
    return found


def model_inputs(
    config: Mapping[str, Any],
    rows: Sequence[Sequence[int]],
    two_stacks: bool,
    types: Sequence[Sequence[int]] | None = None,
) -> dict[str, Tensor]:
    """The tensors that both models are given: ids padded on the right, a mask where they differ in length,
    types, targets.

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
        start, shortest = config.get("decoder_start_token_id"), min(map(len, rows))
        if start is None:
            raise ValueError(
                "config.json does not say which token the decoder starts with (decoder_start_token_id)"
            )
        inputs["decoder_input_ids"] = torch.tensor([[start, *row[: min(WRITTEN, shortest)]] for row in rows])
    return inputs


def first_inputs(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What generation starts from: the first text without padding, and a decoder's first token."""
    ids_BT = inputs["input_ids"]
    mask_BT = inputs.get("attention_mask", torch.ones_like(ids_BT)).bool()
    first = {"input_ids": ids_BT[:1, mask_BT[0]]}
    return (
        {**first, "decoder_input_ids": inputs["decoder_input_ids"][:1, :1]}
        if "decoder_input_ids" in inputs
        else first
    )


def with_token(inputs: Mapping[str, Tensor], token: int) -> dict[str, Tensor]:
    """The inputs with one more token at the end of what is written."""
    name = "decoder_input_ids" if "decoder_input_ids" in inputs else "input_ids"
    return {**inputs, name: torch.cat([inputs[name], torch.tensor([[token]])], dim=1)}


def _padded(rows: Sequence[Sequence[int]], length: int, value: int) -> Tensor:
    return torch.tensor([[*row, *[value] * (length - len(row))] for row in rows])
