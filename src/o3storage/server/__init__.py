"""Wiring: configuration -> one running node; start, stop, signals."""

from __future__ import annotations

from ._app import Application, run_server
from ._config import (
    ServerConfig,
    data_dir_path,
    parse_listen,
    read_secret_file,
    root_key_from,
)
from ._data_dir import DataDir, open_data_dir
from ._errors import StartError
from ._root_key import load as read_root_key
from ._running import Running
from ._running import read as read_running
from ._screen import size_text

__all__ = [
    "Application",
    "DataDir",
    "Running",
    "ServerConfig",
    "StartError",
    "data_dir_path",
    "open_data_dir",
    "parse_listen",
    "read_root_key",
    "read_running",
    "read_secret_file",
    "root_key_from",
    "run_server",
    "size_text",
]
