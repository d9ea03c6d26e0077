"""Reading in one process and writing in another: what moving keys and values costs, and when it pays.

Shapes: W ways to move, O links, n prompt lengths, b batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr

from regraft.core.machine import measured_on
from regraft.core.progress import advance
from regraft.core.quantities import quantity
from regraft.core.signatures import TextFile
from regraft.data.corpus import text_rows
from regraft.experiments.observe.expert_ranks import expert_dataset
from regraft.model.block_call import longest_input
from regraft.model.model import Model
from regraft.systems import serving_queue
from regraft.systems.apart import BLOCKS, WHOLE, Moved, check_apart, formula_bytes, paired
from regraft.systems.apart_run import Measured, alone, measured, read_alone_s, served, service_of, step_s
from regraft.systems.serving_queue import FACTORS, Answered, Request, Service, crossing, goodput, poisson

LENGTHS = (64, 256, 512)
"""Tokens of the prompts where none are named."""
WAYS_SHOWN, OVER_SHOWN = (WHOLE, BLOCKS, "int8", "int4"), ("shared", "tcp")
"""What is measured where nothing is named."""
BATCHES = (1, 2, 4, 8)
"""Requests that are written in one step."""
MIXES = {"short prompts": (8, 1, 1), "long prompts": (1, 1, 8)}
"""Shares of the shortest, the middle and the longest prompt among requests."""
LOADS = (0.2, 0.35, 0.5, 0.65, 0.8, 0.95, 1.1)
"""Rates of requests, as shares of what all machines could read and write without ever waiting."""
SPEEDS = (0.001, 0.01, 0.1, 1.0, 10.0)
"""Gigabytes a second of a link between machines."""
SIMULATED, REAL, REAL_LOAD = 1000, 12, 0.5
"""Requests of a simulation, and of the real run that it is held against, with the share of time in which the
busier process works."""
SOURCE = "Zhong et al., DistServe (2024); Patel et al., Splitwise (2024)"


def disaggregate(
    model: Model,
    lengths: list[int] | None = None,
    tokens: int = 16,
    ways: list[str] | None = None,
    over: list[str] | None = None,
    text: TextFile = "",
    machines: int = 4,
    repeats: int = 5,
    ranks: int = 0,
    seed: int = 0,
) -> xr.Dataset:
    """Read prompts in one process and write in another: what moving keys and values costs, and when it pays.

    Source: DistServe (Zhong et al., 2024). The two processes are real and each computes with one thread; many
    machines are simulated event by event from the times that were measured here.

    Args:
        lengths: tokens of the prompts; without them, 64, 256 and 512, as far as the model reads.
        tokens: how many are written behind each prompt.
        ways: whole, blocks (one by one while the next computes), or blocks in int8, int4, int2, bf16, fp8 or
            fp8_e5m2; without them, whole, blocks, int8 and int4.
        over: shared (memory), tcp or ray; without them, shared and tcp.
        text: a text file; without it, the specimen's almanac or general prompts.
        machines: how many are simulated.
        repeats: how often each is measured.
        ranks: of a mixture: machines over which its experts are spread, by what its routers choose on the
            longest prompt; 0: none.
        seed: of the text, and of the simulated requests.

    Raises:
        ValueError: an unknown way or link, a model whose keys and values cannot be moved or that another
            process cannot open, or a text that is too short.

    Examples:
        >>> data = regraft.disaggregate(model, lengths=[16, 32], tokens=4, over=["tcp"], repeats=2)
        >>> bool((data.bytes == data.formula_bytes).all()), float(data.same_tokens.sel(way="blocks").min())
        (True, 1.0)
    """
    how, links = list(ways or WAYS_SHOWN), list(over or OVER_SHOWN)
    at = _lengths(model, lengths, tokens)
    if tokens < 2 or machines < 2 or repeats < 1:
        raise ValueError("write two tokens or more, on two machines or more, and measure once or more")
    check_apart(model, how, links)
    rows = text_rows(model, text, seed, max(at), 1)
    spread = expert_dataset(model, rows, ranks) if ranks else xr.Dataset()
    prompts = {length: rows[0][:length] for length in at}
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as many as the other process has: each computes as the other does
    try:
        told = _times(model, prompts, how, links, tokens, repeats)
        data = _dataset(model, told, prompts, how, links)
        simulated = _simulated(model, told, at, tokens, machines, seed)
        attrs = {**measured_on(model.device), **told.compared, "tokens": tokens, "machines": machines}
    finally:
        torch.set_num_threads(before)
    return xr.merge([data, simulated, spread], combine_attrs="drop_conflicts").assign_attrs(**attrs)


def _lengths(model: Model, lengths: Sequence[int] | None, tokens: int) -> list[int]:
    """Prompt lengths, shortest first.

    Raises:
        ValueError: none fits the model.
    """
    longest = (longest_input(model.hf.config) or max(LENGTHS) + tokens) - tokens
    at = sorted(set(lengths or [length for length in LENGTHS if length <= longest]))
    if not at or at[0] < 2 or at[-1] > longest:
        raise ValueError(
            f"{model.name} reads {longest + tokens} tokens at most, {tokens} of them are written: give prompt"
            " lengths of 2 or more that leave room for them"
        )
    return at


# measured
# ----------------------------------------------------------------------------------------------------


class _Times:
    """What was measured."""

    def __init__(self) -> None:
        self.moved: dict[tuple[str, str, int], Measured] = {}
        self.alone: dict[int, list[Moved]] = {}
        self.read_s: list[float] = []
        self.step: np.ndarray = np.zeros(0)
        self.compared: dict[str, float] = {}


def _times(
    model: Model, prompts: dict[int, list[int]], ways: list[str], over: list[str], tokens: int, repeats: int
) -> _Times:
    told = _Times()
    told.alone = {length: alone(model, ids, tokens, repeats) for length, ids in prompts.items()}
    told.read_s = [read_alone_s(model, ids, repeats) for ids in prompts.values()]
    told.step = np.array([[step_s(model, ids, batch) for ids in prompts.values()] for batch in BATCHES])
    for number, kind in enumerate(over):
        with paired(model, kind) as pair:
            for way in ways:
                for length, ids in prompts.items():
                    reference = told.alone[length][0]
                    told.moved[kind, way, length] = measured(pair, ids, tokens, way, repeats, reference)
            if number == 0:
                told.compared = _compared(pair, told, prompts, tokens, kind, ways[-1])
        advance("links", number + 1, len(over))
    return told


def _compared(
    pair: Any, told: _Times, prompts: dict[int, list[int]], tokens: int, kind: str, way: str
) -> dict[str, float]:
    """Requests that come at random: medians of the two real processes, and of the simulation of them."""
    lengths = list(prompts)
    each = [told.moved[kind, way, length] for length in lengths]
    read_s = [one.first_token_s - one.exposed_s for one in each]
    step = np.array([[one.between_s for one in each]])
    service = service_of(lengths, read_s, [1], step, [one.exposed_s for one in each])
    busiest = float(max(np.mean(read_s), (tokens - 1) * step.mean()))
    requests = poisson(REAL_LOAD / busiest, REAL, lengths, [1] * len(lengths), tokens, seed=0)
    answers = served(pair, requests, prompts, way)
    simulated = serving_queue.apart(requests, 1, 1, service, batch=1)
    return {
        "real_first_ms": float(np.median([one.first_token_s for one in answers])) * 1e3,
        "simulated_first_ms": float(np.median([one.first_s for one in simulated])) * 1e3,
        "real_between_ms": float(np.median([np.mean(one.between_s) for one in answers])) * 1e3,
        "simulated_between_ms": float(np.median([one.between_s for one in simulated])) * 1e3,
    }


def _dataset(
    model: Model, told: _Times, prompts: dict[int, list[int]], ways: list[str], over: list[str]
) -> xr.Dataset:
    cell, lengths = ("over", "way", "prompt"), list(prompts)

    def table(name: str, factor: float = 1.0) -> np.ndarray:
        return np.array(
            [[[getattr(told.moved[o, w, n], name) * factor for n in lengths] for w in ways] for o in over],
            float,
        )

    alone_ms = [float(np.median([m.first_token_s for m in told.alone[n]])) * 1e3 for n in lengths]
    between = [float(np.median(np.concatenate([m.between_s for m in told.alone[n]]))) * 1e3 for n in lengths]
    formula = [[formula_bytes(model, n, w) for n in lengths] for w in ways]
    sending = table("sending_s")
    hidden = 1 - np.clip(table("exposed_s") / sending, 0, 1)
    data: dict[str, Any] = {
        "bytes": quantity(cell, table("payload"), "bytes of keys and values that were moved, counted",
                          "Must equal the formula, byte by byte.", SOURCE),
        "formula_bytes": quantity(cell, np.array([formula] * len(over), float),
                                  "bytes, by formula", "2·L·G·K·size·P; codes with their scales."),
        "wire": quantity(cell, table("wire"), "bytes on the socket, counted",
                         "Headers, and over TCP everything else."),
        "exposed": quantity(cell, table("exposed_s", 1e3), "milliseconds that moving adds to the first token",
                            "From the end of reading until all of it is there."),
        "sending": quantity(cell, table("sending_s", 1e3), "milliseconds of sending, whether hidden or not",
                            "Coding among it, where fewer bits are moved."),
        "hidden": quantity(cell, hidden, "share of sending that reading hides",
                           "0 where all is sent afterwards."),
        "first_token": quantity(cell, table("first_token_s", 1e3), "milliseconds until the first token",
                                "When the process that writes has all of it."),
        "between": quantity(cell, table("between_s", 1e3), "milliseconds between tokens, median",
                            "In the process that writes."),
        "slow_between": quantity(cell, table("slow_between_s", 1e3),
                                 "milliseconds between tokens that one in a hundred exceeds",
                                 "What a reader notices."),
        "same_tokens": quantity(cell, table("same"), "share of tokens that are those of one process",
                                "1 where nothing is lost by moving."),
        "together_first_token": quantity("prompt", alone_ms,
                                         "milliseconds until the first token, in one process",
                                         "What moving is added to."),
        "together_between": quantity("prompt", between, "milliseconds between tokens, in one process",
                                     "One request alone."),
        "read": quantity("prompt", np.array(told.read_s) * 1e3, "milliseconds of reading a prompt",
                         "What the simulation is fed with."),
        "step": quantity(("batch", "prompt"), told.step * 1e3, "milliseconds of a step that writes",
                         "For so many requests together."),
    }  # fmt: skip
    coords = {"over": over, "way": ways, "prompt": lengths, "batch": list(BATCHES)}
    return xr.Dataset(data, coords=coords)


# simulated
# ----------------------------------------------------------------------------------------------------


def _simulated(
    model: Model, told: _Times, lengths: list[int], tokens: int, machines: int, seed: int
) -> xr.Dataset:
    """Requests answered well by rate, together and apart; and the rate from which apart wins, by link."""
    service = service_of(lengths, told.read_s, BATCHES, told.step, [0.0] * len(lengths))
    middle = lengths[len(lengths) // 2]
    limits = FACTORS[0] * service.read(middle), FACTORS[1] * service.step(1, middle)
    each = np.mean(told.read_s) + (tokens - 1) * told.step[-1].mean() / BATCHES[-1]
    rates = [load * machines / each for load in LOADS]
    good = np.zeros((len(MIXES), len(SPEEDS) + 1, len(rates)))
    first = np.zeros_like(good)
    for mix, shares in enumerate(MIXES.values()):
        weights = np.interp(np.linspace(0, 2, len(lengths)), range(3), shares)
        for place, rate in enumerate(rates):
            requests = poisson(rate, SIMULATED, lengths, list(weights), tokens, seed)
            one = serving_queue.together(requests, machines, service, BATCHES[-1])
            good[mix, 0, place], first[mix, 0, place] = goodput(one, *limits), _median_ms(one)
            for number, speed in enumerate(SPEEDS):
                moving = [formula_bytes(model, n, WHOLE) / speed / 1e9 for n in lengths]
                linked = service_of(lengths, told.read_s, BATCHES, told.step, moving)
                best = _best_split(requests, machines, linked, limits)
                good[mix, number + 1, place], first[mix, number + 1, place] = (
                    goodput(best, *limits),
                    _median_ms(best),
                )
        advance("mixes of requests", mix + 1, len(MIXES))
    stars = [[crossing(rates, good[mix, 0], row) for row in good[mix, 1:]] for mix in range(len(MIXES))]
    how = ("mix", "arrangement", "rate")
    data = {
        "goodput": quantity(how, good, "requests a second answered within both limits, simulated",
                            "Together reads and writes on each machine; apart, the best split of them."),
        "queued_first_token": quantity(how, first, "milliseconds until the first token, median, simulated",
                                       "With what a request waits for."),
        "pays_from": quantity(("mix", "speed"), stars, "requests a second from which apart wins, simulated",
                              "As long as half of the requests are answered well; none: it does not."),
    }  # fmt: skip
    coords = {
        "mix": list(MIXES), "rate": np.round(rates, 3), "speed": list(SPEEDS),
        "arrangement": ["together", *(f"apart, {speed:g} GB/s" for speed in SPEEDS)],
    }  # fmt: skip
    attrs = {"limit_first_ms": limits[0] * 1e3, "limit_between_ms": limits[1] * 1e3}
    return xr.Dataset(data, coords=coords, attrs=attrs)


def _best_split(
    requests: list[Request], machines: int, service: Service, limits: tuple[float, float]
) -> list[Answered]:
    splits = (
        serving_queue.apart(requests, readers, machines - readers, service, BATCHES[-1])
        for readers in range(1, machines)
    )
    return max(splits, key=lambda answers: goodput(answers, *limits))


def _median_ms(answers: Sequence[Answered]) -> float:
    return float(np.median([one.first_s for one in answers])) * 1e3
