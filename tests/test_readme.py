"""README's example in plain Python, as it is printed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import avrec

ROOT = Path(__file__).resolve().parent.parent


def test_the_plain_example_runs_as_printed(tmp_path: Path, demo_root: Path) -> None:
    code = re.search(r"# in plain Python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert code
    (tmp_path / "my_catalogue").symlink_to(demo_root)
    (tmp_path / "example.py").write_text(code.group(1))
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "example.py"], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"^all ndcg@10 0\.\d{4} \[", done.stdout, re.M)
    tower = avrec.load_item_tower(tmp_path / "item_tower")
    assert tower.embed([{"title": "A new upload"}]).shape == (1, 64)


def test_public_names_are_there_and_documented() -> None:
    for name in avrec.__all__:
        assert getattr(avrec, name).__doc__, name
