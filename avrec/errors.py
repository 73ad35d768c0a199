"""What may end a run on purpose: a user's mistake, or a stop."""

import difflib
import signal
from collections.abc import Sequence
from pathlib import Path


class UserError(ValueError):
    """A mistake in what the user gave. Its message states what must hold, what was given and the nearest fix."""


class TrainingStoppedError(Exception):
    """Training was stopped by a signal, after the checkpoint to go on from was written."""

    def __init__(self, signum: int, checkpoint: Path) -> None:
        super().__init__(
            f"stopped by {signal.Signals(signum).name}; to go on, give the same overrides and ckpt={checkpoint} "
            f"(hydra.run.dir={checkpoint.parent.parent} for the same folder)"
        )
        self.signum = signum


def nearest(name: str, names: Sequence[str]) -> str:
    """ "Did you mean …?", or nothing if no name is close.

    Dotted names match by their last part, too.
    """
    by_tail = {known.rsplit(".", 1)[-1]: known for known in names}
    found = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if not found:
        found = [by_tail[tail] for tail in difflib.get_close_matches(name.rsplit(".", 1)[-1], by_tail, n=1, cutoff=0.7)]
    return f"Did you mean {found[0]}?" if found else ""
