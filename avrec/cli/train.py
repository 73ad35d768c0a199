"""avrec train, python train.py: compose → build → fit → evaluate → export."""

import logging
import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avrec.cli.main import command, user_errors_as_exit_codes

if TYPE_CHECKING:
    import pytorch_lightning as pl
    from omegaconf import DictConfig

    from avrec.run.build import Run
    from avrec.run.outputs import Timing

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
    from avrec.cli.console import show_results
    from avrec.evaluation.results import write_results
    from avrec.run import build, config, evaluation, export, outputs, restore, tracking

    timing = outputs.Timing()
    config.check_run_dir(cfg)
    run_dir = Path(cfg.run_dir)
    with ExitStack() as tracking_stack:
        with timing.part("total"):
            with timing.part("prepare"):
                run = build.build_run(cfg)
                data, module = run.data, run.module
                if cfg.ckpt:
                    restore.check_resumable(cfg, module, data)
                data.prepare(module.item_tower)
                trainer = build.build_trainer(cfg, trial_callbacks(cfg))
                device = trainer.strategy.root_device
                baselines = evaluation.Baselines(cfg.evaluation.baselines, data, run.source, run.untrained, device)
            config.save(cfg, run_dir / "config.yaml")
            counts, fingerprint = outputs.data_summary(data), data.fingerprint["catalogue"]
            tracking_stack.enter_context(
                tracking.tracked(trainer, config.plain(cfg), {"fingerprint": fingerprint, **counts})
            )
            best_value = fit(cfg, trainer, run, timing)
            with timing.part("test"):
                spec = evaluation.EvaluationSpec.of(cfg.evaluation)
                results = evaluation.measure(trainer, module, data, baselines, spec)
                if cfg.evaluation.ablation:
                    results += evaluation.ablate(module, data, spec)
            with timing.part("export"):
                written = [result.as_dict() for result in results]
                export.export_run(run, {"item_tower": run_dir / "item_tower"}, results=written)
                outputs.write_embeddings(module, data, run_dir / "embeddings")
        summary = counts | evaluation.check_health(module, data)
        write_results(run_dir / "metrics.json", results, timing.seconds, summary)
        show_results(results)
        if cfg.report:
            outputs.write_report(run, results, run_dir, run_dir / "report.html", timing, summary)
        log.info("%s", ", ".join(f"{name} {seconds:.0f} s" for name, seconds in timing.seconds.items()))
        log.info("run folder: %s", run_dir)
        metrics = evaluation.by_name(results)
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
    with timing.part("fit"):
        trainer.fit(run.module, datamodule=run.data, ckpt_path=cfg.ckpt)
    checkpoint: Any = trainer.checkpoint_callback
    if not checkpoint or not checkpoint.best_model_path:
        return None
    from avrec.run import restore

    restore.load_weights(run.module, run.data, checkpoint.best_model_path)
    log.info("testing the weights with the best %s, %.4f", cfg.monitor, checkpoint.best_model_score)
    return float(checkpoint.best_model_score)


def trial_callbacks(cfg: "DictConfig") -> "list[pl.Callback]":
    """The callback that reports to the study, inside a sweep; else none."""
    from avrec.sweep import TRIAL

    if not os.environ.get(TRIAL):
        return []
    from hydra.core.hydra_config import HydraConfig

    from avrec.run.config import instantiate
    from avrec.sweep.study import reporter
    from avrec.training.monitoring import TrialReport

    pruner = instantiate(HydraConfig.get().sweeper.get("pruner"), "hydra.sweeper.pruner")
    return [TrialReport(cfg.monitor, reporter(pruner))]


def run(cfg: "DictConfig") -> float | None:
    """Train, and return the number that a sweep reads."""
    with user_errors_as_exit_codes(is_job=True):
        metrics, _ = train(cfg)
    return metrics.get(cfg.monitor)


def main() -> int:
    """The command; its exit status."""
    return command(run, "train")
