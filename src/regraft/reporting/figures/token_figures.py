"""Figures of tokenizers: what they make of each domain, what they share, which tokens cross words."""

from __future__ import annotations

from collections import Counter

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from regraft.reporting.theme import (
    FIRST,
    MUTED,
    PALETTE,
    Drawing,
    Label,
    Panel,
    axis_labels,
    base,
    heatmap,
    panel,
    plain_text,
    quoted,
)
from regraft.reporting.wording import capital, counted, differ, highest, listed, lowest, signed

SHOWN = 12
"""Rows of the longest and most frequent tokens."""
SAID = 4
"""Domains that are named in the finding; of more, only how many there are."""


def grouped(data: xr.Dataset, name: str, title: str) -> go.Figure:
    """Bars by domain, one colour for each tokenizer."""
    figure = base(360, barmode="group")
    for number, tokenizer in enumerate(data.tokenizer.values):
        values = data[name].sel(tokenizer=tokenizer).values.tolist()
        hover = f"{plain_text(tokenizer)}, %{{x}}: %{{y:.4~g}}<extra></extra>"
        figure.add_bar(
            x=axis_labels(data.domain.values), y=values, name=plain_text(tokenizer),
            marker_color=PALETTE[number % len(PALETTE)],
            hovertemplate=hover,
        )  # fmt: skip
    figure.update_layout(
        showlegend=True, legend=dict(orientation="h", y=1.02, yanchor="bottom", x=0), margin_t=64
    )
    figure.update_yaxes(title=title)
    return figure


def crossing(data: xr.Dataset, tokenizer: str) -> go.Figure:
    """The most frequent tokens that cross words, by how often they occur."""
    one = data.sel(tokenizer=tokenizer).isel(rank=slice(SHOWN))
    found = [
        (plain_text(quoted(t)), int(n))
        for t, n in zip(one.crossing_token.values, one.crossing_count.values, strict=True)
        if n
    ]
    figure = base(120 + 22 * max(1, len(found)))
    figure.add_bar(
        y=[t for t, _ in found], x=[n for _, n in found], orientation="h", marker_color=FIRST,
        hovertemplate="%{y}: %{x} times<extra></extra>",
    )  # fmt: skip
    figure.update_layout(margin_l=190)
    figure.update_xaxes(title="times in the text")
    figure.update_yaxes(autorange="reversed")
    return figure


def by_words(data: xr.Dataset) -> go.Figure:
    """Bars by the number of words, or parts of words, that a token holds, one colour for each tokenizer."""
    figure = base(340, barmode="group")
    for number, tokenizer in enumerate(data.tokenizer.values):
        one = data.sel(tokenizer=tokenizer)
        hover = (
            f"{plain_text(tokenizer)}, %{{x}}: %{{y:.2%}} of the text's tokens,"
            " %{customdata:.2%} of the vocabulary<extra></extra>"
        )
        figure.add_bar(
            x=axis_labels(data.words.values), y=one.text_by_words.values.tolist(),
            customdata=one.vocabulary_by_words.values.tolist(), name=plain_text(tokenizer),
            marker_color=PALETTE[number % len(PALETTE)], hovertemplate=hover,
        )  # fmt: skip
    figure.update_layout(
        showlegend=True, legend=dict(orientation="h", y=1.02, yanchor="bottom", x=0), margin_t=64
    )
    figure.update_xaxes(title="words, or parts of words, in a token (0: white space alone)", type="category")
    figure.update_yaxes(title="share of the text's tokens", tickformat=".0%")
    return figure


def tokenizer_figures(data: xr.Dataset) -> list[tuple[str, go.Figure]]:
    """Bytes per token, words, crossing, overlap, and bits per byte where models were given."""
    found = [("Bytes of text for each token", grouped(data, "bytes_per_token", "bytes per token"))]
    if "bits_per_byte" in data:
        found.append(
            ("Bits per byte, each tokenizer with its model", grouped(data, "bits_per_byte", "bits per byte"))
        )
    found.append(("Tokens for each word", grouped(data, "tokens_per_word", "tokens per word")))
    if float(data.crossing.max()) > 0:
        found.append(
            (
                "Share of the text's tokens that hold parts of two words",
                grouped(data, "crossing", "share of tokens"),
            )
        )
    if data.sizes["tokenizer"] > 1:
        shared = heatmap(data.overlap.values, data.other.values, data.tokenizer.values, "share")
        shared.update_layout(xaxis_title="has them as well", yaxis_title="tokens of")
        found.append(("Tokens that two vocabularies share, by their bytes", shared))
    found.append(("Share of the text's tokens by the words that they hold", by_words(data)))
    for tokenizer in data.tokenizer.values:
        if int(data.crossing_count.sel(tokenizer=tokenizer).max()):
            found.append(
                (f"{tokenizer}: the most frequent tokens that cross words", crossing(data, str(tokenizer)))
            )
    return found


def tokenizer_finding(data: xr.Dataset) -> str:
    """The tokenizer with the fewest tokens on each domain, and by how much."""
    sentence, first = [], Counter()
    for domain in data.domain.values:
        one = data.bytes_per_token.sel(domain=domain)
        high, low = highest(one.values), lowest(one.values)
        if not differ(one.values) or len(high) > 1:
            continue
        best, worst = str(one.tokenizer.values[high[0]]), [str(name) for name in one.tokenizer.values[low]]
        saved = 1 - float(one.values[low[0]]) / float(one.values[high[0]])
        sentence.append(f"on {domain} {best} takes the fewest tokens, {saved:.1%} fewer than {listed(worst)}")
        first[best] += 1
    inexact = [str(t) for t in data.tokenizer.values if float(data.exact.sel(tokenizer=t).min()) < 1]
    lossy = f" Not every text comes back as it was from {', '.join(inexact)}." if inexact else ""
    text = "; ".join(sentence[:SAID])
    if len(sentence) > SAID:
        text += "; fewest of all: " + ", ".join(
            f"{name} on {n} of {data.sizes['domain']}" for name, n in first.most_common()
        )
    return (text[:1].upper() + text[1:] + "." if text else "") + lossy


TOKENIZERS = Drawing(
    "Tokenizers",
    "How much text does a token hold, and which words does it cross?",
    "All tokenizers read the same pieces of text. More bytes for a token mean shorter sequences, which says"
    " nothing yet of how well a model predicts them: bits per byte do, and are comparable between"
    " vocabularies. Two tokens are the same where they stand for the same bytes, however their tokenizers"
    " write them.",
    tokenizer_figures,
    tokenizer_finding,
    ("bytes_per_token", "characters_per_token", "tokens_per_word", "crossing", "exact", "bits_per_byte"),
)


def transplant_figures(data: xr.Dataset) -> list[tuple[str, go.Figure]]:
    """Bits per byte, or how far embeddings move, and bytes per token by domain, before and after."""
    length = _states(
        data, {s: data.bytes_per_token.sel(state=s) for s in ("before", "after")}, "bytes per token"
    )
    shorter = ("Bytes of text for each token, before and after", length)
    if "bits_per_byte" not in data:
        moved = _states(data, {"moved": data.distance, **_yardstick(data)}, "1 - cosine")
        return [("How far the embeddings of texts move, beside how far two texts are apart", moved), shorter]
    states = {
        "before": data.bits_per_byte.sel(state="before"),
        "after": data.bits_per_byte.sel(state="after"),
    }
    if "bits_per_byte_unhealed" in data:
        states = {
            "before": states["before"],
            "after, not healed": data.bits_per_byte_unhealed,
            "after": states["after"],
        }
    bits = _states(data, states, "bits per byte")
    found = [("Bits per byte of text, before and after", bits), shorter]
    if "view" in data:
        found.append(
            ("Rows of the embedding on the two directions in which the old ones vary most", view(data))
        )
    if "healing_loss" in data:
        figure = base(300)
        figure.add_scatter(y=data.healing_loss.values.tolist(), mode="lines", line_color=FIRST, name="loss")
        figure.update_xaxes(title="step")
        figure.update_yaxes(title="nats, and relative error")
        found.append(("Loss while the new rows are healed", figure))
    return found


def _yardstick(data: xr.Dataset) -> dict[str, xr.DataArray]:
    """The distance of two different texts, the same for every domain."""
    return {"two different texts": data.apart.broadcast_like(data.distance)} if "apart" in data else {}


def _states(data: xr.Dataset, states: dict[str, xr.DataArray], title: str) -> go.Figure:
    figure = base(340, barmode="group")
    for (sentence, values), colour in zip(
        states.items(), (MUTED, *PALETTE) if len(states) == 3 else (MUTED, FIRST), strict=False
    ):
        hover = f"%{{x}}, {sentence}: %{{y:.4f}}<extra></extra>"
        figure.add_bar(
            x=axis_labels(data.domain.values),
            y=values.values.tolist(),
            name=sentence,
            marker_color=colour,
            hovertemplate=hover,
        )
    figure.update_layout(
        showlegend=True, legend=dict(orientation="h", y=1.02, yanchor="bottom", x=0), margin_t=64
    )
    figure.update_yaxes(title=title)
    return figure


def transplant_finding(data: xr.Dataset) -> str:
    """Each domain's change, and how many rows were taken over."""
    old, new = int(data.taken_over), int(data.estimated)
    taken = capital(f"{counted(old, 'token')} {'takes' if old == 1 else 'take'}")
    estimated = f"{new:,} {'is' if new == 1 else 'are'}" if new else "none is"
    changes = _bits_sentence(data) if "bits_per_byte" in data else _moves_sentence(data)
    return (
        f"{taken} over an old token's rows, {estimated} estimated by the method"
        f" {data.attrs['method']}.{changes}"
    )


def _bits_sentence(data: xr.Dataset) -> str:
    bits = data.bits_per_byte
    sentence = [
        f"{signed(float(change))} on {d}" if np.isfinite(change) else f"no finite number on {d}"
        for d, change in zip(
            data.domain.values, (bits.sel(state="after") - bits.sel(state="before")).values, strict=True
        )
    ]
    lossy = [str(d) for d in data.domain.values if float(data.exact.sel(domain=d).min()) < 1]
    warning = (
        f" A tokenizer does not keep {', '.join(lossy)} as it is, so these bits are not comparable."
        if lossy
        else ""
    )
    return (f" Bits per byte: {', '.join(sentence)}." if sentence else "") + warning


def _moves_sentence(data: xr.Dataset) -> str:
    sentence = [
        f"{float(one):.3g} on {d}" for d, one in zip(data.domain.values, data.distance.values, strict=True)
    ]
    beside = (
        f", where two different texts are {float(data.apart):.3g} apart; {float(data.same_nearest):.0%} of"
        " the texts keep their nearest other text"
        if "apart" in data
        else ""
    )
    return f" Embeddings of texts move by a cosine distance of {', '.join(sentence)}{beside}."


def view(data: xr.Dataset) -> go.Figure:
    """A point for each shown row: taken over, and estimated."""
    figure = base(460)
    for kind, colour in (("taken over", MUTED), ("estimated", FIRST)):
        one = data.isel(shown=np.flatnonzero(data.view_kind.values == kind))
        figure.add_scatter(
            x=one.view.values[:, 0].tolist(), y=one.view.values[:, -1].tolist(), mode="markers", name=kind,
            text=[plain_text(quoted(token)) for token in one.view_token.values],
            marker=dict(size=5, color=colour, opacity=0.7), hovertemplate=f"%{{text}}, {kind}<extra></extra>",
        )  # fmt: skip
    figure.update_layout(
        showlegend=True, legend=dict(orientation="h", y=1.02, yanchor="bottom", x=0), margin_t=64
    )
    names = [
        f"direction {n + 1}: {float(s):.1%} of the variance" for n, s in enumerate(data.view_share.values)
    ]
    figure.update_xaxes(title=names[0])
    figure.update_yaxes(title=names[-1])
    return figure


def made_of(data: xr.Dataset) -> go.Figure:
    """Frequent new tokens as bars, each divided into the old tokens that its row was mixed of."""
    labels = [
        Label(f"{plain_text(quoted(token))} ({int(count):,} times)")
        for token, count in zip(data.made_token.values, data.made_count.values, strict=True)
    ]
    figure = base(140 + 24 * len(labels), barmode="relative")
    for place in range(data.sizes["largest"]):
        one = data.isel(largest=place)
        names = [plain_text(quoted(text)) if text else "" for text in one.made_part.values]
        figure.add_bar(
            y=labels, x=one.made_weight.values.tolist(), orientation="h", text=names, textposition="inside",
            insidetextanchor="middle", textangle=0, marker_color=PALETTE[place % len(PALETTE)],
            constraintext="inside",
            hovertemplate="%{y}<br>%{text}: %{x:.4f} of the row<extra></extra>",
        )  # fmt: skip
    figure.update_layout(margin_l=230, bargap=0.12)
    figure.update_xaxes(title="share of the new row")
    figure.update_yaxes(type="category", autorange="reversed", tickmode="linear")
    return figure


def controls(data: xr.Dataset, name: str, title: str) -> go.Figure:
    """Bars by domain: the method, and rows that were drawn."""
    own = data.bits_per_byte.sel(state="after") if name == "bits_per_byte_control" else data.distance
    unhealed = data.get("bits_per_byte_unhealed", own)
    drawn = {f"{kind} rows": data[name].sel(control=kind) for kind in data.control.values}
    return _states(data, {str(data.attrs["method"]): unhealed, **drawn}, title)


def transplant_panels(data: xr.Dataset) -> list[Panel]:
    """What rows were made of, and what drawn rows would have cost."""
    found = []
    if "made_token" in data:
        caption = "What the rows of the most frequent new tokens were mixed of"
        found.append(panel(data, "made_weight", caption, made_of(data)))
    for name, title in (("bits_per_byte_control", "bits per byte"), ("distance_control", "1 - cosine")):
        if name in data:
            caption = "The method beside rows drawn at random, none of them healed"
            found.append(panel(data, name, caption, controls(data, name, title)))
    return found


TOKENIZER_TRANSPLANT = Drawing(
    "Tokenizer transplant",
    "What does another tokenizer cost the model?",
    "The model reads the same pieces of text, cut by its own tokenizer and by the new one. Bits per byte"
    " count every byte of them, so they are comparable although the tokens are not; of a model that writes no"
    " text, the embeddings of whole texts are compared. Longer tokens mean fewer steps for the same text.",
    transplant_figures,
    transplant_finding,
    (
        "bits_per_byte", "bits_per_byte_control", "perplexity", "perplexity_ratio", "distance",
        "distance_control", "apart", "same_nearest", "bytes_per_token", "exact", "row_norm",
    ),
    transplant_panels,
)  # fmt: skip
