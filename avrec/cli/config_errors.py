"""Messages for mistakes on the command line, with the nearest key or option."""

import argparse
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from avrec.errors import UserError, nearest
from avrec.run.validation import CONF, must_be_given


def for_hydra(arguments: list[str]) -> list[str]:
    """A command line as Hydra needs it: it looks for ``--config-path`` beside the script, and breaks on ``group=null``.

    Raises:
        UserError: ``group=null``, or ``--config-path`` is no folder.
    """
    for argument in arguments:
        group, _, value = argument.partition("=")
        if value == "null" and (CONF / group).is_dir():
            options = ", ".join(sorted(path.stem for path in (CONF / group).glob("*.yaml")))
            raise UserError(f"`{group}` must be one of {options}; got null.")
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config-path", "-cp", type=Path)
    known, rest = parser.parse_known_args(arguments)
    rest.sort(key=lambda argument: argument not in ("-m", "--multirun"))  # Hydra's parser loses what is before it
    if known.config_path is None:
        return rest
    if not known.config_path.is_dir():
        raise UserError(f"`--config-path` must be a run's folder, or like conf/; {known.config_path} is not a folder.")
    if "logger=none" in rest:
        at = rest.index("logger=none")
        rest[at : at + 1] = [f"logger.{name}=null" for name in _loggers(known.config_path)]
    # A run's config.yaml holds no groups: those of Hydra's own that it names are here. Overrides must stand together.
    last = max((i for i, argument in enumerate(rest, 1) if re.match(r"[^-]\S*=|~", argument)), default=len(rest))
    rest.insert(last, f"hydra.searchpath=['file://{CONF}']")
    return ["--config-path", str(known.config_path.resolve()), *rest]


def _loggers(run: Path) -> list[str]:
    """The loggers of a run's config."""
    from omegaconf import OmegaConf

    path = run / "config.yaml"
    config: Any = OmegaConf.load(path) if path.is_file() else {}
    return list(config.get("logger") or ())


def explain(error: Exception, config_name: str) -> str:
    """A config error in one sentence or two, with the nearest key or option."""
    text = str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    unknown = re.search(r"Could not override '([^']+)'", text)
    if unknown:
        key = unknown.group(1).split("@")[0]
        if "in the defaults list" in text:
            return (
                f"`{key}` must be changed value by value, {key}.KEY=VALUE: a run's config has no groups. "
                "logger=none disables logging."
            )
        known = known_keys(config_name)
        if key in known:
            group = key.partition(".")[0]
            return f"`{key}` is not an argument of the chosen {group}. Leave out one of the two."
        near = nearest(key, known)
        return f"Unknown key `{key}`. {near} All keys: avrec {config_name} --cfg job"
    option = re.search(r"Could not find '([^']+)'", text)
    if option:
        group, _, name = option.group(1).rpartition("/")
        if group.startswith("hydra/"):
            return f"Unknown option {group}={name}. Install its package; see docs/sweeps.md."
        options = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
        return f"Unknown option {group}={name}. {nearest(name, options)} Options: {', '.join(options)}."
    missing = re.search(r"Missing mandatory value: (\S+)", text)
    if missing:
        return must_be_given(missing.group(1))
    if "Error locating target 'optuna" in text and find_spec("optuna") is None:
        return "A sweep needs Optuna: pip install 'avrec[sweep]'."
    target = re.search(r"Error locating target '([^']+)'.*full_key: (\S+)", text, re.DOTALL)
    if target:
        return f"{target[2]}: {target[1]} cannot be imported. Check the name, or install its package."
    return " ".join(lines[:2])


def known_keys(config_name: str) -> list[str]:
    """Every key of a primary config with its defaults, and its groups."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(config_name)
    groups = [path.name for path in CONF.iterdir() if path.is_dir() and path.name != "hydra"]
    return sorted({*groups, *_keys(OmegaConf.to_container(cfg, resolve=False))})


def _keys(node: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(node, dict):
        for name, value in node.items():
            yield f"{prefix}{name}"
            yield from _keys(value, f"{prefix}{name}.")
