"""Download: one file from one address, whole and verified, or not at all."""

import http.client
import logging
import shutil
import urllib.error
import urllib.request
import zipfile
from collections.abc import Sequence
from pathlib import Path

from avrec.content.progress import progress
from avrec.errors import UserError
from avrec.io import atomic_write, file_digest

logger = logging.getLogger(__name__)

CHUNK = 1 << 18
TIMEOUT = 60
"""Seconds without a byte after which a transfer counts as interrupted."""


def fetch(url: str, target: Path, sha256: str) -> Path:
    """The file at ``url`` as ``target``, which is returned; nothing is fetched where it is there already.

    What has arrived lies beside it as ``NAME.part``; after an interruption the next call goes on from there (HTTP
    Range), and the name is given only to a file with the right SHA-256, hexadecimal.

    Raises:
        UserError: no such address, an interruption, or another checksum.
    """
    if target.is_file():
        if (found := file_digest(target)) == sha256:
            return target
        raise UserError(
            f"{target} exists and is not the file that {url} provides: its SHA-256 is {found} and must be {sha256}. "
            "Remove it or move it away."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    try:
        _transfer(url, part)
    except urllib.error.HTTPError as error:
        raise UserError(
            f"{url} answered {error.code} {error.reason}. Find its new address, download it by hand, and put it at "
            f"{target}."
        ) from error
    except (OSError, http.client.HTTPException) as error:
        have = part.stat().st_size if part.is_file() else 0
        reason = getattr(error, "reason", None) or error or type(error).__name__
        raise UserError(
            f"{url} could not be downloaded: {reason}. {have:,} bytes are kept; repeat the command to continue from "
            "there."
        ) from error
    found = file_digest(part)
    if found != sha256:
        part.unlink()
        raise UserError(
            f"{url} has SHA-256 {found} and must have {sha256}: it was damaged in transfer or has been replaced. It is "
            "not kept; repeat the command, or download it by hand and inspect it."
        )
    return part.replace(target)


def fetch_members(url: str, folder: Path, sha256: str, names: Sequence[str]) -> None:
    """The files ``names`` out of a zip, straight into ``folder`` whatever folder they have in the zip.

    The zip is kept beside them; nothing is fetched where all of them are there.

    Raises:
        UserError: see ``fetch``; or the zip lacks a file.
    """
    if all((folder / name).is_file() for name in names):
        return
    archive = fetch(url, folder / url.rpartition("/")[2], sha256)
    with zipfile.ZipFile(archive) as contents:
        members = {member.rpartition("/")[2]: member for member in contents.namelist()}
        for name in names:
            if name not in members:
                raise UserError(f"{archive} holds no {name}, but {', '.join(sorted(members))}.")
            with atomic_write(folder / name, "wb") as file, contents.open(members[name]) as member:
                shutil.copyfileobj(member, file)


def _transfer(url: str, part: Path) -> None:
    have = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:
            return  # there is nothing beyond what is here: the checksum says whether it is the file
        raise
    with answer:
        start = have if answer.status == 206 else 0
        rest = answer.headers.get("Content-Length")
        total = None if rest is None else start + int(rest)
        logger.info("%s: from byte %s of %s", url, f"{start:,}", "?" if total is None else f"{total:,}")
        with part.open("ab" if start else "wb") as file, progress(part.stem, total, start, True) as advance:
            while data := answer.read(CHUNK):
                file.write(data)
                advance(len(data))
    if total is not None and part.stat().st_size < total:
        raise ConnectionError(f"the connection ended {total - part.stat().st_size:,} bytes too early")
