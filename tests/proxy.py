"""A bad link on loopback: a TCP proxy in user space that delays, throttles, stalls and resets what passes through it.

    with Proxy(server_port, delay_s=0.3, rate_bytes_per_s=32_000) as link:
        ...connect to link.port...
        link.stall()        # a cut cable: neither end is told
        link.go_on()        # plugged in again; nothing was lost
        link.reset()        # both ends of every connection get a RST
        link.reset_after(100_000)   # so does each later connection, after so many bytes towards the client

Needs no rights and no kernel module, which netem does (tests/board/test_bad_links.py). It loses nothing by itself: TCP
would hide that from both ends.
"""

from __future__ import annotations

import contextlib
import math
import select
import socket
import struct
import threading
import time
from collections import deque
from types import TracebackType

_CHUNK_BYTES = 16 * 1024
_QUEUE_BYTES = 64 * 1024  # what a router would hold; what is beyond waits in the sender
_SEND_BUFFER_BYTES = 32 * 1024  # of the kernel, towards the client: a reset throws away what is in it
_TICK_S = 0.05


class Proxy:
    """A context manager. Connect to `port` instead; `n_connections` and `n_bytes` (to the client) are counted."""

    def __init__(self, port: int, *, delay_s: float = 0.0, rate_bytes_per_s: float = math.inf) -> None:
        self.delay_s = delay_s  # of each direction
        self.rate_bytes_per_s = rate_bytes_per_s  # of each direction
        self.n_connections = 0
        self.n_bytes = 0
        self._target = port
        self._limit_bytes = math.inf
        self._stalled = threading.Event()
        self._stopped = threading.Event()
        self._reset = 0  # how often `reset` was called: a connection made before the last one ends
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(_TICK_S)
        self.port: int = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept, name="proxy")]
        self._threads[0].start()

    def stall(self) -> None:
        self._stalled.set()

    def go_on(self) -> None:
        self._stalled.clear()

    def reset(self) -> None:
        self._reset += 1

    def reset_after(self, n_bytes: float) -> None:
        """Of connections made from now on; `math.inf` leaves them alone again."""
        self._limit_bytes = n_bytes

    def stop(self) -> None:
        """End the proxy and its connections. Safe to call twice."""
        self._stopped.set()
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def _accept(self) -> None:
        while not self._stopped.is_set():
            try:
                ours, _ = self._listener.accept()
            except TimeoutError:
                continue
            self.n_connections += 1
            theirs = socket.create_connection(("127.0.0.1", self._target))
            thread = threading.Thread(target=self._carry, args=(ours, theirs, self._limit_bytes), name="proxy")
            self._threads.append(thread)
            thread.start()

    def _carry(self, client: socket.socket, server: socket.socket, limit_bytes: float) -> None:
        n_resets = self._reset
        up, down = _Direction(client, server), _Direction(server, client)
        with client, server:
            for sock in (client, server):
                sock.setblocking(False)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
            while not self._stopped.is_set() and not (up.is_over and down.is_over):
                if self._reset != n_resets or down.n_bytes >= limit_bytes:
                    _reset(client, server)
                    return
                if self._stalled.is_set():
                    self._stopped.wait(_TICK_S)
                    continue
                try:
                    wait_s = min(each.send() for each in (up, down))
                    wanted = [each.source for each in (up, down) if each.has_room]
                    readable, _, _ = select.select(wanted, [], [], wait_s)
                    for each in (up, down):
                        if each.source in readable:
                            self.n_bytes += each.receive(self.delay_s, self.rate_bytes_per_s) * (each is down)
                except OSError:  # one end is gone: so is the connection
                    return


class _Direction:
    def __init__(self, source: socket.socket, sink: socket.socket) -> None:
        self.source = source
        self.n_bytes = 0  # received
        self.is_over = False  # the source sent its end, and it was passed on
        self._sink = sink
        self._queue: deque[tuple[float, bytes]] = deque()  # due at, b"" for the end
        self._n_queued = 0
        self._has_ended = False
        self._free_at_s = 0.0  # when what came before has left a link of that rate

    @property
    def has_room(self) -> bool:
        return not self._has_ended and self._n_queued < _QUEUE_BYTES

    def receive(self, delay_s: float, rate_bytes_per_s: float) -> int:
        data = self.source.recv(_CHUNK_BYTES)
        self._has_ended = not data
        self._free_at_s = max(self._free_at_s, time.monotonic()) + len(data) / rate_bytes_per_s
        self._queue.append((self._free_at_s + delay_s, data))
        self._n_queued += len(data)
        self.n_bytes += len(data)
        return len(data)

    def send(self) -> float:
        """Pass on what is due; seconds until there may be more."""
        while self._queue:
            due_s, data = self._queue[0]
            left_s = due_s - time.monotonic()
            if left_s > 0:
                return min(left_s, _TICK_S)
            if not data:
                self._sink.shutdown(socket.SHUT_WR)
                self.is_over = True
            else:
                try:
                    n_sent = self._sink.send(data)
                except BlockingIOError:
                    return 0.005
                self._n_queued -= n_sent
                if n_sent < len(data):
                    self._queue[0] = (due_s, data[n_sent:])
                    continue
            self._queue.popleft()
        return _TICK_S


def _reset(*socks: socket.socket) -> None:
    for sock in socks:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()
