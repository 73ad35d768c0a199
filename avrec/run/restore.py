"""Bring a run back from its checkpoint."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from avrec.errors import UserError
from avrec.run import config
from avrec.run.build import Run, build_run

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from avrec.data.datamodule import TwoTowerData
    from avrec.training.module import TwoTowerModule


def of_checkpoint(ckpt: str | Path, root: str | Path | None = None) -> Run:
    """Bring a run back from its checkpoint.

    Args:
        ckpt: in its run folder.
        root: where the catalogue lies now; None: where the run says.

    Raises:
        UserError: there is no such checkpoint, or it does not fit its run.
    """
    cfg = config.of_run(ckpt, root)
    run = build_run(cfg)
    load_weights(run.module, run.data, ckpt)
    run.data.prepare(run.module.item_tower)
    return run


def load_weights(module: "TwoTowerModule", data: "TwoTowerData", ckpt: str | Path) -> dict[str, Any]:
    """Take a checkpoint's weights (and learned tokenizer).

    Returns:
        The checkpoint.

    Raises:
        UserError: it is no checkpoint of this model, or of another catalogue.
    """
    import torch

    advice = "Use a checkpoint of a run with these settings and this catalogue: ckpt=RUN/checkpoints/best.ckpt."
    if not Path(ckpt).is_file():
        raise UserError(f"ckpt={ckpt} is not a file. {advice}")
    try:
        checkpoint: dict[str, Any] = torch.load(ckpt, map_location="cpu", weights_only=True)
        weights, state = checkpoint["state_dict"], checkpoint.get(type(data).__qualname__, {})
    except Exception as error:  # a damaged file makes torch raise nearly anything
        raise UserError(f"ckpt={ckpt} is no checkpoint, or is damaged ({type(error).__name__}). {advice}") from error
    known = state.get("fingerprint", {}).get("catalogue")
    if known not in (None, data.fingerprint["catalogue"]):
        raise UserError(
            f"ckpt={ckpt} was trained on other items, users or interactions than these: the catalogue is another one, "
            "or has changed. Use a copy from before (data.root=COPY), or train on it as it is now. Exported towers "
            "need no catalogue: avrec embed."
        )
    try:
        module.load_state_dict(weights)
    except (RuntimeError, KeyError, ValueError) as error:
        reason = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise UserError(f"ckpt={ckpt} does not fit this model: {' '.join(reason[1:3] or reason)} {advice}") from error
    return checkpoint


def check_resumable(cfg: "DictConfig", module: "TwoTowerModule", data: "TwoTowerData") -> None:
    """Refuse to go on from a checkpoint where that could not be what was meant, before anything is written.

    Raises:
        UserError: ``cfg.ckpt`` is damaged, of another model, catalogue, order or optimizer, or has no epoch left.
    """

    checkpoint = load_weights(module, data, cfg.ckpt)
    if not checkpoint.get("optimizer_states"):
        raise UserError(
            f"ckpt={cfg.ckpt} holds weights alone, and nothing to go on from. Use RUN/checkpoints/last.ckpt."
        )
    order = checkpoint[type(data).__qualname__].get("fingerprint", data.fingerprint)["order"]
    changed = config.changed_since(cfg, cfg.ckpt, ("optimizer", "scheduler"))
    if order != data.fingerprint["order"] or changed:
        theirs = f"{order} {changed}".strip()
        raise UserError(f"ckpt={cfg.ckpt} goes on with {theirs}. Use the same, or start anew without ckpt.")
    if 0 <= cfg.trainer.max_epochs <= checkpoint["epoch"]:
        raise UserError(
            f"ckpt={cfg.ckpt} is in epoch {checkpoint['epoch'] + 1}, and trainer.max_epochs={cfg.trainer.max_epochs}. "
            "Use a larger one."
        )
