"""Sweeps kept share by share as they are measured, so that a run that was killed goes on where it ended.

A run's folder holds a Zarr group for each sweep of the run, in their order: a chunk for each share of the
variants, with a checksum. A chunk that is missing, cut or damaged is measured again. Shapes: n variants, M
metrics, B prompts, S shares.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from regraft.core.files import place_of, writing
from regraft.core.scoped import scoped
from regraft.model.recording import Recording
from regraft.sweeps.metric_kinds import Metric
from regraft.sweeps.plan import Work
from regraft.sweeps.sweep_result import SweepResult
from regraft.sweeps.told_variants import digest_of
from regraft.sweeps.variants import Variant

if TYPE_CHECKING:
    import xarray as xr

STORE = "sweeps.zarr"
_WORK = ("planned", "preparation", "naive", "executed")
_PARTS = ("clean", "control", "weights")


class KeptRun:
    """The sweeps of one run in a folder."""

    def __init__(self, folder: Path):
        self.folder, self._next = folder, 0

    def next_sweep(self, told: str, count: int, at_once: int) -> KeptSweep:
        """The sweep that a run comes to next: as it was kept, or an empty one where there is none of these
        words.

        Args:
            told: what tells it from another one.
            count: how many variants it has.
            at_once: variants in a share, where it begins anew.
        """
        number, self._next = self._next, self._next + 1
        return KeptSweep(self.folder / STORE / f"{number:04d}", told, count, at_once)

    def there(self, told: str) -> KeptSweep | None:
        """The sweep that a run comes to next, to be read; None where it is not the one of these words, or not
        begun."""
        number, self._next = self._next, self._next + 1
        folder = self.folder / STORE / f"{number:04d}"
        found = KeptSweep.there(folder) if folder.is_dir() else None
        return found if found is not None and found.group.attrs.get("told") == told else None


_KEEPING: ContextVar[KeptRun | None] = ContextVar("regraft_keeping", default=None)


@contextmanager
def keeping(folder: Path | str | None) -> Iterator[None]:
    """While inside, every sweep is kept in a folder, and what is there already is not measured again.

    Args:
        folder: where groups of variants are kept as they are measured, with checksums; None keeps nothing.

    Returns:
        A context.

    Examples:
        >>> clean = model.record("It is dark and she walks")
        >>> with regraft.keeping("kept"):
        ...     first = regraft.sweep(clean, regraft.Zero("6.mlp_out"), regraft.loss()).mean("loss")
        >>> with regraft.keeping("kept"):  # read again, nothing is run
        ...     again = regraft.sweep(clean, regraft.Zero("6.mlp_out"), regraft.loss()).mean("loss")
        >>> bool(first == again)
        True
    """
    with scoped(_KEEPING, None if folder is None else KeptRun(place_of(folder))):
        yield


def kept_run() -> KeptRun | None:
    """Where sweeps are kept, if they are."""
    return _KEEPING.get()


def told_apart(
    recording: Recording, metrics: Sequence[Metric], variants: Sequence[Variant], exact: bool
) -> str:
    """A digest of what a sweep measures: prompts, metrics, variants with their values, weights."""
    told = {
        "ids": recording.ids_BT.tolist(),
        "scored": recording.scored_BT.tolist(),
        "metrics": [(m.name, m.unit) for m in metrics],
        "variants": digest_of(variants),
        "exact": exact,
        "weights": recording.model.weights_sha256,
        "dtype": str(recording.model.dtype),
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


class KeptSweep:
    """One sweep's shares on disk."""

    def __init__(self, folder: Path, told: str, count: int, at_once: int):
        import zarr

        self.folder, self.count = folder, count
        with writing(folder):
            self.group = zarr.open_group(folder, mode="a", zarr_format=3)
            if self.group.attrs.get("told") != told:
                self.group = zarr.open_group(folder, mode="w", zarr_format=3)
                self.group.attrs.update({"told": told, "count": count, "at_once": at_once})
        self.at_once = int(self.group.attrs["at_once"])  # pyright: ignore[reportArgumentType]

    @classmethod
    def there(cls, folder: Path) -> KeptSweep:
        """A sweep that is in a folder, to be read."""
        import zarr

        made = cls.__new__(cls)
        made.folder, made.group = folder, zarr.open_group(folder, mode="r", zarr_format=3)
        told: Any = made.group.attrs
        made.count, made.at_once = int(told["count"]), int(told["at_once"])
        return made

    @property
    def metrics(self) -> list[tuple[str, str]]:
        """Names and units of what is measured, as far as something was."""
        stated: Any = self.group.attrs.get("metrics", [])
        return [(str(name), str(unit)) for name, unit in stated]

    @property
    def ranges(self) -> list[range]:
        """The variants of each share."""
        return divided(self.count, self.at_once)

    def read(self, share: int) -> SweepResult | None:
        """A share as it was measured; None where it is not there, or not as it was written."""
        if not self.metrics or not self._is_whole(share):
            return None
        rows = self.ranges[share]
        try:
            values = self._array("values")[rows.start : rows.stop]
            parts, work = self._array("parts")[share], self._array("work")[share]
        except (ValueError, OSError, RuntimeError):  # the checksum, or what comes of a chunk that was cut
            return None
        names = [name for name, _ in self.metrics]
        by_name = {
            part: {name: torch.from_numpy(parts[i, m].copy()) for m, name in enumerate(names)}
            for i, part in enumerate(_PARTS)
        }
        kept = {name: torch.from_numpy(values[:, m].copy()) for m, name in enumerate(names)}
        dtype = getattr(torch, str(self.group.attrs["dtype"]))
        notes: Any = self.group.attrs.get("notes", [])
        return SweepResult(
            {name: value.to(dtype) for name, value in kept.items()},
            {name: t.to(dtype) for name, t in by_name["clean"].items()},
            {name: t.to(dtype) for name, t in by_name["control"].items()},
            {name: t.float() for name, t in by_name["weights"].items()},
            dict(self.metrics),
            Work(*(int(x) for x in work[:4])),
            float(work[4]),
            list(notes),
        )

    def write(self, share: int, result: SweepResult) -> None:
        """Keep a share; it counts once the last of its chunks is there.

        Raises:
            NotWrittenError: the disk is full, or the system refuses for another reason.
        """
        names, rows = list(result.values), self.ranges[share]
        prompts = len(next(iter(result.clean.values())))
        with writing(self.folder):
            if "metrics" not in self.group.attrs:
                self._create(len(names), prompts)
                dtype = str(next(iter(result.values.values())).dtype).removeprefix("torch.")
                units = [[name, result.units[name]] for name in names]
                self.group.attrs.update({"metrics": units, "dtype": dtype, "notes": result.notes})
            values = torch.stack([result.values[name] for name in names], 1)
            parts = [[getattr(result, part)[name].double().numpy() for name in names] for part in _PARTS]
            work = [*(getattr(result.work, name) for name in _WORK), result.deviation]
            self._array("values")[rows.start : rows.stop] = values.double().numpy()
            self._array("parts")[share] = np.array(parts)
            self._array("work")[share] = np.array(work, dtype=np.float64)
            self._array("done")[share] = 1

    def measured(self) -> dict[str, np.ndarray]:
        """Every metric's values (n, B), NaN where they are not measured yet."""
        found: dict[str, list[np.ndarray]] = {name: [] for name, _ in self.metrics}
        for share, rows in enumerate(self.ranges):
            kept = self.read(share)
            for name, some in found.items():
                prompts = self._array("values").shape[2]
                empty = np.full((len(rows), prompts), np.nan)
                some.append(empty if kept is None else kept.values[name].double().numpy())
        return {name: np.concatenate(some) for name, some in found.items()}

    def _create(self, metrics: int, prompts: int) -> None:
        from zarr.codecs import Crc32cCodec

        shares = len(self.ranges)
        layouts = {
            "values": ((self.count, metrics, prompts), (self.at_once, metrics, prompts), "float64"),
            "parts": ((shares, 3, metrics, prompts), (1, 3, metrics, prompts), "float64"),
            "work": ((shares, 5), (1, 5), "float64"),
            "done": ((shares,), (1,), "uint8"),
        }
        for name, (shape, chunks, dtype) in layouts.items():
            self.group.create_array(
                name, shape=shape, chunks=chunks, dtype=dtype, fill_value=0, compressors=[Crc32cCodec()],
                overwrite=True,
            )  # fmt: skip

    def _array(self, name: str) -> Any:
        return self.group[name]

    def _is_whole(self, share: int) -> bool:
        """Whether every chunk of a share is there; a missing one would read as zeros."""
        ends = {"values": "0/0", "parts": "0/0/0", "work": "0", "done": ""}
        return all((self.folder / name / "c" / str(share) / end).is_file() for name, end in ends.items())


def unfinished_run(folder: Path, mark: Mapping[str, Any]) -> xr.Dataset:
    """What was measured of a run that did not end: every sweep's metrics by variant and prompt, NaN where
    they are still to come."""
    import xarray as xr

    found: dict[str, Any] = {}
    for place in sorted((folder / STORE).glob("[0-9]*")):
        kept = KeptSweep.there(place)
        units = dict(kept.metrics)
        for name, values in kept.measured().items():
            label = f"{name}_{int(place.name)}"
            dims = (f"variant_{int(place.name)}", f"prompt_{int(place.name)}")
            found[label] = (dims, values, {"units": units[name]})
    return xr.Dataset(found, attrs={**dict(mark), "told": json.dumps(mark.get("told")), "finished": 0})


def divided(count: int, at_once: int) -> list[range]:
    """So many variants in shares of at most so many."""
    return [range(begin, min(begin + at_once, count)) for begin in range(0, count, at_once)]
