"""avrec check: read a catalogue whole, train nothing, and report each problem with its fix."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from avrec.cli.main import command, user_errors_as_exit_codes

if TYPE_CHECKING:
    from omegaconf import DictConfig


def run(cfg: "DictConfig") -> None:
    """Check what a config names; print the report, write it, and exit with its status, or 2 after a mistake."""
    from rich.console import Console

    from avrec.content.items import DecodeRequest
    from avrec.data.check.checks import check, inspect_all, sampled
    from avrec.data.check.report import show
    from avrec.data.demo.source import DemoSource
    from avrec.errors import UserError
    from avrec.run import build, config

    with user_errors_as_exit_codes():
        if not isinstance(cfg.media, bool | int) or cfg.media < 0 or cfg.workers < 1:
            raise UserError(
                f"media={cfg.media} workers={cfg.workers} were given. Give media=true, false or a number of items, and "
                "1 worker or more."
            )
        source = build.build_source(cfg)
        if isinstance(source, DemoSource):
            source = source.as_folder()
        named = ("vision", "audio")
        reads = {name: cfg[name] is not None and build.encoder_reads(cfg[name]) == "files" for name in named}
        request = DecodeRequest(
            image=reads["vision"],
            video_frames=cfg.vision.get("video_frames", 0) if reads["vision"] else 0,
            sample_rate=cfg.audio.get("sample_rate", 16_000) if reads["audio"] else 0,
            max_seconds=cfg.audio.get("seconds", 10.0) if reads["audio"] else 0.0,
        )
        report = check(
            source,
            config.instantiate(cfg.split, "split"),
            None if cfg.text is None else cfg.text.get("max_tokens"),
            lambda items: inspect_all(sampled(items, cfg.media), request, cfg.workers) if any(reads.values()) else [],
        )
        show(report, Console(width=None if sys.stdout.isatty() else 100, highlight=False))
        if cfg.out is not None:
            out = Path(cfg.out)
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(report.as_json(), indent=2, ensure_ascii=False) + "\n", "utf-8")
            print(f"written: {out}", file=sys.stderr)
    raise SystemExit(report.status)


def main() -> int:
    """The command; its exit status."""
    return command(run, "check")
