"""Write what the tokenizers' benchmarks measured: docs/measured_tokenizers.md, and its figures in
docs/images.

Reads benchmarks/results/tokenizer-*.json and nothing else. Run from the project's root with the `browser`
extra and Debian's chromium: `python -m benchmarks.tokenizers.tokenizer_report`.
"""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go

from benchmarks.pages import DOMAINS, HEIGHT, ROOT, draw, made_by, runs
from benchmarks.tokenizers.tokenizer_train import KINDS, LANGUAGES_SIZE, LENGTHS, SIZES
from regraft.reporting.theme import PALETTE, base
from regraft.tokenizers.init_methods import METHODS

OUT = ROOT / "docs" / "measured_tokenizers.md"
READ = ("books", "code", "sums")


def fewer(found: dict[str, Any], kind: str, size: int, domain: str = "books") -> float:
    """Share of tokens saved against the ordinary tokenizer of the same size."""
    ordinary, other = (found[f"{k} {size}"]["bytes_per_token"][domain] for k in ("ordinary", kind))
    return 1 - ordinary / other


def size_rows(found: dict[str, Any]) -> list[str]:
    """Bytes per token by kind and size."""
    rows = [
        (
            "| kind | vocabulary | books | fewer tokens than ordinary | code | sums | tokens per word of"
            " books | tokens of books that cross words | MB/s |"
        ),
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for size in SIZES:
        for kind in KINDS:
            run = found[f"{kind} {size}"]
            books, code, sums = (f"{run['bytes_per_token'][d]:.3f}" for d in READ)
            saved = "" if kind == "ordinary" else f"{fewer(found, kind, size):.1%}"
            rows.append(
                f"| {kind} | {run['vocabulary']:,} | {books} | {saved} | {code} | {sums} |"
                f" {run['tokens_per_word']['books']:.3f} | {run['crossing']['books']:.1%} |"
                f" {run['megabytes_per_second']:.2f} |"
            )
    return rows


def size_figure(found: dict[str, Any]) -> go.Figure:
    """Bytes per token over the size of the vocabulary."""
    figure = base(HEIGHT, width=820)
    for kind, colour in zip(KINDS, PALETTE, strict=False):
        for domain, dash in zip(READ, ("solid", "dash", "dot"), strict=True):
            values = [found[f"{kind} {size}"]["bytes_per_token"][domain] for size in SIZES]
            line = dict(color=colour, dash=dash)
            figure.add_scatter(x=SIZES, y=values, name=f"{kind}, {domain}", mode="lines+markers", line=line)
    figure.update_layout(showlegend=True)
    figure.update_xaxes(
        title="tokens in the vocabulary", type="log", tickvals=SIZES, ticktext=[f"{size:,}" for size in SIZES]
    )
    figure.update_yaxes(title="bytes of text per token")
    return figure


def variant_rows(found: dict[str, Any]) -> list[str]:
    """What the lengths of chunks and the share of words do."""
    rows = ["| tokenizer | books | code | sums |", "|---|---|---|---|"]
    names = [f"supertoken 8192, {said}" for said in LENGTHS]
    names += ["superword 16384, 25% within words", "superword 16384", "superword 16384, 75% within words"]
    for name in names:
        label = f"{name}, 50% within words" if name == "superword 16384" else name
        per_token = found[name]["bytes_per_token"]
        rows.append(f"| {label} | {' | '.join(f'{per_token[d]:.3f}' for d in READ)} |")
    return rows


def language_rows(found: dict[str, Any]) -> list[str]:
    """Bytes per token by language, trained on books and on translations."""
    columns = [f"{kind} {LANGUAGES_SIZE}" for kind in KINDS] + [
        f"languages: {kind} {LANGUAGES_SIZE}" for kind in KINDS
    ]
    rows = [
        (
            f"| language | {' | '.join(f'{k}, books' for k in KINDS)} |"
            f" {' | '.join(f'{k}, translations' for k in KINDS)} |"
        ),
        f"|---|{'---|' * len(columns)}",
    ]
    for domain in found[columns[0]]["bytes_per_token"]:
        if domain.startswith("language "):
            values = " | ".join(f"{found[c]['bytes_per_token'][domain]:.2f}" for c in columns)
            rows.append(f"| {domain.removeprefix('language ')} | {values} |")
    return rows


def language_sizes(found: dict[str, Any]) -> list[str]:
    """Bytes per token by language at every size, trained on books."""
    rows = [f"| language | {' | '.join(f'{size:,}' for size in SIZES)} |", f"|---|{'---|' * len(SIZES)}"]
    for domain in found[f"ordinary {SIZES[0]}"]["bytes_per_token"]:
        if domain.startswith("language "):
            cells = [
                " / ".join(f"{found[f'{k} {size}']['bytes_per_token'][domain]:.2f}" for k in KINDS)
                for size in SIZES
            ]
            rows.append(f"| {domain.removeprefix('language ')} | {' | '.join(cells)} |")
    return rows


def token_lines(found: dict[str, Any]) -> list[str]:
    """Tokens that span words, as examples."""
    lines = []
    for kind in ("supertoken", "superword"):
        run = found[f"{kind} 16384"]
        for what, key, most in (
            ("most frequent that cross words", "crossing_tokens", 12),
            ("longest", "longest_tokens", 8),
        ):
            lines.append(
                f"- {kind} 16,384, {what}: " + ", ".join(f"`{token!r}`" for token in run[key][:most])
            )
    return lines


def transplant_rows(found: dict[str, Any], case: str) -> list[str]:
    """Every method on one case, before and after healing."""
    named = {method: found[f"{case}: {method}"] for method in METHODS if f"{case}: {method}" in found}
    first = next(iter(named.values()))
    healing = "healed" in first
    stages = ("after", "healed") if healing else ("after",)
    heads = " | ".join(
        f"{d}, {'healed' if stage == 'healed' else 'at once'}" for stage in stages for d in DOMAINS
    )
    own = " | ".join([*(f"{first['before'][d]:.3f}" for d in DOMAINS), *([""] * 3 if healing else [])])
    rows = [
        f"| method | {heads} | seconds |",
        f"|---|{'---|' * (len(stages) * len(DOMAINS) + 1)}",
        f"| *own tokenizer* | {own} | |",
    ]
    for method, run in named.items():
        cells = [
            _marked(run[stage][d], [one[stage][d] for one in named.values()])
            for stage in stages
            for d in DOMAINS
        ]
        rows.append(f"| {method} | {' | '.join(cells)} | {run['seconds']:.1f} |")
    return rows


def _marked(value: float, all_values: list[float]) -> str:
    return f"**{value:.3f}**" if value <= min(all_values) else f"{value:.3f}"


def losses(found: dict[str, Any], case: str) -> str:
    """Where the hybrid is worse than a baseline, by how much."""
    named = {method: found[f"{case}: {method}"] for method in METHODS}
    said = []
    for stage, words in (("after", "at once"), ("healed", "healed")):
        for domain in DOMAINS if stage in named["hybrid"] else ():
            best = min((run[stage][domain], method) for method, run in named.items() if method != "hybrid")
            if best[0] < named["hybrid"][stage][domain]:
                said.append(f"{domain} {words}: {best[1]} by {named['hybrid'][stage][domain] - best[0]:.3f}")
    return f"The hybrid is behind on {'; '.join(said)}." if said else "The hybrid is behind nowhere."


def counts(run: dict[str, Any]) -> str:
    """What is taken over and what is new."""
    return (
        f"{run['tokens']:,} tokens: {run['taken_over']:,} take over old rows, {run['estimated']:,} are"
        " estimated."
    )


def sensitivity(found: dict[str, Any], setting: str) -> go.Figure:
    """Bits per byte of the hybrid over one setting."""
    case = next(iter(found)).rpartition(": ")[0]
    made = sorted((r for r in found.values() if r.get("setting") == setting), key=lambda run: run["value"])
    figure = base(HEIGHT, width=820)
    for domain, colour in zip(DOMAINS, PALETTE, strict=False):
        own = found[f"{case}: hybrid"]["after"][domain]
        values = [run["after"][domain] - own for run in made]
        figure.add_scatter(
            x=[r["value"] for r in made], y=values, name=domain, mode="lines+markers", line_color=colour
        )
    figure.update_layout(showlegend=True)
    kind = "log" if setting in ("temperature", "nearest") else "linear"
    figure.update_xaxes(title=setting, type=kind, tickvals=[r["value"] for r in made])
    figure.update_yaxes(title="bits per byte beyond the default settings")
    return figure


def size_lines(found: dict[str, Any]) -> list[str]:
    """Time and memory of a large vocabulary."""
    rows = [
        (
            "| search | taken over | estimated | matching | encoder's cache | estimates and tables |"
            " measuring, writing, reading again | process peak |"
        ),
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, run in found.items():
        encoded = f"{run['encoder_and_cache_seconds']:.1f} s ({run['encoded_now']:,} encoded now)"
        rows.append(
            f"| {name} | {run['taken_over']:,} | {run['estimated']:,} | {run['matching_seconds']:.1f} s |"
            f" {encoded} | {run['estimate_and_tables_seconds']:.1f} s |"
            f" {run['measuring_and_writing_seconds']:.1f} s | {run['process_peak_gib']:.2f} GiB |"
        )
    return rows


def text_rows(found: dict[str, Any]) -> list[str]:
    """What transplanted models write."""
    lines = []
    for name, run in found.items():
        lines += [f"{name} (`{run['command']}`):", ""]
        lines += [
            f"> **{prompt}**{' '.join(said.split(' ')).replace(chr(10), ' / ')}" + "\n>"
            for prompt, said in run["said"].items()
        ]
        lines += [""]
    return lines


def page() -> str:
    """The whole page."""
    trained, planted, sizes, text = (
        runs(name, "tokenizer") for name in ("train", "transplant", "size", "text")
    )
    first, size = next(iter(planted.values())), next(iter(sizes.values()))
    cases = list(dict.fromkeys(name.rpartition(": ")[0] for name in planted))
    parts = [
        "# Tokenizers, measured",
        "",
        (
            "Written by `benchmarks/tokenizers/tokenizer_report.py` from"
            " `benchmarks/results/tokenizer-*.json`, where every run's settings stand."
        ),
        "",
        "## Bytes per token",
        "",
        (
            f"`benchmarks/tokenizers/tokenizer_train.py` ({made_by(trained['ordinary 4096'])}). Trained on"
            f" {trained['ordinary 4096']['bytes'] / 1e6:.1f} MB of books; measured on other books, on code of"
            " the standard library and on word problems. Chunks of supertokens: 200 characters, deviation"
            " 50. Aim: supertokens at least 20% fewer tokens than ordinary ones on books at 16k and above."
            f" They are {fewer(trained, 'supertoken', 16_384):.1%} fewer at 16k,"
            f" {fewer(trained, 'supertoken', 32_768):.1%} at 32k; superwords"
            f" {fewer(trained, 'superword', 16_384):.1%} and {fewer(trained, 'superword', 32_768):.1%}."
        ),
        "",
        *size_rows(trained),
        "",
        "![Bytes per token over size](images/tokenizer-sizes.png)",
        "",
        (
            "Longer chunks lose fewer tokens at their cuts, up to a length; superwords by the share of the"
            " vocabulary that is merged within words:"
        ),
        "",
        *variant_rows(trained),
        "",
        "Tokens that span words:",
        "",
        *token_lines(trained),
        "",
        "## Languages",
        "",
        (
            "Bytes per token of 16,384 tokens on news in translation, of tokenizers trained on (English)"
            " books and on the Universal Declaration's translations"
            f" ({trained[f'languages: ordinary {LANGUAGES_SIZE}']['bytes'] / 1e6:.1f} MB)."
        ),
        "",
        *language_rows(trained),
        "",
        f"At every size, trained on books: {' / '.join(KINDS)}.",
        "",
        *language_sizes(trained),
        "",
        "## Transplants",
        "",
        (
            f"`benchmarks/tokenizers/tokenizer_transplant.py` ({made_by(first)}, two such processes side by"
            " side). Bits per byte with the new tokenizer, at once and after"
            f" {first['healing_steps']} healing steps of {first['healing_tokens']:,} tokens of books, almanac"
            " and code; best in bold. `mean`, `retok`, `align`, `focus` and `pursuit` are the baselines."
        ),
        "",
    ]
    for case in cases:
        run = planted[f"{case}: hybrid"]
        parts += [
            f"### {case}",
            "",
            f"{counts(run)} {losses(planted, case)}",
            "",
            *transplant_rows(planted, case),
            "",
        ]
    parts += [
        "### Settings of the hybrid",
        "",
        (
            f"{cases[0]}, one setting at a time; the defaults are temperature 0.3, 3 nearest, weight 0.3,"
            " threshold 0."
        ),
        "",
    ]
    parts += [line for name in VARIED for line in (f"![{name}](images/tokenizer-{name}.png)", "")]
    parts += [
        "## At size",
        "",
        (
            f"`benchmarks/tokenizers/tokenizer_size.py` ({made_by(size)}): {size['new']:,} tokens into a"
            f" model of width {size['width']:,} that had {size['old']:,}, embedding and output matrix apart."
            " The encoder's vectors were in its cache; aim, without the encoder's own time: under 5 minutes"
            " and under 6 GiB. The second row ran in the same process behind the first."
        ),
        "",
        *size_lines(sizes),
        "",
        "## What a transplanted model writes",
        "",
        (
            "In plain transformers, from the written folder, greedily"
            " (`benchmarks/tokenizers/tokenizer_text.py`):"
        ),
        "",
        *text_rows(text),
    ]
    return "\n".join(parts)


VARIED = ("temperature", "nearest", "weight", "threshold")


def main() -> None:
    """Write the page and its pictures."""
    OUT.write_text(page(), encoding="utf-8")
    planted = runs("transplant", "tokenizer")
    draw({"tokenizer-sizes.png": size_figure(runs("train", "tokenizer"))})
    draw({f"tokenizer-{name}.png": sensitivity(planted, name) for name in VARIED})


if __name__ == "__main__":
    main()
