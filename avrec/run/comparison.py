"""Comparison of two runs: the second is restored, checked against the first, and ranked."""

from pathlib import Path
from typing import Any

from avrec.errors import UserError
from avrec.evaluation.comparison import Comparison, Contender, check_same_question, comparable, compare
from avrec.evaluation.ranking import EmbeddingScorer
from avrec.run.build import Run, build_ranking_trainer
from avrec.run.evaluation import EvaluationSpec, more_slices
from avrec.run.restore import of_checkpoint


def rival_of(cfg: Any, run: Run, spec: EvaluationSpec) -> Run:
    """Restore the run of ``cfg.against``, to be compared with that of ``cfg.ckpt``.

    Raises:
        UserError: ``cfg.against`` is no checkpoint, or one of another catalogue or split.
    """
    comparable(spec.metrics)
    if not Path(cfg.against).is_file():
        raise UserError(
            f"against must be another run's checkpoint, RUN/checkpoints/best.ckpt; {cfg.against} is no file."
        )
    rival = of_checkpoint(cfg.against, cfg.data.root)
    if rival.data.fingerprint["catalogue"] != run.data.fingerprint["catalogue"]:
        raise UserError(
            f"Both runs must have the same catalogue and split: against={cfg.against} was trained on other items, "
            f"users or interactions than ckpt={cfg.ckpt}."
        )
    names = f"ckpt={cfg.ckpt}", f"against={cfg.against}"
    check_same_question(names, run.data.tasks[spec.split], rival.data.tasks[spec.split])
    return rival


def compare_runs(names: tuple[str, ...], run: Run, rival: Run, spec: EvaluationSpec) -> list[Comparison]:
    """Compare an evaluated run with another, which is ranked here, user by user at the first k."""
    loaders = rival.data.ranking_loaders(spec.split)
    build_ranking_trainer(rival.cfg).test(rival.module, loaders, verbose=False)
    first, second = (
        Contender(
            name,
            EmbeddingScorer(one.module.query_ED.cpu(), one.module.item_ND.cpu()),
            one.data.tasks[spec.split],
            more_slices(one.data, spec),
        )
        for name, one in zip(names, (run, rival), strict=True)
    )
    return compare(first, second, k=spec.ks[0], metrics=spec.metrics)


def names_of(*ckpts: str) -> tuple[str, ...]:
    """The shortest names that tell checkpoints apart.

    >>> names_of("runs/a/checkpoints/best.ckpt", "runs/b/checkpoints/best.ckpt")
    ('a', 'b')
    >>> names_of("runs/a/checkpoints/best.ckpt", "runs/a/checkpoints/last.ckpt")
    ('a/best', 'a/last')
    >>> names_of("sweep_1/0/checkpoints/best.ckpt", "sweep_2/0/checkpoints/best.ckpt")
    ('sweep_1/0', 'sweep_2/0')
    """
    paths = [Path(ckpt).resolve() for ckpt in ckpts]
    runs = [path.parent.parent for path in paths]
    for names in (
        tuple(run.name for run in runs),
        tuple(f"{run.name}/{path.stem}" for run, path in zip(runs, paths, strict=True)),
        tuple(f"{run.parent.name}/{run.name}" for run in runs),
    ):
        if len(set(names)) == len(names):
            return names
    return ckpts
