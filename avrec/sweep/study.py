"""A sweep's Optuna study: the next trial, the record of each, and the summary of all.

Optuna chooses and remembers; Hydra composes and runs (avrec/sweep/hydra_sweeper.py).
"""

import csv
import io
import itertools
import math
import os
import re
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, NamedTuple

import optuna
from filelock import FileLock, Timeout
from hydra.core.override_parser.types import IntervalSweep, Override
from jinja2 import Environment, StrictUndefined
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from avrec.errors import UserError
from avrec.io import atomic_write
from avrec.run.redact import masked
from avrec.sweep import TRIAL

NAME = "avrec"
NO_VALUE = "no value"
ENDS = [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL]
ENOUGH = 10
"""Completed trials from which importances are shown."""


class Trial(NamedTuple):
    """A trial that this process runs.

    Attributes:
        number: Optuna's; also the name of the run's folder.
        overrides: ``key=value``.
        began: Unix time at which this process took it.
        lock: held until the trial is recorded or its process ends.
    """

    number: int
    overrides: list[str]
    began: float
    lock: FileLock


class Study:
    """The trials in a folder's study.db, which several processes may share; one takes up what another left unfinished.

    Args:
        folder: of the sweep, on a file system with locks.
        space: distributions by key.
        given: the overrides that all trials share; stored and shown without their secrets.
        n_trials: total over all processes; ignored without a sampler.
        sampler: Optuna's; None: the grid, every combination of the choices in order.
        direction: maximize or minimize.
        metric: name of the values.

    Raises:
        UserError: the folder holds another sweep or an unreadable study; a grid over a range.
    """

    def __init__(
        self,
        folder: str | Path,
        space: Mapping[str, BaseDistribution],
        given: Sequence[str] = (),
        n_trials: int = 20,
        sampler: optuna.samplers.BaseSampler | None = None,
        direction: Literal["maximize", "minimize"] = "maximize",
        metric: str = "value",
    ) -> None:
        for key, distribution in space.items():
            if sampler is None and not isinstance(distribution, CategoricalDistribution):
                raise UserError(
                    f"A grid needs choices for every key; {key} is a range. Use {key}=1,2,3 or sweep=optuna."
                )
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.folder, self.space, self.metric = Path(folder), dict(space), metric
        self.given = [masked(one) for one in given]
        self.folder.mkdir(parents=True, exist_ok=True)
        with lock_of(self.folder, "study"):
            try:
                self.storage = storage_of(self.folder)
                self.study = optuna.create_study(
                    storage=self.storage, study_name=NAME, direction=direction, sampler=sampler, load_if_exists=True
                )
            except Exception as error:  # SQLite, SQLAlchemy and Optuna each have their own
                raise UserError(
                    f"{self.folder / 'study.db'} is not a readable study: {str(error).splitlines()[0]}. "
                    "Choose another folder with hydra.sweep.dir=FOLDER."
                ) from error
            self._begin(sampler is None, direction)
        self.n_trials = len(self._trials()) if sampler is None else n_trials

    def _begin(self, grid: bool, direction: str) -> None:
        about = {"given": sorted(self.given), "space": {key: repr(value) for key, value in sorted(self.space.items())}}
        begun, own = self.study.user_attrs, self.study.direction.name.lower()
        if begun and (begun != about or own != direction):
            raise UserError(
                f"{self.folder} holds a sweep with other settings: {' '.join(begun['given'])} over "
                f"{', '.join(begun['space'])}, hydra.sweeper.direction={own}. "
                "Repeat these, or choose another folder with hydra.sweep.dir=FOLDER."
            )
        if not begun and grid:
            # Not GridSampler: its order is random, and it stops a study inside Study.optimize only.
            for values in itertools.product(*(one.choices for one in self.space.values())):  # type: ignore[attr-defined]
                self.study.enqueue_trial(dict(zip(self.space, values, strict=True)), skip_if_exists=True)
        for key, value in about.items():
            self.study.set_user_attr(key, value)

    def _trials(self, *states: TrialState) -> list[FrozenTrial]:
        """Trials without those that died before they had all their values, which others replace."""
        trials = self.study.get_trials(deepcopy=False, states=states or None)
        return [trial for trial in trials if trial.state != TrialState.FAIL or "seconds" in trial.user_attrs]

    def claim(self) -> Trial | None:
        """The next trial: one whose process died, else a new one; None once all are finished or taken."""
        with lock_of(self.folder, "study"):
            for orphan in self._trials(TrialState.RUNNING):
                lock = lock_of(self.folder, str(orphan.number))
                try:
                    lock.acquire(blocking=False)
                except Timeout:
                    continue
                if orphan.params.keys() == self.space.keys():
                    return self._taken(orphan.number, orphan.params, lock)
                self.study.tell(orphan.number, state=TrialState.FAIL)
                self.study.enqueue_trial(orphan.system_attrs.get("fixed_params", orphan.params))
                lock.release()
            if len(self._trials()) >= self.n_trials and not self._trials(TrialState.WAITING):
                return None
            trial = self.study.ask(self.space)
            lock = lock_of(self.folder, str(trial.number))
            lock.acquire()
            return self._taken(trial.number, trial.params, lock)

    def _taken(self, number: int, params: Mapping[str, Any], lock: FileLock) -> Trial:
        return Trial(number, [f"{name}={params[name]}" for name in self.space], time.time(), lock)

    def tell(self, trial: Trial, outcome: Any) -> str:
        """Record a trial's value, or the exception that ended it, and release the trial.

        Returns:
            One line about it.
        """
        with lock_of(self.folder, "study"):
            # Optuna's duration includes the time between a process's death and the next one's start.
            self._note(trial, "seconds", round(time.time() - trial.began, 1))
            told = self._record(trial, outcome)
            trial.lock.release()
        return ": ".join(filter(None, (f"trial {trial.number}", " ".join(trial.overrides), told)))

    def _note(self, trial: Trial, key: str, value: Any) -> None:
        self.storage.set_trial_user_attr(id_of(self.storage, trial.number), key, value)

    def _record(self, trial: Trial, outcome: Any) -> str:
        if isinstance(outcome, optuna.TrialPruned):
            self.study.tell(trial.number, state=TrialState.PRUNED)
            return "pruned"
        is_number = isinstance(outcome, int | float)
        if is_number and math.isfinite(outcome):
            self.study.tell(trial.number, float(outcome))
            return f"{outcome:.4f}"
        said = f"{self.metric} is {outcome}" if is_number else str(outcome) or type(outcome).__name__
        reason = NO_VALUE if outcome is None else shareable(said.splitlines()[0])
        self._note(trial, "error", reason)
        self.study.tell(trial.number, state=TrialState.FAIL)
        return reason if outcome is None else f"failed: {reason}"

    def best_command(self) -> str | None:
        """The command that trains the best trial's model in full; None without a completed trial."""
        if not self._trials(TrialState.COMPLETE):
            return None
        best = [f"{name}={value}" for name, value in self.study.best_params.items()]
        return shlex.join(["python", "train.py", *self.given, *best])

    def rows(self) -> list[dict[str, Any]]:
        """One row per trial, best first."""
        sign = -1 if self.study.direction.name == "MAXIMIZE" else 1

        def place(trial: FrozenTrial) -> tuple[int, float]:
            return (ENDS.index(trial.state) if trial.state in ENDS else len(ENDS)), sign * (trial.value or 0.0)

        return [
            {
                "trial": trial.number,
                "state": trial.state.name.lower(),
                "value": None if trial.value is None else round(trial.value, 6),
                **{name: trial.params.get(name) for name in self.space},
                "seconds": trial.user_attrs.get("seconds"),
                "error": trial.user_attrs.get("error"),
            }
            for trial in sorted(self._trials(), key=place)
        ]

    def write(self) -> list[dict[str, Any]]:
        """Write trials.csv, and sweep.html with the best command, the charts and the table.

        Returns:
            The table's rows.
        """
        rows, text = self.rows(), io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]) if rows else [])
        writer.writeheader()
        writer.writerows(rows)
        for name, content in (("trials.csv", text.getvalue()), ("sweep.html", self._page(rows))):
            with atomic_write(self.folder / name) as file:
                file.write(content)
        return rows

    def _page(self, rows: list[dict[str, Any]]) -> str:
        done = self._trials(TrialState.COMPLETE)
        varied = [name for name in self.space if len({str(trial.params[name]) for trial in done}) > 1]
        importances: dict[str, float] = {}
        if len(done) >= ENOUGH and len(varied) > 1:
            evaluator = optuna.importance.PedAnovaImportanceEvaluator()
            importances = optuna.importance.get_param_importances(self.study, evaluator=evaluator, params=varied)
        environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        template = environment.from_string((files("avrec.sweep") / "template.html").read_text(encoding="utf-8"))
        return template.render(
            title=self.folder.name,
            metric=self.metric,
            best=self.best_command(),
            completed=len(done),
            enough=ENOUGH,
            importances=importances,
            charts=self._charts(varied) if done else [],
            axes=len(varied) + 1,
            columns=[name.rpartition(".")[2] for name in rows[0]] if rows else [],
            rows=[[brief(value) for value in row.values()] for row in rows],
        )

    def _charts(self, varied: list[str]) -> list[tuple[str, str]]:
        """Optimization history and parallel coordinates: titles and HTML; plotly's script comes with the first."""
        from optuna import visualization

        if not visualization.is_available():  # Optuna without plotly
            return []
        figures = {"Optimization history": visualization.plot_optimization_history(self.study, target_name=self.metric)}
        if varied:
            figures["Parallel coordinates"] = visualization.plot_parallel_coordinate(
                self.study, params=varied, target_name=self.metric
            )
        charts: list[tuple[str, str]] = []
        for title, figure in figures.items():
            legend = {"orientation": "h", "x": 0, "xanchor": "left", "y": 1, "yanchor": "bottom"}
            figure.update_layout(
                **{"title": None, "template": "plotly_white", "height": 380, "legend": legend},
                **dict.fromkeys(("paper_bgcolor", "plot_bgcolor"), "rgba(0,0,0,0)"),
                margin={"l": 50, "r": 20, "t": 40, "b": 50},
            )
            figure.update_annotations(font_color=None)
            settings = {"config": {"displayModeBar": False, "responsive": True}, "include_plotlyjs": not charts}
            charts.append((title, figure.to_html(full_html=False, **settings)))
        return charts


def distribution_of(override: Override) -> BaseDistribution:
    """Optuna's distribution for a sweep of Hydra's grammar; choices are strings, as on a command line.

    Raises:
        UserError: the range is empty, or logarithmic and not positive.
    """
    value = override.value()
    if not isinstance(value, IntervalSweep):
        return CategoricalDistribution(list(override.sweep_string_iterator()))
    whole = isinstance(value.start, int) and isinstance(value.end, int)
    make: Any = IntDistribution if whole else FloatDistribution
    try:
        made: BaseDistribution = make(value.start, value.end, log="log" in value.tags)
    except (ValueError, TypeError) as error:
        raise UserError(f"Invalid range {override.input_line}: {error}") from error
    return made


def brief(value: Any) -> str:
    """A table's cell."""
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def shareable(reason: str) -> str:
    """An error message as a study keeps it: without secrets, and without quotations where it mentions users.

    >>> shareable("users.csv: user_id 'x@y' names 2 rows")
    "users.csv: user_id '…' names 2 rows"
    """
    quoted = r"(?<!\w)([\"'])(?:\\.|(?!\1).)*\1"
    return masked(re.sub(quoted, "'…'", reason) if "user" in reason.lower() else reason)


def lock_of(folder: Path, name: str) -> FileLock:
    """A lock that ends with its process: ``study``, for all access to the study, or a trial's number.

    SQLite alone fails a writer that has read before another one wrote. Optuna's heartbeat runs in ``Study.optimize``
    only, one trial per call, and recovers a dead process's trial only if another trial begins after a grace period;
    ``MaxTrialsCallback`` counts after a trial, so that processes overshoot.
    """
    (folder / "locks").mkdir(exist_ok=True)
    return FileLock(folder / "locks" / f"{name}.lock")


def storage_of(folder: Path) -> RDBStorage:
    """The SQLite file in a sweep's folder; a second process waits for its lock."""
    return RDBStorage(f"sqlite:///{folder.resolve() / 'study.db'}", engine_kwargs={"connect_args": {"timeout": 60}})


def id_of(storage: RDBStorage, number: int) -> int:
    """The storage's id of a trial."""
    return storage.get_trial_id_from_study_id_trial_number(storage.get_study_id_from_name(NAME), number)


def reporter(pruner: optuna.pruners.BasePruner | None) -> Callable[[int, float], None]:
    """The function to which a run inside a sweep reports its validations.

    Args:
        pruner: Optuna's; None: no run is stopped.

    Returns:
        A function of (number of validations, value). It raises ``optuna.TrialPruned`` to stop the run.
    """
    number, _, place = os.environ[TRIAL].partition("@")
    folder = Path(place)
    with lock_of(folder, "study"):
        storage = storage_of(folder)
        study = optuna.load_study(study_name=NAME, storage=storage)
        trial_id = id_of(storage, int(number))

    def report(step: int, value: float) -> None:
        with lock_of(folder, "study"):
            storage.set_trial_intermediate_value(trial_id, step, value)
            if pruner is not None and pruner.prune(study, storage.get_trial(trial_id)):
                raise optuna.TrialPruned

    return report
