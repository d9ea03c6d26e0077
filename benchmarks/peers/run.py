"""Measure regraft beside its peers and print one table: `python -m benchmarks.peers.run`.

Every peer runs in a process of its own, on the same weights, in float32 on two threads; the processes take
turns, so that what else the machine does meets them all alike. Loading and one warm-up are not timed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks.machine import machine
from benchmarks.peers.cases import CASES, RECORD, Case, make_task, sampled_blocks, save_models
from benchmarks.peers.others import Others
from benchmarks.peers.processes import PACKAGES, ROOT, Failed, Worker, environment
from benchmarks.peers.report import Measured, save, table
from benchmarks.peers.startup import measure_startup

ENTRANTS = {
    "regraft": "regraft",
    "transformerlens": "tl",
    "nnsight": "nn",
    "loop": "hooks",
    "loop-last": "hooks",
    "before": "before",
}
"""Every column of the table, and the process that it is measured in; the last where `--before` names a
revision."""


OWN = ("regraft", "before")
"""They run a whole case where others run some of its blocks."""


def main() -> int:
    """Run what was asked for; 1 where values of a case disagree."""
    options = arguments()
    wanted = [case for case in CASES if not options.only or case.key in options.only]
    with_record = not options.only or RECORD.key in options.only
    host, others = machine(), Others()
    startup = measure_startup(short(options.rounds)) if not options.only or "startup" in options.only else {}
    measured: list[Measured] = []
    record, versions = None, {}
    if not options.before:
        ENTRANTS.pop("before")
    if wanted or with_record:
        with tempfile.TemporaryDirectory(prefix="regraft-bench-") as folder:
            workers, versions, broken = start_workers(Path(folder), options)
            measured = [measure(case, workers, broken, options) for case in wanted]
            record = measure(RECORD, workers, broken, options) if with_record else None
            for worker in workers.values():
                worker.close()
    host["seconds"] = others.seconds()
    prefix = "quick-" if options.quick else "part-" if options.only else ""
    path = save(ROOT / "benchmarks" / "results", prefix, host, versions, measured, record, startup)
    print(
        f"\n{host['cpu']}, {host['cores']} cores, {host['seconds']:.0f} s in all, others took"
        f" {others.cores():.2f} cores"
    )
    print("QUICK RUN on tiny models: the numbers mean nothing\n" if options.quick else "")
    print(table(measured, record, startup, options.quick))
    print(f"\nevery round: {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")
    return 0 if all(m.agrees for m in measured) else 1


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [*(case.key for case in CASES), RECORD.key, "startup"]
    parser.add_argument(
        "--only",
        action="append",
        choices=names,
        metavar="NAME",
        help=f"one of {', '.join(names)}; may be repeated",
    )
    parser.add_argument(
        "--rounds", type=int, default=3, help="rounds of the long cases (3); short ones run more"
    )
    parser.add_argument("--quick", action="store_true", help="tiny models, to try the script")
    parser.add_argument("--before", default="", metavar="REVISION", help="regraft as it was then, in turns")
    parser.add_argument(
        "--env", action="append", default=[], metavar="PEER=FOLDER",
        help=f"use this environment for a peer ({', '.join(PACKAGES)}) instead of making"
        " benchmarks/peers/.env-<peer>",
    )  # fmt: skip
    options = parser.parse_args()
    options.env = {name: Path(folder) for name, folder in (given.split("=", 1) for given in options.env)}
    if unknown := set(options.env) - set(PACKAGES):
        parser.error(f"--env knows {', '.join(PACKAGES)}, not {', '.join(sorted(unknown))}")
    return options


def short(rounds: int) -> int:
    """Rounds of a short case: more of them, and an odd number."""
    return 2 * rounds - 1


def start_workers(
    folder: Path, options: argparse.Namespace
) -> tuple[dict[str, Worker], dict, dict[str, str]]:
    """Save the models and start every process. Also the versions found, and the reason of each that did not
    start."""
    pythons = {name: environment(name, options.env) for name in dict.fromkeys(ENTRANTS.values())}
    models = save_models(folder, options.quick)
    workers: dict[str, Worker] = {}
    versions, broken = {}, {}
    for name, python in pythons.items():
        say(f"loading {name}")
        try:
            worker = Worker(name, python, folder, options.before)
            versions[name] = worker.ask({"do": "load", "models": models})["versions"]
            workers[name] = worker
        except (Failed, OSError) as error:
            broken[name] = str(error)
    return workers, versions, broken


def measure(
    case: Case, workers: dict[str, Worker], broken: dict[str, str], options: argparse.Namespace
) -> Measured:
    """Run a case in rounds. Each round starts with another entrant."""
    found = Measured(case)
    entrants = [name for name in ENTRANTS if case is not RECORD or name != "loop-last"]
    found.refused.update({name: broken[ENTRANTS[name]] for name in entrants if ENTRANTS[name] in broken})
    rounds = options.rounds if case.long else short(options.rounds)
    others = Others(worker.process.pid for worker in workers.values())
    for turn in range(-1, rounds):
        say(f"{case.key}: {'warm-up' if turn < 0 else f'round {turn + 1} of {rounds}'}")
        shift = max(turn, 0) % len(entrants)
        for name in entrants[shift:] + entrants[:shift]:
            if name not in found.refused:
                answer_of(found, name, turn, workers[ENTRANTS[name]], options.quick)
    found.others_cores = others.cores()
    return found


def answer_of(found: Measured, name: str, turn: int, worker: Worker, quick: bool) -> None:
    """One entrant's turn. Turn -1 is the warm-up: one block, or mere forwards where that is long; nothing of
    it is kept."""
    blocks = None if name in OWN else sampled_blocks(found.case, turn, quick)
    task = make_task(found.case, quick, blocks, last_only=name == "loop-last")
    if turn < 0:
        task.blocks = task.blocks[-1:]
        if found.case.sampled and name not in OWN:
            task.kind = RECORD.kind
    try:
        answer = worker.run(task)
        if turn >= 0:
            found.answers.setdefault(name, []).append(answer)
    except Failed as error:
        found.refused[name] = str(error)


def say(words: str) -> None:
    """Progress, on one line of a terminal, or as lines elsewhere."""
    start, end = ("\r\033[K", "") if sys.stderr.isatty() else ("", "\n")
    print(f"{start}{words}", end=end, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
