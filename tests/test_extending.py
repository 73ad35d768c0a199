"""docs/extending.md: its encoder trains, as it is printed, from files outside avrec."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "extending.md").read_text()


def block(name: str) -> str:
    found = re.search(rf"```\w+\n# {re.escape(name)}\n(.*?)```", PAGE, re.S)
    assert found, name
    return found.group(1)


def test_the_encoder_is_short_and_trains(tmp_path: Path, demo_root: Path) -> None:
    code = block("colours.py")
    lines = [line for line in code.splitlines() if line.strip() and not line.startswith(("import", "from"))]
    assert len(lines) <= 30
    (tmp_path / "colours.py").write_text(code)
    conf = tmp_path / "my_conf" / "vision"
    conf.mkdir(parents=True)
    (conf / "colours.yaml").write_text(block("my_conf/vision/colours.yaml"))
    small = ["text=none", "audio=none", "dim=16", "logger=none", "trainer.max_epochs=1", "report=false"]
    small += ["evaluation.baselines=[]", "datamodule.prepare.workers=0", "trainer.accelerator=cpu"]
    places = [f"data.root={demo_root}", "data=folder", f"cache_dir={tmp_path}/cache", f"hydra.run.dir={tmp_path}/run"]
    command = [sys.executable, str(ROOT / "train.py"), "--config-dir", "my_conf", "vision=colours", *small, *places]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([".", str(ROOT)])}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "metrics.json").is_file()
