"""Files that are written whole or not at all, their checksums, and locks that end with the process that holds them."""

import hashlib
import os
from contextlib import suppress
from pathlib import Path

from filelock import FileLock

from ccdlib.base.registry import CcdError


def write_whole(path: str | Path, content: str | bytes) -> None:
    """Write text or bytes to `path`, so that an interruption leaves the old file or the new one, never a part.

    Missing folders are made. Errors: CcdError where the file cannot be written, on a full disk for example.
    """
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
            f"{path} could not be written ({error.strerror}). Free some space, or set CCD_OUTPUTS to another folder; what "
            "was computed before is kept, and the same command goes on from there"
        ) from error


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file's content, 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_lock(path: str | Path) -> FileLock:
    """A lock on `path` that ends with the process that holds it, also when that is killed.

    Taking it raises OSError on a file system without locks, where FileLock by default falls back to a file that a killed
    process never removes.
    """
    return FileLock(path, fallback_to_soft=False)
