# %% [markdown]
# # Where is an answer decided?
#
# *For researchers. About one minute of computing; no GPU.*
#
# "The time displayed is 9:00 am. Therefore, it is currently the" goes on with " morning"; with *pm* it goes on
# with " night". Somewhere between the clock and the last word the model decides. You will find the place with
# three instruments that fail in different ways, and then prove it by switching the place off.

# %%
import regraft
from regraft import Replace, Zero, grid, logit_difference, sweep

model = regraft.load()  # specimen:qwen3, inside the package; any folder or hub id would do
am = model.record("The time displayed is 9:00 am. Therefore, it is currently the")
pm = model.record("The time displayed is 9:00 pm. Therefore, it is currently the")
am

# %% [markdown]
# A *recording* is one clean run: every block's input is kept, so that a variant costs only what it changes. What
# is asked is the difference of two logits: positive says " morning".

# %%
decided = logit_difference(" morning", " night")
for name, recording in (("am", am), ("pm", pm)):
    clean = sweep(recording, [regraft.Variant()], decided).mean("logit_difference")
    print(f"{name}: {float(clean[0]):+.1f} logits")

# %% [markdown]
# ## First instrument: what would it say after each block?
#
# The logit lens reads the stream at every depth with the model's own last norm and output matrix.

# %%
lens = regraft.lens(
    model,
    prompts=["The time displayed is 9:00 pm. Therefore, it is currently the"],
    tokens=1,
)
[
    f"depth {int(depth)}: {str(token)!r}"
    for depth, token in zip(lens.depth, lens["first"][:, 0].values, strict=True)
]

# %% [markdown]
# The lens says when an answer becomes *readable by the head*. It does not say where it was decided: early depths
# were never trained to be read this way.
#
# ## Second instrument: put one run's activations into the other
#
# Take the stream from the *am* run, one block and one position at a time, and put it into the *pm* run. Where
# that turns the answer, the difference between the two times is carried.

# %%
patched = regraft.patch(model)
patched.regraft.figure()

# %% [markdown]
# Read the map from the left: at first all of the difference sits on the token " pm"; from some block on it sits on
# the last token. Between the two it moved, and a part that moves things between positions is an attention head.
# Which block is the last that still finds the answer at " pm"?

# %%
position = int(patched.effect.isel(block=0).argmax())
share = patched.effect.isel(position=position)
last = int(max(b for b in range(len(share)) if float(share[b]) > 0.5))
print(f"read at {pm.model.token_text(int(pm.ids_BT[0, position]))!r} up to block {last}")

# %% [markdown]
# ## Third instrument: every head, one at a time
#
# `grid` makes a variant for every combination; a sweep of it is an `xarray.Dataset` with those dimensions (blocks
# by their addresses, which `sel(block=6)` finds by number, too). Here
# each head's output is replaced by what it gave in the *am* run, all 72 in one call.

# %%
cells = grid(
    lambda block, head: Replace(
        f"{block}.head.{head}", am[f"{block}.head.{head}"], position=-1
    ),
    block=range(12),
    head=range(6),
)
heads = sweep(pm, cells, decided)
heads.regraft.figure()

# %%
strongest = heads.logit_difference.stack(at=("block", "head"))
block, head = strongest.isel(at=int(strongest.values.argmax())).at.item()
print(f"the head that carries most of it: {block}.head.{head}")

# %% [markdown]
# ## Proof: take it away
#
# A part that *can* carry the answer need not be the one that *does*. Set the head to zero in the unpatched runs:
# the difference between am and pm must shrink. And a control: the same for a head that the map calls idle.

# %%
idle_block, idle_head = strongest.isel(
    at=int(abs(strongest - strongest.median()).values.argmin())
).at.item()
for name, b, h in (("the head", block, head), ("an idle one", idle_block, idle_head)):
    change = Zero(f"{b}.head.{h}", position=-1)
    gap = [float(sweep(r, change, decided).mean("logit_difference")[0]) for r in (am, pm)]
    print(
        f"without {name} ({b}.head.{h}): am {gap[0]:+.1f}, pm {gap[1]:+.1f}, apart by {gap[0] - gap[1]:.1f}"
    )

# %% [markdown]
# If the gap did not close altogether, other paths carry the rest: a model can know a thing twice. `regraft paths`
# follows single edges between parts; `regraft bottleneck` asks whether the place where restoring helps most is
# also the one whose loss hurts most (often it is not).
#
# ## Try it yourself
#
# Zero the *two* strongest heads at once. Is the effect the sum of both?

# %% tags=["solution"]
order = strongest.sortby(strongest, ascending=False).at.values[:2]
single = [
    sweep(pm, Zero(f"{b}.head.{h}", position=-1), decided).mean("logit_difference")
    for b, h in order
]
both = sweep(
    pm, [regraft.Variant([Zero(f"{b}.head.{h}", position=-1) for b, h in order])], decided
)
clean = sweep(pm, [regraft.Variant()], decided).mean("logit_difference")
print("sum of the single changes:", round(float(sum(one - clean for one in single)), 2))
print("both at once:             ", round(float(both.mean("logit_difference") - clean), 2))

# %% [markdown]
# Where both at once do more than the sum, each stands in for the other when it is missing; where they do less, they
# write the same thing. A second head that does nothing alone makes the question empty: look at its single change first.
#
# ## Where to go on
#
# - Your own prompts: `regraft patch --pairs cases.json`, a list of objects with `clean`, `corrupt`, `answer`, `wrong`.
# - Why the numbers can be trusted: [exactness](../exactness.md). Every sweep above carried a control row.
# - [Knockout, swap and patching](../interventions.md), [lens](../lens.md), [push and ablation](../components.md).
