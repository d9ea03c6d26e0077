"""A recording: one clean run, what every block was called with, and the residual stream in front of every
block.

Shapes: N rows (variants), B prompts, T positions, S positions of an encoder, D width, K read positions, V
vocabulary. Rows of a batch are laid out variant by variant: row r of prompt b stands at r * B + b.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from regraft.core.later import later
from regraft.core.structure import Path, from_prompts
from regraft.model.block_call import (
    Captured,
    call_block,
    capture,
    longest_input,
    output_of,
    over_rows,
    run_bridge,
    run_head,
    run_prologue,
    without_cache,
)
from regraft.model.describe import recording_in_words
from regraft.model.hooks import reading
from regraft.model.inputs import batch_inputs, completion_rows, padded, rows_of
from regraft.model.model import Model
from regraft.model.regions import Regions, regions_of
from regraft.model.sites import DICTIONARY, SiteError, Tap, addition, parse_site


@dataclass(eq=False, repr=False)
class Recording:
    """One clean run of B prompts.

    `ids_BT` are the tokens of the stack that makes the logits, padded on the right; `mask_BT` is True on real
    tokens; `scored_BT` is True on the tokens that a loss counts (token t is predicted at position t - 1).
    `notes` say what a reader of a result should know of the prompts. The recording belongs to the weights and
    hooks that it was made with.

    Examples:
        >>> clean = model.record("It is dark and she walks")
        >>> clean["6.resid_post"].shape  # (B, T, D): prompts, positions, width
        torch.Size([1, 7, 192])
        >>> clean["6.z"].shape  # (B, T, H, width of a head)
        torch.Size([1, 7, 6, 32])
    """

    model: Model
    inputs: dict[str, Tensor]
    ids_BT: Tensor
    mask_BT: Tensor
    scored_BT: Tensor
    taken: Captured
    scored_is_given: bool = False
    taken_at: tuple[Any, ...] = ()
    taken_of: tuple[Any, ...] = ()
    notes: list[str] = field(default_factory=list)
    regions: Regions | None = None
    proved: dict[str, bool] = field(default_factory=dict)
    derived: dict[str, Any] = field(default_factory=dict)
    _cache: dict[str, Tensor] = field(default_factory=dict)

    def __repr__(self) -> str:
        return recording_in_words(self)

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
        """The stream that enters a block, (B, T, D): the recording's own tensor, not to be written to."""
        return self.taken.stream[block]

    def post(self, block: int) -> Tensor:
        """The stream that leaves a block, (B, T, D): the recording's own tensor, not to be written to."""
        for stack, end in zip(self.model.parts.stacks, self.taken.ends, strict=True):
            if block == stack.stop - 1:
                return end
        return self.taken.stream[block + 1]

    def __getitem__(self, address: str) -> Tensor:
        """The clean activation at a site: (B, T, D), heads as (B, T, H, width), the pattern as (B, H, T, T).

        What is returned is a copy. Activations inside a block are found by running that block once more; they
        are kept.

        Raises:
            SiteError: the site does not exist in this model.
            ValueError: a weight or hook has changed since the recording was made.
        """
        self.still_holds()
        if parse_site(address, self.model.parts).name == DICTIONARY:  # another may come: not kept
            return from_prompts(self._find(address), self._lengths_at(address))
        if address not in self._cache:
            with self.model.held():
                self._cache[address] = self._find(address)
        return from_prompts(self._cache[address].clone(), self._lengths_at(address))

    def _lengths_at(self, address: str) -> tuple[int, ...]:
        block = parse_site(address, self.model.parts).block
        return self.lengths_of(len(self.model.blocks) - 1 if block is None else block)

    def _repr_html_(self) -> str:
        return later("recording_html")(self)

    def gradients(self, metric: Any, sites: Any) -> dict[str, Tensor]:
        """Gradient of a metric with respect to activations; see `regraft.sweeps.gradients.gradients`."""
        return later("gradients")(self, metric, sites)

    def still_holds(self, whole: bool = False) -> None:
        """Make sure that the model is the one that was recorded, by a glance or by all of its bytes.

        Raises:
            ValueError: a weight or hook has changed since.
        """
        with self.model.held() as hold:
            if not hold.outermost:
                return
            if self.taken_at != self.model.state() or (whole and self.taken_of != self.model.fingerprint()):
                raise ValueError(
                    f"the weights or hooks of {self.model.name} have changed since this recording was made:"
                    " record anew"
                )

    def _find(self, address: str) -> Tensor:
        site = self.model.site(address)
        if site.name == "logits":
            return self.head(self.post(len(self.model.blocks) - 1))
        if site.name == "embed":
            with torch.no_grad():
                return output_of(self.model.parts.embedding, lambda: self.model.run(**self.inputs))
        if site.name == "final_norm":
            return self.hidden(self.post(len(self.model.blocks) - 1))
        assert site.block is not None
        if site.name == DICTIONARY:
            known = self.model.dictionary(site)
            base = f"{self.model.blocks[site.block].address}.{known.reads}"
            return known.encode(self[base].flatten(2), site.index)
        if site.name in ("resid_pre", "resid_post"):
            return self.pre(site.block) if site.name == "resid_pre" else self.post(site.block)
        block = self.model.blocks[site.block]
        if site.name == "pattern":
            return self.attention_weights(site.block)
        if site.name == "resid_mid" and block.branches[-2].sum_norm is None:
            before = block.branches[:-1]
            return sum((self.read(site.block, addition(b)) for b in before), self.pre(site.block))
        tap = self.model.taps[site]
        value = self.read(site.block, tap)
        return value.unflatten(-1, (tap.heads, -1)) if tap.heads and site.index is None else value

    @property
    def _hf(self) -> tuple[Any, Any]:
        return self.model.hf, self.model.parts

    def read(self, block: int, tap: Tap) -> Tensor:
        """The clean activation at a tap of one block, found by running that block once more."""
        return self.read_all(block, {"it": tap})["it"]

    def read_all(self, block: int, taps: dict[str, Tap]) -> dict[str, Tensor]:
        """The clean activations at several taps of one block, by name, from one run of it."""
        shape = (self.prompts, self.positions_of(block))
        with self.model.held(), torch.no_grad(), reading(taps, shape) as seen:
            self.run_block(block, self.pre(block), rows=1)
        return seen

    def attention_weights(self, block: int) -> Tensor:
        """The weights (B, H, T, T) that a block's attention returns where it computes any: eager attention
        does."""
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
        given: Mapping[Path, Tensor] | None = None,
    ) -> Tensor:
        """Run one block on `rows` rows with the arguments that the model passed to it.

        `module` takes the block's place (a donor, a quantized copy); `memory` takes the place of the
        encoder's output, `given` that of other arguments, for all rows.
        """
        call, run = self.taken.calls[block], module or self.model.blocks[block].module
        stream_RTD = stream_RTD.clone() if block in self.model.parts.written else stream_RTD
        with self.model.held():
            return call_block(run, call, stream_RTD, self._spread(block, rows), memory, given)

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
        if self.model.parts.head is None:
            raise ValueError(
                f"{self.model.name} {self.model.parts.why_no_head}, so there are no logits to measure"
            )
        with self.model.held():
            return run_head(*self._hf, self.taken.calls, resid_NKD).logits

    def hidden(self, resid_NKD: Tensor) -> Tensor:
        """The last hidden state for a stream that leaves the last block, behind the final norm if there is
        one."""
        norm = self.model.parts.final_norm
        if norm is None:
            return resid_NKD
        with self.model.held():
            return output_of(norm, lambda: run_head(*self._hf, self.taken.calls, resid_NKD))

    def bridge(self, resid_RSD: Tensor, rows: int) -> Tensor:
        """What the decoder attends to, for a stream that leaves the encoder's last block."""
        inputs = {name: t.repeat(rows, *[1] * (t.dim() - 1)) for name, t in self.inputs.items()}
        with self.model.held():
            return run_bridge(*self._hf, self.taken.calls, inputs, resid_RSD)

    def embedded(self, rows: int) -> Tensor:
        """The stream that enters block 0 for `rows` copies of the prompts; hooks on the embedding see every
        row."""
        inputs = {name: t.repeat(rows, *[1] * (t.dim() - 1)) for name, t in self.inputs.items()}
        with self.model.held():
            return run_prologue(*self._hf, inputs)


def record(
    model: Model,
    prompts: Any,
    completions: Any = None,
    scored: Tensor | None = None,
    attention_mask: Tensor | Literal["all"] | None = None,
    regions: Any = None,
) -> Recording:
    """Run the model once, cleanly, and keep the residual stream and every block's arguments.

    Args:
        prompts: a text, token ids, a tokenizer's output (its mask, token types and positions are taken too),
            a chat (a list of role and content), or a list of texts, ids or chats; several are padded on the
            right and masked.
        completions: what follows each prompt and is scored; with an encoder-decoder, what the decoder writes.
            Without them, every token but the first counts.
        scored: (B, T) booleans that say which tokens count instead.
        attention_mask: for token ids, (B, T) of 1 on tokens and 0 on padding at either end; "all" where the
            pad token is meant as a token.
        regions: parts of the texts for which a sweep reports every metric by itself: markers such as
            "<think>...</think>", or for each prompt a label for each of its tokens.

    Raises:
        ValueError: an empty prompt, an id outside the vocabulary, ids that hold the pad token without a mask,
            lists of different lengths, numbers that are not finite, or a region's marker that is absent or
            not closed.
    """
    given = rows_of(model, prompts, attention_mask)
    sources = given.ids
    follow = (
        completion_rows(model, completions, len(sources), attention_mask)
        if completions is not None
        else [[] for _ in sources]
    )
    if given.extra and completions is not None:
        raise ValueError(
            f"{' and '.join(given.extra)} are known for the prompts only: write completions into the prompts"
        )
    inputs, ids_BT, mask_BT = batch_inputs(model, sources, follow)
    first = [1 if completions is None or model.two_stacks else len(source) for source in sources]
    inputs |= {name: padded(rows, model, fill=0)[0] for name, rows in given.extra.items()}
    wanted = _which_count(scored, mask_BT, first)
    if model.streamed is not None:
        model.streamed.make_room(_bytes_taken(model, ids_BT))
    real = [row[mask].tolist() for row, mask in zip(ids_BT, mask_BT, strict=True)]
    parts = None if regions is None else regions_of(model, real, regions, ids_BT.shape[1])
    with model.held():
        taken = _captured(model, inputs, max(inputs["input_ids"].shape[1], ids_BT.shape[1]))
        at = model.state()
        of = model.fingerprint_at(at)
        made = Recording(
            model, inputs, ids_BT, mask_BT, wanted, taken, scored is not None, at, of, given.notes, parts
        )
    _refuse_nonfinite(made)
    return made


def _bytes_taken(model: Model, ids_BT: Tensor) -> int:
    """About what a recording holds, every block's stream, and the scores of all its tokens, which are there
    twice when some are chosen of them."""
    rows, width = model.parts.embedding.weight.shape
    numbers = (len(model.blocks) + 1) * width + (2 * rows if model.parts.head is not None else 0)
    return ids_BT.numel() * numbers * model.dtype.itemsize


def _captured(model: Model, inputs: dict[str, Tensor], length: int) -> Captured:
    longest = longest_input(model.hf.config)
    try:
        return capture(model.hf, model.parts, {**inputs, **without_cache(model.hf)})
    except (IndexError, RuntimeError) as error:
        if length <= model.probe or (
            isinstance(error, RuntimeError) and not (longest and length > longest - OFFSET)
        ):
            raise
        told = f", whose longest input is {longest} tokens" if longest else ""
        raise ValueError(f"{length} tokens do not fit this model{told}: shorten the text") from error


OFFSET = 4
"""Some tables of positions begin with a few that no token has."""


def _which_count(scored: Tensor | None, mask_BT: Tensor, first: list[int]) -> Tensor:
    """The tokens that a loss counts: those given, or all from the first position of each row that may count.

    Raises:
        ValueError: what is given has another shape or is no mask.
    """
    if scored is None:
        starts = torch.tensor(first, device=mask_BT.device)[:, None]
        return mask_BT & (torch.arange(mask_BT.shape[1], device=mask_BT.device)[None] >= starts)
    found = torch.as_tensor(scored, device=mask_BT.device)
    if found.shape != mask_BT.shape or not bool(((found == 0) | (found == 1)).all()):
        raise ValueError(
            f"scored= has shape {tuple(found.shape)}: give booleans of shape {tuple(mask_BT.shape)}, True on"
            " tokens that count"
        )
    return found.bool() & mask_BT


def _refuse_nonfinite(made: Recording) -> None:
    """A stream that is not a number tells nothing, and a control row that is none would agree with it."""
    for stack, end in zip(made.model.parts.stacks, made.taken.ends, strict=True):
        if not bool(torch.isfinite(end[made.real_at(stack.first)]).all()):
            streams = [*made.taken.stream[stack.first : stack.stop], end]
            real = made.real_at(stack.first)
            at = next(i for i, stream in enumerate(streams) if not bool(torch.isfinite(stream[real]).all()))
            where = "enters the first block" if at == 0 else f"leaves block {stack.blocks[at - 1].address}"
            raise ValueError(
                f"the stream that {where} is not finite: a weight is not a number, or half precision"
                " overflows"
            )
