"""The folders that a page may name: those that the studio was started with, and nothing outside them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from regraft.checkpoint.locate import HUB_ID
from regraft.core.files import expanded
from regraft.studio.limits import RefusedError


class Places:
    """Folders with everything in them; links are followed before a path is judged."""

    def __init__(self, runs: Path, folders: Sequence[Path] = ()):
        self.runs = expanded(runs).resolve()
        self.folders = [self.runs, *(expanded(folder).resolve() for folder in folders)]

    def inside(self, path: Path | str) -> Path:
        """A path inside one of the folders, as it really is; a relative one counts from the runs.

        Raises:
            RefusedError: it lies outside.
        """
        if "\x00" in str(path):
            raise RefusedError("a path holds no zero byte: write the name of a folder")
        given = expanded(path)
        try:
            found = (given if given.is_absolute() else self.runs / given).resolve()
        except (OSError, RuntimeError) as error:
            raise RefusedError(f"{path} cannot be followed: {error}") from error
        if not any(found.is_relative_to(folder) for folder in self.folders):
            raise RefusedError(
                f"{path} lies outside the folders of this studio: start it with --folder to allow another"
            )
        return found

    def model(self, name: str) -> str:
        """The name of a model that a page may open: a specimen, a hub's, or a folder inside.

        Raises:
            RefusedError: it is a folder outside.
        """
        name = name.strip()
        specimen = name.partition(":")[0] == "specimen"  # of which there is a list, and no path
        relative = (self.runs / name).is_dir() if name and "\x00" not in name else False
        if specimen or (HUB_ID.fullmatch(name) and not expanded(name).exists() and not relative):
            return name
        if not name:
            raise RefusedError("no model is named: write a folder, a hub id (owner/name) or specimen:qwen3")
        return str(self.inside(name))
