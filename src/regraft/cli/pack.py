"""`regraft pack` and `regraft unpack`: six codecs behind one command; heavy imports wait for a command."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from regraft.cli.errors import errors_in_one_sentence
from regraft.cli.options import (
    DebugOption,
    JsonOption,
    ModelOption,
    SeedOption,
    TokenizerOption,
    filling,
    open_model,
)
from regraft.codecs.pack_options import ENDINGS, STREAMS, check_taken, given
from regraft.core.files import check_empty, expanded
from regraft.core.strict_json import json_text

FilesArgument = Annotated[list[str], typer.Argument(metavar="FILE", help="Files; - for a pipe.")]
CodecOption = Annotated[
    Literal["bpez", "ulz", "archive", "image", "font", "lm"],
    typer.Option(
        help="bpez (pairs, zlib), ulz (fast), archive (folders), image (lossy), font, lm (a model)."
    ),
]
OutOption = Annotated[str, typer.Option("--out", "-o", help="File or folder to write; - for a pipe.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace what is there.")]
MaxOption = Annotated[str, typer.Option("--max-size", help="Refuse what unpacks to more, such as 100MiB.")]
MODEL_OF_FILE = ""
"""The model that a file's header names."""


@filling(
    bytes_="codecs.pack_options:ByteOptions",
    archive="codecs.pack_options:ArchiveOptions",
    image="codecs.pack_options:ImageOptions",
    font="codecs.pack_options:FontOptions",
)
def pack(
    *,
    files: FilesArgument,
    codec: CodecOption = "bpez",
    out: OutOption = "",
    force: ForceOption = False,
    list_: Annotated[bool, typer.Option("--list", help="What packed files hold.")] = False,
    test: Annotated[bool, typer.Option("--test", help="Unpack packed files to nowhere.")] = False,
    compare: Annotated[
        bool, typer.Option("--compare", help="All codecs and others' on a file; --out DIR keeps it.")
    ] = False,
    differences: Annotated[
        bool, typer.Option("--differences", help="How the disk differs from an archive.")
    ] = False,
    beside: Annotated[str, typer.Option(help="Folder that --differences compares with.")] = ".",
    bytes_: dict[str, Any],
    archive: dict[str, Any],
    image: dict[str, Any],
    font: dict[str, Any],
    model: ModelOption = MODEL_OF_FILE,
    tokenizer: TokenizerOption = "",
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Pack files; list, test and compare packed ones."""
    with errors_in_one_sentence(debug):
        values = {**bytes_, **archive, **image, **font}
        modes = {"--list": list_, "--test": test, "--compare": compare, "--differences": differences}
        chosen = [name for name, on in modes.items() if on]
        if len(chosen) > 1:
            raise ValueError(f"{' and '.join(chosen)} contradict each other: choose one")
        mode = chosen[0] if chosen else "--list-fonts" if values["list_fonts"] else codec
        said = {"--out": out, "--force": force, "--json": as_json, "--seed": seed, "--model": model}
        said |= {"--tokenizer": tokenizer, "--beside": beside != "."}
        options = _taken(mode, values, said)
        how = {"model": model, "tokenizer": tokenizer}
        if mode in ("--list", "--differences"):
            _look(files, options, beside if differences else None, as_json)
        elif mode == "--test":
            _test(files, how)
        elif mode == "--compare":
            _compare(files, out, force, how, as_json)
        elif mode == "--list-fonts":
            _list_fonts(files)
        else:
            _pack(codec, files, out, force, options, how, seed)


GENERAL = {
    "--list": ("--json",), "--differences": ("--json", "--beside"), "--test": ("--model", "--tokenizer"),
    "--compare": ("--out", "--force", "--json", "--model", "--tokenizer"), "--list-fonts": (),
    "bpez": ("--out", "--force"), "ulz": ("--out", "--force"), "archive": ("--out",),
    "image": ("--out", "--force", "--seed"), "font": ("--out", "--force"),
    "lm": ("--out", "--force", "--model", "--tokenizer"),
}  # fmt: skip
"""Which of the options that are no codec's own a codec, or what is done instead of packing, takes."""
CHOOSING = ("only", "without", "version", "date")
"""Options that choose of an archive."""


def _taken(mode: str, values: dict[str, Any], said: dict[str, Any]) -> dict[str, Any]:
    """The options of codecs that were asked for.

    Raises:
        ValueError: one, or a general one, is not taken here.
    """
    for name, value in said.items():
        if value and name not in GENERAL[mode]:
            raise ValueError(f"{name} has no meaning {'with' if mode.startswith('-') else 'for'} {mode}")
    if not mode.startswith("-"):
        return check_taken(mode, values)
    found = {name: value for name, value in given(values).items() if name != "list_fonts"}
    wrong = [name for name in found if mode not in ("--list", "--differences") or name not in CHOOSING]
    if wrong:
        raise ValueError(f"{mode} takes no --{wrong[0].replace('_', '-')}")
    return found


def _pack(
    codec: str,
    files: Sequence[str],
    out: str,
    force: bool,
    options: dict[str, Any],
    how: dict[str, str],
    seed: int,
) -> None:
    if codec == "archive":
        _add(files, out, options)
    elif codec == "font":
        _pack_fonts(files, out, force, options)
    elif codec == "image":
        _pack_pictures(files, out, force, options, seed)
    else:
        _pack_streams(codec, files, out, force, options, how)


def _outs(files: Sequence[str], out: str, ending: str) -> list[str]:
    """A place for each file: as asked for, below a folder for several, or beside the file.

    Raises:
        ValueError: one file for several.
    """
    if len(files) == 1 and out and not expanded(out).is_dir():
        return [out]
    if out and not expanded(out).is_dir():
        raise ValueError(f"{len(files)} files do not go into one: name a folder that is there with --out")
    if out:
        return [str(Path(out, Path(file).name)) + ending for file in files]
    return ["-" if file == "-" else file + ending for file in files]


def _say(line: str, out: str) -> None:
    """A line for the user: beside standard output where that carries the data."""
    typer.echo(line, err=out == "-")


def _pack_streams(
    codec: str, files: Sequence[str], out: str, force: bool, options: dict[str, Any], how: dict[str, str]
) -> None:
    ending = ".bpe" if options.get("raw") else ENDINGS[codec]
    outs = _outs(files, out, ending)
    from regraft.cli.progress_bar import with_bar
    from regraft.jobs.pack_jobs import check_outs, pack_file

    check_outs(files, outs, force)
    if codec == "lm":
        options |= _model_asked(how)
    for file, to in zip(files, outs, strict=True):
        _say(str(with_bar(lambda file=file, to=to: pack_file(codec, file, to, dict(options)))), to)


def _opened(model: str, tokenizer: str) -> Any:
    return open_model(model, "cpu", "", "", False, tokenizer)


def _add(files: Sequence[str], out: str, options: dict[str, Any]) -> None:
    if not out or out == "-":
        raise ValueError("name the archive with --out: what is there is added to")
    for name in ("only", "version", "date"):
        if name in options:
            raise ValueError(f"--{name} is for unpacking and listing; --without leaves paths out of an add")
    from regraft.cli.progress_bar import with_bar
    from regraft.codecs.archive import LEVEL, add
    from regraft.codecs.archive_reading import check_archive
    from regraft.jobs.pack_jobs import told

    paths = [expanded(file) for file in files]
    with told(out):
        level, without = options.get("level", LEVEL), options.get("without", ())
        done = with_bar(lambda: add(expanded(out), paths, level, without))
    for reason in done.left_out:
        typer.echo(f"left out: {reason}", err=True)
    if not done.entries and not done.gone:
        typer.echo(f"{out}: nothing has changed since version {done.version}")
    else:
        typer.echo(
            f"{out}: version {done.version}, {done.entries:,} new or changed, {done.gone:,} gone;"
            f" {done.fresh:,} bytes of new chunks in {done.stored:,}"
        )
    if options.get("verify"):
        with_bar(lambda: check_archive(expanded(out)))


def _pack_pictures(files: Sequence[str], out: str, force: bool, options: dict[str, Any], seed: int) -> None:
    outs = _outs(files, out, ENDINGS["image"])
    if "-" in (*files, *outs):
        raise ValueError(f"pictures are files: {', '.join(STREAMS)} read and write pipes")
    from regraft.cli.progress_bar import with_bar
    from regraft.codecs.pictures import read_pixels
    from regraft.jobs.pack_jobs import check_out, check_outs
    from regraft.jobs.picture_jobs import pack_picture, side_by_side

    check_outs(files, outs, force)
    for file, to in zip(files, outs, strict=True):
        check_out(f"{to}.png", force, file)
    for file, to in zip(files, outs, strict=True):
        outcome, shown = with_bar(lambda file=file, to=to: pack_picture(file, to, dict(options), seed))
        side_by_side(read_pixels(expanded(file)), shown, Path(f"{to}.png"))
        typer.echo(f"{outcome} (side by side: {to}.png)")
        for one in shown:
            typer.echo(f"  {one.name:<8}{one.bytes:>9,} bytes  PSNR {one.psnr:6.2f} dB  SSIM {one.ssim:.4f}")


def _pack_fonts(files: Sequence[str], out: str, force: bool, options: dict[str, Any]) -> None:
    looks = [name for name in ("stats", "preview") if name in options]
    if len(files) > 1 and "batch" not in options and not looks:
        raise ValueError("several sheets are packed with --batch, each to a file of its own")
    from regraft.codecs.font import preview, statistics
    from regraft.jobs.pack_jobs import check_outs
    from regraft.jobs.picture_jobs import FONT_ENDINGS, pack_sheet, read_sheet

    if looks:
        for file in files:
            sheet = read_sheet(file, options)
            if "stats" in options:
                typer.echo(
                    f"{file}: " + "; ".join(f"{name} {value}" for name, value in statistics(sheet).items())
                )
            if "preview" in options:
                typer.echo("\n".join(preview(sheet)))
        return
    outs = _outs(files, out, FONT_ENDINGS[options.get("format", "packed")])
    if "-" in (*files, *outs):
        raise ValueError(f"font sheets are files: {', '.join(STREAMS)} read and write pipes")
    check_outs(files, outs, force)
    for file, to in zip(files, outs, strict=True):
        typer.echo(str(pack_sheet(file, to, options)))


def _list_fonts(files: Sequence[str]) -> None:
    from regraft.jobs.picture_jobs import sheets_in

    for folder in files:
        for file, found in sheets_in(folder):
            typer.echo(f"{file}: {found}")


def _look(files: Sequence[str], options: dict[str, Any], beside: str | None, as_json: bool) -> None:
    """What packed files hold, or how the disk differs from an archive."""
    from regraft.jobs.pack_jobs import listed, parted

    told = []
    for file in files:
        found = listed(file, options) if beside is None else parted(file, options, beside)
        told.append({"file": file, **found.as_json})
        if not as_json:
            typer.echo("\n".join(found.lines))
    if as_json:
        typer.echo(json_text(told, indent=1))


def _test(files: Sequence[str], how: dict[str, str]) -> None:
    from regraft.cli.progress_bar import with_bar
    from regraft.jobs.pack_jobs import check_packed, header_of

    kinds = {file: header_of(file)[0] for file in files}
    if (how["model"] or how["tokenizer"]) and set(kinds.values()) != {"lm"}:
        raise ValueError("--model is for files of lm alone: test the others by themselves")
    opening = _model_asked(how)
    for file in files:
        typer.echo(with_bar(lambda file=file: check_packed(file, **opening)))


def _model_asked(how: dict[str, str]) -> dict[str, Any]:
    """The model that is named, as an option; nothing where none is."""
    if how["tokenizer"] and not how["model"]:
        raise ValueError("--tokenizer goes with a model: name it with --model")
    return {"model": _opened(how["model"], how["tokenizer"])} if how["model"] else {}


def _compare(files: Sequence[str], out: str, force: bool, how: dict[str, str], as_json: bool) -> None:
    if len(files) != 1 or files[0] == "-":
        raise ValueError("--compare takes one file")
    if out and not force:
        check_empty(out, "--out")
    from regraft.cli.console import print_result
    from regraft.cli.progress_bar import with_bar
    from regraft.jobs.codec_comparison import compare_codecs
    from regraft.jobs.experiment_job import write_run

    model = _opened(how["model"], how["tokenizer"]) if how["model"] else None
    dataset = with_bar(lambda: compare_codecs(files[0], model))
    if as_json:
        typer.echo(json_text(dataset.to_dict(), indent=1))
    else:
        print_result(dataset)
    if out:
        write_run(dataset, expanded(out))


@filling(archive="codecs.pack_options:ArchiveOptions")
def unpack(
    *,
    files: FilesArgument,
    out: OutOption = "",
    force: ForceOption = False,
    max_size: MaxOption = "",
    raw: Annotated[bool, typer.Option("--raw", help="A bare stream of bpez, without our frame.")] = False,
    archive: dict[str, Any],
    model: ModelOption = MODEL_OF_FILE,
    tokenizer: TokenizerOption = "",
    debug: DebugOption = False,
) -> None:
    """Unpack files: how, their content tells."""
    with errors_in_one_sentence(debug):
        if out and len(files) > 1:
            raise ValueError("--out names one file: unpack several beside themselves, or one after the other")
        choice, how = given(archive), {"model": model, "tokenizer": tokenizer}
        _unpack(files, out, force, max_size, raw, choice, how)


def _unpack(
    files: Sequence[str],
    out: str,
    force: bool,
    max_size: str,
    raw: bool,
    choice: dict[str, Any],
    how: dict[str, str],
) -> None:
    from regraft.cli.progress_bar import with_bar
    from regraft.jobs.pack_jobs import check_outs, header_of, is_pipe, unpack_file, unpacked_name

    # a pipe is read once: which codec packed it is only known on the way, and only streams come that way
    kinds = {file: "" if is_pipe(file) else "bpez" if raw else header_of(file)[0] for file in files}
    for file, kind in kinds.items():
        if choice and kind != "archive":
            raise ValueError(f"--{next(iter(choice))} is for archives, and {file} is none")
        if (how["model"] or how["tokenizer"]) and kind not in ("", "lm"):
            raise ValueError(f"{file} was packed by {kind}, which takes no --model")
    streams = [file for file in files if kinds[file] != "archive"]
    outs = [out or unpacked_name(file, kinds[file]) for file in streams]
    check_outs(streams, outs, force)
    opening = _model_asked(how)
    for file, to in zip(streams, outs, strict=True):
        _say(str(with_bar(lambda file=file, to=to: unpack_file(file, to, max_size, raw, **opening))), to)
    for file in files:
        if kinds[file] == "archive":
            _extract(file, out, force, max_size, choice)


def _extract(file: str, out: str, force: bool, max_size: str, choice: dict[str, Any]) -> None:
    to = out or str(expanded(file).with_suffix(""))
    if force or to == "-":
        raise ValueError("an archive is unpacked to a folder that is new or empty: name one with --out")
    check_empty(to, "--out")
    from regraft.cli.progress_bar import with_bar
    from regraft.jobs.pack_jobs import choice_of, unpack_archive

    count = with_bar(lambda: unpack_archive(file, to, choice_of(choice), max_size))
    typer.echo(f"{to}: {count:,} files, folders and links")
