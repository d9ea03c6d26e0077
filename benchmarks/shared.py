"""What the benchmarks share: their options, their results on disk, and text to train and to measure on."""

from __future__ import annotations

import argparse
import json
import sysconfig
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers
import xarray as xr

from benchmarks.machine import machine
from regraft.data.windows import Windows, windows
from regraft.model.model import Model
from regraft.specimens import almanac

RESULTS = Path(__file__).parent / "results"
LENGTH = 128
HELD_CODE = ("asyncio", "json", "email")
"""Packages of the standard library that are measured on; its single modules are trained on."""


@dataclass(frozen=True)
class Texts:
    """Windows to train on, and windows to measure on by domain."""

    train: Windows
    held: dict[str, Windows]


def arguments(said: str, folders: str, cache: str = "") -> argparse.ArgumentParser:
    """Options that the benchmarks share: the folder of the corpora and what it must hold, threads, a folder
    for what is kept."""
    parser = argparse.ArgumentParser(description=said.splitlines()[0])
    parser.add_argument("--corpora", type=Path, required=True, help=f"folder with {folders}")
    parser.add_argument("--threads", type=int, default=2)
    if cache:
        parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / cache)
    return parser


def held_code() -> list[Path]:
    """Folders of code that nothing is trained on."""
    library = Path(sysconfig.get_paths()["stdlib"])
    return [library / package for package in HELD_CODE]


def texts(model: Model, corpora: Path, cache: Path) -> Texts:
    """Encode everything once into `cache`."""
    cache.mkdir(parents=True, exist_ok=True)
    for name, characters, seed in (("almanac-train.txt", 2_000_000, 7), ("almanac-held.txt", 200_000, 99)):
        if not (cache / name).is_file():
            (cache / name).write_text("\n".join(almanac.corpus(characters, seed)), encoding="utf-8")
    code = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    return Texts(
        windows(model, [corpora / "books", cache / "almanac-train.txt", *code], LENGTH, cache),
        {
            "books": windows(model, [corpora / "books-heldout"], LENGTH, cache),
            "almanac": windows(model, [cache / "almanac-held.txt"], LENGTH, cache),
            "code": windows(model, held_code(), LENGTH, cache),
        },
    )


class Results:
    """Measurements by name in one JSON file, written anew behind each; what is there already is not measured
    again."""

    def __init__(self, file: Path):
        self.file = file
        self.content: dict[str, Any] = (
            json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"runs": {}}
        )

    def __contains__(self, name: str) -> bool:
        return name in self.content["runs"]

    def add(self, name: str, values: dict[str, Any]) -> None:
        """Keep one measurement, with the machine and the versions that it was made with."""
        made = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "threads": torch.get_num_threads(),
            "machine": machine(),
        }
        versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        self.content["runs"][name] = {**values, "made": {**made, **versions}}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_text(json.dumps(self.content, indent=1) + "\n", encoding="utf-8")
        print(f"{name}: {json.dumps(values)}", flush=True)


class Clock:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self.began = time.perf_counter()

    def __call__(self) -> float:
        return round(time.perf_counter() - self.began, 1)


def changes(data: xr.Dataset) -> dict[str, dict[str, float]]:
    """By domain: bits per byte before and after, divergence, agreement."""
    names = ("bits_per_byte_before", "bits_per_byte_after", "kl", "top1", "top5")
    return {str(d): {name: float(data[name].sel(domain=d)) for name in names} for d in data.domain.values}
