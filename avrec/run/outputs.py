"""The outputs of a run: embeddings, report, summary of the data."""

import json
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from avrec.data.splits import ROLES
from avrec.evaluation.results import Result
from avrec.io import moment
from avrec.ranking_task import Ragged
from avrec.report.data import gather
from avrec.report.inputs import ReportInputs
from avrec.report.page import write
from avrec.run.build import Run
from avrec.run.config import command_line
from avrec.run.tracking import code_version

if TYPE_CHECKING:
    from avrec.data.datamodule import TwoTowerData
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


def write_embeddings(module: "TwoTowerModule", data: "TwoTowerData", folder: Path) -> None:
    """The catalogue's embeddings and the test users' queries as Parquet.

    Items are named by their ids, users by their index in ``data.catalogue.user_ids``, so that no user id leaves the
    catalogue.
    """
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
    results: Sequence[Result],
    run_dir: Path,
    path: Path,
    timing: Timing,
    summary: dict[str, Any],
    split: str = "test",
) -> None:
    """Write the report.html of a run evaluated on ``split``; its curves are in ``run_dir``.

    An error is logged as a warning: the results are written already.
    """
    try:
        data, task, known = run.data, run.data.tasks[split], run.data.known(split)
        catalogue, curves = data.catalogue, run_dir / "curves.json"
        inputs = ReportInputs(
            name=run_dir.name,
            task=task,
            results=results,
            query_ED=run.module.query_ED,
            item_ND=run.module.item_ND,
            history=Ragged(known.starts, known.item).take(task.user_index_E),
            items=catalogue.items,
            titles=catalogue.titles,
            user_ids=[str(user) for user in task.user_index_E],
            labels=catalogue.labels,
            label_name=catalogue.label_name,
            health=summary.get("health", {}),
            curve=json.loads(curves.read_text(encoding="utf-8")) if curves.is_file() else [],
            about=_about(run, timing, summary),
        )
        write(gather(inputs), path)
        log.info("report: %s", path)
    except Exception as error:  # a report is not worth the end of a run
        log.warning("%s was not written: %s: %s", path, type(error).__name__, error)


def _about(run: Run, timing: Timing, summary: dict[str, Any]) -> dict[str, str]:
    counts = {name: value for name, value in summary.items() if isinstance(value, int)}
    rates = {name: value for name, value in run.cfg.optimizer.items() if str(name).endswith("lr")}
    about = {
        "date": moment(time.time()),
        "command": command_line(),
        "commit": code_version()["commit"],
        "catalogue": str(run.data.catalogue.root),
        **{name.replace("_", " "): f"{value:,}" for name, value in counts.items()},
        "items with": ", ".join(f"{name} {value:,}" for name, value in summary["present"].items()),
        "objective": str(run.cfg.objective.get("_target_", "")).rpartition(".")[2],
        "learning rate": ", ".join(f"{name} {value:g}" for name, value in rates.items()),
        "dimensions": str(run.cfg.dim),
        "seed": str(run.cfg.seed),
        "seconds": ", ".join(f"{name} {seconds:.0f}" for name, seconds in timing.seconds.items()),
    }
    return {name: value for name, value in about.items() if value}


def data_summary(data: "TwoTowerData") -> dict[str, Any]:
    """Counts for metrics.json."""
    return {
        "items": len(data.catalogue.items),
        "users": len(data.catalogue.user_ids),
        "interactions": len(data.catalogue.log),
        **{name: int((data.split.role == role).sum()) for name, role in ROLES.items()},
        "cold_items": int((~data.trained_N).sum()),
        "present": {name: int(c.present_N.sum()) for name, c in data.items.content.items()},
        "dropped": {split: task.dropped for split, task in data.tasks.items()},
    }
