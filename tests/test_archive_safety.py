"""Archives of others: paths that lead elsewhere, indexes that make no sense, blocks that ask for too much."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from codec_cases import text
from regraft.codecs import archive_format
from regraft.codecs.archive import add, opened_archive
from regraft.codecs.archive_format import ArchiveEntry, Version, index_of, seal
from regraft.codecs.archive_paths import UnsafePathError, check_paths, selected
from regraft.codecs.archive_reading import Choice, check_archive, extract
from regraft.codecs.frame import DamagedFileError, TooLargeError, header
from regraft.codecs.zpaq_worker import unpacked


def made(path, entries, chunks=()):
    """An archive with any entries, its checksums right."""
    body = b"".join(archive_format.block(archive_format.CHUNKS, len(raw), packed) for raw, packed in chunks)
    sizes = [len(raw) for raw, _ in chunks]
    hashes = ["00" * 20 for _ in chunks]
    body += b"".join(index_of(Version("2026-01-01T00:00:00+00:00", entries), sizes, hashes, [1] * len(sizes)))
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
        {"entries": [{"path": "a", "kind": "file", "chunks": [0, 1, 0]}]},
        {"entries": [{"path": "a", "kind": "file", "chunks": [0, 2**40]}]},
        {"entries": [{"path": "\ud800", "kind": "folder"}]},
        {"entries": [{"path": "a", "kind": "file", "time": 10**30}]},
        {"entries": [{"path": "a", "kind": "file", "mode": -1}]},
        {"entries": [{"path": "a", "kind": "file", "mode": 2**20}]},
        {"entries": [3]}, {"entries": [{"path": 3, "kind": "file"}]}, {"entries": 3}, {"sizes": 3},
    ],
)  # fmt: skip
def test_an_index_that_makes_no_sense_is_refused(tmp_path, change):
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


def test_what_could_not_be_unpacked_is_not_added(tmp_path):
    """Else an archive would say that it is whole, and hold what never comes out."""
    (tmp_path / "t").mkdir()
    for name, said in (("aux.c", "name of a device"), ("a\\b", "no name may have"), ("Makefile", "")):
        (tmp_path / "t" / name).touch()
        if said:
            with pytest.raises(UnsafePathError, match=said):
                add(tmp_path / "a", [tmp_path / "t"])
            assert (
                add(tmp_path / f"without {len(name)}", [tmp_path / "t"], without=[f"*/{name}"]).version == 1
            )
            (tmp_path / "t" / name).unlink()
    (tmp_path / "t" / "makefile").touch()
    with pytest.raises(UnsafePathError, match="large and small"):
        add(tmp_path / "a", [tmp_path / "t"])
    (tmp_path / "t" / "makefile").unlink()
    (tmp_path / "t" / "out").symlink_to("/etc")
    with pytest.raises(UnsafePathError, match="leads out of the folder"):
        add(tmp_path / "a", [tmp_path / "t"])
    assert not (tmp_path / "a").exists()


def test_folders_that_differ_in_case_alone_are_refused(tmp_path):
    archive = made(
        tmp_path / "a", [ArchiveEntry("A/x", "file", 0o644, 0), ArchiveEntry("a/y", "file", 0o644, 0)]
    )
    with pytest.raises(UnsafePathError, match="'A' and 'a', which are one"):
        extract(archive, tmp_path / "out", Choice())


def test_nothing_of_the_folder_one_stands_in_is_run(tmp_path, monkeypatch):
    (tmp_path / "zpaq.py").write_text("open('ran', 'w').close()")
    (tmp_path / "t").write_bytes(text(900))
    add(tmp_path / "a", [tmp_path / "t"], level=1)
    monkeypatch.chdir(tmp_path)
    assert check_archive(tmp_path / "a") == (1, 900)
    assert not (tmp_path / "ran").exists()


def test_an_index_larger_than_a_file_of_this_size_has_is_refused(tmp_path):
    raw = b" " * (8 << 20)
    body = archive_format.block(archive_format.INDEX, len(raw), zlib.compress(raw))
    archive = tmp_path / "a.rga"
    archive.write_bytes(header(3, {}) + body + seal(len(body), hashlib.sha256(body).digest()))
    with pytest.raises(DamagedFileError, match="larger than a file of this size has"):
        opened_archive(archive)


def test_indexes_of_several_blocks_are_put_together(tmp_path, monkeypatch):
    monkeypatch.setattr(archive_format, "LARGEST_BLOCK", 300)
    version = Version(
        "2026-01-01T00:00:00+00:00", [ArchiveEntry(f"f{n}", "folder", 0o755, n) for n in range(40)]
    )
    blocks = list(index_of(version, [], [], []))
    monkeypatch.undo()
    assert len(blocks) > 5
    body = b"".join(blocks)
    (tmp_path / "a").write_bytes(header(3, {}) + body + seal(len(body), hashlib.sha256(body).digest()))
    assert opened_archive(tmp_path / "a").versions[0].entries == version.entries


@pytest.mark.parametrize(
    ("path", "said"),
    [("/".join(["a"] * 202), "more than 200 folders"), ("/".join(["a" * 200] * 21), "more than 4096 bytes")],
)
def test_paths_are_neither_too_deep_nor_too_long(path, said):
    with pytest.raises(UnsafePathError, match=said):
        check_paths([ArchiveEntry(path, "folder", 0o755, 0)])
    check_paths([ArchiveEntry(path[: len(path) // 2].rstrip("/"), "folder", 0o755, 0)])


def test_one_file_repeats_chunks_no_more_than_it_may(tmp_path, monkeypatch):
    entry = ArchiveEntry("f", "file", 0o644, 0, 5 * 70_000, "", (0,) * 70_000)
    archive = made(tmp_path / "a", [entry], [(b"xxxxx", b"packed")])
    with pytest.raises(DamagedFileError, match="does not tell what an index tells"):
        opened_archive(archive)
    monkeypatch.setattr(archive_format, "MOST_REPEATS", 80_000)
    assert len(opened_archive(archive).at(1)["f"].chunks) == 70_000
