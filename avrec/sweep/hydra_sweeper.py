"""Hydra's side of a sweep (conf/hydra/sweeper/study.yaml): compose and launch the trials that the study asks for.

Hydra finds it as hydra_plugins.avrec_sweeper.StudySweeper.
"""

import argparse
import contextlib
import io
import sys
import traceback
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from avrec.errors import UserError
from avrec.run.redact import masked
from avrec.run.validation import CONF
from avrec.sweep import TRIAL

if TYPE_CHECKING:
    from avrec.sweep.study import Study


class StudySweeper(Sweeper):
    """Runs trials until the study has all of them; a failed trial is recorded and the next one begins.

    Args:
        params: sweeps by key: ``interval(a,b)``, ``tag(log,interval(a,b))``, ``choice(a,b,c)``, ``range(a,b)``. A sweep
            or a value on the command line replaces them.
        n_trials: total over all processes.
        n_jobs: trials per launch; None: one, or the whole grid with another launcher than Hydra's own.
        sampler: Optuna's; None: the whole grid.
        pruner: Optuna's, for the runs.
        direction: maximize or minimize.
    """

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
        self.options: dict[str, Any] = {"n_trials": n_trials, "sampler": sampler, "direction": direction}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep Hydra's objects and create the launcher."""
        self.config: Any = config
        self.hydra_context: Any = hydra_context
        self.launcher: Any = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run the remaining trials, then write and print the summary.

        Raises:
            UserError: Optuna is missing, an option is invalid, no key is varied, the folder holds another sweep, a run
                of a grid failed, or all runs did.
        """
        if find_spec("optuna") is None:
            raise UserError("A sweep needs Optuna: pip install 'avrec[sweep]'.")
        from avrec.sweep.study import NO_VALUE, Study

        self._check_options()
        grid = self.options["sampler"] is None
        given, space = self._parsed(arguments)
        if not space and not grid:
            raise UserError("A sweep must vary a key; none has several values. Example: optimizer.lr=1e-3,3e-3.")
        self._check(given, space)
        folder = Path(self.config.hydra.sweep.dir)
        begun = [*config_flags(sys.argv[1:]), *(one for one in given if not one.startswith("sweep="))]
        study = Study(folder, space, begun, **self.options, metric=self.config.monitor)
        say(f"sweep folder: {folder} (to continue or join: the same command with hydra.sweep.dir={folder})")
        self._run(study, given, grid)
        best, rows = study.best_command(), study.write()
        show(rows, best, folder)
        failures = [row["error"] for row in rows if row["error"] not in (None, NO_VALUE)]
        if failures and (grid or best is None):
            raise UserError(f"{len(failures)} of {len(rows)} trials failed. The first of them: {failures[0]}")

    def _run(self, study: "Study", given: list[str], grid: bool) -> None:
        from optuna import TrialPruned

        together = grid and type(self.launcher).__name__ != "BasicLauncher"
        at_once = self.n_jobs or (study.n_trials if together else 1)
        job = 0
        while trials := [trial for trial in (study.claim() for _ in range(at_once)) if trial]:
            jobs = [[*given, *trial.overrides, *self._of_trial(trial.number)] for trial in trials]
            for trial, done in zip(trials, self.launcher.launch(jobs, initial_job_idx=job), strict=True):
                outcome = outcome_of(done)
                if isinstance(outcome, Exception) and not isinstance(outcome, UserError | TrialPruned):
                    traceback.print_exception(outcome)
                say(study.tell(trial, outcome))
            job += len(trials)

    def _parsed(self, arguments: list[str]) -> tuple[list[str], dict[str, Any]]:
        """The overrides that all trials share, and the distributions by key."""
        from avrec.sweep.study import distribution_of

        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        parsed = parser.parse_overrides([*(f"{k}={v}" for k, v in self.params.items()), *arguments])
        by_key = {override.get_key_element(): override for override in parsed}
        space = {key: distribution_of(override) for key, override in by_key.items() if override.is_sweep_override()}
        given = [
            key if key.startswith("~") else f"{key}={override.get_value_element_as_str()}"
            for key, override in by_key.items()
            if key not in space
        ]
        return given, space

    def _check_options(self) -> None:
        import optuna

        n_trials, sampler, direction = self.options.values()
        for key, number in (("n_trials", n_trials), ("n_jobs", 1 if self.n_jobs is None else self.n_jobs)):
            if not isinstance(number, int) or number < 1:
                raise UserError(f"hydra.sweeper.{key} must be a positive whole number; got {number}.")
        if direction not in ("maximize", "minimize"):
            raise UserError(f"hydra.sweeper.direction must be maximize or minimize; got {direction}.")
        kinds = {"sampler": optuna.samplers.BaseSampler, "pruner": optuna.pruners.BasePruner}
        for key, made in (("sampler", sampler), ("pruner", self.pruner)):
            if made is not None and not isinstance(made, kinds[key]):
                raise UserError(
                    f"hydra.sweeper.{key} must be a {key} of Optuna; got {made}. Name its class in "
                    f"hydra.sweeper.{key}._target_, as conf/sweep/optuna.yaml does."
                )

    def _check(self, given: list[str], space: Mapping[str, Any]) -> None:
        """Reject a wrong key, an unknown option, or a varied secret before there is a study."""
        choices = {key: getattr(one, "choices", (getattr(one, "low", None),)) for key, one in space.items()}
        for key, values in choices.items():
            if any(masked(f"{key}={value}") != f"{key}={value}" for value in values):
                raise UserError(
                    f"A secret must have one value, because a study stores what varies; got several for {key}."
                )
        first = {key: values[0] for key, values in choices.items()}
        options = [{key: value} for key, values in choices.items() if (CONF / key).is_dir() for value in values]
        for option in options or [{}]:
            overrides = [*given, *(f"{key}={value}" for key, value in {**first, **option}.items())]
            self.hydra_context.config_loader.load_sweep_config(self.config, overrides)

    def _of_trial(self, number: int) -> Iterator[str]:
        sweep: Any = OmegaConf.to_container(self.config.hydra.sweep)
        place = str(Path(self.config.hydra.sweep.dir).resolve()).replace("'", r"\'")
        if sweep["subdir"] == "${hydra:job.num}":  # each process counts its own from 0
            yield f"hydra.sweep.subdir='{number}'"
        yield f"++hydra.job.env_set.{TRIAL}='{number}@{place}'"


def outcome_of(done: JobReturn) -> Any:
    """A job's value, or the exception that ended it."""
    with contextlib.redirect_stderr(io.StringIO()):  # the getter prints a failed job's overrides, secrets included
        try:
            return done.return_value
        except Exception as error:
            return error


def config_flags(arguments: list[str]) -> list[str]:
    """The flags of a command line that choose its config, without which the same overrides make another run."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name, short in (("path", "p"), ("name", "n"), ("dir", "d")):
        parser.add_argument(f"--config-{name}", f"-c{short}")
    return [f"--{k.replace('_', '-')}={v}" for k, v in vars(parser.parse_known_args(arguments)[0]).items() if v]


def say(line: str) -> None:
    """Print to the screen; each run has its own log."""
    print(line, file=sys.stderr, flush=True)


def show(rows: list[dict[str, Any]], best: str | None, folder: Path) -> None:
    """Print the first trials of the table, and the best one's command."""
    from rich.console import Console
    from rich.table import Table

    from avrec.sweep.study import brief

    console = Console(width=None if Console().is_terminal else 160)
    columns = [name for name in rows[0] if any(row[name] is not None for row in rows)] if rows else []
    table = Table(*(name.rpartition(".")[2] for name in columns), title=f"{len(rows)} trials, best first")
    for row in rows[:10]:
        table.add_row(*(brief(row[name]) for name in columns))
    console.print(table)
    say(f"all trials: {folder / 'sweep.html'} and trials.csv")
    if best:
        say(f"the best is trial {rows[0]['trial']}; to train and evaluate it in full:\n  {best}")
        if "***" in best:
            say("*** stands for a secret, which a sweep does not store.")
