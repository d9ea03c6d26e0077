"""The page of sites: what each address means, and the shape that it has, read from a recording."""

from __future__ import annotations

from pathlib import Path

import regraft
from regraft.model.sites import BLOCK_SITES, MODEL_SITES, SiteError

MEANINGS = {
    "resid_pre": "the stream that enters the block",
    "resid_mid": "the stream behind attention, in front of the MLP",
    "resid_post": "the stream that leaves the block",
    "attn_out": "what attention adds to the stream",
    "cross_out": "what attention to an encoder adds (encoder-decoders)",
    "mixer_out": "what a recurrent mixer adds (hybrids)",
    "mlp_out": "what the MLP adds",
    "q": "queries, as projected, before norms and rotation",
    "k": "keys, as projected",
    "v": "values, as projected",
    "z": "values mixed by the attention weights, by head: what the output projection is given",
    "pattern": 'attention weights, read only, with `attention="eager"`',
    "mlp_in": "what the MLP is given, behind its norm",
    "mlp_act": "what the MLP's output projection is given: one number for each neuron",
    "head": "one head's share of `z`, `5.head.2`",
    "neuron": "one neuron of `mlp_act`, `5.neuron.26`",
    "embed": "what the embedding gives",
    "final_norm": "the stream behind the last norm",
    "logits": "the scores of all tokens",
}
"""What each site is."""
BLOCK, NUMBER = 5, 2
HEAD = """# Sites

An address names an activation: `5.resid_pre` is the stream that enters block 5; `encoder.3.resid_post` where
there are two stacks; `5.q.0`, `5.head.2` and `5.neuron.26` name one head or neuron. A dictionary that
`model.add_sae(folder)` attached adds `5.sae` and `5.sae.317`, adapters of a transcoder `5.feature` and
`5.feature.317`. A site that a block does not have is refused with the reason; `regraft inspect` lists them.

Shapes are those of `model.record("The capital of France is")[address]` on `specimen:qwen3`: B prompts, T
positions, D width, H heads, K width of a head, F neurons, V vocabulary.

| address | what it is | shape | here |
|---|---|---|---|
"""
SHAPES = {
    "z": "(B, T, H, K)", "q": "(B, T, H, K)", "k": "(B, T, H of keys, K)", "v": "(B, T, H of keys, K)",
    "pattern": "(B, H, T, T)", "mlp_act": "(B, T, F)", "head": "(B, T, K)", "neuron": "(B, T, 1)",
    "logits": "(B, T, V)",
}  # fmt: skip
"""Shapes in letters; all others are (B, T, D)."""


def address_of(name: str) -> str:
    """An example of a site's address."""
    if name in MODEL_SITES:
        return name
    return f"{BLOCK}.{name}.{NUMBER}" if name in ("head", "neuron") else f"{BLOCK}.{name}"


def rows() -> list[str]:
    """A row for each site, with the shape that it has here, or that this model has none."""
    model = regraft.load(attention="eager")
    clean, found = model.record("The capital of France is"), []
    for name in (*BLOCK_SITES, "head", "neuron", *MODEL_SITES):
        address = address_of(name)
        try:
            here = " x ".join(map(str, clean[address].shape))
        except SiteError:
            here = "none in this model"
        shape = SHAPES.get(name, "(B, T, D)")
        found.append(f"| `{address}` | {MEANINGS[name]} | {shape} | {here} |")
    return found


def write_page(folder: Path) -> None:
    """Write the page."""
    (folder / "sites.md").write_text(HEAD + "\n".join(rows()) + "\n", encoding="utf-8")
