"""The report as one call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from regraft.core.runs import check_writable
from regraft.model.model import Model
from regraft.reporting.build import Missing, SideBySide, build
from regraft.reporting.chapter_inputs import Reading


def report(
    model: Model,
    out: Path | str,
    *,
    seed: int = 0,
    reading: Reading | None = None,
    options: Mapping[str, Any] | None = None,
    chapter: Callable[[str, int, int], None] | None = None,
    cluster: SideBySide | None = None,
) -> tuple[Path, list[Missing]]:
    """Run what suits a model and write one page that explains it, with a run folder for each result.

    Args:
        model: an opened model.
        out: the folder.
        seed: of everything drawn at random.
        reading: prompts, a text and pairs of one's own.
        options: how the model was opened, for the commands on the page.
        chapter: called with the chapter's name, chapters done, chapters in all.
        cluster: whose workers measure chapters side by side (`regraft.Cluster`).

    Returns:
        The page, and the chapters that are not on it, each with the reason.

    Raises:
        RunFolderError: the folder holds something else, or a report of another model or version.
    """
    check_writable(Path(out), "report", model.weights_sha256, version("regraft"))
    return build(model, Path(out), seed, chapter, options, reading, cluster)
