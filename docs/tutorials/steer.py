# %% [markdown]
# # Steer a model, and prove what it did
#
# *For researchers and engineers. About one minute of computing; no GPU.*
#
# A direction added to the stream can turn what a model writes. It can also just break the model, and broken text
# looks "different", too. Here you make a direction, use it, and measure both: what it moved, and what it cost.

# %%
from pathlib import Path

import numpy as np

import regraft
from regraft import Add

model = regraft.load()
prompt = "It is dark and she walks"
print(model.generate(prompt, tokens=12).texts[0])

# %% [markdown]
# ## One direction from one word
#
# The stream behind block 6 for the word " night", added at every new token:

# %%
night = model.activations(" night", "6.resid_post", positions=-1)["6.resid_post"].values[0]
for strength in (0.1, 0.3, 1.0):
    print(
        strength,
        model.generate(
            prompt, edits=Add("6.resid_post", strength * night, "new"), tokens=12
        ).texts[0],
    )

# %% [markdown]
# ## A direction from two sets of texts
#
# One word carries everything that is true of that word. The difference of two *sets* of texts keeps only what
# parts them. Half of each set makes the vector; the other half measures it, so it is not judged by its own texts.

# %%
glad = [
    "She laughed and sang.",
    "He was merry all day.",
    "They danced with joy.",
    "The children smiled.",
    "A happy song rang out.",
    "What joy it was.",
    "He grinned and cheered.",
    "All were glad and bright.",
]
sad = [
    "She wept and sighed.",
    "He was gloomy all day.",
    "They mourned in grief.",
    "The children cried.",
    "A mournful song rang out.",
    "What grief it was.",
    "He frowned and moaned.",
    "All were sad and weary.",
]
Path("glad.txt").write_text("\n".join(glad))
Path("sad.txt").write_text("\n".join(sad))
steered = regraft.steer(
    model, towards="glad.txt", away="sad.txt", blocks=[3, 6, 9], count=4
)
steered.regraft.figure()

# %% [markdown]
# Each line is a block; along it the strength grows. Up is what was wanted: held-out glad texts become likelier
# than held-out sad ones. Now the price, on prompts that have nothing to do with it:

# %%
steered.regraft.figure(1)

# %% [markdown]
# A good direction moves the first figure long before it moves the second. How much is that worth? Compare it
# with what *any* vector of this length does.
#
# ## The control: random directions of the same length


# %%
def mean_state(texts, block=8):
    """The mean of the stream behind a block over all tokens of some texts."""
    site = f"{block}.resid_post"
    return model.activations(texts, site)[site].values.mean(0)


def preference(vectors, block=8):
    """Nats per token by which held-out glad texts are likelier than sad ones, above clean."""
    cells = [Add(f"{block}.resid_post", vector) for vector in vectors]
    rises = []
    for texts in (sad[4:], glad[4:]):
        result = regraft.sweep(model.record(texts), cells, regraft.loss())
        rises.append(result.mean("loss").numpy() - float(result.clean_mean("loss")))
    return rises[0] - rises[1]


direction = mean_state(glad[:4]) - mean_state(sad[:4])
chance = np.random.default_rng(0).standard_normal((20, len(direction)))
chance *= np.linalg.norm(direction) / np.linalg.norm(chance, axis=1, keepdims=True)
for strength in (1, 2, 4):
    found = preference([strength * direction])[0]
    beaten = int((preference(strength * chance) < found).sum())
    print(
        f"{strength} times: {found:+.3f} nats per token, more than {beaten} of 20 random ones"
    )

# %% [markdown]
# Every added vector is a variant of one sweep. The longer the vectors, the wider what chance does, too: a large effect
# at a large strength proves little by itself. A claim about steering should quote the control.
#
# ## Ship it
#
# `Add` works whoever runs the model: inside `model.changed(...)` the Hugging Face model itself is steered, with its
# own `generate`, cache included.

# %%
ids = model.record(prompt).ids_BT
with model.changed(Add("8.resid_post", 4 * direction, "new")):
    written = model.hf.generate(ids, max_new_tokens=8, do_sample=False)
print(model.tokenizer.decode(written[0, ids.shape[1] :]))
print(
    "and as it was:",
    model.tokenizer.decode(
        model.hf.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
    ),
)

# %% [markdown]
# ## Try it yourself
#
# Is block 8 special? Make the same direction behind block 2 and see whether it beats chance there.

# %% tags=["solution"]
early = mean_state(glad[:4], 2) - mean_state(sad[:4], 2)
length = np.linalg.norm(early) / np.linalg.norm(direction)
found = preference([early], 2)[0]
beaten = int((preference(length * chance, 2) < found).sum())
print(f"behind block 2: {found:+.3f} nats per token, more than {beaten} of 20 random ones")

# %% [markdown]
# ## Where to go on
#
# - On the command line: `regraft steer --towards glad.txt --away sad.txt --out steered`, then
#   `regraft completions --edit "6.resid_post+4*steered@new"`.
# - [Push and ablation](../components.md): which parts carry the answer of a question into another text.
