"""Codecs beside those that everybody has: python -m benchmarks.codecs.run --corpora FOLDER

`--parts` chooses of `bytes` (all codecs on six inputs), `bpez`, `ulz`, `archive`, `lm`, `image`; what is in
benchmarks/results/codecs.json already is not measured again. FOLDER holds `silesia`, `books-heldout` and
`udhr`. Debian's `zpaq` is held beside the archive where it is installed.
"""

from __future__ import annotations

import argparse
import gzip
import lzma
import random
import shutil
import subprocess
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lz4.block
import numpy as np
import skimage.data
import torch
import zpaq
from PIL import Image

import regraft
from benchmarks.codecs import published_bpez
from benchmarks.shared import RESULTS, Results, arguments, held_code
from regraft.codecs import bpez, lm, ulz
from regraft.codecs.archive import add
from regraft.codecs.archive_reading import check_archive
from regraft.jobs.codec_comparison import compare_codecs
from regraft.jobs.picture_jobs import pack_picture, side_by_side

ROUNDS = 5
PICTURES = ("astronaut", "camera", "coffee")
DEBIAN = shutil.which("zpaq")


def best(*works: Callable[[], Any]) -> list[float]:
    """Seconds of the fastest round of each, all in turns."""
    found = [float("inf")] * len(works)
    for _ in range(ROUNDS):
        for at, work in enumerate(works):
            began = time.perf_counter()
            work()
            found[at] = min(found[at], time.perf_counter() - began)
    return found


def once(work: Callable[[], Any]) -> tuple[Any, float]:
    began = time.perf_counter()
    return work(), time.perf_counter() - began


def joined(paths: list[Path]) -> bytes:
    return b"".join(path.read_bytes() for path in paths)


def inputs(corpora: Path) -> dict[str, bytes]:
    """Six inputs by name."""
    return {
        **{name: (corpora / "silesia" / name).read_bytes() for name in ("dickens", "reymont", "xml")},
        "held-out books": joined(sorted((corpora / "books-heldout").glob("*.txt"))),
        "UDHR": joined(sorted((corpora / "udhr").rglob("*.txt"))),
        "Python code": joined([file for folder in held_code() for file in sorted(folder.rglob("*.py"))]),
    }


def all_bytes(results: Results, corpora: Path) -> None:
    """Every codec of bytes on every input."""
    for name, data in inputs(corpora).items():
        if f"bytes {name}" in results:
            continue
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder, name)
            place.write_bytes(data)
            found = compare_codecs(str(place))
        rows = {
            str(codec): {key: float(found[key].sel(codec=codec)) for key in ("bytes", "packing", "unpacking")}
            for codec in found.codec.values
        }
        results.add(f"bytes {name}", {"size": len(data), "codecs": rows, "versions": found.attrs["versions"]})


def pairs(results: Results, corpora: Path) -> None:
    """bpez against the published way, gzip -9, and zlib's rate."""
    data, codec = (corpora / "silesia" / "dickens").read_bytes(), regraft.codec("bpez")
    codec.compress(data[:100_000])
    packed = codec.compress(data)
    plain, slow = once(lambda: published_bpez.compress(data))
    fast, zipping = best(lambda: codec.compress(data), lambda: zlib.compress(data, 9))
    zipped = zlib.compress(data, 9)
    cut = [data[at : at + bpez.BLOCK] for at in range(0, len(data), bpez.BLOCK)]
    blocks = [(bpez.pack_block(raw), len(raw)) for raw in cut]
    one, two, inflate = best(
        lambda: [bpez.unpack_block(*block) for block in blocks],
        lambda: codec.decompress(packed),
        lambda: zlib.decompress(zipped),
    )
    results.add(
        "bpez",
        {
            "times": slow / fast, "seconds": fast, "published_seconds": slow, "zlib9_seconds": zipping,
            "bytes": len(packed), "published_bytes": sum(map(len, plain)),
            "unpacking": len(data) / one / 1e6, "unpacking_all_cores": len(data) / two / 1e6,
            "zlib_unpacking": len(data) / inflate / 1e6,
        },
    )  # fmt: skip


def matches(results: Results, corpora: Path) -> None:
    """ulz against zlib and LZ4, one thread each; latency of small inputs."""
    for name in ("dickens", "xml"):
        data = (corpora / "silesia" / name).read_bytes()
        ulz.pack_block(data[:10_000], 1)
        results.add(f"ulz {name}", beside(data))
    codec, small = regraft.codec("ulz"), (corpora / "silesia" / "dickens").read_bytes()[:1024]
    packed = codec.compress(small)
    times = best(
        lambda: [codec.compress(small) for _ in range(1000)],
        lambda: [codec.decompress(packed) for _ in range(1000)],
    )
    results.add("ulz latency", {"compress_us": 1e3 * times[0], "decompress_us": 1e3 * times[1]})


def beside(data: bytes) -> dict[str, float]:
    """Bytes and rates (MB/s) of ulz, zlib and LZ4 on one input."""
    cut = [data[at : at + ulz.BLOCK] for at in range(0, len(data), ulz.BLOCK)]
    blocks = {level: [(ulz.pack_block(raw, level), len(raw)) for raw in cut] for level in (1, 5, 9)}
    zipped, fast4 = zlib.compress(data, 9), lz4.block.compress(data)
    works = {
        "packing": lambda: [ulz.pack_block(raw, 1) for raw in cut],
        "gzip1_packing": lambda: zlib.compress(data, 1),
        "unpacking_1": lambda: [ulz.unpack_block(*one) for one in blocks[1]],
        "unpacking_9": lambda: [ulz.unpack_block(*one) for one in blocks[9]],
        "zlib_unpacking": lambda: zlib.decompress(zipped),
        "lz4_unpacking": lambda: lz4.block.decompress(fast4),
    }
    rates = {name: len(data) / took / 1e6 for name, took in zip(works, best(*works.values()), strict=True)}
    hc = lz4.block.compress(data, mode="high_compression", compression=12)
    sizes = {f"bytes_{level}": sum(len(one) for one, _ in found) for level, found in blocks.items()}
    return {**sizes, "lz4hc_bytes": len(hc), **rates}


def archives(results: Results, corpora: Path) -> None:
    """Ratio beside Debian's zpaq at every level, and what a second add stores."""
    files = [corpora / "silesia" / name for name in ("dickens", "xml")]
    with tempfile.TemporaryDirectory() as folder:
        rows = {}
        for level in range(1, 6):
            ours, theirs = Path(folder, f"a{level}"), Path(folder, f"d{level}.zpaq")
            _, seconds = once(lambda ours=ours, level=level: add(ours, files, level))
            _, testing = once(lambda ours=ours: check_archive(ours))
            rows[level] = {"bytes": ours.stat().st_size, "seconds": seconds, "test_seconds": testing}
            if DEBIAN:
                command = [DEBIAN, "add", str(theirs), *map(str, files), f"-m{level}"]
                _, beside = once(
                    lambda command=command: subprocess.run(command, check=True, capture_output=True)
                )
                rows[level] |= {"debian_bytes": theirs.stat().st_size, "debian_seconds": beside}
        results.add("archive", {"levels": rows, "raw": sum(file.stat().st_size for file in files)})
        tree = Path(folder, "tree")
        shutil.copytree(corpora / "books-heldout", tree)
        for path in tree.rglob("*"):
            path.chmod(0o644)
        second = Path(folder, "second")
        add(second, [tree], 3)
        draw = random.Random(0)
        changed = 0
        for number, path in enumerate(sorted(tree.glob("*.txt"))[:3]):
            content, piece = path.read_bytes(), draw.randbytes(150_000)
            at = (0, len(content) // 2, len(content))[number]
            path.write_bytes(content[:at] + piece + content[at:])
            changed += len(piece)
        done = add(second, [tree], 3)
        results.add("archive again", {"changed": changed, "stored": done.stored, "entries": done.entries})


def models(results: Results, corpora: Path) -> None:
    """The specimen on the held-out books: bytes, the model's own bits, and who is beaten."""
    data = joined(sorted((corpora / "books-heldout").glob("*.txt")))
    model, codec = regraft.load("specimen:qwen3"), regraft.codec("lm")
    packed, packing = once(lambda: codec.compress(data, model=model))
    found, unpacking = once(lambda: codec.decompress(packed, model=model))
    assert found == data
    results.add(
        "lm",
        {
            "raw": len(data), "bytes": len(packed), "own_bits": own_bits(model, data),
            "xz9_bytes": len(lzma.compress(data, preset=9)),
            "zpaq5_bytes": len(zpaq.compress(data, method="56,200,1", threads=1)),
            "gzip9_bytes": len(gzip.compress(data, 9)), "packing": len(data) / packing / 1e3,
            "unpacking": len(data) / unpacking / 1e3,
        },
    )  # fmt: skip


def own_bits(model: Any, data: bytes) -> float:
    """Bits of the same texts and windows by plain forward passes without a cache."""
    coder = lm.Coder(model, 256, torch.get_num_threads())
    rows: list[tuple[list[int], int]] = []
    for start in range(0, len(data), lm.BLOCK):
        for text in lm.cut(data[start : start + lm.BLOCK]):
            ids = [0, *lm.tokens_of(coder.ids, text)]
            first = 0
            # a full window goes on with its later half: what is scored behind its first token
            while first + 1 < len(ids):
                begin = max(0, first - 127) if first else 0
                end = min(len(ids) - 1, begin + 256)
                rows.append((ids[begin : end + 1], first - begin))
                first = end
    rows.sort(key=lambda row: len(row[0]))
    bits = 0.0
    with torch.inference_mode():
        for at in range(0, len(rows), 16):
            group = rows[at : at + 16]
            longest = max(len(ids) for ids, _ in group)
            ids_BT = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in group])
            scores = torch.log_softmax(model.hf(input_ids=ids_BT[:, :-1]).logits.float(), -1)
            for row, (ids, skip) in enumerate(group):
                places = torch.arange(skip, len(ids) - 1)
                bits -= float(scores[row, places, ids_BT[row, places + 1]].sum()) / np.log(2)
    return bits


def pictures(results: Results, _corpora: Path) -> None:
    """Bundled pictures beside JPEG, WebP and AVIF of equal size, with a sheet of one."""
    with tempfile.TemporaryDirectory() as folder:
        for name in PICTURES:
            pixels = getattr(skimage.data, name)()[::2, ::2]
            place = Path(folder, f"{name}.png")
            Image.fromarray(pixels).save(place)
            made = Path(folder, "out")
            (outcome, shown), seconds = once(lambda a=place, b=made: pack_picture(str(a), str(b), {}))
            rows = {one.name: {"bytes": one.bytes, "psnr": one.psnr, "ssim": one.ssim} for one in shown}
            told = {"rows": rows, "seconds": seconds, "raw": outcome.raw, "shape": pixels.shape[:2]}
            results.add(f"image {name}", told)
            if name == PICTURES[0]:
                whole = RESULTS.parent.parent / "docs" / "images" / "codec-pictures.png"
                side_by_side(pixels, shown, whole)


PARTS = {
    "bytes": all_bytes, "bpez": pairs, "ulz": matches, "archive": archives, "lm": models, "image": pictures,
}  # fmt: skip


def main() -> None:
    parser = arguments(__doc__ or "", "`silesia`, `books-heldout` and `udhr`")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    given: argparse.Namespace = parser.parse_args()
    torch.set_num_threads(given.threads)
    results = Results(RESULTS / "codecs.json")
    for part in given.parts:
        if part == "bytes" or not any(name.split()[0] == part for name in results.content["runs"]):
            PARTS[part](results, given.corpora)


if __name__ == "__main__":
    main()
