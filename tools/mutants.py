"""Plants one small fault at a time in a copy of the source and asks whether a test notices.

Every place of `src/regraft` where a fault of one token can be made is found in the syntax tree
(`mutant_places`): comparisons (`<` to `<=`, `==` to `!=`, `is`, `in`), arithmetic (`+` to `-`, `*` to `/`, a
sign lost), `and` and `or`, a lost `not`, pairs of names (`min` and `max`, `all` and `any`, ...), a number one
higher or twice as large, the end of a slice one further, a guard in front of a `raise` switched off, two
arguments exchanged, True and False. `--sample 60 --seed 1` tries a seeded sample, `--changed [BASE]` the
lines changed since a commit, `--only PATH[:LINE]` a file or a line of it, `--list` only lists. The tests are
run once without a fault, while `mutant_lines` writes down which test runs which line; this is kept until the
source changes. A mutant is tried on the tests that run its line, for half a minute: guards and tests of the
module's own name first, then the quickest.

How to read it: one line a mutant, `killed` with the test that failed first, or `SURVIVED`. A survivor is a
guard that no test holds: write the test (`tests/test_guards_*.py`). Where no test could tell (the fault
changes nothing that can be seen) the mutant goes into `mutant_equals.py` with the reason and is counted
apart. A mutant that hangs or cannot be imported is noticed too. Ends with 1 where fewer than 85% of the
others were noticed.

Left out, because a change there is no fault or is judged by eye: texts, docstrings, annotations and messages
of errors; numbers and arithmetic of `reporting/` (sizes and colours of figures); the almanac (the text that
the embedded models were trained on); defaults of parameters and fields and numbers that are a module's
settings (chosen by measurement); lazy `__init__` files and TYPE_CHECKING; progress and printed lines;
decorators; `strict=` of zip and `indent=` of JSON; plain numbers as seeds (another sample is as good);
whether a measured `gap` may equal its limit (it never does); and `training/distributed.py`, whose tests start
several processes and are not followed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue

from mutant_equals import EQUIVALENT
from mutant_places import Mutant, mutants_of

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "regraft"
PYTEST = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider")
Lines = dict[str, tuple[float, dict[str, list[int]]]]
WANTED = 0.85

LEFT_OUT = ("__init__.py", "__main__.py", "specimens/almanac.py", "training/distributed.py")
NOT_RUN = ("test_architecture.py", "test_browser.py", "test_gpu.py", "test_machines.py", "test_many.py")
LIMIT = 300
"""Seconds after which a mutant hangs, and so is noticed."""


def every_mutant() -> list[Mutant]:
    """All places of the source, file by file."""
    files = {str(file.relative_to(SOURCE)): file for file in sorted(SOURCE.rglob("*.py"))}
    return [
        m
        for path, file in files.items()
        if not path.endswith(LEFT_OUT)
        for m in mutants_of(path, file.read_bytes())
    ]


def changed_lines(base: str) -> set[tuple[str, int]]:
    """(file, line) of the lines of the working tree that a commit does not have."""
    command = ["git", "diff", "-U0", base, "--", "src/regraft"]
    found, path = set(), ""
    for line in subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines():
        if line.startswith("+++ "):
            path = line.removeprefix("+++ b/src/regraft/")
        elif hunk := re.match(r"@@ \S+ \+(\d+)(?:,(\d+))?", line):
            found |= {(path, int(hunk[1]) + i) for i in range(int(hunk[2] or 1))}
    return found


def chosen(options: argparse.Namespace) -> list[Mutant]:
    """The mutants that the options ask for, in the order of the files."""
    found = every_mutant()
    if options.changed:
        lines = changed_lines(options.changed)
        found = [m for m in found if (m.path, m.line) in lines]
    if options.only:
        wanted = [place.removeprefix("src/regraft/").partition(":")[::2] for place in options.only]
        found = [
            m
            for m in found
            if any(m.path.startswith(path) and line in ("", str(m.line)) for path, line in wanted)
        ]
    if options.sample and options.sample < len(found):
        found = sorted(random.Random(options.seed).sample(found, options.sample))
    return found


def digest(*files: Path) -> str:
    """SHA-256 of some files."""
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def lines_of_tests(kept: Path) -> Lines:
    """Which lines every test runs: from `kept`, and by running the test files that it does not hold as they
    are now."""
    every = sorted((ROOT / "tests").glob("*.py"))
    tests = {
        f"tests/{file.name}": digest(file)
        for file in every
        if file.match("test_*.py") and file.name not in NOT_RUN
    }
    source = digest(*sorted(SOURCE.rglob("*.py")), *(file for file in every if not file.match("test_*.py")))
    held = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {}
    files = held["files"] if held.get("source") == source else {}
    files = {name: files[name] for name in tests if name in files and files[name]["digest"] == tests[name]}
    if missing := [name for name in tests if name not in files]:
        print(f"running {len(missing)} test files once without a fault", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            path = os.pathsep.join(map(str, (ROOT / "src", Path(__file__).parent)))
            said = {**os.environ, "PYTHONPATH": path, "MUTANT_LINES": str(Path(folder) / "lines.json")}
            if subprocess.run([*PYTEST, "-p", "mutant_lines", *missing], cwd=ROOT, env=said).returncode:
                sys.exit("the tests fail without any fault")
            found = json.loads(Path(said["MUTANT_LINES"]).read_text(encoding="utf-8"))
        for name in missing:
            own = {test: value for test, value in found.items() if test.partition("::")[0] == name}
            files[name] = {"digest": tests[name], "tests": own}
        kept.write_text(json.dumps({"source": source, "files": files}), encoding="utf-8")
    return {test: value for file in files.values() for test, value in file["tests"].items()}


def tests_of(mutant: Mutant, lines: Lines, most: float) -> list[str]:
    """The tests that run a mutant's line (or else its file), for so many seconds' worth.

    Guards and the file of the module's own name come first, then the quickest.
    """
    own_files = ("tests/test_guards_", f"tests/test_{Path(mutant.path).stem}")
    own = {test: set(run[mutant.path]) for test, (_, run) in lines.items() if mutant.path in run}
    on_line = [test for test, numbers in own.items() if numbers & {mutant.line, mutant.statement}]
    chosen, seconds = [], 0.0
    for test in sorted(on_line or own, key=lambda test: (not test.startswith(own_files), lines[test][0])):
        seconds += lines[test][0]
        if chosen and seconds > most:
            break
        chosen.append(test)
    return chosen


class Copies:
    """Copies of the repository in which mutants are tried, as many as run beside each other."""

    def __init__(self, folder: Path, count: int):
        self.free: SimpleQueue[Path] = SimpleQueue()
        for number in range(count):
            copy = folder / str(number)
            copy.mkdir()
            for name in ("src", "tests", "pyproject.toml", "README.md", "LICENSE"):
                (shutil.copytree if (ROOT / name).is_dir() else shutil.copy2)(ROOT / name, copy / name)
            self.free.put(copy)

    def tried(self, mutant: Mutant, tests: list[str]) -> str:
        """Plant a mutant, run some tests and take it out again: by what it was noticed, or nothing."""
        copy = self.free.get()
        file = copy / "src" / "regraft" / mutant.path
        source = file.read_bytes()
        try:
            file.write_bytes(source[: mutant.begin] + mutant.new.encode() + source[mutant.end :])
            return noticed_by(copy, tests)
        finally:
            file.write_bytes(source)
            self.free.put(copy)


def noticed_by(copy: Path, tests: list[str]) -> str:
    """The first test that fails in a copy, or nothing."""
    variables = {**os.environ, "PYTHONPATH": str(copy / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [*PYTEST, "-x", "--no-header", "--tb=no", *tests]
    with subprocess.Popen(
        command,
        cwd=copy,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            said = process.communicate(timeout=LIMIT)[0]
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return "the time limit"
    if process.returncode == 0:
        return ""
    failed = re.search(r"^(?:FAILED|ERROR) tests/(\S+)", said, re.MULTILINE)
    return failed[1] if failed else f"an exit with {process.returncode}"


def reason(mutant: Mutant) -> str:
    """Why nothing could tell this mutant from the original, or nothing; however the line is broken."""
    line = _bare(mutant.text)
    found = (
        why
        for (path, text, change), why in EQUIVALENT.items()
        if (path, change) == (mutant.path, mutant.change)
        and (line in (known := _bare(text)) or known in line)
    )
    return next(found, "")


def outdated() -> list[str]:
    """Lines of known equivalents that the source no longer has."""
    source = {path: _bare((SOURCE / path).read_text(encoding="utf-8")) for path, _, _ in EQUIVALENT}
    return [f"{path}: {text}" for path, text, _ in EQUIVALENT if _bare(text) not in source[path]]


def _bare(text: str) -> str:
    """Code without what a formatter may change: white space, and commas at an end."""
    return re.sub(r",(?=[)\]}]|$)", "", "".join(text.split()))


def judged(mutant: Mutant, copies: Copies, tests: list[str]) -> dict:
    """Try one mutant unless it is known as equivalent, and say what became of it."""
    if why := reason(mutant):
        fate, by = "equivalent", why
    else:
        by = copies.tried(mutant, tests) if tests else ""
        fate = "killed" if by else "SURVIVED"
    said = by or f"{mutant.text}  ({len(tests)} tests)"
    print(f"{fate:10} {mutant.path}:{mutant.line}  {mutant.change}  [{said}]", flush=True)
    return {**asdict(mutant), "fate": fate, "by": by}


def summary(results: list[dict]) -> float:
    """Print the counts by room and as a whole; returns the share that was noticed."""
    counts = Counter(result["fate"] for result in results)
    for room in sorted({result["path"].rpartition("/")[0] for result in results}):
        own = Counter(r["fate"] for r in results if r["path"].rpartition("/")[0] == room)
        print(
            f"{room or 'top level':10} {own['killed']} killed, {own['SURVIVED']} survived,"
            f" {own['equivalent']} equivalent"
        )
    told = counts["killed"] + counts["SURVIVED"]
    share = counts["killed"] / told if told else 1.0
    print(f"{counts['killed']} of {told} noticed ({share:.0%}); {counts['equivalent']} equivalent")
    return share


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument(
        "--sample", type=int, default=60, help="so many, drawn from all that there are; 0: all"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--changed", nargs="?", const="HEAD", metavar="BASE", help="on lines changed since a commit only"
    )
    parser.add_argument(
        "--only", nargs="+", metavar="PATH[:LINE]", help="in these files, on these lines only"
    )
    parser.add_argument("--list", action="store_true", help="print the places and try nothing")
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--jobs", type=int, default=1, help="mutants tried beside each other")
    parser.add_argument("--most", type=float, default=30, help="seconds' worth of tests for a mutant")
    kept = Path(tempfile.gettempdir()) / "regraft-mutant-lines.json"
    parser.add_argument("--lines", type=Path, default=kept, help="file that keeps which test runs which line")
    options = parser.parse_args()
    if stale := outdated():
        parser.error("no longer in the source, take out of mutant_equals.py: " + "; ".join(stale))
    found = chosen(options)
    if options.list:
        print(
            *(f"{m.path}:{m.line}  {m.change}  [{m.text}]" for m in found), f"{len(found)} places", sep="\n"
        )
        return
    lines = lines_of_tests(options.lines)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.jobs) as pool:
        copies = Copies(Path(folder), options.jobs)
        tried = (
            pool.submit(judged, mutant, copies, tests_of(mutant, lines, options.most)) for mutant in found
        )
        results = [one.result() for one in list(tried)]
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if summary(results) < WANTED:
        sys.exit(1)


if __name__ == "__main__":
    main()
