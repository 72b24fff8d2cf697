"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A scratch file that replaces ``path`` when the block ends without an error, and vanishes otherwise.

    Until the last byte is on the disk, the old file stays.

    Args:
        path: The file to write; its folder exists.
    """
    target = Path(path)
    scratch = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        yield scratch
        with scratch.open("rb") as written:
            os.fsync(written.fileno())
        scratch.replace(target)
    finally:
        scratch.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """A scratch folder whose files move into ``folder`` when the block ends without an error, and vanish otherwise.

    Args:
        folder: The folder to write to. It is made if it does not exist, and removed again after an error.
    """
    target = Path(folder)
    made = not target.exists()
    target.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=".export", dir=target) as scratch:
            yield Path(scratch)
            for file in sorted(Path(scratch).iterdir()):
                file.replace(target / file.name)
    except BaseException:
        if made and not any(target.iterdir()):
            target.rmdir()
        raise


def write_text(text: str, path: str | os.PathLike[str]) -> Path:
    """Write a text file, whole or not at all; its folder is made if it does not exist.

    Example:
        >>> import tempfile
        >>> from lightning_lcs.utils.files import write_text
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_text("alpha,width", f"{folder}/runs/curve.csv").read_text()
        'alpha,width'
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as scratch:
        scratch.write_text(text, encoding="utf-8", newline="")
    return target
