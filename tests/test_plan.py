"""The plan is pure: what is shared, what is not run, and how the work is counted."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regraft.sweeps.batch_layout import BatchLayout
from regraft.sweeps.plan import make_plan
from regraft.sweeps.routes import Route
from regraft.sweeps.variants import Scale, Variant, Zero

BLOCKS, POSITIONS = 6, 10
SITES = ("resid_pre", "resid_post", "attn_out", "mlp_out", "z")


def layout(cone=True, stacks=((0, BLOCKS),), positions=(POSITIONS,)):
    addresses = {f"{b}.{name}": (b, name) for b in range(BLOCKS) for name in SITES}
    linear = (frozenset({"mlp"}),) * BLOCKS
    return BatchLayout(stacks, positions, 1, tuple((p,) for p in positions), linear, addresses, cone)


def blocks_run(plan):
    return [[node.stop.block for node in batch] for batch in plan.batches]


def test_clean_variant_costs_nothing_beside_the_control():
    plan = make_plan([Variant(), Variant(), Variant(route=Route.order(range(BLOCKS)))], layout())
    assert plan.work.planned == BLOCKS * POSITIONS
    assert plan.work.naive == 3 * BLOCKS * POSITIONS
    assert {leaf.variant for leaf in plan.immediate} == {1, 2}


def test_knockout_starts_behind_the_recorded_prefix():
    plan = make_plan([Variant(route=Route.skip(BLOCKS, {4}))], layout(), control=False)
    assert blocks_run(plan) == [[5]]
    assert plan.batches[0][0].source == ("post", 3)


def test_pairs_share_the_chain_of_the_first_block():
    pairs = [Variant(route=Route.skip(BLOCKS, {0, j})) for j in range(1, BLOCKS)]
    plan = make_plan(pairs, layout(), control=False)
    calls = sum(len(batch) for batch in plan.batches)
    assert calls == 4 + (4 + 3 + 2 + 1 + 0)
    assert plan.work.planned == calls * POSITIONS


def test_equal_edits_share_and_unequal_ones_do_not():
    same = [
        Variant([Zero("2.attn_out")]),
        Variant([Zero("2.attn_out")]),
        Variant([Zero("2.attn_out"), Zero("4.attn_out")]),
    ]
    plan = make_plan(same, layout(), control=False)
    assert sum(map(len, plan.batches)) == 4 + 2
    other = [Variant([Zero("2.attn_out")]), Variant([Scale("2.attn_out", 0.5)])]
    assert sum(map(len, make_plan(other, layout(), control=False).batches)) == 8


def test_edit_of_the_last_branch_skips_its_block_and_one_before_it_does_not():
    assert blocks_run(make_plan([Variant([Zero("3.mlp_out")])], layout(), control=False)) == [[4], [5]]
    assert blocks_run(make_plan([Variant([Zero("3.attn_out")])], layout(), control=False)) == [[3], [4], [5]]
    assert blocks_run(make_plan([Variant([Zero("3.mlp_out")])], layout(), control=False, linear=False)) == [
        [3],
        [4],
        [5],
    ]


def test_rows_that_wait_for_one_block_go_together_whatever_their_depth():
    swaps = [Variant(route=Route.swap(BLOCKS, i, 5)) for i in range(5)]
    plan = make_plan(swaps, layout(), control=False)
    assert [5, 5, 5, 5, 5] in blocks_run(plan)


def test_cone_carries_only_positions_behind_the_edit():
    grid = [Variant([Zero(f"{b}.resid_pre", position=p)]) for b in range(BLOCKS) for p in range(POSITIONS)]
    wide, narrow = (make_plan(grid, layout(cone), control=False) for cone in (False, True))
    assert wide.work.planned == sum((BLOCKS - b) * POSITIONS * POSITIONS for b in range(BLOCKS))
    step = 4
    assert narrow.work.planned == sum(
        (BLOCKS - b) * (POSITIONS - p // step * step) for b in range(BLOCKS) for p in range(POSITIONS)
    )
    assert narrow.work.preparation == BLOCKS * POSITIONS
    assert narrow.work.planned + narrow.work.preparation < wide.work.planned


def test_encoder_edits_pass_the_bridge_and_decoder_edits_do_not():
    two = layout(False, ((0, 3), (3, 6)), (POSITIONS, 4))
    plan = make_plan([Variant([Zero("2.attn_out")]), Variant([Zero("4.attn_out")])], two, control=False)
    bridges = {
        batch[0].stop.block: [entry_edit.bridge for node in batch for entry_edit in node.entry_edits]
        for batch in plan.batches
    }
    assert bridges[3] == [True]
    assert not any(bridges[4] + bridges[5])
    last = make_plan([Variant(route=Route.skip(6, {2}))], two, control=False)
    assert last.batches[0][0].stop.block == 3
    assert last.batches[0][0].entry_edits[-1].bridge


@pytest.mark.parametrize(
    ("variant", "words"),
    [
        (Variant(route=Route.order([0, 9])), "names block 9"),
        (Variant([Zero("2.z")], Route.skip(BLOCKS, {2})), "never reached"),
        (Variant([Zero("2.z", position=10)]), "outside the prompt of 10 tokens"),
        (Variant([Zero("2.z", position=-11)]), "outside the prompt"),
    ],
)
def test_wrong_variants_are_refused(variant, words):
    with pytest.raises(ValueError, match=words):
        make_plan([variant], layout())


def test_a_route_back_into_the_encoder_is_refused():
    with pytest.raises(ValueError, match="enters the encoder again"):
        make_plan([Variant(route=Route.order([0, 3, 1]))], layout(False, ((0, 3), (3, 6)), (5, 5)))


edits = st.builds(
    lambda block, name, position: Zero(f"{block}.{name}", position),
    st.integers(0, BLOCKS - 1),
    st.sampled_from(SITES),
    st.one_of(st.none(), st.integers(-POSITIONS, POSITIONS - 1)),
)
routes = st.lists(st.integers(0, BLOCKS - 1), max_size=8).map(Route.order)
variants = st.one_of(
    st.lists(edits, max_size=3).map(lambda e: Variant(e)),
    routes.map(lambda r: Variant(route=r)),
    st.just(Variant()),
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(variants, min_size=1, max_size=8), st.integers(1, 4))
def test_work_never_exceeds_the_naive_way_and_every_variant_is_measured_once(chosen, rows):
    plan = make_plan([Variant(), *chosen], layout(), rows)
    assert plan.work.planned + plan.work.preparation <= plan.work.naive
    measured = [leaf.variant for leaves in plan.leaves.values() for leaf in leaves] + [
        x.variant for x in plan.immediate
    ]
    assert sorted(measured) == list(range(len(chosen) + 1))
    done = set()
    for batch in plan.batches:
        assert len(batch) <= rows
        assert len({(node.stop.key, node.start) for node in batch}) == 1
        assert all(node.parent is None or id(node.parent) in done for node in batch)
        done |= {id(node) for node in batch}


def test_the_counted_bound_of_the_grid_beside_the_neighbours():
    """12 blocks by 64 positions of GPT-2 small, one position read: multiply-adds of one full forward a cell
    over those that are planned, output matrix included."""
    blocks, positions, width, vocabulary = 12, 64, 768, 50_257
    addresses = {f"{b}.resid_pre": (b, "resid_pre") for b in range(blocks)}
    lay = BatchLayout(
        ((0, blocks),), (positions,), 1, ((positions,),), (frozenset(),) * blocks, addresses, True,
        read_from=positions - 1, key_share=3 / 12,
    )  # fmt: skip
    grid = [Variant([Zero(f"{b}.resid_pre", p)]) for b in range(blocks) for p in range(positions)]
    plan = make_plan(grid, lay, control=False)
    block, head = 12 * width**2, vocabulary * width
    naive = len(grid) * positions * (blocks * block + head)
    ours = (plan.work.planned + plan.work.preparation) * block + len(grid) * head
    assert 5.2 <= naive / ours < 6
