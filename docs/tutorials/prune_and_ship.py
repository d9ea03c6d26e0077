# %% [markdown]
# # Prune a model, and ship it
#
# *For engineers. About one minute of computing; no GPU.*
#
# You have a model and want a smaller one that others can open without regraft. You will find out which blocks can
# go, remove them, round the rest to few bits, and read back what was written before anybody trusts it.

# %%
import json
from pathlib import Path

import regraft

model = regraft.load()
model

# %% [markdown]
# ## Which blocks can go?

# %%
knocked = regraft.knockout(model, count=8)
knocked.regraft.figure()

# %% [markdown]
# Single blocks do not add up: two that are harmless alone can be fatal together. `greedy` removes the least
# harmful block, measures all that remain anew, and goes on while the loss stays below `limit` times the clean one.

# %%
greedy = regraft.knockout(model, mode="greedy", count=8, limit=1.6)
greedy.regraft.table()

# %% [markdown]
# ## Remove them for good
#
# `prune` writes a folder that plain `transformers` opens: blocks renumbered, the configuration changed with them.
# It is read again and compared with the route in the live model before it is kept.

# %%
pruned = regraft.prune(
    model,
    drop=[int(b) for b in greedy.removed.values[:2] if str(b).isdigit()] or [5],
    save="smaller",
    count=8,
)
pruned.regraft.table()

# %%
from transformers import AutoModelForCausalLM, AutoTokenizer

hf = AutoModelForCausalLM.from_pretrained("smaller")
tokenizer = AutoTokenizer.from_pretrained("smaller")
ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
print(
    hf.config.num_hidden_layers,
    "blocks;",
    tokenizer.decode(hf.generate(ids, max_new_tokens=4, do_sample=False)[0]),
)

# %% [markdown]
# ## Few bits, where they hurt least
#
# A specimen is measured on prompts in its own words, a folder on prompts about mixed topics, so losses of the two do
# not compare unless you name the prompts (`prompts=[...]`, `--prompts-file`). Blocks differ in how well they stand rounding. `quantize` measures each alone and spends a budget of bits by
# what it found, at equal bytes with the same bits everywhere.

# %%
smaller = regraft.load("smaller")
rounded = regraft.quantize(
    smaller, count=4, recipe="oracle", save="smaller-four-bits", sample=4
)
rounded.regraft.figure()

# %%
for folder in ("smaller", "smaller-four-bits"):
    size = sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))
    print(f"{folder}: {size / 2**20:.1f} MiB of weights")
print(
    sorted(
        json.loads(Path("smaller-four-bits/config.json").read_text())["quantization_config"]
    )[:3]
)

# %% [markdown]
# ## What does the user of it get?
#
# A model card with the numbers is in the folder, and the same lines below: what it was made of, what it costs.

# %%
print("\n".join(Path("smaller-four-bits/README.md").read_text().splitlines()[:24]))

# %% [markdown]
# ## Try it yourself
#
# Does the order of doing things matter? Round first, then ask which block is cheapest to remove.

# %% tags=["solution"]
again = regraft.knockout(regraft.load("smaller-four-bits"), count=8)
first = regraft.knockout(smaller, count=8)
print("cheapest block before rounding:", str(first.block[int(first.loss.argmin())].values))
print("cheapest block after rounding: ", str(again.block[int(again.loss.argmin())].values))

# %% [markdown]
# ## Where to go on
#
# - [Quantization](../quantize.md), with other people's quantizers beside it; [routes and surgery](../routes.md).
# - A model that does not fit into memory: `--stream` or `--memory 3GiB` ([scale](../scale.md)).
# - `--push-to-hub OWNER/NAME` sends what `--save` wrote.
