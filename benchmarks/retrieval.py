"""Search among a million item embeddings, exact and approximate, on one core.

    python benchmarks/retrieval.py
    python benchmarks/retrieval.py --like RUN/embeddings/items.parquet

Vectors are drawn with a spectrum, normalised to length 1: that of a run's item embeddings with ``--like``, else a power
law, the variance of the r-th axis being r to the power of minus ``--exponent``. A training on the demo (300 films, 4
epochs) left item embeddings whose spectrum falls with an exponent of 1.40 over all 64 ranks, and 1.06 over the ranks 2
to 32; the default is 1.1, since a flatter spectrum is the harder one. Queries are other vectors of the same kind. Bare:
matrix product and ``topk`` in the same blocks, nothing else. The index chooses its number of lists when it is built, on
a sample of items; its recall here is measured anew.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import torch
from rich.console import Console
from rich.table import Table

from avrec.batch import Array
from avrec.retrieval.index import BLOCK_SCORES, Index

DIMENSION, K = 64, 100


def spectrum(like: Path | None, exponent: float) -> Array:
    """Standard deviations along the principal axes, (D,)."""
    if like is None:
        return np.arange(1, DIMENSION + 1, dtype=np.float32) ** (-exponent / 2)
    vector_ND = pl.read_parquet(like)["vector"].to_numpy()
    # About 0, not about the mean: products are with the vectors as they are.
    return np.linalg.svd(vector_ND, compute_uv=False).astype(np.float32) / len(vector_ND) ** 0.5


def drawn(generator: np.random.Generator, count: int, scale_D: Array) -> Array:
    """Unit vectors with that spectrum."""
    vector_ND = generator.standard_normal((count, len(scale_D)), np.float32) * scale_D
    return vector_ND / np.linalg.norm(vector_ND, axis=1, keepdims=True)


def bare(query_BD: torch.Tensor, item_ND: torch.Tensor) -> Array:
    """Product and topk, nothing else."""
    size = BLOCK_SCORES // len(item_ND)
    best = [(query_BD[i : i + size] @ item_ND.T).topk(K, dim=1).indices for i in range(0, len(query_BD), size)]
    return torch.cat(best).numpy()


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where to write the numbers as JSON")
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=512)
    parser.add_argument("--exponent", type=float, default=1.1)
    parser.add_argument("--like", type=Path, help="a run's embeddings/items.parquet, for its spectrum")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--build-threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()

    generator = np.random.default_rng(0)
    scale_D = spectrum(args.like, args.exponent)
    vector_ND, query_BD = drawn(generator, args.items, scale_D), drawn(generator, args.queries, scale_D)
    ids = [str(item) for item in range(args.items)]
    exact = Index(ids, vector_ND, approximate_above=None)
    torch.set_num_threads(args.build_threads)
    start = time.perf_counter()
    lists = Index(ids, vector_ND, approximate_above=0)
    build = time.perf_counter() - start
    torch.set_num_threads(1)

    query, item = torch.from_numpy(query_BD), torch.from_numpy(vector_ND)
    sides: dict[str, Callable[[], object]] = {
        "bare product and topk": lambda: bare(query, item),
        "exact index": lambda: exact.search(query_BD, K),
        "approximate index": lambda: lists.search(query_BD, K),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(args.repeats + 1):
        for name, side in sides.items():
            start = time.perf_counter()
            side()
            if repeat:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
    best = {name: min(values) for name, values in seconds.items()}
    pairs = zip(exact.search(query_BD, K).ids, lists.search(query_BD, K).ids, strict=True)
    recall = float(np.mean([len(set(wanted) & set(found)) / K for wanted, found in pairs]))

    table = Table(title=f"{args.items:,} items x {len(scale_D)}, k = {K}, {args.queries} queries, one thread")
    for header in ("", "fastest ms per query", "queries per second", "time against bare"):
        table.add_column(header, justify="right" if header else "left")
    for name, value in best.items():
        each, ratio = value / args.queries, value / best["bare product and topk"]
        table.add_row(name, f"{each * 1e3:.3f}", f"{1 / each:,.0f}", f"{ratio:.3f}")
    speedup = best["exact index"] / best["approximate index"]
    Console().print(table)
    Console().print(f"approximate: recall@{K} {recall:.4f}, {speedup:.1f} x exact, built in {build:.0f} s")
    if args.out:
        report = {
            "seconds": seconds,
            "recall": recall,
            "recall_at_build": lists.recall,
            "speedup": speedup,
            "exact_over_bare": best["exact index"] / best["bare product and topk"],
            "build_seconds": build,
            "like": str(args.like) if args.like else None,
            **{name: getattr(args, name) for name in ("items", "queries", "exponent", "build_threads")},
            "torch": torch.__version__,
            "machine": platform.processor() or platform.machine(),
        }
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
