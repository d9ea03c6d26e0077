"""What a sentence encoder's folder holds besides its model: how states are pooled, scaled and turned."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

LISTED = "modules.json"
SETTINGS = ("sentence_bert_config.json", "config_sentence_transformers.json")


def copy_sentence_files(source: Path | None, target: Path) -> None:
    """Copy these files from a model's folder beside what was made of it, so that the same library pools it in
    the same way.

    Without them a folder that pools by its first token would be opened as one that takes the mean. A live
    model, and a folder that is no sentence encoder's, has none.
    """
    if source is None or not (source / LISTED).is_file():
        return
    for name in (LISTED, *SETTINGS):
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    for entry in json.loads((source / LISTED).read_text(encoding="utf-8")):
        part = (source / entry["path"]).resolve()
        if part != source.resolve() and part.is_dir() and source.resolve() in part.parents:
            shutil.copytree(part, target / entry["path"])
