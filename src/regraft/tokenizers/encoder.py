"""A sentence encoder read from a folder or hub id, and vectors of texts that are kept on disk as they are
made.

Shapes: B texts, T tokens, D width of the encoder.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

from regraft.checkpoint.checksums import digest
from regraft.checkpoint.hub import resolve
from regraft.checkpoint.locate import CheckpointError
from regraft.core.files import NotWrittenError, check_place, place_of, writing
from regraft.core.progress import advance
from regraft.core.silence import silent
from regraft.core.tolerance import gap, rounding
from regraft.model.load import read_tokenizer

BATCH = 256
"""Texts that are encoded together."""


class SentenceEncoder:
    """Texts as unit vectors: the mean of the last states, or the first one where the folder's pooling says
    so.

    Raises:
        ValueError: the folder holds no encoder.
    """

    def __init__(self, name: str, device: str = "cpu"):
        folder, self.name = resolve(name)
        self.pooling = pooling_of(folder)
        try:
            with silent():
                self.hf: Any = transformers.AutoModel.from_pretrained(
                    folder, use_safetensors=True, dtype=torch.float32
                )
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(
                f"{self.name} holds no sentence encoder: {str(error).splitlines()[0]}"
            ) from error
        self.hf = self.hf.to(device).eval()
        self.tokenizer = read_tokenizer(folder, False)
        if (
            self.tokenizer is None
            or getattr(self.hf.config, "is_encoder_decoder", False)
            or not self._reads_both_ways()
        ):
            raise ValueError(
                f"{self.name} is no sentence encoder: it must have a tokenizer and read a text in both"
                " directions; name an encoder such as all-MiniLM-L6-v2"
            )
        self.digest = digest([*sorted(folder.glob("*.safetensors")), *sorted(folder.glob("tokenizer.json"))])

    @torch.no_grad()
    def _reads_both_ways(self) -> bool:
        ids_BT = torch.arange(5, 11)[None].repeat(2, 1).to(self.hf.device)
        ids_BT[1, -1] += 7
        states_BTD = self.hf(input_ids=ids_BT)[0]
        depth = getattr(self.hf.config, "num_hidden_layers", 1)
        noise = rounding(states_BTD.dtype, depth, 4 * states_BTD.shape[-1])
        return gap(states_BTD[1, 0], states_BTD[0, 0]) > noise

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors (B, D)."""
        given = self.tokenizer(list(texts), padding=True, truncation=True, max_length=64, return_tensors="pt")
        given = {name: value.to(self.hf.device) for name, value in given.items()}
        states_BTD = self.hf(**given)[0]
        return pooled(states_BTD, given["attention_mask"], self.pooling)


def pooled(states_BTD: Tensor, mask_BT: Tensor, pooling: str) -> Tensor:
    """Unit vectors (B, D) of texts: the mean of their tokens' states, or the first one's."""
    mask_BT1 = mask_BT[..., None].to(states_BTD)
    vectors_BD = states_BTD[:, 0] if pooling == "first" else (states_BTD * mask_BT1).sum(1) / mask_BT1.sum(1)
    return torch.nn.functional.normalize(vectors_BD, dim=-1).cpu()


def pooling_of(folder: Path) -> str:
    """How a sentence encoder's folder says that its states are pooled: `mean` (also where it says nothing) or
    `first`.

    Raises:
        CheckpointError: in another way, or something computes behind the pooling.
    """
    modules = folder / "modules.json"
    kinds = (
        [entry["type"].rpartition(".")[2] for entry in json.loads(modules.read_text("utf-8"))]
        if modules.is_file()
        else []
    )
    if other := [kind for kind in kinds if kind not in ("Transformer", "Pooling", "Normalize")]:
        raise CheckpointError(
            f"{folder.name} has a {other[0]} layer behind its states: only pooling and scaling are known here"
        )
    file = folder / "1_Pooling" / "config.json"
    if not file.is_file():
        return "mean"
    stated = json.loads(file.read_text(encoding="utf-8"))
    if stated.get("pooling_mode_mean_tokens"):
        return "mean"
    if stated.get("pooling_mode_cls_token"):
        return "first"
    raise CheckpointError(f"{folder.name} pools in a way that is not known here: mean or first token")


class Vectors:
    """Vectors of texts by one encoder, each made once and kept in a file; a run that is broken off loses one
    batch."""

    def __init__(self, encoder: SentenceEncoder, cache: Path):
        self.encoder = encoder
        self.made = 0
        check_place(cache, "--cache")
        with writing(cache):
            place_of(cache).mkdir(parents=True, exist_ok=True)
        self.file = place_of(cache) / f"vectors-{encoder.digest[:16]}-{encoder.pooling}.sqlite"
        with self._open() as store, store:
            store.execute(
                "create table if not exists vectors (text blob primary key, vector blob) without rowid"
            )

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """The file as a data base, closed behind the block.

        Raises:
            NotWrittenError: the disk is full, or the file closed.
            ValueError: it is something else.
        """
        try:
            with closing(sqlite3.connect(self.file)) as store:
                yield store
        except sqlite3.OperationalError as error:
            raise NotWrittenError(
                f"{self.file} could not be written ({error}): choose another place with --cache"
            ) from error
        except sqlite3.DatabaseError as error:
            raise ValueError(
                f"{self.file} holds no vectors ({error}): remove it, or choose another with --cache"
            ) from error

    def of(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors (B, D) of some texts, from the file as far as they are there."""
        keys = [
            hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest() for text in texts
        ]
        with self._open() as store:
            known = {key for (key,) in store.execute("select text from vectors")}
            wanted = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
            order = sorted(wanted.items(), key=lambda one: len(one[1]))
            for start in range(0, len(order), BATCH):
                some = order[start : start + BATCH]
                made = self.encoder.encode([text for _, text in some]).numpy()
                rows = [(key, vector.tobytes()) for (key, _), vector in zip(some, made, strict=True)]
                with store:
                    store.executemany("insert or replace into vectors values (?, ?)", rows)
                self.made += len(some)
                advance("encoding tokens", start + len(some), len(order))
            return self._read(store, keys)

    def _read(self, store: sqlite3.Connection, keys: Sequence[bytes]) -> Tensor:
        places: dict[bytes, list[int]] = {}
        for place, key in enumerate(keys):
            places.setdefault(key, []).append(place)
        found: np.ndarray | None = None
        for key, vector in store.execute("select text, vector from vectors"):
            if key in places:
                values = np.frombuffer(vector, np.float32)
                found = np.zeros((len(keys), len(values)), np.float32) if found is None else found
                found[places[key]] = values
        return torch.from_numpy(found if found is not None else np.zeros((0, 1), np.float32))
