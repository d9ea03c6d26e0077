"""What a model may keep of a prefix in the place of all its keys and values: strategies, by words.

A strategy maps the keys and values of one block to tensors that are kept, every byte of them counted, and to
what is read of them. Shapes: B prompts, H query heads, G key heads, P tokens of the prefix, K width of a
head, R tokens that stay whole.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from regraft.core.near_names import nearest
from regraft.systems.cache_codes import FLOATS, Coded, as_float, coded
from regraft.systems.cache_past import KeptPast, Past, StrategyError, decoded
from regraft.systems.cache_shapes import latent, low_rank, merged

INTS = {f"int{bits}": bits for bits in (8, 4, 3, 2)}
DROPS = ("window", "h2o", "snapkv", "pyramid", "scissorhands", "random", "oldest")
KINDS = ("whole", *FLOATS, *INTS, "heads", "rank", "latent", "share", *DROPS, "offload")
"""Every kind of strategy."""
GROUP = 32
"""Numbers that share a scale (KIVI, Liu et al. 2024)."""
SINKS = 4
"""First tokens that a window keeps beside its last ones (StreamingLLM, Xiao et al. 2024)."""
QUERIES, POOL = 16, 7
"""Last queries whose attention says what stays, and tokens over which it is pooled (SnapKV, Li et al.
2024)."""
FALLS = 0.5
"""Of a pyramid: by which share of the mean budget the first block has more, and the last less."""


@dataclass(frozen=True)
class Strategy:
    """A strategy that was asked for: its kind and options, as words such as `int4:k=channel,recent=32`."""

    words: str
    kind: str
    options: Mapping[str, str] = field(default_factory=dict)

    def number(self, name: str, usual: float) -> float:
        """An option that is a number."""
        return float(self.options.get(name, usual))

    def tokens(self, past: Past) -> int:
        """How many tokens of each head stay, by `budget`: a number of tokens, or a share such as 25%."""
        written, length = self.options.get("budget", "25%"), past.keys_BGPK.shape[2]
        share = float(written[:-1]) / 100 * length if written.endswith("%") else float(written)
        if self.kind == "pyramid" and past.blocks > 1:
            share *= 1 + FALLS * (1 - 2 * past.block / (past.blocks - 1))
        return min(length, max(1, round(share)))


OPTIONS = {
    **{name: ("k", "v", "group", "recent", "kbits", "vbits") for name in INTS},
    "heads": ("merge", "fit"),
    "rank": ("r", "rotation"),
    "latent": ("r",),
    "share": ("every",),
    **dict.fromkeys(DROPS, ("budget", "sinks", "recent", "queries", "pool", "seed")),
    "offload": ("budget",),
}
"""Options of each kind."""
WORDS = {
    "k": ("channel", "token"), "v": ("channel", "token"), "fit": ("mean", "queries"),
    "rotation": ("kept", "undone"),
}  # fmt: skip
"""Options that are words, and which."""


def strategy(words: str) -> Strategy:
    """Read a strategy.

    Examples:
        >>> strategy("int4:k=channel,recent=32").options
        {'k': 'channel', 'recent': '32'}

    Raises:
        StrategyError: an unknown kind or option (with the nearest), a value that is no number, or a budget of
            nothing.
    """
    kind, _, rest = words.strip().partition(":")
    if kind not in KINDS:
        raise StrategyError(f"there is no cache strategy {kind!r}{nearest(kind, KINDS)}")
    options = {}
    for piece in filter(None, rest.split(",")):
        name, _, value = piece.partition("=")
        known = OPTIONS.get(kind, ())
        if name not in known:
            told = f"it takes {', '.join(known)}" if known else "it takes none"
            raise StrategyError(f"{kind} has no option {name!r}: {told}{nearest(name, known)}")
        options[name] = value
    _check(kind, options)
    return Strategy(words.strip(), kind, options)


def _check(kind: str, options: Mapping[str, str]) -> None:
    for name, value in options.items():
        if name in WORDS:
            if value not in WORDS[name]:
                raise StrategyError(f"{kind}:{name}={value} is not {' or '.join(WORDS[name])}")
            continue
        plain = value[:-1] if name == "budget" and value.endswith("%") else value
        try:
            number = float(plain)
        except ValueError as error:
            raise StrategyError(f"{kind}:{name}={value} is no number") from error
        if not math.isfinite(number) or (name != "budget" and number != int(number)):
            raise StrategyError(f"{kind}:{name}={value} is no whole number")
        if number < 0 or (number == 0 and name not in ("sinks", "recent", "seed")):
            raise StrategyError(f"{kind}:{name}={value} keeps nothing: give more than 0")
        if name.endswith("bits") and number not in INTS.values():
            raise StrategyError(f"{kind}:{name}={value} is not one of {', '.join(map(str, INTS.values()))}")


def keep(asked: Strategy, past: Past) -> KeptPast:
    """What a strategy keeps of a block's past, and what is read of it."""
    if asked.kind in INTS:
        return _in_bits(asked, past)
    if asked.kind in FLOATS:
        return _as_short(past, asked.kind)
    if asked.kind == "heads":
        return merged(past, int(asked.number("merge", 2)), asked.options.get("fit") == "queries")
    if asked.kind == "rank":
        return low_rank(past, int(asked.number("r", 16)), asked.options.get("rotation") == "undone")
    if asked.kind == "latent":
        return latent(past, int(asked.number("r", 48)))
    if asked.kind in DROPS:
        return _dropped(asked, past)
    held = [past.keys_BGPK, past.values_BGPK]
    if asked.kind == "offload":  # read as it is, token by token from elsewhere
        stays = asked.tokens(past)
        near = [one[:, :, -stays:].contiguous() for one in held]
        away = sum(one.numel() * one.element_size() for one in held) - sum(
            n.numel() * n.element_size() for n in near
        )
        return KeptPast(past.keys_BGPK, past.values_BGPK, None, near, away)
    return KeptPast(past.keys_BGPK, past.values_BGPK, None, held)


def _in_bits(asked: Strategy, past: Past) -> KeptPast:
    """Codes of a few bits, the last tokens whole (KIVI: keys by channel, values by token)."""
    bits, group = INTS[asked.kind], int(asked.number("group", GROUP))
    cut = max(0, past.keys_BGPK.shape[2] - int(asked.number("recent", 0)))
    parts: list[tuple[Coded | None, Tensor]] = []
    for numbers, name, usual in ((past.keys_BGPK, "k", "channel"), (past.values_BGPK, "v", "token")):
        along = 2 if asked.options.get(name, usual) == "channel" else 3
        width = int(asked.number(f"{name}bits", bits))
        codes = coded(numbers[:, :, :cut], width, along, group) if cut else None
        parts.append((codes, numbers[:, :, cut:].contiguous()))

    def read() -> tuple[Tensor, Tensor]:
        whole = [
            last if codes is None else torch.cat([codes.read().to(last.dtype), last], dim=2)
            for codes, last in parts
        ]
        return whole[0], whole[1]

    held = [tensor for codes, _ in parts if codes is not None for tensor in codes.tensors]
    return decoded([*held, *(last for _, last in parts if last.numel())], read)


def _as_short(past: Past, name: str) -> KeptPast:
    """Short floats."""
    parts = [as_float(one, name) for one in (past.keys_BGPK, past.values_BGPK)]
    dtype = past.keys_BGPK.dtype
    return decoded(
        [tensor for part in parts for tensor in part.tensors],
        lambda: (parts[0].read().to(dtype), parts[1].read().to(dtype)),
    )


# what is dropped
# ----------------------------------------------------------------------------------------------------


def _dropped(asked: Strategy, past: Past) -> KeptPast:
    """Some tokens of each head alone: those that the strategy picks."""
    stays_BGP = _picked(asked, past)
    count = int(stays_BGP.sum(-1).max())
    places = stays_BGP.float().topk(count, dim=-1).indices.sort(-1).values[..., None]
    held = [
        one.gather(2, places.expand(-1, -1, -1, one.shape[-1])) for one in (past.keys_BGPK, past.values_BGPK)
    ]
    same = bool((stays_BGP == stays_BGP[:, :1]).all())
    held += [] if same and asked.kind in ("window", "oldest") else [places.squeeze(-1).to(torch.int32)]
    return KeptPast(past.keys_BGPK, past.values_BGPK, stays_BGP, held)


def _picked(asked: Strategy, past: Past) -> Tensor:
    """True on the tokens that stay, (B, G, P): exactly the budget of each head."""
    rows, groups, length = past.keys_BGPK.shape[:3]
    budget, device = asked.tokens(past), past.keys_BGPK.device
    place = torch.arange(length, device=device).float()
    if asked.kind == "window":
        sinks = min(int(asked.number("sinks", SINKS)), budget)
        score = place + length * (place < sinks)
        return _best(score.expand(rows, groups, -1), budget)
    if asked.kind == "oldest":
        return _best((-place).expand(rows, groups, -1), budget)
    if asked.kind == "random":
        generator = torch.Generator().manual_seed(int(asked.number("seed", 0)) * 1000 + past.block)
        return _best(torch.rand(rows, groups, length, generator=generator).to(device), budget)
    recent = min(int(asked.number("recent", budget // 4)), budget)
    score = _score(asked, past)
    score = score + 2 * float(score.max()) * (place >= length - recent)
    return _best(score, budget)


def _score(asked: Strategy, past: Past) -> Tensor:
    """How much each token was looked at, by key head, (B, G, P)."""
    groups = past.keys_BGPK.shape[1]
    if asked.kind in ("snapkv", "pyramid"):
        looked_BHP = past.attention(int(asked.number("queries", QUERIES)))
        width = int(asked.number("pool", POOL)) | 1  # odd: pooled around each token
        looked_BHP = torch.nn.functional.avg_pool1d(looked_BHP, width, 1, width // 2, count_include_pad=False)
    else:
        looked_BHP = past.attention(None)
    if asked.kind == "scissorhands":  # tokens that were pivotal: looked at by more than an even share
        looked_BHP = (looked_BHP > looked_BHP.mean(-1, keepdim=True)).float() + 1e-3 * looked_BHP
    return looked_BHP.unflatten(1, (groups, -1)).mean(2)


def _best(score_BGP: Tensor, budget: int) -> Tensor:
    chosen = score_BGP.topk(budget, dim=-1).indices
    return torch.zeros(score_BGP.shape, dtype=torch.bool, device=score_BGP.device).scatter_(-1, chosen, True)
