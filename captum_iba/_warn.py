"""Warnings that are given once and point at the user's line."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Hashable

from captum_iba.errors import CaptumIBAWarning

_OWN_PACKAGES = ("captum_iba", "captum", "contextlib")


class Warner:
    """Gives each warning once. Methods hold one and share it with their copies."""

    def __init__(self) -> None:
        self._given: set[Hashable] = set()

    def given(self, key: Hashable) -> None:
        """Note a warning as given."""
        self._given.add(key)

    def once(self, key: Hashable, message: str) -> None:
        """Warn, unless that was done before under this key.

        Args:
            key (Hashable): what the warning is about.
            message (str): what was found and what to do.
        """
        if key not in self._given:
            self._given.add(key)
            warnings.warn(message, CaptumIBAWarning, stacklevel=_users_level())


def _users_level() -> int:
    """Stack level, as :func:`warnings.warn` counts it in :meth:`Warner.once`, of the first frame outside packages."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in _OWN_PACKAGES:
        frame, level = frame.f_back, level + 1
    return level
