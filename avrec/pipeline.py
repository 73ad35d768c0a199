"""What the entry scripts share: measure a model, and bring a run back from its checkpoint."""

import copy
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from avrec.batch import Array, Ragged, RankingTask, UserError

if TYPE_CHECKING:
    import pytorch_lightning as pl
    from omegaconf import DictConfig
    from torch import Tensor

    from avrec.data.datamodule import TwoTowerData
    from avrec.evaluation.protocol import Result
    from avrec.evaluation.ranking import Scorer
    from avrec.towers.item_tower import ItemTower
    from avrec.training.module import TwoTowerModule

log = logging.getLogger(__name__)


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


class Run(NamedTuple):
    """The pieces of a run.

    Attributes:
        cfg: its config.
        source: of its catalogue.
        data: split; prepared or not.
        module: both towers.
        untrained: a copy of the item tower as it is before training, and before a checkpoint's weights.
    """

    cfg: "DictConfig"
    source: Any
    data: "TwoTowerData"
    module: "TwoTowerModule"
    untrained: "ItemTower"


def build(cfg: "DictConfig") -> Run:
    """The pieces of a config; content is not prepared yet, since weights may bring a tokenizer."""
    from avrec import config

    check_settings(cfg)
    source = config.build_source(cfg)
    data = config.build_data(cfg, source)
    # Not sooner: it takes seconds, and a mistake in the data is said before.
    import pytorch_lightning as pl

    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    validate = Validate(data.tasks["val"], cfg.evaluation.validate)
    module = config.build_module(cfg, data, validate)
    # The copy shares what content is prepared with: a tokenizer is learned, or comes with weights, later than this.
    shared = {id(encoder.preprocess): encoder.preprocess for encoder in module.item_tower.encoders.values()}
    return Run(cfg, source, data, module, copy.deepcopy(module.item_tower, shared))


def check_settings(cfg: "DictConfig") -> None:
    """Refuse what would only be found out at the end of an epoch, or of the run.

    Raises:
        UserError: a seed, metric, k or ``monitor`` that cannot work.
    """
    from avrec.evaluation.protocol import check_metrics

    if not isinstance(cfg.seed, int) or cfg.seed < 0:
        raise UserError(f"seed={cfg.seed} is not possible. Give a whole number from 0.")
    for key, least in (("max_epochs", -1), ("accumulate_grad_batches", 1)):
        if not isinstance(cfg.trainer[key], int) or cfg.trainer[key] < least:
            raise UserError(f"trainer.{key}={cfg.trainer[key]} is not possible. Give a whole number from {least}.")
    devices = cfg.trainer.devices
    if (devices if isinstance(devices, int) else len(devices) if not isinstance(devices, str) else 1) != 1:
        raise UserError(
            f"trainer.devices={devices} is not possible yet: negatives are not gathered across processes. "
            "Give trainer.devices=1, or [N] for the device of that number."
        )
    check_metrics(cfg.evaluation.metrics, cfg.evaluation.ks)
    check_baselines(cfg.evaluation.baselines)
    if cfg.monitor.removeprefix("val/") not in cfg.evaluation.validate:
        raise UserError(
            f"monitor={cfg.monitor} is not measured: evaluation.validate has {', '.join(cfg.evaluation.validate)}. "
            f"Give monitor=val/{cfg.evaluation.validate[0]}, or add its metric to evaluation.validate."
        )


def check_baselines(names: Any) -> None:
    """Refuse what is no list of known baselines.

    Raises:
        UserError: says which there are.
    """
    if isinstance(names, str) or not all(name in Baselines.NAMES for name in names):
        raise UserError(
            f"baselines={names} are not known. Give some of {', '.join(Baselines.NAMES)}, or none: baselines=[]."
        )


def of_checkpoint(ckpt: str | Path) -> Run:
    """Bring a run back from its checkpoint.

    Raises:
        UserError: there is no such checkpoint, or it does not fit its run.
    """
    from avrec import config

    cfg = config.of_run(ckpt)
    run = build(cfg)
    load_weights(run.module, run.data, ckpt)
    run.data.prepare_data()
    return run


def load_weights(module: "TwoTowerModule", data: "TwoTowerData", ckpt: str | Path) -> dict[str, Any]:
    """Take a checkpoint's weights (and learned tokenizer).

    Returns:
        The checkpoint.

    Raises:
        UserError: it is no checkpoint of this model, or of another catalogue.
    """
    import torch

    advice = "Give a checkpoint of a run with these settings and this catalogue: ckpt=RUN/checkpoints/best.ckpt."
    if not Path(ckpt).is_file():
        raise UserError(f"ckpt={ckpt} is not a file. {advice}")
    try:
        checkpoint: dict[str, Any] = torch.load(ckpt, map_location="cpu", weights_only=True)
        weights, state = checkpoint["state_dict"], checkpoint.get(type(data).__qualname__, {})
    except Exception as error:  # a damaged file makes torch raise nearly anything
        raise UserError(f"ckpt={ckpt} is no checkpoint, or is damaged ({type(error).__name__}). {advice}") from error
    known = state.get("fingerprint", {}).get("catalogue")
    if known not in (None, data.fingerprint["catalogue"]):
        raise UserError(f"ckpt={ckpt} was trained on other items, users or interactions than these. {advice}")
    try:
        module.load_state_dict(weights)
    except (RuntimeError, KeyError, ValueError) as error:
        reason = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise UserError(f"ckpt={ckpt} does not fit this model: {' '.join(reason[1:3] or reason)} {advice}") from error
    return checkpoint


def check_resumable(cfg: "DictConfig", module: "TwoTowerModule", data: "TwoTowerData") -> None:
    """Refuse to go on from a checkpoint where that could not be what was meant, before anything is written.

    Raises:
        UserError: ``cfg.ckpt`` is damaged, of another model, catalogue, order or optimizer, or has no epoch left.
    """
    from avrec import config

    checkpoint = load_weights(module, data, cfg.ckpt)
    if not checkpoint.get("optimizer_states"):
        raise UserError(
            f"ckpt={cfg.ckpt} holds weights alone, and nothing to go on from. Give RUN/checkpoints/last.ckpt."
        )
    order = checkpoint[type(data).__qualname__].get("fingerprint", data.fingerprint)["order"]
    changed = config.changed_since(cfg, cfg.ckpt, ("optimizer", "scheduler"))
    if order != data.fingerprint["order"] or changed:
        theirs = f"{order} {changed}".strip()
        raise UserError(f"ckpt={cfg.ckpt} goes on with {theirs}. Give the same, or start anew without ckpt.")
    if 0 <= cfg.trainer.max_epochs <= checkpoint["epoch"]:
        raise UserError(
            f"ckpt={cfg.ckpt} is in epoch {checkpoint['epoch'] + 1}, and trainer.max_epochs={cfg.trainer.max_epochs}. "
            "Give a larger one."
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

    def __init__(self, names: Sequence[str], run: Run, device: Any = "cpu") -> None:
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
    return [result for name, scorer in scorers for result in evaluate(name, scorer, task, ks, metrics)]


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
    """Print the table, and what share of the scores' variance each modality carries."""
    from rich.console import Console

    from avrec.evaluation.ablation import VARIANCE
    from avrec.evaluation.protocol import results_table

    console = Console(width=None if Console().is_terminal else 120)
    console.print(results_table([result for result in results if not result.metric.startswith(VARIANCE)]))
    shares = [(r.metric.removeprefix(VARIANCE), r.value) for r in results if r.metric.startswith(VARIANCE)]
    if shares:
        console.print(f"share of the scores' variance: {', '.join(f'{name} {value:.0%}' for name, value in shares)}")


def check_health(module: "TwoTowerModule", data: "TwoTowerData", which: str = "test") -> dict[str, Any]:
    """The health of a measured model for metrics.json; what is off is said in words, too."""
    from avrec.evaluation.health import health_of, warnings_of

    health: dict[str, Any] = health_of(module.query_ED, module.item_ND, *_pairs(data.tasks[which]))
    warnings = warnings_of(health, module.item_ND.shape[1])
    for warning in warnings:
        log.warning("health: %s", warning)
    return {"health": {**health, "warnings": warnings}}


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
