"""Archives: versions, what is stored again, what comes back, what a killed add leaves."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import numpy as np
import pytest

from codec_cases import noise, text
from regraft.codecs import archive_format
from regraft.codecs.archive import add, method_of, opened_archive
from regraft.codecs.archive_format import ArchiveEntry, Version, read_contents
from regraft.codecs.archive_reading import Choice, check_archive, differences, extract
from regraft.codecs.chunking import LARGEST, SMALLEST, chunks, kind_of
from regraft.codecs.frame import DamagedFileError
from regraft.core.files import RunFolderError, UnreadableError


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "tree"
    (root / "below" / "empty").mkdir(parents=True)
    (root / "text.txt").write_bytes(text(300_000))
    (root / "nothing").touch()
    (root / "noise").write_bytes(noise(50_000))
    (root / "below" / "größe 漢字.txt").write_text("short")
    (root / "below" / "up").symlink_to("../text.txt")
    (root / "below" / os.fsdecode(b"no utf-8 \xff")).write_text("odd")
    (root / "run").write_text("#!/bin/sh\n")
    (root / "run").chmod(0o750)
    os.utime(root / "noise", ns=(10**18 + 123_456_789, 10**18 + 123_456_789))
    return root


def snapshot(root):
    """Everything that an archive keeps of a tree."""
    found = {}
    for path in [root, *root.rglob("*")]:
        told = path.lstat()
        link = path.is_symlink()
        content = os.readlink(path) if link else path.read_bytes() if path.is_file() else None
        found[os.fsencode(path.relative_to(root))] = content, link or told.st_mode, told.st_mtime_ns
    return found


def test_a_tree_comes_back_with_modes_times_and_links(tree, tmp_path):
    archive, before = tmp_path / "a.rga", snapshot(tree)
    done = add(archive, [tree])
    assert (done.version, done.entries, done.gone) == (1, 10, 0)
    extract(archive, tmp_path / "out", Choice())
    assert snapshot(tmp_path / "out" / "tree") == before == snapshot(tree)
    assert check_archive(archive) == (6, 300_000 + 50_000 + 5 + 3 + 10)


def test_a_second_add_stores_what_changed(tree, tmp_path):
    """Bytes put into the middle of a file change one chunk or two; what did not change is not looked at."""
    archive = tmp_path / "a.rga"
    add(archive, [tree], level=1)
    first, before = archive.stat().st_size, snapshot(tree)
    changed = text(300_000)[:150_000] + noise(100_000, 9) + text(300_000)[150_000:]
    (tree / "text.txt").write_bytes(changed)
    (tree / "noise").unlink()
    done = add(archive, [tree], level=1)
    assert (done.version, done.gone) == (2, 1)
    assert {"tree/text.txt"} == {
        e.path for e in opened_archive(archive).versions[1].entries if e.kind == "file"
    }
    assert done.stored == archive.stat().st_size - first - 53
    assert 100_000 < done.stored < 1.2 * 100_000
    assert add(archive, [tree]).entries == 0
    assert archive.stat().st_size == first + done.stored + 53
    extract(archive, tmp_path / "old", Choice(version=1))
    assert snapshot(tmp_path / "old" / "tree") == before
    extract(archive, tmp_path / "new", Choice())
    assert (tmp_path / "new" / "tree" / "text.txt").read_bytes() == changed
    assert not (tmp_path / "new" / "tree" / "noise").exists()


def test_an_insertion_moves_no_later_cut():
    whole = noise(600_000)
    before, after = (
        [*chunks(io.BytesIO(data))] for data in (whole, whole[:1000] + b"inserted" + whole[1000:])
    )
    assert b"".join(before) == whole
    assert before[-5:] == after[-5:]
    assert len(set(after) - set(before)) <= 2
    sizes = [len(chunk) for chunk in before[:-1]]
    assert SMALLEST < min(sizes) <= max(sizes) <= LARGEST
    assert [len(chunk) for chunk in chunks(io.BytesIO(bytes(300_000)))] == [
        LARGEST,
        LARGEST,
        300_000 - 2 * LARGEST,
    ]


def test_entries_are_chosen_by_pattern_version_and_date(tree, tmp_path):
    archive = tmp_path / "a.rga"
    add(archive, [tree], without=["*/noise"])
    contents = opened_archive(archive)
    paths = [e.path for e in Choice().of(contents)]
    assert "tree/noise" not in paths
    assert [e.path for e in Choice(only=("tree/below/empty",)).of(contents)] == ["tree/below/empty"]
    assert len(Choice(only=("tree/below",)).of(contents)) == 5
    assert len(Choice(only=("tree/below",), without=("*.txt",)).of(contents)) == 4
    assert len(Choice(date="2999-01-01").of(contents)) == len(paths)
    for choice, said in (
        (Choice(version=2), "there is no version 2: the archive has 1"),
        (Choice(date="2001-01-01"), "no version up to 2001-01-01"),
        (Choice(date="soon"), "'soon' is no date"),
        (Choice(only=("*.png",)), "nothing in the archive fits '\\*.png'"),
    ):
        with pytest.raises(ValueError, match=said):
            choice.of(contents)


def test_dates_choose_the_last_version_up_to_them():
    versions = [
        Version(f"2026-01-0{day}T12:00:00+00:00", [ArchiveEntry(f"v{day}", "file", 0, 0)])
        for day in (1, 2, 3)
    ]
    contents = archive_format.Contents(versions)
    for date, count in {"2026-01-02": 2, "2026-01-02T11:59:59": 1, "2026-01-03T14:00:00+03:00": 2}.items():
        assert len(Choice(date=date).of(contents)) == count


def test_differences_from_the_disk_are_told(tree, tmp_path):
    archive = tmp_path / "a.rga"
    add(archive, [tree])
    assert list(differences(archive, tmp_path, Choice())) == []
    (tree / "nothing").write_text("some")
    (tree / "run").chmod(0o700)
    (tree / "noise").unlink()
    (tree / "below" / "up").unlink()
    (tree / "below" / "up").symlink_to("run")
    (tree / "more").touch()
    (tree / "text.txt").unlink()
    (tree / "text.txt").mkdir()
    found = {path: what for what, path in differences(archive, tmp_path, Choice()) if what != "time"}
    assert found == {
        "tree/nothing": "content", "tree/run": "mode", "tree/noise": "missing", "tree/below/up": "target",
        "tree/more": "new", "tree/text.txt": "kind",
    }  # fmt: skip


def test_whatever_a_killed_add_leaves_the_last_whole_version_stands(tree, tmp_path):
    archive = tmp_path / "a.rga"
    add(archive, [tree], level=1)
    first = archive.read_bytes()
    (tree / "more").write_bytes(noise(30_000, 4))
    add(archive, [tree], level=1)
    second = archive.read_bytes()
    assert second.startswith(first)
    for end in range(len(first) + 1, len(second), 997):
        archive.write_bytes(second[:end])
        contents = opened_archive(archive)
        assert (len(contents.versions), contents.left_over) == (1, end - len(first))
    add(archive, [tree], level=1)
    assert check_archive(archive)[0] == 7
    assert len(opened_archive(archive).versions) == 2


def test_an_add_that_fails_leaves_the_archive_as_it_was(tree, tmp_path, monkeypatch):
    archive = tmp_path / "a.rga"
    add(archive, [tree], level=1)
    before = archive.read_bytes()
    (tree / "more").write_bytes(noise(30_000, 4))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("regraft.codecs.archive.index_of", full)
    with pytest.raises(OSError, match="make room"):
        add(archive, [tree], level=1)
    assert archive.read_bytes() == before
    with pytest.raises(OSError, match="make room"):
        add(tmp_path / "new.rga", [tree])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.rga", "tree"]


def test_a_link_that_is_named_is_what_it_leads_to(tree, tmp_path):
    (tmp_path / "named").symlink_to(tree)
    add(tmp_path / "a", [tmp_path / "named"], level=1)
    entries = opened_archive(tmp_path / "a").at(1)
    assert entries["named"].kind == "folder"
    assert entries["named/below/up"].kind == "link"
    assert entries["named/run"].size == 10


def test_two_adds_at_a_time_are_refused(tree, tmp_path):
    archive = tmp_path / "a.rga"
    add(archive, [tree], level=1)
    code = (
        "import fcntl, sys, time; f = open(sys.argv[1], 'r+b'); fcntl.flock(f, 2); print(1, flush=True);"
        " time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(archive)], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(RunFolderError, match="another process is using"):
            add(archive, [tree])
        other.kill()


def test_damage_is_noticed_in_every_part(tree, tmp_path):
    """Also where a whole version would still read: its seal is of all bytes."""
    archive = tmp_path / "a.rga"
    (tree / "text.txt").write_bytes(text(3000))
    (tree / "noise").write_bytes(noise(900))
    add(archive, [tree], level=1)
    whole = archive.read_bytes()
    for at in range(0, len(whole), 41):
        changed = bytearray(whole)
        changed[at] ^= 4
        archive.write_bytes(changed)
        found: object = None
        try:
            check_archive(archive)
            found = opened_archive(archive)
        except (DamagedFileError, ValueError) as error:
            found = error
        assert isinstance(found, Exception) or found.left_over, at


def test_contents_are_read_without_unpacking(tree, tmp_path, monkeypatch):
    archive = tmp_path / "a.rga"
    add(archive, [tree])
    monkeypatch.setattr("regraft.codecs.archive_reading.unpacked", None)
    with archive.open("rb") as file:
        contents = read_contents(file)
    assert len(contents.at(1)) == 10


def test_blocks_are_told_apart_by_what_they_hold():
    moves = b"".join(bytes([value, 139]) for value in range(200, 210)) * 300
    found = {}
    for name, data in {
        "text": text(20_000),
        "noise": noise(20_000),
        "code": moves,
        "zeros": bytes(900),
    }.items():
        share, is_text, is_code = kind_of(np.frombuffer(data, np.uint8))
        found[name] = bool(is_text), bool(is_code)
        last, hits, before = {}, 0, 0
        for value in data:
            hits += last.get(before, 0) == value
            last[before] = before = value
        assert share == hits * 255 // len(data), name
    assert found == {
        "text": (True, False), "noise": (False, False), "code": (False, True), "zeros": (False, False),
    }  # fmt: skip
    assert method_of(bytes(900), 3) == "36,255,0"
    assert method_of(noise(20_000), 1).startswith("14,")


@pytest.mark.parametrize("level", [1, 3])
def test_an_archive_is_as_small_as_zpaq_makes_its_blocks(tmp_path, level):
    import zpaq

    (tmp_path / "t").write_bytes(text(400_000))
    add(tmp_path / "a", [tmp_path / "t"], level)
    best = min(
        len(zpaq.compress(text(400_000), method=f"{level}6,{share},{kind}", threads=1))
        for share in (50, 150, 250)
        for kind in (0, 1)
    )
    assert (tmp_path / "a").stat().st_size < 1.02 * best + 1500


def test_a_folder_that_cannot_be_read_is_told_and_not_recorded_as_gone(tree, tmp_path, monkeypatch):
    archive = tmp_path / "a.rga"
    add(archive, [tree], level=1)
    before = archive.read_bytes()
    own = os.scandir

    def closed(path):
        if str(path).endswith("below"):
            raise PermissionError(13, "Permission denied", str(path))
        return own(path)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(UnreadableError, match="below cannot be read"):
        add(archive, [tree], level=1)
    assert archive.read_bytes() == before


def test_an_archive_that_another_made_meanwhile_is_not_replaced(tree, tmp_path, monkeypatch):
    from regraft.codecs import archive as module

    own = module._version

    def slow(*args):
        monkeypatch.setattr(module, "_version", own)
        add(tmp_path / "a.rga", [tree / "run"], level=1)
        return own(*args)

    monkeypatch.setattr(module, "_version", slow)
    with pytest.raises(RunFolderError, match="another process has made"):
        add(tmp_path / "a.rga", [tree], level=1)
    assert len(opened_archive(tmp_path / "a.rga").at(1)) == 1


def test_zeros_behind_the_last_seal_are_of_an_add_that_did_not_end(tree, tmp_path):
    """What a loss of power leaves; anything else behind a seal is damage."""
    archive = tmp_path / "a.rga"
    add(archive, [tree], level=1)
    whole = archive.read_bytes()
    archive.write_bytes(whole + bytes(4096))
    assert opened_archive(archive).left_over == 4096
    assert add(archive, [tree], level=1).entries == 0
    archive.write_bytes(whole + bytes(4096) + b"x")
    with pytest.raises(DamagedFileError, match="no kind that is known"):
        opened_archive(archive)


def test_every_block_is_unpacked_once_whatever_the_order_of_chunks(tmp_path, monkeypatch):
    """A file mixed from three versions, chunk by chunk."""
    from regraft.codecs import archive_reading

    (tmp_path / "t").mkdir()
    parts = [noise(60_000, seed) for seed in range(3)]
    for number, part in enumerate(parts):
        (tmp_path / "t" / str(number)).write_bytes(part)
        add(tmp_path / "a", [tmp_path / "t"], level=1)
    cut = [[*chunks(io.BytesIO(part))] for part in parts]
    mixed = b"".join(chunk for group in zip(*cut, strict=False) for chunk in group)
    (tmp_path / "t" / "mixed").write_bytes(mixed)
    add(tmp_path / "a", [tmp_path / "t"], level=1)
    counted, own = [], archive_reading.unpacked

    def counting(stored, raw):
        counted.append(raw)
        return own(stored, raw)

    monkeypatch.setattr(archive_reading, "unpacked", counting)
    extract(tmp_path / "a", tmp_path / "out", Choice())
    assert (tmp_path / "out" / "t" / "mixed").read_bytes() == mixed
    assert len(counted) == len(opened_archive(tmp_path / "a").blocks)
