"""Measure whole-model quantizers on two specimens: write docs/measured_quantizers.md.

Run from the project's root with all libraries installed. llmcompressor (for GPTQ) asks for transformers
5.17 and for an older compressed-tensors than our extra, and where HQQ is installed other libraries import
it, and a compiler with it, at every start: so it wants an environment of its own, without our extras:

    pip install torch==2.13.0 llmcompressor==0.14.0.1 torchao bitsandbytes hqq -e .
    python tools/measure_quantizers.py

Some eight minutes on two cores, nearly all of it GPTQ's.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import numpy as np

from regraft import load
from regraft.experiments.running import measured

OUT = Path(__file__).parent.parent / "docs" / "measured_quantizers.md"
LIBRARIES = ("torch", "transformers", "torchao", "bitsandbytes", "llmcompressor", "hqq")


def main() -> None:
    """Write the page."""
    said = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    lines = [
        "# Quantizers, measured",
        "",
        f"Written by `python tools/measure_quantizers.py` on two cores, float32: {said}.",
        "",
    ]
    for name in ("specimen:qwen3", "specimen:gpt2"):
        data = measured(load(name), "quantizers")
        assert not data.attrs["without"], data.attrs["without"]
        lines += [
            f"## {name}",
            "",
            (
                "| quantizer | loss, nats per token | top-1 agreement | MB of the blocks | s to quantize | MB"
                " held meanwhile | reading, tokens/s | writing, tokens/s |"
            ),
            "|---|---|---|---|---|---|---|---|",
        ]
        for i in range(data.sizes["quantizer"]):
            one = data.isel(quantizer=i)
            speeds = ["" if np.isnan(float(v)) else f"{float(v):,.0f}" for v in (one.reading, one.writing)]
            numbers = f"{float(one.loss):.4f} | {float(one.agreement):.1%} | {float(one.bytes) / 1e6:.2f}"
            costs = (float(one.seconds_to_quantize), float(one.peak_memory) / 1e6)
            taken = ["" if np.isnan(value) else f"{value:.2f}" for value in costs]
            lines.append(f"| {one.quantizer.item()} | {numbers} | {' | '.join([*taken, *speeds])} |")
        lines.append("")
    OUT.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
