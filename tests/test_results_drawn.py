"""Whatever the first result of a process is, it can be drawn and read as a table."""

from __future__ import annotations

import subprocess
import sys

import pytest

FIRST = {
    "certificate": "regraft.transplant_tokenizer(model, 'specimen:gpt2', 'planted', settings, sources)[0]",
    "origin of a row": "regraft.explain_token(model, 'specimen:gpt2', ' the', settings, sources)",
    "tokenizers": "regraft.compare_tokenizers(['specimen:qwen3', 'specimen:gpt2'], 'compared', most=2)",
}
MARKS = dict.fromkeys(("origin of a row", "tokenizers"), pytest.mark.slow)
"""A process for each: one in every run of the tests, the others among the slow ones."""
BEGIN = """
import regraft
model, settings = regraft.load(), regraft.InitSettings("retok")
sources = regraft.Sources(encoder="none", pieces=2, controls=False)
"""


@pytest.mark.parametrize(
    "made", [pytest.param(code, id=name, marks=MARKS.get(name, ())) for name, code in FIRST.items()]
)
def test_a_process_whose_first_result_it_is_draws_it(made, tmp_path):
    code = f"{BEGIN}data = {made}\nassert len(data.regraft.table())\nassert data.regraft.figure().data\n"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
