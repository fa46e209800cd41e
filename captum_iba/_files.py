"""Files that are there wholly or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file; an existing one is replaced only once the new one is complete.

    Args:
        path (Path): the file.
        content (bytes): what it will hold.
    """
    # a plain new file next to the old one, rather than one from tempfile, gets the usual permissions
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        draft.write_bytes(content)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
