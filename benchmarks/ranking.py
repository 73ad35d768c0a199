"""Full ranking against the bare matrix product and torch.topk in the same chunks.

    python benchmarks/ranking.py [--out ranking.json]
    python benchmarks/ranking.py --users 10000 --items 1000000 --chunk 256 --repeats 1

The bare side masks nothing, decides no ties and checks nothing; budget: at most 1.3 times its time, and for the second
command at most 3 GB (what the process has had at most, both sides and the vectors included).
"""

import argparse
import json
import platform
import resource
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from avrec.batch import Array
from avrec.evaluation.baselines import PopularityScorer
from avrec.evaluation.ranking import EmbeddingScorer, top_k
from avrec.ranking_task import Ragged, RankingTask

DIMENSION, K = 64, 50


def task_like_movielens(generator: np.random.Generator, users: int, items: int) -> RankingTask:
    """As many seen items per user as MovieLens-1M has."""
    lengths = np.minimum(generator.geometric(1 / 164, users) + 1, 2000)
    seen = Ragged.of([np.unique(generator.integers(0, items, length)) for length in lengths])
    popularity_N = np.bincount(seen.values, minlength=items).astype(np.float64)
    return RankingTask(
        split="test",
        user_index_E=np.arange(users),
        relevant=Ragged.of([[0]] * users),
        seen=seen,
        seen_filter=True,
        candidates_N=np.ones(items, bool),
        cold_N=np.zeros(items, bool),
        popularity_N=popularity_N,
        protocol={},
    )


def bare(query_ED: torch.Tensor, item_ND: torch.Tensor, chunk: int) -> Array:
    """Product and topk, nothing else."""
    best = [(query_ED[i : i + chunk] @ item_ND.T).topk(K, dim=1).indices for i in range(0, len(query_ED), chunk)]
    return torch.cat(best).cpu().numpy()


def interleaved(sides: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each side; the sides take turns, so that a disturbance meets all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(repeats + 1):
        for name, side in sides.items():
            start = time.perf_counter()
            side()
            if repeat:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
    return seconds


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where to write the numbers as JSON")
    parser.add_argument("--users", type=int, default=6040)
    parser.add_argument("--items", type=int, default=3416)
    parser.add_argument("--chunk", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()

    generator = torch.Generator().manual_seed(0)
    query_ED = torch.randn(args.users, DIMENSION, generator=generator).to(args.device)
    item_ND = torch.randn(args.items, DIMENSION, generator=generator).to(args.device)
    task = task_like_movielens(np.random.default_rng(0), args.users, args.items)
    embedding, popularity = EmbeddingScorer(query_ED, item_ND), PopularityScorer(task.popularity_N)
    sides: dict[str, Callable[[], object]] = {
        "bare product and topk": lambda: bare(query_ED, item_ND, args.chunk),
        "full ranking": lambda: top_k(embedding, task, K, args.chunk),
    }
    if args.items < 100_000:
        sides["full ranking, popularity (ties)"] = lambda: top_k(popularity, task, K, args.chunk)
    seconds = interleaved(sides, args.repeats)
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    base = medians["bare product and topk"]

    table = Table(
        title=f"{args.users:,} users x {args.items:,} items, D = {DIMENSION}, k = {K}, chunks of {args.chunk}"
    )
    for header in ("", "median ms", "ratio", "fastest ms"):
        table.add_column(header, justify="right" if header else "left")
    for name, value in medians.items():
        table.add_row(name, f"{value * 1e3:.1f}", f"{value / base:.2f}", f"{min(seconds[name]) * 1e3:.1f}")
    gigabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    Console().print(table)
    Console().print(f"peak memory {gigabytes:.2f} GiB")
    if args.out:
        report = {
            "seconds": seconds,
            "peak_gib": gigabytes,
            "users": args.users,
            "items": args.items,
            "median": medians,
            "ratio": medians["full ranking"] / base,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "device": args.device,
            "machine": platform.processor() or platform.machine(),
        }
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
