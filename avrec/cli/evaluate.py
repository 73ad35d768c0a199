"""avrec evaluate, python evaluate.py: measure a checkpoint on the full catalogue, as the end of training did."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avrec.cli.main import command, user_errors_as_exit_codes
from avrec.errors import UserError

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from avrec.evaluation.comparison import Comparison
    from avrec.run.build import Run
    from avrec.run.measure import Asked


def evaluate(cfg: "DictConfig") -> list[Any]:
    """Measure one checkpoint.

    Args:
        cfg: the composed config (conf/evaluate.yaml).

    Returns:
        The results, as written to evaluation.json (and report.html).

    Raises:
        UserError: no such split, a checkpoint is missing or does not fit its run, or the two runs cannot be compared.
    """
    from avrec.evaluation.results import write_results
    from avrec.run import build, config, measure, outputs, restore

    cfg.ckpt = config.checkpoint_of(cfg)
    if cfg.role not in ("val", "test"):
        raise UserError(f"role={cfg.role} is no split that is ranked. Give role=test or role=val.")
    timing = outputs.Timing()
    run_dir = Path(cfg.ckpt).resolve().parent.parent
    with timing.part("total"):
        with timing.part("prepare"):
            run = restore.of_checkpoint(cfg.ckpt, cfg.data.root)
            names = run.cfg.evaluation.baselines if cfg.baselines is None else cfg.baselines
            measure.check_baselines(names)
            rival = rival_of(cfg, run) if cfg.against else None
            baselines = measure.Baselines(names, run)
            asked = asked_of(cfg, run)
            measure.read_columns(run.data, asked)
        with timing.part("test"):
            trainer = build.build_ranking_trainer(run.cfg)
            results = measure.measure(trainer, run.module, run.data, baselines, asked)
            if cfg.ablation:
                results += measure.ablate(run.module, run.data, asked)
        with timing.part("compare"):
            comparison = compare(cfg, run, rival) if rival else []
    out = Path(cfg.out) if cfg.out else run_dir / "evaluation.json"
    summary = outputs.data_summary(run.data) | measure.check_health(run.module, run.data, cfg.role)
    write_results(out, results, timing.seconds, summary, [one.as_dict() for one in comparison])
    measure.show(results)
    show_comparison(comparison)
    if cfg.report:
        page = out.parent / ("report.html" if cfg.role == "test" else f"report_{cfg.role}.html")
        outputs.write_report(run, results, run_dir, page, timing, summary, cfg.role)
    print(f"written: {out}", file=sys.stderr)
    return results


def asked_of(cfg: "DictConfig", run: "Run") -> "Asked":
    """What this command asks, and for what it leaves open, what the run asked."""
    from avrec.run.measure import Asked

    return Asked.of(
        run.cfg.evaluation, cfg.role, ks=cfg.ks, metrics=cfg.metrics, slices=cfg.slices, candidates=cfg.candidates
    )


def rival_of(cfg: "DictConfig", run: "Run") -> "Run":
    """The run to compare with.

    Raises:
        UserError: ``cfg.against`` is no checkpoint, or one of another catalogue or split.
    """
    from avrec.evaluation.comparison import check_same_question, comparable

    comparable(asked_of(cfg, run).metrics)
    if not Path(cfg.against).is_file():
        raise UserError(
            f"against={cfg.against} is not a file. Give another run's checkpoint: against=RUN/checkpoints/best.ckpt."
        )
    from avrec.run import restore

    rival = restore.of_checkpoint(cfg.against, cfg.data.root)
    if rival.data.fingerprint["catalogue"] != run.data.fingerprint["catalogue"]:
        raise UserError(
            f"against={cfg.against} was trained on other items, users or interactions than ckpt={cfg.ckpt}. "
            "Give a run of the same catalogue and split."
        )
    check_same_question(
        (f"ckpt={cfg.ckpt}", f"against={cfg.against}"), run.data.tasks[cfg.role], rival.data.tasks[cfg.role]
    )
    return rival


def compare(cfg: "DictConfig", run: "Run", rival: "Run") -> "list[Comparison]":
    """A measured run against another, which is measured here, user by user at the first k."""
    from avrec.evaluation.comparison import Contender
    from avrec.evaluation.comparison import compare as compare_users
    from avrec.evaluation.ranking import EmbeddingScorer
    from avrec.run import build
    from avrec.run.measure import more_slices

    loaders = rival.data.ranking_loaders(cfg.role)
    build.build_ranking_trainer(rival.cfg).test(rival.module, loaders, verbose=False)
    names = names_of(cfg.ckpt, cfg.against)
    contenders = (
        Contender(
            name,
            EmbeddingScorer(one.module.query_ED.cpu(), one.module.item_ND.cpu()),
            one.data.tasks[cfg.role],
            more_slices(one.data, asked_of(cfg, run)),
        )
        for name, one in zip(names, (run, rival), strict=True)
    )
    asked = asked_of(cfg, run)
    first, second = contenders
    return compare_users(first, second, k=asked.ks[0], metrics=asked.metrics)


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


def show_comparison(comparison: "list[Comparison]") -> None:
    """Print the table of differences, and each in a sentence."""
    if comparison:
        from rich.console import Console

        from avrec.evaluation.comparison import comparison_table

        Console(width=None if Console().is_terminal else 120).print(comparison_table(comparison))
        # In words, what can be told, and the whole; the table and the file have all.
        told = [one for one in comparison if one.p_holm < 0.05 or one.slice == "all"]
        print("\n".join(one.sentence for one in told))
        if len(told) < len(comparison):
            print(f"On {len(comparison) - len(told)} more slices and metrics they cannot be told apart.")


def run(cfg: "DictConfig") -> None:
    """Measure."""
    with user_errors_as_exit_codes():
        evaluate(cfg)


def main() -> int:
    """The command; its exit status."""
    return command(run, "evaluate")
