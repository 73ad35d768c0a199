"""What the entry scripts share: build a run, bring it back from its checkpoint, write what it leaves."""

import copy
import json
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from avrec.batch import Ragged, UserError
from avrec.measuring import Asked, Validate, check_baselines, read_columns

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from avrec.data.datamodule import TwoTowerData
    from avrec.evaluation.protocol import Result
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


class Run(NamedTuple):
    """The pieces of a run."""

    cfg: "DictConfig"
    source: Any
    data: "TwoTowerData"
    module: "TwoTowerModule"
    untrained: "ItemTower"
    """A copy as it is before training, and before a checkpoint's weights."""


def build(cfg: "DictConfig") -> Run:
    """The pieces of a config; content is not prepared yet, since weights may bring a tokenizer."""
    from avrec import config

    check_settings(cfg)
    source = config.build_source(cfg)
    data = config.build_data(cfg, source)
    read_columns(data, Asked.of(cfg.evaluation))
    # Not sooner: it takes seconds, and a mistake in the data is said before.
    import pytorch_lightning as pl

    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    validate = Validate(data.tasks["val"], cfg.evaluation.validate)
    module = config.build_module(cfg, data, validate)
    if "diversity" in cfg.evaluation.metrics and module.item_tower.modalities == ["identity"]:
        raise UserError(
            "evaluation.metrics: diversity compares what items are, and no encoder reads content. Leave it out."
        )
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


def of_checkpoint(ckpt: str | Path, root: str | Path | None = None) -> Run:
    """Bring a run back from its checkpoint.

    Args:
        ckpt: in its run folder.
        root: where the catalogue lies now; None: where the run says.

    Raises:
        UserError: there is no such checkpoint, or it does not fit its run.
    """
    from avrec import config

    cfg = config.of_run(ckpt, root)
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
        raise UserError(
            f"ckpt={ckpt} was trained on other items, users or interactions than these: the catalogue is another one, "
            "or has changed. Give a copy from before (data.root=COPY), or train on it as it is now. Exported towers "
            "need no catalogue: python -m avrec.embed."
        )
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


def write_embeddings(module: "TwoTowerModule", data: "TwoTowerData", folder: Path) -> None:
    """The catalogue's embeddings and the test users' queries as Parquet.

    Items go by their ids, users by their numbers (places in ``data.catalogue.user_ids``): no person is named outside
    the catalogue.
    """
    import polars as pl

    folder.mkdir(parents=True, exist_ok=True)
    items = [item.item_id for item in data.catalogue.items]
    users = data.tasks["test"].user_index_E
    for name, key, ids, vectors in (
        ("items", "item_id", items, module.item_ND),
        ("users", "user", users, module.query_ED),
    ):
        pl.DataFrame({key: ids, "vector": vectors.cpu().numpy()}).write_parquet(folder / f"{name}.parquet")


def write_report(
    run: Run,
    results: "Sequence[Result]",
    run_dir: Path,
    path: Path,
    timing: Timing,
    summary: dict[str, Any],
    which: str = "test",
) -> None:
    """Write the report.html of a run measured on ``which``; its curves are in ``run_dir``.

    What goes wrong on the way is a warning: the run itself is done.
    """
    try:
        from avrec.evaluation.ablation import apart
        from avrec.report.facts import gather
        from avrec.report.material import Material
        from avrec.report.page import write

        data, task, known = run.data, run.data.tasks[which], run.data.known(which)
        catalogue, parts, curves = data.catalogue, apart(results), run_dir / "curves.json"
        material = Material(
            name=run_dir.name,
            task=task,
            results=parts.whole,
            query_ED=run.module.query_ED,
            item_ND=run.module.item_ND,
            history=Ragged(known.starts, known.item).take(task.user_index_E),
            items=catalogue.items,
            titles=catalogue.titles,
            user_ids=[str(user) for user in task.user_index_E],
            labels=catalogue.labels,
            label_name=catalogue.label_name,
            hidden=parts.hidden,
            shares=parts.shares,
            health=summary.get("health", {}),
            curve=json.loads(curves.read_text(encoding="utf-8")) if curves.is_file() else [],
            about=_about(run, timing, summary),
        )
        write(gather(material), path)
        log.info("report: %s", path)
    except Exception as error:  # of whatever kind: the numbers are written, and hours of training behind them
        log.warning("%s was not written: %s: %s", path, type(error).__name__, error)


def _about(run: Run, timing: Timing, summary: dict[str, Any]) -> dict[str, str]:
    counts = {name: value for name, value in summary.items() if isinstance(value, int)}
    return {
        "catalogue": str(run.data.catalogue.root),
        **{name.replace("_", " "): f"{value:,}" for name, value in counts.items()},
        "items with": ", ".join(f"{name} {value:,}" for name, value in summary["present"].items()),
        "objective": str(run.cfg.objective.get("_target_", "")).rpartition(".")[2],
        "dimensions": str(run.cfg.dim),
        "seed": str(run.cfg.seed),
        "seconds": ", ".join(f"{name} {seconds:.0f}" for name, seconds in timing.seconds.items()),
    }


def data_summary(data: "TwoTowerData") -> dict[str, Any]:
    """Counts for metrics.json."""
    from avrec.data.splits import ROLES

    return {
        "items": len(data.catalogue.items),
        "users": len(data.catalogue.user_ids),
        "interactions": len(data.catalogue.log),
        **{name: int((data.split.role == role).sum()) for name, role in ROLES.items()},
        "cold_items": int((~data.trained_N).sum()),
        "present": {name: int(c.present_N.sum()) for name, c in data.items.content.items()},
        "dropped": {which: task.dropped for which, task in data.tasks.items()},
    }
