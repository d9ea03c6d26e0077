"""A model's own greedy continuations: made once for a model and a set of prompts, then kept.

The cache is keyed by the weights' hash, the prompts and the limit, so another model never gets these. It lies
in `$REGRAFT_CACHE`, or in `~/.cache/regraft`; `--no-cache` neither reads nor writes it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from torch import Tensor
from transformers import Cache, GenerationConfig, GenerationMixin
from transformers.generation.streamers import BaseStreamer

from regraft.checkpoint.locate import SPECIMENS
from regraft.core.caching import cache_folder, cache_is_kept
from regraft.core.defaults import COMPLETION_TOKENS
from regraft.core.files import whole_file
from regraft.core.progress import advance
from regraft.data.own_texts import (
    MOST_UNKNOWN,
    check_sayable,
    own_loss,
    pieces_per_word,
    unknown_share,
    writes_on,
)
from regraft.data.prompts import BOOK_PASSAGES, Prompt, general, specimen
from regraft.model.block_call import longest_input, text_config
from regraft.model.model import Model

ASKED = 10
"""Prompts that a model is tried on before its kind of text is chosen."""
NO_BETTER = 0.6
"""Share of the logarithm of the vocabulary: a loss on the general prompts beyond it tells that they are
foreign to the model."""
MOST_PIECES = 8.0
"""Tokens for a word, more than letters in most words: text in another script, or of another kind, to this
tokenizer."""
SYSTEM = "Continue or answer directly. Do not repeat the question."


Writer = Callable[[Model, Sequence[Sequence[int]], int], list[list[int]]]
"""Who writes behind rows of token ids, at most so many tokens, end tokens included."""


@dataclass(frozen=True)
class Completion:
    """A prompt as token ids and what the model itself says next, with the category of the prompt."""

    prompt: str
    category: str
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]


def suited_prompts(model: Model) -> tuple[Prompt, ...]:
    """The specimen's own prompts for an embedded specimen; else the general ones, or prose where the model
    knows those better.

    Chosen by what the tokenizer can say and by the model's own loss on the texts.

    Raises:
        ValueError: the tokenizer or the model does not know either.
    """
    if is_specimen(model) or model.tokenizer is None:
        return specimen() if is_specimen(model) else general()
    if "suited" not in model.proved:
        model.proved["suited"] = float(_choice(model))
    return (general(), BOOK_PASSAGES)[int(model.proved["suited"])]


def _choice(model: Model) -> int:
    """0 for the general prompts, 1 for the passages of prose.

    Raises:
        ValueError: neither suits.
    """
    sets = [[p.text for p in spread(general(), ASKED)], [p.text + p.completion for p in BOOK_PASSAGES]]
    shares = [unknown_share(model, texts) for texts in sets]
    if min(shares) > MOST_UNKNOWN:
        check_sayable(model, sets[0], "the English prompts that ship with regraft")
    known = [
        share <= MOST_UNKNOWN and pieces_per_word(model, texts) <= MOST_PIECES
        for share, texts in zip(shares, sets, strict=True)
    ]
    if not writes_on(model) or not any(known):
        return 0
    losses = [own_loss(model, texts) if ok else float("inf") for texts, ok in zip(sets, known, strict=True)]
    chance = math.log(model.vocabulary)
    if losses[0] > NO_BETTER * chance and losses[1] < losses[0]:
        return 1
    return 0


def is_specimen(model: Model) -> bool:
    """Whether this is one of the trained models that ship with the package."""
    return model.folder is not None and model.folder.name in SPECIMENS.values()


def spread(prompts: Sequence[Prompt], count: int) -> list[Prompt]:
    """`count` of the prompts, taken in turn from every category."""
    by_category: dict[str, list[Prompt]] = defaultdict(list)
    for prompt in prompts:
        by_category[prompt.category].append(prompt)
    turns = [
        p for turn in range(len(prompts)) for p in (c[turn] for c in by_category.values() if turn < len(c))
    ]
    return turns[:count]


def completions(
    model: Model,
    prompts: Sequence[Prompt],
    limit: int = COMPLETION_TOKENS,
    write: Writer | None = None,
) -> list[Completion]:
    """Greedy continuations of the prompts, at most `limit` tokens each, from the cache where it has them.

    `write` is who else writes them: a function of the model, rows of token ids and the limit.

    Raises:
        ValueError: the model has no tokenizer, no output matrix, or is not causal.
    """
    check_writes(model)
    ids = [prompt_ids(model, prompt.text) for prompt in prompts]
    limit = room(model, ids, limit)
    config = hashlib.sha256(json.dumps(_configured(model), sort_keys=True, default=str).encode()).hexdigest()
    told = [asdict(p) for p in prompts]
    key = json.dumps([model.weights_sha256, config, str(model.dtype), limit, told, ids, end_tokens(model)])
    if not cache_is_kept():
        return _generate(model, prompts, ids, limit, write)
    file = cache_folder() / "completions" / (hashlib.sha256(key.encode()).hexdigest()[:32] + ".json")
    if (kept := _kept(file)) is not None:
        return kept
    found = _generate(model, prompts, ids, limit, write)
    # The cache saves time and nothing else: where it cannot be written, the completions are here all the
    # same.
    with suppress(OSError), whole_file(file) as fresh:
        fresh.write_text(json.dumps([asdict(c) for c in found]), encoding="utf-8")
    return found


def _configured(model: Model) -> dict[str, Any]:
    """What a configuration says beyond the defaults of its kind, whichever version of transformers read it:
    environments that differ in it share what is kept."""
    told = model.hf.config.to_diff_dict()
    return {name: value for name, value in told.items() if name not in OF_A_VERSION}


OF_A_VERSION = ("transformers_version", "_name_or_path")
"""Entries of a configuration that say who read it, and from where."""


def _kept(file: Path) -> list[Completion] | None:
    """Completions of an earlier run; None where there are none, or they cannot be read, and so are made
    again."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return [_from_json(entry) for entry in json.loads(file.read_text(encoding="utf-8"))]
    return None


def room(model: Model, ids: list[list[int]], limit: int) -> int:
    """As many tokens as may follow every prompt, at most `limit`: what is read and written fits into the
    model together.

    Raises:
        ValueError: a prompt leaves no room for one.
    """
    most = longest_input(model.hf.config)
    longest = 1 if model.two_stacks else max(map(len, ids), default=0)
    if not most or longest + limit <= most:
        return limit
    if longest >= most:
        raise ValueError(
            f"a prompt of {longest} tokens leaves no room for an answer in {most} positions: shorten it"
        )
    return most - longest


def _from_json(entry: dict[str, Any]) -> Completion:
    return Completion(
        entry["prompt"], entry["category"], tuple(entry["prompt_ids"]), tuple(entry["completion_ids"])
    )


def prompt_ids(model: Model, text: str) -> list[int]:
    """Token ids of a prompt, inside the chat template where the tokenizer has one.

    A template that knows no system role is given the system message in front of the user's.
    """
    if not getattr(model.tokenizer, "chat_template", None):
        return model.encode(text)
    spoken = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]
    try:
        return _templated(model, spoken)
    except TemplateError:
        return _templated(model, [{"role": "user", "content": f"{SYSTEM}\n\n{text}"}])


def _templated(model: Model, messages: list[dict[str, str]]) -> list[int]:
    made = model.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
    return list(made["input_ids"])


def _generate(
    model: Model, prompts: Sequence[Prompt], ids: list[list[int]], limit: int, write: Writer | None = None
) -> list[Completion]:
    """Prompts of one length go through the model together, so that none needs padding; who writes otherwise
    sees to that."""
    if write is not None:
        rows = write(model, ids, limit)
        return [_completion(model, *one) for one in zip(prompts, ids, rows, strict=True)]
    by_length: dict[int, list[int]] = defaultdict(list)
    for number, row in enumerate(ids):
        by_length[len(row)].append(number)
    found: dict[int, Completion] = {}
    for numbers in by_length.values():
        model.record(
            [ids[numbers[0]] + ([] if model.two_stacks else [ids[numbers[0]][-1]] * limit)],
            attention_mask="all",
        )
        batch = torch.tensor([ids[number] for number in numbers], device=model.device)
        for number, row in zip(numbers, write_on(model, batch, Sampling(limit)), strict=True):
            found[number] = _completion(model, prompts[number], ids[number], row)
        advance("completions", len(found), len(prompts))
    return [found[number] for number in range(len(prompts))]


def _completion(model: Model, prompt: Prompt, ids: Sequence[int], written: list[int]) -> Completion:
    """A prompt with what was written behind it, up to the end token."""
    return Completion(prompt.text, prompt.category, tuple(ids), tuple(until_end(model, written)))


@dataclass(frozen=True)
class Sampling:
    """How text is written: at most so many tokens, each drawn at a temperature or, at 0, the most likely one,
    with keys and values kept or not."""

    tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    cache: bool = True
    past: Cache | None = None
    """A cache of one's own, empty, for one batch."""

    def check(self) -> None:
        """Refuse what means nothing.

        Raises:
            ValueError: no tokens, or numbers that are none of a draw.
        """
        if self.tokens < 1:
            raise ValueError(f"{self.tokens} tokens cannot be written: ask for at least 1")
        if not 0 <= self.temperature < math.inf or not 0 < self.top_p <= 1:
            raise ValueError(
                f"a temperature of {self.temperature} with a share of {self.top_p} draws nothing: the first"
                " is 0 or more, the second above 0 and at most 1"
            )

    @property
    def drawn(self) -> bool:
        """Whether tokens are drawn."""
        return self.temperature > 0


def check_writes(model: Model) -> None:
    """Make sure that a model writes text.

    Raises:
        ValueError: it does not, with the reason.
    """
    if not model.causal:
        raise ValueError(f"{model.name} does not write text from left to right, so it has no completions")
    if model.parts.head is None:
        raise ValueError(
            f"{model.name} {model.parts.why_no_head}, so it writes no text and has no completions"
        )
    if model.parts.labels:
        raise ValueError(f"{model.name} scores {model.parts.labels} labels, not tokens, so it writes no text")


Heard = Callable[[int], object]
"""Is given every token of one prompt's continuation as it is written."""


def write_on(model: Model, batch_BT: Tensor, how: Sampling, heard: Heard | None = None) -> list[list[int]]:
    """Token ids behind each prompt of a batch of one length, end tokens and what follows them included.

    Draws come from PyTorch's own generator.
    """
    assert heard is None or len(batch_BT) == 1
    if isinstance(model.hf, GenerationMixin):
        return _by_itself(model, batch_BT, how, heard)
    return _step_by_step(model, batch_BT, how, heard)


class _Listens(BaseStreamer):
    """Takes tokens from the model's own generation: the prompt first, then one after the other."""

    def __init__(self, heard: Heard):
        self.heard, self.prompt = heard, True

    def put(self, value: Tensor) -> None:
        """Pass on what was written."""
        if self.prompt:
            self.prompt = False
            return
        for token in value.flatten().tolist():
            self.heard(token)

    def end(self) -> None:
        """Nothing more comes."""


def _by_itself(model: Model, batch: Tensor, how: Sampling, heard: Heard | None) -> list[list[int]]:
    """By the model's own generation, without the checkpoint's sampling settings."""
    own = model.hf.generation_config
    drawn = {"temperature": how.temperature, "top_p": how.top_p, "top_k": 0} if how.drawn else {}
    greedy = GenerationConfig(
        max_new_tokens=how.tokens,
        do_sample=how.drawn,
        use_cache=how.cache,
        **drawn,
        num_beams=1,
        pad_token_id=_pad(model),
        eos_token_id=own.eos_token_id,
        bos_token_id=own.bos_token_id,
        decoder_start_token_id=getattr(model.hf.config, "decoder_start_token_id", None),
    )
    with model.held(), torch.no_grad():
        model.hf.generation_config = greedy
        try:
            listens = {} if heard is None else {"streamer": _Listens(heard)}
            mask = torch.ones_like(batch)
            past = {} if how.past is None else {"past_key_values": how.past}
            out = model.hf.generate(input_ids=batch, attention_mask=mask, **past, **listens).tolist()
        finally:
            model.hf.generation_config = own
    start = 1 if model.two_stacks else batch.shape[1]
    return [row[start:] for row in out]


def _step_by_step(model: Model, batch: Tensor, how: Sampling, heard: Heard | None) -> list[list[int]]:
    """The same for a model that cannot generate: one whole forward for every token."""
    start = batch.shape[1]
    with torch.no_grad():
        for _ in range(how.tokens):
            logits_BV = model.run(input_ids=batch).logits[:, -1]
            following = _drawn(logits_BV, how) if how.drawn else logits_BV.argmax(-1)
            batch = torch.cat([batch, following[:, None]], dim=1)
            if heard is not None:
                heard(int(following))
    return batch[:, start:].tolist()


def _drawn(logits_BV: Tensor, how: Sampling) -> Tensor:
    """A token for each row, among the most likely ones that have the share together."""
    share_BV, order_BV = (logits_BV.float() / how.temperature).softmax(-1).sort(descending=True)
    share_BV = share_BV.masked_fill(share_BV.cumsum(-1) - share_BV >= how.top_p, 0.0)
    return order_BV.gather(-1, torch.multinomial(share_BV, 1))[:, 0]


def _pad(model: Model) -> int:
    pad, end = getattr(text_config(model.hf.config), "pad_token_id", None), end_tokens(model)
    return pad if isinstance(pad, int) and pad >= 0 else (end[0] if end else 0)


def end_tokens(model: Model) -> list[int]:
    """Ids behind which a model has said all that it says."""
    own = getattr(model.hf, "generation_config", None) or text_config(model.hf.config)
    end = getattr(own, "eos_token_id", None)
    return [end] if isinstance(end, int) else list(end or [])


def until_end(model: Model, ids: list[int]) -> list[int]:
    """What was written up to the end token, which is kept where nothing stands before it."""
    ends = set(end_tokens(model))
    stop = next((i for i, token in enumerate(ids) if token in ends), len(ids))
    return ids[:stop] or ids[:1]
