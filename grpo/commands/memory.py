"""What the C library does with freed memory."""

from __future__ import annotations

import ctypes

# mallopt(3); the values are glibc's. Larger than any tensor of a step, so that none is mapped anew.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_BLOCK = 1 << 30
_TRIM = 2**31 - 1


def keep_freed_memory() -> bool:
    """Keep what is freed for the next allocation; whether the C library can (glibc).

    By default large blocks go back to the system when they are freed, and a training step pays for
    the first touch of every page again, for each activation. For the whole process, so `grpo train`
    decides it and no import does.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library, or another system
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _BLOCK)) and bool(mallopt(_TRIM_THRESHOLD, _TRIM))
