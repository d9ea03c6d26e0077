"""The page to browse and search features: one HTML file, and a script for each block that it loads when
asked, so that it opens from a folder without a server."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from regraft.core.files import whole_folder

EXAMPLES = {"Top activations": 5}
OTHERS = 2
"""Examples that the page shows of the largest, and of each part of the random sample."""
LEVELS = 9
"""Shades of a token's activation."""


def write_feature_page(
    folder: Path,
    title: str,
    told: Iterable[str],
    blocks: Iterable[Iterable[dict[str, Any]]],
    said: Mapping[tuple[int, int], tuple[str, float]] | None = None,
    noun: str = "feature",
) -> None:
    """Write `index.html` and `block-{i}.js` into a new folder.

    Args:
        title: what the features are of.
        told: sentences for the top of the page.
        blocks: features of each block, as `Facts.of_block` tells them.
        said: descriptions of features with their scores, by block and feature.
        noun: what one is called in its address, `5.feature.317`.
    """
    said = said or {}
    with whole_folder(folder) as fresh:
        index: list[list[list[Any]]] = []
        for number, some in enumerate(blocks):
            rows, details = [], {}
            for one in some:
                words = said.get((number, one["index"]))
                rows.append(_row(one, words))
                details[one["index"]] = _detail(one, words)
            index.append(rows)
            script = f"FEATURES[{number}] = {json.dumps(details, ensure_ascii=False)};\n"
            (fresh / f"block-{number}.js").write_text(script, encoding="utf-8")
        template = resources.files("regraft.reporting").joinpath("features.html").read_text(encoding="utf-8")
        page = template.replace("__TITLE__", html.escape(title))
        page = page.replace("__TOLD__", "".join(f"<p>{html.escape(line)}</p>" for line in told))
        page = page.replace("__NOUN__", json.dumps(noun))
        data = json.dumps(index, ensure_ascii=False).replace("</", "<\\/")
        (fresh / "index.html").write_text(page.replace("__INDEX__", data), encoding="utf-8")


def _row(one: Mapping[str, Any], said: tuple[str, float] | None) -> list[Any]:
    """What the list says of a feature: number, frequency, largest, first context's word, pushed tokens."""
    first = one["examples_quantiles"][0]["examples"][0]
    peak = first["tokens"][first["train_token_ind"]]
    words = said[0] if said else ""
    return [
        one["index"], float(f"{one['activation_frequency']:.2g}"), one["act_max"], peak,
        one["top_logits"][:3], words,
    ]  # fmt: skip


def _detail(one: Mapping[str, Any], said: tuple[str, float] | None) -> dict[str, Any]:
    groups = []
    for group in one["examples_quantiles"]:
        most = EXAMPLES.get(group["quantile_name"], OTHERS)
        shown = [_example(example, one["act_max"]) for example in group["examples"][:most]]
        groups.append([group["quantile_name"], shown])
    kept = ("top_logits", "bottom_logits", "act_max", "activation_frequency", "histogram", "share_by_region",
            "share_by_domain", "nearest")  # fmt: skip
    return {name: one[name] for name in kept} | {"groups": groups, "said": said}


def _example(example: Mapping[str, Any], largest: float) -> list[Any]:
    """Tokens, a shade from 0 to 9 for each, and which one it is kept for."""
    shades = "".join(
        str(min(LEVELS, int(LEVELS * act / max(largest, 1e-9) + 0.999)))
        for act in example["tokens_acts_list"]
    )
    return [example["tokens"], shades, example["train_token_ind"]]
