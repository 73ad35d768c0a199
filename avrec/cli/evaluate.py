"""avrec evaluate, python evaluate.py: measure a checkpoint on the full catalogue, as the end of training did."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avrec.cli.main import command, user_errors_as_exit_codes
from avrec.errors import UserError

if TYPE_CHECKING:
    from omegaconf import DictConfig


def evaluate(cfg: "DictConfig") -> list[Any]:
    """Measure one checkpoint.

    Args:
        cfg: the composed config (conf/evaluate.yaml).

    Returns:
        The results, as written to evaluation.json (and report.html).

    Raises:
        UserError: no such split, a checkpoint is missing or does not fit its run, or the two runs cannot be compared.
    """
    from avrec.cli.console import show_comparison, show_results
    from avrec.evaluation.results import write_results
    from avrec.run import build, comparison, config, evaluation, outputs, restore

    cfg.ckpt = config.checkpoint_of(cfg)
    if cfg.eval_split not in ("val", "test"):
        raise UserError(f"eval_split must be test or val; got {cfg.eval_split}.")
    timing = outputs.Timing()
    run_dir = Path(cfg.ckpt).resolve().parent.parent
    with timing.part("total"):
        with timing.part("prepare"):
            run = restore.of_checkpoint(cfg.ckpt, cfg.data.root)
            # What this command leaves open is as the run has it.
            given = {name: cfg[name] for name in ("ks", "metrics", "slices", "candidates")}
            spec = evaluation.EvaluationSpec.of(run.cfg.evaluation, cfg.eval_split, **given)
            names = run.cfg.evaluation.baselines if cfg.baselines is None else cfg.baselines
            evaluation.check_baselines(names)
            rival = comparison.rival_of(cfg, run, spec) if cfg.against else None
            baselines = evaluation.Baselines(names, run.data, run.source, run.untrained)
            evaluation.read_columns(run.data, spec)
        with timing.part("test"):
            trainer = build.build_ranking_trainer(run.cfg)
            results = evaluation.measure(trainer, run.module, run.data, baselines, spec)
            if cfg.ablation:
                results += evaluation.ablate(run.module, run.data, spec)
        with timing.part("compare"):
            names = comparison.names_of(cfg.ckpt, cfg.against) if rival else ()
            compared = comparison.compare_runs(names, run, rival, spec) if rival else []
    out = Path(cfg.out) if cfg.out else run_dir / "evaluation.json"
    summary = outputs.data_summary(run.data) | evaluation.check_health(run.module, run.data, spec.split)
    write_results(out, results, timing.seconds, summary, [one.as_dict() for one in compared])
    show_results(results)
    show_comparison(compared, out)
    if cfg.report:
        page = out.parent / ("report.html" if spec.split == "test" else f"report_{spec.split}.html")
        outputs.write_report(run, results, run_dir, page, timing, summary, spec.split)
    print(f"written: {out}", file=sys.stderr)
    return results


def run(cfg: "DictConfig") -> None:
    """Measure."""
    with user_errors_as_exit_codes():
        evaluate(cfg)


def main() -> int:
    """The command; its exit status."""
    return command(run, "evaluate")
