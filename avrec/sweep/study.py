"""A sweep's study: which trial is next, what became of it, and what it all came to.

Optuna chooses and remembers; Hydra composes and runs (avrec/sweep/hydra_sweeper.py).
"""

import itertools
import math
import os
import re
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from avrec.errors import UserError
from avrec.io import atomic_write
from avrec.run.redact import masked

if TYPE_CHECKING:
    import optuna
    from filelock import FileLock

NAME = "avrec"
TRIAL = "AVREC_TRIAL"
"""Environment variable of a run inside a sweep: NUMBER@FOLDER."""
NO_VALUE = "no value"
ENDS = ("COMPLETE", "PRUNED", "FAIL")


class Trial(NamedTuple):
    """A trial that this process works on.

    Attributes:
        handle: Optuna's; its number is its run folder's name.
        overrides: ``key=value``.
        lock: held as long as this process lives, or until the trial is told.
    """

    handle: "optuna.Trial"
    overrides: list[str]
    lock: "FileLock"


class Study:
    """Trials in a folder's study.db. Several processes may work on it, and what one leaves unfinished another takes up.

    Args:
        folder: of the sweep. Locks need a file system that has them, as SQLite does.
        space: distributions by key.
        given: the other overrides, the same for all trials; kept and shown without their secrets.
        n_trials: how many in all, whichever process runs them. A study without a sampler is the whole grid.
        sampler: chooses; None: every combination of the space's choices, in order.
        direction: maximize or minimize.
        metric: what the values are, for the pictures.

    Raises:
        UserError: the folder holds a sweep over something else, or no study that can be read; a grid over a range.
    """

    def __init__(
        self,
        folder: str | Path,
        space: "Mapping[str, optuna.distributions.BaseDistribution]",
        given: Sequence[str] = (),
        n_trials: int = 20,
        sampler: Any = None,
        direction: Literal["maximize", "minimize"] = "maximize",
        metric: str = "value",
    ) -> None:
        import optuna

        if sampler is None and not all(hasattr(distribution, "choices") for distribution in space.values()):
            raise UserError("A grid has choices for every key. Give key=1,2,3, or sweep=optuna for ranges.")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.folder, self.space, self.metric = Path(folder), dict(space), metric
        self.given = [masked(one) for one in given]
        self.folder.mkdir(parents=True, exist_ok=True)
        with lock_of(self.folder, "study"):
            try:
                self.study = optuna.create_study(
                    storage=storage_of(self.folder),
                    study_name=NAME,
                    direction=direction,
                    sampler=sampler,
                    load_if_exists=True,
                )
            except Exception as error:  # SQLite, SQLAlchemy and Optuna each refuse in their own way
                raise UserError(
                    f"{self.folder / 'study.db'} cannot be used as a study: {str(error).splitlines()[0]}. "
                    "Give another folder: hydra.sweep.dir=FOLDER."
                ) from error
            about = {"given": sorted(self.given), "space": {key: repr(value) for key, value in sorted(space.items())}}
            begun = self.study.user_attrs
            if not begun:
                if sampler is None:
                    self._enqueue_grid()
                for key, value in about.items():
                    self.study.set_user_attr(key, value)
            elif begun != about or self.study.direction.name != direction.upper():
                raise UserError(
                    f"{self.folder} holds a sweep of other settings: {' '.join(begun['given'])} over "
                    f"{', '.join(begun['space'])}, hydra.sweeper.direction={self.study.direction.name.lower()}. "
                    "Give the same, or another folder: hydra.sweep.dir=FOLDER."
                )
        self.n_trials = len(self.study.trials) if sampler is None else n_trials

    def _enqueue_grid(self) -> None:
        for values in itertools.product(*(distribution.choices for distribution in self.space.values())):  # type: ignore[attr-defined]
            self.study.enqueue_trial(dict(zip(self.space, values, strict=True)), skip_if_exists=True)

    def claim(self) -> Trial | None:
        """The next trial: one whose process is gone, else a new one; None where all are done or in others' hands."""
        import optuna
        from filelock import Timeout

        with lock_of(self.folder, "study"):
            trials = self.study.get_trials(deepcopy=False)
            for trial in trials:
                if trial.state.name == "RUNNING":
                    lock = lock_of(self.folder, str(trial.number))
                    try:
                        lock.acquire(blocking=False)
                    except Timeout:
                        continue
                    return self._taken(optuna.trial.Trial(self.study, trial._trial_id), lock)
            if len(trials) >= self.n_trials and not any(trial.state.name == "WAITING" for trial in trials):
                return None
            found = self.study.ask()
            lock = lock_of(self.folder, str(found.number))
            lock.acquire()
            return self._taken(found, lock)

    def _taken(self, trial: "optuna.Trial", lock: "FileLock") -> Trial:
        trial.set_user_attr("taken", time.time())
        # What a dead process had already drawn stays as it is.
        values = {name: trial._suggest(name, distribution) for name, distribution in self.space.items()}
        return Trial(trial, [f"{name}={value}" for name, value in values.items()], lock)

    def tell(self, trial: Trial, outcome: Any) -> str:
        """Record what became of a trial, its value or the exception that ended it, and let go of it.

        Returns:
            It in a line.
        """
        with lock_of(self.folder, "study"):
            # Optuna's duration counts from the first process that took it, dead or not.
            trial.handle.set_user_attr("seconds", round(time.time() - trial.handle.user_attrs["taken"], 1))
            told = self._record(trial.handle, outcome)
            trial.lock.release()
        return ": ".join(filter(None, (f"trial {trial.handle.number}", " ".join(trial.overrides), told)))

    def _record(self, handle: "optuna.Trial", outcome: Any) -> str:
        from optuna.trial import TrialState

        if type(outcome).__name__ == "TrialPruned":
            self.study.tell(handle, state=TrialState.PRUNED)
            return "pruned"
        if isinstance(outcome, int | float) and math.isfinite(outcome):
            self.study.tell(handle, float(outcome))
            return f"{outcome:.4f}"
        said = f"{self.metric} is {outcome}" if isinstance(outcome, int | float) else str(outcome)
        reason = NO_VALUE if outcome is None else shareable((said or type(outcome).__name__).splitlines()[0])
        handle.set_user_attr("error", reason)
        self.study.tell(handle, state=TrialState.FAIL)
        return reason if outcome is None else f"failed: {reason}"

    def best_command(self) -> str | None:
        """The command line that trains the best trial's model in full; None without a finished trial."""
        if not any(trial.state.name == "COMPLETE" for trial in self.study.get_trials(deepcopy=False)):
            return None
        best = [f"{name}={value}" for name, value in self.study.best_params.items()]
        return shlex.join(["python", "train.py", *self.given, *best])

    def rows(self) -> list[dict[str, Any]]:
        """A row for each trial, best first."""
        sign = -1 if self.study.direction.name == "MAXIMIZE" else 1
        trials = self.study.get_trials(deepcopy=False)

        def place(trial: "optuna.trial.FrozenTrial") -> tuple[int, float]:
            value = trial.value if trial.value is not None else 0.0
            return (ENDS.index(trial.state.name) if trial.state.name in ENDS else len(ENDS)), sign * value

        return [
            {
                "trial": trial.number,
                "state": trial.state.name.lower(),
                "value": None if trial.value is None else round(trial.value, 6),
                **{name: trial.params.get(name) for name in self.space},
                "seconds": trial.user_attrs.get("seconds"),
                "error": trial.user_attrs.get("error"),
            }
            for trial in sorted(trials, key=place)
        ]

    def write(self) -> list[dict[str, Any]]:
        """Write trials.csv, and sweep.html with the table, the best command and pictures.

        Returns:
            The table's rows.
        """
        import csv
        import io

        rows, text = self.rows(), io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]) if rows else [])
        writer.writeheader()
        writer.writerows(rows)
        for name, content in (("trials.csv", text.getvalue()), ("sweep.html", self._page(rows))):
            with atomic_write(self.folder / name) as file:
                file.write(content)
        return rows

    def _page(self, rows: list[dict[str, Any]]) -> str:
        def cells(tag: str, values: Sequence[Any]) -> str:
            return f"<tr>{''.join(f'<{tag}>{escape(brief(value))}</{tag}>' for value in values)}</tr>"

        names = [name.rpartition(".")[2] for name in rows[0]] if rows else []
        table = cells("th", names) + "".join(cells("td", list(row.values())) for row in rows)
        best = self.best_command() or "No trial was completed."
        return (
            f"<!doctype html><meta charset=utf-8><title>{escape(self.folder.name)}</title><style>{_STYLE}</style>"
            f"<h1>{escape(self.folder.name)}</h1><h2>The best</h2><pre>{escape(best)}</pre>"
            f"{''.join(self._pictures())}<h2>Trials</h2><p>Value: {escape(self.metric)}.</p>"
            f"<div class=wide><table>{table}</table></div>"
        )

    def _pictures(self) -> list[str]:
        """Importance, parallel coordinates and the course of the sweep, as HTML; plotly's script with the first."""
        import optuna.importance
        from optuna import visualization

        done = [trial for trial in self.study.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]
        if not done or not visualization.is_available():  # Optuna without plotly
            return []
        varied = [name for name in self.space if len({str(trial.params[name]) for trial in done}) > 1]
        figures = [
            ("The course of the sweep", visualization.plot_optimization_history(self.study, target_name=self.metric))
        ]
        if varied:
            figure = visualization.plot_parallel_coordinate(self.study, params=varied, target_name=self.metric)
            figures.append(("All trials", figure))
        if len(done) >= 4 and len(varied) > 1:
            evaluator = optuna.importance.PedAnovaImportanceEvaluator()
            figure = visualization.plot_param_importances(
                self.study, evaluator=evaluator, params=varied, target_name=self.metric
            )
            figures.insert(0, ("What matters", figure))
        pages: list[str] = []
        for title, figure in figures:
            figure.update_layout(title=None, template="plotly_white", height=420, margin={"t": 40})
            settings = {"include_plotlyjs": not pages, "config": {"displayModeBar": False}}
            pages.append(f"<h2>{title}</h2>{figure.to_html(full_html=False, **settings)}")
        return pages


_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "pre{background:#f4f4f4;padding:1rem;white-space:pre-wrap}table{border-collapse:collapse;font-size:13px}"
    "td,th{padding:.25rem .7rem;border-bottom:1px solid #ddd;text-align:left;white-space:nowrap}"
    ".wide{overflow-x:auto}"
)


def brief(value: Any) -> str:
    """A cell of a table."""
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def shareable(reason: str) -> str:
    """What ended a trial, as a study keeps it: without secrets, and without what is quoted where it speaks of users.

    >>> shareable("users.csv: user_id 'x@y' names 2 rows")
    "users.csv: user_id '…' names 2 rows"
    """
    quoted = r"(?<!\w)([\"'])(?:\\.|(?!\1).)*\1"
    return masked(re.sub(quoted, "'…'", reason) if "user" in reason.lower() else reason)


def lock_of(folder: Path, name: str) -> "FileLock":
    """A lock that ends with its process: ``study``, for all that writes to the study, or a trial's number.

    SQLite alone makes writers wait for each other only as long as none of them has read before.
    """
    from filelock import FileLock

    (folder / "locks").mkdir(exist_ok=True)
    return FileLock(folder / "locks" / f"{name}.lock")


def storage_of(folder: Path) -> Any:
    """The SQLite file of a sweep's folder."""
    import optuna

    # A second process waits for a lock rather than fail.
    url = f"sqlite:///{folder.resolve() / 'study.db'}"
    return optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 60}})


def reporter(pruner: Any) -> Callable[[int, float], None]:
    """What a run inside a sweep reports its validations to.

    Args:
        pruner: Optuna's; None: nothing is stopped.

    Returns:
        A function of (how many validations, value). It raises ``optuna.TrialPruned`` where that was enough.
    """
    import optuna

    number, _, place = os.environ[TRIAL].partition("@")
    folder, pruner = Path(place), pruner or optuna.pruners.NopPruner()
    with lock_of(folder, "study"):
        study = optuna.load_study(study_name=NAME, storage=storage_of(folder), pruner=pruner)
        trial = optuna.trial.Trial(study, study.get_trials(deepcopy=False)[int(number)]._trial_id)

    def report(step: int, value: float) -> None:
        with lock_of(folder, "study"):
            trial.report(value, step)
            if trial.should_prune():
                raise optuna.TrialPruned

    return report
