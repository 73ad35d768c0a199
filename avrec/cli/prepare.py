"""python -m avrec.cli.prepare data=... [overrides]: prepare the content of all encoders of a config, without training.

Takes what train.py takes, and train.py with the same choices then finds everything prepared. Items are spread over
processes of this machine (datamodule.prepare.workers=8) or over a Ray cluster (executor=ray).
"""

import logging
import sys
from typing import TYPE_CHECKING

from avrec.cli.main import command, user_errors_as_exit_codes
from avrec.run import build, outputs

if TYPE_CHECKING:
    from omegaconf import DictConfig

log = logging.getLogger(__name__)


def prepare(cfg: "DictConfig") -> None:
    """Prepare, and say how many items have what; ``config.slips`` says what becomes of a mistake."""
    with user_errors_as_exit_codes(cfg.run_dir):
        timing = outputs.Timing()
        with timing.part("prepare"):
            data = build.build(cfg).data
            data.prepare_data()
        counts = ", ".join(f"{name} {content.present_N.sum():,}" for name, content in data.items.content.items())
        log.info("%s items: %s; %.0f s", f"{len(data.catalogue.items):,}", counts, timing.seconds["prepare"])


if __name__ == "__main__":
    sys.exit(command(prepare, "train"))
