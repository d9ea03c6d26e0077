# %% [markdown]
# # Give a model another tokenizer
#
# *For engineers and researchers. About one minute of computing; no GPU.*
#
# A tokenizer that fits your text makes it shorter, and so cheaper. The model's tables have a row for every *old*
# token, so a new vocabulary needs new rows. Here one is trained, compared, transplanted, healed, and measured in
# the only unit that two vocabularies share: bits per byte.

# %%
from pathlib import Path

import regraft
from regraft import InitSettings, Recipe, Sources
from regraft.specimens import almanac

Path("learn.txt").write_text("\n".join(almanac.corpus(200_000, 1)))
Path("held-out.txt").write_text("\n".join(almanac.corpus(20_000, 99)))
print(Path("learn.txt").read_text()[:200])

# %% [markdown]
# ## Tokens of several words
#
# `superword` spends half of the vocabulary within words and lets the rest merge across them.

# %%
print(
    regraft.train_tokenizer(
        "words", ["learn.txt"], recipe=Recipe(4096, "superword"), like="specimen:qwen3"
    )
)

# %%
compared = regraft.compare_tokenizers(
    ["words", "specimen:qwen3"], "compared", ["held-out=held-out.txt"]
)
compared.bytes_per_token.to_pandas()

# %% [markdown]
# ## What would a new row be made of?
#
# Before anything is written, ask about one token: the pieces that the old tokenizer cuts it into, and their
# weights in the new row. The last token is one of the longest.

# %%
model = regraft.load()
sources = Sources(
    train=("learn.txt",), domains=("held-out=held-out.txt",), pieces=20, encoder="none"
)
told = regraft.explain_token(model, "words", "#4090", InitSettings("local"), sources)
print(repr(told.attrs["token"]), told.attrs["made"])
told[["old_token", "weight"]].to_pandas()

# %% [markdown]
# ## Transplant
#
# Tokens with the same bytes keep their rows to the bit; the others are estimated by the method. Two controls are
# measured beside it: rows drawn at random, and rows drawn like the old ones. What the method is better by is what
# it knows.

# %%
certificate, said = regraft.transplant_tokenizer(
    model, "words", "planted", InitSettings("local"), sources
)
print(said)
certificate.bits_per_byte.to_pandas()

# %%
certificate.regraft.figure()

# %% [markdown]
# ## Heal
#
# A short training of the *new rows alone*: everything else stays the model it was.

# %%
healed, said = regraft.transplant_tokenizer(
    model, "words", "healed", InitSettings("local"), sources, heal=60
)
healed.bits_per_byte.to_pandas()

# %% [markdown]
# The folder is an ordinary model with its new tokenizer:

# %%
from transformers import AutoModelForCausalLM, AutoTokenizer

hf, tokenizer = (
    AutoModelForCausalLM.from_pretrained("healed"),
    AutoTokenizer.from_pretrained("healed"),
)
ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
print(
    ids.shape[1],
    "tokens in;",
    tokenizer.decode(hf.generate(ids, max_new_tokens=4, do_sample=False)[0]),
)

# %% [markdown]
# ## Try it yourself
#
# Is the pieces' likeness worth computing? Compare `local` with the plain mean of the pieces (`retok`).

# %% tags=["solution"]
plain, said = regraft.transplant_tokenizer(
    model, "words", "plain", InitSettings("retok"), sources
)
for name, one in (("local", certificate), ("retok", plain)):
    print(
        name,
        one.bits_per_byte.sel(state="after").values.round(2),
        one.bits_per_byte.attrs["units"],
    )

# %% [markdown]
# ## Where to go on
#
# - [Tokenizers](../tokenizers.md): all methods, an encoder's space, data sets as streams; [measured](../measured_tokenizers.md).
