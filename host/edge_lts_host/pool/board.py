"""One board of a pool: a link to it, the agent's verb `worker` at its end, and the thread that listens.

One thread owns the transport and does nothing but carry bytes, so a link that dies is noticed while the board measures
and while it waits. Whoever wants something of the board puts a request into the outbox and waits for the answer. Every
15 s a blank line tells the board that we are still here; without one it stops and frees itself (edge_lts.worker).
"""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from edge_lts.errors import EdgeLtsError, Interrupted
from edge_lts.records import DeviceInfo, Outcome, outcome_from_json
from edge_lts_host.errors import AgentProtocolError, ConnectionLostError, TransportTimeoutError
from edge_lts_host.session import QUICK_S, START_S, Place, Session, open_transport

if TYPE_CHECKING:
    from edge_lts.arch import Architecture
    from edge_lts.records import Purpose
    from edge_lts_host.hosts import HostEntry
    from edge_lts_host.payload import Payload
    from edge_lts_host.transport.base import Transport
    from edge_lts_host.transport.ssh_config import SshOptions

KEEPALIVE_S = 15.0
CLOSE_S = 15.0
SETTLE_S = 3600.0  # a sweep of threads and a quarter of an hour of warming up, on a slow board

OnEvent = Callable[[str, Mapping[str, Any]], None]


class Outbox(Iterator[bytes]):
    """The worker's stdin: lines as they are put, blank ones to stay in touch, b"" while there is nothing to say."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._clock = clock
        self._heard_s = clock()
        self._is_ended = self._is_abandoned = False

    def put(self, message: Mapping[str, Any]) -> None:
        self._lines.put(json.dumps(message, allow_nan=False).encode("ascii") + b"\n")

    def end(self) -> None:
        """End of file once everything is sent."""
        self._is_ended = True

    def abandon(self) -> None:
        """Break the conversation off, killing the worker."""
        self._is_abandoned = True

    def __next__(self) -> bytes:
        if self._is_abandoned:
            raise ConnectionLostError("pool", "the conversation was broken off")
        try:
            line = self._lines.get_nowait()
        except queue.Empty:
            if self._is_ended:
                raise StopIteration from None
            if self._clock() - self._heard_s < KEEPALIVE_S:
                return b""
            line = b"\n"
        self._heard_s = self._clock()
        return line


class Board:
    """`spec` is the run's spec.json. `on_event` gets what else the board says (a governor restored, heat, ...).

    May be connected again after it was lost. Not for several threads, except for `close`.
    """

    def __init__(
        self,
        entry: HostEntry,
        place: Place,
        spec: Mapping[str, Any],
        *,
        payload: Payload | None = None,
        options: SshOptions | None = None,
        on_event: OnEvent = lambda name, event: None,
        opener: Callable[[HostEntry, SshOptions | None], Transport] = open_transport,
    ) -> None:
        self.name = entry.name
        self._entry, self._place, self._spec = entry, place, spec
        self._payload, self._options, self._on_event, self._opener = payload, options, on_event, opener
        self._outbox = Outbox()
        self._inbox: queue.SimpleQueue[dict[str, Any] | EdgeLtsError] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._transport: Transport | None = None

    def connect(self) -> DeviceInfo:
        """Start the worker; what the board is, `placement` in its `extra`. Raises what went wrong."""
        self.close()
        transport = self._transport = self._opener(self._entry, self._options)
        self._outbox, self._inbox = Outbox(), queue.SimpleQueue()
        try:
            session = Session(transport, self._place)
            if self._payload is not None:
                session.push_agent(self._payload)
            self._outbox.put(self._spec)
            self._thread = threading.Thread(
                target=self._listen, args=(session, self._outbox, self._inbox), name=f"pool-{self.name}", daemon=True
            )
            self._thread.start()
            event = self._await("device", QUICK_S)
        except BaseException:
            self.close()
            raise
        info = DeviceInfo.from_json(event)
        info.extra["placement"] = event.get("placement")
        return info

    def ready(self) -> dict[str, Any]:
        """Wait until torch is loaded there; `threads` and what the measuring server says of itself."""
        return self._await("ready", START_S)

    def settle(self, threads: int | None, *, is_sweeping: bool = False) -> dict[str, Any]:
        """Bring the board to the heat that the run measures in; `is_sweeping` finds the thread count first."""
        self._outbox.put({"do": "settle", "threads": threads, "is_sweeping": is_sweeping})
        return self._await("settled", SETTLE_S)

    def measure(
        self, candidate_id: int, architecture: Architecture, purpose: Purpose, *, threads: int, timeout_s: float
    ) -> Outcome:
        """One measurement. Raises EdgeLtsError when the board, not the candidate, failed."""
        self._outbox.put(
            {
                "candidate_id": candidate_id,
                "architecture": architecture.to_json(),
                "purpose": purpose,
                "threads": threads,
            }
        )
        outcome = outcome_from_json(self._await("outcome", timeout_s))
        if outcome.architecture != architecture or outcome.candidate_id != candidate_id:
            raise AgentProtocolError(f"{self.name}: it answered for another candidate")
        return outcome

    def cancel(self) -> None:
        """Let whoever waits for an answer raise Interrupted, now and later. For signal handlers."""
        self._inbox.put(Interrupted(f"{self.name}: interrupted"))

    def close(self) -> None:
        """End the worker and the link; a worker that does not obey in time is killed. Safe to call twice."""
        thread, transport = self._thread, self._transport
        self._thread = self._transport = None
        if thread is not None:
            self._outbox.end()
            thread.join(CLOSE_S)
            if thread.is_alive():
                self._outbox.abandon()
                thread.join(CLOSE_S)
        if transport is not None:
            transport.close()

    def _listen(
        self, session: Session, outbox: Outbox, inbox: queue.SimpleQueue[dict[str, Any] | EdgeLtsError]
    ) -> None:
        try:
            for event in session.converse(["worker", "--root", self._place.root], outbox):
                inbox.put(event)
            inbox.put(ConnectionLostError(self.name, "its worker ended"))
        except EdgeLtsError as exc:
            inbox.put(exc)

    def _await(self, kind: str, timeout_s: float) -> dict[str, Any]:
        end = time.monotonic() + timeout_s
        while True:
            try:
                event = self._inbox.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                raise TransportTimeoutError(self.name, f"no answer within {timeout_s:g} s ({kind})") from None
            if isinstance(event, EdgeLtsError):
                self._inbox.put(event)  # for whoever asks next
                raise event
            name = str(event.get("event"))
            if name == kind:
                return {key: value for key, value in event.items() if key != "event"}
            if name != "hello":
                self._on_event(self.name, event)
