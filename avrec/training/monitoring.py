"""What is told of a training while it runs: throughput, a line per epoch, a trial's values; and how it is debugged."""

import json
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import RichProgressBar

log = logging.getLogger(__name__)

CURVES = "curves.json"
"""In the run folder: an entry per validation."""


class SameOrder(pl.Callback):
    """Every epoch takes the first one's order: Lightning's ``overfit_batches`` wants loaders that it can take apart."""

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lightning has just given the sampler the number of this epoch."""
        loader: Any = trainer.train_dataloader
        loader.sampler.set_epoch(0)


class Throughput(pl.Callback):
    """Items and users per second, the share of time spent waiting for data, and peak memory, in the log.

    An item is a distinct item of a batch: the unit that is decoded, moved and encoded.
    """

    def __init__(self) -> None:
        self.waiting = self.working = 0.0
        self.items = self.users = 0
        self.mark = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """An epoch that a run was resumed in does not start; the clock does."""
        self.mark = time.perf_counter()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start over."""
        self.waiting = self.working = 0.0
        self.items = self.users = 0
        self.mark = time.perf_counter()

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, idx: int) -> None:
        """What went by since the last batch was waiting."""
        now = time.perf_counter()
        self.waiting += now - self.mark
        self.mark = now

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """What went by since the batch came was work."""
        now = time.perf_counter()
        self.working += now - self.mark
        self.mark = now
        self.items += len(batch.items)
        self.users += len(batch.users)
        total = max(self.waiting + self.working, 1e-9)
        values = {"train/items_per_s": self.items / total, "train/data_wait": self.waiting / total}
        pl_module.log_dict(values, prog_bar=True, batch_size=1)
        pl_module.log_dict({"train/users_per_s": self.users / total, **peak_memory()}, batch_size=1)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Validation is neither waiting nor training."""
        self.mark = time.perf_counter()


def peak_memory() -> dict[str, float]:
    """The most memory that this process has held so far, in GiB: of the machine, and of the GPU where one is used."""
    found = {}
    if sys.platform != "win32":
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        found["memory/peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
    if torch.cuda.is_initialized():
        found["memory/gpu_peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return found


class EpochLine(pl.Callback):
    """One line per epoch in the log, for terminals that show no progress bar and for log.txt.

    The same numbers go to curves.json in ``folder``, where one is given.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = None if folder is None else Path(folder)
        self.curve: list[dict[str, float]] = []
        self.began = time.perf_counter()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self.began = time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        """A run that goes on from a checkpoint keeps its whole curve."""
        return {"curve": self.curve}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on there."""
        self.curve = list(state_dict["curve"])

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write it after the epoch's validation."""
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        parts = [f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}", f"step {trainer.global_step}"]
        parts.append(f"{time.perf_counter() - self.began:.1f} s")
        for name, style in (("train/loss", ".4f"), ("train/items_per_s", ".0f"), ("train/data_wait", ".1%")):
            if name in metrics:
                parts.append(f"{name} {metrics[name]:{style}}")
        parts += [f"{name} {value:.4f}" for name, value in sorted(metrics.items()) if name.startswith("val/")]
        log.info(" · ".join(parts))
        shown = {
            name: metrics[name]
            for kind in ("train/loss", "val/", "health/")
            for name in sorted(metrics)
            if name.startswith(kind)
        }
        self.curve.append({"epoch": trainer.current_epoch + 1, "step": trainer.global_step, **shown})
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / CURVES).write_text(json.dumps(self.curve), encoding="utf-8")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say why it ended where that was early."""
        stopper = trainer.early_stopping_callback
        if stopper is not None and stopper.stopped_epoch:
            log.info("stopped early: %s has not improved in %d epochs", stopper.monitor, stopper.patience)


class ProgressBar(RichProgressBar):
    """Lightning's, with epochs counted from 1, as the log counts them."""

    def _get_train_description(self, current_epoch: int) -> str:
        epoch = f"Epoch {current_epoch + 1}/{self.trainer.max_epochs}"
        return epoch.ljust(len(self.validation_description))


class TrialReport(pl.Callback):
    """Tells a sweep how each validation went: ``report`` takes (how many, value of ``monitor``), and raises to end."""

    def __init__(self, monitor: str, report: Callable[[int, float], None]) -> None:
        self.monitor = monitor
        self.report = report
        self.validations = 0

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report."""
        if not trainer.sanity_checking:
            self.validations += 1
            self.report(self.validations, float(trainer.callback_metrics[self.monitor]))
