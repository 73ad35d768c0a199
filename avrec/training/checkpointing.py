"""What a checkpoint holds and when it is written: the best and the last, in a moved folder too, and at a clean stop."""

import logging
import shutil
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint

from avrec.errors import TrainingStoppedError

log = logging.getLogger(__name__)


class Checkpoint(ModelCheckpoint):
    """Lightning's, which also goes on in another folder than the one it began in: with the best that was reached there.

    Lightning itself forgets it then, and would test the best of what came after.
    """

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Take over the file beside the one that is gone on from."""
        state, here = checkpoint.get("callbacks", {}).get(self.state_key), str(self.dirpath)
        if not state or state["dirpath"] == here or trainer.ckpt_path is None:
            return
        kept = Path(trainer.ckpt_path).parent / Path(state["best_model_path"]).name
        if kept.is_file():
            Path(here).mkdir(parents=True, exist_ok=True)
            if not kept.parent.samefile(here):  # it is, where a whole run folder was moved
                shutil.copy2(kept, here)
            checkpoint["callbacks"][self.state_key] = _moved(state, state["dirpath"], here)
        elif state["monitor"]:
            log.warning("%s is gone: the best weights are those of the epochs from here on", kept)


def _moved(value: Any, before: str, after: str) -> Any:
    """The same with paths in another folder."""
    if isinstance(value, dict):
        return {_moved(key, before, after): _moved(each, before, after) for key, each in value.items()}
    return after + value.removeprefix(before) if isinstance(value, str) and value.startswith(before) else value


class GracefulStop(pl.Callback):
    """Ctrl-C and SIGTERM write last.ckpt to ``folder`` after the step in progress and end the run.

    A second signal ends it at once.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.signum: int | None = None
        self.before: dict[int, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take over the signals."""
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                self.before[signum] = signal.signal(signum, self._received)

    def _received(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None:
            self._restore()
            raise KeyboardInterrupt
        self.signum = signum
        log.warning("%s: writing last.ckpt after this step; once more to stop at once", signal.Signals(signum).name)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop between two steps of the optimizer: gradients that were only gathered are in no checkpoint."""
        if trainer.is_last_batch or (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self._stop_if_asked(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop after validation."""
        if not trainer.sanity_checking:
            self._stop_if_asked(trainer)

    def _stop_if_asked(self, trainer: pl.Trainer) -> None:
        if self.signum is None:
            return
        checkpoint = self.folder / "last.ckpt"
        trainer.save_checkpoint(checkpoint)
        raise TrainingStoppedError(self.signum, checkpoint)

    def _restore(self) -> None:
        for signum, handler in self.before.items():
            signal.signal(signum, handler)
        self.before = {}

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Give the signals back."""
        self._restore()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Give the signals back."""
        self._restore()
