# %% [markdown]
# # From two checkpoints to a feature page
#
# *For researchers. About one minute of computing; no GPU.*
#
# Two checkpoints of one architecture: a base model and what tuning made of it. `specimen:tuned` learnt to work sums
# with a written thought that hesitates. What did tuning change? A sparse adapter beside every MLP learns just that,
# and its features can be read, switched off, and traced.

# %%
import regraft
from regraft import TrainingPlan, TranscoderLoss

base, tuned = regraft.load("specimen:qwen3"), regraft.load("specimen:tuned")
problem = "Problem: Anna has 12 coins, buys 9 and finds 5. How many?"
for name, model in (("base", base), ("tuned", tuned)):
    print(f"{name}: {model.generate(problem, tokens=40).texts[0]!r}")

# %% [markdown]
# ## Fit
#
# The target's attention stays, the base's MLPs stay, and adapters are taught to make up the difference. A short run
# for this page; the [measured one](../transcoder.md) trains for minutes and recovers nearly all.

# %%
loss, plan = TranscoderLoss(l1=0.05), TrainingPlan(steps=60, batch=4)
print(
    regraft.fit_transcoder(
        base, tuned, "adapters", features=128, weights=loss, plan=plan, length=96
    )
)

# %% [markdown]
# ## Measure
#
# Four models on held-out worked sums: base, target, the *hybrid* (no adapters: what they have to make up for), and
# the adapted one.

# %%
measured = regraft.evaluate_transcoder("adapters/graft", length=96, most=40)
measured.loss.to_pandas()

# %%
recovered = float(measured.recovered[0])
print(f"recovered of what the hybrid lacks: {recovered:.0%} of the loss")

# %% [markdown]
# ## Read the features
#
# One pass over text keeps, for every feature, where it is active, how often and how strongly, and what it pushes.
# The page opens without a server: `page/page/index.html`.

# %%
facts = regraft.describe_features("adapters/graft", "page", most=60, length=96, k=4)
often = facts.frequency.stack(at=("block", "feature")).to_pandas()
often[often > 0].sort_values(ascending=False).head(5)

# %% [markdown]
# ## Switch them off
#
# Features are sites. A feature that matters changes what the model predicts when it is zero; the control is the
# model with all adapters off, which is the hybrid to the bit.

# %%
adapted, adapters = regraft.open_transcoder("adapters/graft")
text = adapted.record(problem, tuned.generate(problem, tokens=40).texts[0])
largest = {f"{b}.feature": text[f"{b}.feature"][0].amax(0) for b in range(12)}
active = [
    f"{site}.{n}" for site, found in largest.items() for n in found.nonzero()[:, 0].tolist()
]
without = regraft.sweep(text, [regraft.Zero(site) for site in active], regraft.loss())
added = without.values["loss"][:, 0] - float(without.clean_mean("loss"))
print(
    f"{len(active)} features are active on this text; without one of them the loss rises most for"
)
for number in added.topk(5).indices.tolist():
    print(f"  {active[number]:<16} by {float(added[number]):.3f} nats per token")

# %% [markdown]
# After so short a fit the work is spread over many features, and no single one matters much. All of them together do:

# %%
with adapters.switch(strength=0.0):
    off = adapted.record(problem, tuned.generate(problem, tokens=40).texts[0])
    print(
        f"with adapters {float(without.clean_mean('loss')):.3f}, all switched off"
        f" {float(regraft.sweep(off, [regraft.Variant()], regraft.loss()).mean('loss')[0]):.3f} nats per token"
    )

# %% [markdown]
# ## Trace a prediction
#
# At one prompt the adapted model is made linear, and what every feature, token and bias adds to a logit adds up to it.

# %%
graph = regraft.attribute_prompt(
    "adapters/graft", problem + " <think> First, 12 + 9 =", "graph", most=64
)
logits = [node for node in graph.nodes if node.kind == "logit"]
print("next token:", [(node.text, round(node.value, 2)) for node in logits[:3]])
print(
    sum(node.kind == "feature" for node in graph.nodes),
    "features at tokens stand in the graph",
)

# %% [markdown]
# ## Try it yourself
#
# Are the features *sparse because they were trained to be*? Fit with random encoders and compare how many are active.

# %% tags=["solution"]
regraft.fit_transcoder(
    base,
    tuned,
    "random",
    features=128,
    weights=loss,
    plan=plan,
    length=96,
    random_features=True,
)
control = regraft.evaluate_transcoder("random/graft", length=96, most=40)
for name, one in (("trained", measured), ("random encoders", control)):
    print(
        f"{name}: {float(one.active.mean()):.1f} active of 128, loss {float(one.loss.sel(model='adapted')[0]):.3f} nats per token"
    )

# %% [markdown]
# ## Where to go on
#
# - [Transcoder adapters](../transcoder.md): losses, controls, export to `transformers` and vLLM, circuit-tracer's files.
