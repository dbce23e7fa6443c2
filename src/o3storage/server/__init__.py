"""Wiring: configuration -> one running node; start, stop, signals."""

from __future__ import annotations

from ._app import Application
from ._config import (
    REGION,
    ClusterConfig,
    RootKey,
    ServerConfig,
    data_dir_path,
    parse_listen,
    read_secret_file,
    root_key_from,
)
from ._credentials import ROOT_OWNER, Credentials
from ._data_dir import DataDir, open_data_dir
from ._errors import StartError
from ._housekeeping import Housekeeping
from ._peering import read_join_secret
from ._process import run_server
from ._root_key import load as read_root_key
from ._running import Running
from ._running import read as read_running
from ._screen import size_text
from ._wiring import OpenedNode, open_node

__all__ = [
    "REGION",
    "ROOT_OWNER",
    "Application",
    "ClusterConfig",
    "Credentials",
    "DataDir",
    "Housekeeping",
    "OpenedNode",
    "RootKey",
    "Running",
    "ServerConfig",
    "StartError",
    "data_dir_path",
    "open_data_dir",
    "open_node",
    "parse_listen",
    "read_join_secret",
    "read_root_key",
    "read_running",
    "read_secret_file",
    "root_key_from",
    "run_server",
    "size_text",
]
