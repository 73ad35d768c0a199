"""What a run logs besides its curves: config, code version, data, the final table, and files.

Nothing names a user, and the config comes without secrets (``config.plain``).
"""

import json
import logging
import platform
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avrec.errors import UserError

if TYPE_CHECKING:
    import pytorch_lightning as pl

    from avrec.evaluation.results import Result

log = logging.getLogger(__name__)

FILES = {"checkpoint": "checkpoints/best.ckpt", "item_tower": "item_tower", "report": "report.html"}
"""Artifacts by name: their paths in the run folder."""


@cache
def code_version() -> dict[str, str]:
    """Versions of avrec, Python and torch, and the git commit of a checkout (with ``+`` if files differ from it)."""
    import torch

    def git(*arguments: str) -> str:
        here = Path(__file__).resolve().parent
        try:
            done = subprocess.run(["git", "-C", str(here), *arguments], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return ""
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        own = version("avrec")
    except PackageNotFoundError:
        own = "not installed"
    commit = git("rev-parse", "HEAD")
    changed = "+" if commit and git("status", "--porcelain", "--untracked-files=no") else ""
    return {
        "avrec": own,
        "commit": commit + changed,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
    }


@contextmanager
def tracked(trainer: "pl.Trainer", config: Mapping[str, Any], data: Mapping[str, Any]) -> Iterator[None]:
    """Describe the run to every tracker; close the trackers at the end, also after an error.

    Args:
        trainer: with its loggers.
        config: plain, resolved, without secrets.
        data: fingerprint and counts.

    Raises:
        UserError: a tracker cannot start.
    """
    from avrec.run.config import third_party

    failed, begun = True, list[Any]()
    try:
        for logger in list[Any](trainer.loggers):
            with third_party(f"logger.{_kind(logger)}"):
                logger.log_hyperparams({**config, "code": code_version(), "catalogue": dict(data)})
                begun.append(logger)
                if _kind(logger) == "wandb":
                    _read_by(logger.experiment, data)
        yield
        failed = False
    except UserError as error:
        if "No API key" in str(error):
            raise UserError(
                "logger.wandb.offline=false needs an API key of W&B. Run wandb login, or keep offline=true and upload "
                "the run later with wandb sync."
            ) from error
        raise
    finally:
        for logger in begun:  # finalize would start one that could not begin once more
            logger.finalize("failed" if failed else "success")
            if _kind(logger) == "wandb":
                logger.experiment.finish(exit_code=int(failed))


def send(
    trainer: "pl.Trainer",
    run_dir: Path,
    results: "Sequence[Result]",
    metrics: Mapping[str, float],
    fingerprint: str,
    most_mib: float,
) -> None:
    """Log a finished run's numbers, table and files.

    Args:
        trainer: with its loggers.
        run_dir: the folder with ``FILES``.
        results: the final table.
        metrics: the model's numbers by name, logged under ``test/``.
        fingerprint: of the catalogue; each artifact carries it, with the run's name and the code version.
        most_mib: larger artifacts are not sent; 0: none is.
    """
    if not trainer.loggers:
        return
    about = {"catalogue": fingerprint, "run": run_dir.name, **code_version()}
    numbers = {f"test/{name}": value for name, value in metrics.items()}
    found = {name: run_dir / path for name, path in FILES.items() if (run_dir / path).exists()}
    files = {name: path for name, path in found.items() if _mib(path) <= most_mib}
    kept = found.keys() - files.keys()
    if kept:
        log.info("not sent, larger than artifacts_mib=%s: %s", most_mib, ", ".join(sorted(kept)))
    rows = [
        {"model": r.model, "slice": r.slice, "metric": r.metric, "value": r.value, "low": r.low, "high": r.high}
        for r in results
    ]
    senders = {"wandb": _to_wandb, "mlflow": _to_mlflow, "tensorboard": _to_tensorboard}
    for logger in trainer.loggers:
        logger.log_metrics(numbers)
        if sender := senders.get(_kind(logger)):
            sender(logger, rows, files, about)


def _kind(logger: Any) -> str:
    return type(logger).__name__.removesuffix("Logger").lower()


def _mib(path: Path) -> float:
    parts = path.rglob("*") if path.is_dir() else [path]
    return sum(part.stat().st_size for part in parts if part.is_file()) / 2**20


def _read_by(run: Any, data: Mapping[str, Any]) -> None:
    """Link a run to its catalogue in W&B: an artifact of fingerprint and counts that all its runs share."""
    import wandb

    path = Path(run.dir).parent / "catalogue.json"
    path.write_text(json.dumps(data, indent=2, sort_keys=True), encoding="utf-8")
    artifact = wandb.Artifact(f"catalogue-{data['fingerprint']}", type="dataset", metadata=dict(data))
    artifact.add_file(str(path), policy="immutable", skip_cache=True)
    if run.offline:  # W&B refuses use_artifact
        run.log_artifact(artifact)
    else:
        run.use_artifact(artifact)


def _to_wandb(logger: Any, rows: list[dict[str, Any]], files: dict[str, Path], about: Mapping[str, Any]) -> None:
    import wandb

    run = logger.experiment
    run.log({"results": wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])})
    for name, path in files.items():
        artifact = wandb.Artifact(f"{name}-{run.id}", type=name, metadata=dict(about))
        # Immutable: sent from where it lies, not copied first.
        add = artifact.add_dir if path.is_dir() else artifact.add_file
        add(str(path), policy="immutable", skip_cache=True)
        run.log_artifact(artifact)
    if run.offline:
        log.info("W&B is offline; to upload this run: wandb sync %s", Path(run.dir).parent)


def _to_mlflow(logger: Any, rows: list[dict[str, Any]], files: dict[str, Path], about: Mapping[str, Any]) -> None:
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    logger.experiment.log_table(logger.run_id, columns, "results.json")
    for key, value in about.items():
        logger.experiment.set_tag(logger.run_id, f"avrec.{key}", str(value))
    for name, path in files.items():
        log_files = logger.experiment.log_artifacts if path.is_dir() else logger.experiment.log_artifact
        log_files(logger.run_id, str(path), name)


def _to_tensorboard(logger: Any, rows: list[dict[str, Any]], files: dict[str, Path], about: Mapping[str, Any]) -> None:
    lines = [" | ".join(f"{v:.4f}" if isinstance(v, float) else str(v) for v in row.values()) for row in rows]
    head = [" | ".join(rows[0]), " | ".join("---" for _ in rows[0])]
    logger.experiment.add_text("results", "\n".join([*head, *lines]))
