"""The composed config: what a node names is built; a run's config is saved, and read back."""

import importlib
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, errors

from avrec.errors import UserError
from avrec.run.redact import hidden, masked

_PACKAGE = Path(__file__).resolve().parent.parent
CONF = next((path for path in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if path.is_dir()), _PACKAGE / "conf")
"""The config groups: in the wheel beside the code, in a checkout beside the package."""

_PIECES = (
    *("data", "split", "datamodule", "fusion", "item_tower", "user_tower", "score", "objective", "optimizer"),
    *("scheduler", "trainer", "evaluation", "monitor", "seed"),
)
_OF_RUN = "It must be as train.py wrote it: take it from a backup, or train again."


def must_be_given(key: str) -> str:
    """The message for a value that has no default."""
    return f"{key} must be given and is not. Add {key}=VALUE to the command."


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


def command_line() -> str:
    """The command that is running, without secrets; of a sweep's trial, the one that trains it alone."""
    from hydra.core.hydra_config import HydraConfig

    arguments = sys.argv[1:]
    if HydraConfig.initialized() and {"-m", "--multirun"} & set(arguments):
        arguments = list(HydraConfig.get().overrides.task)
    name = Path(sys.argv[0]).name
    return masked(f"{'python ' * name.endswith('.py')}{name} {shlex.join(arguments)}")


def check_settings(cfg: DictConfig) -> None:
    """Refuse what would only be found out at the end of an epoch, or of the run.

    Raises:
        UserError: a seed, metric, k or ``monitor`` that cannot work.
    """
    from avrec.evaluation.evaluator import check_metrics
    from avrec.run.evaluation import check_baselines

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
    for key, example in (("validate", "[ndcg@10]"), ("ks", "[10]"), ("metrics", "[ndcg]"), ("baselines", "[]")):
        if isinstance(given := cfg.evaluation[key], str | None):
            raise UserError(f"evaluation.{key}={given} is not possible. Give a list: evaluation.{key}={example}.")
    check_metrics(cfg.evaluation.metrics, cfg.evaluation.ks)
    check_baselines(cfg.evaluation.baselines)
    measured = list(cfg.evaluation.validate)
    if str(cfg.monitor).removeprefix("val/") not in measured:
        raise UserError(
            f"monitor={cfg.monitor} is not measured: evaluation.validate has {', '.join(measured) or 'nothing'}. "
            f"Give monitor=val/{[*measured, 'ndcg@10'][0]}, or add its metric to evaluation.validate."
        )


def one_of(cfg: Any, *keys: str) -> str:
    """The key of these that has a value.

    Raises:
        UserError: none has, or several have.
    """
    given = [key for key in keys if cfg[key] is not None]
    if len(given) != 1:
        raise UserError(f"Exactly one of {', '.join(keys)} must be given; got {' and '.join(given) or 'none'}.")
    return given[0]


def checkpoint_of(cfg: Any) -> str:
    """The checkpoint that ``ckpt=FILE`` or ``run=FOLDER`` names."""
    return str(cfg.ckpt) if one_of(cfg, "ckpt", "run") == "ckpt" else str(Path(cfg.run) / "checkpoints" / "best.ckpt")


def as_given(cfg: Any, key: str) -> str:
    """A value as it stands on the command line: an id such as 007 is text, whatever the config makes of it."""
    from hydra.core.hydra_config import HydraConfig

    overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else ()
    found = [text.partition("=")[2] for text in overrides if text.partition("=")[0] == key]
    return re.sub(r"^(['\"])(.*)\1$", r"\2", found[-1]) if found else str(cfg[key])


def import_classes(paths: Sequence[str]) -> list[type[Any]]:
    """The classes that somebody names by MODULE.CLASS, whose modules are imported for that.

    Raises:
        UserError: one cannot be imported, or is no class.
    """
    found: list[type[Any]] = []
    for path in paths:
        module, _, name = str(path).rpartition(".")
        try:
            found.append(getattr(importlib.import_module(module), name))
            reason = "" if isinstance(found[-1], type) else "It is no class"
        except Exception as error:  # a module of the user's own raises what it likes
            reason = str(error).partition("\n")[0].rstrip(".") or type(error).__name__
        if reason:
            raise UserError(f"classes=[{path}]: {reason}. Give MODULE.CLASS, from this folder or PYTHONPATH.")
    return found
