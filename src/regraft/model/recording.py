"""A recording: one clean run, what every block was called with, and the residual stream at every block's door.

Shapes: N rows (variants), B prompts, T positions, S positions of an encoder, D width, K read positions, V vocabulary.
Rows of a batch are laid out variant by variant: row r of prompt b stands at r * B + b.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from regraft.model.forward import (
    Captured,
    call_block,
    capture,
    over_rows,
    run_bridge,
    run_head,
    run_prologue,
    without_cache,
)
from regraft.model.opened import Model
from regraft.model.site import SiteError, Tap
from regraft.model.structure import Path
from regraft.model.tapping import reading

Prompt = str | Sequence[int] | Tensor


@dataclass(eq=False)
class Recording:
    """One clean run of B prompts.

    `ids_BT` are the tokens of the stack that makes the logits, padded on the right; `mask_BT` is True on real tokens;
    `scored_BT` is True on the tokens that a loss counts (token t is predicted at position t - 1).
    """

    model: Model
    inputs: dict[str, Tensor]
    ids_BT: Tensor
    mask_BT: Tensor
    scored_BT: Tensor
    taken: Captured
    scored_is_given: bool = False
    _cache: dict[str, Tensor] = field(default_factory=dict)

    @property
    def prompts(self) -> int:
        """Number B of prompts."""
        return self.ids_BT.shape[0]

    @property
    def positions(self) -> int:
        """Number T of positions in the stack that makes the logits."""
        return self.ids_BT.shape[1]

    @property
    def lengths_B(self) -> Tensor:
        """Number of real tokens of each prompt."""
        return self.mask_BT.sum(1)

    def lengths_of(self, block: int) -> tuple[int, ...]:
        """Number of real tokens of each prompt in the stack that the block belongs to."""
        if not self.model.two_stacks or block >= self.model.parts.stacks[1].first:
            return tuple(self.lengths_B.tolist())
        mask = self.inputs.get("attention_mask")
        return (self.positions_of(block),) * self.prompts if mask is None else tuple(mask.sum(1).tolist())

    def real_at(self, block: int) -> Tensor:
        """True on the tokens of every prompt in the stack of a block, False on padding: (B, T)."""
        lengths = torch.tensor(self.lengths_of(block), device=self.ids_BT.device)
        return torch.arange(self.positions_of(block), device=lengths.device)[None] < lengths[:, None]

    def positions_of(self, block: int) -> int:
        """Number of positions that block works on (an encoder's differ from its decoder's)."""
        return self.taken.stream[block].shape[1]

    def pre(self, block: int) -> Tensor:
        """The stream that enters a block, (B, T, D)."""
        return self.taken.stream[block]

    def post(self, block: int) -> Tensor:
        """The stream that leaves a block, (B, T, D)."""
        for stack, end in zip(self.model.parts.stacks, self.taken.ends, strict=True):
            if block == stack.stop - 1:
                return end
        return self.taken.stream[block + 1]

    def __getitem__(self, address: str) -> Tensor:
        """The clean activation at a site: (B, T, D), heads as (B, T, H, width), the pattern as (B, H, T, T).

        Activations inside a block are found by running that block once more; they are kept.

        Raises:
            SiteError: the site does not exist in this model.
        """
        if address not in self._cache:
            self._cache[address] = self._find(address)
        return self._cache[address]

    def _find(self, address: str) -> Tensor:
        site = self.model.site(address)
        if site.name == "logits":
            return self.head(self.post(len(self.model.blocks) - 1))
        if site.name == "embed":
            return self._around(self.model.parts.embedding, lambda: run_prologue(*self._hf, self.inputs))
        if site.name == "final_norm":
            last = self.post(len(self.model.blocks) - 1)
            return self._around(self.model.parts.final_norm, lambda: self.head(last))
        assert site.block is not None
        if site.name in ("resid_pre", "resid_post"):
            return (self.pre(site.block) if site.name == "resid_pre" else self.post(site.block)).clone()
        block = self.model.blocks[site.block]
        if site.name == "pattern":
            return self._pattern(site.block)
        if site.name == "resid_mid" and block.branches[-2].sum_norm is None:
            before = block.branches[:-1]
            return sum((self.read(site.block, Tap(b.last, "output")) for b in before), self.pre(site.block))
        tap = self.model.taps[site]
        value = self.read(site.block, tap)
        return value.unflatten(-1, (tap.heads, -1)) if tap.heads and site.index is None else value

    @property
    def _hf(self) -> tuple[Any, Any]:
        return self.model.hf, self.model.parts

    def _around(self, module: Any, run: Callable[[], Any]) -> Tensor:
        seen: list[Tensor] = []
        handle = module.register_forward_hook(lambda m, args, outcome: seen.append(outcome))
        try:
            run()
        finally:
            handle.remove()
        return seen[0]

    def read(self, block: int, tap: Tap) -> Tensor:
        """The clean activation at a tap of one block, found by running that block once more."""
        shape = (self.prompts, self.positions_of(block))
        with torch.no_grad(), reading({"it": tap}, shape) as seen:
            self.run_block(block, self.pre(block), rows=1)
        return seen["it"]

    def _pattern(self, block: int) -> Tensor:
        weights: list[Tensor] = []

        def keep(module: Any, args: Any, outcome: Any) -> None:
            weights.extend(t for t in outcome[1:] if isinstance(t, Tensor) and t.dim() == 4)

        branch = self.model.blocks[block].branch("attn")
        assert branch is not None
        assert branch.attention is not None
        handle = branch.attention.register_forward_hook(keep)
        try:
            with torch.no_grad():
                self.run_block(block, self.pre(block), rows=1)
        finally:
            handle.remove()
        patterns = [w for w in weights if bool((w >= 0).all()) and float(w.sum(-1).max()) < 1.0 + 1e-3]
        if not patterns:
            raise SiteError(f"{block}.pattern does not exist here: the attention returns no weights")
        return patterns[-1]

    def run_block(
        self,
        block: int,
        stream_RTD: Tensor,
        rows: int,
        memory: Tensor | None = None,
        module: Callable[..., Any] | None = None,
    ) -> Tensor:
        """Run one block on `rows` rows with the arguments that the model passed to it.

        `module` takes the block's place (a donor, a quantized copy); `memory` takes the place of the encoder's output.
        """
        call = self.taken.calls[block]
        return call_block(module or self.model.blocks[block].module, call, stream_RTD, self._spread(block, rows), memory)

    def _spread(self, block: int, rows: int) -> Callable[[Path, Tensor], Tensor]:
        batched = self.model.batched

        def spread(path: Path, tensor: Tensor) -> Tensor:
            if rows == 1 or (block, path) not in batched:
                return tensor
            return over_rows(tensor, rows, rows * self.prompts)

        return spread

    def head(self, resid_NKD: Tensor) -> Tensor:
        """The model's own logits (N, K, V) for a residual stream that leaves the last block.

        Raises:
            ValueError: this checkpoint has no output matrix.
        """
        result = run_head(self.model.hf, self.model.parts, self.taken.calls, resid_NKD)
        if self.model.parts.head is None:
            raise ValueError(f"{self.model.name} has no output matrix, so there are no logits to measure")
        return result.logits

    def hidden(self, resid_NKD: Tensor) -> Tensor:
        """What the model returns as its last hidden state for a stream that leaves the last block (no head needed)."""
        return run_head(self.model.hf, self.model.parts, self.taken.calls, resid_NKD)[0]

    def bridge(self, resid_RSD: Tensor, rows: int) -> Tensor:
        """What the decoder attends to, for a stream that leaves the encoder's last block."""
        inputs = {name: t.repeat(rows, *[1] * (t.dim() - 1)) for name, t in self.inputs.items()}
        return run_bridge(*self._hf, self.taken.calls, inputs, resid_RSD)

    def embedded(self, rows: int) -> Tensor:
        """The stream that enters block 0 for `rows` copies of the prompts; hooks on the embedding see every row."""
        inputs = {name: t.repeat(rows, *[1] * (t.dim() - 1)) for name, t in self.inputs.items()}
        return run_prologue(*self._hf, inputs)


def record(model: Model, prompts: Prompt | Sequence[Prompt], completions: Any = None, scored: Tensor | None = None) -> Recording:
    """Run the model once, cleanly, and keep the residual stream and every block's arguments.

    Args:
        prompts: a text, token ids, or a list of either; several are padded on the right and masked.
        completions: for each prompt the text or ids that follow it. They alone count in a loss. For an encoder-decoder
            they are the decoder's tokens. Without them, every token but the first counts.
        scored: (B, T) booleans that say which tokens count instead.

    Raises:
        ValueError: an empty prompt, an id outside the vocabulary, or lists of different lengths.
    """
    sources = [_ids(model, prompt) for prompt in _as_list(prompts)]
    if not sources:
        raise ValueError("there is no prompt: give at least one")
    wanted = _as_list(completions) if completions is not None else [()] * len(sources)
    if len(wanted) != len(sources):
        raise ValueError(f"{len(sources)} prompts but {len(wanted)} completions: give one for each")
    follow = [_ids(model, c, follows=True) for c in wanted]
    if model.two_stacks:
        inputs, ids_BT, mask_BT, first = _two_stack_inputs(model, sources, follow)
    else:
        joined = [source + rest for source, rest in zip(sources, follow, strict=True)]
        ids_BT, mask_BT = _padded(joined, model)
        inputs = {"input_ids": ids_BT}
        if not bool(mask_BT.all()):
            inputs["attention_mask"] = mask_BT.long()
        first = [1 if completions is None else len(source) for source in sources]
    given = scored is not None
    if scored is None:
        starts = torch.tensor(first, device=model.device)[:, None]
        scored = mask_BT & (torch.arange(ids_BT.shape[1], device=model.device)[None] >= starts)
    try:
        taken = capture(model.hf, model.parts, {**inputs, **without_cache(model.hf)})
    except IndexError as error:
        longest = getattr(model.hf.config, "max_position_embeddings", "unknown")
        raise ValueError(
            f"{ids_BT.shape[1]} tokens do not fit this model, whose longest input is {longest} tokens: shorten the text"
        ) from error
    return Recording(model, inputs, ids_BT, mask_BT, scored.to(model.device), taken, given)


def _two_stack_inputs(model: Model, sources: list[list[int]], follow: list[list[int]]):
    start = getattr(model.hf.config, "decoder_start_token_id", None)
    if start is None:
        raise ValueError(f"{model.name} does not say which token its decoder starts with (decoder_start_token_id)")
    encoder_BS, encoder_mask = _padded(sources, model)
    ids_BT, mask_BT = _padded([[start, *rest] for rest in follow], model)
    inputs = {"input_ids": encoder_BS, "decoder_input_ids": ids_BT}
    if not bool(encoder_mask.all()):
        inputs["attention_mask"] = encoder_mask.long()
    if not bool(mask_BT.all()):
        inputs["decoder_attention_mask"] = mask_BT.long()
    return inputs, ids_BT, mask_BT, [1] * len(sources)


def _as_list(prompts: Any) -> list[Any]:
    if isinstance(prompts, str):
        return [prompts]
    if isinstance(prompts, Tensor):
        return list(prompts) if prompts.dim() == 2 else [prompts]
    prompts = list(prompts)
    return [prompts] if prompts and isinstance(prompts[0], int) else prompts


def _ids(model: Model, prompt: Prompt, follows: bool = False) -> list[int]:
    if isinstance(prompt, str):
        if follows and model.tokenizer is not None:
            ids = model.tokenizer(prompt, add_special_tokens=False)["input_ids"] if prompt else []
        else:
            ids = model.encode(prompt) if prompt or not follows else []
    else:
        ids = [int(i) for i in prompt]
    if not ids and not follows:
        raise ValueError("the prompt is empty: give at least one token")
    rows = model.table_rows
    wrong = next((i for i in ids if not 0 <= i < rows), None)
    if wrong is not None:
        raise ValueError(f"token id {wrong} is outside the vocabulary of {rows}: ids run from 0 to {rows - 1}")
    return ids


def _padded(rows: list[list[int]], model: Model) -> tuple[Tensor, Tensor]:
    length = max(map(len, rows))
    pad = getattr(model.hf.config, "pad_token_id", None)
    pad = pad if isinstance(pad, int) and pad >= 0 else 0
    ids = torch.tensor([row + [pad] * (length - len(row)) for row in rows], device=model.device)
    mask = torch.tensor([[True] * len(row) + [False] * (length - len(row)) for row in rows], device=model.device)
    return ids, mask
