"""Measure a checkpoint on the full catalogue, as the end of training did.

python evaluate.py ckpt=RUN/checkpoints/best.ckpt
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra

from avrec.config import entry, slips

if TYPE_CHECKING:
    from omegaconf import DictConfig


def evaluate(cfg: "DictConfig") -> list[Any]:
    """Measure one checkpoint.

    Args:
        cfg: the composed config (conf/evaluate.yaml).

    Returns:
        The results, as written to evaluation.json.

    Raises:
        UserError: the checkpoint is missing or does not fit its run.
    """
    from avrec import config, pipeline
    from avrec.evaluation.protocol import write_results

    timing = pipeline.Timing()
    run_dir = Path(cfg.ckpt).resolve().parent.parent
    with timing.part("total"):
        with timing.part("prepare"):
            run = pipeline.of_checkpoint(cfg.ckpt)
            names = run.cfg.evaluation.baselines if cfg.baselines is None else cfg.baselines
            pipeline.check_baselines(names)
            baselines = pipeline.Baselines(names, run)
        with timing.part("test"):
            trainer = config.build_ranking_trainer(run.cfg)
            results = pipeline.measure(trainer, run.module, run.data, baselines, cfg.role, cfg.ks, cfg.metrics)
            if cfg.ablation:
                results += pipeline.ablate(run.module, run.data, cfg.role, cfg.ks[:1], cfg.metrics)
    out = Path(cfg.out) if cfg.out else run_dir / "evaluation.json"
    summary = pipeline.data_summary(run.data) | pipeline.check_health(run.module, run.data, cfg.role)
    write_results(out, results, timing.seconds, summary)
    pipeline.show(results)
    print(f"written: {out}", file=sys.stderr)
    return results


@hydra.main(version_base="1.3", config_path="conf", config_name="evaluate")
def main(cfg: "DictConfig") -> None:
    """Measure."""
    with slips():
        evaluate(cfg)


if __name__ == "__main__":
    sys.exit(entry(main, "evaluate"))
