"""Survey the state of every kind of token mixing that transformers has: `python -m tools.attention_survey`.

Models of four blocks from small configurations; bytes by formula and counted in their own caches; a table for
docs/attention.md.
"""

from __future__ import annotations

import re
from pathlib import Path

import regraft
from benchmarks.measured_part import table, write_measured
from regraft.systems.state_bytes import block_states
from tools.small_architectures import tiny

PAGE = Path(__file__).parent.parent / "docs" / "attention.md"
FAMILIES = (
    "gpt2", "gpt_neox", "bloom", "opt", "gptj", "falcon", "gpt_bigcode", "qwen3", "olmo2", "mistral",
    "gemma2", "gemma3_text", "gpt_oss", "llama4_text", "deepseek_v2", "deepseek_v3", "deepseek_v32",
    "glm_moe_dsa", "diffllama", "doge", "lfm2", "qwen3_next", "qwen3_5_text", "olmo_hybrid", "minimax",
    "mamba", "mamba2", "falcon_h1", "nemotron_h", "rwkv", "jamba", "bamba", "recurrent_gemma",
)  # fmt: skip
"""Architectures that differ in how they mix tokens."""
HEAD = ("family", "blocks", "tokens", "bytes by formula", "bytes counted", "")


def rows() -> list[list[str]]:
    """One row for each family."""
    found = []
    for name in FAMILIES:
        states, why = block_states(regraft.load(tiny("causal", name)))
        kinds: dict[str, int] = {}
        for state in states:
            kinds[state.kind] = kinds.get(state.kind, 0) + 1
        at = states[0].counted_at
        formula = [sum(s.bytes_at(t) for s in states) for t in at]
        counted = [None if s.counted is None else s.counted[i] for i in range(len(at)) for s in states]
        sums = [sum(s.counted[i] for s in states if s.counted) for i in range(len(at))]
        agrees = "equal" if all(s.agrees for s in states) else why or "differs"
        found.append([
            name, ", ".join(f"{count} {kind}" for kind, count in kinds.items()), " → ".join(map(str, at)),
            " → ".join(f"{b:,}" for b in formula),
            "" if None in counted else " → ".join(f"{b:,}" for b in sums), agrees,
        ])  # fmt: skip
    return found


def main() -> None:
    """Write the table into the page."""
    cells = [[re.sub(r"\s+", " ", cell) for cell in row] for row in rows()]
    write_measured(PAGE, table(HEAD, cells, words=len(HEAD)))


if __name__ == "__main__":
    main()
