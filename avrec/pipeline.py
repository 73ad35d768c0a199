"""What the entry scripts share: measure a model, and bring a run back from its checkpoint."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avrec.batch import Array, RankingTask, UserError

if TYPE_CHECKING:
    import pytorch_lightning as pl
    from omegaconf import DictConfig
    from torch import Tensor

    from avrec.data.datamodule import TwoTowerData
    from avrec.evaluation.protocol import Result
    from avrec.training.module import TwoTowerModule


@dataclass
class Timing:
    """Seconds per part of a run."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time a block as ``name``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = round(time.perf_counter() - start, 3)


class Validate:
    """Full-catalogue metrics during training.

    Args:
        task: the validation task.
        metrics: names such as ``ndcg@10``.
    """

    def __init__(self, task: RankingTask, metrics: Sequence[str]) -> None:
        self.task = task
        self.metrics = list(metrics)

    def __call__(self, query_ED: "Tensor", item_ND: "Tensor") -> dict[str, float]:
        """Metrics of these embeddings, by name."""
        from avrec.evaluation.protocol import fast_metrics
        from avrec.evaluation.ranking import EmbeddingScorer

        return fast_metrics(EmbeddingScorer(query_ED, item_ND), self.task, self.metrics)


def build(cfg: "DictConfig") -> tuple[Any, "TwoTowerData", "TwoTowerModule"]:
    """Source, data and module of a config; content is not prepared yet, since weights may bring a tokenizer."""
    import pytorch_lightning as pl

    from avrec import config

    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    source = config.build_source(cfg)
    data = config.build_data(cfg, source)
    validate = Validate(data.tasks["val"], cfg.evaluation.validate)
    return source, data, config.build_module(cfg, data, validate)


def of_checkpoint(ckpt: str | Path) -> tuple["DictConfig", Any, "TwoTowerData", "TwoTowerModule"]:
    """A run brought back: its config, source, data and the module with a checkpoint's weights, content prepared.

    Raises:
        UserError: there is no such checkpoint, or it does not fit its run.
    """
    from avrec import config

    cfg = config.of_run(ckpt)
    source, data, module = build(cfg)
    load_weights(module, ckpt)
    data.prepare_data()
    return cfg, source, data, module


def load_weights(module: "TwoTowerModule", ckpt: str | Path) -> None:
    """Take a checkpoint's weights (and learned tokenizer).

    Raises:
        UserError: it is no checkpoint of this model.
    """
    import torch

    try:
        module.load_state_dict(torch.load(ckpt, map_location="cpu", weights_only=True)["state_dict"])
    except (RuntimeError, KeyError, ValueError, EOFError, OSError) as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(
            f"ckpt={ckpt} does not fit this model: {reason} Give a checkpoint of a run with these settings and this "
            "catalogue."
        ) from error


def measure(
    trainer: "pl.Trainer",
    module: "TwoTowerModule",
    data: "TwoTowerData",
    source: Any,
    which: str = "test",
    ks: Sequence[int] = (10, 50),
    metrics: Sequence[str] = ("recall", "ndcg", "mrr"),
) -> "list[Result]":
    """Rank the whole catalogue for each user of a split: the model, and the baselines beside it.

    Leaves the embeddings in ``module.item_ND`` and ``module.query_ED``.
    """
    from avrec.evaluation.baselines import PopularityScorer, RandomScorer, ScoreMatrixScorer
    from avrec.evaluation.protocol import evaluate
    from avrec.evaluation.ranking import EmbeddingScorer

    task = data.tasks[which]
    trainer.test(module, data.ranking_loaders(which), verbose=False)
    scorers: dict[str, Any] = {
        "avrec": EmbeddingScorer(module.query_ED.cpu(), module.item_ND.cpu()),
        "popularity": PopularityScorer(task),
        "random": RandomScorer(task, len(data.catalogue.items)),
    }
    if hasattr(source, "true_scores") and data.split.test_time is not None:
        scorers["oracle"] = ScoreMatrixScorer(_truth(source, data, task))
    return [result for name, scorer in scorers.items() for result in evaluate(name, scorer, task, ks, metrics)]


def _truth(source: Any, data: "TwoTowerData", task: RankingTask) -> Array:
    users = [data.catalogue.user_ids[user] for user in task.user_index_E]
    items = [item.item_id for item in data.catalogue.items]
    return source.true_scores(users, items, data.split.test_time)


def by_name(results: "Sequence[Result]", model: str = "avrec") -> dict[str, float]:
    """A model's numbers: ``ndcg@10`` overall, ``cold_items/ndcg@10`` for a slice."""
    return {
        result.metric if result.slice == "all" else f"{result.slice}/{result.metric}": result.value
        for result in results
        if result.model == model
    }


def write_embeddings(module: "TwoTowerModule", data: "TwoTowerData", folder: Path) -> None:
    """The catalogue's embeddings and the test users' queries as Parquet: id, vector."""
    import polars as pl

    folder.mkdir(parents=True, exist_ok=True)
    items = [item.item_id for item in data.catalogue.items]
    users = [data.catalogue.user_ids[user] for user in data.tasks["test"].user_index_E]
    for name, ids, vectors in (("item", items, module.item_ND), ("user", users, module.query_ED)):
        table = pl.DataFrame({f"{name}_id": ids, "vector": vectors.cpu().numpy()})
        table.write_parquet(folder / f"{name}s.parquet")


def show(results: "Sequence[Result]") -> None:
    """Print the table."""
    from rich.console import Console

    from avrec.evaluation.protocol import results_table

    Console(width=None if Console().is_terminal else 120).print(results_table(results))


def data_summary(data: "TwoTowerData") -> dict[str, Any]:
    """Counts for metrics.json."""
    from avrec.data.splits import ROLES

    assert data.items is not None
    return {
        "items": len(data.catalogue.items),
        "users": len(data.catalogue.user_ids),
        "interactions": len(data.catalogue.log),
        **{name: int((data.split.role == role).sum()) for name, role in ROLES.items()},
        "cold_items": int((~data.trained_N).sum()),
        "present": {name: int(c.present_N.sum()) for name, c in data.items.content.items()},
        "dropped": {which: task.dropped for which, task in data.tasks.items()},
    }
