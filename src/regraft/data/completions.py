"""A model's own greedy continuations: made once for a model and a set of prompts, then kept.

The cache is keyed by the weights' hash, the prompts and the limit, so another model never gets these. It lies in
`$REGRAFT_CACHE`, or in `~/.cache/regraft`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from regraft.data.prompts import Prompt, general, specimen
from regraft.model.load import SPECIMENS
from regraft.model.opened import Model
from regraft.model.progress import advance

SYSTEM = "Continue or answer directly. Do not repeat the question."


@dataclass(frozen=True)
class Completion:
    """A prompt as token ids and what the model itself says next, with the category of the prompt."""

    prompt: str
    category: str
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]


def cache_folder() -> Path:
    """Where completions are kept between runs."""
    return Path(os.environ.get("REGRAFT_CACHE", Path.home() / ".cache" / "regraft"))


def suited_prompts(model: Model) -> tuple[Prompt, ...]:
    """The specimen's own prompts for an embedded specimen, the fifty general ones for any other model."""
    embedded = model.folder is not None and model.folder.name in SPECIMENS.values()
    return specimen() if embedded else general()


def spread(prompts: Sequence[Prompt], count: int) -> list[Prompt]:
    """`count` of the prompts, taken in turn from every category."""
    by_category: dict[str, list[Prompt]] = defaultdict(list)
    for prompt in prompts:
        by_category[prompt.category].append(prompt)
    turns = [p for turn in range(len(prompts)) for p in (c[turn] for c in by_category.values() if turn < len(c))]
    return turns[:count]


def completions(model: Model, prompts: Sequence[Prompt], limit: int = 24) -> list[Completion]:
    """Greedy continuations of the prompts, at most `limit` tokens each, from the cache where it has them.

    Raises:
        ValueError: the model has no tokenizer, no output matrix, or is not causal.
    """
    if model.parts.head is None or not model.causal:
        raise ValueError(f"{model.name} does not write text from left to right, so it has no completions")
    key = json.dumps([model.weights_sha256, str(model.dtype), limit, [asdict(p) for p in prompts]])
    file = cache_folder() / "completions" / (hashlib.sha256(key.encode()).hexdigest()[:32] + ".json")
    if file.is_file():
        return [_from_json(entry) for entry in json.loads(file.read_text(encoding="utf-8"))]
    found = _generate(model, prompts, limit)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(f".{os.getpid()}.part")
    partial.write_text(json.dumps([asdict(c) for c in found]), encoding="utf-8")
    partial.replace(file)
    return found


def _from_json(entry: dict) -> Completion:
    return Completion(entry["prompt"], entry["category"], tuple(entry["prompt_ids"]), tuple(entry["completion_ids"]))


def prompt_ids(model: Model, text: str) -> list[int]:
    """Token ids of a prompt, inside the chat template where the tokenizer has one."""
    if getattr(model.tokenizer, "chat_template", None):
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]
        templated = model.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
        return list(templated["input_ids"])
    return model.encode(text)


def _generate(model: Model, prompts: Sequence[Prompt], limit: int) -> list[Completion]:
    """Prompts of one length go through the model together, so that none needs padding."""
    ids = [prompt_ids(model, prompt.text) for prompt in prompts]
    by_length: dict[int, list[int]] = defaultdict(list)
    for number, row in enumerate(ids):
        by_length[len(row)].append(number)
    found: dict[int, Completion] = {}
    for numbers in by_length.values():
        batch = torch.tensor([ids[number] for number in numbers], device=model.device)
        with torch.no_grad():
            out = model.hf.generate(
                input_ids=batch, attention_mask=torch.ones_like(batch), max_new_tokens=limit, do_sample=False,
                num_beams=1, pad_token_id=_pad(model), temperature=None, top_p=None, top_k=None,
            )  # fmt: skip
        for number, row in zip(numbers, out.tolist(), strict=True):
            said = row[1:] if model.two_stacks else row[len(ids[number]) :]
            prompt = prompts[number]
            found[number] = Completion(prompt.text, prompt.category, tuple(ids[number]), tuple(_until_end(model, said)))
        advance("completions", len(found), len(prompts))
    return [found[number] for number in range(len(prompts))]


def _pad(model: Model) -> int:
    pad, end = getattr(model.hf.config, "pad_token_id", None), _ends(model)
    return pad if isinstance(pad, int) and pad >= 0 else (end[0] if end else 0)


def _ends(model: Model) -> list[int]:
    end = model.hf.generation_config.eos_token_id
    return [end] if isinstance(end, int) else list(end or [])


def _until_end(model: Model, ids: list[int]) -> list[int]:
    ends = set(_ends(model))
    stop = next((i for i, token in enumerate(ids) if token in ends), len(ids))
    return ids[:stop] or ids[:1]
