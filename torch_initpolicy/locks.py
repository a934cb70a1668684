"""The one lock of the package."""

import os
import sys
import threading

BORROWING = threading.RLock()
"""Held while a model is described, or runs on stand-ins: its parameters are then not its own."""

if sys.platform != "win32":
    # A child that is forked meanwhile would hold the lock for good, and models that are lent. So
    # forking waits until they are given back.
    os.register_at_fork(
        before=BORROWING.acquire,
        after_in_parent=BORROWING.release,
        after_in_child=BORROWING.release,
    )
