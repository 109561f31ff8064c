"""Files that appear whole or not at all, their checksums, and locks that end with their process."""

import hashlib
import os
from contextlib import suppress
from pathlib import Path

from filelock import FileLock

from ccdlib.base.registry import CcdError


def write_whole(path: str | Path, content: str | bytes) -> None:
    """Write bytes or text so that `path` has all of it or stays as it was; CcdError where the disk says no."""
    path = Path(path)
    content = content.encode() if isinstance(content, str) else content
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(beside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise CcdError(
            f"{path} could not be written ({error.strerror}). Free some space, or name another folder in CCD_OUTPUTS; what "
            "was computed before is kept, and the same command goes on from there"
        ) from error


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_lock(path: str | Path) -> FileLock:
    """A lock that ends with the process that holds it, however that ends; an OSError where the file system has none.

    (By itself FileLock would take a lock there that a killed process leaves behind for ever.)
    """
    return FileLock(path, fallback_to_soft=False)
