"""Places on a disk at the edge of what can be written: one byte more, one right less, one error of the system
further."""

from __future__ import annotations

import errno
import os
import stat

import pytest

from regraft.core.files import (
    NotWrittenError,
    RunFolderError,
    check_place,
    place_of,
    reading,
    still_told,
    whole_folder,
    writing,
)


def written(out):
    with whole_folder(out) as fresh:
        (fresh / "new").write_text("new")


def test_a_name_of_255_bytes_is_written_and_one_of_256_refused_wherever_it_stands(tmp_path):
    longest = tmp_path / ("é" * 127 + "n")
    check_place(longest, "--out")
    check_place(longest / "below", "--out")
    written(longest)
    assert longest.is_dir()
    for out in (tmp_path / ("é" * 128), tmp_path / ("n" * 256) / "below"):
        with pytest.raises(RunFolderError, match=r"more than 255 bytes\): choose another with --out"):
            check_place(out, "--out")


def test_a_path_that_the_system_finds_too_long_is_a_sentence(tmp_path):
    """Every name is short enough, all together are not."""
    out = tmp_path.joinpath(*["n" * 200] * 25)
    with pytest.raises(
        RunFolderError, match=rf"\({os.strerror(errno.ENAMETOOLONG)}\): choose another with --out"
    ):
        check_place(out, "--out")


@pytest.mark.parametrize("right", [os.R_OK, os.W_OK, os.X_OK])
def test_a_folder_that_is_there_must_be_open_in_every_way_and_one_above_need_not_be_listed(
    tmp_path, monkeypatch, right
):
    monkeypatch.setattr(os, "access", lambda path, how: not how & right)
    with pytest.raises(RunFolderError, match="is closed to you"):
        check_place(tmp_path, "--out")
    if right == os.R_OK:
        check_place(tmp_path / "new", "--out")
    else:
        with pytest.raises(RunFolderError, match="is closed to you"):
            check_place(tmp_path / "new", "--out")


@pytest.mark.parametrize("right", [os.W_OK, os.X_OK])
def test_a_folder_is_filled_where_its_parent_lacks_either_right(tmp_path, monkeypatch, right):
    out = tmp_path / "own"
    out.mkdir()
    monkeypatch.setattr(os, "access", lambda path, how: not how & right)
    with whole_folder(out) as fresh:
        assert fresh.parent == out


def test_a_folder_around_the_one_that_one_stands_in_stays(tmp_path, monkeypatch):
    out = tmp_path / "out"
    (out / "deep").mkdir(parents=True)
    monkeypatch.chdir(out / "deep")
    kept = out.stat().st_ino
    with whole_folder(out) as fresh:
        assert fresh.parent == out
    assert out.stat().st_ino == kept
    monkeypatch.chdir(tmp_path)
    (out / "below").mkdir()
    with whole_folder(out / "below") as fresh:
        assert fresh.parent == out, "one below is exchanged in one step"


def test_a_link_that_leads_to_a_link_is_followed_to_the_end(tmp_path):
    (tmp_path / "b").symlink_to(tmp_path / "c")
    (tmp_path / "a").symlink_to(tmp_path / "b")
    assert place_of(tmp_path / "a") == tmp_path / "c"
    written(tmp_path / "a")
    assert (tmp_path / "c" / "new").read_text() == "new"
    assert (tmp_path / "a").is_symlink()
    assert (tmp_path / "b").is_symlink()


ROOM, RIGHT, OTHER = (
    "make room, or choose another place",
    "choose a place that you may write to",
    "choose another place",
)


@pytest.mark.parametrize(
    ("number", "hint"),
    [
        (errno.ENOSPC, ROOM), (errno.EDQUOT, ROOM), (errno.EFBIG, ROOM), (errno.EROFS, RIGHT),
        (errno.EACCES, RIGHT),
        (errno.EPERM, RIGHT), (errno.EIO, OTHER), (errno.ENAMETOOLONG, OTHER), (errno.EBUSY, OTHER),
        (errno.EXDEV, OTHER),
    ],
)  # fmt: skip
def test_every_refusal_of_the_system_has_its_remedy(tmp_path, number, hint):
    with pytest.raises(NotWrittenError) as told, writing(tmp_path):
        raise OSError(number, "refused")
    assert str(told.value) == f"{tmp_path} could not be written ({os.strerror(number)}): {hint}"


def test_the_innermost_path_is_the_one_that_is_told(tmp_path):
    with (
        pytest.raises(NotWrittenError, match=r"^inner could not") as told,
        writing("outer"),
        writing("inner"),
    ):
        raise OSError(errno.ENOSPC, "full")
    assert "outer" not in str(told.value)
    with pytest.raises(ValueError, match="cannot be read"), reading("file", "mend it"):
        raise OSError(errno.EIO, "broken")


def test_only_what_was_measured_is_told():
    told = []
    for result in (None, "measured"):
        error = NotWrittenError("full")
        error.result = result
        with pytest.raises(NotWrittenError), still_told(told.append):
            raise error
    assert told == ["measured"]


def test_bits_beyond_the_permissions_stay(tmp_path):
    with whole_folder(tmp_path / "out") as fresh:
        (fresh / "shared").mkdir()
        (fresh / "shared").chmod(0o2700)
    allowed = stat.S_IMODE((tmp_path / "out").stat().st_mode) & 0o777
    assert stat.S_IMODE((tmp_path / "out" / "shared").stat().st_mode) == 0o2000 | allowed
