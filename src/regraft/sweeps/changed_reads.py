"""Activations of changed runs, kept while a sweep replays them.

Shapes: n variants, B prompts, T positions, W width of what is tapped, H heads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from regraft.model.hooks import reading
from regraft.model.recording import Recording
from regraft.model.sites import DICTIONARY, Site, SiteError, Tap, addition
from regraft.sweeps.batch_layout import STREAM_SITES
from regraft.sweeps.edits import Carried, Placed, apply_edits
from regraft.sweeps.feature_edits import model_base
from regraft.sweeps.plan_nodes import Leaf, Node
from regraft.sweeps.variants import Edit, Variant

MOST_FLOATS = 1 << 28
"""Numbers that the activations of all variants may be: 1 GiB in float32."""


class ChangedReads:
    """What is heard at sites of blocks in every variant, of which the first is the control row; what a
    variant does not run is the clean run's."""

    def __init__(self, recording: Recording, addresses: Sequence[str], variants: Sequence[Variant]):
        self.recording, self.model = recording, recording.model
        self.variants = variants
        self.asked = {address: self._checked(address) for address in dict.fromkeys(addresses)}
        based = [model_base(self.model, site) for site in self.asked.values()]
        self.sites = [self.model.site(address) for address in dict.fromkeys(based)]
        self._check_passed()
        self.clean = {site.address: self._flat(site) for site in self.sites}
        count = len(variants) * sum(clean.numel() for clean in self.clean.values())
        if count > MOST_FLOATS:
            raise ValueError(
                f"the activations of {len(variants):,} rows at {len(self.sites)} sites are {count:,}"
                f" numbers, more than {MOST_FLOATS:,}: read fewer at a time, or write those of one variant to"
                " a folder with model.activations(prompts, sites, variant=..., out=...)"
            )
        self.values = {
            address: torch.zeros(len(variants), *clean.shape, dtype=clean.dtype)
            for address, clean in self.clean.items()
        }
        self.heard: dict[tuple[int, str], Tensor] = {}

    def _checked(self, address: str) -> Site:
        site = self.model.site(address)
        if site.block is None or site.name == "pattern":
            raise SiteError(
                f"{address} cannot be read from a sweep: read a block's stream, branches, heads or neurons"
            )
        return site

    def _check_passed(self) -> None:
        """Make sure that every variant runs the blocks that are read, as the model's own.

        Raises:
            ValueError: a route leaves one out, or puts another module in its place.
        """
        for number, variant in enumerate(self.variants):
            stops = {stop.block: stop for stop in variant.route.stops} if variant.route else None
            for site in self.sites if stops is not None else ():
                assert stops is not None
                assert site.block is not None
                if site.block not in stops:
                    raise ValueError(
                        f"{site.address} is never reached in variant {number - 1}: its route does not pass"
                        " that block"
                    )
                if stops[site.block].module is not None and site.name not in STREAM_SITES:
                    raise ValueError(
                        f"{site.address} is inside a block that the route of variant {number - 1} replaces by"
                        " another module: read resid_pre or resid_post there"
                    )

    def _flat(self, site: Site) -> Tensor:
        return self.recording[site.address].flatten(2)

    def _taps(self, block: int) -> dict[str, Tap]:
        """The taps of a block that are read; the branches whose additions make up the stream between them."""
        taps: dict[str, Tap] = {}
        for site in self.sites:
            if site.block != block or site.name in STREAM_SITES:
                continue
            found = self.model.blocks[block]
            if site.name == "resid_mid" and found.branches[-2].sum_norm is None:
                taps |= {f"{site.address}+{b.kind}": addition(b) for b in found.branches[:-1]}
            else:
                taps[site.address] = self.model.taps[site]
        return taps

    @contextmanager
    def hearing(self, nodes: Sequence[Node], stream_RTD: Tensor) -> Iterator[dict[str, Tensor]]:
        """While inside, one batch of rows runs its block, and what is heard is kept; whoever is inside adds
        what leaves the block as `resid_post`."""
        block, rows = nodes[0].stop.block, len(nodes)
        wanted = [site for site in self.sites if site.block == block]
        taps = {} if nodes[0].stop.module is not None else self._taps(block)
        with reading(taps, (stream_RTD.shape[0], stream_RTD.shape[1])) as seen:
            yield seen
        for site in wanted:
            if site.name == "resid_pre":
                found = stream_RTD
            elif site.name == "resid_post":
                found = seen["resid_post"]
            elif site.address in seen:
                found = seen[site.address]
            else:
                found = sum(
                    (t for name, t in seen.items() if name.startswith(f"{site.address}+")), stream_RTD
                )
            for node, value in zip(nodes, found.unflatten(0, (rows, -1)), strict=True):
                self.heard[id(node), site.address] = value.detach()

    def settle(self, leaf: Leaf, variant: int) -> None:
        """Put down what the run of a variant was, now that it has ended."""
        for site in self.sites:
            found, node = self.clean[site.address], leaf.parent
            while node is not None:
                if (id(node), site.address) in self.heard:
                    found = self.heard[id(node), site.address]
                    break
                node = node.parent
            edits = self.variants[variant].edits
            own = [edit for edit in edits if edit.site == site.address and site.name == "resid_post"]
            self.values[site.address][variant] = self._edited(site, found, own).cpu()

    def _edited(self, site: Site, found_BTW: Tensor, edits: Sequence[Edit]) -> Tensor:
        """The stream behind a block with the edits of itself, which are made in front of the next one."""
        if not edits:
            return found_BTW
        assert site.block is not None
        carried = Carried(0, self.recording.positions_of(site.block), self.recording.lengths_of(site.block))
        return apply_edits(found_BTW[None], [Placed(0, edit) for edit in edits], carried)[0]

    def forget(self) -> None:
        """Let go what was heard for variants that are settled."""
        self.heard.clear()

    def results(self) -> dict[str, Tensor]:
        """The activations by address, (n, B, T, W), or (n, B, T, H, W) where the site divides into heads."""
        found = {}
        for address, site in self.asked.items():
            value = self.values[model_base(self.model, site)]
            if site.name == DICTIONARY:
                found[address] = (
                    self.model.dictionary(site).encode(value.to(self.model.device), site.index).cpu()
                )
                continue
            shape = self.recording[address].shape
            found[address] = value.unflatten(-1, shape[2:]) if len(shape) == 4 else value
        return found


def joined_reads(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Activations of several recordings as one: prompt behind prompt, NaN behind the shorter ones."""
    found = {}
    for address in parts[0]:
        values = [part[address] for part in parts]
        longest = max(value.shape[2] for value in values)
        padded = []
        for value in values:
            n, prompts, length, *rest = value.shape
            missing = value.new_full((n, prompts, longest - length, *rest), float("nan"))
            padded.append(torch.cat([value, missing], dim=2))
        found[address] = torch.cat(padded, dim=1)
    return found
