"""Every command that README and docs show names what is there: files, modules, config groups and keys."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest
from avrec.cli.arguments import from_command_line
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser

from avrec.retrieval import embed, recommend
from avrec.run.config import CONF

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "conf").glob("experiment/*.yaml"))]
CONFIGS = {
    "train.py": "train",
    "evaluate.py": "evaluate",
    "avrec.data.check.checks": "check",
    "avrec.cli.prepare": "train",
}
KEYS = {"avrec.retrieval.embed": embed.KEYS, "avrec.retrieval.recommend": recommend.KEYS}
COMMAND = re.compile(r"python (?:-m )?[\w./]+[^`\n|]*")


def commands(page: Path, pattern: re.Pattern[str] = COMMAND) -> list[str]:
    """The page's commands, without what a comment behind them says."""
    return [found.split("  #")[0].split(')"')[0].strip() for found in pattern.findall(page.read_text())]


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
    # Files of the reader's own: tests/test_extending.py runs that command.
    if program in CONFIGS and "--config-dir" not in words:
        parsed = OverridesParser.create().parse_overrides([word for word in overrides if "=" in word])
        # Of a sweep's choices, the first; the ends of `-sc install=bash` are Hydra's.
        given = [
            f"{one.get_key_element()}={next(one.sweep_string_iterator())}"
            if one.is_discrete_sweep()
            else one.input_line
            for one in parsed
            if one.input_line != "install=bash" and not one.is_interval_sweep()
        ]
        if not any(word.startswith("run_dir=") for word in given) and CONFIGS[program] == "train":
            given.append("run_dir=x")
        with initialize_config_dir(str(CONF), version_base="1.3"):
            compose(CONFIGS[program], overrides=given)
    if program in KEYS:
        from_command_line(overrides, KEYS[program], program)


def test_every_page_is_on_the_site() -> None:
    pages = re.findall(r": (\w+\.md)$", (ROOT / "docs" / "site" / "mkdocs.yml").read_text(), re.M)
    assert sorted(pages) == sorted(page.name for page in (ROOT / "docs").glob("*.md"))
