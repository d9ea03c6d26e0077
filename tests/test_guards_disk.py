"""What a system refuses and what is no refusal of it, and what is left where an old folder cannot be cleared
away."""

from __future__ import annotations

import errno
import shutil

import pytest

from regraft.core import files as disk
from regraft.core.files import HINTS, NotWrittenError, whole_folder, writing


def test_errors_without_a_systems_number_stay_what_they_are(tmp_path):
    for error in (
        OSError("odd"),
        RuntimeError("odd"),
        RuntimeError("(os error 2)"),
        OSError(errno.ENOENT, "odd"),
    ):
        with pytest.raises(type(error)) as seen, writing(tmp_path):
            raise error
        assert seen.value is error
    for number, hint in HINTS.items():
        for error in (OSError(number, "odd"), Exception(f"odd (os error {number})")):
            with pytest.raises(NotWrittenError, match=hint), writing(tmp_path):
                raise error


def test_a_folder_is_written_though_what_was_there_cannot_be_cleared_away(tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("1")
    own = shutil.rmtree

    def refusing(path, ignore_errors=False, **more):
        if not ignore_errors:
            raise PermissionError(errno.EACCES, "closed", str(path))
        own(path, ignore_errors=True, **more)

    monkeypatch.setattr(shutil, "rmtree", refusing)
    with whole_folder(out) as fresh:
        (fresh / "new").write_text("2")
    assert [path.name for path in out.iterdir()] == ["new"]
    with pytest.raises(KeyError), whole_folder(out) as fresh:
        raise KeyError
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_is_there_must_be_readable_and_one_above_it_need_not(tmp_path, monkeypatch):
    """Asked of the system as anybody else than its owner would: what is in a folder must be seen, to be
    replaced."""
    asked = []
    monkeypatch.setattr(disk.os, "access", lambda path, needed: asked.append((path, needed)))
    for place, above, needed in ((tmp_path, tmp_path, 7), (tmp_path / "a" / "b", tmp_path, 3)):
        with pytest.raises(disk.RunFolderError, match="is closed to you"):
            disk.check_place(place, "--out")
        assert asked.pop() == (above, needed)


def test_what_is_written_has_the_permissions_of_what_is_new_and_keeps_all_other_marks(tmp_path):
    """A library wrote for the owner alone; a folder's mark that its files belong to its group is no
    permission."""
    with whole_folder(tmp_path / "made") as fresh:
        (fresh / "inner").mkdir()
        (fresh / "file").write_text("x")
        (fresh / "file").chmod(0o600)
        (fresh / "inner").chmod(0o2700)
    plain = tmp_path / "plain"
    plain.mkdir()
    allowed = plain.stat().st_mode & 0o777
    assert (tmp_path / "made" / "file").stat().st_mode & 0o777 == allowed & 0o666
    assert (tmp_path / "made" / "inner").stat().st_mode & 0o7777 == 0o2000 | allowed
