"""avrec prepare: prepare the content of all encoders of a config, without training.

Takes what train takes, and train with the same choices then finds everything prepared. Items are spread over
processes of this machine (datamodule.prepare.workers=8) or over a Ray cluster (executor=ray).
"""

import logging
from typing import TYPE_CHECKING

from avrec.cli.main import command, user_errors_as_exit_codes

if TYPE_CHECKING:
    from omegaconf import DictConfig

log = logging.getLogger(__name__)


def prepare(cfg: "DictConfig") -> None:
    """Prepare, and log how many items have which modality."""
    from avrec.run.build import build_run
    from avrec.run.outputs import Timing

    with user_errors_as_exit_codes(is_job=True):
        timing = Timing()
        with timing.part("prepare"):
            built = build_run(cfg)
            data = built.data
            data.prepare(built.module.item_tower)
        counts = ", ".join(f"{name} {content.present_N.sum():,}" for name, content in data.items.content.items())
        log.info("%s items: %s; %.0f s", f"{len(data.catalogue.items):,}", counts, timing.seconds["prepare"])


def main() -> int:
    """The command; its exit status."""
    return command(prepare, "prepare")
