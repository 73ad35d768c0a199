"""Write a checkpoint's towers as files.

python -m avrec.export ckpt=RUN/checkpoints/best.ckpt
python -m avrec.export ckpt=RUN/checkpoints/best.ckpt target=both format=onnx int8=true out=DIR
"""

import logging
import sys
from pathlib import Path

from avrec import config, exporting, pipeline
from avrec.arguments import from_command_line

DEFAULTS = {
    "ckpt": None,
    "target": "item_tower",
    "format": "safetensors",
    "out": None,
    "int8": "false",
    "users": "none",
}


def main() -> None:
    """Read the arguments, rebuild the run, export."""
    given = from_command_line(sys.argv[1:], DEFAULTS, "python -m avrec.export")
    exporting.check(**{key: given[key] for key in exporting.CHOICES})
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    ckpt = Path(given["ckpt"])
    run = pipeline.of_checkpoint(ckpt)
    run_dir = ckpt.resolve().parent.parent
    if given["target"] == "both":
        out = {kind: Path(given["out"] or run_dir) / kind for kind in ("item_tower", "user_tower")}
    else:
        out = {given["target"]: Path(given["out"] or run_dir / given["target"])}
    # They are of the best weights.
    results = exporting.results_of(run_dir) if ckpt.name == "best.ckpt" else []
    exporting.export_run(run, out, given["format"], given["int8"] == "true", given["users"], results)
    print(*out.values(), sep="\n")


if __name__ == "__main__":
    sys.exit(config.entry(main, "train"))
