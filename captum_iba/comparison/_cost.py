"""Time and memory of one call."""

from __future__ import annotations

import ctypes
import time
from pathlib import Path

import torch

_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


class Cost:
    """Context that measures a call: seconds, and MB above what was in use before.

    On a GPU memory is what torch allocated. On the CPU it is the process's resident memory, whose peak Linux can reset
    ("5" in clear_refs); elsewhere it stays None. The C library gives back what it keeps free first, so that a method
    does not live on what an earlier one left; what a thread's own pool keeps is not seen.

    Args:
        device (torch.device): where the model is.

    Attributes:
        seconds (float): after the call.
        memory (float or None): MB, after the call.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.seconds: float = float("nan")
        self.memory: float | None = None

    def __enter__(self) -> Cost:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before: float | None = torch.cuda.memory_allocated(self._device)
        else:
            _give_back()
            self._before = _reset_peak()
        self._start = time.perf_counter()
        return self

    def __exit__(self, *_exception: object) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self.seconds = time.perf_counter() - self._start
        peak = torch.cuda.max_memory_allocated(self._device) if self._device.type == "cuda" else _status("VmHWM")
        if self._before is not None and peak is not None:
            self.memory = max(0.0, peak - self._before) / 2**20


def _give_back() -> None:
    """Return free memory to the system, where the C library is glibc."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _reset_peak() -> float | None:
    """Resident memory in bytes, which becomes the peak; None where that cannot be set."""
    try:
        _CLEAR.write_text("5")
    except OSError:
        return None
    return _status("VmRSS")


def _status(name: str) -> float | None:
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((1024.0 * float(line.split()[1]) for line in lines if line.startswith(name)), None)
