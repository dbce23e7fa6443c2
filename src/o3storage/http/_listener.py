"""A listening socket that keeps asyncio's accepting within bounds.

A selector loop accepts as many connections in one step as may wait, a thousand here. When accept
finds no descriptor or memory left, it asks all those times more, reports each, and begins a timer
of a second for each, after which each does the same.
"""

from __future__ import annotations

import errno
import socket
from typing import Any

ACCEPTS_PER_STEP = 64
"""900 at once took steps of 23 and 27 ms; the others come in the next one."""

_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Listener(socket.socket):
    """For `loop.create_server`."""

    _left = ACCEPTS_PER_STEP
    """Of this step."""

    def accept(self) -> tuple[socket.socket, Any]:
        """Raises BlockingIOError, on which asyncio waits for the next event, also where this step
        has had its share."""
        if self._left == 0:
            self._left = ACCEPTS_PER_STEP
            raise BlockingIOError
        self._left -= 1
        try:
            return super().accept()
        except OSError as error:
            self._left = 0 if error.errno in _EXHAUSTED else ACCEPTS_PER_STEP
            raise
