"""What people name on a disk: text that is read, folders and files that are written whole or not at all.

A place is looked at before any work. A folder is written under another name and put in its place in one step,
so a run that is killed leaves what was there before. Nothing heavy is imported.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

BEGUN = ".regraft-"
"""How the names of folders and files begin that are not finished."""
LONGEST_NAME = 255
"""Bytes of a name, as most file systems have it."""
HINTS = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "make room, or choose another place"),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "choose a place that you may write to"),
    **dict.fromkeys((errno.EIO, errno.ENAMETOOLONG, errno.EBUSY, errno.EXDEV), "choose another place"),
}
"""What to do where a system refuses to write, by its error number."""
_RUST = re.compile(r"\(os error (\d+)\)")


class RunFolderError(ValueError):
    """A folder that cannot hold this run; the message says why."""


class UnreadableError(ValueError):
    """A file that was named and cannot be read; the message says why and what to do."""


class NotWrittenError(OSError):
    """What was to be written is not there, the message says why; `result` is what had been measured by
    then."""

    result: Any = None


class NotKeptError(ValueError):
    """What was written is not what it should be, read again, and so was removed; `result` is what had been
    measured by then."""

    result: Any = None


def expanded(path: Path | str) -> Path:
    """A path with `~` written out.

    Raises:
        RunFolderError: the home of somebody who is not known here.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise RunFolderError(
            f"{path} begins with the home of nobody who is known here: write the path out"
        ) from error


def place_of(path: Path | str) -> Path:
    """Where a path leads: absolute, `~` written out, links followed, also those to what is not there yet."""
    return Path(os.path.realpath(expanded(path)))


@contextmanager
def reading(path: Path | str, remedy: str) -> Iterator[None]:
    """While something that somebody named is read: what the system refuses becomes one sentence with the
    path.

    Raises:
        UnreadableError: it refused.
    """
    try:
        yield
    except OSError as error:
        raise UnreadableError(f"{path} cannot be read ({error.strerror or error}): {remedy}") from error


def read_text(path: Path | str, remedy: str) -> str:
    """The text of a file that somebody named; `remedy` says what such a file must be.

    Raises:
        UnreadableError: it is not there, a folder, closed to us, empty, or no text in UTF-8.
    """
    try:
        with reading(path, remedy):
            text = expanded(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnreadableError(f"{path} is no text in UTF-8: {remedy}") from error
    if not text.strip():
        raise UnreadableError(f"{path} is empty: {remedy}")
    return text


def check_empty(folder: Path | str, option: str) -> None:
    """Make sure that nothing is where a new folder is to be written.

    Raises:
        RunFolderError: a file is there, a folder that holds something, or nothing can be written there.
    """
    check_place(folder, option)
    place = place_of(folder)
    if place.exists() and any(place.iterdir()):
        raise RunFolderError(f"the folder {folder} is not empty: choose another with {option}, or remove it")


def check_folder_there(folder: Path | str, option: str) -> None:
    """Make sure that a folder is there.

    Raises:
        UnreadableError: it is not.
    """
    if not expanded(folder).is_dir():
        raise UnreadableError(f"{option} {folder} is no folder: name one that is there")


def check_place(folder: Path | str, option: str) -> None:
    """Make sure that a folder can be made in a place, or that the one that is there can be written to.

    Raises:
        RunFolderError: it cannot.
    """
    try:
        reason = _why_not(place_of(folder))
    except OSError as error:
        reason = error.strerror
    if reason:
        raise RunFolderError(
            f"the folder {folder} cannot be written to ({reason}): choose another with {option}"
        )


def _why_not(place: Path) -> str:
    """Why nothing can be written to a place; nothing where it can."""
    if max(len(os.fsencode(part)) for part in place.parts) > LONGEST_NAME:
        return f"a name has more than {LONGEST_NAME} bytes"
    if place.is_symlink():
        return "its link leads in a circle"
    above = place
    while not above.exists():
        above = above.parent
    if not above.is_dir():
        return f"{above} is a file"
    needed = os.W_OK | os.X_OK | (os.R_OK if above == place else 0)
    return "" if os.access(above, needed) else f"{above} is closed to you"


@contextmanager
def writing(path: Path | str) -> Iterator[None]:
    """While something is written: a full disk, a closed folder and their like become one sentence with the
    path.

    Raises:
        NotWrittenError: the system refused.
    """
    try:
        yield
    except NotWrittenError:
        raise
    except (
        Exception
    ) as error:  # tokenizers raises a bare Exception for what safetensors and Python have types for
        number = _system_number(error)
        if number not in HINTS:
            raise
        raise NotWrittenError(
            f"{path} could not be written ({os.strerror(number)}): {HINTS[number]}"
        ) from error


def _system_number(error: Exception) -> int:
    """The system's error number: of an OSError, or in the words of a library written in Rust; 0 where there
    is none."""
    if isinstance(error, OSError):
        return error.errno or 0
    found = _RUST.search(str(error))
    return int(found[1]) if found else 0


@contextmanager
def keeping(result: Any) -> Iterator[None]:
    """Send what was measured along with the error, where it could not be written or kept."""
    try:
        yield
    except (NotWrittenError, NotKeptError) as error:
        error.result = result
        raise


@contextmanager
def still_told(tell: Callable[[Any], object]) -> Iterator[None]:
    """Tell what was measured where it could not be written or kept, before the error goes on."""
    try:
        yield
    except (NotWrittenError, NotKeptError) as error:
        if error.result is not None:
            tell(error.result)
        raise


@contextmanager
def whole_folder(out: Path | str, as_stored: bool = False) -> Iterator[Path]:
    """A fresh folder that takes the place of `out` when the block ends well, and vanishes when it does not.

    A link stays, and what it leads to is written. So do a mount point, the folder that one stands in, and one
    whose parent is closed: they are filled at the end, everything else is exchanged in one step. Folders and
    files get the permissions that the process gives to new ones, unless they are to stay `as_stored`; a
    folder that was there keeps its own.

    Raises:
        NotWrittenError: the disk is full, or the system refuses for another reason.
    """
    place = place_of(out)
    with writing(out), ExitStack() as last:
        place.parent.mkdir(parents=True, exist_ok=True)
        fresh = (place if place.is_dir() and _stays(place) else place.parent) / f"{BEGUN}{uuid4().hex[:12]}"
        fresh.mkdir()
        last.callback(shutil.rmtree, fresh, ignore_errors=True)
        yield fresh
        if not as_stored:
            _as_new(fresh)
        _put(fresh, place)


def _stays(folder: Path) -> bool:
    """Whether a folder cannot be exchanged for another one, or somebody would be left standing in the old
    one."""
    here = Path.cwd()
    return (
        os.path.ismount(folder)
        or folder in (here, *here.parents)
        or not os.access(folder.parent, os.W_OK | os.X_OK)
    )


def _as_new(fresh: Path) -> None:
    """Give everything in a folder the permissions of a new folder or file: some libraries write for the owner
    alone."""
    allowed = fresh.stat().st_mode & 0o777
    for path in fresh.rglob("*"):
        kept = path.stat().st_mode & ~0o777
        path.chmod(kept | (allowed if path.is_dir() else allowed & 0o666))


def _put(fresh: Path, place: Path) -> None:
    """Let a finished folder stand in a place; where that fails, what was there before comes back."""
    if not place.exists():
        fresh.rename(place)
        return
    old = fresh.with_name(f"{fresh.name}.old")
    with ExitStack() as back:
        if fresh.parent != place and _stepped_aside(place, old):
            back.callback(old.rename, place)
            shutil.copymode(old, fresh)
            fresh.rename(place)
        else:
            _fill(fresh, place, old, back)
        back.pop_all()
    shutil.rmtree(old, ignore_errors=True)


def _stepped_aside(place: Path, old: Path) -> bool:
    """Move a folder away, unless it cannot be: a mount from the same disk, a container's layer, another's in
    a shared folder."""
    with suppress(OSError):
        place.rename(old)
        return True
    return False


def _fill(fresh: Path, place: Path, old: Path, back: ExitStack) -> None:
    """Exchange a folder's content piece by piece; `back` learns how each step is undone."""

    def move(path: Path, to: Path) -> None:
        shutil.move(path, to)
        back.callback(shutil.move, to, path)

    old.mkdir()
    back.callback(old.rmdir)
    for path in [path for path in place.iterdir() if path not in (fresh, old)]:
        move(path, old / path.name)
    for path in [*fresh.iterdir()]:
        move(path, place / path.name)


@contextmanager
def whole_file(file: Path | str) -> Iterator[Path]:
    """A fresh file that takes the place of `file` when the block ends well, and vanishes when it does not.

    Raises:
        NotWrittenError: the disk is full, or the system refuses for another reason.
    """
    place = place_of(file)
    with writing(file), ExitStack() as last:
        place.parent.mkdir(parents=True, exist_ok=True)
        part = place.with_name(f"{BEGUN}{uuid4().hex[:12]}")
        part.touch()
        allowed = part.stat().st_mode & 0o777
        last.callback(part.unlink, missing_ok=True)
        yield part
        part.chmod(allowed)
        part.replace(place)
