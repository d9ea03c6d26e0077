# %% [markdown]
# # Rebuild GPT-2 from its files
#
# *For students. Half a minute of computing; no GPU.*
#
# To know that you understood a model, write it again and compare every intermediate tensor with the official one.
# `regraft rebuild` names the stages, holds the official numbers, and judges. Here you write the first stages
# yourself, make classic mistakes on purpose, and see what they look like.

# %%
import subprocess
import sys
from pathlib import Path

from regraft.reference.skeleton import write_skeleton

folder = Path("my-gpt2")
stages = write_skeleton("specimen:gpt2", folder)
print(len(stages), "stages; the first block's:")
for name, shape in stages[3:15]:
    print(f"  {name:<14} {' x '.join(map(str, shape))}")

# %% [markdown]
# On the command line that is `regraft rebuild specimen:gpt2 --skeleton my-gpt2`. The folder holds `model.py` to
# fill in, the official tensors for two short texts, and `check.py`:


# %%
def check(*words):
    """Run the judge as a student does."""
    done = subprocess.run(
        [sys.executable, folder / "check.py", *words], capture_output=True, text=True
    )
    print(done.stdout)


check()

# %% [markdown]
# ## Embeddings
#
# Two tables: one row for each token, one for each place. The tensors bear the checkpoint's names.

# %%
(folder / "model.py").write_text("""
def stages(weights, config, inputs):
    ids = inputs["input_ids"]
    tokens = weights["wte.weight"][ids]
    yield "embed.tokens", tokens
    positions = weights["wpe.weight"][1 : ids.shape[1] + 1].unsqueeze(0)
    yield "embed.positions", positions
    yield "embed.sum", tokens + positions
""")
check()

# %% [markdown]
# A stage passes when five decimals agree (values above 1 are scaled to 1 first; 17 decimals stand for equal to the
# bit). The judge stops at the first stage that parts, and says what usually causes such a difference: the positions start
# at 0, not at 1. (BERT's cousins do start later, which is where the mistake comes from.)
#
# ## The first block
#
# A norm in front of attention and another in front of the MLP (pre-norm). The cell below writes `model.py` with two
# words left open, `SCALE` and `FORM`, and fills them with nothing first: two traps. Look at the last lines of the output.

# %%
right_embeddings = """
import torch
from torch.nn.functional import gelu, layer_norm


def norm(x, weights, name, config):
    return layer_norm(x, x.shape[-1:], weights[name + ".weight"], weights[name + ".bias"], config["layer_norm_epsilon"])


def linear(x, weights, name):
    return x @ weights[name + ".weight"] + weights[name + ".bias"]  # GPT-2 keeps its matrices inputs first


def stages(weights, config, inputs):
    ids = inputs["input_ids"]
    tokens = weights["wte.weight"][ids]
    yield "embed.tokens", tokens
    positions = weights["wpe.weight"][: ids.shape[1]].unsqueeze(0)
    yield "embed.positions", positions
    stream = tokens + positions
    yield "embed.sum", stream
    yield from block(weights, config, inputs, stream, 0)
"""
block = """

def block(weights, config, inputs, stream, i):
    (texts, length, width), heads = stream.shape, config["n_head"]
    normed = norm(stream, weights, f"h.{i}.ln_1", config)
    yield f"{i}.attn_norm", normed
    qkv = linear(normed, weights, f"h.{i}.attn.c_attn")
    yield f"{i}.qkv", qkv
    q, k, v = (x.view(texts, length, heads, -1).transpose(1, 2) for x in qkv.split(width, dim=2))
    scores = q @ k.transpose(2, 3)SCALE
    sees = torch.ones(length, length).tril().bool() & inputs["attention_mask"][:, None, None, :].bool()
    scores = scores.masked_fill(~sees, torch.finfo(scores.dtype).min)
    yield f"{i}.scores", scores
    probs = scores.softmax(-1)
    yield f"{i}.probs", probs
    mixed = (probs @ v).transpose(1, 2).reshape(texts, length, width)
    yield f"{i}.heads", mixed
    out = linear(mixed, weights, f"h.{i}.attn.c_proj")
    yield f"{i}.attn_out", out
    stream = stream + out
    yield f"{i}.resid_mid", stream
    normed = norm(stream, weights, f"h.{i}.ln_2", config)
    yield f"{i}.mlp_norm", normed
    inner = linear(normed, weights, f"h.{i}.mlp.c_fc")
    yield f"{i}.mlp_in", inner
    act = gelu(innerFORM)
    yield f"{i}.mlp_act", act
    out = linear(act, weights, f"h.{i}.mlp.c_proj")
    yield f"{i}.mlp_out", out
    yield f"{i}.resid_post", stream + out
"""
(folder / "model.py").write_text(
    right_embeddings + block.replace("SCALE", "").replace("FORM", "")
)
check()

# %% [markdown]
# Scores that are too large by one factor everywhere: the division by the root of a head's width is missing. With
# `--carry` the official tensor goes on in its place, so that one mistake does not hide the next:

# %%
check("--carry")

# %% [markdown]
# The second trap is GPT-2's GELU, which is the form by tanh. Its difference is small, and a glance at generated text
# would never have shown it.

# %%
scale, form = " / (width // heads) ** 0.5", ', approximate="tanh"'
(folder / "model.py").write_text(
    right_embeddings + block.replace("SCALE", scale).replace("FORM", form)
)
check()

# %% [markdown]
# ## Try it yourself
#
# Yield the remaining blocks, `final_norm` and `logits` (GPT-2's output matrix is its token table), until `check.py`
# ends with all stages.

# %% tags=["solution"]
whole = right_embeddings.replace(
    "yield from block(weights, config, inputs, stream, 0)",
    """for i in range(config["n_layer"]):
        stream = yield from block(weights, config, inputs, stream, i)
    final = norm(stream, weights, "ln_f", config)
    yield "final_norm", final
    yield "logits", final @ weights["wte.weight"].T""",
)
ends = block.rstrip().replace(
    'yield f"{i}.resid_post", stream + out',
    'stream = stream + out\n    yield f"{i}.resid_post", stream\n    return stream',
)
(folder / "model.py").write_text(
    whole + ends.replace("SCALE", scale).replace("FORM", form) + "\n"
)
done = subprocess.run([sys.executable, folder / "check.py"], capture_output=True, text=True)
print("\n".join(done.stdout.splitlines()[-3:]))

# %% [markdown]
# ## Where to go on
#
# - [Rebuild](../rebuild.md): BERT, T5 and Qwen3, stage by stage, and what each known mistake looks like.
# - A solution to read: `src/regraft/reference/gpt2.py`, one file from top to bottom.
