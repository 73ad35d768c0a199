"""avrec check: read a catalogue whole, train nothing, and report each problem with its fix."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from avrec.cli.main import command, user_errors_as_exit_codes

if TYPE_CHECKING:
    from omegaconf import DictConfig


def run(cfg: "DictConfig") -> None:
    """Check what a config names; print the report, write it, and exit with its status, or 2 after a mistake."""
    from avrec.cli.console import console
    from avrec.content.items import DecodeRequest
    from avrec.data.check.checks import check
    from avrec.data.check.media import inspect_all, sampled
    from avrec.data.check.report import show
    from avrec.data.demo.source import DemoSource
    from avrec.errors import UserError
    from avrec.io import write_json
    from avrec.run import build, config

    with user_errors_as_exit_codes():
        if not isinstance(cfg.media, bool | int) or cfg.media < 0 or cfg.workers < 1:
            raise UserError(
                f"media={cfg.media} workers={cfg.workers} were given. Use media=true, false or a number of items, and "
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
            token_counter(cfg.text),
        )
        show(report, console(100))
        if cfg.out is not None:
            write_json(Path(cfg.out), report.as_json(), readable=True)
            print(f"written: {cfg.out}", file=sys.stderr)
    raise SystemExit(report.status)


def token_counter(text: "DictConfig | None") -> "Callable[[list[str]], list[int] | None] | None":
    """What counts tokens as the run's text encoder will; it gives None where the tokenizer cannot be loaded."""
    if text is None or text.get("max_tokens") is None:
        return None

    def count(texts: list[str]) -> list[int] | None:
        from transformers import AutoTokenizer

        from avrec.errors import UserError
        from avrec.run import config
        from avrec.towers.encoders.text import learn_tokenizer

        try:
            name = text.get("name")
            if name is None:
                tokenizer = learn_tokenizer(sorted(texts), text.vocab_size)
            else:
                name = name if isinstance(name, str) else config.instantiate(name, "text.name")
                tokenizer = AutoTokenizer.from_pretrained(str(name), trust_remote_code=False)
        except (UserError, ImportError, OSError, ValueError):
            return None
        return [len(ids) for ids in tokenizer(texts, verbose=False)["input_ids"]]

    return count


def main() -> int:
    """The command; its exit status."""
    return command(run, "check")
