"""What a written checkpoint must show before it is kept: its tensors, outputs behind any window, and
generation.

A window, a cache or the kind of a block does not tell in eight tokens. So the text is longer than the longest
window that the configuration names, and the model writes a few tokens behind it with and without a cache.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, GenerationMixin

from regraft.core.files import NotKeptError
from regraft.core.tolerance import gap
from regraft.model.block_call import CANNOT, longest_input, text_config
from regraft.model.selfcheck import LENGTH, sample_ids

WRITTEN = 4
"""Tokens that a written model generates, with and without a cache: the second is the first that reads one."""
_WINDOW = re.compile(r"window|local_attention|attention_chunk")


def longest_window(config: Any) -> int:
    """The longest window of attention that a configuration names, in tokens; 0 where it names none."""
    text = text_config(config)
    found = [value for name, value in vars(text).items() if _WINDOW.search(name)]
    numbers = [n for value in found for n in (value if isinstance(value, (list, tuple)) else [value])]
    return max((n for n in numbers if isinstance(n, int) and not isinstance(n, bool)), default=0)


def probe_ids(hf: Any, rows: int, seed: int) -> list[int]:
    """Random ids of a text that a written checkpoint is compared on: longer than any window, as far as the
    model reads."""
    most = longest_input(hf.config)
    wanted = longest_window(hf.config) + LENGTH
    return sample_ids(rows, min(wanted, most - WRITTEN) if most > WRITTEN else wanted, seed)


def check_tensors(read: nn.Module, written: Mapping[str, Tensor]) -> None:
    """Make sure that every tensor was read back as it was written, to the bit.

    Raises:
        NotKeptError: one was not, or is missing; its name is told.
    """
    found = read.state_dict()
    pairs = {name: (found[name].cpu(), t.cpu()) for name, t in written.items() if name in found}
    wrong = next(
        (
            n
            for n in written
            if n not in pairs or not torch.equal(pairs[n][0], pairs[n][1].to(pairs[n][0].dtype))
        ),
        None,
    )
    if wrong is not None:
        raise NotKeptError(f"{wrong} is not read back as it was written: the folder is not kept")


def check_outputs(found: Tensor, wanted: Tensor, bound: float, refusal: str) -> float:
    """Make sure that outputs are what they should be; returns how far they lie apart, as a share of the
    largest.

    Args:
        refusal: the sentence for outputs that lie further apart than `bound`, with a field `{gap}` for how
            far.

    Raises:
        NotKeptError: they do.
    """
    difference = gap(found, wanted)
    if not difference <= bound:
        raise NotKeptError(refusal.format(gap=f"{difference:.1e}"))
    return difference


def check_generation(read: nn.Module, source: nn.Module, inputs: dict[str, Tensor], bound: float) -> None:
    """Make sure that what was read back writes text, and the same with a cache as without.

    Nothing is asked of it that the model it was made from does not do.

    Raises:
        NotKeptError: it does not; the reason is told.
    """
    if not isinstance(read, GenerationMixin):
        return
    reason = _cannot(read, inputs, bound)
    if reason and not _cannot(source, inputs, bound):
        raise NotKeptError(f"read back, it cannot generate text as the model it comes from does: {reason}")


@torch.no_grad()
def _cannot(hf: Any, inputs: dict[str, Tensor], bound: float) -> str:
    """Why a model does not write the same with a cache and without; empty where it does."""
    given = {name: tensor for name, tensor in inputs.items() if not name.startswith("decoder_")}
    runs = []
    for cached in (True, False):
        plain = GenerationConfig(
            max_new_tokens=WRITTEN, do_sample=False, num_beams=1, use_cache=cached, output_logits=True,
            return_dict_in_generate=True, pad_token_id=0,
            decoder_start_token_id=getattr(hf.config, "decoder_start_token_id", None),
        )  # fmt: skip
        try:
            runs.append(hf.generate(**given, generation_config=plain))
        except CANNOT as error:
            return (
                f"{'with' if cached else 'without'} a cache,"
                f" {(str(error) or type(error).__name__).splitlines()[0]}"
            )
    for step, (one, other) in enumerate(zip(runs[0].logits, runs[1].logits, strict=False)):
        if not gap(one, other) <= bound:
            return (
                f"with a cache the scores of new token {step} differ by {gap(one, other):.1e} of the largest"
            )
        if not torch.equal(one.argmax(-1), other.argmax(-1)):
            break
    return ""
