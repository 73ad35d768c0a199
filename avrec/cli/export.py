"""Write a checkpoint's towers as files.

python -m avrec.export ckpt=RUN/checkpoints/best.ckpt
python -m avrec.export ckpt=RUN/checkpoints/best.ckpt target=both format=onnx int8=true out=DIR
"""

import logging
import sys
from pathlib import Path

from avrec.cli.arguments import from_command_line
from avrec.cli.main import entry
from avrec.run import export, restore

KEYS = {
    "ckpt": (..., "a checkpoint in its run folder: RUN/checkpoints/best.ckpt"),
    "data.root": (None, "where the catalogue lies now; by default where the run says"),
    "target": ("item_tower", "item_tower, user_tower or both"),
    "format": ("safetensors", "safetensors, and with onnx or torch_export a program besides"),
    "out": (None, "the folder; by default RUN/item_tower or RUN/user_tower"),
    "int8": ("false", "true: with format=onnx a quantised file besides, and what it loses"),
    "users": ("none", "hashed: write the vectors of single users, under hashed ids"),
}


def main() -> None:
    """Read the arguments, rebuild the run, export."""
    given = from_command_line(sys.argv[1:], KEYS, "python -m avrec.export")
    export.check(**{key: given[key] for key in export.CHOICES})
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    ckpt = Path(given["ckpt"])
    run = restore.of_checkpoint(ckpt, given["data.root"])
    run_dir = ckpt.resolve().parent.parent
    if given["target"] == "both":
        out = {kind: Path(given["out"] or run_dir) / kind for kind in ("item_tower", "user_tower")}
    else:
        out = {given["target"]: Path(given["out"] or run_dir / given["target"])}
    # They are of the best weights.
    results = export.results_of(run_dir) if ckpt.name == "best.ckpt" else []
    export.export_run(run, out, given["format"], given["int8"] == "true", given["users"], results)
    print(*out.values(), sep="\n")


if __name__ == "__main__":
    sys.exit(entry(main, "train"))
