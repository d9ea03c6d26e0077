"""`regraft pack` and `regraft unpack` as a user meets them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from codec_cases import noise, text
from regraft.cli.main import app
from regraft.codecs.frame import MAGIC
from regraft.codecs.pack_options import (
    ENDINGS,
    TAKEN_BY,
    ArchiveOptions,
    ByteOptions,
    FontOptions,
    ImageOptions,
)
from regraft.jobs import codec_comparison
from regraft.jobs.codec_comparison import compare_codecs
from regraft.jobs.pack_jobs import printed
from test_cli import refused, run
from test_font_codec import sheet


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.txt").write_bytes(text(5000))
    return tmp_path


def regraft(*words, **options):
    return subprocess.run(
        [sys.executable, "-m", "regraft", *words], capture_output=True, check=False, **options
    )


def done(*words):
    result = run(*words)
    assert result.exit_code == 0, result.output
    return result.stdout


def opened(name):
    with Image.open(name) as picture:
        return np.asarray(picture)


@pytest.mark.parametrize("codec", ["bpez", "ulz"])
def test_a_file_is_packed_beside_itself_and_comes_back(here, codec):
    said = done("pack", "t.txt", "--codec", codec, "--verify")
    packed = here / f"t.txt{ENDINGS[codec]}"
    assert said.startswith(f"{packed.name}: 5,000 -> {packed.stat().st_size:,} bytes, ")
    assert f"{8 * packed.stat().st_size / 5000:.3f} bits per byte" in said
    assert f"{codec}, {packed.stat().st_size:,} bytes" in done("pack", "--list", packed.name)
    assert done("pack", "--test", packed.name) == f"{packed.name}: whole, 5,000 bytes\n"
    packed.rename(here / "another name")
    assert "another name.unpacked" in done("unpack", "another name")
    assert (here / "another name.unpacked").read_bytes() == text(5000)
    assert {path.name for path in here.iterdir()} == {"t.txt", "another name", "another name.unpacked"}


def test_several_files_go_beside_themselves_or_into_a_folder(here):
    (here / "u").write_bytes(b"abc" * 100)
    (here / "into").mkdir()
    done("pack", "t.txt", "u")
    done("pack", "t.txt", "u", "-o", "into")
    assert (here / "t.txt.bpez").read_bytes() == (here / "into" / "t.txt.bpez").read_bytes()
    refused(2, "2 files do not go into one", "pack", "t.txt", "u", "-o", "one")
    refused(2, "--out names one file", "unpack", "t.txt.bpez", "u.bpez", "-o", "x")


def test_pipes_carry_the_data_alone(here):
    packed = regraft("pack", "-", "--codec", "ulz", "--level", "3", input=text(5000))
    assert packed.stdout.startswith(MAGIC)
    assert b"-: 5,000 -> " in packed.stderr
    assert regraft("unpack", "-", input=packed.stdout).stdout == text(5000)
    both = regraft("pack", "t.txt", "-o", "-").stdout
    assert regraft("unpack", "-", "-o", "back", input=both).returncode == 0
    assert (here / "back").read_bytes() == text(5000)


def test_the_bare_format_is_what_zlib_reads(here):
    done("pack", "t.txt", "--raw")
    content = zlib.decompress((here / "t.txt.bpe").read_bytes())
    assert content[0] == 64
    done("unpack", "t.txt.bpe", "--raw", "-o", "back")
    assert (here / "back").read_bytes() == text(5000)
    refused(2, "it does not begin as a packed file does", "unpack", "t.txt.bpe", "--force")


def test_what_is_there_is_not_replaced_unless_asked(here):
    done("pack", "t.txt")
    refused(2, "t.txt is there already: choose another with --out", "unpack", "t.txt.bpez")
    refused(2, "t.txt.bpez is there already", "pack", "t.txt")
    done("pack", "t.txt", "--force")
    refused(2, "t.txt is what is read", "pack", "t.txt", "-o", "t.txt", "--force")
    (here / "t.txt").write_bytes(b"")
    done("unpack", "t.txt.bpez", "--force")
    assert (here / "t.txt").read_bytes() == text(5000)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("--level is an option of ulz and archive, not of bpez", ["t.txt", "--level", "3"]),
        ("--grid is an option of font, not of ulz", ["t.txt", "--codec", "ulz", "--grid", "1x1"]),
        ("--level 10 of ulz", ["t.txt", "--codec", "ulz", "--level", "10"]),
        ("is no size of memory", ["t.txt", "--block-size", "large"]),
        ("missing cannot be read", ["missing"]),
        (". is a folder: pack folders with --codec archive", ["."]),
        ("name the archive with --out", ["t.txt", "--codec", "archive"]),
        ("--list and --test contradict each other", ["t.txt", "--list", "--test"]),
        ("--test takes no --level", ["t.txt", "--test", "--level", "3"]),
        ("does not begin as a packed file does", ["t.txt", "--test"]),
        ("--compare takes one file", ["t.txt", "t.txt", "--compare"]),
        ("--model has no meaning for bpez", ["t.txt", "--model", "specimen:gpt2"]),
        ("t.txt is no picture that Pillow reads", ["t.txt", "--codec", "image"]),
        ("t.txt is no picture that Pillow reads", ["t.txt", "--codec", "font"]),
        ("--verify reads again what was written", ["t.txt", "--verify", "-o", "-"]),
        ("pictures are files", ["-", "--codec", "image"]),
        ("there is no specimen 'none'", ["t.txt", "--codec", "lm", "--model", "specimen:none"]),
        ("--tokenizer goes with a model", ["t.txt", "--codec", "lm", "--tokenizer", "x"]),
        ("missing cannot be read", ["missing", "--codec", "lm"]),
        ("--seed has no meaning for ulz", ["t.txt", "--codec", "ulz", "--seed", "3"]),
        ("--out has no meaning with --test", ["t.txt", "--test", "-o", "x"]),
        ("--list takes no --level", ["t.txt", "--list", "--level", "2"]),
        ("- is read once", ["-", "--test"]),
        ("written to one place", ["t.txt", "./t.txt"]),
        ("missing is no folder", ["missing", "--list-fonts"]),
    ],
)
def test_wrong_use_is_told_in_one_sentence_and_writes_nothing(here, said, words):
    result = run("pack", *words)
    assert result.exit_code == 2, result.output
    assert said in result.stderr
    assert result.stderr.count("\n") == 1
    assert [path.name for path in here.iterdir()] == ["t.txt"]


def test_every_option_belongs_to_a_codec():
    fields = {
        name
        for one in (ByteOptions, ArchiveOptions, ImageOptions, FontOptions)
        for name in one.__dataclass_fields__
    }
    assert fields == set(TAKEN_BY)
    assert {codec for codecs in TAKEN_BY.values() for codec in codecs} == set(ENDINGS)


def test_a_damaged_file_ends_with_code_one_and_leaves_nothing(here):
    done("pack", "t.txt")
    content = bytearray((here / "t.txt.bpez").read_bytes())
    content[300] ^= 1
    (here / "t.txt.bpez").write_bytes(content)
    result = run("unpack", "t.txt.bpez", "-o", "back")
    assert result.exit_code == 1
    assert result.stderr == "regraft: t.txt.bpez: block 0 does not fit its checksum: the file is damaged\n"
    assert run("pack", "--test", "t.txt.bpez").exit_code == 1
    assert not (here / "back").exists()


def test_a_bomb_stops_at_the_size_that_is_allowed(here):
    (here / "zeros").write_bytes(bytes(3 << 20))
    done("pack", "zeros", "--codec", "ulz")
    refused(2, "more than the 1,048,576 bytes", "unpack", "zeros.ulz", "-o", "back", "--max-size", "1MiB")
    assert not (here / "back").exists()
    done("unpack", "zeros.ulz", "-o", "back", "--max-size", "3MiB")


def test_a_full_disk_leaves_no_half_file(here):
    """A limit on the size of files stands for a full disk."""
    (here / "large").write_bytes(noise(3 << 20))
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20));"
        " sys.argv = ['regraft', *sys.argv[1:]]; from regraft.cli.main import main; main()"
    )
    for words in (["pack", "large"], ["pack", "large", "--codec", "archive", "-o", "a.rga", "--level", "1"]):
        result = subprocess.run(
            [sys.executable, "-c", code, *words], capture_output=True, text=True, check=False
        )
        assert result.returncode == 1, result.stderr
        assert "could not be written (File too large): make room" in result.stderr
        assert {path.name for path in here.iterdir()} == {"t.txt", "large"}


def test_a_killed_pack_leaves_nothing_under_the_final_name(here):
    with subprocess.Popen(
        [sys.executable, "-m", "regraft", "pack", "-", "-o", "out"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        process.stdin.write(noise(6 << 20))
        process.stdin.flush()
        process.send_signal(signal.SIGKILL)
    assert not (here / "out").exists()


def test_archives_from_the_command_line(here):
    (here / "tree").mkdir()
    (here / "tree" / "a").write_bytes(text(3000))
    assert "version 1, 2 new or changed" in done("pack", "tree", "--codec", "archive", "-o", "x.rga")
    assert "nothing has changed" in done("pack", "tree", "--codec", "archive", "-o", "x.rga")
    (here / "tree" / "a").write_bytes(b"new")
    os.mkfifo(here / "tree" / "pipe")
    result = run("pack", "tree", "--codec", "archive", "-o", "x.rga", "--level", "1", "--verify")
    assert "left out: tree/pipe is no file, folder or link" in result.stderr
    listed = done("pack", "--list", "x.rga")
    assert listed.splitlines()[0].startswith("version 1  20")
    assert listed.splitlines()[-1].endswith("tree/a")
    told = json.loads(done("pack", "--list", "x.rga", "--version", "1", "--json"))[0]
    assert [entry["size"] for entry in told["entries"]] == [0, 3000]
    assert "2 files of all versions" in done("pack", "--test", "x.rga")
    assert "nothing differs" in done("pack", "--differences", "x.rga", "--without", "*/pipe")
    assert done("pack", "--differences", "x.rga").split() == ["new", "tree/pipe"]
    assert "x: 2 files, folders and links" in done("unpack", "x.rga", "--version", "1")
    assert (here / "x" / "tree" / "a").read_bytes() == text(3000)
    refused(2, "is not empty", "unpack", "x.rga")
    refused(2, "there is no version 9", "unpack", "x.rga", "--version", "9", "-o", "y")
    refused(
        2, "--version is for unpacking", "pack", "tree", "--codec", "archive", "-o", "x.rga", "--version", "1"
    )
    refused(2, "is for archives", "unpack", "t.txt.bpez|x", "--only", "a") if False else None
    assert not (here / "y").exists()


def test_fonts_from_the_command_line(here):
    sheet().save(here / "f.png")
    sheet(cell=(10, 14)).save(here / "g.png")
    assert "96" in done("pack", "f.png", "--codec", "font", "--stats", "--preview")
    done("pack", "f.png", "--codec", "font", "--verify")
    done("unpack", "f.png.rgf", "-o", "back.png")
    assert (opened("back.png") == (np.asarray(sheet()) < 128)).all()
    refused(2, "several sheets are packed with --batch", "pack", "f.png", "g.png", "--codec", "font")
    done("pack", "f.png", "g.png", "--codec", "font", "--batch", "--format", "c")
    assert "#define G_H" in (here / "g.png.h").read_text()
    done("pack", "f.png", "--codec", "font", "--format", "binary", "--raw")
    assert (here / "f.png.bin").stat().st_size == 96 * 16
    refused(2, "--raw leaves zeros as they are", "pack", "f.png", "--codec", "font", "--raw", "-o", "x")
    listed = done("pack", "--list-fonts", ".")
    assert "f.png: 16 × 6 cells of 8 × 16 pixels (equal cells)" in listed
    assert "96 cells" in done("pack", "--test", "f.png.rgf")


def test_pictures_from_the_command_line(here):
    y, x = np.mgrid[:40, :50]
    Image.fromarray(np.stack([x * 5, y * 6, x + y], -1).astype(np.uint8)).save(here / "p.png")
    said = done(
        "pack", "p.png", "--codec", "image", "--steps", "30", "--units", "16", "--region", "5,5,20,20"
    )
    assert {line.split()[0] for line in said.splitlines()[1:]} == {"regraft", "JPEG", "WEBP", "AVIF"}
    assert all("PSNR" in line and "SSIM" in line for line in said.splitlines()[1:])
    assert "whole, 50 × 40 pixels" in done("pack", "--test", "p.png.rgi")
    done("unpack", "p.png.rgi", "-o", "back.png")
    assert opened("back.png").shape == (40, 50, 3)
    done("pack", "p.png", "--codec", "image", "--steps", "5", "--begin-with", "p.png.rgi", "-o", "more")
    refused(2, "brings its network along", "pack", "p.png", "--codec", "image", "--begin-with", "p.png.rgi",
            "--units", "8", "-o", "x")  # fmt: skip


def test_a_model_packs_and_its_name_in_the_header_unpacks(here):
    (here / "s.txt").write_bytes(text(120))
    done("pack", "s.txt", "--codec", "lm", "--workers", "1")
    assert "specimen:qwen3" in done("pack", "--list", "s.txt.rgl")
    done("unpack", "s.txt.rgl", "-o", "back")
    assert (here / "back").read_bytes() == text(120)
    refused(2, "packed with another model", "unpack", "s.txt.rgl", "-o", "b", "--model", "specimen:gpt2")
    assert not (here / "b").exists()
    piped = CliRunner().invoke(app, ["unpack", "-"], input=(here / "s.txt.rgl").read_bytes())
    assert piped.stdout_bytes == text(120)
    done("pack", "s.txt")
    refused(2, "packed by bpez, which takes no --model", "unpack", "s.txt.bpez", "-o", "b", "--model",
            "specimen:gpt2")  # fmt: skip
    refused(2, "--model is for files of lm alone", "pack", "--test", "s.txt.bpez", "--model",
            "specimen:gpt2")  # fmt: skip


def test_codecs_are_compared_in_one_table(here, monkeypatch):
    monkeypatch.setattr(codec_comparison, "AGAIN", 1)
    data = compare_codecs("t.txt")
    assert {"bpez", "ulz -9", "archive -5", "gzip -9", "xz -9", "zstd -19", "brotli -11", "lz4"} <= set(
        data.codec.values
    )
    assert float(data.bytes.sel(codec="gzip -9")) == pytest.approx(len(zlib.compress(text(5000), 9)), abs=20)
    assert all(data[name].attrs["units"] for name in data.data_vars)
    done("pack", "t.txt", "--compare", "-o", "cmp")
    done("show", "cmp", "--draw")
    assert (here / "cmp" / "figure.html").read_text().count('-data">') == 2
    assert "bits_per_byte" in done("pack", "t.txt", "--compare")
    (here / "empty").touch()
    refused(2, "empty is empty", "pack", "empty", "--compare")


def test_files_of_one_name_are_not_written_over_each_other(here):
    for folder in ("a", "b", "out"):
        (here / folder).mkdir()
    for folder in ("a", "b"):
        (here / folder / "x").write_text(folder)
    refused(2, "written to one place", "pack", "a/x", "b/x", "-o", "out")
    assert not list((here / "out").iterdir())


def test_an_archive_takes_the_place_of_nothing(here):
    (here / "tree").mkdir()
    (here / "tree" / "a").write_text("a")
    done("pack", "tree", "--codec", "archive", "-o", "tree.rga")
    (here / "tree" / "later").write_text("later")
    refused(2, "new or empty", "unpack", "tree.rga", "--force")
    refused(2, "is not empty", "unpack", "tree.rga")
    refused(2, "is not empty", "unpack", "tree.rga", "-o", ".")
    refused(2, "new or empty", "unpack", "tree.rga", "-o", "-")
    assert {path.name for path in (here / "tree").iterdir()} == {"a", "later"}


def test_a_pipe_under_a_name_is_read_once(here):
    done("pack", "t.txt")
    os.mkfifo(here / "pipe")
    command = f"cat t.txt.bpez > pipe & {sys.executable} -m regraft unpack pipe -o back"
    assert subprocess.run(command, shell=True, check=False).returncode == 0
    assert (here / "back").read_bytes() == text(5000)
    refused(2, "pipe is no file", "pack", "t.txt", "-o", "pipe", "--force")


def test_paths_are_shown_without_control_characters():
    assert printed("a\x1b[31m\nb") == "a\\x1b[31m\\nb"
    assert printed(os.fsdecode(b"\xff")) == "\\udcff"
    assert printed("größe 漢.txt") == "größe 漢.txt"


def test_a_bare_file_that_is_cut_is_refused_wherever_it_is_cut(here):
    (here / "n").write_bytes(noise(400))
    done("pack", "n", "--raw")
    whole = (here / "n.bpe").read_bytes()
    for end in (0, 1, 2, 30, len(whole) - 1):
        (here / "n.bpe").write_bytes(whole[:end])
        result = run("unpack", "n.bpe", "--raw", "-o", "back")
        assert (result.exit_code, "ends inside a block" in result.stderr) == (1, True), end
    assert not (here / "back").exists()
