"""From a config to the pieces of a run: source, data, both towers, objective, trainer."""

import logging
import math
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from omegaconf import DictConfig

from avrec.batch import MODALITIES
from avrec.errors import UserError
from avrec.run.config import instantiate
from avrec.run.evaluation import EvaluationSpec, Validate, read_columns
from avrec.run.redact import hidden
from avrec.run.validation import validate

if TYPE_CHECKING:
    import pytorch_lightning as pl

    from avrec.data.datamodule import TwoTowerData
    from avrec.towers.item_tower import ItemTower
    from avrec.training.module import TwoTowerModule

log = logging.getLogger(__name__)


def build_source(cfg: DictConfig) -> Any:
    """The catalogue's source."""
    return instantiate(cfg.data, "data")


def build_data(cfg: DictConfig, source: Any) -> "TwoTowerData":
    """Load the catalogue and split it."""
    splitter = instantiate(cfg.split, "split")
    return instantiate(cfg.datamodule, "datamodule", catalogue=source.load(), splitter=splitter)


def build_module(cfg: DictConfig, data: "TwoTowerData", validate: Callable[..., Any]) -> "TwoTowerModule":
    """Both towers for a catalogue, the objective and the optimizer."""
    from avrec.towers.user_tower import UserColumns
    from avrec.training.module import TwoTowerModule

    catalogue = data.catalogue
    encoders: dict[str, Any] = {}
    for modality in MODALITIES:
        node = cfg.get(modality)
        if node is None:
            continue
        reads = encoder_reads(node)
        if reads == "files" and not catalogue.has(modality):
            log.info("no item has %s: its encoder is left out", modality)
            continue
        handed: dict[str, dict[str, Any]] = {
            "index": {"num_items": len(catalogue.items)},
            "table": {"root": catalogue.root},
        }
        encoders[modality] = instantiate(node, modality, **handed.get(reads, {}))
    fusion = instantiate(cfg.fusion, "fusion")
    item_tower = instantiate(cfg.item_tower, "item_tower")(encoders=encoders, fusion=fusion)
    columns = UserColumns(catalogue.category_sizes, catalogue.user_numbers.shape[1])
    user_tower = instantiate(cfg.user_tower, "user_tower")(columns=columns, num_users=len(catalogue.user_ids))
    bias = -math.log(len(catalogue.items)) if cfg.score.bias is None else cfg.score.bias
    optimizer, scheduler = instantiate(cfg.optimizer, "optimizer"), instantiate(cfg.scheduler, "scheduler")
    module = TwoTowerModule(
        item_tower,
        user_tower,
        instantiate(cfg.score, "score", bias=bias),
        instantiate(cfg.objective, "objective"),
        optimizer,
        scheduler,
        validate,
    )
    scheduler(optimizer(module), total_steps=100)  # what they refuse, they refuse before anything is written
    return module


def encoder_reads(node: Any) -> str:
    """What an encoder's config node reads (``Encoder.reads``), without building it."""
    from hydra.utils import get_object

    try:
        return getattr(get_object(node["_target_"]), "reads", "files")
    except (ImportError, ValueError):  # building it says what is missing
        return "files"


def build_trainer(cfg: DictConfig, more_callbacks: "Sequence[pl.Callback]" = ()) -> "pl.Trainer":
    """The Trainer with its callbacks and loggers; ``more_callbacks`` are those that no config holds."""
    from pytorch_lightning.callbacks import LearningRateMonitor

    from avrec.training.monitoring import ProgressBar

    _hush()
    for node in (cfg.logger or {}).values():
        if node and node.get("notes"):  # free text that no tracker needs to work
            node.notes = hidden(node.notes)
    loggers = [instantiate(node, f"logger.{name}") for name, node in (cfg.logger or {}).items() if node]
    callbacks = [instantiate(node, f"callbacks.{name}") for name, node in (cfg.callbacks or {}).items() if node]
    if loggers:
        callbacks.append(LearningRateMonitor("step"))
    if sys.stderr.isatty():
        callbacks.append(ProgressBar())
    return instantiate(
        cfg.trainer,
        "trainer",
        callbacks=[*callbacks, *more_callbacks],
        logger=loggers or False,
        default_root_dir=str(cfg.run_dir),
        enable_progress_bar=sys.stderr.isatty(),
    )


def _hush() -> None:
    """Leave out what Lightning says at every start and nobody can act on."""
    for message in (
        ".*isinstance.treespec, LeafSpec.*",
        "Checkpoint directory .* exists and is not empty.*",
        ".*special characters in metric name.*",  # MLflow takes no @
        r"Found \d+ module\(s\) in eval mode.*",  # frozen layers
    ):
        warnings.filterwarnings("ignore", message)
    for name in ("pytorch_lightning.utilities.rank_zero", "lightning_fabric.utilities.rank_zero"):
        logging.getLogger(name).addFilter(_worth_saying)


_NOISE = ("💡 Tip", "Loading `train_dataloader`", "TPU available", "`Trainer(", "`Trainer.fit` stopped")


def _worth_saying(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_NOISE)


def build_ranking_trainer(cfg: DictConfig) -> "pl.Trainer":
    """A Trainer that only ranks: the run's device and precision, no logger, no callbacks, nothing written."""
    _hush()
    keep = {key: cfg.trainer[key] for key in ("_target_", "accelerator", "devices", "precision")}
    return instantiate(
        keep,
        "trainer",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


class Run(NamedTuple):
    """The pieces of a run."""

    cfg: "DictConfig"
    source: Any
    data: "TwoTowerData"
    module: "TwoTowerModule"
    untrained: "ItemTower"
    """A copy as it is before training, and before a checkpoint's weights."""


def build_run(cfg: "DictConfig") -> Run:
    """The pieces of a config; content is not prepared yet, since weights may bring a tokenizer."""
    validate(cfg)
    source = build_source(cfg)
    data = build_data(cfg, source)
    read_columns(data, EvaluationSpec.of(cfg.evaluation))
    # Not sooner: it takes seconds, and a mistake in the data is reported first.
    import pytorch_lightning as pl

    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    measured = Validate(data.tasks["val"], cfg.evaluation.validate)
    module = build_module(cfg, data, measured)
    if "diversity" in cfg.evaluation.metrics and module.item_tower.modalities == ["identity"]:
        raise UserError(
            "evaluation.metrics: diversity needs an encoder that reads content. Remove it from the metrics."
        )
    return Run(cfg, source, data, module, module.item_tower.copy())
