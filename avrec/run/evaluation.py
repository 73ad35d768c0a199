"""Evaluation of a model: the ranking of a split, the baselines beside it, ablation and health."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from avrec.batch import Array
from avrec.data.columns import column, kinds
from avrec.errors import UserError
from avrec.evaluation import neighbours
from avrec.evaluation.ablation import ablation
from avrec.evaluation.baselines import PopularityScorer, RandomScorer, ScoreMatrixScorer
from avrec.evaluation.evaluator import evaluate, fast_metrics
from avrec.evaluation.health import calibration, drift, health_of, popularity_bias, warnings_of
from avrec.evaluation.metrics import METRICS
from avrec.evaluation.ranking import EmbeddingScorer, Scorer
from avrec.evaluation.results import MODEL, Result
from avrec.evaluation.slices import (
    Slice,
    candidate_slice,
    day_labels,
    decile_labels,
    item_slices,
    length_labels,
    present_labels,
    target_slices,
    user_slices,
)
from avrec.ranking_task import Ragged, RankingTask

if TYPE_CHECKING:
    import pytorch_lightning as pl

    from avrec.data.datamodule import TwoTowerData
    from avrec.towers.item_tower import ItemTower
    from avrec.training.module import TwoTowerModule

log = logging.getLogger(__name__)
CLOCK = 1e8
"""Times below it (1973, in Unix seconds) are an order, not a clock."""


class EvaluationSpec(NamedTuple):
    """What to evaluate."""

    split: str
    """"val" or "test"."""
    ks: Sequence[int]
    metrics: Sequence[str]
    slices: Sequence[str]
    """Columns to slice by, ``items.COLUMN`` or ``users.COLUMN``."""
    candidates: Mapping[str, Any]
    """By column of the items, the value or values of a further table's candidates."""

    @classmethod
    def of(cls, evaluation: Any, split: str = "test", **instead: Any) -> "EvaluationSpec":
        """From a config's ``evaluation``; values in ``instead`` that are not None take precedence."""
        given = {name: value for name, value in instead.items() if value is not None}
        found = {name: evaluation.get(name) or () for name in ("ks", "metrics", "slices")}
        return cls(**{"split": split, "candidates": evaluation.get("candidates") or {}, **found, **given})


class Validate:
    """Full-catalogue metrics (such as ``ndcg@10``; not diversity) and health, during training."""

    def __init__(self, task: RankingTask, metrics: Sequence[str]) -> None:
        if any("diversity" in name for name in metrics):
            raise UserError(
                "evaluation.validate must not contain diversity, which is measured after training: add it to "
                "evaluation.metrics."
            )
        self.task = task
        self.metrics = list(metrics)
        self.before_ND: Tensor | None = None

    def __call__(self, query_ED: Tensor, item_ND: Tensor) -> dict[str, float]:
        """Metrics of these embeddings, under ``val/``, and ``health/``."""
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
    """Raise a ``UserError`` unless ``names`` is a list of known baselines."""
    if isinstance(names, str) or not all(name in Baselines.NAMES for name in names):
        raise UserError(f"baselines must be a list of {', '.join(Baselines.NAMES)}, or [] for none; got {names}.")


@dataclass
class Baselines:
    """Scorers to compare the model with, fitted on the histories known at the time of the ranking."""

    NAMES = ("popularity", "recent_popularity", "random", "item_knn", "ease", "content_knn")
    RECENT_SHARE = 0.1

    names: Sequence[str]
    data: "TwoTowerData"
    """Prepared."""
    source: Any
    """Where it has ``true_scores``, an oracle is among the baselines."""
    untrained: "ItemTower"
    """Encodes the content for content-kNN."""
    device: Any = "cpu"
    """Where the untrained encoders run."""

    @cached_property
    def content(self) -> dict[str, Any]:
        """The items as the untrained encoders see them, by modality."""
        content = self.untrained.to(self.device).encode_alone(self.data.item_batches())
        self.untrained.to("cpu")
        return content

    @property
    def vectors_ND(self) -> Array | None:
        """The items' content as vectors, all modalities together; None where no encoder reads content."""
        if not self.content:
            return None
        return neighbours.content_vectors([*self.content.values()], self.data.trained_N).numpy()

    def scorers(self, split: str) -> Iterator[tuple[str, Scorer]]:
        """One after another, so that only one is in memory."""
        source, data = self.source, self.data
        task, known = data.tasks[split], data.known(split)
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
    trainer: "pl.Trainer", module: "TwoTowerModule", data: "TwoTowerData", baselines: Baselines, spec: EvaluationSpec
) -> list[Result]:
    """Rank the whole catalogue for each user of a split, with the model and with the baselines.

    Leaves the embeddings in ``module.item_ND`` and ``module.query_ED``.
    """
    task = data.tasks[spec.split]
    trainer.test(module, data.ranking_loaders(spec.split), verbose=False)
    model = EmbeddingScorer(module.query_ED.cpu(), module.item_ND.cpu())
    vectors_ND = baselines.vectors_ND if "diversity" in spec.metrics else None
    scorers = chain([(MODEL, model)], baselines.scorers(spec.split))
    parts = more_slices(data, spec)
    return [
        result
        for name, scorer in scorers
        for result in evaluate(name, scorer, task, spec.ks, spec.metrics, parts, vectors_ND)
    ]


def more_slices(data: "TwoTowerData", spec: EvaluationSpec) -> list[Slice]:
    """The slices beside the main ones.

    The spec's candidates; users by history length and by whether they are known from training; items by popularity and
    modalities; held-out interactions by the time since the split or the history; and the spec's columns.

    Raises:
        UserError: an unknown column, or candidates that no user has chosen.
    """
    task, known = data.tasks[spec.split], data.known(spec.split)
    trained_E = data.train_sequences.lengths()[task.user_index_E] > 0
    content = {name: found.present_N for name, found in data.items.content.items() if name != "identity"}
    since, label_J = _days_since(data, spec.split)
    columns, found = read_columns(data, spec)
    found += user_slices(task, "history_length", length_labels(np.diff(known.starts)[task.user_index_E]))
    found += user_slices(task, "user", np.where(trained_E, "known", "new"))
    found += item_slices(task, "popularity", decile_labels(task))
    if since:
        found += target_slices(task, since, label_J)
    if content:
        found += item_slices(task, "present", present_labels(np.stack([*content.values()], axis=1), [*content]))
    for name, labels in columns.items():
        if name.startswith("users."):
            found += user_slices(task, name, [labels[user] for user in task.user_index_E])
        else:
            found += item_slices(task, name, labels)
    return found


def read_columns(data: "TwoTowerData", spec: EvaluationSpec) -> tuple[dict[str, Any], list[Slice]]:
    """The spec's columns, labels by name; and the slice of its candidates, if any.

    Raises:
        UserError: an unknown column, one with too many values, or candidates that no user has chosen.
    """
    if isinstance(spec.slices, str) or not isinstance(spec.candidates, Mapping):
        raise UserError(
            f"slices must be a list of columns and candidates values by column; got slices={spec.slices} "
            f"candidates={spec.candidates}. Example: slices=[users.country,items.genre] 'candidates={{region: EU}}'."
        )
    slices = {name: kinds(data.catalogue, name, "evaluation.slices") for name in spec.slices}
    wanted, labels = {}, {}
    for name, given in spec.candidates.items():
        each = [given] if given is None or isinstance(given, str | int | float) else list(given)
        if not each or None in each:
            raise UserError(
                f"evaluation.candidates needs one or more values of {name}; got {name}={given}. "
                f"Example: {{{name}: VALUE}}."
            )
        # As polars writes them: true and false in lower case.
        wanted[name] = [str(one).lower() if isinstance(one, bool) else str(one).removesuffix(".0") for one in each]
        labels[name] = column(data.catalogue, f"items.{name}", "evaluation.candidates", whole=True)
    return slices, [candidate_slice(data.tasks[spec.split], wanted, labels)] if wanted else []


def _days_since(data: "TwoTowerData", split: str) -> tuple[str, list[str]]:
    """Days since the split, or where it differs by user, since the user's last known interaction."""
    task, known = data.tasks[split], data.known(split)
    if not len(task.relevant_time) or np.median(task.relevant_time) < CLOCK:
        return "", []
    cut = task.protocol.get(f"{split}_from")
    users = task.user_index_E[task.relevant.rows()]
    if cut is not None:
        return "days_since_split", day_labels((task.relevant_time - cut) / 86400)
    ends, empty = known.starts[users + 1], np.diff(known.starts)[users] == 0
    last_J = np.where(empty, np.nan, np.append(known.time, np.nan)[ends - 1])
    # A history may be younger than the held-out item: that is no time since the last.
    days_J = (task.relevant_time - last_J) / 86400
    return "days_since_last", day_labels(np.where(days_J < 0, np.nan, days_J))


def ablate(module: "TwoTowerModule", data: "TwoTowerData", spec: EvaluationSpec) -> list[Result]:
    """Ablation of the model's modalities at the first k; items are encoded once and fused again."""
    tower, training = module.item_tower, module.training
    metrics = [metric for metric in spec.metrics if metric in METRICS] or ["ndcg"]
    module.eval()

    def on_device(batches: Any) -> Iterator[Any]:
        return (batch.to(module.device) for batch in batches)

    with torch.inference_mode():
        encoded = [(tower.encode(items), items.present_UM) for items in on_device(data.item_batches())]
        values_NMD, present_NM = (torch.cat(parts) for parts in zip(*encoded, strict=True))

        def embed(keep_M: Array) -> tuple[Tensor, Tensor]:
            item_ND = tower.fuse(values_NMD, present_NM & torch.from_numpy(keep_M).to(present_NM.device))
            users = on_device(data.user_batches(spec.split))
            queries = [module.score.scale(module.user_tower.last(batch, item_ND)) for batch in users]
            return torch.cat(queries).cpu(), item_ND.cpu()

        results = ablation(embed, tower.modalities, data.tasks[spec.split], spec.ks[:1], metrics)
    module.train(training)
    return results


def by_name(results: Sequence[Result], model: str = MODEL) -> dict[str, float]:
    """A model's numbers: ``ndcg@10`` overall, ``cold_items/ndcg@10`` for a slice."""
    return {
        result.metric if result.slice == "all" else f"{result.slice}/{result.metric}": result.value
        for result in results
        if result.model == model
    }


def check_health(module: "TwoTowerModule", data: "TwoTowerData", split: str = "test") -> dict[str, Any]:
    """The health of an evaluated model for metrics.json; its warnings are logged, too."""
    task, query_ED, item_ND = data.tasks[split], module.query_ED.cpu(), module.item_ND.cpu()
    health: dict[str, Any] = health_of(query_ED, item_ND, *_pairs(task))
    health |= popularity_bias(query_ED, item_ND, task)
    health["temperature"] = module.score.temperature.item()
    if getattr(module.objective, "promises_probabilities", False):
        health |= calibration(query_ED, item_ND, module.score.bias.item(), task)
    warnings = warnings_of(health, item_ND.shape[1])
    for warning in warnings:
        log.warning("health: %s", warning)
    return {"health": {**health, "warnings": warnings}}
