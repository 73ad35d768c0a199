"""A sweep's study: claims, failures, pruning, grids, sharing, going on."""

import itertools
import multiprocessing
import os
import shlex
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext
from omegaconf import OmegaConf, open_dict
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from avrec.cli.main import user_errors_as_exit_codes
from avrec.errors import TrainingStoppedError, UserError
from avrec.sweep import TRIAL, hydra_sweeper
from avrec.sweep.study import NAME, Study, distribution_of, reporter, storage_of
from hydra_plugins.avrec_sweeper import StudySweeper

ROOT = Path(__file__).resolve().parent.parent
LR = {"optimizer.lr": FloatDistribution(1e-3, 1e-1, log=True)}
GRID = {"dim": CategoricalDistribution(["16", "32"]), "seed": CategoricalDistribution(["0", "1", "2"])}


def study_of(folder: Path, space: Any = LR, **more: Any) -> Study:
    return Study(folder, space, **{"sampler": optuna.samplers.RandomSampler(), **more})


def states(study: Study) -> list[str]:
    return [trial.state.name for trial in study.study.trials]


def test_a_grid_is_every_combination_once(tmp_path: Path) -> None:
    tried = []
    for _ in range(2):  # the second process finds the rest
        study = Study(tmp_path, GRID)
        for _ in range(3):
            trial = study.claim()
            assert trial is not None
            tried.append(tuple(trial.overrides))
            study.tell(trial, 0.5)
    assert study.claim() is None
    twin = itertools.product(["dim=16", "dim=32"], ["seed=0", "seed=1", "seed=2"])
    assert sorted(tried) == sorted(twin)


def test_a_grid_takes_no_ranges(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="A grid needs choices for every key"):
        Study(tmp_path, LR)


def test_what_becomes_of_a_trial_is_recorded(tmp_path: Path) -> None:
    study = study_of(tmp_path, given=["dim=16"], n_trials=5)
    assert study.best_command() is None
    outcomes = [0.25, 0.5, UserError("dim=15 is not possible."), float("nan"), optuna.TrialPruned()]
    told = []
    for outcome in outcomes:
        trial = study.claim()
        assert trial is not None
        told.append(study.tell(trial, outcome))
    assert study.claim() is None
    assert states(study) == ["COMPLETE", "COMPLETE", "FAIL", "FAIL", "PRUNED"]
    assert "failed: dim=15 is not possible." in told[2]
    rows = study.write()
    assert [row["trial"] for row in rows] == [1, 0, 4, 2, 3]
    assert rows[3]["error"] == "dim=15 is not possible."
    best = study.study.trials[1].params["optimizer.lr"]
    assert study.best_command() == f"python train.py dim=16 optimizer.lr={best}"
    assert len((tmp_path / "trials.csv").read_text().splitlines()) == 6
    page = (tmp_path / "sweep.html").read_text()
    assert f"optimizer.lr={best}" in page
    assert "plotly" in page
    assert "cdn.plot.ly" not in page.split("</script>")[-1]


def test_a_folder_holds_one_sweep(tmp_path: Path) -> None:
    study_of(tmp_path, given=["dim=16"])
    study_of(tmp_path, given=["dim=16"], n_trials=30)
    with pytest.raises(UserError, match=r"holds a sweep with other settings: dim=16 over optimizer\.lr"):
        study_of(tmp_path, given=["dim=32"])
    with pytest.raises(UserError, match=r"hydra\.sweeper\.direction=maximize"):
        study_of(tmp_path, given=["dim=16"], direction="minimize")


def test_a_sweep_keeps_no_secret_and_no_user(tmp_path: Path) -> None:
    given = ["+store.accessToken=hush", "data.root=db://me:hu/sh@host/x"]
    study = study_of(tmp_path, given=given, n_trials=2)
    study_of(tmp_path, given=given)
    for outcome in (0.5, UserError("users.csv: user_id 'x@y' names 2 rows, ?token=hush")):
        trial = study.claim()
        assert trial is not None
        study.tell(trial, outcome)
    assert (study.best_command() or "").startswith(
        "python train.py '+store.accessToken=***' 'data.root=db://***@host/x' "
    )
    assert study.write()[1]["error"] == "users.csv: user_id '…' names 2 rows, ?token=***"
    for path in (path for path in tmp_path.iterdir() if path.is_file()):
        assert not any(word in path.read_bytes() for word in (b"hush", b"hu/sh", b"x@y")), path


def test_a_trial_in_other_hands_is_left_alone_and_an_orphan_is_taken_up(tmp_path: Path) -> None:
    one, other = study_of(tmp_path, n_trials=2), study_of(tmp_path, n_trials=2)
    first, second = one.claim(), other.claim()
    assert first is not None
    assert second is not None
    assert (first.number, second.number) == (0, 1)
    assert one.claim() is None
    first.lock.release()  # as the death of its process does
    time.sleep(0.3)
    again = other.claim()
    assert again is not None
    assert again.number == 0
    assert again.overrides == first.overrides
    other.tell(again, 0.5)
    assert other.rows()[0]["seconds"] < 0.3, "the time that it was dead is not counted"


@pytest.mark.parametrize("grid", [True, False])
def test_a_trial_that_died_while_it_drew_its_values_is_replaced(tmp_path: Path, grid: bool) -> None:
    options: dict[str, Any] = {"sampler": None} if grid else {"n_trials": 6}
    study_of(tmp_path, GRID, **options).study.ask({"dim": GRID["dim"]})
    study, ran = study_of(tmp_path, GRID, **options), []
    while trial := study.claim():
        ran.append((trial.number, *trial.overrides))
        study.tell(trial, 0.5)
    assert [number for number, *_ in ran] == [1, 2, 3, 4, 5, 6]
    assert len(study.rows()) == 6
    assert (
        len(set(ran)) == 6
        if not grid
        else {one[1:] for one in ran} == set(itertools.product(["dim=16", "dim=32"], ["seed=0", "seed=1", "seed=2"]))
    )


def test_importances_need_ten_completed_trials(tmp_path: Path) -> None:
    study = study_of(tmp_path, {**LR, "dim": IntDistribution(8, 64)}, n_trials=10)
    for count in range(1, 11):
        trial = study.claim()
        assert trial is not None
        study.tell(trial, count / 10)
        if count >= 9:
            study.write()
            page = (tmp_path / "sweep.html").read_text()
            assert ("at least 10 completed trials; this sweep has 9" in page) == (count == 9)
            assert ("from 10 completed trials" in page) == (count == 10)


def test_a_sweep_that_is_stopped_says_how_it_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(TRIAL, "3@/data/my sweep")
    with pytest.raises(SystemExit), user_errors_as_exit_codes():
        raise TrainingStoppedError(signal.SIGINT, Path("x/checkpoints/last.ckpt"))
    assert "the same command with hydra.sweep.dir=/data/my sweep goes on with the sweep" in capsys.readouterr().err


def work(folder: Path, told: Any, seconds: float) -> None:
    study = study_of(folder, n_trials=8)
    while trial := study.claim():
        told.put((trial.number, trial.overrides))
        time.sleep(seconds)
        study.tell(trial, float(trial.overrides[0].split("=")[1]))


def test_a_killed_sweep_goes_on_in_two_processes_and_ends_with_its_trials(tmp_path: Path) -> None:
    """Forked processes, with a stub for the training; the slow twin below trains."""
    processes = multiprocessing.get_context("fork")

    def start(told: Any, seconds: float) -> Any:
        one = processes.Process(target=work, args=(tmp_path, told, seconds))
        one.start()
        return one

    before, after = processes.Queue(), processes.Queue()
    killed = start(before, 0.05)
    seen = [before.get(timeout=30) for _ in range(3)]
    killed.kill()
    killed.join()
    both = [start(after, 0.1), start(after, 0.1)]
    for one in both:
        one.join(60)
        assert one.exitcode == 0
    study = study_of(tmp_path, n_trials=8)
    assert states(study) == ["COMPLETE"] * 8
    ran = []
    while not after.empty():
        ran.append(after.get(timeout=5))
    assert len({number for number, _ in ran}) == len(ran), "no trial was run by both"
    assert dict(ran).get(seen[2][0], seen[2][1]) == seen[2][1], "an orphan is run with what it had drawn"
    assert study.best_command() == f"python train.py optimizer.lr={study.study.best_params['optimizer.lr']}"


def test_a_run_that_lags_behind_is_pruned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = study_of(tmp_path, n_trials=3)
    for values in ((0.5, 0.6), (0.6, 0.7), (0.1, 0.2)):
        trial = study.claim()
        assert trial is not None
        monkeypatch.setenv(TRIAL, f"{trial.number}@{tmp_path}")
        report = reporter(optuna.pruners.MedianPruner(n_startup_trials=2, n_warmup_steps=0))
        if values[0] == 0.1:
            with pytest.raises(optuna.TrialPruned):
                report(1, values[0])
            study.tell(trial, optuna.TrialPruned())
        else:
            for step, value in enumerate(values):
                report(step + 1, value)
            study.tell(trial, values[-1])
    assert states(study) == ["COMPLETE", "COMPLETE", "PRUNED"]


@pytest.mark.parametrize(
    ("override", "distribution"),
    [
        ("a=interval(0.1,0.5)", FloatDistribution(0.1, 0.5)),
        ("a=tag(log,interval(1e-3,1e-1))", FloatDistribution(1e-3, 1e-1, log=True)),
        ("a=int(interval(1,8))", IntDistribution(1, 8)),
        ("a=x,1,null", CategoricalDistribution(["x", "1", "null"])),
        ("a=1e-3,3e-4", CategoricalDistribution(["0.001", "0.0003"])),
        ("a=range(1,4)", CategoricalDistribution(["1", "2", "3"])),
    ],
)
def test_hydras_sweeps_are_optunas_distributions(override: str, distribution: Any) -> None:
    assert distribution_of(OverridesParser.create().parse_override(override)) == distribution


def sweeper_of(folder: Path, objective: Any, **options: Any) -> StudySweeper:
    """A sweeper whose launcher only calls a function of the overrides."""

    def launch(jobs: list[list[str]], initial_job_idx: int) -> list[Any]:
        outcomes = [objective(job) for job in jobs]
        failed = [JobStatus.FAILED if isinstance(one, Exception) else JobStatus.COMPLETED for one in outcomes]
        return [JobReturn(status=status, _return_value=one) for status, one in zip(failed, outcomes, strict=True)]

    found = StudySweeper(**{"sampler": optuna.samplers.RandomSampler(), **options})
    hydra = {"sweep": {"dir": str(folder), "subdir": "${hydra:job.num}"}}
    found.config = OmegaConf.create({"hydra": hydra, "monitor": "val/ndcg@10"})
    loader = SimpleNamespace(load_sweep_config=lambda *config, **overrides: None)
    found.hydra_context, found.launcher = SimpleNamespace(config_loader=loader), SimpleNamespace(launch=launch)
    return found


def test_the_sweeper_hands_out_trials_and_says_the_best(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jobs: list[list[str]] = []

    def objective(job: list[str]) -> Any:
        jobs.append(job)
        return ValueError("no") if len(jobs) == 2 else float(len(jobs))

    params = {"optimizer.lr": "tag(log,interval(1e-3,1e-1))", "dim": "choice(16,32)"}
    sweeper_of(tmp_path, objective, params=params, n_trials=5, n_jobs=2).sweep(["sweep=optuna", "dim=64", "seed=1"])
    assert len(jobs) == 5
    for number, job in enumerate(jobs):
        assert job[:3] == ["dim=64", "sweep=optuna", "seed=1"]
        assert f"hydra.sweep.subdir='{number}'" in job
    said = capsys.readouterr().err
    assert "failed: no" in said
    best = next(word for word in jobs[4] if word.startswith("optimizer.lr="))
    assert said.strip().endswith(f"python train.py dim=64 seed=1 {best}")


def test_a_sweep_varies_something(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="A sweep must vary a key"):
        sweeper_of(tmp_path, None, params={}).sweep(["dim=16"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("option", "override", "message"),
    [
        ({"direction": "up"}, "", r"hydra\.sweeper\.direction must be maximize or minimize; got up"),
        ({"n_trials": "x"}, "", r"hydra\.sweeper\.n_trials must be a positive whole number; got x"),
        ({"n_jobs": -1}, "", r"hydra\.sweeper\.n_jobs must be a positive whole number; got -1"),
        ({"sampler": "tpe"}, "", r"hydra\.sweeper\.sampler must be a sampler of Optuna; got tpe"),
        ({"pruner": "median"}, "", r"hydra\.sweeper\.pruner must be a pruner of Optuna; got median"),
        ({"sampler": None}, "a=interval(0,1)", "A grid needs choices for every key"),
        ({}, "a=tag(log,interval(0,1e-2))", r"Invalid range a=tag\(log,interval\(0,1e-2\)\): "),
        ({}, "a=interval(1e-2,1e-3)", r"Invalid range a=interval\(1e-2,1e-3\): "),
        ({}, "+api_key=x,y", r"A secret must have one value, .*; got several for \+?api_key"),
    ],
)
def test_a_sweep_that_cannot_work_leaves_no_study(
    tmp_path: Path, option: dict[str, Any], override: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        sweeper_of(tmp_path, None, params={"seed": "0,1"}, **option).sweep([override] if override else [])
    assert not list(tmp_path.iterdir())


def test_a_damaged_study_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "study.db").write_text("garbage")
    with pytest.raises(UserError, match=r"study\.db is not a readable study: .*hydra\.sweep\.dir=FOLDER"):
        study_of(tmp_path)


@pytest.mark.parametrize(
    ("grid", "outcomes", "message"),
    [
        (True, [0.5, float("nan"), None], r"1 of 3 trials failed\. The first of them: val/ndcg@10 is nan"),
        (True, [0.5, float("-inf"), ValueError("no")], r"2 of 3 trials failed\. .*val/ndcg@10 is -inf"),
        (True, [0.5, None, 0.1], None),
        (False, [ValueError("no"), UserError("dim=15"), float("nan")], r"3 of 3 trials failed\. .*: no"),
        (False, [ValueError("no"), 0.5, float("nan")], None),
    ],
)
def test_a_sweep_whose_runs_fail_says_so_at_its_end(
    tmp_path: Path, grid: bool, outcomes: list[Any], message: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    left = iter(outcomes)
    options: Any = {"params": {"seed": "0,1,2"}, "n_trials": 3} | ({"sampler": None} if grid else {})
    made = sweeper_of(tmp_path, lambda job: next(left), **options)
    with pytest.raises(UserError, match=message) if message else nullcontext():
        made.sweep([])
    said = capsys.readouterr().err
    assert (tmp_path / "sweep.html").is_file()
    assert ("the best is trial" in said) == (0.5 in outcomes)
    assert ("ValueError: no" in said) == any(isinstance(outcome, ValueError) for outcome in outcomes)


def test_a_plain_multirun_is_a_grid_in_hydras_folders(tmp_path: Path) -> None:
    batches: list[list[list[str]]] = []
    made = sweeper_of(tmp_path, lambda job: 0.5, params={}, sampler=None)
    launch = made.launcher.launch
    made.launcher.launch = lambda jobs, initial_job_idx: batches.append(jobs) or launch(jobs, initial_job_idx)
    made.sweep(["seed=0,1", "dim=16,32", "fusion=mean"])
    assert len(batches) == 1, "another launcher than Hydra's own gets the whole grid"
    assert [job[1:4] for job in batches[0]] == [
        [f"seed={seed}", f"dim={dim}", f"hydra.sweep.subdir='{2 * seed + place}'"]
        for seed in (0, 1)
        for place, dim in enumerate((16, 32))
    ]
    (alone := sweeper_of(tmp_path / "one", lambda job: 0.5, params={}, sampler=None)).config.hydra.sweep.subdir = "mine"
    alone.launcher.launch = made.launcher.launch
    alone.sweep(["dim=16"])
    assert [word.split("=")[0] for word in batches[1][0]] == ["dim", f"++hydra.job.env_set.{TRIAL}"]


def test_the_best_command_names_its_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "-m", "--config-path", "a b", "-cn", "config", "seed=1,2"])
    sweeper_of(tmp_path, lambda job: 0.5, params={}, sampler=None).sweep(["seed=1,2"])
    best = shlex.split(capsys.readouterr().err.strip().splitlines()[-1])
    assert best[:4] == ["python", "train.py", "--config-path=a b", "--config-name=config"]


def test_a_sweep_needs_optuna(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("avrec.sweep.hydra_sweeper.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'avrec\[sweep\]'"):
        sweeper_of(tmp_path, None, params={}, sampler=None).sweep(["seed=0,1"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["optuna", "grid", None])
def test_hydra_builds_the_sweeper(name: str | None) -> None:
    """Hydra's rules for plugins change within a minor release; this asks the one that is installed."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", overrides=[*([f"sweep={name}"] * bool(name)), "run_dir=x"], return_hydra_config=True)
        with open_dict(cfg.hydra.job):
            cfg.hydra.job.num = 0
        context = HydraContext(config_loader=None, callbacks=None)  # type: ignore[arg-type]
        made = Plugins.instance().instantiate_sweeper(hydra_context=context, task_function=lambda cfg: None, config=cfg)
    assert isinstance(made, hydra_sweeper.StudySweeper)
    assert made.params == dict(cfg.hydra.sweeper.params)


@pytest.mark.parametrize("name", ["optuna", "grid"])
def test_search_spaces_are_of_keys_that_are_there(name: str) -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", overrides=[f"sweep={name}"], return_hydra_config=True)
        assert cfg.hydra.mode.name == "MULTIRUN"
        parsed = OverridesParser.create().parse_overrides([f"{k}={v}" for k, v in cfg.hydra.sweeper.params.items()])
        space = {one.get_key_element(): distribution_of(one) for one in parsed}
        for place in (0, -1):
            ends = {
                key: getattr(d, "choices", [getattr(d, "low", None), getattr(d, "high", None)])
                for key, d in space.items()
            }
            compose("train", overrides=[*(f"{key}={values[place]}" for key, values in ends.items()), "run_dir=x"])


def test_the_wandb_sweep_gives_the_overrides_of_train() -> None:
    """As W&B's agent puts the command together."""
    plan = yaml.safe_load((ROOT / "conf" / "wandb_sweep.yaml").read_text())
    first = [f"{key}={(one.get('values') or [one.get('min')])[0]}" for key, one in plan["parameters"].items()]
    words = [part for word in plan["command"] for part in (first if word == "${args_no_hyphens}" else [word])]
    assert words[:3] == ["${env}", "${interpreter}", "${program}"]
    assert (ROOT / plan["program"]).is_file()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", overrides=[*words[3:], "run_dir=x"])
    optuna_space = yaml.safe_load((ROOT / "conf" / "sweep" / "optuna.yaml").read_text())["hydra"]["sweeper"]["params"]
    assert set(plan["parameters"]) == set(optuna_space)
    assert plan["metric"]["name"] == cfg.monitor
    assert cfg.logger.wandb.offline is False


TINY = ["data.num_items=60", "data.num_users=80", "data.num_interactions=1200", "trainer.accelerator=cpu", "dim=16"]
TINY += ["text.width=16", "vision=none", "audio=none", "logger=none", "datamodule.prepare.workers=0", "report=false"]


@pytest.mark.slow
def test_a_multirun_ends_with_a_table_pictures_and_the_best(tmp_path: Path) -> None:
    more = ["trainer.max_epochs=1", "evaluation.baselines=[]", "evaluation.ablation=false", "hydra.sweep.dir=sweep"]

    def run(*overrides: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, str(ROOT / "train.py"), "-m", *TINY, *more, *overrides]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200)

    done = run("optimizer.lr=1e-3,abc", "seed=0")
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: 1 of 2 trials failed. The first of them: `optimizer.lr` must be a positive number")
    assert "the best is trial 0" in done.stderr
    assert {path.name for path in (tmp_path / "sweep").iterdir()} >= {"0", "1", "trials.csv", "sweep.html"}
    assert (tmp_path / "sweep" / "0" / "metrics.json").is_file()
    assert "holds a sweep with other settings" in run("optimizer.lr=1e-3,2e-3").stderr
    assert "Unknown option objective=bpx" in run("objective=bpr,bpx", "hydra.sweep.dir=other").stderr
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_a_sweep_of_trainings_is_killed_goes_on_and_is_shared(tmp_path: Path) -> None:
    """Eight short trials of train.py: killed in the middle, then two processes on one study."""
    command = [sys.executable, str(ROOT / "train.py"), "-m", "sweep=optuna", "hydra.sweeper.n_trials=8"]
    command += [*TINY, "trainer.max_epochs=5"]
    command += ["hydra.sweep.dir=sweep"]

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)

    first = start()
    assert first.stderr is not None
    told = 0
    while told < 3:
        told += first.stderr.readline().startswith("trial ")
    time.sleep(0.5)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    both = [start(), start()]
    said = [one.communicate(timeout=300)[1] for one in both]
    assert [one.returncode for one in both] == [0, 0], said
    trials = optuna.load_study(study_name=NAME, storage=storage_of(tmp_path / "sweep")).trials
    assert len(trials) == 8
    assert {trial.state.name for trial in trials} <= {"COMPLETE", "PRUNED"}
    assert sorted(path.name for path in (tmp_path / "sweep").iterdir() if path.name.isdigit()) == list("01234567")
    ran = [line.split(":")[0] for text in said for line in text.splitlines() if line.startswith("trial ")]
    assert len(ran) == len(set(ran)) == 5
    value, number = max((trial.value, trial.number) for trial in trials if trial.state.name == "COMPLETE")
    # The process that ends first does not know what the other one's last trial comes to.
    best = next(text.strip().splitlines()[-1].strip() for text in said if f"the best is trial {number};" in text)
    done = subprocess.run(
        [sys.executable, *shlex.split(best.replace("train.py", str(ROOT / "train.py")))[1:], "report=false"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0
    assert f"best val/ndcg@10, {value:.4f}" in done.stderr
