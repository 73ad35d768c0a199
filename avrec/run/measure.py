"""Measuring a model: the ranking of a split, the baselines beside it, ablation and health."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from avrec.batch import Array
from avrec.errors import UserError
from avrec.ranking_task import Ragged, RankingTask

if TYPE_CHECKING:
    import pytorch_lightning as pl
    from torch import Tensor

    from avrec.data.datamodule import TwoTowerData
    from avrec.evaluation.ranking import Scorer
    from avrec.evaluation.results import Result
    from avrec.evaluation.slices import Slice
    from avrec.run.build import Run
    from avrec.training.module import TwoTowerModule

log = logging.getLogger(__name__)
CLOCK = 1e8
"""Times below it (1973, in Unix seconds) are an order, not a clock."""


class Asked(NamedTuple):
    """What is to be measured."""

    which: str
    """The split, val or test."""
    ks: Sequence[int]
    metrics: Sequence[str]
    slices: Sequence[str]
    """Columns to measure by, ``items.COLUMN`` or ``users.COLUMN``."""
    candidates: Mapping[str, Any]
    """By column of the items, the value or values that a further table's candidates have."""

    @classmethod
    def of(cls, evaluation: Any, which: str = "test", **instead: Any) -> "Asked":
        """What a config's ``evaluation`` asks, but for what is given instead of it (and is not None)."""
        given = {name: value for name, value in instead.items() if value is not None}
        found = {name: evaluation.get(name) or () for name in ("ks", "metrics", "slices")}
        return cls(**{"which": which, "candidates": evaluation.get("candidates") or {}, **found, **given})


class Validate:
    """Full-catalogue metrics (names such as ``ndcg@10``, but for diversity) and health during training."""

    def __init__(self, task: RankingTask, metrics: Sequence[str]) -> None:
        if any("diversity" in name for name in metrics):
            raise UserError(
                "evaluation.validate: diversity is only measured at the end. Give it in evaluation.metrics."
            )
        self.task = task
        self.metrics = list(metrics)
        self.before_ND: Tensor | None = None

    def __call__(self, query_ED: "Tensor", item_ND: "Tensor") -> dict[str, float]:
        """Metrics of these embeddings, under ``val/``, and ``health/``."""
        from avrec.evaluation.health import drift, health_of
        from avrec.evaluation.ranking import EmbeddingScorer
        from avrec.evaluation.results import fast_metrics

        metrics = fast_metrics(EmbeddingScorer(query_ED, item_ND), self.task, self.metrics)
        health = health_of(query_ED, item_ND, *_pairs(self.task))
        if self.before_ND is not None and len(self.before_ND) == len(item_ND):
            health |= drift(self.before_ND, item_ND.cpu())
        self.before_ND = item_ND.detach().cpu()
        return {
            **{f"val/{name}": value for name, value in metrics.items()},
            **{f"health/{name}": value for name, value in health.items()},
        }


def _pairs(task: RankingTask) -> tuple[Array, Array]:
    """Rows of the queries and the items that belong together."""
    return task.relevant.rows(), task.relevant.values


def check_baselines(names: Any) -> None:
    """Refuse what is no list of known baselines, with a ``UserError`` that says which there are."""
    if isinstance(names, str) or not all(name in Baselines.NAMES for name in names):
        raise UserError(
            f"baselines={names} are not known. Give some of {', '.join(Baselines.NAMES)}, or none: baselines=[]."
        )


@dataclass
class Baselines:
    """Scorers to stand beside the model, fitted on what is known when a ranking is asked for."""

    NAMES = ("popularity", "recent_popularity", "random", "item_knn", "ease", "content_knn")
    RECENT_SHARE = 0.1

    names: Sequence[str]
    run: "Run"
    """Prepared. A source with ``true_scores`` has an oracle, which stands beside them too."""
    device: Any = "cpu"
    """Where the untrained encoders run, for content-kNN."""

    @cached_property
    def content(self) -> dict[str, Any]:
        """What the untrained encoders tell of the items, by modality."""
        content = self.run.untrained.to(self.device).encode_alone(self.run.data.item_batches())
        self.run.untrained.to("cpu")
        return content

    @property
    def vectors_ND(self) -> Array | None:
        """What the items are, by all modalities together; None where no encoder reads content."""
        from avrec.evaluation.neighbours import content_vectors

        return content_vectors([*self.content.values()], self.run.data.trained_N).numpy() if self.content else None

    def scorers(self, which: str) -> "Iterator[tuple[str, Scorer]]":
        """One after another, so that only one is in memory."""
        from avrec.evaluation import neighbours
        from avrec.evaluation.baselines import PopularityScorer, RandomScorer, ScoreMatrixScorer

        source, data = self.run.source, self.run.data
        task, known = data.tasks[which], data.known(which)
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
        if hasattr(source, "true_scores") and data.split.test_time is not None:
            users = [data.catalogue.user_ids[user] for user in task.user_index_E]
            items = [item.item_id for item in data.catalogue.items]
            yield "oracle", ScoreMatrixScorer(source.true_scores(users, items, data.split.test_time))

    def _contents(self) -> dict[str, list[Any]]:
        """All modalities together, and each alone where there are several."""
        together = {"content_knn": [*self.content.values()]} if self.content else {}
        alone = {f"content_knn_{name}": [found] for name, found in self.content.items()}
        return {**together, **(alone if len(alone) > 1 else {})}


def measure(
    trainer: "pl.Trainer", module: "TwoTowerModule", data: "TwoTowerData", baselines: Baselines, asked: Asked
) -> "list[Result]":
    """Rank the whole catalogue for each user of a split: the model, and the baselines beside it.

    Leaves the embeddings in ``module.item_ND`` and ``module.query_ED``.
    """
    from avrec.evaluation.ranking import EmbeddingScorer
    from avrec.evaluation.results import evaluate

    task = data.tasks[asked.which]
    trainer.test(module, data.ranking_loaders(asked.which), verbose=False)
    model = EmbeddingScorer(module.query_ED.cpu(), module.item_ND.cpu())
    vectors_ND = baselines.vectors_ND if "diversity" in asked.metrics else None
    scorers = chain([("avrec", model)], baselines.scorers(asked.which))
    parts = more_slices(data, asked)
    return [
        result
        for name, scorer in scorers
        for result in evaluate(name, scorer, task, asked.ks, asked.metrics, parts, vectors_ND)
    ]


def more_slices(data: "TwoTowerData", asked: Asked) -> "list[Slice]":
    """The asked candidates; users by history length and by whether training knew them; items by popularity and by
    what they have; what was chosen by how long after; and whatever columns are asked for.

    Raises:
        UserError: a column is not there, or candidates that nobody looks for.
    """
    from avrec.evaluation import slices as by

    task, known = data.tasks[asked.which], data.known(asked.which)
    trained_E = data.train_sequences.lengths()[task.user_index_E] > 0
    content = {name: found.present_N for name, found in data.items.content.items() if name != "identity"}
    since, label_J = _days_since(data, asked.which)
    slices = [
        *by.user_slices(task, "history_length", by.length_labels(np.diff(known.starts)[task.user_index_E])),
        *by.user_slices(task, "user", np.where(trained_E, "known", "new")),
        *by.item_slices(task, "popularity", by.decile_labels(task)),
        *(by.target_slices(task, since, label_J) if since else ()),
    ]
    if content:
        labels = by.present_labels(np.stack([*content.values()], axis=1), [*content])
        slices += by.item_slices(task, "present", labels)
    columns, candidates = read_columns(data, asked)
    for name, labels in columns.items():
        if name.startswith("users."):
            slices += by.user_slices(task, name, [labels[user] for user in task.user_index_E])
        else:
            slices += by.item_slices(task, name, labels)
    return [*candidates, *slices]


def read_columns(data: "TwoTowerData", asked: Asked) -> "tuple[dict[str, Any], list[Slice]]":
    """The columns to measure by: labels by name; and the slice of the candidates, where some are asked for.

    Raises:
        UserError: there is no such column, it has too many values, or nobody looks for such candidates.
    """
    from avrec.data.columns import column, kinds
    from avrec.evaluation.slices import candidate_slice

    if isinstance(asked.slices, str) or not isinstance(asked.candidates, Mapping):
        raise UserError(
            f"slices={asked.slices} candidates={asked.candidates} cannot be read. Give a list of columns and values by "
            "column: slices=[users.country,items.genre] 'candidates={region: EU}'."
        )
    slices = {name: kinds(data.catalogue, name, "evaluation.slices") for name in asked.slices}
    wanted, labels = {}, {}
    for name, given in asked.candidates.items():
        each = [given] if given is None or isinstance(given, str | int | float) else list(given)
        if not each or None in each:
            raise UserError(
                f"evaluation.candidates: {name}={given} names no value. Give one or more: {{{name}: VALUE}}."
            )
        # As polars writes them; true and false are small there.
        wanted[name] = [str(one).lower() if isinstance(one, bool) else str(one).removesuffix(".0") for one in each]
        labels[name] = column(data.catalogue, f"items.{name}", "evaluation.candidates", whole=True)
    return slices, [candidate_slice(data.tasks[asked.which], wanted, labels)] if wanted else []


def _days_since(data: "TwoTowerData", which: str) -> tuple[str, list[str]]:
    """How long after the split, or where each user has its own, after the user's last known interaction."""
    from avrec.evaluation.slices import day_labels

    task, known = data.tasks[which], data.known(which)
    if not len(task.relevant_time) or np.median(task.relevant_time) < CLOCK:
        return "", []
    cut = task.protocol.get(f"{which}_from")
    users = task.user_index_E[task.relevant.rows()]
    if cut is not None:
        return "days_since_split", day_labels((task.relevant_time - cut) / 86400)
    ends, empty = known.starts[users + 1], np.diff(known.starts)[users] == 0
    last_J = np.where(empty, np.nan, np.append(known.time, np.nan)[ends - 1])
    # Where histories may be younger than what is to be found, it is no time since the last.
    days_J = (task.relevant_time - last_J) / 86400
    return "days_since_last", day_labels(np.where(days_J < 0, np.nan, days_J))


def ablate(module: "TwoTowerModule", data: "TwoTowerData", asked: Asked) -> "list[Result]":
    """The model with modalities hidden, at the first k; every item is encoded once, and fused anew."""
    import torch

    from avrec.evaluation.ablation import ablation
    from avrec.evaluation.metrics import METRICS

    tower, training = module.item_tower, module.training
    metrics = [metric for metric in asked.metrics if metric in METRICS] or ["ndcg"]
    module.eval()

    def on_device(batches: Any) -> Iterator[Any]:
        return (batch.to(module.device) for batch in batches)

    with torch.inference_mode():
        encoded = [(tower.encode(items), items.present_UM) for items in on_device(data.item_batches())]
        values_NMD, present_NM = (torch.cat(parts) for parts in zip(*encoded, strict=True))

        def embed(keep_M: Array) -> "tuple[Tensor, Tensor]":
            item_ND = tower.fuse(values_NMD, present_NM & torch.from_numpy(keep_M).to(present_NM.device))
            users = on_device(data.user_batches(asked.which))
            queries = [module.score.scale(module.user_tower.last(batch, item_ND)) for batch in users]
            return torch.cat(queries).cpu(), item_ND.cpu()

        results = ablation(embed, tower.modalities, data.tasks[asked.which], asked.ks[:1], metrics)
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
    from avrec.evaluation.results import results_table

    console = Console(width=None if Console().is_terminal else 120)
    rest, hidden, shares = apart(results)
    main = [r for r in rest if not r.of_label]
    console.print(results_table(main))
    metric = next((r.metric for r in main if r.metric.startswith("ndcg")), main[0].metric)
    by_slice = [r for r in rest if r.metric == metric and r.model in ("avrec", "popularity")]
    by_hidden = [r for r in hidden if r.metric == metric and not r.of_label]
    for title, cells in (
        ("by slice", {(r.slice, r.model): f"{r.value:.4f}" for r in by_slice}),
        ("with modalities hidden", {(r.model, r.slice): f"{r.value:.4f}" for r in by_hidden}),
    ):
        rows, columns = (list(dict.fromkeys(key[place] for key in cells)) for place in (0, 1))
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
    from avrec.evaluation.health import calibration, health_of, popularity_bias, warnings_of

    task, query_ED, item_ND = data.tasks[which], module.query_ED.cpu(), module.item_ND.cpu()
    health: dict[str, Any] = health_of(query_ED, item_ND, *_pairs(task))
    health |= popularity_bias(query_ED, item_ND, task)
    health["temperature"] = module.score.temperature.item()
    if getattr(module.objective, "promises_probabilities", False):
        health |= calibration(query_ED, item_ND, module.score.bias.item(), task)
    warnings = warnings_of(health, item_ND.shape[1])
    for warning in warnings:
        log.warning("health: %s", warning)
    return {"health": {**health, "warnings": warnings}}
