"""Hydra's side of a sweep (conf/hydra/sweeper/study.yaml): it composes and launches what the study asks for.

Hydra takes a sweeper that was registered with it, under the name of its own package of plugins.
"""

import argparse
import importlib
import sys
import traceback
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from avrec.errors import UserError
from avrec.run.redact import masked
from avrec.run.validation import CONF


def register() -> None:
    """Make the sweeper known to Hydra, before it starts."""
    try:
        plugins = importlib.import_module("hydra_plugins")
    except ModuleNotFoundError:  # no launcher is installed
        plugins = sys.modules["hydra_plugins"] = ModuleType("hydra_plugins")
        plugins.__path__ = []
    # Hydra looks the class up by its name as well.
    plugins.avrec = sys.modules[StudySweeper.__module__] = sys.modules[__name__]  # type: ignore[attr-defined]
    Plugins.instance().register(StudySweeper)


class StudySweeper(Sweeper):
    """Runs trials until the study has all of them; what fails is recorded, and the next one begins.

    Args:
        params: sweeps by key: ``interval(a,b)``, ``tag(log,interval(a,b))``, ``choice(a,b,c)``, ``range(a,b)``. A sweep
            or a value on the command line comes before them.
        n_trials: in all, of all processes.
        n_jobs: trials handed to the launcher at once; None: one, or the whole grid where another launcher than Hydra's
            own runs it.
        sampler: of Optuna; None: the whole grid.
        pruner: of Optuna, for the runs.
        direction: maximize or minimize.
    """

    # Hydra refuses plugins of other packages, registered or not.
    __module__ = "hydra_plugins.avrec"

    def __init__(
        self,
        params: Mapping[str, str],
        n_trials: int = 20,
        n_jobs: int | None = None,
        sampler: Any = None,
        pruner: Any = None,
        direction: str = "maximize",
    ) -> None:
        self.params = dict(params)
        self.n_jobs, self.pruner = n_jobs, pruner
        self.options = {"n_trials": n_trials, "sampler": sampler, "direction": direction}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what Hydra gives, and make the launcher."""
        self.config: Any = config
        self.hydra_context: Any = hydra_context
        self.launcher: Any = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run the trials that are left, and write what the sweep came to; a grid needs no Optuna, and is then Hydra's.

        Raises:
            UserError: an option is not possible, nothing is varied, the folder holds another sweep, a run of a grid
                failed, or all runs.
        """
        from avrec.sweep.study import NO_VALUE, Study

        self._check_options()
        grid = self.options["sampler"] is None
        if grid and find_spec("optuna") is None:
            say("no table and no pictures at the end: they need Optuna, pip install 'avrec[sweep]'")
            self._as_hydra_does(arguments)
            return
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        parsed = parser.parse_overrides([*(f"{k}={v}" for k, v in self.params.items()), *arguments])
        by_key = {override.get_key_element(): override for override in parsed}
        space = {key: distribution_of(override) for key, override in by_key.items() if override.is_sweep_override()}
        given = [
            f"{key}={override.get_value_element_as_str()}" if not key.startswith("~") else key
            for key, override in by_key.items()
            if not override.is_sweep_override()
        ]
        if not space and not grid:
            raise UserError("A sweep varies something. Give a key several values: optimizer.lr=1e-3,3e-3.")
        self._check(given, space)
        folder = Path(self.config.hydra.sweep.dir)
        begun = [*config_flags(sys.argv[1:]), *(one for one in given if not one.startswith("sweep="))]
        study = Study(folder, space, begun, **self.options, metric=self.config.monitor)
        say(f"sweep folder: {folder} (the same command with hydra.sweep.dir={folder} goes on, or joins in)")
        side_by_side = grid and type(self.launcher).__name__ != "BasicLauncher"
        at_once = self.n_jobs or (study.n_trials if side_by_side else 1)
        job = 0
        while trials := [trial for trial in (study.claim() for _ in range(at_once)) if trial]:
            jobs = [[*given, *trial.overrides, *self._of_trial(trial.handle.number)] for trial in trials]
            for trial, done in zip(trials, self.launcher.launch(jobs, initial_job_idx=job), strict=True):
                # Not return_value: its getter raises what the run raised.
                outcome = done._return_value
                if isinstance(outcome, Exception) and type(outcome).__name__ not in ("UserError", "TrialPruned"):
                    traceback.print_exception(outcome)
                say(study.tell(trial, outcome))
            job += len(trials)
        best, rows = study.best_command(), study.write()
        show(rows, best, folder)
        failures = [row["error"] for row in rows if row["error"] not in (None, NO_VALUE)]
        if failures and (grid or best is None):
            raise UserError(f"{len(failures)} of {len(rows)} trials failed. The first of them: {failures[0]}")

    def _as_hydra_does(self, arguments: list[str]) -> None:
        # Hydra, when it looks for plugins, loads this module anew.
        from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

        basic: Any = BasicSweeper(None, self.params)
        basic.config, basic.hydra_context, basic.launcher = self.config, self.hydra_context, self.launcher
        basic.sweep(arguments)

    def _check_options(self) -> None:
        n_trials, sampler, direction = self.options.values()
        for key, number in (("n_trials", n_trials), ("n_jobs", 1 if self.n_jobs is None else self.n_jobs)):
            if not isinstance(number, int) or number < 1:
                raise UserError(f"hydra.sweeper.{key}={number} is not possible. Give a whole number from 1.")
        if direction not in ("maximize", "minimize"):
            raise UserError(f"hydra.sweeper.direction={direction} is not possible. Give maximize or minimize.")
        for key, made, method in (("sampler", sampler, "sample_relative"), ("pruner", self.pruner, "prune")):
            if made is not None and not hasattr(made, method):
                raise UserError(
                    f"hydra.sweeper.{key}={made} is none of Optuna's. Give its class by name, as "
                    f"conf/sweep/optuna.yaml does in hydra.sweeper.{key}._target_."
                )

    def _check(self, given: list[str], space: Mapping[str, Any]) -> None:
        """Refuse a wrong key, an option that is not there, or a secret that is varied, before there is a study."""
        for key, distribution in space.items():
            if any(masked(f"{key}={choice}") != f"{key}={choice}" for choice in getattr(distribution, "choices", ())):
                raise UserError(f"{key} would be kept in the study, and holds a secret. Give it one value.")
        first = {key: getattr(d, "choices", [getattr(d, "low", None)])[0] for key, d in space.items()}
        options = [{key: c} for key, d in space.items() if (CONF / key).is_dir() for c in getattr(d, "choices", ())]
        for option in options or [{}]:
            overrides = [*given, *(f"{key}={value}" for key, value in {**first, **option}.items())]
            self.hydra_context.config_loader.load_sweep_config(self.config, overrides)

    def _of_trial(self, number: int) -> Iterator[str]:
        from avrec.sweep.study import TRIAL

        sweep: Any = OmegaConf.to_container(self.config.hydra.sweep)
        place = str(Path(self.config.hydra.sweep.dir).resolve()).replace("'", r"\'")
        if sweep["subdir"] == "${hydra:job.num}":  # it counts in each process anew
            yield f"hydra.sweep.subdir='{number}'"
        yield f"++hydra.job.env_set.{TRIAL}='{number}@{place}'"


def config_flags(arguments: list[str]) -> list[str]:
    """What a command line says of where its config is: another one makes another run of the same overrides."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name, short in (("path", "p"), ("name", "n"), ("dir", "d")):
        parser.add_argument(f"--config-{name}", f"-c{short}")
    return [f"--{k.replace('_', '-')}={v}" for k, v in vars(parser.parse_known_args(arguments)[0]).items() if v]


def distribution_of(override: Override) -> Any:
    """Optuna's distribution for a sweep of Hydra's grammar; choices are strings, as they stand on a command line."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value = override.value()
    if not isinstance(value, IntervalSweep):
        return CategoricalDistribution(list(override.sweep_string_iterator()))
    whole = isinstance(value.start, int) and isinstance(value.end, int)
    make: Any = IntDistribution if whole else FloatDistribution
    try:
        return make(value.start, value.end, log="log" in value.tags)
    except (ValueError, TypeError) as error:
        raise UserError(f"{override.input_line} is not possible: {error}") from error


def say(line: str) -> None:
    """On the screen; the log is each run's own."""
    print(line, file=sys.stderr, flush=True)


def show(rows: list[dict[str, Any]], best: str | None, folder: Path) -> None:
    """Print the first of the trials, and the best one's command."""
    from rich.console import Console
    from rich.table import Table

    from avrec.sweep.study import brief

    console = Console(width=None if Console().is_terminal else 160)
    columns = [name for name in rows[0] if any(row[name] is not None for row in rows)] if rows else []
    table = Table(*(name.rpartition(".")[2] for name in columns), title=f"trials: {len(rows)}, the best first")
    for row in rows[:10]:
        table.add_row(*(brief(row[name]) for name in columns))
    console.print(table)
    say(f"all trials, and pictures: {folder / 'sweep.html'} and trials.csv")
    if best:
        say(f"the best is trial {rows[0]['trial']}; trained and measured in full:\n  {best}")
        if "***" in best:
            say("*** stands for a secret, which a sweep does not keep: give it again.")
