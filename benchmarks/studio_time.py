"""Measure how soon a studio answers a click: `python -m benchmarks.studio_time`.

Seconds until everything but the continuation is there (loss, logits, the lens clean and changed, next tokens,
the lines of Python), the medians of many clicks, beside one plain forward pass of the same prompt, which is
timed in turn with them; to `benchmarks/results/studio.json`. `python -m benchmarks.peers.speed_page` writes
them into docs/speed.md.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime

import torch

from benchmarks.machine import machine
from benchmarks.shared import RESULTS
from regraft.checkpoint.locate import DEFAULT_SPECIMEN
from regraft.studio.bench import Bench
from regraft.studio.limits import Limits
from regraft.studio.touches import Touch

TIMES = 20
SWAPPED = (0, 1, 3, 2, *range(4, 12))

Click = Callable[[Bench, int], Awaitable[str]]


async def _touch(bench: Bench, number: int) -> str:
    return await bench.touch(Touch(f"{number % 12}.mlp_out", "zero", 4))


async def _route(bench: Bench, number: int) -> str:
    order = SWAPPED if number % 2 else SWAPPED[:-1]
    return await bench.ask(lambda asked: replace(asked, order=order))


async def _touch_on_a_route(bench: Bench, number: int) -> str:
    touch = Touch(f"{number % 12}.mlp_out", "zero", 4)
    return await bench.ask(lambda asked: replace(asked, order=SWAPPED, touches=(touch,)))


CLICKS: dict[str, Click] = {
    "a part set to 0": _touch,
    "blocks in another order": _route,
    "both at once": _touch_on_a_route,
}


async def played() -> dict[str, dict[str, float]]:
    """Seconds of every kind of click, and of the plain forward beside it."""
    bench = Bench(DEFAULT_SPECIMEN, Limits(), lambda: None, lambda: None)
    assert await bench.ask(lambda asked: asked) == ""
    ids = bench.model.record(bench.asked.prompt).ids_BT
    found: dict[str, dict[str, float]] = {}
    for name, click in CLICKS.items():
        taken, beside = [], []
        for number in range(TIMES + 1):
            await bench.ask(lambda asked: replace(asked, touches=(), order=None))
            await bench.settled()
            began = time.perf_counter()
            why = await click(bench, number)
            ended = time.perf_counter()
            assert why == "", why
            with torch.no_grad():
                bench.plain.hf(ids)
            if number:  # the first of a kind warms up
                taken.append(ended - began)
                beside.append(time.perf_counter() - ended)
        found[name] = {
            "seconds": statistics.median(taken), "longest": max(taken),
            "forward_seconds": statistics.median(beside),
        }  # fmt: skip
        print(name, found[name], flush=True)
    await bench.close()
    return found


def main() -> None:
    """Click, and keep what it took."""
    made = machine()
    clicks = asyncio.run(played())
    found = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": made,
        "threads": torch.get_num_threads(),
        "times": TIMES,
        "clicks": clicks,
    }
    (RESULTS / "studio.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
