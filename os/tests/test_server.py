"""The stdlib asyncio HTTP server with a thread pool, asked by clients on the host."""

import hashlib
import http.client
import os
import threading
import time
import unittest

from support import FIGURES, FULL, KERNEL, PYTHON, ROOT, Machine, config, free_port

ANSWER_TIMEOUT_S = 20
CLIENTS = 16
# Of clients that come at once, user-mode networking, which has a backlog of one, resets some before
# the guest hears of them: a capture of the guest's wire in such runs shows no reset in either
# direction, and the clients see them at their first request. So they come one after the other; of
# those that come anew later, some requests are sent again.
MAX_BROKEN = 8


def connect(port: int) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_TIMEOUT_S)


def ask(connection, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    connection.request(method, path, body)
    answer = connection.getresponse()
    return answer.status, answer.read()


def first_answer(port: int) -> None:
    """Asks with new connections until one is answered: the host accepts before the guest does."""
    deadline = time.monotonic() + 60
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
        try:
            ask(connection, "GET", "/")
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        except http.client.HTTPException:
            time.sleep(0.02)
        finally:
            connection.close()


class Server(unittest.TestCase):
    def setUp(self):
        self.port = free_port()
        data = config(PYTHON, "/app/main.py")
        self.machine = Machine(kernel=KERNEL, root=ROOT, port=self.port, config=data)
        self.addCleanup(self.machine.kill)

    def end(self) -> str:
        self.machine.press_power()
        self.assertEqual(self.machine.status(45), 0, self.machine.console[-2000:])
        console = self.machine.console
        self.assertIn("power button: asking the program to end", console)
        self.assertIn("drained", console)
        self.assertIn("0 writable and executable, 0 kernel pages open", console)
        return console

    def test_first_answer_objects_and_power_button(self):
        first_answer(self.port)
        FIGURES["first_http_answer_s"] = round(time.monotonic() - self.machine.started_s, 2)
        connection = connect(self.port)
        for size in (0, 1, 1460, 65536, 3_000_000):
            body = os.urandom(size)
            digest = hashlib.sha256(body).hexdigest().encode()
            self.assertEqual(ask(connection, "PUT", "/object", body), (200, digest))
            self.assertEqual(ask(connection, "GET", "/object"), (200, body))
        self.assertEqual(ask(connection, "DELETE", "/object"), (204, b""))
        self.assertEqual(ask(connection, "GET", "/object")[0], 404)
        connection.close()
        self.end()

    def test_many_clients_at_once(self):
        first_answer(self.port)
        failures: list[str] = []
        broken: list[str] = []
        rounds = 60 if FULL else 12
        counts = [0] * CLIENTS

        def client(number: int, connection: http.client.HTTPConnection) -> None:
            turn = 0
            while turn < rounds:
                body = os.urandom(1024) * (1 + number % 3)
                path = f"/{number}-{turn % 4}"
                digest = hashlib.sha256(body).hexdigest().encode()
                try:
                    if ask(connection, "PUT", path, body) != (200, digest):
                        failures.append(f"put {path}")
                    if ask(connection, "GET", path) != (200, body):
                        failures.append(f"get {path}")
                except (OSError, http.client.HTTPException) as error:
                    broken.append(f"client {number} turn {turn}: {error!r}")
                    connection.close()
                    if len(broken) > MAX_BROKEN:
                        failures.extend(broken)
                        break
                    continue
                turn += 1
                counts[number] += 2
                if turn % 5 == 4:
                    connection.close()  # And a new connection at the next request.
            connection.close()

        connections = [connect(self.port) for _ in range(CLIENTS)]
        for connection in connections:
            connection.connect()
            self.assertEqual(ask(connection, "GET", "/object")[0], 404)
        started = time.monotonic()
        threads = [threading.Thread(target=client, args=pair) for pair in enumerate(connections)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        FIGURES["requests_per_s"] = round(sum(counts) / (time.monotonic() - started), 1)
        self.assertEqual(failures, [], self.machine.console[-1500:])
        self.end()


if __name__ == "__main__":
    unittest.main()
