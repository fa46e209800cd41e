"""Files that are there wholly or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from captum_iba.errors import MissingFileError


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file; an existing one is replaced only once the new one is complete.

    Args:
        path (Path): the file.
        content (bytes): what it will hold.

    Raises:
        MissingFileError: its folder does not exist.
    """
    if not path.parent.is_dir():
        raise MissingFileError(f"The folder {str(path.parent)!r} does not exist; create it first.")
    # a plain new file next to the old one, rather than one from tempfile, gets the usual permissions
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        draft.write_bytes(content)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
