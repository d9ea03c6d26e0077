"""A model card: what was put in which part's place, and the certificate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import xarray as xr

from regraft.core.strict_json import json_text, opened_attributes
from regraft.model.model import Model
from regraft.modules.graft_kinds import Graft, kind_of


def card(model: Model, grafts: Sequence[Graft], certificate: xr.Dataset, baked: str = "") -> str:
    """The text of a model card in Markdown; `baked` says that the grafts stand in it as plain tensors, and how exactly."""
    kinds = " and ".join(kind_of(graft) for graft in grafts)
    ours = sum(p.numel() for graft in grafts for p in graft.parameters())
    before = int(certificate.part_parameters.sel(state="before"))
    opening = baked or "Open it behind `import regraft`, which makes its type known to transformers."
    return "\n".join(
        [
            "---",
            "library_name: transformers",
            "tags: [regraft]",
            "---",
            f"# {model.name} with a {kinds}",
            "",
            f"Made by regraft from {model.name} (weights sha256 `{model.weights_sha256}`): {ours:,} parameters of grafts in "
            f"place of {before:,}. {opening}",
            "",
            *domain_rows(certificate),
            "",
            *([] if baked else [*cost_rows(certificate), ""]),
            "The tokens that suffer most:",
            "",
            *worst_rows(certificate),
            "",
            "```json",
            json_text(opened_attributes(certificate.attrs), indent=1, sort_keys=True),
            "```",
            "",
        ]
    )


def domain_rows(certificate: xr.Dataset) -> list[str]:
    """What the grafts change, a row for each domain."""
    rows = [
        f"| {name} | {float(one.bits_per_byte_before):.4f} | {float(one.bits_per_byte_after):.4f} | {float(one.kl):.4f} | "
        f"{float(one.top1):.1%} | {float(one.top5):.1%} | {float(one.nmse[-1]):.3g} |"
        for name, one in ((str(d), certificate.sel(domain=d)) for d in certificate.domain.values)
    ]
    head = (
        "| text | bits per byte before | after | divergence, nats per token | same first token | of the first five "
        "| error of the last stream, of its mean square |"
    )
    return [head, "|---|---|---|---|---|---|---|", *rows]


COSTS = ("part_parameters", "parameters", "bytes", "forward", "forward_peak", "step", "step_peak")


def cost_rows(certificate: xr.Dataset) -> list[str]:
    """What the grafts weigh and take, before and after."""
    rows = [f"| {certificate[name].attrs['units']} | {' | '.join(map(_number, certificate[name].values))} |" for name in COSTS]
    return ["| measured | before | after |", "|---|---|---|", *rows]


def worst_rows(certificate: xr.Dataset) -> list[str]:
    """The tokens that the grafts make less probable by most, in their contexts."""
    rows = [
        f"| {float(one.excess):+.2f} | {_code(one.token.item())} | {_code(one.context.item())} | {one.worst_domain.item()} |"
        for one in (certificate.isel(worst=i) for i in range(certificate.sizes["worst"]))
    ]
    return ["| nats more | token | behind | text |", "|---|---|---|---|", *rows]


def _code(text: Any) -> str:
    """Text as code in a Markdown table: line breaks shown, bars and backticks out of the way."""
    return "`" + repr(str(text))[1:-1].replace("|", "¦").replace("`", "'") + "`"


def _number(value: Any) -> str:
    number = float(value)
    return f"{int(number):,}" if number.is_integer() else f"{number:.4g}"
