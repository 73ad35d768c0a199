"""Measuring a model: the ranking of a split, the baselines beside it, ablation and health."""

import logging
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from avrec.batch import Array, Ragged, RankingTask, UserError

if TYPE_CHECKING:
    import pytorch_lightning as pl
    from torch import Tensor

    from avrec.data.datamodule import TwoTowerData
    from avrec.evaluation.protocol import Result
    from avrec.evaluation.ranking import Scorer
    from avrec.evaluation.slices import Slice
    from avrec.pipeline import Run
    from avrec.training.module import TwoTowerModule

log = logging.getLogger(__name__)


class Validate:
    """Full-catalogue metrics and health during training.

    Args:
        task: the validation task.
        metrics: names such as ``ndcg@10``.
    """

    def __init__(self, task: RankingTask, metrics: Sequence[str]) -> None:
        self.task = task
        self.metrics = list(metrics)

    def __call__(self, query_ED: "Tensor", item_ND: "Tensor") -> dict[str, float]:
        """Metrics of these embeddings, under ``val/``, and ``health/``."""
        from avrec.evaluation.health import health_of
        from avrec.evaluation.protocol import fast_metrics
        from avrec.evaluation.ranking import EmbeddingScorer

        metrics = fast_metrics(EmbeddingScorer(query_ED, item_ND), self.task, self.metrics)
        health = health_of(query_ED, item_ND, *_pairs(self.task))
        return {
            **{f"val/{name}": value for name, value in metrics.items()},
            **{f"health/{name}": value for name, value in health.items()},
        }


def _pairs(task: RankingTask) -> tuple[Array, Array]:
    """Rows of the queries and the items that belong together."""
    return np.repeat(np.arange(len(task)), np.diff(task.relevant.starts)), task.relevant.values


def check_baselines(names: Any) -> None:
    """Refuse what is no list of known baselines.

    Raises:
        UserError: says which there are.
    """
    if isinstance(names, str) or not all(name in Baselines.NAMES for name in names):
        raise UserError(
            f"baselines={names} are not known. Give some of {', '.join(Baselines.NAMES)}, or none: baselines=[]."
        )


class Baselines:
    """Scorers to stand beside the model, fitted on what is known when a ranking is asked for.

    Args:
        names: some of ``NAMES``.
        run: prepared. A source with ``true_scores`` has an oracle, which stands beside them too.
        device: where the untrained encoders run, now, for content-kNN.
    """

    NAMES = ("popularity", "recent_popularity", "random", "item_knn", "ease", "content_knn")
    RECENT_SHARE = 0.1

    def __init__(self, names: Sequence[str], run: "Run", device: Any = "cpu") -> None:
        self.names = list(names)
        self.source = run.source
        self.data = run.data
        self.content = {}
        if "content_knn" in self.names:
            self.content = run.untrained.to(device).encode_alone(run.data.item_batches())
            run.untrained.to("cpu")

    def scorers(self, which: str) -> "Iterator[tuple[str, Scorer]]":
        """One after another, so that only one is in memory."""
        from avrec.evaluation import neighbours
        from avrec.evaluation.baselines import PopularityScorer, RandomScorer, ScoreMatrixScorer

        data, task, known = self.data, self.data.tasks[which], self.data.known(which)
        num_items, everyone = len(data.catalogue.items), Ragged(known.starts, known.item)
        history = everyone.take(task.user_index_E)
        for name in self.names:
            if name == "popularity":
                yield name, PopularityScorer(task.popularity_N)
            elif name == "recent_popularity" and data.catalogue.log.has_time:
                recent = known.item[known.time >= np.quantile(known.time, 1 - self.RECENT_SHARE)]
                yield name, PopularityScorer(np.bincount(recent, minlength=num_items))
            elif name == "random":
                yield name, RandomScorer(task, num_items)
            elif name in ("item_knn", "ease") and num_items <= neighbours.MOST_ITEMS:
                similarity_NN = getattr(neighbours, name)(everyone, num_items)
                yield name, neighbours.SimilarityScorer(history, similarity_NN)
            elif name == "content_knn":
                for label, content in self._contents().items():
                    vectors_ND = neighbours.content_vectors(content, data.trained_N)
                    yield label, neighbours.content_knn(vectors_ND, history)
            else:
                reason = "without timestamps" if name == "recent_popularity" else f"for {num_items:,} items"
                log.info("baseline %s is left out %s", name, reason)
        if hasattr(self.source, "true_scores") and data.split.test_time is not None:
            users = [data.catalogue.user_ids[user] for user in task.user_index_E]
            items = [item.item_id for item in data.catalogue.items]
            yield "oracle", ScoreMatrixScorer(self.source.true_scores(users, items, data.split.test_time))

    def _contents(self) -> dict[str, list[Any]]:
        """All modalities together, and each alone where there are several."""
        together = {"content_knn": [*self.content.values()]} if self.content else {}
        alone = {f"content_knn_{name}": [found] for name, found in self.content.items()}
        return {**together, **(alone if len(alone) > 1 else {})}


def measure(
    trainer: "pl.Trainer",
    module: "TwoTowerModule",
    data: "TwoTowerData",
    baselines: Baselines,
    which: str = "test",
    ks: Sequence[int] = (10, 50),
    metrics: Sequence[str] = ("recall", "ndcg", "mrr"),
) -> "list[Result]":
    """Rank the whole catalogue for each user of a split: the model, and the baselines beside it.

    Leaves the embeddings in ``module.item_ND`` and ``module.query_ED``.
    """
    from avrec.evaluation.protocol import evaluate
    from avrec.evaluation.ranking import EmbeddingScorer

    task = data.tasks[which]
    trainer.test(module, data.ranking_loaders(which), verbose=False)
    model = EmbeddingScorer(module.query_ED.cpu(), module.item_ND.cpu())
    scorers = chain([("avrec", model)], baselines.scorers(which))
    parts = more_slices(data, which)
    return [result for name, scorer in scorers for result in evaluate(name, scorer, task, ks, metrics, slices=parts)]


def more_slices(data: "TwoTowerData", which: str) -> "list[Slice]":
    """Users by history length and by whether training knew them; items by popularity and by what they have."""
    from avrec.evaluation.slices import decile_labels, item_slices, length_labels, present_labels, user_slices

    assert data.items is not None
    task, known = data.tasks[which], data.known(which)
    trained_E = data.train_sequences.lengths()[task.user_index_E] > 0
    content = {name: found.present_N for name, found in data.items.content.items() if name != "identity"}
    slices = [
        *user_slices(task, "history_length", length_labels(np.diff(known.starts)[task.user_index_E])),
        *user_slices(task, "user", np.where(trained_E, "known", "new")),
        *item_slices(task, "popularity", decile_labels(task)),
    ]
    if content:
        slices += item_slices(task, "present", present_labels(np.stack([*content.values()], axis=1), [*content]))
    return slices


def ablate(
    module: "TwoTowerModule", data: "TwoTowerData", which: str, ks: Sequence[int], metrics: Sequence[str]
) -> "list[Result]":
    """The model with modalities hidden; every item is encoded once, and fused anew."""
    import torch

    from avrec.evaluation.ablation import ablation

    tower, training = module.item_tower, module.training
    module.eval()

    def on_device(batches: Any) -> Iterator[Any]:
        return (batch.to(module.device) for batch in batches)

    with torch.inference_mode():
        encoded = [(tower.encode(items), items.present_UM) for items in on_device(data.item_batches())]
        values_NMD, present_NM = (torch.cat(parts) for parts in zip(*encoded, strict=True))

        def embed(keep_M: Array) -> "tuple[Tensor, Tensor]":
            item_ND = tower.fuse(values_NMD, present_NM & torch.from_numpy(keep_M).to(present_NM.device))
            users = on_device(data.user_batches(which))
            queries = [module.score.scale(module.user_tower.last(batch, item_ND)) for batch in users]
            return torch.cat(queries).cpu(), item_ND.cpu()

        results = ablation(embed, tower.modalities, data.tasks[which], ks, metrics)
    module.train(training)
    return results


def by_name(results: "Sequence[Result]", model: str = "avrec") -> dict[str, float]:
    """A model's numbers: ``ndcg@10`` overall, ``cold_items/ndcg@10`` for a slice."""
    return {
        result.metric if result.slice == "all" else f"{result.slice}/{result.metric}": result.value
        for result in results
        if result.model == model
    }


def show(results: "Sequence[Result]") -> None:
    """Print the tables: all models on the main slices, then the first ranking metric by slice and by what is hidden."""
    from rich.console import Console
    from rich.table import Table

    from avrec.evaluation.ablation import VARIANCE, apart
    from avrec.evaluation.protocol import results_table

    console = Console(width=None if Console().is_terminal else 120)
    rest, hidden, shares = apart(results)
    main = [r for r in rest if not r.of_label]
    console.print(results_table(main))
    metric = next((r.metric for r in main if r.metric.startswith("ndcg")), main[0].metric)
    by_slice = [r for r in rest if r.metric == metric and r.model in ("avrec", "popularity")]
    for title, part in (("by slice", by_slice), ("with modalities hidden", [r for r in hidden if not r.of_label])):
        cells = {(r.slice, r.model): f"{r.value:.4f}" for r in part if r.metric == metric}
        rows, columns = (list(dict.fromkeys(key[place] for key in cells)) for place in (0, 1))
        if title != "by slice":
            cells = {(model, name): value for (name, model), value in cells.items()}
            rows, columns = columns, rows
        if cells:
            table = Table("", *columns, title=f"{metric}, {title}", title_justify="left")
            for row in rows:
                table.add_row(row, *(cells.get((row, column), "") for column in columns))
            console.print(table)
    if shares:
        told = ", ".join(f"{r.metric.removeprefix(VARIANCE)} {r.value:.0%}" for r in shares)
        console.print(f"share of the scores' variance: {told}")


def check_health(module: "TwoTowerModule", data: "TwoTowerData", which: str = "test") -> dict[str, Any]:
    """The health of a measured model for metrics.json; what is off is said in words, too."""
    from avrec.evaluation.health import health_of, warnings_of

    health: dict[str, Any] = health_of(module.query_ED, module.item_ND, *_pairs(data.tasks[which]))
    warnings = warnings_of(health, module.item_ND.shape[1])
    for warning in warnings:
        log.warning("health: %s", warning)
    return {"health": {**health, "warnings": warnings}}
