"""Archives: versions, what is stored again, what comes back, what a killed add leaves, what is refused."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from codec_cases import noise, text
from regraft.codecs import archive_format
from regraft.codecs.archive import add, opened_archive
from regraft.codecs.archive_format import ArchiveEntry, Version, index_of, read_contents, seal
from regraft.codecs.archive_paths import UnsafePathError, check_paths, selected
from regraft.codecs.archive_reading import Choice, check_archive, differences, extract
from regraft.codecs.chunking import LARGEST, SMALLEST, chunks
from regraft.codecs.frame import DamagedFileError, TooLargeError, header
from regraft.codecs.zpaq_worker import unpacked
from regraft.core.files import RunFolderError


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


def made(path, entries, chunks=()):
    """An archive with any entries, its checksums right."""
    body = b"".join(archive_format.block(archive_format.CHUNKS, len(raw), packed) for raw, packed in chunks)
    sizes = [len(raw) for raw, _ in chunks]
    hashes = ["00" * 20 for _ in chunks]
    body += index_of(Version("2026-01-01T00:00:00+00:00", entries), sizes, hashes, [1] * len(sizes))
    import hashlib

    path.write_bytes(header(3, {}) + body + seal(len(body), hashlib.sha256(body).digest()))
    return path


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ([ArchiveEntry("../out", "file", 0o644, 0)], "leads somewhere else"),
        ([ArchiveEntry("a/../../out", "file", 0o644, 0)], "leads somewhere else"),
        ([ArchiveEntry("/etc/out", "file", 0o644, 0)], "does not begin in the folder"),
        ([ArchiveEntry("C:out", "file", 0o644, 0)], "does not begin in the folder"),
        ([ArchiveEntry("a\\..\\out", "file", 0o644, 0)], "a character that no name may have"),
        ([ArchiveEntry("a//b", "file", 0o644, 0)], "leads somewhere else"),
        ([ArchiveEntry("nul", "file", 0o644, 0)], "the name of a device"),
        ([ArchiveEntry("a/COM1.txt", "file", 0o644, 0)], "the name of a device"),
        ([ArchiveEntry("x" * 300, "file", 0o644, 0)], "a name has more than 255 bytes"),
        ([ArchiveEntry("Read", "file", 0o644, 0), ArchiveEntry("read", "file", 0o644, 0)], "large and small"),
        (
            [ArchiveEntry("\u00e9", "file", 0o644, 0), ArchiveEntry("e\u0301", "file", 0o644, 0)],
            "large and small",
        ),
        (
            [ArchiveEntry("l", "link", 0, 0, target="/etc"), ArchiveEntry("l/out", "file", 0o644, 0)],
            "is no folder|leads out",
        ),
        (
            [ArchiveEntry("f", "file", 0o644, 0), ArchiveEntry("f/out", "file", 0o644, 0)],
            "which is no folder",
        ),
        ([ArchiveEntry("l", "link", 0, 0, target="/etc/passwd")], "leads out of the folder"),
        ([ArchiveEntry("a/l", "link", 0, 0, target="../../out")], "leads out of the folder"),
        ([ArchiveEntry("a/l", "link", 0, 0, target="b/../../..")], "leads out of the folder"),
        (
            [ArchiveEntry("a/l", "link", 0, 0, target="..\\out"), ArchiveEntry("a/l/x", "file", 0, 0)],
            "no folder",
        ),
        ([ArchiveEntry("l", "link", 0, 0, target="")], "leads out of the folder"),
    ],
)
def test_paths_that_lead_elsewhere_are_refused_and_nothing_is_written(tmp_path, entries, said):
    archive = made(tmp_path / "a.rga", [*entries, ArchiveEntry("good", "folder", 0o755, 0)])
    with pytest.raises(UnsafePathError, match=said):
        extract(archive, tmp_path / "inner" / "out", Choice())
    assert [path.name for path in tmp_path.iterdir()] == ["a.rga"]


def test_links_within_the_folder_are_kept(tmp_path):
    check_paths(
        [
            ArchiveEntry("a/b/l", "link", 0, 0, target="../../c"),
            ArchiveEntry("m", "link", 0, 0, target="a/./b"),
        ]
    )
    assert [e.path for e in selected([ArchiveEntry("a/b", "file", 0, 0)], ["a"], [])] == ["a/b"]


def test_no_program_runs_as_somebody_else(tmp_path):
    out = tmp_path / "out"
    extract(made(tmp_path / "a.rga", [ArchiveEntry("d", "folder", 0o6755, 0)]), out, Choice())
    assert (out / "d").stat().st_mode & 0o7777 == 0o755


def test_an_archive_that_claims_too_much_is_refused_before_it_is_unpacked(tmp_path):
    entries = [ArchiveEntry(f"f{n}", "file", 0o644, 0, 1 << 20, "", (0,)) for n in range(100)]
    archive = made(tmp_path / "a.rga", entries, [(bytes(1 << 20), b"never unpacked")])
    with pytest.raises(TooLargeError, match="104,857,600 bytes"):
        extract(archive, tmp_path / "out", Choice(), 100 << 20 - 1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"sizes": [2**63]}, {"sizes": [-1]}, {"blocks": [2]}, {"hashes": "00"}, {"gone": [1]}, {"date": 5},
        {"entries": [{"path": "a", "kind": "file", "chunks": [7]}]}, {"entries": [{"path": "a"}]},
        {"entries": [{"path": "a", "kind": "fifo"}]},
        {"entries": [{"path": "a", "kind": "file", "size": 2**63}]},
        {"entries": [3]}, {"entries": [{"path": 3, "kind": "file"}]}, {"entries": 3}, {"sizes": 3},
    ],
)  # fmt: skip
def test_an_index_that_makes_no_sense_is_refused(tmp_path, change):
    import hashlib

    told = {"date": "2026-01-01", "entries": [], "gone": [], "sizes": [5], "hashes": "00" * 20, "blocks": [1]}
    raw = json.dumps({**told, **change}).encode()
    body = archive_format.block(archive_format.CHUNKS, 5, b"xxxxx")
    body += archive_format.block(archive_format.INDEX, len(raw), zlib.compress(raw))
    archive = tmp_path / "a.rga"
    archive.write_bytes(header(3, {}) + body + seal(len(body), hashlib.sha256(body).digest()))
    with pytest.raises(DamagedFileError, match="damaged"):
        opened_archive(archive)


def test_a_block_that_is_another_than_its_length_or_none_is_refused():
    import zpaq

    packed = zpaq.compress(bytes(1 << 20), level=1, threads=1)
    assert unpacked(packed, 1 << 20) == bytes(1 << 20)
    cut = packed[: len(packed) // 2]
    for stored, raw in ((packed, 1000), (packed, (1 << 20) + 1), (b"no block", 10), (cut, 1 << 20)):
        with pytest.raises(DamagedFileError, match="damaged"):
            unpacked(stored, raw)


def test_what_asks_for_memory_is_stopped_in_a_process_of_its_own():
    """A block of 8 MiB under a limit of addresses that the process itself takes nearly."""
    import zpaq

    packed = zpaq.compress(bytes(8 << 20), level=1, threads=1)
    assert len(unpacked(packed, 8 << 20)) == 8 << 20
    code = (
        "import resource, sys; from pathlib import Path; from regraft.codecs import zpaq_worker as w;"
        " w.MEMORY = int(Path('/proc/self/statm').read_text().split()[0]) * 4096 + (12 << 20);"
        " sys.argv = ['w', str(8 << 20)]; sys.exit(w.main())"
    )
    done = subprocess.run([sys.executable, "-c", code], input=packed, capture_output=True, check=False)
    assert done.returncode
    assert not done.stdout


def test_what_goes_on_for_ever_is_stopped():
    code = "from regraft.codecs import zpaq_worker as w; w.SECONDS = 1; w.limit(0)\nwhile True: pass"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode < 0


def test_what_is_no_archive_is_told(tmp_path):
    (tmp_path / "x").write_bytes(b"plain")
    with pytest.raises(ValueError, match="does not begin as a packed file"):
        opened_archive(tmp_path / "x")
    with pytest.raises(ValueError, match="two of the paths are called"):
        add(tmp_path / "a.rga", [tmp_path / "x", Path(f"{tmp_path}/./x")])
    with pytest.raises(ValueError, match="--level 6"):
        add(tmp_path / "a.rga", [tmp_path / "x"], level=6)
    assert not (tmp_path / "a.rga").exists()


def test_contents_are_read_without_unpacking(tree, tmp_path, monkeypatch):
    archive = tmp_path / "a.rga"
    add(archive, [tree])
    monkeypatch.setattr("regraft.codecs.archive_reading.unpacked", None)
    with archive.open("rb") as file:
        contents = read_contents(file)
    assert len(contents.at(1)) == 10
