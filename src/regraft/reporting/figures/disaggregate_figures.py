"""Figures of reading and writing apart: what moving costs, and from which rate it pays."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from regraft.reporting.theme import PALETTE, Drawing, Panel, grouped_bars, lines, panel
from regraft.reporting.wording import counted


def disaggregate_figures(data: xr.Dataset) -> list[tuple[str, go.Figure]]:
    """The first token over prompt lengths for each way, and requests answered well over their rate."""
    one = data.isel(over=0)
    series = {"one process": data.together_first_token.values}
    series |= {str(way): one.first_token.sel(way=way).values for way in data.way.values[: len(PALETTE) - 1]}
    lengths = [f"{length:,} tokens" for length in data.prompt.values]
    first = grouped_bars(lengths, series, "prompt", "milliseconds")
    drawn = [(f"The first token, keys and values moved over {one.over.item()}", first)]
    for mix in data.mix.values:
        drawn.append((f"Requests answered within both limits, {mix}, simulated", _well(data, str(mix))))
    return drawn


def _well(data: xr.Dataset, mix: str) -> go.Figure:
    series = {str(how): data.goodput.sel(mix=mix, arrangement=how).values for how in data.arrangement.values}
    return lines(data.rate.values, series, "requests a second", "requests a second answered well")


def disaggregate_panels(data: xr.Dataset) -> list[Panel]:
    """What is moved, what reading hides of it, and from which rate apart wins over the link's speed."""
    longest = data.isel(prompt=-1)
    moved = {str(over): longest.bytes.sel(over=over).values for over in data.over.values}
    sizes = grouped_bars(data.way.values, moved, "", "bytes", log=True)
    hidden = {str(over): longest.hidden.sel(over=over).values for over in data.over.values}
    shares = grouped_bars(data.way.values, hidden, "", "share of sending")
    stars = {str(mix): data.pays_from.sel(mix=mix).values for mix in data.mix.values}
    curve = lines(data.speed.values, stars, "GB/s between machines", "requests a second")
    curve.update_xaxes(type="log")
    found = []
    if "expert_load" in data:
        at = int(np.argmax(data.expert_unevenness.values))
        each = {"each expert once": data.expert_load.values[at],
                "with copies of the busiest": data.expert_load_copied.values[at]}  # fmt: skip
        loads = grouped_bars([f"rank {r}" for r in data["rank"].values], each, "", "tokens times experts")
        where = f"Work of each machine in block {data.expert_block.values[at]}, the most uneven"
        found = [panel(data, "expert_load", where, loads)]
    return [
        *found,
        panel(data, "bytes", f"Bytes moved of {int(longest.prompt):,} tokens", sizes),
        panel(data, "hidden", "Share of sending that reading hides", shares),
        panel(data, "pays_from", "The rate from which apart wins (no point: at none)", curve),
    ]


def disaggregate_finding(data: xr.Dataset) -> str:
    """What moving the longest prompt adds, and whether apart ever wins."""
    one = data.isel(over=0, prompt=-1)
    way = int(np.argmin(one.exposed.values))
    share = float(one.exposed.values[way]) / float(data.together_first_token.values[-1])
    what = f"{int(one.bytes.values[way]):,} bytes, {data.way.values[way]}, over {one.over.item()}"
    told = (
        f"Moving the keys and values of {int(one.prompt):,} tokens ({what}) adds"
        f" {float(one.exposed.values[way]):.2g} ms to the first token, {share:.1%} of what one process takes"
    )
    same = float(data.same_tokens.min())
    alike = "every token" if same == 1 else f"at least {same:.0%} of tokens"
    told += f"; {alike} stayed the same"
    if "expert_load" in data:
        worst = int(np.argmax(data.expert_unevenness.values))
        uneven, even = (float(data[n][worst]) for n in ("expert_unevenness", "expert_unevenness_copied"))
        told += (
            f"; of {counted(data.sizes['rank'], 'rank')} the busiest computes {uneven:.2f} times the mean in"
            f" block {data.expert_block.values[worst]}, with copies {even:.2f} times"
        )
    best = data.pays_from.values
    machines = counted(int(data.attrs["machines"]), "simulated machine")
    if np.isfinite(best).any():
        mix, speed = np.unravel_index(int(np.nanargmin(best)), best.shape)
        return (
            f"{told}. On {machines} apart answers more requests well from {best[mix, speed]:.3g} a second on,"
            f" with {data.mix.values[mix]} and {data.speed.values[speed]:g} GB/s between them."
        )
    return f"{told}. On {machines} apart never answers more requests well, at any rate or link."


DISAGGREGATE = Drawing(
    "Apart",
    "What does it cost to read in one place and write in another, and when does it pay?",
    "Two real processes: one reads prompts, the other writes behind them. What reading does not hide of"
    " moving is added to the first token. Many machines are simulated from these times; an answer is good"
    " within both limits that the result names.",
    disaggregate_figures,
    disaggregate_finding,
    ("bytes", "wire", "exposed", "hidden", "first_token", "between", "same_tokens", "pays_from"),
    disaggregate_panels,
)
