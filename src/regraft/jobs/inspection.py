"""What a model is made of: of an opened one with its self-check, of a checkpoint from its headers alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from regraft.checkpoint.dissection import Component, dissect
from regraft.core.files import check_empty, expanded, whole_folder
from regraft.core.strict_json import json_text
from regraft.model.model import Model
from regraft.model.summary import PartRow, SiteRow, part_rows, site_rows
from regraft.reporting.anatomy_drawing import svg


@dataclass(frozen=True)
class Inspection:
    """The parts of an opened model, the sites that can be read and edited, and what the self-check
    measured."""

    model: str
    parts: list[PartRow]
    sites: list[SiteRow]
    self_check: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """The same as plain values."""
        return asdict(self)


def inspect(model: Model) -> Inspection:
    """The parts, sites and self-check of an opened model.

    Returns:
        Tables of parts (with shapes and bytes) and sites (with reasons where one does not exist), and
        what the self-check measured.

    Examples:
        >>> found = regraft.inspect(model)
        >>> [(row.part, row.shape, row.bytes) for row in found.parts][0]
        ('embedding', '4096 x 192', 3145728)
    """
    return Inspection(model.name, part_rows(model), site_rows(model), model.check.as_dict())


def inspect_headers(
    source: str, out: Path | str | None = None, pickle_shapes: bool = False
) -> list[Component]:
    """The anatomy of a checkpoint from its headers alone; `out` is a folder for it as JSON and as a
    drawing, with `pickle_shapes` the tensors of pickles in a local folder are told too.

    Args:
        source: a folder, a hub id or a specimen.
        out: a new folder for the anatomy as JSON and as a drawing; nothing writes none.
        pickle_shapes: tell the tensors of pickles in a local folder, too, executing nothing.

    Returns:
        Every model that the files hold, with its parts and the bytes of each.

    Raises:
        CheckpointError: there is no such checkpoint, or its headers are damaged.
        RunFolderError: the folder is not empty.

    Examples:
        >>> anatomy = regraft.inspect_headers("specimen:gpt2")
        >>> sum(component.bytes for component in anatomy)
        2766336
    """
    if out is not None:
        out = expanded(out)
        check_empty(out, "--out")
    components = dissect(source, pickle_shapes)
    if out is not None:
        with whole_folder(out) as folder:
            (folder / "anatomy.json").write_text(headers_json(source, components), encoding="utf-8")
            (folder / "anatomy.svg").write_text(svg(source, components), encoding="utf-8")
    return components


def headers_json(source: str, components: list[Component]) -> str:
    """The anatomy of a checkpoint as JSON."""
    return json_text({"source": source, "components": [asdict(c) for c in components]}, indent=1) + "\n"
