"""python -m avrec.export ckpt=RUN/checkpoints/best.ckpt [out=DIR]: write a checkpoint's item tower as files."""

import sys
from pathlib import Path

from avrec import config, pipeline
from avrec.export.item_tower import export_item_tower


def main() -> None:
    """Read the arguments, rebuild the run, export."""
    given = config.from_command_line(sys.argv[1:], {"ckpt": None, "out": None}, "python -m avrec.export")
    run = pipeline.of_checkpoint(given["ckpt"])
    out = Path(given["out"] or Path(given["ckpt"]).resolve().parent.parent / "item_tower")
    ids = [item.item_id for item in run.data.catalogue.items]
    export_item_tower(run.module.item_tower, out, ids, run.data.trained_N, run.data.catalogue.text)
    print(out)


if __name__ == "__main__":
    sys.exit(config.entry(main, "train"))
