"""Many processes give the numbers that one gives."""

import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchmetrics.functional.retrieval import retrieval_normalized_dcg, retrieval_reciprocal_rank

from avrec.errors import UserError
from avrec.evaluation.accumulators import RankingMetric
from avrec.evaluation.baselines import PopularityScorer
from avrec.evaluation.evaluator import evaluate
from avrec.evaluation.metrics import METRICS
from avrec.evaluation.ranking import EmbeddingScorer, find_hits, top_k
from avrec.ranking_task import Ragged, RankingTask

USERS, ITEMS, K = 1300, 90, 7


def question() -> tuple[Any, Any]:
    rng = np.random.default_rng(5)
    relevant = [rng.permutation(ITEMS)[: rng.integers(1, 6)].tolist() for _ in range(USERS)]
    task = RankingTask(
        split="test",
        user_index_E=np.arange(USERS),
        relevant=Ragged.of(relevant),
        seen=Ragged.of([[]] * USERS),
        seen_filter=True,
        candidates_N=np.ones(ITEMS, bool),
        cold_N=rng.random(ITEMS) < 0.3,
        popularity_N=rng.integers(0, 5, ITEMS),
        protocol={"split": "temporal"},
    )
    vectors = torch.from_numpy(rng.normal(size=(USERS + ITEMS, 8))).float()
    return task, EmbeddingScorer(vectors[:USERS], vectors[USERS:])


def answers(task: Any, scorer: Any) -> dict[str, Any]:
    scorers = {"avrec": scorer, "popularity": PopularityScorer(task.popularity_N)}
    results = [r for name, one in scorers.items() for r in evaluate(name, one, task, (K,), ("ndcg", "coverage"))]
    return {
        "results": [r.as_dict() for r in results],
        "chunks": [top_k(scorer, task, K, chunk=chunk).tolist() for chunk in (256, 512, 4096)],
    }


def gathered(task: Any, scorer: Any, rows: Any) -> dict[str, float]:
    """What accumulators say that were given these rows in batches, and nothing where there are none."""
    metrics = {name: RankingMetric(name, K) for name in METRICS}
    top_EK = EmbeddingScorer(scorer.query_ED, scorer.item_ND)(np.arange(USERS)).topk(K).indices.numpy()
    hits_EK = find_hits(top_EK, task.relevant, ITEMS)
    relevant_E = np.diff(task.relevant.starts)
    for part in (rows[start : start + 100] for start in range(0, len(rows), 100)):
        for metric in metrics.values():
            metric.update(torch.from_numpy(hits_EK[part]), torch.from_numpy(relevant_E[part]))
    return {name: float(metric.compute()) for name, metric in metrics.items()}


def one_of_many(rank: int, processes: int, port: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=processes)
    task, scorer = question()
    # Shares of unlike size.
    rows = np.split(np.arange(USERS), [937])[rank]
    found = {**answers(task, scorer), "gathered": gathered(task, scorer, rows)}
    torch.save(found, Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_two_processes_equal_one(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(one_of_many, (2, port, str(tmp_path)), 2)
    task, scorer = question()
    alone = {**answers(task, scorer), "gathered": gathered(task, scorer, np.arange(USERS))}
    exact = evaluate("avrec", scorer, task, (K,), tuple(METRICS))
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert found["results"] == alone["results"]
        assert found["chunks"] == [alone["chunks"][0]] * 3
        for name, value in alone["gathered"].items():
            assert found["gathered"][name] == pytest.approx(value, abs=1e-12)
    whole = {r.metric: r.value for r in exact if r.slice == "all"}
    assert whole == pytest.approx({f"{name}@{K}": value for name, value in alone["gathered"].items()}, abs=1e-12)


def test_accumulators_against_torchmetrics() -> None:
    task, scorer = question()
    found = gathered(task, scorer, np.arange(USERS))
    wanted: dict[str, list[float]] = {"ndcg": [], "mrr": []}
    for user, scores_N in enumerate(scorer(np.arange(USERS)).double()):
        truth_N = torch.zeros(ITEMS, dtype=torch.bool)
        truth_N[torch.from_numpy(task.relevant[user])] = True
        wanted["ndcg"].append(float(retrieval_normalized_dcg(scores_N, truth_N, top_k=K)))
        wanted["mrr"].append(float(retrieval_reciprocal_rank(scores_N, truth_N, top_k=K)))
    for name, values in wanted.items():
        assert found[name] == pytest.approx(np.mean(values), abs=1e-7)


def test_metrics_that_are_not_there_are_refused() -> None:
    with pytest.raises(UserError, match="one of recall, .* got precision@5"):
        RankingMetric("precision", 5)
    with pytest.raises(UserError, match="k at least 1"):
        RankingMetric("recall", 0)
