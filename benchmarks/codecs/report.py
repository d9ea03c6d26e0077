"""Write what the benchmark of codecs measured into docs/codecs.md, and its figure into docs/images.

Reads benchmarks/results/codecs.json. Run from the project's root with the `browser` extra and Debian's
chromium: `python -m benchmarks.codecs.report`.
"""

from __future__ import annotations

import json
from typing import Any

import plotly.graph_objects as go

from benchmarks.measured_part import write_measured
from benchmarks.pages import HEIGHT, RESULTS, ROOT, draw, made_by
from regraft.reporting.figures.codec_figures import OWN, positions
from regraft.reporting.theme import FIRST, MUTED, base

OUT = ROOT / "docs" / "codecs.md"
PICTURE = "codec-rates.png"
SURE = 100
"""MB/s above which fractions say nothing."""
DRAWN = "dickens"
"""The input whose ratios and rates are drawn."""


def table(found: dict[str, Any]) -> list[str]:
    """Bits per byte of every codec on every input, and rates on one of them."""
    inputs = {name.partition(" ")[2]: one for name, one in found.items() if name.startswith("bytes ")}
    codecs = list(inputs[DRAWN]["codecs"])
    head = " | ".join(f"{name} ({one['size'] / 1e6:.1f} MB)" for name, one in inputs.items())
    lines = [
        f"| bits per byte | {head} | packing {DRAWN}, MB/s | unpacking {DRAWN}, MB/s |",
        "|---" * (len(inputs) + 3) + "|",
    ]
    best = {name: min(one["bytes"] for one in told["codecs"].values()) for name, told in inputs.items()}
    for codec in codecs:
        rows = [(name, told["codecs"][codec]["bytes"], told["size"]) for name, told in inputs.items()]
        cells = [
            f"**{8 * size / raw:.3f}**" if size == best[name] else f"{8 * size / raw:.3f}"
            for name, size, raw in rows
        ]
        rates = inputs[DRAWN]["codecs"][codec]
        lines.append(
            f"| {codec} | {' | '.join(cells)} | {_rate(rates['packing'])} | {_rate(rates['unpacking'])} |"
        )
    model = found["lm"]
    cells = [
        f"**{8 * model['bytes'] / model['raw']:.3f}**" if told["size"] == model["raw"] else ""
        for told in inputs.values()
    ]
    return [*lines, f"| lm, the specimen | {' | '.join(cells)} | | |"]


def _rate(value: float) -> str:
    """A rate in MB/s, in three figures."""
    return f"{value:,.0f}" if value >= SURE else f"{value:.3g}"


def rates(found: dict[str, Any]) -> go.Figure:
    """Ratio over the rate of unpacking, on one input."""
    one = found[f"bytes {DRAWN}"]
    names = list(one["codecs"])
    figure = base(HEIGHT, width=820)
    unpacking = [one["codecs"][name]["unpacking"] for name in names]
    ratios = [one["size"] / one["codecs"][name]["bytes"] for name in names]
    figure.add_scatter(
        x=unpacking,
        y=ratios,
        text=names, mode="markers+text", textposition=positions(unpacking, ratios),
        marker={"size": 10, "color": [FIRST if name.startswith(OWN) else MUTED for name in names]},
    )  # fmt: skip
    figure.update_xaxes(title=f"unpacking {DRAWN}, MB/s (log)", type="log")
    figure.update_yaxes(title="bytes before over bytes after")
    return figure


def pairs(one: dict[str, Any]) -> str:
    """What bpez is beside the published way and zlib."""
    return (
        f"**bpez** packs `dickens` in {one['seconds']:.2f} s with two cores, the published way in plain"
        f" Python in {one['published_seconds']:.1f} s: {one['times']:.0f} times faster, to {one['bytes']:,}"
        f" bytes beside {one['published_bytes']:,} (the frame's checksums are in the first). gzip -9 takes"
        f" {one['zlib9_seconds']:.2f} s. It unpacks {one['unpacking']:,.0f} MB/s with one thread,"
        f" {one['unpacking_all_cores']:,.0f} with two; zlib {one['zlib_unpacking']:,.0f}."
    )


def matches(found: dict[str, Any]) -> list[str]:
    """ulz beside zlib and LZ4."""
    lines = [
        "| ulz, one thread | level 1, bytes | level 9, bytes | LZ4 HC, bytes | level 1 packs | gzip -1 packs"
        " | unpacks (level 9) | zlib unpacks | LZ4 unpacks |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in ("dickens", "xml"):
        one = found[f"ulz {name}"]
        speeds = ("packing", "gzip1_packing", "unpacking_9", "zlib_unpacking", "lz4_unpacking")
        lines.append(
            f"| {name} | {one['bytes_1']:,} | {one['bytes_9']:,} | {one['lz4hc_bytes']:,} | "
            + " | ".join(f"{one[speed]:,.0f} MB/s" for speed in speeds)
            + " |"
        )
    delay = found["ulz latency"]
    return [
        *lines,
        "",
        f"1 KiB takes {delay['compress_us']:.0f} µs to pack and {delay['decompress_us']:.0f} µs to unpack,"
        " frame and checksums included, behind the first call.",
    ]


def archives(found: dict[str, Any]) -> list[str]:
    """The archive beside Debian's zpaq, and a second add."""
    lines = [
        "| archive level | bytes | Debian's `zpaq` | more | added in | `zpaq` in |",
        "|---|---|---|---|---|---|",
    ]
    for level, one in found["archive"]["levels"].items():
        more = one["bytes"] / one["debian_bytes"] - 1
        lines.append(
            f"| {level} | {one['bytes']:,} | {one['debian_bytes']:,} | {more:+.2%} | {one['seconds']:.1f} s |"
            f" {one['debian_seconds']:.1f} s |"
        )
    again = found["archive again"]
    return [
        f"`dickens` and `xml` in one archive ({found['archive']['raw']:,} bytes):",
        "",
        *lines,
        "",
        f"A second add of the held-out books, {again['changed']:,} random bytes put into the beginning, the"
        f" middle and the end of three of them, stores {again['stored']:,} bytes"
        f" ({again['stored'] / again['changed']:.3f} times what changed).",
    ]


def models(one: dict[str, Any]) -> str:
    """The language model's file."""
    own = one["own_bits"] / 8
    return (
        f"**lm**, the specimen on the held-out books ({one['raw']:,} bytes): {one['bytes']:,} bytes,"
        f" {8 * one['bytes'] / one['raw']:.3f} bits per byte; the model's own bits, by plain forward passes"
        f" over the same windows, make {own:,.0f} ({one['bytes'] / own - 1:+.2%}). gzip -9"
        f" {one['gzip9_bytes']:,}, xz -9 {one['xz9_bytes']:,}, ZPAQ level 5 {one['zpaq5_bytes']:,}. It packs"
        f" {one['packing']:.1f} kB/s and unpacks {one['unpacking']:.1f} kB/s"
        + (f" ({one['note']})." if one.get("note") else ".")
    )


def pictures(found: dict[str, Any]) -> list[str]:
    """Pictures beside other codecs' of equal size."""
    lines = ["| picture | codec | bytes | PSNR, dB | SSIM |", "|---|---|---|---|---|"]
    for name, one in found.items():
        if name.startswith("image "):
            height, width = one["shape"]
            for codec, row in one["rows"].items():
                title = f"{name.removeprefix('image ')}, {width} × {height}" if codec == "regraft" else ""
                lines.append(
                    f"| {title} | {codec} | {row['bytes']:,} | {row['psnr']:.2f} | {row['ssim']:.3f} |"
                )
    return lines


def main() -> None:
    """Write the tables and draw the figure."""
    found = json.loads((RESULTS / "codecs.json").read_text(encoding="utf-8"))["runs"]
    one = found[f"bytes {DRAWN}"]
    parts = [
        "## Measured", "",
        f"By `python -m benchmarks.codecs.run` ({made_by(one)}; {one['versions']}). Our own codecs use both"
        " cores in this table, the others as they come; smallest in bold. `archive` is one ZPAQ block"
        " without the archive around it.", "",
        *table(found), "", f"![Ratio over the rate of unpacking](images/{PICTURE})", "",
        pairs(found["bpez"]), "", *matches(found), "", *archives(found), "", models(found["lm"]), "",
        "**image**, scikit-image's pictures at half their size, defaults:", "", *pictures(found), "",
        "![A picture and what comes back](images/codec-pictures.png)",
    ]  # fmt: skip
    write_measured(OUT, parts)
    draw({PICTURE: rates(found)})


if __name__ == "__main__":
    main()
