"""Blocks built for one purpose each: found by what adds up where no name tells, believed or not, and why
not."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from regraft.model.branches import COARSE, _closes, _with_norms, read_block
from regraft.model.parts import Branch
from regraft.model.trace import Call, trace

WIDTH = 8


class Attention(nn.Linear):
    """Stands for an attention: its class says so, no name does."""


class EncoderAttn(nn.Linear):
    pass


class Tower(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.blocks = nn.ModuleList([block])

    def forward(self, x):
        return self.blocks[0](x)


class Block(nn.Module):
    """Parts under names of one's own, and what the block does with them and the stream."""

    def __init__(self, does, numbers=None, **parts):
        super().__init__()
        torch.manual_seed(3)
        self.does = does
        for name, part in parts.items():
            setattr(self, name, part(WIDTH, WIDTH) if part in (Attention, EncoderAttn, nn.Linear) else part())
        for name, number in (numbers or {}).items():
            setattr(self, name, number)

    def forward(self, x):
        return self.does(self, x)


class Holder(nn.Module):
    """A part whose last layer bears a name of the table, or none."""

    def __init__(self, name):
        super().__init__()
        self.name = name
        setattr(self, name, nn.Linear(WIDTH, WIDTH))

    def forward(self, x):
        return getattr(self, self.name)(x.tanh())


class SelfAttention(Holder):
    pass


NAMED = dict(a=lambda: SelfAttention("o_proj"), b=lambda: Holder("down_proj"))


def norm():
    return nn.LayerNorm(WIDTH)


def read(does, dtype=torch.float32, numbers=None, scale=1.0, **parts):
    hf = Tower(Block(does, numbers, **parts)).to(dtype)
    x = scale * torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(1)).to(dtype)
    return read_block(trace(hf, {"x": x}), 0, "0", "blocks.0", hf.blocks[0])


def one_after_the_other(m, x):
    x = x + m.a(x)
    return x + m.b(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("beside", [False, True])
def test_two_parts_without_a_known_name_are_found_by_their_sum(dtype, beside):
    does = (lambda m, x: x + m.a(x) + m.b(x)) if beside else one_after_the_other
    block = read(does, dtype, a=Attention, b=nn.Linear, unused=nn.Linear)
    assert [branch.kind for branch in block.branches] == ["attn", "mlp"]
    assert [branch.projection for branch in block.branches] == [block.module.a, block.module.b]
    assert block.branches[0].attention is block.module.a
    assert block.parallel is beside


def test_one_part_is_found_alone_and_two_of_one_side_are_not_told_apart():
    block = read(lambda m, x: x + m.a(x), a=nn.Linear)
    assert [branch.module for branch in block.branches] == [block.module.a]
    assert not block.parallel, "nothing stands beside it"
    block = read(one_after_the_other, a=nn.Linear, b=nn.Linear)
    assert block.branches == ()
    assert block.reason.endswith("(the last of its shape are a, b)")


@pytest.mark.parametrize("off", [1.0, -0.01])
def test_what_does_not_add_up_is_not_believed(off):
    """A hundredth of the output of a part more or less is no reading of the block."""
    found = read(lambda m, x: x + m.a(x) + (1 + off) * m.b(x), a=Attention, b=nn.Linear)
    assert found.branches == ()


def test_a_norm_is_no_branch():
    assert read(lambda m, x: x + m.n(m.a(x)), a=nn.Linear, n=norm).branches == ()


def after_each(m, x):
    x = m.n(x + m.a(m.inner(x)))
    return m.o(x + m.b(x))


def test_norms_of_the_stream_are_found_with_what_was_added_before_each():
    block = read(after_each, a=Attention, b=nn.Linear, n=norm, o=norm, inner=norm)
    assert [(b.kind, b.module, b.sum_norm) for b in block.branches] == [
        ("attn", block.module.a, block.module.n),
        ("mlp", block.module.b, block.module.o),
    ]
    assert not block.parallel


@pytest.mark.parametrize(
    "does",
    [
        lambda m, x: (1 + 2e-5) * after_each(m, x),
        lambda m, x: m.o(m.n(x + m.a(x)) + 1.01 * m.b(x)),
        lambda m, x: m.o(m.n(x + 0.5 * m.a(x)) + 0.5 * m.b(x)),
        lambda m, x: m.o(m.n(x + m.a(x)) + x.roll(1, 0)),
    ],
    ids=["scaled behind", "another sum", "a factor", "something else"],
)
def test_a_block_that_does_more_than_norm_each_sum_is_not_believed(does):
    assert (
        read(does, numbers={"half": 0.5}, a=Attention, b=nn.Linear, n=norm, o=norm, inner=norm).branches == ()
    )


@pytest.mark.parametrize(
    ("factor", "kept", "scale", "believed"),
    [
        (0.22, 0.22, 1.0, True),
        (0.22, 0.22, 100.0, True),
        (0.22 * (1 + 5e-5), 0.22, 1.0, False),
        (0.22 * (1 - 5e-5), 0.22, 1.0, False),
        (0.01 * (1 + 5e-5), 0.01, 1.0, False),
        (0.22, 0.23, 1.0, False),
        (-0.5, -0.5, 1.0, True),
        (2.0, 2, 1.0, False),
    ],
)
def test_a_factor_is_believed_to_five_digits_and_where_the_block_keeps_it(factor, kept, scale, believed):
    """Off by five hundred-thousandths it would still close within what a reading may be off; a count is no
    factor."""
    does = lambda m, x: x + factor * m.a(x) + factor * m.b(x)  # noqa: E731
    block = read(does, numbers={"multiplier": kept, "other": 0.7}, scale=scale, **NAMED)
    assert [branch.factor for branch in block.branches] == ([kept] * 2 if believed else [])


def test_a_factor_that_a_part_keeps_is_the_blocks_own_and_must_close():
    class Scaled(nn.Linear):
        def __init__(self):
            super().__init__(WIDTH, WIDTH)
            self.multiplier = 0.3

    (branch,) = read(lambda m, x: x + 0.3 * m.down_proj(x), down_proj=Scaled).branches
    assert branch.factor == 0.3

    def beside(m, x):
        """The least squares find the factor, and something at a right angle to it is added too."""
        out, other = m.down_proj(x), x.roll(1, 0)
        return x + 0.3 * out + other - (other * out).sum() / (out * out).sum() * out

    assert read(beside, down_proj=Scaled).branches == ()


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float16, 0.02), (torch.float32, 1e-4)])
def test_a_reading_closes_as_well_as_its_type_lets_it(dtype, limit):
    assert COARSE[2] == 0.02
    pre, out = torch.zeros(1, 1, 2, dtype=dtype), torch.tensor([[[1.0, 0.0]]], dtype=dtype)
    for share, closed in ((0.9, True), (1.15, False)):
        post = torch.tensor([[[1 + share * limit, 0.0]]], dtype=dtype)
        assert _closes((SimpleNamespace(sum_norm=None),), pre, [out], post) == closed


def three(m, x):
    return x + m.a(x) + m.b(x) + m.c(x)


def lets_go(m, x):
    return m.n(x) + m.a(x) + m.b(x)


class Signs(nn.Module):
    def forward(self, x):
        return (x > 0).long()


def across():
    return nn.Conv1d(WIDTH, WIDTH, 1)


@pytest.mark.parametrize(
    ("does", "parts", "reason"),
    [
        (
            three,
            dict(a=Attention, b=nn.Linear, c=EncoderAttn),
            "adds three at once (a, b, c), and nothing returns the sum of two",
        ),
        (
            lets_go,
            dict(n=norm, a=Attention, b=nn.Linear),
            "lets go of the stream that came in and adds to n (a, b)",
        ),
        (
            lambda m, x: m.n(x) + m.a(x),
            dict(n=norm, a=Attention),
            "lets go of the stream that came in and adds to n (a)",
        ),
        (lambda m, x: 2 * x, dict(a=Attention), "(no part of it returns one of its shape)"),
        (lambda m, x: x + m.c(x.mT).mT, dict(c=across), "(no part of it returns one of its shape)"),
        (
            lambda m, x: x + m.down_proj(x[:, :1]),
            dict(down_proj=nn.Linear),
            "(no part of it returns one of its shape)",
        ),
        (lambda m, x: x + 0.5 * m.mark(x), dict(mark=Signs), "(no part of it returns one of its shape)"),
        (
            lambda m, x: three(m, x) + 0.01 * x,
            dict.fromkeys("abc", nn.Linear),
            "(the last of its shape are a, b, c)",
        ),
        (lambda m, x: x + m.a(x).sin(), dict(n=norm, a=Attention), "(the last of its shape are a)"),
    ],
    ids=[
        "three",
        "lets go, two",
        "lets go, one",
        "nothing",
        "turned",
        "of one position",
        "whole numbers",
        "three and more",
        "nothing that adds up",
    ],
)
def test_a_block_that_cannot_be_read_says_what_it_does(does, parts, reason):
    block = read(does, **parts)
    assert block.branches == ()
    assert block.reason.startswith("no attention or MLP was found whose outputs add up")
    assert reason in block.reason


@pytest.mark.parametrize(("others", "tried"), [(21, True), (22, False)])
def test_three_at_once_are_looked_for_among_twenty_four(others, tried):
    names = [f"p{i}" for i in range(others)]

    def does(m, x):
        return [getattr(m, name)(x) for name in names] and three(m, x)

    block = read(does, **dict.fromkeys(names, nn.Linear), a=nn.Linear, b=nn.Linear, c=nn.Linear)
    assert ("three at once (a, b, c)" in block.reason) == tried
    assert ("(the last of its shape are p21, a, b, c)" in block.reason) != tried


class Core(nn.Module):
    """A convolution over the positions."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(WIDTH, WIDTH, 1)

    def forward(self, x):
        return self.conv(x.transpose(1, 2)).transpose(1, 2)


@pytest.mark.parametrize(
    ("name", "part", "kind", "recurrent"),
    [
        ("core", Core, "mixer", False),
        ("mlp_core", Core, "mlp", False),
        ("core", nn.Linear, "mlp", False),
        ("delta_net", Core, "mixer", True),
    ],
)
def test_the_side_of_an_unnamed_part_is_told_by_its_name_and_by_what_is_in_it(name, part, kind, recurrent):
    (branch,) = read(lambda m, x: x + getattr(m, name)(x), **{name: part}).branches
    assert (branch.kind, branch.recurrent, branch.projection is None) == (kind, recurrent, part is Core)


def test_a_convolution_of_the_block_itself_makes_no_mixer_of_its_parts():
    block = read(lambda m, x: x + m.core(x), core=nn.Linear, conv=across)
    assert [branch.kind for branch in block.branches] == ["mlp"]
    used = read(lambda m, x: m.conv(x.mT).mT * 0 + x + m.core(x), core=nn.Linear, conv=across)
    assert [branch.kind for branch in used.branches] == ["mlp"]


def test_the_last_layer_is_the_projection_and_what_is_around_it_the_attention():
    block = read(lambda m, x: x + m.a(x), a=lambda: SelfAttention("last"))
    (branch,) = block.branches
    assert (branch.kind, branch.module, branch.projection) == (
        "attn",
        block.module.a.last,
        block.module.a.last,
    )
    assert branch.attention is block.module.a


def test_the_search_finds_the_layers_inside_and_not_what_is_around_them():
    block = read(one_after_the_other, a=lambda: SelfAttention("last"), b=lambda: Holder("end"))
    assert [(b.kind, b.projection) for b in block.branches] == [
        ("attn", block.module.a.last),
        ("mlp", block.module.b.end),
    ]


def test_the_norm_of_a_branch_is_a_norm_that_reads_it_and_gives_something_back():
    """A dropout that reads the branch is none, nor is a norm that read or returned no tensor."""
    part, other, dropout, norm, silent, deaf = (
        nn.Linear(2, 2),
        nn.Linear(2, 2),
        nn.Dropout(),
        *map(nn.LayerNorm, (2, 2, 2)),
    )
    raw, read, post = torch.ones(1, 2), torch.zeros(1, 2), torch.full((1, 2), 3.0)
    branch = Branch("mlp", part, part)
    calls = [
        Call("part", part, (read,), raw),
        Call("dropout", dropout, (raw,), raw),
        Call("silent", silent, (raw,), None),
    ]
    calls += [Call("deaf", deaf, (), post), Call("other", other, (read,), post)]
    (found,) = _with_norms((branch,), calls, torch.zeros(1, 2))
    assert (found.out_norm, found.sum_norm) == (None, None)
    (found,) = _with_norms((branch,), [*calls, Call("norm", norm, (raw,), post)], torch.zeros(1, 2))
    assert (found.out_norm, found.sum_norm) == (norm, None)
    (found,) = _with_norms((branch,), [*calls, Call("norm", norm, (read,), post)], post)
    assert (found.out_norm, found.sum_norm) == (None, norm)
    (found,) = _with_norms((branch,), [Call("norm", norm, (read,), post), *calls], post)
    assert (found.out_norm, found.sum_norm) == (
        None,
        None,
    ), "a norm in front of the branch is not that of the sum"
