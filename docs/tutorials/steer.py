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
# ## The control: a random direction of the same length


# %%
def vector_of(texts):
    states = model.activations(texts, "6.resid_post", positions=-1)["6.resid_post"].values
    return states.mean(0)


direction = vector_of(glad[:4]) - vector_of(sad[:4])
draw = np.random.default_rng(0)
random = draw.standard_normal(direction.shape)
random *= np.linalg.norm(direction) / np.linalg.norm(random)


def preference(edit):
    """Nats per token by which held-out glad texts are likelier than held-out sad ones."""
    found = []
    for texts in (glad[4:], sad[4:]):
        record = model.record(texts)
        found.append(
            float(
                regraft.sweep(
                    record, [regraft.Variant([edit] if edit else [])], regraft.loss()
                ).mean("loss")[0]
            )
        )
    return found[1] - found[0]


before = preference(None)
for name, vector in (("glad minus sad", direction), ("random, as long", random)):
    print(f"{name}: {preference(Add('6.resid_post', vector)) - before:+.3f} nats per token")

# %% [markdown]
# The second number is what a vector of this length moves by chance alone: one draw of many. A claim about steering
# should quote both.
#
# ## Ship it
#
# `Add` works whoever runs the model: inside `model.changed(...)` the Hugging Face model itself is steered, with its
# own `generate`, cache included.

# %%
ids = model.record(prompt).ids_BT
with model.changed(Add("6.resid_post", direction, "new")):
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
# Is block 6 special? Draw five random directions instead of one and give their spread.

# %% tags=["solution"]
moved = []
for seed in range(5):
    other = np.random.default_rng(seed).standard_normal(direction.shape)
    other *= np.linalg.norm(direction) / np.linalg.norm(other)
    moved.append(preference(Add("6.resid_post", other)) - before)
print(f"five random directions: from {min(moved):+.3f} to {max(moved):+.3f} nats per token")

# %% [markdown]
# ## Where to go on
#
# - On the command line: `regraft steer --towards glad.txt --away sad.txt --out steered`, then
#   `regraft completions --edit "6.resid_post+4*steered@new"`.
# - [Push and ablation](../components.md): which parts carry the answer of a question into another text.
