"""Entry of every command: compose a config, run, and turn a user's mistake or a stop into an exit code."""

import errno
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf, errors

from avrec.cli.config_errors import explain, for_hydra
from avrec.errors import UserError
from avrec.run.build import CONF
from avrec.run.redact import masked
from avrec.sweep import study

if TYPE_CHECKING:
    pass
from avrec.run.build import log


def entry(main: Callable[[], Any], config_name: str) -> int:
    """Run an entry script's main so that a user's mistake ends in one message, and a stop in a clean one.

    Keys are looked up in the primary config ``config_name`` for "did you mean".

    Returns:
        Exit status: 0 fine, 2 the user's mistake, 128 + signal where it was stopped.
    """
    from hydra.errors import HydraException

    from avrec.sweep import hydra_sweeper

    os.environ["HYDRA_FULL_ERROR"] = "1"
    hydra_sweeper.register()
    try:
        with user_errors_as_exit_codes():
            sys.argv[1:] = for_hydra(sys.argv[1:])
            main()
    except (HydraException, errors.OmegaConfBaseException) as error:
        print(f"error: {masked(explain(error, config_name))}", file=sys.stderr)
        return 2
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def command(main: Callable[[DictConfig], None], config_name: str) -> int:
    """Compose a primary config with the command line's overrides and run ``main`` on it, as ``entry`` does."""
    import hydra

    return entry(hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(main), config_name)


@contextmanager
def user_errors_as_exit_codes(run_dir: str | Path | None = None) -> Iterator[None]:
    """Turn a user's mistake, a file that the system refuses, or a stop into a message and an exit status.

    With ``hydra.verbose=true`` the traceback is said, too.

    After a mistake, a ``run_dir`` to which nothing but the log has been written is removed.

    Raises:
        SystemExit: with status 2 for a mistake, 128 + signal for a stop.
    """
    from avrec.errors import TrainingStoppedError

    try:
        yield
    except TrainingStoppedError as error:
        folder = os.environ.get(study.TRIAL, "").partition("@")[2]
        goes_on = f"stopped; the same command with hydra.sweep.dir={folder} goes on with the sweep"
        print(goes_on if folder else error, file=sys.stderr)
        raise SystemExit(128 + error.signum) from None
    except Exception as error:
        said = str(error) if isinstance(error, UserError) else _no_place(error)
        if said is None:
            raise
        log.debug("%s", said, exc_info=True)
        if run_dir is not None and _one_of_many():  # the others go on
            raise UserError(said) from error
        print(f"error: {said}", file=sys.stderr)
        if run_dir is not None:
            _remove_if_bare(Path(run_dir))
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("stopped; what was prepared or saved is kept", file=sys.stderr)
        raise SystemExit(130) from None


def _no_place(error: BaseException) -> str | None:
    """What to say of a file that the system refuses; None: it is something else."""
    full = os.strerror(errno.ENOSPC)
    if full in str(error) and not isinstance(error, OSError):  # safetensors and polars have errors of their own
        error = OSError(errno.ENOSPC, full)
    while not isinstance(error, OSError) and error.__cause__:  # logging raises a ValueError from it
        error = error.__cause__
    if not isinstance(error, OSError) or isinstance(error, ConnectionError | TimeoutError):
        return None
    if not error.filename and error.errno != errno.ENOSPC:
        return None
    return (
        f"{error.filename2 or error.filename or 'A file'} cannot be opened or written: {error.strerror}. If it is one "
        "that the command writes, make room or give another place (hydra.run.dir, hydra.sweep.dir, cache_dir, out)."
    )


def _one_of_many() -> bool:
    from hydra.core.hydra_config import HydraConfig

    return HydraConfig.initialized() and not OmegaConf.is_missing(HydraConfig.get().job, "num")


def _remove_if_bare(run_dir: Path) -> None:
    # A quarantine report is what the message refers to: it stays, and so does its folder.
    if run_dir.is_dir() and {path.name for path in run_dir.iterdir()} <= {"log.txt", "config.yaml"}:
        logging.shutdown()
        for path in run_dir.iterdir():
            path.unlink()
        run_dir.rmdir()
