"""A sweep: many variants of one recording, measured.

Shapes: n rows, B prompts, P pairs of (prompt, position) whose logits are read, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor

from regraft.core.progress import advance
from regraft.core.tolerance import gap
from regraft.model.cpu_pack import packed
from regraft.model.hooks import writing
from regraft.model.recording import Recording
from regraft.model.session import plain_numbers
from regraft.model.sites import Tap
from regraft.sweeps.batch_layout import BatchLayout, edit_positions
from regraft.sweeps.changed_reads import ChangedReads
from regraft.sweeps.edits import Carried, Placed, apply_edits, check_edits, pick_value
from regraft.sweeps.executor import Replay, State
from regraft.sweeps.feature_edits import spliced
from regraft.sweeps.forecast import announce
from regraft.sweeps.grids import Grid, as_dataset
from regraft.sweeps.metric_kinds import Metric, measured_type
from regraft.sweeps.metrics import AnyMetric, metrics_of
from regraft.sweeps.plan import SweepPlan, Work, make_plan, naive_cost
from regraft.sweeps.plan_nodes import Leaf
from regraft.sweeps.prefix_cache import why_no_cone
from regraft.sweeps.read_pairs import ReadPairs, named_metrics
from regraft.sweeps.recorded_layout import batch_rows, layout_of, live_rows
from regraft.sweeps.routes import Route
from regraft.sweeps.shares import Helpers, helped_by, in_shares, measured_in_shares
from regraft.sweeps.so_far import check_tellable
from regraft.sweeps.sweep_result import SweepError, SweepResult, joined
from regraft.sweeps.unchanged import Unchanged
from regraft.sweeps.variants import Add, Edit, Replace, Variant, variants_of

if TYPE_CHECKING:
    import xarray as xr

LOGITS_AT_ONCE = 1 << 23
"""Scores that are held at once: 32 MiB in float32, and a few times that while they become a metric."""


@overload
def sweep(
    recording: Recording | Sequence[Recording],
    variants: Grid,
    metric: AnyMetric | Sequence[AnyMetric],
    *,
    exact: bool = False,
    read: str | Sequence[str] = (),
    cluster: Helpers | None = None,
    alone: bool = False,
) -> xr.Dataset: ...


@overload
def sweep(
    recording: Recording | Sequence[Recording],
    variants: Variant | Edit | Route | Sequence[Variant | Edit | Route],
    metric: AnyMetric | Sequence[AnyMetric],
    *,
    exact: bool = False,
    read: str | Sequence[str] = (),
    cluster: Helpers | None = None,
    alone: bool = False,
) -> SweepResult: ...


def sweep(
    recording: Recording | Sequence[Recording],
    variants: Any,
    metric: AnyMetric | Sequence[AnyMetric],
    *,
    exact: bool = False,
    read: str | Sequence[str] = (),
    cluster: Helpers | None = None,
    alone: bool = False,
) -> SweepResult | xr.Dataset:
    """Run every variant of one or several recordings and measure it.

    Args:
        recording: what the variants vary; several (batches of prompts) are run in turn and joined.
        variants: routes and edits. A control variant, which changes nothing, is always run beside them. With
            a `grid`, the result is an `xarray.Dataset` with its dimensions.
        metric: one metric or several.
        exact: rows one at a time with stock layers, no suffixes, no corrections: every block is called as in
            the clean run, with the same shapes, so that a row that changes nothing gives the recorded bits
            whatever the kernels make of other batches. Between machines, library versions or numbers of
            threads the last bits still differ.
        read: sites of blocks whose activations in every variant are kept, in `SweepResult.reads`; edits at a
            site are in what is read there. All positions are then run.
        cluster: who measures shares of the variants beside this process (`regraft.Cluster`).
        alone: measure all of it here and now, whoever helps and whatever is kept.

    Returns:
        A `SweepResult`; with a grid an `xarray.Dataset`.

    Raises:
        ValueError: a site, position, target or route that does not exist here; the sentence says which.
        SweepError: the control row, which changes nothing, came out different: no number can be trusted.

    Examples:
        >>> skipped = [regraft.Route.skip(12, {block}) for block in range(12)]
        >>> result = regraft.sweep(model.record("It is dark"), skipped, regraft.loss())
        >>> result.values["loss"].shape  # (variants, prompts), nats per token
        torch.Size([12, 1])
        >>> result.work.executed < result.work.naive  # calls of blocks that were run, and of whole forwards
        True
    """
    recordings = [recording] if isinstance(recording, Recording) else recording
    metrics, cells = metrics_of(metric), variants if isinstance(variants, Grid) else None
    variants = variants_of(variants)
    if isinstance(recordings, (str, bytes)) or not isinstance(recordings, Sequence) or not len(recordings):
        raise ValueError(f"a {type(recording).__name__} is no recording: make one with model.record(prompts)")
    parts = []
    with plain_numbers(), helped_by(cluster) if cluster is not None else nullcontext():
        for number, one in enumerate(recordings):
            place = (number, len(recordings))
            parts.append(
                _Sweep(one, variants, metrics, exact, place, read).run()
                if alone
                else _measured(one, variants, metrics, exact, place, read)
            )
    result = parts[0] if len(parts) == 1 else joined(parts)
    return result if cells is None else as_dataset(recordings[0].model, cells, result)


def _measured(
    recording: Recording,
    variants: list[Variant],
    metrics: Sequence[AnyMetric],
    exact: bool,
    place: tuple[int, int],
    read: str | Sequence[str],
) -> SweepResult:
    """One recording's part of a sweep, `place` its number of how many; in shares where those are of use."""
    check_tellable(in_shares() and not read)
    if read or not in_shares():
        return _Sweep(recording, variants, metrics, exact, place, read).run()

    def here(some: Sequence[Variant], share: tuple[int, int]) -> SweepResult:
        number, count = place[0] * share[1] + share[0], place[1] * share[1]
        return _Sweep(recording, list(some), metrics, exact, (number, count)).run()

    return measured_in_shares(recording, variants, metrics, exact, here)


class _Sweep:
    """One recording's share of a sweep."""

    def __init__(
        self,
        recording: Recording,
        variants: list[Variant],
        metrics: Sequence[AnyMetric],
        exact: bool,
        share: tuple[int, int],
        read: Sequence[str] = (),
    ):
        self.recording, self.model = recording, recording.model
        if not self.model.check.replays:
            raise ValueError(
                f"{self.model.name} cannot be replayed: its blocks, called again with their own arguments,"
                f" differ from the model by {self.model.check.replay:.1e}"
            )
        self.notes = list(recording.notes)
        if self.model.hooked_since:
            self.notes.append(
                "hooks have come or gone since the model was opened, so every row runs whole blocks"
            )
        if not self.model.check.batches and not exact:
            exact = True
            self.notes.append(
                "rows were run one at a time, without any saving inside a batch: three rows at once differ"
                f" from one by {self.model.check.batch:.1e} in this model"
            )
        variants = [spliced(self.model, variant) for variant in variants]
        self.variants, self.exact, self.share = [Variant(), *variants], exact, share
        self.metrics = named_metrics(metrics, recording)
        check_edits(self.model, variants)
        self.pairs = ReadPairs(recording, self.metrics)
        count = len(self.variants)
        kind = measured_type(self.model.dtype)
        self.values = {
            m.name: torch.zeros(count, recording.prompts, device=self.model.device, dtype=kind)
            for m in self.metrics
        }
        self.deviation = 0.0
        read = [read] if isinstance(read, str) else read
        self.reads = ChangedReads(recording, read, self.variants) if read else None

    def run(self) -> SweepResult:
        self.recording.still_holds(whole=True)
        with self.model.held():
            return self._run()

    def _run(self) -> SweepResult:
        layout = layout_of(
            self.recording,
            {e.site for v in self.variants for e in v.edits},
            cone=not self.exact and self.reads is None,
            read_from=int(self.pairs.position.min()),
        )
        placed = any(edit.position is not None for variant in self.variants for edit in variant.edits)
        if not self.exact and not layout.cone and placed and (why := self._why_whole()):
            self.notes.append(f"every position is run, also in front of an edit: {why}")
        work = Work()
        chunk = live_rows(self.recording)
        rows = 1 if self.exact else batch_rows(self.recording)
        found = None if self.exact or self.reads else Unchanged(self.recording, self.variants[1:], layout)
        with nullcontext() if self.exact else packed(self.model.packed_layers(self.recording.taken_of)):
            clean = self._clean_values()
            unchanged = self._answer_unchanged(found, clean, layout, work)
            left = [number for number in range(len(self.variants)) if number not in unchanged]
            ranges = [left[begin : begin + chunk] for begin in range(0, len(left), chunk)]
            first = self._plan(ranges[0], layout)
            # The others are planned for their work and again when they run: all plans at once would be large.
            works = [work, first.work, *(self._plan(numbers, layout).work for numbers in ranges[1:])]
            announce(self.recording, len(self.variants) - 1, works, LOGITS_AT_ONCE)
            for which, numbers in enumerate(ranges):
                plan = self._plan(numbers, layout) if which else first
                replay = Replay(self.recording, plan, self._measure_into(numbers), rows, self.reads)
                replay.run(self._progress(which / len(ranges), 1 / len(ranges), plan.work.planned))
                work.executed += replay.executed
                work.preparation += replay.clean.runs + plan.keys
                if self.reads:
                    self.reads.forget()
                for name in ("planned", "naive"):
                    setattr(work, name, getattr(work, name) + getattr(plan.work, name))
        limit = self.model.rounding
        if not self.deviation <= limit:
            raise SweepError(
                f"the control row, which changes nothing, deviates by {self.deviation:.1e} (rounding alone:"
                f" at most {limit:.1e}): a weight was changed behind the model's back, or a kernel depends on"
                " the batch; load the model again, or use exact=True"
            )
        return SweepResult(
            {name: value[1:].cpu() for name, value in self.values.items()},
            {name: value.cpu() for name, value in clean.items()},
            {name: value[0].cpu() for name, value in self.values.items()},
            {m.name: self.pairs.counts[m.name].cpu() for m in self.metrics},
            {m.name: m.unit for m in self.metrics},
            work,
            self.deviation,
            self.notes,
            {name: value[1:] for name, value in self.reads.results().items()} if self.reads else {},
        )

    def _progress(self, done: float, chunk: float, planned: int) -> Callable[[int], None]:
        """Progress in thousandths of the whole sweep: the share `done` is behind, this chunk is worth
        `chunk`."""
        number, recordings = self.share
        at = [0]

        def note_call(amount: int) -> None:
            at[0] += amount
            within = done + chunk * at[0] / max(planned, 1)
            advance("variants", round(1000 * (number + within) / recordings), 1000)

        return note_call

    def _plan(self, numbers: Sequence[int], layout: BatchLayout) -> SweepPlan:
        chosen = [self.variants[i] for i in numbers]
        linear = not self.exact and self.reads is None
        return make_plan(chosen, layout, control=numbers[0] == 0, linear=linear)

    def _why_whole(self) -> str:
        """Why rows carry all positions where an edit leaves those in front of it as they are; hooks that came
        are told already."""
        if self.reads is not None:
            return "activations are read"
        return "" if self.model.hooked_since else why_no_cone(self.model)

    def _answer_unchanged(
        self, found: Unchanged | None, clean: dict[str, Tensor], layout: BatchLayout, work: Work
    ) -> set[int]:
        """Give the variants that put in what is there, to the bit, the clean run's values; returns their
        numbers."""
        if found is None:
            return set()
        rows = {number + 1 for number in found.numbers}
        for name, values in self.values.items():
            values[sorted(rows)] = clean[name]
        work.naive += len(rows) * naive_cost(layout)
        work.preparation += found.runs
        return rows

    def _measure_into(self, order: Sequence[int]) -> Callable[[list[Leaf], list[State]], None]:
        last = len(self.model.blocks) - 1
        clean = self.recording.post(last)

        def measure(leaves: list[Leaf], states: list[State]) -> None:
            numbers = [order[leaf.variant] for leaf in leaves]
            for leaf, number in zip(leaves, numbers, strict=True) if self.reads else ():
                assert self.reads is not None
                self.reads.settle(leaf, number)
            streams = torch.stack([state.stream_BTD for state in states])
            if 0 in numbers:
                self.deviation = max(self.deviation, gap(streams[numbers.index(0)], clean))
            resid_nPD = self.pairs.gather(streams, leaves[0].start, clean)
            edits = [leaf.final for leaf in leaves]
            for name, value in self._score(resid_nPD, edits).items():
                self.values[name][torch.tensor(numbers, device=value.device)] = value

        return measure

    def _clean_values(self) -> dict[str, Tensor]:
        clean = self.recording.post(len(self.model.blocks) - 1)
        self.pairs.clean_PD = self.pairs.gather(clean[None], 0, clean)[0]
        return {name: value[0] for name, value in self._score(self.pairs.clean_PD[None], [()]).items()}

    def _score(self, resid_nPD: Tensor, edits: Sequence[tuple[Edit, ...]]) -> dict[str, Tensor]:
        """Run the head at the pairs, in chunks that bound the logits held, and average each metric per
        prompt."""
        rows, pairs = resid_nPD.shape[:2]
        flat = resid_nPD.flatten(0, 1)
        step = max(1, LOGITS_AT_ONCE // self.model.vocabulary)
        kind = measured_type(flat.dtype)
        scores = {m.name: torch.zeros(rows * pairs, device=flat.device, dtype=kind) for m in self.metrics}
        for begin in range(0, len(flat), step):
            chosen = torch.arange(begin, min(begin + step, len(flat)), device=flat.device)
            given: dict[str, Tensor] = {"stream": flat[chosen]}
            if any(m.reads == "logits" for m in self.metrics):
                given["logits"] = self._head(flat[chosen], chosen, pairs, edits)
            for m in self.metrics:
                own = self.pairs.own_index[m.name][chosen % pairs]
                keep = own >= 0
                if bool(keep.any()):
                    clean = self._clean_reader(m)
                    scores[m.name][chosen[keep]] = m.score(
                        given[m.reads][keep], own[keep], self.recording, clean
                    ).to(kind)
        return {m.name: self.pairs.per_prompt(m.name, scores[m.name].view(rows, pairs)) for m in self.metrics}

    def _clean_reader(self, metric: Metric) -> Callable[[Tensor], Tensor]:
        def clean(pair_c: Tensor) -> Tensor:
            places = self.pairs.places[metric.name][pair_c]
            if metric.reads == "stream":
                return self.pairs.clean_PD[places]
            unique, back = places.unique(return_inverse=True)
            return self.recording.head(self.pairs.clean_PD[unique][:, None])[:, 0][back]

        return clean

    def _head(
        self, resid_cD: Tensor, chosen: Tensor, pairs: int, edits: Sequence[tuple[Edit, ...]]
    ) -> Tensor:
        if not any(edits):
            return self.recording.head(resid_cD[:, None])[:, 0]
        placed: dict[str, list[Placed]] = {"final_norm": [], "logits": []}
        for at, flat in enumerate(chosen.tolist()):
            prompt, position = self.pairs.prompt[flat % pairs], self.pairs.position[flat % pairs]
            for edit in edits[flat // pairs]:
                if _touches(edit, int(prompt), int(position), self.recording):
                    placed[edit.site].append(
                        Placed(at, _at_one_position(edit, int(prompt), int(position), self.recording))
                    )
        carried = Carried(0, 1, (1,))

        def changer(site: str) -> Callable[[Tensor], Tensor]:
            return lambda x: apply_edits(x[:, None], placed[site], carried)[:, 0] if placed[site] else x

        norm = self.model.parts.final_norm
        with (
            writing(Tap(norm, "output"), changer("final_norm"), (len(resid_cD), 1)) if norm else nullcontext()
        ):
            logits = self.recording.head(resid_cD[:, None])
        return changer("logits")(logits)[:, 0]


def _at_one_position(edit: Edit, prompt: int, position: int, recording: Recording) -> Edit:
    """The same edit for a row that is one position long: without a position, its value cut to that
    position's."""
    copy = object.__new__(type(edit))
    changes: dict[str, Any] = {"position": None}
    if isinstance(edit, (Replace, Add)):
        assert edit.value is not None
        carried = Carried(0, recording.positions, recording.lengths_of(len(recording.model.blocks) - 1))
        places = edit_positions(edit, carried.lengths)
        rows = [list(range(recording.positions))] * recording.prompts if places is None else places
        values = pick_value(
            edit, edit.value, torch.tensor(rows, device=edit.value.device), carried, edit.value.shape[-1]
        )
        values = values.expand(recording.prompts, len(rows[0]), -1)
        changes["value"] = values[prompt, rows[prompt].index(position)]
    copy.__dict__.update({**edit.__dict__, **changes})
    return copy


def _touches(edit: Edit, prompt: int, position: int, recording: Recording) -> bool:
    found = edit_positions(edit, recording.lengths_B.tolist())
    return found is None or position in found[prompt]
