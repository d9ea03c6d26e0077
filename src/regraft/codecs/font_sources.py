"""A font as source of a program: an array and what decodes it, in C or in Rust, and what proves that it does.

Neither needs more than its language's core. Both are compiled and run by `proved`, where a compiler is there.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from regraft.codecs.font import Font, coded

_C = """/* A bitmap font: {count} cells of {width} x {height} pixels.
 * A row takes {row} bytes, the leftmost pixel is the highest bit.
 * {lower}_decode writes the {size} bytes of all cells, one cell behind the other. */
#ifndef {upper}_H
#define {upper}_H
#include <stddef.h>
#include <stdint.h>

enum {{ {upper}_COUNT = {count}, {upper}_WIDTH = {width}, {upper}_HEIGHT = {height},
       {upper}_ROW = {row}, {upper}_SIZE = {size} }};

static const uint8_t {lower}_data[{stored}] = {{
{numbers}
}};

static inline void {lower}_decode(uint8_t out[{upper}_SIZE]) {{
    size_t at = 0, read = 0;
    while (read < {stored}) {{
        uint8_t value = {lower}_data[read++];
        size_t run = {run_c};
        while (run-- && at < {upper}_SIZE) out[at++] = value;
    }}
}}
#endif
"""
_RUST = """//! A bitmap font: {count} cells of {width} x {height} pixels.
//! A row takes {row} bytes, the leftmost pixel is the highest bit.

pub const COUNT: usize = {count};
pub const WIDTH: usize = {width};
pub const HEIGHT: usize = {height};
pub const ROW: usize = {row};
pub const SIZE: usize = {size};

pub static DATA: [u8; {stored}] = [
{numbers}
];

/// The bytes of all cells, one cell behind the other.
pub fn decode(out: &mut [u8; SIZE]) {{
    let (mut at, mut read) = (0, 0);
    while read < DATA.len() {{
        let value = DATA[read];
        read += 1;
        let mut run = 1;
{run_rust}        while run > 0 && at < SIZE {{
            out[at] = value;
            at += 1;
            run -= 1;
        }}
    }}
}}
"""
_RUST_RUN = """        if value == 0 {
            run = DATA[read] as usize;
            read += 1;
        }
"""
COMPILERS = {"c": ("cc", "gcc", "clang"), "rust": ("rustc",)}
"""Compilers of each language, in the order in which they are looked for."""
_MAIN = {
    "c": '#include <stdio.h>\n#include "font.h"\nstatic uint8_t out[{upper}_SIZE];\n'
    "int main(void) {{ {lower}_decode(out); return fwrite(out, 1, sizeof out, stdout) != sizeof out; }}\n",
    "rust": 'use std::io::Write;\n#[path = "font.rs"]\n#[allow(dead_code)]\nmod font;\nfn main() {{\n'
    "    let mut out = Box::new([0u8; font::SIZE]);\n    font::decode(&mut out);\n"
    "    std::io::stdout().write_all(&out[..]).unwrap();\n}}\n",
}


def source_of(font: Font, language: str, name: str, raw: bool = False) -> str:
    """A font as source in `c` or `rust`; `raw` without the coding of zeros."""
    data = coded(font.bits, raw)
    width, height = font.grid.cell
    lines = [", ".join(map(str, data[at : at + 20])) for at in range(0, len(data), 20)]
    lower = identifier(name)
    template = _C if language == "c" else _RUST
    return template.format(
        count=font.grid.count,
        width=width,
        height=height,
        row=-(-width // 8),
        size=len(font.bits),
        stored=len(data),
        numbers=",\n".join("    " + line for line in lines),
        lower=lower,
        upper=lower.upper(),
        run_c="1" if raw else f"value ? 1 : {lower}_data[read++]",
        run_rust="" if raw else _RUST_RUN,
    )


def identifier(name: str) -> str:
    """A name that C and Rust take.

    >>> identifier("8x8 font.png")
    'font_8x8_font_png'
    """
    found = re.sub(r"\W", "_", name, flags=re.ASCII).lower().strip("_")
    return found if found[:1].isalpha() else f"font_{found}".rstrip("_")


def compiler_of(language: str) -> str:
    """Where a compiler is; empty where there is none."""
    return next((found for name in COMPILERS[language] if (found := shutil.which(name))), "")


def proved(source: str, language: str, name: str) -> bytes:
    """The bits that a compiled source decodes to.

    Raises:
        ValueError: there is no compiler.
        RuntimeError: it does not compile or run.
    """
    compiler = compiler_of(language)
    if not compiler:
        raise ValueError(
            f"no compiler of {language} is installed ({', '.join(COMPILERS[language])}): install one"
        )
    lower = identifier(name)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        ending = {"c": ("font.h", "main.c"), "rust": ("font.rs", "main.rs")}[language]
        (folder / ending[0]).write_text(source, encoding="utf-8")
        (folder / ending[1]).write_text(
            _MAIN[language].format(lower=lower, upper=lower.upper()), encoding="utf-8"
        )
        made = subprocess.run(
            [compiler, "-O", "-o", "main", ending[1]], cwd=folder, capture_output=True, text=True, check=False
        )
        if made.returncode:
            raise RuntimeError(f"the source does not compile: {made.stderr.strip().splitlines()[0]}")
        return subprocess.run([folder / "main"], capture_output=True, check=True).stdout
