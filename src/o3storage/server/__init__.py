"""Wiring: configuration -> one running node; start, stop, signals."""

from __future__ import annotations

from ._config import ServerConfig
from ._errors import StartError
from ._root_key import load as read_root_key
from ._running import Running
from ._running import read as read_running

__all__ = ["Running", "ServerConfig", "StartError", "read_root_key", "read_running"]
