"""A model card: what was put in which part's place, and the certificate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import xarray as xr

from regraft.core.strict_json import json_text, opened_attributes
from regraft.model.model import Model
from regraft.modules.graft_kinds import Graft, kind_of


def card(
    model: Model, title: str, made: str, body: Sequence[str], facts: Mapping[str, Any], *tags: str
) -> str:
    """The text of a model card in Markdown: what was made of which model, how, what was measured, every fact
    as JSON.

    Args:
        title: the model and what it has now.
        made: how it was made, behind the model's name and hash.
        body: lines of Markdown.
        facts: attributes of the measurement.
    """
    front = ["---", "library_name: transformers", f"tags: [{', '.join(('regraft', *tags))}]", "---"]
    origin = f"Made by regraft from {model.name} (weights sha256 `{model.weights_sha256}`){made}"
    told = ["```json", json_text(opened_attributes(dict(facts)), indent=1, sort_keys=True), "```"]
    return "\n".join([*front, f"# {title}", "", origin, "", *body, "", *told, ""])


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table in Markdown, line by line."""
    return ["| " + " | ".join(row) + " |" for row in (heads, ["---"] * len(heads), *rows)]


def graft_card(model: Model, grafts: Sequence[Graft], certificate: xr.Dataset, baked: str = "") -> str:
    """The card of a model with grafts; `baked` says that they stand in it as plain tensors, and how
    exactly."""
    if certificate.attrs.get("experiment") == "transcoder":
        return transcoder_card(model, certificate)
    kinds = " and ".join(kind_of(graft) for graft in grafts)
    ours = sum(p.numel() for graft in grafts for p in graft.parameters())
    before = int(certificate.part_parameters.sel(state="before"))
    opening = baked or "Open it behind `import regraft`, which makes its type known to transformers."
    made = f": {ours:,} parameters of grafts in place of {before:,}. {opening}"
    costs = [] if baked else [*cost_rows(certificate), ""]
    body = [
        *domain_rows(certificate),
        "",
        *costs,
        "The tokens that suffer most:",
        "",
        *worst_rows(certificate),
    ]
    return card(model, f"{model.name} with a {kinds}", made, body, certificate.attrs)


def transcoder_card(model: Model, certificate: xr.Dataset) -> str:
    """The card of a model with adapters beside its MLPs."""
    made = (
        f": {certificate.attrs['parameters']:,} parameters of adapters beside its MLPs, which are those of"
        f" {certificate.attrs['pair_base']}, taught by {certificate.attrs['pair_target']}. Open it behind"
        " `import regraft`, which makes its type known to transformers."
    )
    names = list(map(str, certificate.model.values))
    rows = [
        [name, *(f"{float(one.loss.sel(model=m)):.4f}" for m in names), f"{float(one.recovered):.1%}",
         f"{float(one.kl.sel(model='adapted')):.4f}", f"{float(one.active.mean()):.1f}"]
        for name, one in ((str(d), certificate.sel(domain=d)) for d in certificate.domain.values)
    ]  # fmt: skip
    heads = ["text", *(f"loss, {m}, nats per token" for m in names), "recovered of the gain over the hybrid",
             "divergence from the target, nats per token", "active features of a token"]  # fmt: skip
    title = f"{certificate.attrs['pair_base']} with transcoder adapters"
    return card(model, title, made, table(heads, rows), certificate.attrs, "transcoder")


def domain_rows(certificate: xr.Dataset) -> list[str]:
    """What the grafts change, a row for each domain."""
    rows = [
        f"| {name} | {float(one.bits_per_byte_before):.4f} | {float(one.bits_per_byte_after):.4f} |"
        f" {float(one.kl):.4f} | {float(one.top1):.1%} | {float(one.top5):.1%} | {float(one.nmse[-1]):.3g} |"
        for name, one in ((str(d), certificate.sel(domain=d)) for d in certificate.domain.values)
    ]
    head = (
        "| text | bits per byte before | after | divergence, nats per token | same first token | of the first"
        " five | error of the last stream, of its mean square |"
    )
    return [head, "|---|---|---|---|---|---|---|", *rows]


COSTS = ("part_parameters", "parameters", "bytes", "forward", "forward_peak", "step", "step_peak")


def cost_rows(certificate: xr.Dataset) -> list[str]:
    """What the grafts weigh and take, before and after."""
    rows = [
        f"| {certificate[name].attrs['units']} | {' | '.join(map(_number, certificate[name].values))} |"
        for name in COSTS
    ]
    return ["| measured | before | after |", "|---|---|---|", *rows]


def worst_rows(certificate: xr.Dataset) -> list[str]:
    """The tokens that the grafts make less probable by most, in their contexts."""
    rows = [
        f"| {float(one.excess):+.2f} | {_code(one.token.item())} | {_code(one.context.item())} |"
        f" {one.worst_domain.item()} |"
        for one in (certificate.isel(worst=i) for i in range(certificate.sizes["worst"]))
    ]
    return ["| nats more | token | behind | text |", "|---|---|---|---|", *rows]


def _code(text: Any) -> str:
    """Text as code in a Markdown table: line breaks shown, bars and backticks out of the way."""
    return "`" + repr(str(text))[1:-1].replace("|", "¦").replace("`", "'") + "`"


def _number(value: Any) -> str:
    number = float(value)
    return f"{int(number):,}" if number.is_integer() else f"{number:.4g}"
