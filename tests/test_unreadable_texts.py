"""Texts that cannot be read, or begin with a mark."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from regraft.core.files import (
    UnreadableError,
    read_text,
)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "cannot be read (No such file or directory): write it"),
        ("folder", "cannot be read (Is a directory): write it"),
        (b"", "is empty: write it"),
        (b" \n", "is empty: write it"),
        ("caf\u00e9".encode("latin-1"), "is no text in UTF-8: write it"),
        ("word".encode("utf-16"), "is no text in UTF-8: write it"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path, content, why):
    file = tmp_path / "file"
    if content == "folder":
        file.mkdir()
    elif content is not None:
        file.write_bytes(content)
    with pytest.raises(UnreadableError) as told:
        read_text(file, "write it")
    assert str(told.value) == f"{file} {why}"


def test_a_text_may_begin_with_a_mark_and_stand_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "file").write_bytes("\ufeffé\n".encode())
    assert read_text("~/file", "") == "é\n"
    monkeypatch.setattr(
        Path,
        "read_text",
        lambda self, encoding: (_ for _ in ()).throw(PermissionError(errno.EACCES, "closed")),
    )
    with pytest.raises(UnreadableError, match=r"cannot be read \(closed\): mend it"):
        read_text("~/file", "mend it")
