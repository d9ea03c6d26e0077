"""The tasks in regraft."""

from __future__ import annotations

from benchmarks.tasks.shared import CHAT, CLEAN, CORRUPT, PROMPTS, STORY, answers, autoencoder, opened
from regraft import Add, Apply, Zero, grid, load, logit_difference, metric, paths, sweep, token_logit

if __name__ == "__main__":
    model, sae = load(opened()[2], attention="eager", dtype="float64"), autoencoder()


def steer():
    night = model.activations(" night", "2.resid_post", positions=-1)["2.resid_post"].values[0]
    return model.generate(STORY, edits=Add("2.resid_post", night, "new"), tokens=8).ids[0]


def cache():
    return model.activations(PROMPTS, "2.resid_post", positions=-1)["2.resid_post"].values


def path_patch():
    data = paths(model, ["3.v.1"])
    return data.logit_difference.sel(block=2, sender="1") - data.target_value


def attribution():
    clean, corrupt = model.record(CLEAN), model.record(CORRUPT)
    slope = corrupt.gradients(logit_difference(" morning", " night"), "2.z")["2.z"]
    return (slope * (clean["2.z"] - corrupt["2.z"])).sum((0, 1, 3))


def own_metric():
    entropy = metric(lambda x: -(x.softmax(-1) * x.log_softmax(-1)).sum(-1), "nats", name="entropy")
    return sweep(model.record(CORRUPT), Zero("2.mlp_out"), entropy).mean("entropy")


def splice():
    features = lambda x: (x @ sae["W_enc"] + sae["b_enc"]).relu()  # noqa: E731
    rebuilt = Apply("2.resid_post", lambda x: features(x) @ sae["W_dec"] + sae["b_dec"])
    return sweep(model.record(CORRUPT), rebuilt, token_logit(" night")).mean("logit")


def notebook():
    cells = grid(lambda block, head: Zero(f"{block}.head.{head}"), block=range(4), head=range(4))
    data = sweep(model.record(CORRUPT), cells, logit_difference(" morning", " night"))
    data.regraft.figure()
    return data.logit_difference


def chat():
    return model.record(CHAT)["logits"][0, -1].topk(3).values


if __name__ == "__main__":
    answers(globals())
