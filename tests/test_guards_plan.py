"""Plans carried out on words instead of tensors: every variant must arrive at the word that it means, by the
fewest calls."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regraft.sweeps.batch_layout import BatchLayout, edit_positions
from regraft.sweeps.plan import CONE_LEAST_STEP, CONE_STEPS, Work, make_plan
from regraft.sweeps.routes import Route, Stop
from regraft.sweeps.variants import Scale, Variant, Zero

BLOCKS, FIRST = 6, 3
SITES = ("resid_pre", "resid_post", "resid_mid", "attn_out", "mlp_out", "mlp_act", "neuron", "z")
ENDS = ("embed", "final_norm", "logits")


def donor(*args):
    return args


def layout(two_stacks=False, cone=False, positions=(10,), lengths=None, linear=("mlp",)):
    stacks = ((0, FIRST), (FIRST, BLOCKS)) if two_stacks else ((0, BLOCKS),)
    positions = positions if len(positions) == len(stacks) else (positions[0], positions[0] + 3)
    lengths = lengths or tuple((p, p - 4) for p in positions)
    addresses = {f"{b}.{name}": (b, name) for b in range(BLOCKS) for name in SITES} | {
        name: (None, name) for name in ENDS
    }
    return BatchLayout(
        stacks, positions, len(lengths[0]), lengths, (frozenset(linear),) * BLOCKS, addresses, cone
    )


def edited(edits, word):
    return ("edit", tuple(e.key for e in edits), word) if edits else word


def called(stop, inner, word):
    return ("call", stop.key, tuple(e.key for e in inner), word)


def recorded(source, lay):
    side, block = source
    if side == "post":
        return called(Stop(block), (), recorded(("pre", block), lay))
    if block == 0:
        return ("embed",)
    before = recorded(("post", block - 1), lay)
    return ("bridge", before) if lay.stack_of(block) != lay.stack_of(block - 1) else before


def meant(variant, lay):
    """The word that a variant stands for, call by call; and the words of all its calls."""

    def at(block, *names):
        return [e for e in variant.edits if e.site.startswith(f"{block}.") and e.site.split(".")[1] in names]

    word, stack, calls = edited([e for e in variant.edits if e.site == "embed"], ("embed",)), 0, []
    inside = tuple(name for name in SITES if name not in ("resid_pre", "resid_post"))
    for stop in (variant.route or Route.order(range(BLOCKS))).stops:
        if lay.stack_of(stop.block) != stack:
            word, stack = ("bridge", word), lay.stack_of(stop.block)
        word = called(stop, at(stop.block, *inside), edited(at(stop.block, "resid_pre"), word))
        calls.append(word)
        word = edited(at(stop.block, "resid_post"), word)
    return (("bridge", word) if stack != len(lay.stacks) - 1 else word), calls


def carried_out(plan, lay):
    """What every variant arrives at when the plan is followed batch by batch, and how often each node is
    waited for."""
    states, found, waited = {}, {}, Counter()

    def arrive(one):
        word = recorded(one.source, lay) if one.parent is None else states[id(one.parent)]
        waited[id(one.parent)] += one.parent is not None
        for entry_edit in one.entry_edits:
            assert entry_edit.edits or entry_edit.bridge
            if entry_edit.bridge:
                word = ("bridge", word)
            elif entry_edit.correct is not None:
                assert word == recorded(("pre", entry_edit.correct), lay)
                word = called(Stop(entry_edit.correct), entry_edit.edits, word)
            else:
                word = edited(entry_edit.edits, word)
        return word

    for batch in plan.batches:
        for node in batch:
            states[id(node)] = called(node.stop, node.inner, arrive(node))
    for leaf in [*plan.immediate, *(leaf for leaves in plan.leaves.values() for leaf in leaves)]:
        assert leaf.variant not in found
        found[leaf.variant] = (arrive(leaf), tuple(e.key for e in leaf.final))
    assert all(node.children == waited[id(node)] > 0 for batch in plan.batches for node in batch)
    return found


def fits(variant):
    passed = {stop.block for stop in variant.route.stops} if variant.route else set(range(BLOCKS))
    replaced = {stop.block for stop in variant.route.stops if stop.module} if variant.route else set()
    inner = {
        int(e.site[0])
        for e in variant.edits
        if "." in e.site and not e.site.endswith(("resid_pre", "resid_post"))
    }
    return {int(e.site[0]) for e in variant.edits if "." in e.site} <= passed and not inner & replaced


places = st.one_of(st.none(), st.integers(-6, 5))
names = st.one_of(
    st.builds(lambda b, n: f"{b}.{n}", st.integers(0, BLOCKS - 1), st.sampled_from(SITES)),
    st.sampled_from(ENDS),
)
edits = st.one_of(
    st.builds(Zero, names, places), st.builds(Scale, names, st.sampled_from((0.5, 2.0)), places)
)
numbers = st.one_of(
    st.lists(st.integers(0, BLOCKS - 1), max_size=7),
    st.sets(st.integers(0, BLOCKS - 1), max_size=2).map(
        lambda gone: [b for b in range(BLOCKS) if b not in gone]
    ),
)
routes = st.builds(
    lambda blocks, other: Route(
        tuple(Stop(b, donor if b == other else None) for b in sorted(blocks, key=lambda b: b >= FIRST))
    ),
    numbers,
    st.integers(0, 3 * BLOCKS),
)
variants = st.builds(Variant, st.lists(edits, max_size=2), st.one_of(st.none(), routes)).filter(fits)


@settings(max_examples=250, deadline=None, derandomize=True)
@given(
    st.lists(variants, min_size=1, max_size=5), st.booleans(), st.booleans(), st.booleans(), st.integers(1, 3)
)
def test_every_variant_arrives_at_what_it_means(chosen, two_stacks, control, linear, rows):
    lay = layout(two_stacks, linear=("mlp", "attn") if rows == 2 else ("mlp",))
    chosen = [Variant(), *chosen] if control else chosen
    plan = make_plan(chosen, lay, rows, control, linear)
    found = carried_out(plan, lay)
    for number, variant in enumerate(chosen):
        assert found[number] == (
            meant(variant, lay)[0],
            tuple(e.key for name in [("final_norm", "logits")] for e in variant.edits if e.site in name),
        )
    size = {block: 2 * lay.positions[lay.stack_of(block)] for block in range(BLOCKS)}
    nodes = [node for batch in plan.batches for node in batch]
    assert plan.work.planned == sum(size[node.stop.block] for node in nodes)
    assert plan.work.preparation == sum(size[block] for block in plan.corrected)
    assert plan.work.naive == sum(
        size[stop.block] for v in chosen for stop in (v.route or Route.order(range(BLOCKS))).stops
    )
    if not control and not linear:
        clean = {recorded(("post", block), lay) for block in range(BLOCKS)}
        assert len(nodes) == len({word for v in chosen for word in meant(v, lay)[1]} - clean), (
            "no call is made twice"
        )


def test_the_control_row_runs_every_block_and_shares_none():
    same = Variant([Zero("0.resid_pre")])
    plan = make_plan([Variant(), same, Variant([Zero("2.mlp_out")])], layout())
    control = next(leaf for leaves in plan.leaves.values() for leaf in leaves if leaf.variant == 0)
    chain, node = [], control.parent
    while node is not None:
        chain.append(node.stop.block)
        assert node.children == 1
        node = node.parent
    assert chain == list(range(BLOCKS))[::-1]
    assert not any(leaf.variant == 0 for leaf in make_plan([Variant()], layout()).immediate)


@pytest.mark.parametrize(
    ("edits", "linear", "block"),
    [
        ([Zero("3.mlp_out")], ("mlp",), 3),
        ([Zero("3.mlp_act"), Scale("3.mlp_act", 2.0)], ("mlp",), 3),
        ([Zero("3.mlp_act"), Zero("3.mlp_out")], ("mlp",), None),
        ([Zero("3.neuron"), Zero("3.resid_post")], ("mlp",), 3),
        ([Zero("3.neuron"), Zero("3.resid_pre")], ("mlp",), None),
        ([Zero("3.attn_out")], ("mlp",), None),
        ([Zero("3.attn_out")], ("attn", "mlp"), 3),
        ([Zero("3.z"), Zero("3.mlp_out")], ("attn", "mlp"), None),
        ([Zero("3.resid_mid")], ("attn", "mlp"), None),
        ([Zero("2.resid_post"), Zero("3.mlp_out")], ("mlp",), None),
        ([Zero("3.mlp_out"), Zero("4.mlp_out")], ("mlp",), 3),
    ],
)
def test_a_block_is_corrected_only_where_its_first_edits_are_linear(edits, linear, block):
    plan = make_plan([Variant(edits)], layout(linear=linear), control=False)
    assert plan.corrected == (set() if block is None else {block})
    run = {node.stop.block for batch in plan.batches for node in batch}
    first = min(int(e.site[0]) + e.site.endswith("resid_post") for e in edits)
    assert run == set(range(first if block is None else block + 1, BLOCKS))
    replaced = Route.replace(BLOCKS, {5: donor})
    assert (
        make_plan([Variant(edits, replaced)], layout(linear=linear), control=False).corrected
        == plan.corrected
    )


@pytest.mark.parametrize("first", [1, FIRST, BLOCKS - 1])
def test_an_edit_in_a_decoders_first_block_begins_at_its_recorded_door(first):
    """Also where the decoder has this one block: what the encoder hands over is recorded, and not made
    again."""
    lay = replace(layout(two_stacks=True), stacks=((0, first), (first, BLOCKS)))
    plan = make_plan([Variant([Zero(f"{first}.attn_out")])], lay, control=False, linear=False)
    node = plan.batches[0][0]
    assert (node.parent, node.source, node.entry_edits) == (None, ("pre", first), ())


def test_batches_hold_so_many_rows_and_the_fullest_block_goes_first():
    five = [Variant([Scale("5.resid_pre", float(i))]) for i in range(5)]
    assert [len(batch) for batch in make_plan(five, layout(), 2, control=False).batches] == [2, 2, 1]
    mixed = [Variant([Zero("4.attn_out")]), *(Variant([Scale("5.attn_out", float(i))]) for i in range(2))]
    plan = make_plan(mixed, layout(), control=False)
    assert [[node.stop.block for node in batch] for batch in plan.batches] == [[5, 5], [4], [5]]
    even = [Variant([Zero("4.attn_out")]), Variant([Zero("5.attn_out")])]
    plan = make_plan(even, layout(), control=False)
    assert [[node.stop.block for node in batch] for batch in plan.batches] == [
        [4],
        [5, 5],
    ], "of two equal ones the earlier"


@pytest.mark.parametrize("length", [10, 16, 32, 33, 41, 80])
def test_a_suffix_begins_in_front_of_the_edit_at_one_of_few_places(length):
    lay = layout(cone=True, positions=(length,), lengths=((length, length - 2),))
    grid = [Variant([Zero(f"{b}.resid_pre", position=p)]) for b in range(2) for p in range(length - 2)]
    plan = make_plan(grid, lay, control=False)
    step = max(CONE_LEAST_STEP, -(-length // CONE_STEPS))
    starts = {}
    for leaf in (leaf for leaves in plan.leaves.values() for leaf in leaves):
        starts[leaf.variant] = leaf.start
        assert leaf.parent.start == leaf.start
        assert leaf.start % step == 0
        assert 0 <= grid[leaf.variant].edits[0].position - leaf.start < step
    assert len(set(starts.values())) <= CONE_STEPS
    assert plan.starts == set(starts.values()) - {0}
    rows = [2 * (length - start) * (BLOCKS - number // (length - 2)) for number, start in starts.items()]
    assert plan.work.planned == sum(rows)
    assert plan.work.preparation == 2 * length * BLOCKS


def test_a_suffix_serves_the_earliest_position_of_all_edits_and_prompts():
    lay = layout(cone=True, positions=(40,), lengths=((40, 30),))

    def start(*edits, route=None):
        many = [Variant([Zero("3.resid_pre", position=29)])] * 9
        plan = make_plan([*many, Variant(edits, route)], lay, control=False)
        leaves = [*plan.immediate, *(leaf for found in plan.leaves.values() for leaf in found)]
        return next(leaf.start for leaf in leaves if leaf.variant == 9)

    assert start(Zero("3.resid_pre", position=29)) == 28
    assert start(Zero("3.resid_pre", position=-1)) == 28, "the shorter prompt's last position is 29"
    assert start(Zero("3.resid_pre", position=[29, 12])) == 12
    assert start(Zero("3.resid_pre", position=29), Zero("5.resid_pre", position=16)) == 16
    assert start(Zero("3.resid_pre", position=29), Zero("5.resid_pre")) == 0
    assert start(Zero("3.resid_pre", position=29), Zero("embed", position=29)) == 0
    assert start(Zero("3.resid_pre", position=29), route=Route.skip(BLOCKS, {5})) == 0
    assert start(Zero("3.resid_pre", position=29), route=Route.order([*range(BLOCKS), 5])) == 0
    assert start(Zero("3.resid_pre", position=29), route=Route.replace(BLOCKS, {5: donor})) == 0
    assert start(Zero("3.resid_pre", position=29), route=Route.order(range(BLOCKS))) == 28
    assert start() == 0


def test_a_suffix_is_used_only_where_it_pays():
    def used(count, position, cone=True):
        grid = [Variant([Scale("3.resid_pre", float(i), position=position)]) for i in range(count)]
        return bool(
            make_plan(grid, layout(cone=cone, positions=(40,), lengths=((40,),)), control=False).starts
        )

    assert not used(4, 20), "half of 4 x 20 positions is what one pass over all 40 takes"
    assert used(5, 20)
    assert not used(5, 20, cone=False)
    assert not used(50, 3)


def test_of_two_suffixes_with_equally_many_rows_the_longer_goes_first():
    grid = [Variant([Scale("4.resid_pre", float(i), position=p)]) for p in (30, 20) for i in range(5)]
    plan = make_plan(grid, layout(cone=True, positions=(40,), lengths=((40,),)), control=False)
    order = [(batch[0].stop.block, batch[0].start, len(batch)) for batch in plan.batches]
    assert order == [(4, 20, 5), (4, 28, 5), (5, 20, 5), (5, 28, 5)]


def test_positions_are_counted_from_either_end_of_each_prompt():
    assert edit_positions(Zero("0.z"), (4, 7)) is None
    assert edit_positions(Zero("0.z", 2), (4, 7)) == [[2], [2]]
    assert edit_positions(Zero("0.z", [0, -1]), (4, 7)) == [[0, 3], [0, 6]]
    with pytest.raises(ValueError, match="no position"):
        edit_positions(Zero("0.z", []), (4, 7))


@pytest.mark.parametrize(
    ("site", "inside", "outside"),
    [("1.z", (5, -6), (6, -7)), ("4.z", (4, -5), (5, -6)), ("embed", (4,), (5,))],
)
def test_positions_are_those_of_the_shortest_prompt_in_the_edits_own_stack(site, inside, outside):
    lay = layout(two_stacks=True, positions=(10, 9), lengths=((10, 6), (9, 5)))
    for position in inside:
        make_plan([Variant([Zero(site, position)])], lay)
    for position in outside:
        with pytest.raises(ValueError, match="outside"):
            make_plan([Variant([Zero(site, position)])], lay)


def test_what_cannot_be_run_is_refused():
    replaced = Route.replace(BLOCKS, {2: donor})
    with pytest.raises(ValueError, match="inside a block that the route replaces"):
        make_plan([Variant([Zero("2.z")], replaced)], layout())
    make_plan([Variant([Zero("2.resid_pre"), Zero("2.resid_post"), Zero("3.z")], replaced)], layout())
    for block in (-1, BLOCKS):
        with pytest.raises(ValueError, match=f"block {block}"):
            make_plan([Variant(route=Route.order([0, block]))], layout())
    with pytest.raises(ValueError, match="encoder again"):
        make_plan([Variant(route=Route.order([FIRST, FIRST - 1]))], layout(two_stacks=True))


def test_saved_work_is_a_ratio_of_counts():
    work = Work.joined([Work(6, 4, 40, 9), Work(10, 0, 60, 10)])
    assert (work.planned, work.preparation, work.naive, work.executed) == (16, 4, 100, 19)
    assert work.saved == 5.0
    assert Work(naive=3).saved == 3.0
