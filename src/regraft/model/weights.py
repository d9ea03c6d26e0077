"""The weight matrices of a checkpoint by role, read one at a time: from its files alone, or from a live
model.

What a tensor is follows from its name, by the same tables that name the parts of a live model; how a packed
tensor divides is proved (`layout`). Shapes: O outputs, I inputs, E experts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from regraft.checkpoint.hub import resolve
from regraft.checkpoint.locate import DEFAULT_SPECIMEN, check_folder, check_header, weights_digest
from regraft.checkpoint.roles import ROLES, role_of
from regraft.model.from_files import check_device
from regraft.model.model import Model
from regraft.model.packed import PackedLayout, layouts_from_config, layouts_of, pattern
from regraft.model.parts import is_linear, matrix_OI
from regraft.model.wrappers import refuse_adapters

_FLOATS = ("F64", "F32", "F16", "BF16")
_IN_A_BLOCK = re.compile(r"^(?P<stack>.*?)(?:^|\.)(?P<block>\d+)\.(?P<rest>.+?)(?:\.weight)?$")
_EXPERT = re.compile(r"experts\.(\d+)\.")


@dataclass(frozen=True)
class Matrix:
    """One matrix: the tensor that holds it, its block and role, and its expert in a mixture (-1: there is
    none)."""

    tensor: str
    block: str
    role: str
    shape: tuple[int, int]
    expert: int = -1
    rows: PackedLayout | None = None


@dataclass(eq=False)
class Weights:
    """The weight tensors of a checkpoint: their shapes, and a way to read one of them (or one expert's slice)
    at a time."""

    name: str
    source: str
    shapes: Mapping[str, tuple[int, ...]]
    read: Callable[[str, int], Tensor]
    find_layouts: Callable[[], tuple[dict[str, PackedLayout], str]]
    digest: Callable[[], str]
    device: torch.device
    dtype: str
    paths: Mapping[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def weights_sha256(self) -> str:
        """SHA-256 of the weights."""
        return self.digest()

    def check_whole(self, why: str) -> None:
        """Every matrix is read when it is asked for: nothing to refuse."""

    def fingerprint(self) -> tuple[Any, ...]:
        """Nothing changes here: the files are read as they are."""
        return ()

    def proof(self) -> dict[str, str]:
        """For provenance: nothing was run, so nothing had to be proved."""
        return {}

    @cached_property
    def matrices(self) -> list[Matrix]:
        """Every matrix inside a block, packed ones divided where their layout was proved, the rest whole."""
        numbered = [(name, match) for name in self.shapes if (match := _IN_A_BLOCK.match(name))]
        maps = [(name, match) for name, match in numbered if _is_map(name, self.shapes[name])]
        stacks = _stack_names(maps, self.shapes, self.paths)
        found = [(name, match) for name, match in maps if match["stack"] in stacks]
        packed = [name for name, match in found if role_of(match["rest"]) in ("qkv", "gate_up")]
        layouts, reason = self.find_layouts() if packed else ({}, "")
        if reason:
            self.notes.append(f"packed projections are shown whole: {reason}")
        made = []
        for name, match in found:
            stack = stacks[match["stack"]]
            address = f"{stack}.{int(match['block'])}" if stack else str(int(match["block"]))
            made += list(_divided(name, self.shapes[name], address, match["rest"], layouts))
        undivided = sorted({m.role for m in made if m.role in ("qkv", "gate_up", "cross_qkv")})
        if undivided and not reason:
            self.notes.append(f"shown whole, because no way to divide it was proved: {', '.join(undivided)}")
        return sorted(made, key=_place)

    def walk(self, matrices: Sequence[Matrix] | None = None) -> Iterator[tuple[Matrix, Tensor]]:
        """The matrices (all, or those given) with their values on the device.

        Only the tensor at hand, or one expert of it, is in memory, as long as the caller keeps none.

        Raises:
            ValueError: a tensor that holds NaN or infinite values.
        """
        for (tensor, expert), group in _grouped(self.matrices if matrices is None else matrices).items():
            whole = self.read(tensor, expert).to(self.device)
            if not bool(torch.isfinite(whole).all()):
                raise ValueError(f"{tensor} holds NaN or infinite values: there is nothing to measure in it")
            for matrix in group:
                yield matrix, whole if matrix.rows is None else matrix.rows.take(whole, matrix.role)
            del whole


def open_weights(source: str | Path | None, device: str = "auto") -> Weights:
    """The matrices of a folder, hub id or specimen from its files alone: the model is not loaded, and no
    configuration is needed.

    `device` auto is a GPU where there is one.

    Raises:
        CheckpointError: no such checkpoint, or a damaged one.
    """
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    check_device(device)
    folder, name = resolve(source)
    files = check_folder(folder, config=False)
    headers = {file: check_header(file) for file in files}
    _refuse_quantized(name, headers)
    kinds = {entry["dtype"] for header in headers.values() for entry in header.values()}
    return Weights(
        name, str(source or DEFAULT_SPECIMEN), _shapes(headers), _reader(headers),
        lambda: layouts_from_config(folder),
        lambda: weights_digest(folder), torch.device(device), ", ".join(sorted(kinds)),
    )  # fmt: skip


def weights_of(model: Model | Weights) -> Weights:
    """The matrices of an opened model: from its files where it stands as they are, else from the live
    tensors."""
    if isinstance(model, Weights):
        return model
    refuse_adapters(model)
    if model.folder is not None and model.fingerprint() == model.opened_at:
        headers = {file: check_header(file) for file in check_folder(model.folder)}
        _refuse_quantized(model.name, headers)
        shapes, read = _shapes(headers), _reader(headers)
    else:
        live = _live_tensors(model)
        shapes, read = {name: tuple(t.shape) for name, t in live.items()}, _live_reader(live, model)
    return Weights(
        model.name, model.source, shapes, read, lambda: (layouts_of(model), ""), lambda: model.weights_sha256,
        model.device,
        str(model.dtype).removeprefix("torch."),
        paths={stack.path: stack.name for stack in model.parts.stacks},
    )  # fmt: skip


def live_weights(model: Model) -> Weights:
    """The matrices of the live tensors, whatever the files say; those of the files where the model is
    streamed, whose live tensors come from there."""
    made = weights_of(model)
    if model.streamed is not None and model.folder is not None:
        return made
    live = _live_tensors(model)
    made.shapes, made.read = {name: tuple(t.shape) for name, t in live.items()}, _live_reader(live, model)
    return made


def _live_tensors(model: Model) -> dict[str, Tensor]:
    """The floating tensors of a live model by name.

    Raises:
        ValueError: a block keeps a matrix as codes.
    """
    for block in model.blocks:
        for module in block.module.modules():
            if is_linear(module):
                matrix_OI(module)
    return {name: t for name, t in model.hf.state_dict().items() if t.is_floating_point()}


def _live_reader(live: dict[str, Tensor], model: Model | None = None) -> Callable[[str, int], Tensor]:
    """Reads a live tensor, or one expert of it, also one that accelerate keeps elsewhere."""
    elsewhere = None if model is None else model.streamed

    def read(name: str, expert: int) -> Tensor:
        here = live[name]
        whole = elsewhere.store.shards.read(name) if here.is_meta and elsewhere else here
        return whole if expert < 0 or whole.dim() == 2 else whole[expert]

    return read


def _shapes(headers: dict[Path, dict[str, Any]]) -> dict[str, tuple[int, ...]]:
    return {
        n: tuple(e["shape"])
        for header in headers.values()
        for n, e in header.items()
        if e["dtype"] in _FLOATS
    }


def _reader(headers: dict[Path, dict[str, Any]]) -> Callable[[str, int], Tensor]:
    """Reads one tensor, or one expert's slice of a three-dimensional one, from the file that holds it."""
    at = {name: file for file, header in headers.items() for name in header}
    dims = {name: len(entry["shape"]) for header in headers.values() for name, entry in header.items()}

    def read(name: str, expert: int) -> Tensor:
        with ExitStack() as closing:
            opened = closing.enter_context(safe_open(at[name], framework="pt"))
            return opened.get_slice(name)[expert] if dims[name] == 3 else opened.get_tensor(name)

    return read


def _is_map(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor holds linear maps: a matrix that is no table of biases, or a mixture's stack of
    matrices."""
    leaf = name.removesuffix(".weight").rpartition(".")[2]
    if re.search(r"bias|norm|embed|scale|zeros|absmax", leaf, re.IGNORECASE) or min(shape, default=1) < 2:
        return False
    return len(shape) == 2 or (len(shape) == 3 and "experts" in name)


def _refuse_quantized(name: str, headers: dict[Path, dict[str, Any]]) -> None:
    """Quantized tensors are codes, not weights: their spectra would mean nothing."""
    for header in headers.values():
        for tensor, entry in header.items():
            coded = entry["dtype"] not in (*_FLOATS, "BOOL") and len(entry["shape"]) in (2, 3)
            if coded and _IN_A_BLOCK.match(tensor) and "bias" not in tensor.rpartition(".")[2]:
                raise ValueError(
                    f"the weights of {name} are stored quantized ({tensor} is {entry['dtype']}): write a"
                    " floating copy with dequantized weights first"
                )


def _stack_names(
    maps: list[tuple[str, re.Match[str]]], shapes: Mapping[str, tuple[int, ...]], paths: Mapping[str, str]
) -> dict[str, str]:
    """How each numbered list of blocks is called; lists that hold no block (a head of several layers) are
    left out.

    Of a live model the lists are known. From files alone, the longest list with attention (or the longest of
    all) is the model's own, unless there are just one encoder and one decoder; any other keeps its full name.
    """
    blocks: dict[str, set[str]] = {}
    known: dict[str, set[str]] = {}
    for _, match in maps:
        blocks.setdefault(match["stack"], set()).add(match["block"])
        known.setdefault(match["stack"], set()).add(role_of(match["rest"]).removeprefix("cross_"))
    lists = [s for s in blocks if len(blocks[s]) > 1 or known[s] & {*ROLES, "qkv", "gate_up"}]
    live = {
        s: name
        for s in lists
        for path, name in paths.items()
        if path == s or path.endswith("." + s) or s.endswith("." + path)
    }
    if live:
        return {s: live.get(s, s) for s in lists}
    attending = [s for s in lists if known[s] & {"q", "k", "v", "qkv"}] or lists
    sides = {s: [word for word in ("encoder", "decoder") if word in s.split(".")] for s in attending}
    if len(attending) == 2 and sorted(sides.values()) == [["decoder"], ["encoder"]]:
        return {s: sides[s][0] if s in sides else s for s in lists}
    main = max(attending, key=lambda s: len(blocks[s]), default="")
    return {s: "" if s == main else s for s in lists}


def _divided(
    name: str, shape: tuple[int, ...], block: str, rest: str, layouts: dict[str, PackedLayout]
) -> Iterator[Matrix]:
    role = role_of(rest)
    layout = layouts.get(pattern(rest))
    numbered = _EXPERT.search(rest)
    experts = range(shape[0]) if len(shape) == 3 else [int(numbered[1]) if numbered else -1]
    two = (shape[-2], shape[-1])
    for expert in experts:
        if layout is None:
            yield Matrix(name, block, role, two, expert)
        else:
            yield from (Matrix(name, block, r, layout.shape(two, r), expert, layout) for r in layout.parts)


def _place(matrix: Matrix) -> tuple[str, int, int, int, str]:
    """Where a matrix stands in a list: by stack, block, expert and role, whatever the order in the file."""
    stack, _, number = matrix.block.rpartition(".")
    role = ROLES.index(matrix.role) if matrix.role in ROLES else len(ROLES)
    return stack, int(number), matrix.expert, role, matrix.role


def _grouped(matrices: Sequence[Matrix]) -> dict[tuple[str, int], list[Matrix]]:
    groups: dict[tuple[str, int], list[Matrix]] = {}
    for matrix in matrices:
        groups.setdefault((matrix.tensor, matrix.expert), []).append(matrix)
    return groups
