"""An opened model: the Hugging Face module, its tokenizer, its parts, and what was proved about them."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from regraft.checkpoint.locate import weights_digest
from regraft.core.later import later
from regraft.core.sizes import in_words
from regraft.core.structure import Path
from regraft.core.tolerance import rounding
from regraft.model.block_call import without_cache
from regraft.model.cpu_pack import packed_layer
from regraft.model.describe import model_in_words
from regraft.model.dictionary import Dictionary
from regraft.model.parts import Block, Parts, in_width, is_linear, out_width
from regraft.model.sae_folder import attached
from regraft.model.session import Hold, fingerprint, glance, hold_of, hooks, live_digest
from regraft.model.sites import DICTIONARY, Site, SiteError, Tap, Taps, parse_site
from regraft.model.streamed import Streamed
from regraft.model.tokenized import ReadsTexts

if TYPE_CHECKING:
    from regraft.model.recording import Recording
    from regraft.model.selfcheck import SelfCheck


@dataclass(eq=False, repr=False)
class Model(ReadsTexts):
    """A transformer taken apart. Made by `regraft.load`.

    `hf` is the live Hugging Face model, `parts` what was found in it, `check` what the self-check measured,
    `batched` the recorded arguments that grow with the batch, `probe` the number of tokens of a run that
    proves something (fewer than 8 where the model has fewer positions), `notes` what a reader should know of
    how it was opened. `target_tokenizer` is that of what an encoder-decoder writes, where it is not the one
    of what it reads.

    Examples:
        >>> model.site("6.resid_post").address
        '6.resid_post'
        >>> model.record("It is dark and she walks").positions
        7
        >>> model.site("12.resid_post")
        Traceback (most recent call last):
        ...
        regraft.model.sites.SiteError: ...
    """

    hf: Any
    tokenizer: Any
    name: str
    folder: FilePath | None
    parts: Parts
    taps: Taps
    batched: frozenset[tuple[int, Path]]
    attention: str
    probe: int = 8
    target_tokenizer: Any = None
    check: SelfCheck = field(init=False)
    packed: dict[nn.Module, Callable[[Tensor], Tensor]] = field(default_factory=dict)
    proved: dict[str, float] = field(default_factory=dict)
    source: str = ""
    notes: list[str] = field(default_factory=list)
    opened_at: tuple[Any, ...] = ()
    packed_at: tuple[Any, ...] = ()
    hooks_at: tuple[Any, ...] = ()
    dictionaries: dict[int, Dictionary] = field(default_factory=dict)
    mask_arguments: dict[int, Any] = field(default_factory=dict)
    streamed: Streamed | None = None
    _digests: dict[str, Any] = field(default_factory=dict)
    _read_whole: tuple[Any, ...] = ((), ())

    def __post_init__(self) -> None:
        self.opened_at = self.packed_at = self.fingerprint()
        self._hold = hold_of(self.hf)

    def __repr__(self) -> str:
        return model_in_words(self)

    def _repr_html_(self) -> str:
        return later("model_html")(self)

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Every block, counted over all stacks."""
        return self.parts.blocks

    @property
    def width(self) -> int:
        """Width D of the residual stream that leaves the model's last block."""
        return self.check.width

    @property
    def vocabulary(self) -> int:
        """Number of rows of the output matrix, or of the embedding where there is no head."""
        return self.table_rows if self.parts.head is None else out_width(self.parts.head)

    @property
    def table_rows(self) -> int:
        """Number of rows of the token embedding: ids run below it."""
        return self.parts.embedding.num_embeddings

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.hf.parameters()).device if self.streamed is None else self.streamed.device

    @property
    def dtype(self) -> torch.dtype:
        """Floating type of the weights."""
        if self.streamed is not None:
            return self.streamed.dtype
        return next(p.dtype for p in self.hf.parameters() if p.is_floating_point())

    @cached_property
    def rounding(self) -> float:
        """How far two results of the same sums may lie apart here, as a share of the largest value: the
        comparison rule."""
        widths = [in_width(module) for module in self.hf.modules() if is_linear(module)]
        return rounding(self.dtype, len(self.blocks), max(widths, default=self.parts.embedding.embedding_dim))

    @property
    def two_stacks(self) -> bool:
        """Whether this is an encoder-decoder."""
        return len(self.parts.stacks) == 2

    @property
    def causal(self) -> bool:
        """Whether, in the stack that makes the logits, no position sees a later one. Measured, not
        assumed."""
        return self.check.causal

    @property
    def main_blocks(self) -> tuple[Block, ...]:
        """The blocks of the stack that makes the logits: the only stack, or the decoder."""
        return self.parts.stacks[-1].blocks

    def site(self, address: str) -> Site:
        """Parse an address and make sure that it exists here.

        Raises:
            SiteError: it does not, with the reason.
        """
        site = parse_site(address, self.parts)
        if site.name == DICTIONARY:
            self.dictionary(site)
        elif site.block is not None:
            self.taps[site]
        elif site.name == "final_norm" and self.parts.final_norm is None:
            raise SiteError("final_norm does not exist here: no norm follows the last block")
        elif site.name == "logits" and self.parts.head is None:
            raise SiteError(f"logits does not exist here: this checkpoint {self.parts.why_no_head}")
        elif site.name == "embed" and self.two_stacks:
            raise SiteError("embed is not offered here: two stacks read one table; use encoder.0.resid_pre")
        return site

    def dictionary(self, site: Site) -> Dictionary:
        """The dictionary that a site of features belongs to.

        Raises:
            SiteError: none is attached to its block, or it has not so many features.
        """
        assert site.block is not None
        known, where = self.dictionaries.get(site.block), f"{site.address} does not exist here"
        if known is None:
            raise SiteError(f"{where}: attach a sparse autoencoder with model.add_sae(folder)")
        if site.index is not None and site.index >= known.features:
            raise SiteError(f"{where}: the dictionary {known.source} has {known.features:,} features, 0 to"
                            f" {known.features - 1}")  # fmt: skip
        return known

    def add_sae(self, folder: FilePath | str, site: str = "") -> str:
        """Attach a sparse autoencoder or a transcoder that SAELens saved: its features are sites from then on
        (`5.sae`, `5.sae.317`), read and edited as others. The model itself is not changed.

        Args:
            folder: with `cfg.json` and `sae_weights.safetensors`.
            site: where it reads, where the configuration does not tell or tells otherwise.

        Returns:
            The address of all its features.

        Raises:
            ValueError: it cannot be read, or its widths are not those of the activations.
        """
        return attached(self, folder, site)

    def tap(self, address: str) -> Tap:
        """Where a site inside a block is read and written."""
        return self.taps[self.site(address)]

    def record(
        self,
        prompts: Any,
        completions: Any = None,
        scored: Tensor | None = None,
        attention_mask: Tensor | Literal["all"] | None = None,
        regions: Any = None,
    ) -> Recording:
        """One clean run of one or several prompts; see `regraft.model.recording.record`."""
        from regraft.model.recording import record

        return record(self, prompts, completions, scored, attention_mask, regions)

    def proof(self) -> dict[str, str]:
        """What was proved about the parts, for provenance: the kind of attention and the self-check as
        JSON."""
        notes = {"opened": "; ".join(self.notes)} if self.notes else {}
        return {"attention": self.attention, "self_check": json.dumps(self.check.as_dict()), **notes}

    def fingerprint(self) -> tuple[Any, ...]:
        """Changes when a weight is exchanged or written to; see `regraft.model.session`."""
        now = fingerprint(self.hf) if self.streamed is None else self.streamed.state()
        self._read_whole = (self.state(), now)
        return now

    def fingerprint_at(self, state: tuple[Any, ...]) -> tuple[Any, ...]:
        """The fingerprint that goes with what `state` told: all is read again only where it tells another
        than when all was read last."""
        return self._read_whole[1] if self._read_whole[0] == state else self.fingerprint()

    def state(self) -> tuple[Any, ...]:
        """Weights and hooks at a glance: what a recording belongs to."""
        return (glance(self.hf) if self.streamed is None else self.streamed.state(), hooks(self.hf))

    def check_whole(self, why: str) -> None:
        """Make sure that all blocks are in memory.

        Raises:
            ValueError: they are read from disk one by one; `why` says what needs them together.
        """
        if self.streamed is not None and not self.streamed.store.all_stay:
            size = in_words(self.streamed.sizes.whole)
            remedy = f"open it whole, without --stream, or allow {size} for its weights"
            raise ValueError(f"{why}, and this model is streamed: {remedy}")

    def filled(self, block: int) -> Block:
        """A block whose weights are in memory, until other blocks have run: for who reads or copies them."""
        if self.streamed is not None:
            self.streamed.store.enter(block)
        return self.blocks[block]

    @property
    def hooked_since(self) -> bool:
        """Whether hooks came or went after the self-check, so that nothing that it proved need hold any
        more."""
        return hooks(self.hf) != self.hooks_at

    def held(self) -> AbstractContextManager[Hold]:
        """While inside, no other thread runs or changes the model, and it is in evaluation mode."""
        return self._hold.on(self.hf)

    def run(self, **inputs: Any) -> Any:
        """One forward pass of the Hugging Face model, in evaluation mode and without a cache."""
        with self.held():
            return self.hf(**inputs, **without_cache(self.hf))

    def changed(self, variant: Any) -> AbstractContextManager[Model]:
        """While inside, the live model takes a route and passes through edits, whoever runs it; see
        `regraft.export.changed_model.changed`."""
        return later("changed")(self, variant)

    def activations(self, prompts: Any, sites: Any, **options: Any) -> Any:
        """Activations of many prompts at sites, in memory or in a folder; see
        `regraft.jobs.activations_job.activations`."""
        return later("activations")(self, prompts, sites, **options)

    def generate(self, prompts: Any, **options: Any) -> Any:
        """Write on behind prompts, under edits and along a route; see
        `regraft.export.changed_model.generate`."""
        return later("generate")(self, prompts, **options)

    def packed_layers(self, now: tuple[Any, ...]) -> dict[nn.Module, Callable[[Tensor], Tensor]]:
        """The packed layers, packed anew where a weight has changed since; `now` is the fingerprint as it
        is."""
        if self.packed and now != self.packed_at:
            self.packed = {module: packed_layer(module) for module in self.packed}
        self.packed_at = now
        return self.packed

    @property
    def weights_sha256(self) -> str:
        """SHA-256 over the weight files as opened; over the live tensors where there is no file or a weight
        has changed."""
        now = self.fingerprint()
        if self._digests.get("at") != now:
            from_file = self.folder is not None and now == self.opened_at
            read = self.streamed.store.shards.read if self.streamed else None
            whole = weights_digest(self.folder) if from_file and self.folder else live_digest(self.hf, read)
            self._digests = {"at": now, "sha256": whole}
        return self._digests["sha256"]
