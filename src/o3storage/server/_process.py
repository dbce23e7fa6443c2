"""One node as a process: its loop, its signals, and what nobody caught."""

from __future__ import annotations

import asyncio
import os
import signal
import traceback
from collections.abc import Callable
from typing import Any

from o3storage.runtime import Logger, StallMeter, log, new_event_loop, tune_memory

from ._app import Application
from ._config import ServerConfig

_log = Logger("server")


def run_server(config: ServerConfig, show: Callable[[list[str]], None]) -> int:
    """Run one node until SIGTERM or SIGINT; `show` gets the first screen. Raises StartError."""
    tune_memory()
    log.configure(level=config.log_level)
    meter = StallMeter()

    async def main() -> int:
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        application = Application(config, meter, say=lambda text: show([text]))
        # A start may wait for other nodes, as long as it takes: it ends when told to.
        starting = loop.create_task(application.start())

        def end() -> None:
            if stop.is_set():
                application.hurry()
            stop.set()
            starting.cancel()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, end)
        # While it waits too: a node that is told to read its certificate must not end by that.
        loop.add_signal_handler(signal.SIGHUP, application.reload_certificate)
        loop.set_exception_handler(_unforeseen)
        try:
            screen = await starting
            show(screen)
            await stop.wait()
            await application.stop()
        except asyncio.CancelledError:
            if not stop.is_set():
                raise
        finally:
            # After a start that failed too: what it had to say is still on its way.
            await log.stop()
            await application.pool.close()
        return 0

    with asyncio.Runner(loop_factory=lambda: new_event_loop(meter)) as runner:
        return runner.run(main())


def _unforeseen(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What nobody caught, from callbacks and tasks. The loop's own way is lines that are not JSON,
    with secrets that stand in them, and that wait for who reads them."""
    error = context.get("exception")
    steps = traceback.extract_tb(None if error is None else error.__traceback__)[-6:]
    places = [f"{os.path.basename(step.filename)}:{step.lineno}:{step.name}" for step in steps]
    _log.error("loop.error", reason=context["message"], error=error, at=" > ".join(places))
