"""An exported tower's folder: it appears complete or not at all, and is read back without unpickling."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from avrec.errors import UserError
from avrec.io import atomic_dir

FORMAT = 1


@contextmanager
def export_folder(folder: Path) -> Iterator[Path]:
    """``atomic_dir`` that replaces an exported tower, and nothing else.

    Raises:
        UserError: something else has that name.
    """
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not _is_export(folder)):
        raise UserError(f"{folder} is there and is no exported tower. Use another folder: out=DIR.")
    with atomic_dir(folder, replace=True) as beside:
        yield beside


def _is_export(folder: Path) -> bool:
    config = folder / "config.json"
    return config.is_file() and '"avrec_' in config.read_text(encoding="utf-8", errors="replace")


def write_weights(folder: Path, state: Mapping[str, Any]) -> None:
    """Write the tensors of a state dict."""
    path = folder / "model.safetensors"
    tensors = {name: t.detach().cpu().contiguous() for name, t in state.items() if isinstance(t, Tensor)}
    save_file(tensors, path, metadata={"format": "pt"})
    os.chmod(path, 0o644)  # safetensors keeps a file to its owner


class Folder:
    """An exported tower's folder, to be read.

    Args:
        path: where it is.
        kind: ``item_tower`` or ``user_tower``.
    """

    def __init__(self, path: str | Path, kind: str) -> None:
        self.path = Path(path)
        self.kind = kind

    def config(self) -> dict[str, Any]:
        """Its ``config.json``.

        Raises:
            UserError: it is not an exported tower of this kind, or of another format.
        """
        config = self.json("config.json")
        model_type = f"avrec_{self.kind}"
        if config.get("model_type") != model_type or config.get("format") != FORMAT:
            raise UserError(
                f"{self.path}/config.json is of model_type {config.get('model_type')!r}, format "
                f"{config.get('format')!r}. This version reads {model_type!r}, format {FORMAT}. {self._again}"
            )
        return config

    def json(self, name: str) -> Any:
        """One of its JSON files.

        Raises:
            UserError: it is not there, or is not JSON of a mapping.
        """
        path = self.file(name)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{path} could not be read as JSON: {error}. {self._again}") from error
        if not isinstance(content, dict):
            raise UserError(f"{path} holds a {type(content).__name__}, not a mapping. {self._again}")
        return content

    def rows(self, name: str, most: int) -> dict[str, int]:
        """One of its JSON files that says which row of a table, from 1, an id has.

        Raises:
            UserError: as for ``json``, or it names rows above ``most``.
        """
        rows = self.json(name)
        wrong = [key for key, row in rows.items() if not (isinstance(row, int) and 1 <= row <= most)]
        if wrong:
            raise UserError(
                f"{self.path / name} gives {wrong[0]!r} the row {rows[wrong[0]]}, and the tower has the rows 1 to "
                f"{most}: the file is of another tower. {self._again}"
            )
        return rows

    def file(self, name: str) -> Path:
        """Path of one of its files.

        Raises:
            UserError: it is not there.
        """
        if not (self.path / name).is_file():
            what = self.kind.replace("_", " ")
            raise UserError(f"{self.path} has no {name}: it is not an exported {what}. Use RUN/{self.kind}.")
        return self.path / name

    def fill(self, tower: nn.Module) -> None:
        """Take the weights.

        Raises:
            UserError: they are damaged, or of another tower.
        """
        tensors: dict[str, Tensor] = load_file(self.file("model.safetensors"))
        if broken := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
            raise UserError(
                f"{self.path}/model.safetensors has numbers that are not finite, in {broken[0]}. {self._again}"
            )
        missing, unexpected = tower.load_state_dict(tensors, strict=False)
        left = [name for name in [*missing, *unexpected] if not name.endswith("_extra_state")]
        if left:
            raise UserError(f"{self.path}/model.safetensors does not fit its config.json: {left[:3]}. {self._again}")

    @contextmanager
    def reading(self) -> Iterator[None]:
        """A block that rebuilds the tower: whatever goes wrong in it is the folder's damage.

        Raises:
            UserError: in place of what the block raises.
        """
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # torch, transformers, timm and safetensors each complain in their own way
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(f"{self.path} is damaged ({type(error).__name__}: {reason}). {self._again}") from error

    @property
    def _again(self) -> str:
        return f"Export it again: avrec export ckpt=RUN/checkpoints/best.ckpt target={self.kind}"
