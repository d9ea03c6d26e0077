"""Reports on models unlike any that the texts of regraft were written for: every sentence true, what is left
out said."""

from __future__ import annotations

import re

import pytest

import odd_models
from regraft import load
from regraft.reporting.build import build
from regraft.reporting.chapter_inputs import Reading

READ = {
    "three_tokens": Reading(prompts=("a b c a", "b c a b a", "c c a b", "a a b"), count=3),
    "graphemes_to_phonemes": Reading(prompts=("hello", "world", "cat", "tree")),
    "stories": Reading(),
    "one_block": Reading(prompts=("The dog was sad", "Lily gave the dog her ball", "She saw a small")),
}
SHOWN = {
    "three_tokens": ("completions", "lens", "knockout", "ablate", "quantizers"),
    "graphemes_to_phonemes": ("lens", "knockout", "swap", "ablate"),
    "stories": ("spectra",),
    "one_block": ("lens", "knockout", "repeat", "quantize"),
}
NEVER = (
    "np.str_",
    "nan nats",
    "inf nats",
    "Antonyms are",
    "without blocks none",
    " 0 % of tokens",
    "am. Therefore",
    "nats per token, unrounded nan",
)


def reported(name, out):
    hf, read, *written = getattr(odd_models, name)()
    model = load(hf, read, target_tokenizer=written[0] if written else None, pack=False)
    path, missing = build(model, out, reading=READ[name])
    return path.read_text(encoding="utf-8"), missing


def told(page):
    """The page's text without scripts and marks."""
    return re.sub(
        r"\s+",
        " ",
        re.sub(r"<[^>]+>", " ", re.sub(r"<script.*?</script>|<style.*?</style>", " ", page, flags=re.S)),
    )


def check(name, out):
    page, missing = reported(name, out)
    text = told(page)
    assert not [str(one) for one in missing if one.trace], "no chapter failed"
    left_out = {one.name for one in missing}
    assert not left_out & set(SHOWN[name])
    assert "trajectories" in left_out, "their words are not in these vocabularies"
    for one in missing:
        assert one.title in text
        assert one.reason.split(":")[0][:60] in text.replace("&#x27;", "'"), one.reason
    assert not [words for words in NEVER if words in text]
    return left_out


@pytest.mark.slow
@pytest.mark.parametrize("name", ["graphemes_to_phonemes", "stories", "one_block"])
def test_a_report_on_an_odd_model_is_true_and_says_what_is_missing(name, tmp_path):
    left_out = check(name, tmp_path / name)
    if name == "one_block":
        assert {"swap", "prune", "shuffle"} <= left_out
    if name == "stories":
        assert {"completions", "knockout", "patch"} <= left_out, "without prompts of its own"


@pytest.mark.slow
def test_a_report_on_a_model_of_three_tokens_and_eleven_positions(tmp_path):
    assert {"patch", "push", "shuffle"} <= check("three_tokens", tmp_path / "three")
