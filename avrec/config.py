"""The only file that knows Hydra and OmegaConf: from a config to the pieces, and from a user's slip to its cure."""

import errno
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf, errors

from avrec import sweep
from avrec.batch import MODALITIES, UserError
from avrec.hints import CONF, explain, for_hydra, must_be_given
from avrec.secrets import hidden, masked

if TYPE_CHECKING:
    import pytorch_lightning as pl

    from avrec.data.datamodule import TwoTowerData
    from avrec.training.module import TwoTowerModule

log = logging.getLogger(__name__)
_PIECES = (
    *("data", "split", "datamodule", "fusion", "item_tower", "user_tower", "score", "objective", "optimizer"),
    *("scheduler", "trainer", "evaluation", "monitor", "seed"),
)
_OF_RUN = "It must be as train.py wrote it: take it from a backup, or train again."


# ---------------------------------------------------------------------------------------------------------
# From a config to the pieces


def instantiate(node: Any, where: str, **more: Any) -> Any:
    """Build what a config node names, with ``more`` that the config cannot hold; ``where`` is its key, for messages.

    Raises:
        UserError: whatever the constructor refuses, a missing package, a value that must be given.
    """
    import hydra
    from hydra.errors import InstantiationException

    try:
        with building(where):
            if not more:
                return hydra.utils.instantiate(node)
            # Not handed to Hydra: it would turn dataclasses into configs.
            return hydra.utils.instantiate(node, _partial_=True)(**more)
    except errors.MissingMandatoryValue as error:
        raise UserError(must_be_given(error.full_key or where)) from error
    except InstantiationException as error:
        cause = error.__cause__
        while isinstance(cause, InstantiationException):
            cause = cause.__cause__
        if isinstance(cause, UserError):
            raise cause from None
        if isinstance(cause, errors.MissingMandatoryValue):
            raise UserError(must_be_given(cause.full_key or where)) from error
        if isinstance(cause, ImportError) or "Error locating target" in str(error):
            extra = f"pip install 'avrec[{where.rpartition('.')[2]}]'" if "." in where else "make pretrained"
            raise UserError(f"{where}: {_target_of(error)} Install its package: {extra}.") from error
        raise UserError(_cannot_be(where, cause or error)) from error


@contextmanager
def building(where: str) -> Iterator[None]:
    """A constructor's complaint about what it was given under the key ``where``, as a user's mistake.

    Raises:
        UserError: in place of whatever the block raises.
    """
    from hydra.errors import InstantiationException

    try:
        yield
    except (UserError, InstantiationException, errors.OmegaConfBaseException):
        raise
    except Exception as error:  # torch, transformers, timm and Lightning each refuse in their own way
        raise UserError(_cannot_be(where, error)) from error


def _cannot_be(where: str, error: BaseException) -> str:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"{where} cannot be built from what was given: {reason} Look at its file in conf/ for what it takes."


def _target_of(error: Exception) -> str:
    found = re.search(r"'([\w.]+)'", str(error))
    return f"{found.group(1)} cannot be imported." if found else str(error).splitlines()[0]


def build_source(cfg: DictConfig) -> Any:
    """The catalogue's source."""
    return instantiate(cfg.data, "data")


def build_data(cfg: DictConfig, source: Any) -> "TwoTowerData":
    """Load the catalogue and split it."""
    splitter = instantiate(cfg.split, "split")
    return instantiate(cfg.datamodule, "datamodule", catalogue=source.load(), splitter=splitter)


def build_module(cfg: DictConfig, data: "TwoTowerData", validate: Callable[..., Any]) -> "TwoTowerModule":
    """Both towers for a catalogue, the objective and the optimizer; connects the data to the encoders."""
    import math

    from avrec.towers.user_tower import UserColumns
    from avrec.training.module import TwoTowerModule

    catalogue = data.catalogue
    encoders: dict[str, Any] = {}
    for modality in MODALITIES:
        node = cfg.get(modality)
        if node is None:
            continue
        # A partial encoder reads what lies under an item's number, not what the item names.
        by_number = node.get("_partial_", False)
        if not by_number and not catalogue.has(modality):
            log.info("no item has %s: its encoder is left out", modality)
            continue
        encoders[modality] = instantiate(node, modality)
        with building(modality):
            if modality == "identity":
                encoders[modality] = encoders[modality](num_items=len(catalogue.items))
            elif by_number:
                encoders[modality] = encoders[modality](root=catalogue.root)
    fusion = instantiate(cfg.fusion, "fusion")
    with building("item_tower"):
        item_tower = instantiate(cfg.item_tower, "item_tower")(encoders=encoders, fusion=fusion)
    columns = UserColumns(catalogue.category_sizes, catalogue.user_numbers.shape[1])
    with building("user_tower"):
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
    with building("optimizer and scheduler"):  # before anything is written
        scheduler(optimizer(module), total_steps=100)
    data.connect(item_tower.parts())
    return module


def build_trainer(cfg: DictConfig) -> "pl.Trainer":
    """The Trainer with its callbacks and logger."""
    from hydra.core.hydra_config import HydraConfig
    from pytorch_lightning.callbacks import LearningRateMonitor, RichProgressBar

    from avrec.training.callbacks import TrialReport

    _hush()
    for node in (cfg.logger or {}).values():
        if node and node.get("notes"):  # free text that no tracker needs to work
            node.notes = hidden(node.notes)
    loggers = [instantiate(node, f"logger.{name}") for name, node in (cfg.logger or {}).items() if node]
    callbacks = [instantiate(node, f"callbacks.{name}") for name, node in (cfg.callbacks or {}).items() if node]
    if loggers:
        callbacks.append(LearningRateMonitor("step"))
    if sys.stderr.isatty():
        callbacks.append(RichProgressBar())
    if os.environ.get(sweep.TRIAL):
        pruner = instantiate(HydraConfig.get().sweeper.get("pruner"), "hydra.sweeper.pruner")
        callbacks.append(TrialReport(cfg.monitor, sweep.reporter(pruner)))
    return instantiate(
        cfg.trainer,
        "trainer",
        callbacks=callbacks,
        logger=loggers or False,
        default_root_dir=str(cfg.run_dir),
        enable_progress_bar=sys.stderr.isatty(),
    )


def _hush() -> None:
    """Leave out what Lightning says at every start and nobody can act on."""
    import warnings

    for message in (
        ".*isinstance.treespec, LeafSpec.*",
        "Checkpoint directory .* exists and is not empty.*",
        ".*special characters in metric name.*",  # MLflow takes no @
    ):
        warnings.filterwarnings("ignore", message)
    for name in ("pytorch_lightning.utilities.rank_zero", "lightning_fabric.utilities.rank_zero"):
        logging.getLogger(name).addFilter(_worth_saying)


def _worth_saying(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(("💡 Tip", "Loading `train_dataloader`", "TPU available"))


def build_ranking_trainer(cfg: DictConfig) -> "pl.Trainer":
    """A Trainer that only ranks: the run's device and precision, no logger, no callbacks, nothing written."""
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


def save(cfg: DictConfig, path: Path) -> None:
    """Write the resolved config: ``--config-path`` of its folder makes the same run again, in a folder of its own."""
    mark, train = "@run_dir@", OmegaConf.load(CONF / "train.yaml")
    assert isinstance(train, DictConfig)
    placed = cfg.copy()
    placed.run_dir = mark
    # A resumed run has come to what an unbroken one does: again means from the start.
    settings = {**plain(placed), "ckpt": None, "run_dir": "${hydra:runtime.output_dir}"}
    overrides = [entry for entry in train.defaults if str(next(iter(entry))).startswith("override hydra/")]
    again = OmegaConf.create({"defaults": ["_self_", *overrides], **settings, "hydra": train.hydra})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(OmegaConf.to_yaml(again).replace(mark, "${run_dir}"), encoding="utf-8")


def plain(cfg: DictConfig) -> dict[str, Any]:
    """A config resolved, without its secrets."""
    tree: dict[str, Any] = hidden(OmegaConf.to_container(cfg, resolve=True))
    return tree


def of_run(ckpt: str | Path, root: str | Path | None = None) -> DictConfig:
    """The config of the run that a checkpoint belongs to; ``root`` is where its catalogue lies now, None: as it says.

    Raises:
        UserError: there is no such checkpoint, no config.yaml beside its folder, or none of a run.
    """
    ckpt = Path(ckpt)
    if not ckpt.is_file():
        raise UserError(f"ckpt={ckpt} is not a file. Give a run's checkpoint: ckpt=RUN/checkpoints/best.ckpt.")
    path = ckpt.resolve().parent.parent / "config.yaml"
    if not path.is_file():
        raise UserError(
            f"ckpt={ckpt} has no {path}. A checkpoint must lie in its run folder: RUN/checkpoints/best.ckpt."
        )
    cfg = _read_run(path)
    for key in ("defaults", "hydra"):
        cfg.pop(key, None)
    cfg.run_dir = str(path.parent)
    if root:
        cfg.data.root = str(root)
    return cfg


def _read_run(path: Path) -> DictConfig:
    try:
        cfg = OmegaConf.load(path)
    except Exception as error:  # what is no YAML makes its readers raise nearly anything
        raise UserError(f"{path} cannot be read: {str(error).splitlines()[0]}. {_OF_RUN}") from error
    missing = [key for key in _PIECES if not isinstance(cfg, DictConfig) or key not in cfg]
    if missing:
        raise UserError(f"{path} is not the config of a run: it has no {', no '.join(missing[:3])}. {_OF_RUN}")
    assert isinstance(cfg, DictConfig)
    return cfg


def changed_since(cfg: DictConfig, ckpt: str | Path, sections: Sequence[str]) -> str:
    """The run's own values, as ``key=value``, of the keys in these sections that a checkpoint's run had otherwise."""
    path = Path(ckpt).resolve().parent.parent / "config.yaml"
    if not path.is_file():
        return ""
    theirs = _read_run(path)
    pairs = ((f"{s}.{key}", cfg[s].get(key), value) for s in sections for key, value in (theirs.get(s) or {}).items())
    return " ".join(f"{key}={value}" for key, ours, value in pairs if ours != value)


def check_run_dir(cfg: DictConfig) -> None:
    """Refuse a ``run_dir`` that is not where Hydra writes the log, with a ``UserError``."""
    from hydra.core.hydra_config import HydraConfig

    if HydraConfig.initialized() and Path(cfg.run_dir) != Path(HydraConfig.get().runtime.output_dir):
        raise UserError(
            f"run_dir={cfg.run_dir} would leave the log elsewhere. Give hydra.run.dir={cfg.run_dir} instead."
        )


# ---------------------------------------------------------------------------------------------------------
# From a user's slip to its cure


def entry(main: Callable[[], Any], config_name: str) -> int:
    """Run an entry script's main so that a user's mistake ends in one message, and a stop in a clean one.

    Keys are looked up in the primary config ``config_name`` for "did you mean".

    Returns:
        Exit status: 0 fine, 2 the user's mistake, 128 + signal where it was stopped.
    """
    from hydra.errors import HydraException

    from avrec import sweeper

    os.environ["HYDRA_FULL_ERROR"] = "1"
    sweeper.register()
    try:
        with slips():
            sys.argv[1:] = for_hydra(sys.argv[1:])
            main()
    except (HydraException, errors.OmegaConfBaseException) as error:
        print(f"error: {masked(explain(error, config_name))}", file=sys.stderr)
        return 2
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def command(main: Callable[[DictConfig], None], config_name: str) -> int:
    """Compose a primary config with the command line's overrides and run ``main`` on it, as ``entry`` does."""
    import hydra

    return entry(hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(main), config_name)


@contextmanager
def slips(run_dir: str | Path | None = None) -> Iterator[None]:
    """Turn a user's mistake, a file that the system refuses, or a stop into a message and an exit status.

    With ``hydra.verbose=true`` the traceback is said, too.

    After a mistake, a ``run_dir`` to which nothing but the log has been written is removed.

    Raises:
        SystemExit: with status 2 for a mistake, 128 + signal for a stop.
    """
    from avrec.training.stop import TrainingStoppedError

    try:
        yield
    except TrainingStoppedError as error:
        folder = os.environ.get(sweep.TRIAL, "").partition("@")[2]
        goes_on = f"stopped; the same command with hydra.sweep.dir={folder} goes on with the sweep"
        print(goes_on if folder else error, file=sys.stderr)
        raise SystemExit(128 + error.signum) from None
    except Exception as error:
        said = str(error) if isinstance(error, UserError) else _no_place(error)
        if said is None:
            raise
        log.debug("%s", said, exc_info=True)
        if run_dir is not None and _one_of_many():  # the others go on
            raise UserError(said) from error
        print(f"error: {said}", file=sys.stderr)
        if run_dir is not None:
            _remove_if_bare(Path(run_dir))
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("stopped; what was prepared or saved is kept", file=sys.stderr)
        raise SystemExit(130) from None


def _no_place(error: BaseException) -> str | None:
    """What to say of a file that the system refuses; None: it is something else."""
    full = os.strerror(errno.ENOSPC)
    if full in str(error) and not isinstance(error, OSError):  # safetensors and polars have errors of their own
        error = OSError(errno.ENOSPC, full)
    while not isinstance(error, OSError) and error.__cause__:  # logging raises a ValueError from it
        error = error.__cause__
    if not isinstance(error, OSError) or isinstance(error, ConnectionError | TimeoutError):
        return None
    if not error.filename and error.errno != errno.ENOSPC:
        return None
    return (
        f"{error.filename2 or error.filename or 'A file'} cannot be opened or written: {error.strerror}. If it is one "
        "that the command writes, make room or give another place (hydra.run.dir, hydra.sweep.dir, cache_dir, out)."
    )


def _one_of_many() -> bool:
    from hydra.core.hydra_config import HydraConfig

    return HydraConfig.initialized() and not OmegaConf.is_missing(HydraConfig.get().job, "num")


def _remove_if_bare(run_dir: Path) -> None:
    # A quarantine report is what the message refers to: it stays, and so does its folder.
    if run_dir.is_dir() and {path.name for path in run_dir.iterdir()} <= {"log.txt", "config.yaml"}:
        logging.shutdown()
        for path in run_dir.iterdir():
            path.unlink()
        run_dir.rmdir()
