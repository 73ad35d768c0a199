"""The end of a training that a signal asked for; apart from the callbacks, which take seconds to import."""

import signal
from pathlib import Path


class TrainingStoppedError(Exception):
    """Training was stopped by a signal, after the checkpoint to go on from was written."""

    def __init__(self, signum: int, checkpoint: Path) -> None:
        super().__init__(
            f"stopped by {signal.Signals(signum).name}; to go on, give the same overrides and ckpt={checkpoint} "
            f"(hydra.run.dir={checkpoint.parent.parent} for the same folder)"
        )
        self.signum = signum
