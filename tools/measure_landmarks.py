"""Measure the embedded specimens' own landmarks and write them as studies: `tools/measure_landmarks.py`.

Two small models that everyone has, so that `regraft reproduce` can be tried, and is tested, to its end.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from regraft.data.token_bytes import token_bytes
from regraft.experiments.running import measured
from regraft.export.certificate import certify
from regraft.jobs.graft_jobs import HELD_CHARACTERS, almanac_windows
from regraft.landmarks.study import Shape
from regraft.model.load import load

STUDIES = Path(__file__).parent.parent / "src" / "regraft" / "landmarks" / "studies"
READ = {"count": 4, "tokens": 12}
"""Small enough to be reproduced in seconds."""
MEASURED = {
    "lens": (READ, [("rank, mean", "rank_mean", "depth"), ("entropy", "entropy_mean", "depth")]),
    "knockout": (READ, [("loss above the clean one", "increase", "block")]),
    "swap": (
        READ,
        [("mean over partners", "mean_cost", "block")],
    ),
    "geometry": (
        READ,
        [("participation ratio", "participation_ratio", "depth"), ("norm, mean", "mean_norm", "depth")],
    ),
    "spectra": ({}, [("block norm", "block_norm", "block"), ("mean rank ratio", "mean_rank_ratio", "block")]),
}
GRAFT = """
[[steps]]
name = "byte embedding"
command = ["graft", "embedding", "fit", "--steps", "1", "--warm", "20", "--no-felt"]
makes = "byte-embedding/graft"

[[steps]]
name = "byte embedding, its certificate"
command = ["graft", "embedding", "eval", "--windows", "2"]
makes = "byte-embedding/graft/certificate.json"
landmarks = [
  ["bits per byte before", "bits_per_byte_before", {{ domain = "almanac" }}, {before}],
  ["parameters of the part", "part_parameters", {{ state = "before" }}, {parameters}],
]
"""
"""A step that is a command: training ends elsewhere on every machine, so its landmarks are the model's."""


def landmarks(data, chosen) -> list[str]:
    """First, middle and last value of each quantity along its dimension, as lines of TOML."""
    found = []
    for quantity, variable, dimension in chosen:
        values = data[variable]
        for place in sorted({0, len(values) // 2, len(values) - 1}):
            value = float(values[place])
            if np.isfinite(value):
                label = data[dimension].values[place]
                at = f"{{ {dimension} = {json.dumps(label.item())} }}"
                found.append(f'  ["{quantity}", "{variable}", {at}, {value:.6g}],')
    return found


def main() -> None:
    """Write both studies."""
    for name in ("gpt2", "qwen3"):
        model = load(f"specimen:{name}")
        neurons = model.hf.config.to_dict().get("intermediate_size") or 4 * model.width
        parameters = sum(p.numel() for p in model.hf.parameters())
        shape = Shape(len(model.main_blocks), model.width, neurons, model.vocabulary, parameters)
        lines = [
            f'model = "specimen:{name}"',
            'source = "tools/measure_landmarks.py"',
            f'dtype = "{str(model.dtype).removeprefix("torch.")}"',
            f'weights_sha256 = "{model.weights_sha256}"',
            'note = "Figures of the embedded specimen, measured here: to try the command to its end."',
            "",
            "[shape]",
            *(f"{key} = {value}" for key, value in vars(shape).items()),
        ]
        for experiment, (options, chosen) in MEASURED.items():
            data = measured(model, experiment, 0, **options)
            lines += ["", "[[steps]]", f'experiment = "{experiment}"']
            lines += (
                [f"options = {{ {', '.join(f'{k} = {v}' for k, v in options.items())} }}"] if options else []
            )
            lines += ["landmarks = [", *landmarks(data, chosen), "]"]
        if name == "gpt2":
            own = model.parts.embedding
            text = {"almanac": almanac_windows(model, 128, 99, HELD_CHARACTERS)}
            same = certify(model, [(own, own)], text, token_bytes(model.tokenizer, model.table_rows), 2)
            before = float(same.bits_per_byte_before[0])
            lines += GRAFT.format(before=f"{before:.6g}", parameters=own.weight.numel()).splitlines()
        (STUDIES / f"specimen-{name}.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
