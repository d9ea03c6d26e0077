"""Activations of many prompts, or of a million tokens, as arrays in memory or in a folder.

Shapes: N tokens that are kept, B prompts of a batch, T positions, W width at a site, H heads.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from regraft.core.files import RunFolderError, check_empty, expanded, whole_folder
from regraft.core.progress import advance
from regraft.core.strict_json import json_text, opened_attributes
from regraft.export.changed_model import changed_copies
from regraft.model.inputs import batch_inputs, completion_rows, rows_of
from regraft.model.model import Model
from regraft.model.sites import DICTIONARY
from regraft.sweeps.feature_edits import model_base
from regraft.sweeps.live_reads import HELD, checked, fitting, live_reads, run_heard
from regraft.sweeps.provenance import provenance
from regraft.sweeps.routes import Route, whole_number
from regraft.sweeps.variants import Edit, Variant

TOKENS = 4096
"""Tokens that a batch has: with the bytes that it keeps bounded too, what the model itself needs in a run
does not grow with the prompts."""
MARK, STORE = "activations.json", "activations.zarr"


@dataclass(frozen=True)
class _Batch:
    """Some prompts that go through the model together, and the positions that are kept of each."""

    numbers: list[int]
    positions: list[list[int]]


def activations(
    model: Model,
    prompts: Any,
    sites: str | Sequence[str],
    *,
    positions: int | Sequence[int] | None = None,
    completions: Any = None,
    variant: Variant | Edit | Route | Sequence[Edit] | None = None,
    out: Path | str = "",
) -> xr.Dataset:
    """Activations at sites, one row for each token that is kept, of the model as it is or under a change.

    Prompts go through the model in batches, each run ends behind the last site, and nothing else of it is
    kept; with `out` every batch goes to the disk before the next one runs.

    Args:
        model: an opened model.
        prompts: a text, token ids, a chat, or a list of them.
        sites: one address or several, all of one stack.
        positions: which of each prompt's tokens are kept, one or several; negative ones count from its end.
            By default all.
        completions: what follows each prompt; with an encoder-decoder, what the decoder reads.
        variant: a route or edits that the model runs under.
        out: a folder to write to; what is returned then lies there and is read when it is used.

    Returns:
        A variable (token, feature) for each site, (token, head, feature) where it divides into heads, with
        the prompt's number, the position and the token id of every row.

    Raises:
        ValueError: a site, position or prompt that does not exist; sites of two stacks.
        RunFolderError: the folder holds other activations, or something else.

    Examples:
        >>> texts = ["It is dark", "It is light and warm"]
        >>> data = regraft.activations(model, texts, "6.resid_post", positions=-1)
        >>> dict(data["6.resid_post"].sizes)
        {'token': 2, '6.resid_post feature': 192}
    """
    addresses = [sites] if isinstance(sites, str) else list(dict.fromkeys(sites))
    if not addresses:
        raise ValueError("there is no site: name at least one, for example 5.resid_post")
    stack = _stack_of(model, addresses)
    sources = rows_of(model, prompts).ids
    follow = (
        [[] for _ in sources] if completions is None else completion_rows(model, completions, len(sources))
    )
    reading = _Reading(model, addresses, stack, sources, follow, variant)
    kept = reading.kept(positions)
    attrs = {**provenance(model), "experiment": "activations", "of": reading.identity(kept)}
    if not out:
        return _in_memory(reading, kept, attrs)
    return _on_disk(reading, kept, attrs, expanded(out))


class _Reading:
    """What is read of whom."""

    def __init__(
        self,
        model: Model,
        sites: list[str],
        stack: int,
        sources: list[list[int]],
        follow: list[list[int]],
        variant: Any,
    ):
        self.model, self.sites, self.stack, self.variant = model, sites, stack, variant
        self.sources, self.follow = sources, follow
        self.bases = {site: model_base(model, model.site(site)) for site in sites}

    def rows(self) -> list[list[int]]:
        """Token ids of every prompt in the stack that is heard."""
        if self.model.two_stacks and self.stack == 0:
            return self.sources
        if not self.model.two_stacks:
            return [source + rest for source, rest in zip(self.sources, self.follow, strict=True)]
        ids_BT = batch_inputs(self.model, self.sources, self.follow)[1]
        return [row[: len(rest) + 1] for row, rest in zip(ids_BT.tolist(), self.follow, strict=True)]

    def kept(self, positions: int | Sequence[int] | None) -> list[list[int]]:
        """The positions of every prompt that are kept.

        Raises:
            ValueError: a prompt does not have one.
        """
        lengths = [len(row) for row in self.rows()]
        if positions is None:
            return [list(range(length)) for length in lengths]
        wanted = [positions] if isinstance(positions, int) else list(positions)
        wanted = [whole_number(position, "position") for position in wanted]
        for number, length in enumerate(lengths):
            wrong = next((p for p in wanted if not -length <= p < length), None)
            if wrong is not None:
                raise ValueError(f"prompt {number} has {length} tokens, so there is no position {wrong}")
        return [[p + length if p < 0 else p for p in wanted] for length in lengths]

    def identity(self, kept: list[list[int]]) -> str:
        """A hash of all that tells these activations from others."""
        change = [] if self.variant is None else [_told(self.variant)]
        what = [self.model.weights_sha256, self.sites, self.sources, self.follow, kept, change]
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()

    def batches(self, kept: list[list[int]]) -> Iterator[tuple[_Batch, dict[str, np.ndarray]]]:
        """The activations batch by batch, one row for each token that is kept."""
        with (
            changed_copies(self.model, self.variant) as copies,
            live_reads(self.model, list(dict.fromkeys(self.bases.values())), copies) as heard,
        ):
            begin, size = 0, 1
            while begin < len(kept):
                numbers = list(range(begin, min(begin + size, len(kept))))
                inputs, _, _ = batch_inputs(
                    self.model, [self.sources[n] for n in numbers], [self.follow[n] for n in numbers]
                )
                run_heard(self.model, inputs)
                batch = _Batch(numbers, [kept[n] for n in numbers])
                yield (
                    batch,
                    {site: self._rows_of(site, heard[base], batch) for site, base in self.bases.items()},
                )
                begin, size = begin + len(numbers), self._fitting(heard, begin + len(numbers))
                heard.clear()
                advance("prompts", begin, len(kept))

    def _fitting(self, heard: Mapping[str, Tensor], following: int) -> int:
        """How many of the following prompts fit into what may be held, padded to the longest among them."""
        first = next(iter(heard.values()))
        tokens = first[..., 0].numel()
        most = HELD // max(1, sum(t.numel() * t.element_size() for t in heard.values()) // max(tokens, 1))
        lengths = [
            len(s) + len(f) for s, f in zip(self.sources[following:], self.follow[following:], strict=True)
        ]
        return fitting(lengths, min(most, TOKENS))

    def _rows_of(self, site: str, heard: Tensor, batch: _Batch) -> np.ndarray:
        """The rows (N, W) or (N, H, W) that are kept of a batch."""
        x_BTW = heard.reshape(len(batch.numbers), -1, heard.shape[-1])
        rows = torch.cat([x_BTW[row, places] for row, places in enumerate(batch.positions)])
        if (found := self.model.site(site)).name == DICTIONARY:
            rows = self.model.dictionary(found).encode(rows, found.index)
        rows = rows.cpu()
        heads = _heads(self.model, site)
        rows = rows.unflatten(-1, (heads, -1)) if heads else rows
        return (rows.float() if rows.dtype == torch.bfloat16 else rows).numpy()

    def coordinates(self, kept: list[list[int]]) -> dict[str, tuple[str, np.ndarray, dict[str, str]]]:
        """Number of the prompt, position and token id of every row."""
        rows = self.rows()
        of = [(n, p, rows[n][p]) for n, places in enumerate(kept) for p in places]
        table = np.array(of, dtype=np.int64).reshape(len(of), 3)
        units = ("number of the prompt", "position in the prompt", "token id")
        return {
            name: ("token", table[:, i], {"units": units[i]})
            for i, name in enumerate(("prompt", "position", "token_id"))
        }


def _stack_of(model: Model, addresses: list[str]) -> int:
    """The stack that all sites are in.

    Raises:
        ValueError: they are in two.
    """
    blocks = [checked(model, address).block for address in addresses]
    last = len(model.parts.stacks) - 1
    stacks = {
        last if b is None else next(i for i, s in enumerate(model.parts.stacks) if s.first <= b < s.stop)
        for b in blocks
    }
    if len(stacks) > 1:
        raise ValueError("the sites are in two stacks, whose texts differ: read those of one at a time")
    return stacks.pop()


def _heads(model: Model, address: str) -> int:
    site = model.site(address)
    return (
        model.taps[site].heads
        if site.block is not None and site.index is None and site.name not in ("resid_mid", DICTIONARY)
        else 0
    )


def _told(variant: Any) -> str:
    """A change in words that tell it from others, its values by their hash."""

    def value(x: Any) -> str:
        if isinstance(x, Tensor):
            return hashlib.sha256(
                x.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
            ).hexdigest()
        return repr(x)

    edits = (
        variant.edits if isinstance(variant, Variant) else [variant] if isinstance(variant, Edit) else variant
    )
    route = variant.route if isinstance(variant, Variant) else variant if isinstance(variant, Route) else None
    told = (
        []
        if isinstance(variant, Route)
        else [
            [type(edit).__name__, *(f"{k}={value(v)}" for k, v in sorted(vars(edit).items()))]
            for edit in edits
        ]
    )
    stops = (
        []
        if route is None
        else [(stop.block, "" if stop.module is None else repr(stop.module)) for stop in route.stops]
    )
    return json.dumps([told, stops])


def _dims(array: np.ndarray, site: str) -> tuple[str, ...]:
    return ("token", f"{site} head", f"{site} feature") if array.ndim == 3 else ("token", f"{site} feature")


def _in_memory(reading: _Reading, kept: list[list[int]], attrs: dict[str, Any]) -> xr.Dataset:
    parts: dict[str, list[np.ndarray]] = {site: [] for site in reading.sites}
    for _, found in reading.batches(kept):
        for site, rows in found.items():
            parts[site].append(rows)
    whole = {site: np.concatenate(rows) for site, rows in parts.items()}
    return xr.Dataset(
        {site: (_dims(rows, site), rows, {"units": "activation"}) for site, rows in whole.items()},
        coords=reading.coordinates(kept),
        attrs=attrs,
    )


def _on_disk(reading: _Reading, kept: list[list[int]], attrs: dict[str, Any], out: Path) -> xr.Dataset:
    """Written batch by batch into a folder that takes its place when it is whole.

    Raises:
        RunFolderError: the folder holds something else, or other activations.
    """
    if (out / MARK).is_file():
        there = json.loads((out / MARK).read_text(encoding="utf-8")).get("of")
        if there != attrs["of"]:
            raise RunFolderError(
                f"the folder {out} holds activations of other prompts, sites, positions or weights: choose"
                " another with out="
            )
        return _opened(out)
    check_empty(out, "out=")
    with whole_folder(out) as fresh:
        _write(reading, kept, attrs, fresh)
    return _opened(out)


def _opened(out: Path) -> xr.Dataset:
    return xr.open_zarr(out / STORE, consolidated=False, chunks=None)


def _write(reading: _Reading, kept: list[list[int]], attrs: dict[str, Any], folder: Path) -> None:
    import zarr

    group = zarr.open_group(folder / STORE, mode="w")
    at, total, arrays = 0, sum(map(len, kept)), {}
    for batch, found in reading.batches(kept):
        count = sum(map(len, batch.positions))
        for site, rows in found.items():
            if site not in arrays:
                chunk = max(1, min(total, (1 << 24) // max(1, rows[0].nbytes))) if len(rows) else 1
                arrays[site] = group.create_array(
                    site, shape=(total, *rows.shape[1:]), chunks=(chunk, *rows.shape[1:]), dtype=rows.dtype,
                    dimension_names=_dims(rows, site), attributes={"units": "activation"},
                )  # fmt: skip
            arrays[site][at : at + count] = rows
        at += count
    for name, (dim, values, attributes) in reading.coordinates(kept).items():
        array = group.create_array(
            name, shape=values.shape, dtype=values.dtype, dimension_names=(dim,), attributes={**attributes}
        )
        array[:] = values
    group.attrs.update({**opened_attributes(attrs), "coordinates": "prompt position token_id"})
    (folder / MARK).write_text(
        json_text(opened_attributes(attrs), indent=1, sort_keys=True) + "\n", encoding="utf-8"
    )
