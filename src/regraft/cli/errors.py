"""What the user is told when something is wrong, and the exit code."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from regraft.checkpoint.locate import CheckpointError, NoCheckpointError
from regraft.core.registry import REFUSALS

_CODECS = ("numba", "zpaq", "PIL", "skimage", "cv2", "brotli", "lz4", "zstandard")
EXTRAS = {
    "accelerate": "train", "tensorboard": "train", "faiss": "tokens", "datasets": "tokens",
    "nicegui": "studio", "psutil": "studio", "uvicorn": "studio", "fastapi": "studio",
    **dict.fromkeys(_CODECS, "codecs"),
}  # fmt: skip
"""Libraries that come with an extra of this package, for what needs them."""

STOPPED = 130
"""The exit code of what Ctrl-C has stopped, as shells have it."""


@contextmanager
def errors_in_one_sentence(debug: bool) -> Iterator[None]:
    """Wrong use ends with exit code 2, a failed run with 1, Ctrl-C with 130, each in one sentence; `--debug`
    shows where."""
    try:
        yield
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from None
    except KeyboardInterrupt as error:
        _say(
            str(error)
            or "stopped. Nothing is kept but what was written whole before; the same command begins anew"
        )
        raise typer.Exit(STOPPED) from None
    except REFUSALS as error:
        if debug:
            traceback.print_exc()
        _say(f"{' '.join(str(error).split()) or type(error).__name__}{_remedy(error)}")
        raise typer.Exit(_code(error)) from None


def _say(sentence: str) -> None:
    if (logger := logging.getLogger("regraft")).handlers:
        logger.error(sentence)
    typer.echo(f"regraft: {sentence}", err=True)


def _code(error: BaseException) -> int:
    """2 for what was asked for in a wrong way, 1 for a run that failed and a checkpoint that is damaged."""
    wrong = isinstance(error, ValueError) and not isinstance(error, CheckpointError)
    return 2 if wrong or isinstance(error, NoCheckpointError) else 1


def _remedy(error: BaseException) -> str:
    """The extra to install, where a library that belongs to one is missing."""
    extra = (
        EXTRAS.get((error.name or "").partition(".")[0]) if isinstance(error, ModuleNotFoundError) else None
    )
    return f": install it with pip install -c constraints.txt -e '.[{extra}]'" if extra else ""
