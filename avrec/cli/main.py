"""The entry of every command: dispatch, compose, run; a user's mistake or a stop becomes an exit code."""

import importlib
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from avrec.errors import TrainingStoppedError, UserError, nearest

if TYPE_CHECKING:
    from omegaconf import DictConfig

log = logging.getLogger(__name__)

COMMANDS = {
    "train": "train on a catalogue, measure, export",
    "evaluate": "measure a checkpoint, or compare two",
    "check": "read a catalogue whole and report its problems",
    "prepare": "decode and store the content of a catalogue, without training",
    "embed": "embed items with an exported item tower",
    "export": "write the towers of a run as files",
    "recommend": "the best items for a user, or the users for new items",
    "sweep": "train over several settings: train -m",
}


def main() -> int:
    """The command ``avrec``; its exit status."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("--help", "-h"):
        width = max(map(len, COMMANDS))
        commands = (f"  {command:{width}}  {meaning}" for command, meaning in COMMANDS.items())
        print("Usage: avrec COMMAND [group=option] [key=value] …", "", *commands, sep="\n")
        print("", "The options of a command: avrec COMMAND --help", sep="\n")
        return 0
    if name == "--version":
        import avrec

        print(avrec.__version__)
        return 0
    if name not in COMMANDS:
        near = nearest(name, list(COMMANDS)) or f"Commands: {', '.join(COMMANDS)}."
        print(f"error: avrec has no command {name}. {near}", file=sys.stderr)
        return 2
    sys.argv[:2] = [f"{sys.argv[0]} {name}"]
    if name == "sweep" and not {"-m", "--multirun"} & set(sys.argv):
        sys.argv.insert(1, "-m")
    module = importlib.import_module(f"avrec.cli.{'train' if name == 'sweep' else name}")
    status: int = module.main()
    return status


def command(task: "Callable[[DictConfig], Any]", config_name: str) -> int:
    """Compose a primary config with the command line's overrides, and run ``task`` on it.

    Returns:
        Exit status: 0 fine, 2 a user's mistake, 128 + signal after a stop.
    """
    import hydra
    from hydra.core.plugins import Plugins
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from avrec.cli.config_errors import explain, for_hydra
    from avrec.run.redact import masked
    from avrec.run.validation import CONF
    from hydra_plugins.avrec_sweeper import StudySweeper

    os.environ["HYDRA_FULL_ERROR"] = "1"
    Plugins.instance().register(StudySweeper)  # Hydra's own search does not see editable installs
    try:
        with user_errors_as_exit_codes():
            sys.argv[1:] = for_hydra(sys.argv[1:])
            hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(task)()
    except (HydraException, OmegaConfBaseException) as error:
        print(f"error: {masked(explain(error, config_name))}", file=sys.stderr)
        return 2
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@contextmanager
def user_errors_as_exit_codes(is_job: bool = False) -> Iterator[None]:
    """Turn a user's mistake, a file that cannot be opened, or a stop into a message and an exit status.

    With ``hydra.verbose=true`` the traceback is logged, too. One job of several (``is_job``) hands its mistake on
    instead, so that the others go on.

    Raises:
        SystemExit: with status 2 for a mistake, 128 + signal for a stop.
        UserError: the mistake of one job of several.
    """
    from avrec.run.validation import must_be_given
    from avrec.sweep import TRIAL

    try:
        yield
    except TrainingStoppedError as error:
        folder = os.environ.get(TRIAL, "").partition("@")[2]
        goes_on = f"stopped; the same command with hydra.sweep.dir={folder} goes on with the sweep"
        print(goes_on if folder else error, file=sys.stderr)
        raise SystemExit(128 + error.signum) from None
    except Exception as error:
        if type(error).__name__ == "MissingMandatoryValue":
            error = UserError(must_be_given(getattr(error, "full_key", "") or str(error).rpartition(" ")[2]))
        message = str(error) if isinstance(error, UserError) else _refused_file(error)
        if message is None:
            raise
        log.debug("%s", message, exc_info=True)
        if is_job and _one_of_many():
            raise UserError(message) from error
        print(f"error: {message}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("stopped; what was prepared or saved is kept", file=sys.stderr)
        raise SystemExit(130) from None


def _refused_file(error: BaseException) -> str | None:
    """The message for a file that the system does not open or write; None: it is another error."""
    if isinstance(error.__cause__, OSError):  # logging raises a ValueError from it
        error = error.__cause__
    if isinstance(error, OSError) and error.filename:
        return f"Cannot open or write {error.filename2 or error.filename}: {error.strerror}."
    return None


def _one_of_many() -> bool:
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    return HydraConfig.initialized() and not OmegaConf.is_missing(HydraConfig.get().job, "num")
