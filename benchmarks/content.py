"""Prepared content: reading a batch against copying its bytes, and preparing with two processes against one.

    python benchmarks/content.py [--out content.json]

The copy is of as many rows that lie side by side in memory, neither of them in the processor's cache. The fastest of
many counts, which other work on the machine disturbs least. Budgets: reading takes at most twice the copy; two
processes are at least 1.7 times as fast as one, where nothing else runs (the load before the start is printed).
"""

import argparse
import json
import os
import platform
import shutil
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from rich.console import Console
from rich.table import Table

from avrec.content.items import RawItem
from avrec.content.prepare import prepare_content
from avrec.content.preprocess import ArraySpec
from avrec.content.store import ContentStore, PreparedModality
from avrec.towers.encoders.vision import VisionPreprocess

BATCH = 256
ROWS = {
    "text: 64 tokens": ArraySpec((64,), "int32"),
    "audio: log-mel of 5 s": ArraySpec((313, 64), "float16"),
    "vision: 5 frames of 48 px": ArraySpec((5, 3, 48, 48), "uint8"),
    "vision: 4 frames of 224 px": ArraySpec((4, 3, 224, 224), "uint8"),
}
DEMO = [name for name in ROWS if "224" not in name]


def reading(folder: Path, repeats: int) -> dict[str, dict[str, float]]:
    """Fastest and median ms of reading random batches from a store, and of copying arrays of the same size."""
    random = np.random.default_rng(0)
    results = {}
    for number, (name, spec) in enumerate(ROWS.items()):
        size = int(np.prod(spec.shape)) * np.dtype(spec.dtype).itemsize
        count = max(2 * BATCH, min(8192, (256 << 20) // size))
        store = ContentStore(folder / str(number), {"values": spec})
        keys = [str(key) for key in range(count)]
        for begin in range(0, count, 512):
            rows = [(key, {"values": np.full(spec.shape, 1, spec.dtype)}) for key in keys[begin : begin + 512]]
            store.write_shard(rows)
        prepared = PreparedModality("vision", store.reader, store.locate(keys))
        memory = np.ones((count, *spec.shape), spec.dtype)
        seconds: dict[str, list[float]] = {"read": [], "copy": []}
        for repeat in range(repeats + 3):
            wanted, begin = random.choice(count, BATCH, replace=False), random.integers(count - BATCH + 1)
            start = time.perf_counter()
            prepared.read(wanted)
            middle = time.perf_counter()
            memory[begin : begin + BATCH].copy()
            end = time.perf_counter()
            if repeat >= 3:  # the first rounds warm up
                seconds["read"].append(middle - start)
                seconds["copy"].append(end - middle)
        results[name] = {side: float(np.min(values)) * 1e3 for side, values in seconds.items()}
        results[name] |= {f"median {side}": float(np.median(values)) * 1e3 for side, values in seconds.items()}
    return results


def write_video(path: Path, seed: int) -> None:
    """Two seconds of moving noise, 320 x 240."""
    noise = np.random.default_rng(seed).integers(0, 255, (30, 40, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=24)
        video.width, video.height, video.pix_fmt = 320, 240, "yuv420p"
        video.codec_context.time_base = Fraction(1, 24)
        for index in range(48):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(np.roll(noise, 4 * index, 1)), format="rgb24")
            frame.pts = index
            container.mux(video.encode(frame))
        container.mux(video.encode(None))


def preparing(folder: Path, videos: int) -> dict[int, float]:
    """Seconds of preparing videos, start of the processes included, by number of processes."""
    for seed in range(8):
        write_video(folder / f"{seed}.mp4", seed)
    items = [RawItem(str(index), video=folder / f"item{index}.mp4") for index in range(videos)]
    for index, item in enumerate(items):
        assert item.video is not None
        shutil.copy(folder / f"{index % 8}.mp4", item.video)
    seconds = {}
    for workers in (1, 2):
        preprocess = VisionPreprocess()
        preprocess.fit(items)
        start = time.perf_counter()
        prepare_content(items, preprocess, folder / f"cache{workers}", workers=workers)
        seconds[workers] = time.perf_counter() - start
    return seconds


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where to write the numbers as JSON")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--videos", type=int, default=600)
    args = parser.parse_args()

    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        read = reading(Path(folder), args.repeats)
        prepared = preparing(Path(folder), args.videos)
    table = Table(title=f"random batches of {BATCH} items; {args.videos} videos, load {load:.1f} before")
    for header in ("", "ms", "against", "ms", "ratio"):
        table.add_column(header, justify="left" if header in ("", "against") else "right")
    for name, ms in read.items():
        ratio = ms["read"] / ms["copy"]
        table.add_row(f"read {name}", f"{ms['read']:.2f}", "copy", f"{ms['copy']:.2f}", f"{ratio:.2f}")
    # What a training step reads: one of each.
    total = {side: sum(read[name][side] for name in DEMO) for side in ("read", "copy")}
    ratio = total["read"] / total["copy"]
    table.add_row("read text, audio and 48 px", f"{total['read']:.2f}", "copy", f"{total['copy']:.2f}", f"{ratio:.2f}")
    one, two = prepared[1] * 1e3, prepared[2] * 1e3
    table.add_row("prepare, 1 process", f"{one:.0f}", "2 processes", f"{two:.0f}", f"{one / two:.2f}")
    Console().print(table)
    if args.out:
        report = {
            "reading_ms": read,
            "reading_together": ratio,
            "preparing_seconds": prepared,
            "speedup": one / two,
            "load": load,
            "cores": os.cpu_count(),
            "machine": platform.processor() or platform.machine(),
        }
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
