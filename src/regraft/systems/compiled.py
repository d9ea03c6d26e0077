"""A unit compiled by PyTorch: what its first call costs, what it saves afterwards, where its graph breaks,
and how often it is compiled anew."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._dynamo import config as dynamo_config
from torch._dynamo import explain, reset
from torch._functorch import config as functorch_config
from torch._inductor import config as inductor_config
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import InvalidCxxCompiler
from torch._inductor.utils import fresh_cache
from torch.profiler import ProfilerActivity, profile
from torch.utils._triton import has_triton

from regraft.core.memory import no_native_chatter
from regraft.core.near_names import nearest
from regraft.systems.timing import wait
from regraft.systems.units import UnitCall

EAGER, GRAPH = "eager", "cuda-graph"
MODES = ("default", "reduce-overhead", "max-autotune")
DYNAMIC = {"": None, ":dynamic": True, ":static": False}
"""Endings of a way: whether lengths are variables of the graph from the first call on, never, or, as PyTorch
does when nothing is said, from the second length on."""
WAYS = (*(mode + ending for mode in MODES for ending in DYNAMIC), GRAPH)
ENTRIES = 64
"""Graphs of one function that may stand side by side; with PyTorch's 8 a seventh way would run eagerly."""


class WayError(ValueError):
    """No such way to compile, or this machine has none."""


@dataclass(frozen=True)
class Break:
    """Where a graph ends before its function does, and why."""

    place: str
    reason: str


@dataclass(frozen=True)
class Traced:
    """What the compiler makes of a unit: graphs, operations in them, and breaks between them."""

    graphs: int
    operations: int
    breaks: tuple[Break, ...]


def check_way(words: str) -> str:
    """The way itself.

    Raises:
        WayError: there is none of that name; the message says the nearest.
    """
    if words not in WAYS:
        raise WayError(f"{words!r} is no way to compile{nearest(words, WAYS)}")
    return words


def check_compiler(device: torch.device) -> None:
    """Make sure that compiled code can be made here.

    Raises:
        WayError: what compiles for this device is missing; the message names it.
    """
    if device.type == "cpu":
        try:
            get_cpp_compiler()
        except InvalidCxxCompiler as error:
            raise WayError(
                "compiling for the CPU needs a C++ compiler, and none was found: install g++, or say where"
                " one is with CXX=PATH"
            ) from error
    elif not has_triton():
        raise WayError(f"compiling for {device.type} needs the package triton: pip install triton")


@contextmanager
def compiling() -> Iterator[None]:
    """While inside, graphs are compiled from nothing, whatever was compiled before, and nothing is left."""
    logger = logging.getLogger("torch._dynamo")
    level = logger.level
    logger.setLevel(logging.ERROR)
    reset()
    try:
        with (
            fresh_cache(),
            inductor_config.patch(fx_graph_cache=False),
            functorch_config.patch(enable_autograd_cache=False),
            dynamo_config.patch(
                recompile_limit=ENTRIES,
                accumulated_recompile_limit=ENTRIES * 8,
                automatic_dynamic_local_pgo=False,  # what lengths earlier processes saw
            ),
            torch.no_grad(),
        ):
            yield
    finally:
        reset()
        logger.setLevel(level)


def compiler_start_s(device: torch.device) -> float:
    """Seconds that the compiler takes for the least that it can compile: its own start, paid once by a
    process and left out of every unit's first call."""
    run, one = torch.compile(lambda x: x + 1), torch.zeros(8, device=device)
    began = time.perf_counter()
    run(one)
    wait(device)
    return time.perf_counter() - began


def traced(unit: UnitCall, length: int) -> Traced:
    """What the compiler makes of a unit, without compiling it."""
    given = unit.inputs[length]
    reset()
    found = explain(unit.module)(*given.args, **given.kwargs)
    breaks = tuple(Break(_place(one.user_stack), _first_line(one.reason)) for one in found.break_reasons)
    reset()
    return Traced(found.graph_count, found.op_count, breaks)


def compile_unit(unit: UnitCall, way: str, length: int) -> tuple[Callable[..., Any], float]:
    """The compiled unit, and the seconds of its first call.

    Raises:
        WayError: a CUDA graph without a GPU.
    """
    device = unit.call(length).device
    if way == GRAPH:
        return _graphed(unit, length, device)
    mode, _, _ = way.partition(":")
    run = torch.compile(unit.module, mode=mode, dynamic=DYNAMIC[way.removeprefix(mode)])
    wait(device)
    began = time.perf_counter()
    unit.call(length, run)
    wait(device)
    return run, time.perf_counter() - began


def graphs_over(unit: UnitCall, way: str, lengths: Sequence[int]) -> list[int]:
    """How many graphs were compiled after each length, one after the other, by a compiler that counts."""
    made = 0

    def counting(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        nonlocal made
        made += 1
        return graph.forward

    mode, _, _ = way.partition(":")
    reset()
    run = torch.compile(unit.module, backend=counting, dynamic=DYNAMIC[way.removeprefix(mode)])
    found = []
    for length in lengths:
        unit.call(length, run)
        found.append(made)
    reset()
    return found


def operators(call: Callable[[], object], device: torch.device) -> int:
    """What one call starts: on a GPU its kernels; on a CPU PyTorch's own operators, those within another
    left out. Compiled loops are none of them."""
    kinds = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    with no_native_chatter(), profile(activities=kinds, acc_events=True) as seen:
        call()
        wait(device)
    events = seen.events() or []
    if device.type == "cuda":
        return sum(event.device_type.name == "CUDA" for event in events)
    return sum(_is_operator(event) and not _is_operator(event.cpu_parent) for event in events)


def _is_operator(event: Any) -> bool:
    return event is not None and event.name.startswith("aten::")


def _graphed(unit: UnitCall, length: int, device: torch.device) -> tuple[Callable[..., Any], float]:
    if device.type != "cuda":
        raise WayError("a CUDA graph needs a GPU")
    began = time.perf_counter()
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):  # a capture takes what is already allocated
        unit.call(length)
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = unit.call(length)

    def replay(*args: Any, **kwargs: Any) -> Tensor:
        graph.replay()  # reads the tensors that it was captured with
        return out

    replay()
    wait(device)
    return replay, time.perf_counter() - began


def _place(stack: Sequence[Any]) -> str:
    """File and line of the innermost frame, as they stand in their package."""
    if not stack:
        return "unknown"
    parts = Path(stack[-1].filename).parts
    inside = parts[parts.index("site-packages") + 1 :] if "site-packages" in parts else parts[-1:]
    return f"{'/'.join(inside)}:{stack[-1].lineno}"


def _first_line(reason: str) -> str:
    return reason.strip().splitlines()[0]


def breaks_json(found: dict[str, Traced]) -> str:
    """Every break of every unit, for a result's attributes."""
    return json.dumps([
        {"unit": name, "place": one.place, "reason": one.reason}
        for name, traced_ in found.items() for one in traced_.breaks
    ])  # fmt: skip
