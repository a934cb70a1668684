"""Interrupts at a given moment, as Ctrl-C is one."""

import contextlib
import signal
import threading


class Interrupt(BaseException):
    """Stands for Ctrl-C: nothing that catches an `Exception` sees it."""


def under_signals(action, after, count=1):
    """Run something, and raise an interrupt in it by each of several signals after some seconds."""

    def raises(number, frame):
        while frame is not None and frame.f_code is not action.__code__:
            frame = frame.f_back
        if frame is not None:
            raise Interrupt

    kinds = [signal.SIGUSR1, signal.SIGUSR2, signal.SIGIO][:count]
    handlers = {kind: signal.signal(kind, raises) for kind in kinds}
    timer = threading.Timer(after, lambda: [signal.raise_signal(kind) for kind in kinds])
    timer.start()
    with contextlib.suppress(Interrupt):
        action()
    timer.join()
    for kind, handler in handlers.items():
        signal.signal(kind, handler)
