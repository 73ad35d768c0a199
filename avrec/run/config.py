"""The composed config: what a node names is built; a run's config is saved, and read back."""

import importlib
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from avrec.errors import UserError
from avrec.run.redact import hidden, masked
from avrec.run.validation import CONF as CONF
from avrec.run.validation import REQUIRED, validate_node

_OF_RUN = "It must be as train.py wrote it: take it from a backup, or train again."


# Their refusals of what a config names are a user's mistake; any other exception is a developer's.
_LIBRARIES = ("pytorch_lightning", "lightning_fabric", "optuna", "wandb", "mlflow")


def instantiate(node: Any, where: str, **more: Any) -> Any:
    """Build what a config node names, with ``more`` that the config cannot hold; ``where`` is its key, for messages.

    Raises:
        UserError: an argument that does not fit the target's signature, a missing package, or a value that Lightning
            or another library refuses. A constructor's own exception passes through, with its traceback.
    """
    import hydra
    from hydra.errors import InstantiationException

    resolved = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    partial = isinstance(resolved, dict) and resolved.get("_partial_")
    validate_node(resolved, where, None if partial else list(more))
    try:
        if not more:
            return hydra.utils.instantiate(node)
        # Not handed to Hydra: it would turn dataclasses into configs.
        return hydra.utils.instantiate(node, _partial_=True)(**more)
    except Exception as error:
        cause: BaseException = error
        while isinstance(cause, InstantiationException) and cause.__cause__:
            cause = cause.__cause__
        refused = (str(resolved.get("_target_")), type(cause).__module__) if isinstance(resolved, dict) else ()
        if not isinstance(cause, UserError) and any(name.startswith(_LIBRARIES) for name in refused):
            raise UserError(_invalid(where, cause)) from error
        if cause is error:
            raise
        raise cause from None


@contextmanager
def third_party(where: str) -> Iterator[None]:
    """A block of calls to another library: what it refuses is a mistake in what was given under the key ``where``.

    Raises:
        UserError: in place of whatever the block raises.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(_invalid(where, error)) from error


def _invalid(where: str, error: BaseException) -> str:
    return f"Invalid `{where}`: {(str(error).strip() or type(error).__name__).splitlines()[0]}"


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
        raise UserError(f"`ckpt` must be a run's checkpoint, RUN/checkpoints/best.ckpt; {ckpt} is not a file.")
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
    missing = [
        key for key in (*REQUIRED, "evaluation", "monitor", "seed") if not isinstance(cfg, DictConfig) or key not in cfg
    ]
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
        raise UserError(f"`run_dir` must be Hydra's output folder; got {cfg.run_dir}. Use hydra.run.dir={cfg.run_dir}.")


def command_line() -> str:
    """The command that is running, without secrets; of a sweep's trial, the one that trains it alone."""
    from hydra.core.hydra_config import HydraConfig

    arguments = sys.argv[1:]
    if HydraConfig.initialized() and {"-m", "--multirun"} & set(arguments):
        arguments = list(HydraConfig.get().overrides.task)
    name = Path(sys.argv[0]).name
    return masked(f"{'python ' * name.endswith('.py')}{name} {shlex.join(arguments)}")


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
            raise UserError(f"`classes` must name MODULE.CLASS of this folder or PYTHONPATH; got {path}: {reason}.")
    return found
