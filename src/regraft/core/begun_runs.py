"""Runs that were begun: whose folder it is, what it was begun with, and one writer at a time.

A run's identity is stored first. The same command again finds it: unfinished, it goes on; finished, nothing
is run; with another identity the folder is refused, unless it is to be replaced.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from regraft.core.files import RunFolderError, place_of, writing
from regraft.core.runs import FINISHED, IDENTITY, OUR_MARK, read_mark, write_whole
from regraft.core.strict_json import json_text

LOCK = "writer.json"


def identity_of(told: Mapping[str, Any]) -> str:
    """A digest of everything that a run's numbers hang on, as far as its user can say it."""
    return hashlib.sha256(json_text(dict(told), sort_keys=True).encode()).hexdigest()


def ended(told: Mapping[str, Any]) -> dict[str, Any]:
    """What `run.json` says of a run that came to its end."""
    return {"told": dict(told), IDENTITY: identity_of(told), FINISHED: True}


def finished(out: Path, told: Mapping[str, Any]) -> bool:
    """Whether a folder holds this very run, and it came to its end.

    Raises:
        RunFolderError: it holds a run of another identity; the sentence says what differs.
    """
    if not (place_of(out) / OUR_MARK).is_file():
        return False
    there = read_mark(out)
    if there.get(IDENTITY) != identity_of(told):
        raise RunFolderError(
            f"the folder {out} holds another run{_difference(there.get('told'), told)}: choose another folder"
            " with --out, or replace it with --force"
        )
    return there.get(FINISHED) is True


def _difference(there: Any, here: Mapping[str, Any]) -> str:
    """What two runs differ in, where that is known."""
    if not isinstance(there, Mapping):
        return ""
    plain = json.loads(json_text(dict(here)))
    other = [key for key in sorted({*there, *plain}) if there.get(key) != plain.get(key)]
    if not other:
        return ""

    def shown(value: Any) -> str:
        return "none" if value is None else str(value)[:60]

    first = other[0]
    more = f" (and {', '.join(other[1:])})" if other[1:] else ""
    return f", with {first} {shown(there.get(first))} where this one has {shown(plain.get(first))}{more}"


@contextmanager
def begun(out: Path, told: Mapping[str, Any], mark: Mapping[str, Any], force: bool = False) -> Iterator[Path]:
    """While inside, this process writes the run; what is kept in the folder until it ends stays there.

    Args:
        out: the run's folder.
        told: what its numbers hang on.
        mark: what `run.json` says of it.
        force: what is there is removed first.

    Raises:
        RunFolderError: another process writes there.
        NotWrittenError: the disk is full, or the system refuses for another reason.
    """
    place = place_of(out)
    with writing(out):
        place.mkdir(parents=True, exist_ok=True)
    with _only_writer(place, out):
        if force:
            _clear(place)
        if not (place / OUR_MARK).is_file():
            whole = {**mark, "told": dict(told), IDENTITY: identity_of(told), FINISHED: False}
            write_whole(place / OUR_MARK, json_text(whole, indent=1, sort_keys=True) + "\n")
        yield place


def _clear(place: Path) -> None:
    for path in place.iterdir():
        if path.name == LOCK:
            continue
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


@contextmanager
def _only_writer(place: Path, out: Path) -> Iterator[None]:
    """Hold a folder's lock; one whose process is gone is taken over."""
    lock = place / LOCK
    me = {"pid": os.getpid(), "host": platform.node(), "started": _started(os.getpid())}
    for _ in range(2):
        try:
            with lock.open("x", encoding="utf-8") as file:
                json.dump(me, file)
            break
        except FileExistsError:
            there = _holder(lock)
            if there is not None and _lives(there):
                raise RunFolderError(
                    f"process {there.get('pid')} on {there.get('host')} writes to {out}: wait for it, or"
                    f" choose another folder with --out (if it does not run any more, delete {LOCK} there)"
                ) from None
            lock.unlink(missing_ok=True)
    else:
        raise RunFolderError(f"another process took {out} over just now: choose another folder with --out")
    try:
        yield
    finally:
        if _holder(lock) == me:
            lock.unlink(missing_ok=True)


def _holder(lock: Path) -> dict[str, Any] | None:
    """Who holds a lock; None where that cannot be read."""
    try:
        found = json.loads(lock.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _lives(holder: Mapping[str, Any]) -> bool:
    """Whether a process is still there: of another machine that cannot be told, so it is taken to be."""
    if holder.get("host") != platform.node():
        return True
    pid = holder.get("pid")
    return isinstance(pid, int) and _started(pid) is not None and _started(pid) == holder.get("started")


def _started(pid: int) -> str | None:
    """When a process began, in the system's ticks; None where there is none of this number.

    A number is given again to another process, which began at another time.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return None
    return text.rpartition(")")[2].split()[19]
