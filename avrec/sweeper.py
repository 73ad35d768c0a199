"""Hydra's side of a sweep (conf/hydra/sweeper/study.yaml): it composes and launches what the study asks for.

Hydra takes a sweeper that was registered with it, under the name of its own package of plugins.
"""

import importlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


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
        n_jobs: trials handed to the launcher at once.
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
        n_jobs: int = 1,
        sampler: Any = None,
        pruner: Any = None,
        direction: str = "maximize",
    ) -> None:
        self.params = dict(params)
        self.n_jobs = n_jobs
        self.options = {"n_trials": n_trials, "sampler": sampler, "direction": direction}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what Hydra gives, and make the launcher."""
        self.config: Any = config
        self.hydra_context: Any = hydra_context
        self.launcher: Any = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run the trials that are left, and write what the sweep came to.

        Raises:
            UserError: nothing is varied, or the folder holds another sweep.
        """
        from avrec.batch import UserError
        from avrec.sweep import Study

        parsed = OverridesParser.create().parse_overrides([*(f"{k}={v}" for k, v in self.params.items()), *arguments])
        by_key = {override.get_key_element(): override for override in parsed}
        space = {key: distribution_of(override) for key, override in by_key.items() if override.is_sweep_override()}
        given = [
            f"{key}={override.get_value_element_as_str()}" if not key.startswith("~") else key
            for key, override in by_key.items()
            if not override.is_sweep_override()
        ]
        if not space:
            raise UserError("A sweep varies something. Give a key several values: optimizer.lr=1e-3,3e-3.")
        # A wrong key is said before there is a study.
        first = [f"{key}={getattr(d, 'choices', [getattr(d, 'low', None)])[0]}" for key, d in space.items()]
        self.hydra_context.config_loader.load_sweep_config(self.config, [*given, *first])
        folder = Path(self.config.hydra.sweep.dir)
        begun = [argument for argument in given if not argument.startswith("sweep=")]
        study = Study(folder, space, begun, **self.options, metric=self.config.monitor)
        say(f"sweep folder: {folder} (the same command with hydra.sweep.dir={folder} goes on, or joins in)")
        job = 0
        while trials := [trial for trial in (study.claim() for _ in range(self.n_jobs)) if trial]:
            jobs = [[*given, *trial.overrides, *_of_trial(trial.handle.number, folder)] for trial in trials]
            for trial, done in zip(trials, self.launcher.launch(jobs, initial_job_idx=job), strict=True):
                # Not return_value: its getter raises what the run raised.
                say(study.tell(trial, done._return_value))
            job += len(trials)
        show(study.write(), study.best_command(), folder)


def _of_trial(number: int, folder: Path) -> Iterator[str]:
    from avrec.sweep import TRIAL

    place = str(folder.resolve()).replace("'", r"\'")
    yield f"hydra.sweep.subdir='{number}'"
    yield f"++hydra.job.env_set.{TRIAL}='{number}@{place}'"


def distribution_of(override: Override) -> Any:
    """Optuna's distribution for a sweep of Hydra's grammar; choices are strings, as they stand on a command line."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value = override.value()
    if not isinstance(value, IntervalSweep):
        return CategoricalDistribution(list(override.sweep_string_iterator()))
    whole = isinstance(value.start, int) and isinstance(value.end, int)
    make: Any = IntDistribution if whole else FloatDistribution
    return make(value.start, value.end, log="log" in value.tags)


def say(line: str) -> None:
    """On the screen; the log is each run's own."""
    print(line, file=sys.stderr, flush=True)


def show(rows: list[dict[str, Any]], best: str | None, folder: Path) -> None:
    """Print the first of the trials, and the best one's command."""
    from rich.console import Console
    from rich.table import Table

    from avrec.sweep import brief

    console = Console(width=None if Console().is_terminal else 160)
    columns = [name for name in rows[0] if any(row[name] is not None for row in rows)] if rows else []
    table = Table(*(name.rpartition(".")[2] for name in columns), title=f"{len(rows)} trials, the best first")
    for row in rows[:10]:
        table.add_row(*(brief(row[name]) for name in columns))
    console.print(table)
    say(f"all trials, and pictures: {folder / 'sweep.html'} and trials.csv")
    say(f"the best, trained and measured in full:\n  {best}" if best else "no trial was completed; see their errors")
