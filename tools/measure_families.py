"""What opens of transformers' architectures, and which sites each has: `PYTHONPATH=tests python
-m tools.measure_families`.

Every architecture is made tiny and random (`tools/small_architectures.py`), opened and self-checked; the
table goes to docs/families.md. What cannot be made small from its configuration's own field names is not in
it.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections import Counter
from pathlib import Path

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers.utils import logging as transformers_logging

from regraft.model.block_call import CANNOT
from regraft.model.load import load
from regraft.model.model import Model
from tools.small_architectures import MAPPINGS, tiny

NAMES = ("resid_mid", "attn_out", "cross_out", "mixer_out", "mlp_out", "q", "k", "v", "z", "mlp_act")
MOST_PARAMETERS = 3_000_000
_LARGE = """blt fuyu gemma3 gemma3n gemma4 gemma4_text gemma4_unified git got_ocr2 longcat_flash mllama
    moss_transcribe_diarize musicgen musicgen_melody phi4_multimodal audioflamingo3 encoder-decoder glmasr
    granite_speech
    granite_speech_plus musicflamingo nemo_speechlm qwen2_audio qwen3_asr t5gemma t5gemma2 vibevoice_asr
    voxtral
    voxtral_realtime luke modernvbert perceiver ultravbert regraft kimi_linear"""
LARGE = frozenset(_LARGE.split())
"""Made large by parts that no field of the common names makes small (pictures, sound, tables of many
languages)."""
HEAD = """# Architectures

Written by `tools/measure_families.py` with transformers {version}, PyTorch {torch}: every architecture
that its configuration's own field names make tiny, with random weights, opened in float32 and
self-checked. {opened} of {made} open; {swept} are swept beside plain hooks in
`tests/test_architectures.py`.

*Sites* are those of every block, besides `resid_pre` and `resid_post`; with a number, those of so many
blocks. *Replay*: largest difference of replayed blocks and head from the model, absolute. *Closure*: of
the stream plus what the branches add from what leaves the block, relative. *Why not*: the first reason
of a site that is missing, or why the model does not open.

| kind | architecture | sites | replay | closure | why not |
|---|---|---|---|---|---|
"""


def sites(model: Model) -> str:
    """The sites of a model's blocks, with numbers where not every block has one."""
    count = Counter(name for block in model.blocks for name in NAMES if model.taps.exists(block.index, name))
    total = len(model.blocks)
    return " ".join(
        name if count[name] == total else f"{name} ({count[name]} of {total})"
        for name in NAMES
        if count[name]
    )


def why_not(model: Model) -> str:
    """The first reason of a missing site that is more than that there is no such part."""
    told = [block.reason for block in model.blocks if block.reason]
    told += [
        str(reason) for table in model.taps.table for reason in table.values() if isinstance(reason, str)
    ]
    plain = (
        "this block has",
        "attention and MLP read",
        "sdpa attention",
        "eager attention",
        "linear attention forms",
    )
    return next((reason for reason in told if not reason.startswith(plain)), "")


def row(kind: str, name: str) -> str | None:
    """One line of the table; None where the architecture cannot be made small."""
    try:
        hf = tiny(kind, name)
    except (*CANNOT, AssertionError, ImportError, OSError, StrictDataclassError):
        return None
    if sum(p.numel() for p in hf.parameters()) > MOST_PARAMETERS:
        return None
    try:
        model = load(hf, pack=False)
    except CANNOT as error:
        return f"| {kind} | {name} | does not open | | | {' '.join(str(error).split())[:200]} |"
    found = model.check
    return (
        f"| {kind} | {name} | {sites(model)} | {found.replay:.0e} | {found.closure:.0e} |"
        f" {why_not(model)[:200]} |"
    )


def main() -> None:
    """Write the page."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    transformers_logging.set_verbosity_error()
    torch.set_num_threads(1)
    names = [(kind, config.model_type) for kind, mapping in MAPPINGS.items() for config in mapping]
    chosen = sorted(set(names) - {(kind, name) for kind, name in names if name in LARGE})
    rows = []
    for number, (kind, name) in enumerate(chosen):
        print(f"{number + 1} of {len(chosen)}: {kind} {name}", file=sys.stderr)
        if (line := row(kind, name)) is not None:
            rows.append(line)
    from test_architectures import NAMED

    opened = sum("does not open" not in line for line in rows)
    head = HEAD.format(
        version=transformers.__version__,
        torch=torch.__version__,
        opened=opened,
        made=len(rows),
        swept=len(NAMED),
    )
    (Path(__file__).parent.parent / "docs" / "families.md").write_text(
        head + "\n".join(rows) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
