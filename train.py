"""Train a two-tower model: compose → data → module → fit → test → export.

python train.py --help says what can be chosen.
"""

import logging
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra

from avrec.config import entry, slips

if TYPE_CHECKING:
    import pytorch_lightning as pl
    from omegaconf import DictConfig

    from avrec.pipeline import Run, Timing

log = logging.getLogger(__name__)


def train(cfg: "DictConfig") -> tuple[dict[str, float], dict[str, Any]]:
    """Run one training.

    Args:
        cfg: the composed config (conf/train.yaml).

    Returns:
        The model's test metrics by name (``ndcg@10``, ``cold_items/ndcg@10``) and the best validation metric under
        its own name; and the objects: source, data, module, trainer, results.

    Raises:
        UserError: something that was given cannot work; the message says what to do.
    """
    from avrec import config, exporting, measuring, pipeline, tracking
    from avrec.evaluation.protocol import write_results

    timing = pipeline.Timing()
    config.check_run_dir(cfg)
    run_dir = Path(cfg.run_dir)
    with ExitStack() as until_sent:
        with timing.part("total"):
            with timing.part("prepare"):
                run = pipeline.build(cfg)
                data, module = run.data, run.module
                if cfg.ckpt:
                    pipeline.check_resumable(cfg, module, data)
                data.prepare_data()
                trainer = config.build_trainer(cfg)
                baselines = measuring.Baselines(cfg.evaluation.baselines, run, trainer.strategy.root_device)
            config.save(cfg, run_dir / "config.yaml")
            counts, fingerprint = pipeline.data_summary(data), data.fingerprint["catalogue"]
            until_sent.enter_context(
                tracking.tracked(trainer, config.plain(cfg), {"fingerprint": fingerprint, **counts})
            )
            best_value = fit(cfg, trainer, run, timing)
            with timing.part("test"):
                asked = measuring.Asked.of(cfg.evaluation)
                results = measuring.measure(trainer, module, data, baselines, asked)
                if cfg.evaluation.ablation:
                    results += measuring.ablate(module, data, asked)
            with timing.part("export"):
                written = [result.as_dict() for result in results]
                exporting.export_run(run, {"item_tower": run_dir / "item_tower"}, results=written)
                pipeline.write_embeddings(module, data, run_dir / "embeddings")
        summary = counts | measuring.check_health(module, data)
        write_results(run_dir / "metrics.json", results, timing.seconds, summary)
        measuring.show(results)
        if cfg.report:
            pipeline.write_report(run, results, run_dir, run_dir / "report.html", timing, summary)
        log.info("%s", ", ".join(f"{name} {seconds:.0f} s" for name, seconds in timing.seconds.items()))
        log.info("run folder: %s", run_dir)
        metrics = measuring.by_name(results)
        tracking.send(trainer, run_dir, results, metrics, fingerprint, cfg.artifacts_mib)
    if best_value is not None:
        metrics[cfg.monitor] = best_value
    objects = {"source": run.source, "data": data, "module": module, "trainer": trainer, "results": results}
    return metrics, objects


def fit(cfg: "DictConfig", trainer: "pl.Trainer", run: "Run", timing: "Timing") -> float | None:
    """Train, and take the best weights.

    Returns:
        The best value of ``cfg.monitor``; None where nothing was validated.
    """
    from avrec import pipeline

    with timing.part("fit"):
        trainer.fit(run.module, datamodule=run.data, ckpt_path=cfg.ckpt)
    checkpoint = trainer.checkpoint_callback
    if not checkpoint or not checkpoint.best_model_path:
        return None
    pipeline.load_weights(run.module, run.data, checkpoint.best_model_path)
    log.info("testing the weights with the best %s, %.4f", cfg.monitor, checkpoint.best_model_score)
    return float(checkpoint.best_model_score)


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: "DictConfig") -> float | None:
    """Train, and return the number that a sweep reads."""
    with slips(cfg.run_dir):
        metrics, _ = train(cfg)
    return metrics.get(cfg.monitor)


if __name__ == "__main__":
    sys.exit(entry(main, "train"))
