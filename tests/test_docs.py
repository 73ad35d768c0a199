"""Every command that README and docs show names what is there: files, modules, config groups and keys."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from avrec import config, embed, recommend

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "conf").glob("experiment/*.yaml"))]
CONFIGS = {"train.py": "train", "evaluate.py": "evaluate", "avrec.data.check": "check", "avrec.data.prepare": "train"}
KEYS = {"avrec.embed": embed.KEYS, "avrec.recommend": recommend.KEYS}
COMMAND = re.compile(r"python (?:-m )?[\w./]+[^`\n|]*")


def commands(page: Path) -> list[str]:
    """The page's commands, without what a comment behind them says."""
    return [found.split("  #")[0].strip() for found in COMMAND.findall(page.read_text())]


SHOWN = [(page.name, command) for page in PAGES for command in commands(page)]


def test_there_are_some() -> None:
    assert len(SHOWN) >= 10
    assert {name for name, _ in SHOWN} >= {"README.md", "data.md"}


@pytest.mark.parametrize(("page", "command"), SHOWN)
def test_a_shown_command_names_what_is_there(page: str, command: str) -> None:
    words = [word.rstrip(".,;:)") for word in shlex.split(command.replace("…", ""))][1:]
    words = words[1:] if words[0] == "-m" else words
    program, *overrides = words
    if program.endswith(".py"):
        assert (ROOT / program).is_file(), program
    elif program in ("pip", "pytest"):
        return
    else:
        assert importlib.util.find_spec(program) is not None, program
    if program in CONFIGS:
        given = [word for word in overrides if "=" in word]
        if not any(word.startswith("run_dir=") for word in given) and CONFIGS[program] == "train":
            given.append("run_dir=x")
        with initialize_config_dir(str(config.CONF), version_base="1.3"):
            compose(CONFIGS[program], overrides=given)
    if program in KEYS:
        config.from_command_line(overrides, KEYS[program], program)
