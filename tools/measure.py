"""Measure what the docs say about the specimens: one sentence for each experiment, the table of shuffle
recovery, and every figure in a page that has an expression behind it.

Run from the project's root: `python -m tools.measure`. Writes docs/measured.md and the figures of the other
pages.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import xarray as xr

from regraft import CutAttention, Variant, load, loss, sweep
from regraft.experiments.running import measured
from regraft.reporting.drawings import drawing_of
from tools.docs_site.figures import filled

OUT = Path(__file__).parent.parent / "docs" / "measured.md"
NAMES = (
    "lens", "contributions", "geometry", "spectra", "linearity", "trajectories", "neurons", "knockout",
    "swap", "patch",
    "push", "ablate", "bottleneck",
    "repeat", "noise", "replacement", "quantize", "correlations",
)  # fmt: skip
DETAILS = {
    "lens": ("hurt_rate", "topk_accuracy"),
    "contributions": ("contribution",),
    "geometry": (
        "participation_ratio",
        "mean_norm",
        "cosine_raw",
        "cosine_centred",
        "update_size",
        "residual_share",
    ),
    "bottleneck": ("restored_effect", "knockout_delta"),
    "linearity": ("gap", "spectral_norm", "consistency", "recovered"),
    "trajectories": ("cosine_mean",),
    "neurons": ("context",),
    "push": ("push",),
    "noise": ("ratio",),
    "replacement": ("everywhere",),
    "quantize": ("sensitivity", "recipe_loss", "weight_error", "sensitivity_rho"),
}
SPECIMENS = ("specimen:qwen3", "specimen:gpt2")
SEEDS = 10
PAIRS = 12
"""Pairs of quantities of different experiments that are listed, strongest first."""


def shuffle_table(data: xr.Dataset) -> list[str]:
    """Rows of a Markdown table, best first."""
    rows = [
        "| method | Kendall's tau | blocks in place | mean displacement | loss | orders measured | s |",
        "|---|---|---|---|---|---|---|",
    ]
    for i in np.lexsort((data.loss.values, -data.tau.values.round(6))):
        one = data.isel(method=int(i))
        numbers = (
            f"{float(one.tau):.3f} | {float(one.in_place):.0%} | {float(one.displacement):.2f} |"
            f" {float(one.loss):.3f}"
        )
        rows.append(f"| `{one.method.values}` | {numbers} | {int(one.orders)} | {float(one.seconds):.2f} |")
    return rows


def strongest(data: xr.Dataset) -> list[str]:
    """The strongest pairs of quantities of different experiments, of those that survive the correction."""
    names, rho = data["quantity"].values.tolist(), data.rho.values
    found = [
        (abs(rho[i, j]), f"  - {names[j]} with {names[i]}: {rho[i, j]:+.2f}")
        for i in range(len(names))
        for j in range(i)
        if data.p_corrected.values[i, j] < data.attrs["level"]
        and names[i].partition(":")[0] != names[j].partition(":")[0]
    ]
    return [line for _, line in sorted(found, key=lambda pair: -pair[0])[:PAIRS]]


def details(data: xr.Dataset) -> list[str]:
    """The numbers behind the pages, one line for each row of a variable."""
    lines = strongest(data) if data.attrs["experiment"] == "correlations" else []
    for name in DETAILS.get(data.attrs["experiment"], ()):
        values = data[name]
        if name == "context":
            pairs = zip(values["neuron"].values, data.neuron_feature.values, values.values[:, 0], strict=True)
            lines += [f"  - {neuron} ({feature}): `{str(text).strip()}`" for neuron, feature, text in pairs]
            continue
        for row in values.stack(row=values.dims[:-1]).transpose("row", ...) if values.ndim > 1 else [values]:
            label = " ".join(map(str, row.row.item())) if values.ndim > 1 else ""
            numbers = ", ".join(f"{x:.4g}" for x in row.values)
            lines.append(f"  - `{name}` {label} over {values.dims[-1]}: {numbers}".replace("  over", " over"))
    return lines


def specimen_lines(name: str) -> tuple[list[str], dict[str, xr.Dataset]]:
    """What every experiment finds on a specimen, with the numbers behind it for the first one; and the
    results."""
    model, lines, found = load(name), [f"## {name}", ""], {}
    for experiment in NAMES:
        data = found[experiment] = measured(model, experiment)
        lines.append(f"- **{experiment}** ({data.attrs['seconds']:.1f} s): {drawing_of(data).finding(data)}")
        lines += details(data) if name == SPECIMENS[0] else []
    return [*lines, ""], found


def recovered() -> list[str]:
    """Shuffle recovery over seeds, and by all methods."""
    model = load()
    exact = [measured(model, "shuffle", seed) for seed in range(SEEDS)]
    good = sum(float(data.in_place[-1]) == 1 for data in exact)
    slowest = max(data.attrs["seconds"] for data in exact)
    return [
        "## Shuffle recovery of specimen:qwen3",
        "",
        (
            f"The default pipeline (activation_flow, then bubble) finds the exact order for {good} of"
            f" {SEEDS} seeds, each in at most {slowest:.1f} s. All sixteen methods with seed 42:"
        ),
        "",
        *shuffle_table(measured(model, "shuffle", 42, method="all")),
        "",
    ]


def cut() -> list[float]:
    """Loss of the capital's answer where its last token may not read the country from each block on, nats."""
    model = load()
    clean = model.record("The capital of France is", " Paris")
    count = len(model.blocks)
    variants = [
        Variant([CutAttention(block, position=-2, keys=3) for block in range(first, count)])
        for first in range(count)
    ]
    return sweep(clean, variants, loss()).values["loss"][:, 0].tolist()


def main() -> None:
    """Write the page, and the figures of the others."""
    lines = [
        "# Measured on the specimens",
        "",
        "Written by `python -m tools.measure`; seed 0, float32, two cores.",
        "",
    ]
    results: dict[str, dict[str, xr.Dataset]] = {}
    for name in SPECIMENS:
        told, results[name] = specimen_lines(name)
        lines += told
    OUT.write_text("\n".join([*lines, *recovered()]), encoding="utf-8")
    names = {**results[SPECIMENS[0]], "np": np, "abs": abs, "cut": cut()}
    for page in sorted(OUT.parent.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        if (new := filled(text, names)) != text:
            page.write_text(new, encoding="utf-8")
            print(f"{page.name}: figures changed")


if __name__ == "__main__":
    main()
