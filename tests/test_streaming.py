"""Models that are read block by block: the same numbers, each block once a walk, no more held than said."""

from __future__ import annotations

import weakref
from contextlib import contextmanager

import pytest
import torch

from families import FAMILIES
from regraft.core.sizes import bytes_of, in_words
from regraft.model.cpu_pack import copied
from regraft.model.load import load
from regraft.model.streamed import Streamed
from regraft.streaming import block_store, disk_tables, pages, residency
from regraft.streaming.empty_model import Loader
from regraft.streaming.pages import Pages
from regraft.streaming.residency import CHUNK, Placement, Sizes, place
from regraft.sweeps.metrics import kl_to_clean, logit_difference, loss
from regraft.sweeps.routes import Route
from regraft.sweeps.sweep import sweep
from regraft.sweeps.variants import Add, Replace, Scale, Variant, Zero
from small import ids
from streamed_models import PLENTY, bare, least, near, prompts_of, saved

__all__ = ["bare"]

MAKE_ROOM = Streamed.make_room


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_the_same_streamed(name, tmp_path):
    """Streams, logits, sites, hash and self-check; each block is read once by a forward pass."""
    whole, model = load(saved(tmp_path, name), pack=False), least(tmp_path)
    store = model.streamed.store
    assert len(store.filled) <= 2 < len(model.blocks)
    prompts, answers = prompts_of(whole)
    before, read = model.streamed.reads, model.streamed.bytes_read
    recording = model.record(prompts, answers, attention_mask="all")
    assert [a - b for a, b in zip(model.streamed.reads, before, strict=True)] == [1] * len(model.blocks)
    assert len(store.filled) <= 2
    of_blocks = sum(store.shards.places[name].bytes for unit in store.units for name in unit.names)
    assert of_blocks <= model.streamed.bytes_read - read <= of_blocks + 20 * 4 * model.width
    clean = whole.record(prompts, answers, attention_mask="all")
    for block in range(len(model.blocks)):
        near(recording.post(block), clean.post(block), f"{name} {block}")
    if whole.parts.head is not None:
        near(recording["logits"], clean["logits"])
    assert [set(table) for table in model.taps.table] == [set(table) for table in whole.taps.table]
    assert model.check.replays == whole.check.replays
    assert model.parts.tied == whole.parts.tied
    assert model.weights_sha256 == whole.weights_sha256


def variants_for(model):
    clean = torch.zeros(model.width)
    return [
        *(Variant(route=Route.skip(len(model.blocks), {b})) for b in range(len(model.blocks))),
        Variant([Replace("1.resid_pre", clean, 2)]),
        *([Variant([Zero("2.mlp_act")])] if model.taps.exists(2, "mlp_act") else []),
        Variant([Zero("0.head.1"), Scale("3.attn_out", 0.5)]),
        Variant([Add("embed", clean + 1)]),
        Variant([Scale("2.z", 0.3, -1)]),
    ]


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "gemma2", "mixtral"])
def test_a_sweep_reads_each_block_once_whatever_it_varies(name, tmp_path, monkeypatch):
    monkeypatch.setattr("regraft.sweeps.recorded_layout.CPU_ROW_POSITIONS", 24)
    whole, model = load(saved(tmp_path, name), pack=False), least(tmp_path)
    prompts, _ = prompts_of(whole)
    found = []
    for one in (whole, model):
        recording = one.record(prompts, attention_mask="all")
        sweep(recording, variants_for(one), [loss(), kl_to_clean()])  # proofs are made once a model
        before = None if one is whole else one.streamed.reads
        found.append(sweep(recording, variants_for(one), [loss(), kl_to_clean()]))
    reads = [a - b for a, b in zip(model.streamed.reads, before, strict=True)]
    assert reads == [1] * len(model.blocks)
    for metric in ("loss", "kl_to_clean"):
        near(found[1].values[metric], found[0].values[metric])
        assert float(found[0].values[metric].std()) > 1e-4


def test_a_route_that_goes_back_costs_a_walk_more_and_not_one_for_each_variant(tmp_path):
    whole, model = load(saved(tmp_path, "llama"), pack=False), least(tmp_path)
    count = len(model.blocks)
    orders = [list(range(count)) for _ in range(count - 1)]
    for at, order in enumerate(orders):
        order[at], order[at + 1] = order[at + 1], order[at]
    found = []
    for one in (whole, model):
        recording = one.record([ids(6, 1)])
        before = 0 if one is whole else sum(one.streamed.reads)
        found.append(sweep(recording, [Variant(route=Route.order(o)) for o in orders], loss()))
    near(found[1].values["loss"], found[0].values["loss"])
    assert sum(model.streamed.reads) - before <= 2 * count + 1


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3"])
def test_tables_that_stay_on_disk(name, tmp_path, monkeypatch):
    """Embedding rows by number, the head in pieces: both tables outside of memory, tied or not."""
    whole = load(saved(tmp_path, name), pack=False)
    monkeypatch.setattr(residency, "CHUNK", 1024)
    monkeypatch.setattr(disk_tables, "CHUNK", 1024)
    monkeypatch.setattr(disk_tables, "KEPT_ROWS", 12)
    model = least(tmp_path)
    stays, head = model.streamed.placement, model.parts.head
    assert (stays.embedding, stays.head) == (False, False)
    assert model.parts.embedding.weight.is_meta, "nobody takes rows that were not read for zeros"
    for seed in range(4):
        clean, recording = (one.record([ids(9, seed)]) for one in (whole, model))
        near(recording.pre(0), clean.pre(0))
        near(recording["logits"], clean["logits"])
    before = model.streamed.bytes_read
    head(torch.ones(1, model.width))
    assert model.streamed.bytes_read - before == model.vocabulary * model.width * 4, "the matrix once"
    with pytest.raises((IndexError, ValueError)):
        model.run(input_ids=torch.tensor([[model.table_rows]]))


def test_what_stays_in_memory():
    sizes = Sizes(rest=10, embedding=100, head=100, tied=False, blocks=(50, 50, 60, 50, 50))
    assert place(sizes, 470) == Placement(True, True, 5), "all of it fits"
    assert sizes.whole == 470
    assert sizes.least == 10 + 120 + 100
    with pytest.raises(ValueError, match=r"take 230 bytes, and 229 bytes are left .* allow 1 bytes more"):
        place(sizes, 229)
    assert place(sizes, 230) == Placement(False, True, 0), "the head before a block"
    assert place(sizes, 280) == Placement(False, True, 1)
    assert place(sizes, 400) == Placement(False, True, 3), "blocks before the embedding's rows"
    large = Sizes(rest=0, embedding=0, head=4 * CHUNK, tied=False, blocks=(CHUNK,) * 6)
    assert place(large, 4 * CHUNK) == Placement(True, False, 1), "two in turns, one stays"
    tied = Sizes(rest=0, embedding=100, head=0, tied=True, blocks=(50,) * 6)
    assert place(tied, 200) == Placement(True, True, 0), "one table for both"
    assert place(tied, 299).pinned == 1
    assert place(tied, 399).pinned == 3
    assert place(tied, 400).pinned == 6


@pytest.mark.parametrize(
    ("text", "size"),
    [("3GiB", 3 << 30), ("800 MiB", 800 << 20), ("1.5g", 3 << 29), ("2048", 2048), (77, 77), ("4KB", 4096)],
)
def test_sizes_of_memory_are_read(text, size):
    assert bytes_of(text) == size
    assert bytes_of(in_words(3 << 30)) == 3 << 30


@pytest.mark.parametrize("text", ["", "much", "-3GiB", "0", "3 giraffes"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match="is no size of memory: write 3GiB"):
        bytes_of(text)


def test_as_many_blocks_stay_as_fit(tmp_path):
    folder = saved(tmp_path, "llama")
    sizes = load(folder, stream=True, memory=PLENTY).streamed.sizes
    head_and_one = sizes.rest + sizes.head + 3 * sizes.blocks[0]
    model = load(folder, stream=True, memory=head_and_one)
    assert model.streamed.placement == Placement(False, True, 1)
    before = model.streamed.reads
    assert before[0] == 1, "one that stays is read once for all"
    for _ in range(3):
        model.record([ids(5, 1)])
    assert [a - b for a, b in zip(model.streamed.reads, before, strict=True)] == [0, 3, 3, 3]
    assert "1 of 4 blocks stay" in "; ".join(model.notes)
    everything = load(folder, stream=True, memory=sizes.whole)
    everything.record([ids(5, 1)])
    assert everything.streamed.reads == [1] * 4
    assert "read from disk once" in "; ".join(everything.notes)


def test_a_grid_inside_blocks_does_not_cost_a_streamed_model_a_walk(tmp_path):
    """Cells that put in what is there are not looked for where looking would read the block once more."""
    model = least(saved(tmp_path, "llama"))
    recording, count = model.record([ids(9, 1)]), len(model.blocks)
    value = torch.ones(model.width)
    cells = [Variant([Replace(f"{b}.attn_out", value, p)]) for b in range(count) for p in range(9)]
    sweep(recording, cells, loss())  # proofs are made once a model
    before = model.streamed.reads
    sweep(recording, cells, loss())
    assert [a - b for a, b in zip(model.streamed.reads, before, strict=True)] == [1] * count


def test_prompts_that_take_much_make_blocks_leave(tmp_path, monkeypatch):
    """What a recording and a sweep hold beside the weights is known from their shapes before they run."""
    monkeypatch.setattr("regraft.model.streamed.Streamed.make_room", MAKE_ROOM)
    folder = saved(tmp_path, "llama")
    whole = load(folder, pack=False)
    monkeypatch.setattr("regraft.model.streamed.WORKING", 1 << 30)
    model = load(folder, stream=True, memory=(1 << 30) + PLENTY)
    sizes = model.streamed.sizes
    block, numbers = sizes.blocks[0], (len(model.blocks) + 1) * model.width + 2 * model.vocabulary
    model.record([ids(9, 1)])
    assert model.streamed.placement.pinned == 4, "less than is kept free: nothing leaves"
    room = 9 * numbers * 4
    model.streamed.limit = sizes.whole
    monkeypatch.setattr("regraft.model.streamed.WORKING", room - block)
    recording = model.record([ids(9, 1)])
    assert model.streamed.placement == Placement(True, True, 1), "one more block's bytes: two take turns"
    monkeypatch.setattr("regraft.model.streamed.WORKING", room - 1)
    model.record([ids(9, 2)])
    assert model.streamed.placement.pinned == 1, "those that left stay away"
    monkeypatch.setattr("regraft.model.streamed.WORKING", 1 << 40)
    before = model.streamed.reads
    again = model.record([ids(9, 1)])
    assert [a - b for a, b in zip(model.streamed.reads, before, strict=True)] == [0, 1, 1, 1]
    near(again["logits"], whole.record([ids(9, 1)])["logits"])
    monkeypatch.setattr("regraft.model.streamed.WORKING", 0)
    model.streamed.limit = sizes.whole - 2 * block
    with pytest.raises(ValueError, match="too little for two blocks: allow as much more with --memory"):
        model.record([ids(9, 1)])
    with pytest.raises(ValueError, match="what these prompts take at once leaves"):
        sweep(recording, [Zero("1.mlp_out")], loss())


def test_memory_alone_streams_what_does_not_fit(tmp_path):
    folder = saved(tmp_path, "llama")
    sizes = load(folder, stream=True, memory=PLENTY).streamed.sizes
    assert load(folder, memory=sizes.whole).streamed is None
    assert load(folder, memory=f"{sizes.whole - 1}").streamed is not None
    with pytest.raises(ValueError, match="two blocks and what goes with them take"):
        load(folder, memory=sizes.least - 1)


def test_no_more_blocks_are_held_than_said(tmp_path, monkeypatch):
    """Matrices that are alive at once, counted by weak references: two blocks and the one that is read."""
    model = least(saved(tmp_path, "llama"))
    alive, most, real = weakref.WeakSet(), [0], Loader.hand_over

    def heard(self, path, module):
        real(self, path, module)
        alive.update(p for p in module.parameters() if p.dim() > 1)
        most[0] = max(most[0], len(alive))

    monkeypatch.setattr(Loader, "hand_over", heard)
    each = len([p for p in model.blocks[0].module.parameters() if p.dim() > 1])
    recording = model.record([ids(6, 1), ids(6, 2)])
    sweep(recording, variants_for(model), loss())
    recording.gradients(logit_difference(5, 7), "1.resid_post")
    assert 0 < most[0] <= 2 * each


def test_gradients_read_the_blocks_again_on_the_way_back(tmp_path):
    whole, model = load(saved(tmp_path, "llama"), pack=False), least(tmp_path)
    sites = ["0.resid_post", "2.mlp_act", "1.z"]
    found = []
    for one in (whole, model):
        recording = one.record([ids(6, 1)])
        before = 0 if one is whole else sum(one.streamed.reads)
        found.append(recording.gradients(logit_difference(5, 7), sites))
    assert len(model.blocks) < sum(model.streamed.reads) - before <= 2 * len(model.blocks) + 1
    for site in sites:
        near(found[1][site], found[0][site])


def test_text_is_written_with_keys_and_values(tmp_path):
    whole, model = load(saved(tmp_path, "llama"), pack=False), least(tmp_path)
    before = model.streamed.reads
    found = model.generate([ids(5, 3)], tokens=6)
    assert found.ids == whole.generate([ids(5, 3)], tokens=6).ids
    assert max(a - b for a, b in zip(model.streamed.reads, before, strict=True)) <= 7
    edited = model.generate([ids(5, 3)], tokens=6, edits=Scale("1.mlp_out", 30.0))
    assert edited.ids == whole.generate([ids(5, 3)], tokens=6, edits=Scale("1.mlp_out", 30.0)).ids
    with pytest.raises(ValueError, match="a route of the live model shares the weights of all blocks"):
        model.generate([ids(5, 3)], route=Route.skip(4, {1}))


def test_a_copy_of_a_block_has_numbers_of_its_own(tmp_path):
    model = least(saved(tmp_path, "llama"))
    made = copied(model.filled(2).module)
    model.filled(0), model.filled(1)
    assert model.blocks[2].module.mlp.up_proj.weight.is_meta
    recording = model.record([ids(5, 1)])
    before = sum(model.streamed.reads)
    near(recording.run_block(2, recording.pre(2), 1, module=made), recording.post(2))
    assert sum(model.streamed.reads) == before, "it reads nothing"


@pytest.mark.parametrize("dtype", ["bfloat16", "float64", "float16"])
def test_any_type_in_the_file_and_any_to_compute_in(dtype, tmp_path):
    torch.manual_seed(1)
    FAMILIES["llama"]().to(torch.bfloat16).save_pretrained(tmp_path)
    whole = load(tmp_path, dtype=dtype, pack=False)
    model = load(tmp_path, dtype=dtype, stream=True, memory=PLENTY)
    model = load(tmp_path, dtype=dtype, stream=True, memory=model.streamed.sizes.least)
    assert model.dtype == whole.dtype
    clean, recording = (one.record([ids(6, 1)]) for one in (whole, model))
    torch.testing.assert_close(recording["logits"], clean["logits"], rtol=1e-2, atol=1e-3)


def test_blocks_are_copied_by_the_side_and_handed_over(tmp_path, monkeypatch):
    """What a card needs, told by a stand-in: copies inside the side's context, weights named when they are
    handed over; pages are pinned when they are made and let go when they are not kept."""
    told, reader = [], []

    class Side:
        def __init__(self, device):
            pass

        @contextmanager
        def copying(self):
            reader.append("in")
            yield
            reader.append("out")

        def handed_over(self, module):
            assert reader[-1] == "out", "read to the end"
            told.append(sum(not p.is_meta for p in module.parameters()))

    monkeypatch.setattr(block_store, "SideStream", Side)
    real = Loader.fill

    def inside(self, tensors):
        assert not reader or reader[-1] == "in" or not any("layers" in name for name in tensors)
        return real(self, tensors)

    monkeypatch.setattr(Loader, "fill", inside)
    model = least(saved(tmp_path, "llama"))
    told.clear()
    model.record([ids(6, 1)])
    model.streamed.store.settle()
    assert len(told) >= len(model.blocks)
    assert all(told)
    pinned = []
    monkeypatch.setattr(pages, "pin", lambda address, size: pinned.append((address, size)))
    monkeypatch.setattr(pages, "unpin", lambda address: pinned.remove((address, 1 << 20)))
    some = Pages(most=1 << 20, pinned=True)
    first, second = (some.tensor((1 << 18,), torch.float32) for _ in range(2))
    assert [address for address, _ in pinned] == [first.data_ptr(), second.data_ptr()]
    del first
    assert len(pinned) == 2, "kept for the next"
    del second
    assert len(pinned) == 1


def test_free_memory_goes_back_where_the_process_comes_near_what_it_was_allowed(monkeypatch):
    given = []
    monkeypatch.setattr(residency, "give_free_memory_back", lambda: given.append(1))
    for held, most, wanted in ((800, 1000, 1), (700, 1000, 0), (1, None, 0)):
        monkeypatch.setattr(residency, "WORKING", 500)
        monkeypatch.setattr(residency, "held_now", lambda device, held=held: held)
        given.clear()
        residency.Ceiling(most, torch.device("cpu")).mind()
        assert len(given) == wanted
    pages.give_free_memory_back()


def test_pages_are_written_over_when_nobody_holds_their_tensor():
    pages = Pages(most=3 << 20)
    first = pages.tensor((1 << 20,), torch.uint8)
    view, place = first[5:], first.data_ptr()
    del first
    assert pages.waiting == 0, "a view holds it"
    assert pages.tensor((1 << 20,), torch.uint8).data_ptr() != place
    assert pages.waiting == 1 << 20
    del view
    assert pages.waiting == 2 << 20
    again = pages.tensor((256, 1024), torch.float32)
    assert again.data_ptr() % 4096 == 0
    assert pages.waiting == 1 << 20
    large = [pages.tensor((2 << 20,), torch.uint8) for _ in range(3)]
    del large
    assert pages.waiting == 3 << 20, "no more waits than was allowed"
    assert pages.tensor((5,), torch.float32).shape == (5,)
