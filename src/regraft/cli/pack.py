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
from regraft.core.files import RunFolderError, check_empty, expanded
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
        modes = [name for name, on in {"--list": list_, "--test": test, "--compare": compare}.items() if on]
        modes += ["--differences"] if differences else []
        if len(modes) > 1:
            raise ValueError(f"{' and '.join(modes)} contradict each other: choose one")
        if modes or values["list_fonts"]:
            codec = "archive" if list_ or differences else "font" if values["list_fonts"] else codec
            options = check_taken(codec, values) if not (test or compare) else _none(values, modes[0])
        else:
            options = check_taken(codec, values)
        how = {"model": model, "tokenizer": tokenizer}
        if list_ or differences:
            _look(files, options, beside if differences else None, as_json)
        elif test:
            _test(files, how)
        elif compare:
            _compare(files, out, force, how, as_json)
        elif values["list_fonts"]:
            _list_fonts(files)
        else:
            _pack(codec, files, out, force, options, how, seed)


def _none(values: dict[str, Any], mode: str) -> dict[str, Any]:
    """No options, for what takes none.

    Raises:
        ValueError: there are some.
    """
    found = given(values)
    if found:
        raise ValueError(f"{mode} takes no --{next(iter(found)).replace('_', '-')}")
    return {}


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
    from regraft.jobs.pack_jobs import check_out, pack_file

    for file, to in zip(files, outs, strict=True):
        check_out(to, force, file)
    if codec == "lm":
        options["model"] = _opened(how["model"] or "specimen:qwen3", how["tokenizer"])
    elif how["model"] or how["tokenizer"]:
        raise ValueError(f"--model is for --codec lm, not {codec}")
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
    from regraft.codecs.image import read_picture
    from regraft.jobs.pack_jobs import check_out
    from regraft.jobs.picture_jobs import pack_picture, side_by_side

    for file, to in zip(files, outs, strict=True):
        check_out(to, force, file)
        check_out(f"{to}.png", force, file)
    for file, to in zip(files, outs, strict=True):
        outcome, shown = with_bar(lambda file=file, to=to: pack_picture(file, to, dict(options), seed))
        side_by_side(read_picture(expanded(file)), shown, Path(f"{to}.png"))
        typer.echo(f"{outcome} (side by side: {to}.png)")
        for one in shown:
            typer.echo(f"  {one.name:<8}{one.bytes:>9,} bytes  PSNR {one.psnr:6.2f} dB  SSIM {one.ssim:.4f}")


def _pack_fonts(files: Sequence[str], out: str, force: bool, options: dict[str, Any]) -> None:
    looks = [name for name in ("stats", "preview") if name in options]
    if len(files) > 1 and "batch" not in options and not looks:
        raise ValueError("several sheets are packed with --batch, each to a file of its own")
    from regraft.codecs.font import preview, statistics
    from regraft.jobs.pack_jobs import check_out
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
    for file, to in zip(files, outs, strict=True):
        check_out(to, force, file)
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

    for file in files:
        kind, parameters = header_of(file)
        opening = {"model": _model_for(parameters, how)} if kind == "lm" else {}
        typer.echo(with_bar(lambda file=file, opening=opening: check_packed(file, **opening)))


def _model_for(parameters: dict[str, Any], how: dict[str, str]) -> Any:
    """The model that a file needs: as asked for, or the one that its header names."""
    name = how["model"] or str(parameters.get("name") or "")
    if not name:
        raise ValueError("the file does not name its model, which lay in a folder: name it with --model")
    return _opened(name, how["tokenizer"])


def _compare(files: Sequence[str], out: str, force: bool, how: dict[str, str], as_json: bool) -> None:
    if len(files) != 1 or files[0] == "-":
        raise ValueError("--compare takes one file")
    if out and not force:
        check_empty(out, "--out")
    from regraft.cli.console import print_result, write_run
    from regraft.cli.progress_bar import with_bar
    from regraft.jobs.codec_comparison import compare_codecs

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
        for file in files:
            _unpack(file, out, force, max_size, raw, given(archive), {"model": model, "tokenizer": tokenizer})


def _unpack(
    file: str, out: str, force: bool, max_size: str, raw: bool, choice: dict[str, Any], how: dict[str, str]
) -> None:
    from regraft.cli.progress_bar import with_bar
    from regraft.jobs.pack_jobs import check_out, header_of, unpack_file, unpacked_name

    # a pipe is read once: which codec packed it is only known on the way, and only streams come that way
    kind, parameters = ("bpez", {}) if raw or file == "-" else header_of(file)
    if choice and kind != "archive":
        raise ValueError(f"--{next(iter(choice))} is for archives, and {file} is none")
    if kind == "archive":
        _extract(file, out, force, max_size, choice)
        return
    to = out or unpacked_name(file, kind)
    check_out(to, force, file)
    opening = {"model": _model_for(parameters, how)} if kind == "lm" else {}
    _say(str(with_bar(lambda: unpack_file(file, to, max_size, raw, **opening))), to)


def _extract(file: str, out: str, force: bool, max_size: str, choice: dict[str, Any]) -> None:
    to = out or str(expanded(file).with_suffix(""))
    if not force:
        check_empty(to, "--out")
    elif expanded(to).is_file():
        raise RunFolderError(f"{to} is a file: name a folder with --out")
    from regraft.cli.progress_bar import with_bar
    from regraft.jobs.pack_jobs import choice_of, unpack_archive

    count = with_bar(lambda: unpack_archive(file, to, choice_of(choice), max_size))
    typer.echo(f"{to}: {count:,} files, folders and links")
