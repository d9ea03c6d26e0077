"""Open a checkpoint without reading it: an empty model whose blocks are read from its files when they run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import transformers
from torch import nn

from regraft.checkpoint.locate import CheckpointError
from regraft.core.sizes import in_words
from regraft.streaming.block_store import BlockStore, Unit, refuse_missing
from regraft.streaming.disk_tables import HeadInPieces, RowsOnDemand
from regraft.streaming.empty_model import Loader, empty_model
from regraft.streaming.residency import (
    WORKING,
    Ceiling,
    Placement,
    Sizes,
    fewer_blocks,
    free_now,
    held_now,
    place,
)  # fmt: skip
from regraft.streaming.shards import Shards

SHARE = 0.7
"""Of the memory that is free, what a streamed model takes where nobody says how much."""


@dataclass(eq=False)
class Streamed:
    """Where the numbers of a streamed model come from, and what of them is in memory."""

    store: BlockStore
    device: torch.device
    dtype: torch.dtype
    sizes: Sizes
    unknown: tuple[str, ...]
    limit: int
    told: str = ""

    def make_room(self, needed: int) -> None:
        """Let as many blocks go as work takes that holds more beside the weights than is kept free for it.

        Args:
            needed: bytes that it holds at its highest.

        Raises:
            ValueError: two blocks are too many then; the sentence says how much is missing.
        """
        if needed > WORKING:
            self.store.place(fewer_blocks(self.sizes, self.placement, self.limit + WORKING - needed))

    @property
    def placement(self) -> Placement:
        """What stays in memory."""
        return self.store.placement

    @property
    def bytes_read(self) -> int:
        """Bytes read of the weight files since the model was opened."""
        self.store.settle()
        return self.store.shards.bytes_read

    @property
    def reads(self) -> list[int]:
        """How often each block was read since then."""
        self.store.settle()
        return list(self.store.reads)

    def state(self) -> tuple[Any, ...]:
        """Another value where the files were written anew."""
        return self.store.shards.state()

    def in_words(self) -> str:
        """What stays and what is read, for notes and for who waits."""
        count, stays = len(self.store.units), self.placement
        tables = [
            name for name, kept in (("the embedding", stays.embedding), ("the head", stays.head)) if not kept
        ]
        if self.told:
            return self.told
        more = f"; of {' and '.join(tables)} only what is asked for" if tables else ""
        if self.store.all_stay:
            return f"read from disk once, block by block ({in_words(self.sizes.whole)} of weights){more}"
        return (
            f"streamed from disk: {stays.pinned} of {count} blocks stay, the others are read whenever a walk"
            f" passes ({in_words(sum(u.bytes for u in self.store.units[stays.pinned :]))}){more}"
        )


def open_streamed(
    shards: Shards, make: Callable[[], Any], dtype: torch.dtype, device: torch.device, memory: int | None
) -> tuple[Any, Streamed]:
    """An empty model of a folder, and where its numbers come from.

    Args:
        shards: the tensors of its files.
        make: builds the model from its configuration, with weights that nobody needs.
        dtype: what it computes in.
        device: where.
        memory: bytes that the process may hold there; None for most of what is free.

    Raises:
        ValueError: that is too little; the sentence says how much is needed.
        CheckpointError: the files hold what the model has not, or lack something.
    """
    hf, loader = empty_model(make), Loader(empty_model(make), dtype, device, shards.pages)
    targets = loader.targets(shards.places)
    units = _units(hf, targets)
    if not units:
        raise ValueError(f"{type(hf).__name__} has no list of blocks: it cannot be streamed")
    table, head = hf.get_input_embeddings(), hf.get_output_embeddings()
    sizes = sizes_of(hf, units, table, head)
    if device.type != "cpu":  # a card looks rows up in its own memory
        rest = sizes.rest + sizes.embedding
        sizes = replace(sizes, rest=rest, embedding=0)
    limit = _limit(memory, device)
    placement = place(sizes, limit)
    shards.pages.most, shards.pages.pinned = max(unit.bytes for unit in units), device.type == "cuda"
    ceiling = Ceiling(memory, device)
    _fill_the_rest(hf, loader, shards, targets, units, placement, ceiling)
    if (path := shards.folder / "generation_config.json").is_file():
        hf.generation_config = transformers.GenerationConfig.from_pretrained(path.parent)
    unknown = tuple(name for name, target in targets.items() if not target)
    return hf, Streamed(
        BlockStore(units, shards, loader, placement, ceiling), device, dtype, sizes, unknown, limit
    )


def own_type(config: Any, shards: Shards) -> torch.dtype:
    """The floating type of a checkpoint: what its configuration says, else what most of its numbers are."""
    if isinstance(config.dtype, torch.dtype):
        return config.dtype
    counts: Counter[torch.dtype] = Counter()
    for one in shards.places.values():
        counts[one.dtype] += one.bytes if one.dtype.is_floating_point else 0
    return counts.most_common(1)[0][0]


def _limit(memory: int | None, device: torch.device) -> int:
    """Bytes that weights may take."""
    if memory is None:
        return int(SHARE * free_now(device)) - WORKING
    return memory - held_now(device) - WORKING


def _units(hf: nn.Module, targets: dict[str, str]) -> list[Unit]:
    """The elements of the outermost lists of modules, with the tensors that fill them."""
    by_path: dict[str, list[str]] = {path: [] for path in outer_lists(hf)}
    for name, target in targets.items():
        words = target.split(".")
        found = next((p for n in range(len(words)) if (p := ".".join(words[:n])) in by_path), None)
        if found is not None:
            by_path[found].append(name)
    return [
        Unit(path, module, tuple(names), bytes_of_module(module))
        for path, names in by_path.items()
        if (module := hf.get_submodule(path)) is not None
    ]


def outer_lists(hf: nn.Module) -> list[str]:
    """Paths of the elements of the outermost lists of modules, which are a model's blocks."""
    lists: list[str] = []
    for name, module in hf.named_modules():
        if (
            isinstance(module, nn.ModuleList)
            and len(module)
            and not any(name.startswith(f"{o}.") for o in lists)
        ):
            lists.append(name)
    return [
        f"{name}.{number}"
        for name in lists
        for number in range(len(hf.get_submodule(name)))  # type: ignore[arg-type]
    ]


def bytes_of_module(module: nn.Module | None, skipped: frozenset[int] = frozenset()) -> int:
    """Bytes of a module's parameters, but for those that are skipped by their identity."""
    parameters = [] if module is None else list(module.parameters())
    return sum(p.numel() * p.element_size() for p in parameters if id(p) not in skipped)


def sizes_of(hf: nn.Module, units: list[Unit], table: nn.Module, head: nn.Module | None) -> Sizes:
    """Bytes of a model's weights, block by block, and of its tables."""
    tied = head is not None and head._parameters.get("weight") is table._parameters["weight"]
    inner = [p for unit in units for p in unit.module.parameters()]
    skipped = frozenset(id(p) for p in (*inner, *table.parameters(), *(head.parameters() if head else ())))
    return Sizes(
        bytes_of_module(hf, skipped),
        bytes_of_module(table),
        0 if tied else bytes_of_module(head),
        tied,
        tuple(unit.bytes for unit in units),
    )


def _fill_the_rest(
    hf: Any,
    loader: Loader,
    shards: Shards,
    targets: dict[str, str],
    units: list[Unit],
    placement: Placement,
    ceiling: Ceiling,
) -> None:
    """Read what is in no block, but for tables that stay on disk."""
    table, head = hf.get_input_embeddings(), hf.get_output_embeddings()
    paths = {id(module): name for name, module in hf.named_modules()}
    left = [
        m for m, kept in ((table, placement.embedding), (head, placement.head)) if m is not None and not kept
    ]
    inside = {name for unit in units for name in unit.names}
    on_disk = {f"{paths[id(module)]}.weight" for module in left}
    read = [n for n, target in targets.items() if target and n not in inside and target not in on_disk]
    loader.fill({name: shards.read(name) for name in read})
    loader.hand_over("", hf)
    hf.tie_weights()
    for path, module in hf.named_modules():
        if module not in left and not f"{path}.".startswith(tuple(f"{unit.path}." for unit in units)):
            for name, parameter in module.named_parameters(recurse=False):
                refuse_missing(f"{path}.{name}", parameter)
    by_target = {target: name for name, target in targets.items()}
    if table in left:
        _check_table(table, nn.Embedding)
        RowsOnDemand(table, shards, _named(by_target, paths, table, head), loader.dtype)
    if head is not None and head in left:
        _check_table(head, nn.Linear)
        rows = partial(shards.rows, _named(by_target, paths, head, table))
        head.forward = HeadInPieces(head, rows, loader.dtype, ceiling)
    elif type(head) is nn.Linear and head.weight.device.type == "cpu":
        pieces: Any = HeadInPieces(head, lambda begin, end: head.weight[begin:end], loader.dtype, ceiling)
        head.forward = pieces


def _check_table(module: nn.Module, kind: type[nn.Module]) -> None:
    """A table that is read piece by piece must be a plain one."""
    if not isinstance(module, kind):
        raise ValueError(
            f"the table {type(module).__name__} is read whole: allow more memory, so that it can stay"
        )


def _named(
    by_target: dict[str, str], paths: dict[int, str], module: nn.Module, other: nn.Module | None
) -> str:
    """The tensor of the files that fills a table, be it under the name of the one that shares it."""
    for one in (module, other):
        if one is not None and (name := by_target.get(f"{paths[id(one)]}.weight")):
            return name
    raise CheckpointError(f"the files lack {paths[id(module)]}.weight, which the config calls for")
