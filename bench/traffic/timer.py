"""A clock that ticks at exact times: timerfd_create(2), which Python 3.11 does not have.

``epoll.poll`` waits for whole milliseconds only, which is longer than what is to be measured.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import time
from collections.abc import Iterator

_TFD_NONBLOCK = os.O_NONBLOCK
_TFD_CLOEXEC = os.O_CLOEXEC
_TFD_TIMER_ABSTIME = 1
_NS = 10**9


class _TimeSpec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _TimerSpec(ctypes.Structure):
    _fields_ = (("interval", _TimeSpec), ("first", _TimeSpec))


class Ticks:
    """Moments at equal distances.

    Attributes:
        descriptor: readable when there are moments that have come and were not taken.
    """

    def __init__(self, descriptor: int, first_ns: int, interval_ns: int) -> None:
        self.descriptor = descriptor
        self._next_ns = first_ns
        self._interval_ns = interval_ns

    def take(self) -> list[int]:
        """The moments that have come since last time, by time.monotonic_ns()."""
        try:
            count = int.from_bytes(os.read(self.descriptor, 8), "little")
        except BlockingIOError:
            return []
        first, self._next_ns = self._next_ns, self._next_ns + count * self._interval_ns
        return [first + index * self._interval_ns for index in range(count)]


@contextlib.contextmanager
def ticking(rate_per_s: float) -> Iterator[Ticks]:
    """Ticks from one interval after now on. Raises OSError."""
    interval_ns = round(_NS / rate_per_s)
    first_ns = time.monotonic_ns() + interval_ns
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.timerfd_create(time.CLOCK_MONOTONIC, _TFD_NONBLOCK | _TFD_CLOEXEC)
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), "timerfd_create")
    try:
        spec = _TimerSpec(_time_spec(interval_ns), _time_spec(first_ns))
        if libc.timerfd_settime(descriptor, _TFD_TIMER_ABSTIME, ctypes.byref(spec), None):
            raise OSError(ctypes.get_errno(), "timerfd_settime")
        yield Ticks(descriptor, first_ns, interval_ns)
    finally:
        os.close(descriptor)


def _time_spec(nanoseconds: int) -> _TimeSpec:
    return _TimeSpec(*divmod(nanoseconds, _NS))
