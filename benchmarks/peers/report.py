"""What was measured, as a table for people and as JSON."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.peers.cases import QUICK_POSITIONS, QUICK_SHAPES, RECORD, SHAPES, TOLERANCE, Case, title
from benchmarks.peers.startup import HELP_TARGET, IMPORT_TARGET

COLUMNS = {
    "transformerlens": "TransformerLens",
    "nnsight": "nnsight",
    "loop": "plain loop",
    "loop-last": "loop, last logits",
    "before": "before",
}
NOTES = """\
Seconds are medians over rounds in which the peers take turns, one process each; "8.1x": a peer's over
regraft's. 'plain loop' is one full Hugging Face forward a cell with a hook, read at the last position;
'loop, last logits' is that with logits_to_keep=1, and has no target. nnsight runs the cells of one block
as one batch, as its guide says. 'work' is what regraft counted: block work of one full forward a cell
over block work planned (planned + preparation). It leaves out the output matrix, the gain of large
batches and all overhead; 'bound' counts multiply-adds with the output matrix, and is the most that a
peer which batches its cells can be beaten by at equal efficiency. Values agree where they differ by at
most {tolerance:g}, or {tolerance:g} of the largest; 'spread' is how far the cells lie apart. 'rate':
regraft's counted multiply-adds a second, over those of one float32 product of 2,048 squared beside it on
as many threads. 'before': regraft as it was at the revision of --before, in the same rounds. 'busy':
cores that other processes took meanwhile: two threads on two cores suffer a lot from that, so above 0.1
run it again."""
SAMPLED = "'~': timed on {count} of the blocks in each round, not the same every time, and scaled to all."


@dataclass
class Measured:
    """One case: answers by entrant, the reason of each that gave none, and how many cores other processes
    kept busy."""

    case: Case
    answers: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    others_cores: float = 0.0

    def seconds(self, entrant: str) -> float | None:
        """Median over the rounds."""
        times = [answer["seconds"] for answer in self.answers.get(entrant, ())]
        return statistics.median(times) if times else None

    def ratio(self, entrant: str) -> float | None:
        """A peer's median over regraft's."""
        own, other = self.seconds("regraft"), self.seconds(entrant)
        return other / own if own and other else None

    def work_saved(self) -> float | None:
        """Counted work of the naive way over counted work of the plan."""
        work = next((answer["work"] for answer in self.answers.get("regraft", ())), None)
        return work["naive"] / max(work["planned"] + work["preparation"], 1) if work else None

    def share_of_rate(self, quick: bool) -> float | None:
        """Multiply-adds of the plan a second, over the machine's own in the same rounds (median)."""
        planned = self.multiply_adds(quick)
        answers = self.answers.get("regraft", ())
        shares = [
            planned[1] / answer["seconds"] / answer["detail"]["matrix_rate"]
            for answer in answers if planned and "matrix_rate" in answer["detail"]
        ]  # fmt: skip
        return statistics.median(shares) if shares else None

    def agreement(self) -> dict[str, float]:
        """Largest difference between any two entrants, largest value, and the spread of the values over the
        cells."""
        cells: dict[tuple[str, int], list[float]] = {}
        for answers in self.answers.values():
            for answer in answers:
                for row, values in answer["values"].items():
                    for place, value in enumerate(values):
                        cells.setdefault((row, place), []).append(value)
        if not cells:
            return {}
        means = [statistics.fmean(values) for values in cells.values()]
        largest = max(abs(value) for values in cells.values() for value in values)
        difference = max(max(values) - min(values) for values in cells.values())
        finite = all(value == value for values in cells.values() for value in values)
        return {
            "difference": difference if finite else float("nan"),
            "largest": largest,
            "spread": max(means) - min(means),
        }

    def arithmetic_bound(self, quick: bool) -> float | None:
        """Multiply-adds of a full forward for each cell, head at every position included, over those of
        regraft's plan.

        A peer that runs cells in batches as large cannot be beaten by more than this at equal efficiency.
        """
        counted = self.multiply_adds(quick)
        return counted[0] / counted[1] if counted else None

    def multiply_adds(self, quick: bool) -> tuple[float, float] | None:
        """Of a full forward for each cell, and of regraft's plan: matrices of blocks and head, no scores."""
        work = next((answer["work"] for answer in self.answers.get("regraft", ())), None)
        if not work:
            return None
        shape = (QUICK_SHAPES if quick else SHAPES)[self.case.model]
        attention = shape.width * shape.head_width * (2 * shape.heads + 2 * shape.kv_heads)
        block = attention + shape.width * shape.mlp * (2 if shape.kind == "gpt2" else 3)
        head = shape.width * shape.vocabulary
        cells = sum(len(values) for values in self.answers["regraft"][0]["values"].values()) + 1
        positions = QUICK_POSITIONS[self.case.positions] if quick else self.case.positions
        naive = work["naive"] * block + cells * positions * head
        return naive, (work["planned"] + work["preparation"]) * block + cells * head

    @property
    def agrees(self) -> bool:
        """Whether all values agree to the tolerance."""
        found = self.agreement()
        return not found or found["difference"] <= TOLERANCE * max(1.0, found["largest"])


def table(measured: list[Measured], record: Measured | None, startup: dict[str, float], quick: bool) -> str:
    """The whole report as text."""
    counted = ("work", "bound", "rate", "largest difference", "busy")
    rows = [["case", "target", "regraft", *COLUMNS.values(), *counted]]
    rows += [_row(m, quick) for m in measured]
    parts = [_aligned(rows)] if measured else []
    costs = [*_record_rows(record, quick), *_startup_rows(startup)]
    if costs:
        parts.append(_aligned([["case", "target", "measured", ""], *costs]))
    refused = {
        f"{COLUMNS.get(name, name)} ({m.case.key}): {why}"
        for m in measured
        for name, why in m.refused.items()
    }
    if refused:
        parts.append("n/a: " + "; ".join(sorted(refused)))
    parts += [f"FAIL: the values of case {m.case.key} differ between peers" for m in measured if not m.agrees]
    if measured:
        parts.append(NOTES.format(tolerance=TOLERANCE))
    parts += [SAMPLED.format(count=m.case.sampled) for m in measured if m.case.sampled]
    return "\n\n".join(parts)


def _row(m: Measured, quick: bool) -> list[str]:
    own, saved, bound = m.seconds("regraft"), m.work_saved(), m.arithmetic_bound(quick)
    rate = m.share_of_rate(quick)
    cells = [title(m.case, quick), f">= {m.case.target:g}x", "n/a" if own is None else f"{own:.3g} s"]
    cells += [_peer_cell(m, entrant) for entrant in COLUMNS]
    found = m.agreement()
    agreement = f"{found['difference']:.0e}, spread {found['spread']:.1g}" if found else "n/a"
    return [
        *cells,
        "n/a" if saved is None else f"{saved:.1f}x",
        "n/a" if bound is None else f"{bound:.1f}x",
        "n/a" if rate is None else f"{rate:.0%}",
        agreement + ("" if m.agrees else " FAIL"),
        f"{m.others_cores:.2f}",
    ]


def _peer_cell(m: Measured, entrant: str) -> str:
    seconds, ratio = m.seconds(entrant), m.ratio(entrant)
    if seconds is None:
        return "n/a" if entrant in m.refused else "-"
    about = "~" if m.case.sampled else ""
    verdict = ""
    if entrant in m.case.against and ratio is not None:
        verdict = " ok" if ratio >= m.case.target else " MISS"
    return f"{about}{seconds:.3g} s" + ("" if ratio is None else f" {ratio:.1f}x{verdict}")


def _record_rows(record: Measured | None, quick: bool) -> list[list[str]]:
    if record is None or "regraft" not in record.answers:
        return []
    name = title(RECORD, quick)
    detail = [answer["detail"] for answer in record.answers["regraft"]]
    rows = []
    for plain in ("forward", "forward without head"):
        ratio = statistics.median(d["record"] / d[plain] for d in detail)
        own, other = (statistics.median(d[key] for d in detail) for key in ("record", plain))
        rows.append(
            _cost(
                f"{name} / plain {plain}, same process",
                RECORD.target,
                ratio,
                f"{own:.4f} / {other:.4f} s",
                "x",
            )
        )
    for entrant in ("loop", "transformerlens", "nnsight"):
        own, other = record.seconds("regraft"), record.seconds(entrant)
        if own and other and entrant == "loop":
            words = f"{name} / plain forward, other process"
            rows.append(_cost(words, RECORD.target, own / other, f"{own:.4f} / {other:.4f} s", "x"))
        elif own and other:
            rows.append(
                [f"{name} / {COLUMNS[entrant]}'s", "", f"{own / other:.2f}x", f"{own:.4f} / {other:.4f} s"]
            )
    return rows


def _startup_rows(startup: dict[str, float]) -> list[list[str]]:
    rows = []
    if "import regraft" in startup and "import torch" in startup:
        more = startup["import regraft"] - startup["import torch"]
        words = f"{startup['import regraft']:.2f} - {startup['import torch']:.2f} s"
        rows.append(_cost("g  import regraft - import torch", IMPORT_TARGET, more, words, " s"))
    elif startup:
        rows.append(
            ["g  import regraft - import torch", f"<= {IMPORT_TARGET:g} s", "n/a", "import regraft failed"]
        )
    if "from regraft import load, sweep" in startup:
        more = startup["from regraft import load, sweep"] - startup["import torch"]
        rows.append(
            [
                "g  from regraft import load, sweep - import torch",
                "",
                f"{more:.2f} s",
                "with what `import` puts off",
            ]
        )
    if "regraft --help" in startup:
        rows.append(_cost("g  regraft --help", HELP_TARGET, startup["regraft --help"], "", " s"))
    elif startup:
        rows.append(
            ["g  regraft --help", f"<= {HELP_TARGET:g} s", "n/a", "the command is not installed or fails"]
        )
    return rows


def _cost(name: str, target: float, value: float, words: str, unit: str) -> list[str]:
    verdict = "ok" if value <= target else "MISS"
    return [name, f"<= {target:g}{unit}", f"{value:.2f}{unit} {verdict}", words]


def _aligned(rows: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    return "\n".join([lines[0], "-" * (sum(widths) + 2 * len(widths) - 2), *lines[1:]])


def save(
    folder: Path, prefix: str, host: dict[str, Any], versions: dict[str, Any],
    measured: list[Measured], record: Measured | None, startup: dict[str, float],
) -> Path:  # fmt: skip
    """Write everything that was measured, every round of it, as JSON; returns the file."""
    folder.mkdir(exist_ok=True)
    now = datetime.now(UTC)
    path = folder / f"{prefix}{now:%Y-%m-%d}.json"
    content = {
        "time": now.isoformat(timespec="seconds"),
        "quick": prefix == "quick-",
        "machine": host,
        "versions": versions,
        "cases": [_plain(m, prefix == "quick-") for m in (*measured, *([record] if record else []))],
        "startup_seconds": startup,
    }
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path


def _plain(m: Measured, quick: bool) -> dict[str, Any]:
    entrants = {
        name: {
            "median_seconds": m.seconds(name),
            "ratio": m.ratio(name),
            "rounds": [{key: answer[key] for key in ("seconds", "work", "detail")} for answer in answers],
        }
        for name, answers in m.answers.items()
    }
    agreement = {**m.agreement(), "agrees": m.agrees}
    return {
        "case": asdict(m.case),
        "entrants": entrants,
        "refused": m.refused,
        "work": m.work_saved(),
        "bound": m.arithmetic_bound(quick),
        "share_of_matrix_rate": m.share_of_rate(quick),
        "values": agreement,
    }
