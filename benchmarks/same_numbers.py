"""Check that a change of the code changes no number: seeded runs, compared value by value.

python benchmarks/same_numbers.py --out before.json                       # the code as it was
python benchmarks/same_numbers.py --out after.json --against before.json  # as it is; status 1: something differs

Trains the demo, and with --catalogue FOLDER that catalogue too, for two epochs on one thread; then evaluates, resumes
and exports the demo's run. Prints a table of how many values agree to the last digit.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "WANDB_MODE": "offline"}
RUN = ["logger=none", "trainer.accelerator=cpu", "trainer.max_epochs=2", "report=false", "datamodule.prepare.workers=1"]


def values(path: Path) -> dict[str, float]:
    """A results file as one flat mapping: model, split, slice and metric to value and interval."""
    found = {}
    for row in json.loads(path.read_text(encoding="utf-8"))["results"]:
        name = " / ".join(str(row.get(key)) for key in ("model", "split", "slice", "metric") if row.get(key))
        found |= {f"{name} / {key}": row[key] for key in ("value", "low", "high", "users") if key in row}
    return found


def run(script: str, *arguments: str) -> None:
    """One of the entry scripts, as a process of its own on one thread."""
    command = [sys.executable, script, *arguments]
    subprocess.run(command, cwd=ROOT, env={**os.environ, **ONE_THREAD}, check=True, stdout=subprocess.DEVNULL)


def measure(catalogue: Path | None, folder: Path) -> dict[str, dict[str, float]]:
    """All runs' values, by what was run."""
    found = {}
    for name, data in {"demo": [], "catalogue": ["data=folder", f"data.root={catalogue}"]}.items():
        if name == "catalogue" and catalogue is None:
            continue
        place = folder / name
        run("train.py", *data, *RUN, f"hydra.run.dir={place}")
        found[f"{name}: train"] = values(place / "metrics.json")
        run("evaluate.py", f"ckpt={place}/checkpoints/best.ckpt")
        found[f"{name}: evaluate"] = values(place / "evaluation.json")
    again = [*RUN, "trainer.max_epochs=3", f"ckpt={folder}/demo/checkpoints/last.ckpt"]
    run("train.py", *again, f"hydra.run.dir={folder}/resumed")
    found["demo: resume"] = values(folder / "resumed" / "metrics.json")
    return found


def main() -> int:
    """Run, write, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("same_numbers.json"))
    parser.add_argument("--against", type=Path, help="what an earlier call wrote")
    parser.add_argument("--catalogue", type=Path, help="a folder to train on besides the demo")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        now = measure(given.catalogue, Path(folder))
    given.out.write_text(json.dumps(now, indent=1, sort_keys=True), encoding="utf-8")
    before = json.loads(given.against.read_text(encoding="utf-8")) if given.against else now
    different = 0
    for name, numbers in now.items():
        theirs = before.get(name, {})
        apart = [key for key in {*numbers, *theirs} if numbers.get(key) != theirs.get(key)]
        different += len(apart)
        print(f"{name:22} {len(numbers):6,} values, {len(apart):,} differ", *sorted(apart)[:5], sep="\n    ")
    return min(different, 1)


if __name__ == "__main__":
    sys.exit(main())
