"""Several boards side by side: one failing never stops the others, and the exit code says so (3: some failed).

A thread per board that is being served, because the work is waiting; never more than `n_parallel`, however many boards
there are. Ctrl-C closes every connection that was registered, so that the threads end. With `fail_percent` (as
pyinfra's --fail-percent) so many boards may fail before the boards that have not begun are left alone.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from edge_lts.errors import EdgeLtsError

if TYPE_CHECKING:
    from edge_lts_host.transport.base import Transport

SOME_FAILED = 3

Item = TypeVar("Item")
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Result(Generic[Item, Value]):
    """What came of one board: `value`, or `error`."""

    item: Item
    value: Value | None = None
    error: EdgeLtsError | None = None


class NotTriedError(EdgeLtsError):
    """This board was left alone, because too many others had failed already."""


class Links(AbstractContextManager["Links"]):
    """Every connection of a command, so that they can be closed together, from any thread."""

    def __init__(self) -> None:
        self._open: weakref.WeakSet[Transport] = weakref.WeakSet()  # those done with are forgotten
        self._guard = threading.Lock()
        self._closed = threading.Event()

    @property
    def is_closed(self) -> bool:
        return self._closed.is_set()

    def add(self, transport: Transport) -> Transport:
        with self._guard:
            self._open.add(transport)
            is_late = self._closed.is_set()
        if is_late:
            transport.close()
        return transport

    def sleep(self, seconds: float) -> None:
        """Wait, but no longer than until `close`."""
        self._closed.wait(seconds)

    def close(self) -> None:
        with self._guard:
            self._closed.set()
            transports = list(self._open)
            self._open.clear()
        for transport in transports:
            transport.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def side_by_side(
    items: Sequence[Item],
    work: Callable[[Item], Value],
    *,
    n_parallel: int,
    links: Links | None = None,
    on_error: Callable[[Item, EdgeLtsError], None] = lambda item, error: None,
    fail_percent: float | None = None,
) -> list[Result[Item, Value]]:
    """`work` for each item, `n_parallel` at a time, results in their order. Only an EdgeLtsError is a result.

    As soon as more than `fail_percent` % of all have failed, no further item is begun: it gets a NotTriedError, which
    `on_error` is not told of.
    """
    n_failed = 0
    guard = threading.Lock()

    def attempt(item: Item) -> Result[Item, Value]:
        nonlocal n_failed
        with guard:
            if is_too_many(n_failed, len(items), fail_percent):
                return Result(item, error=NotTriedError(f"not tried: {n_failed} of {len(items)} had failed already"))
        try:
            return Result(item, value=work(item))
        except EdgeLtsError as error:
            with guard:
                n_failed += 1
            return Result(item, error=error)

    if len(items) == 1:
        results = [attempt(items[0])]
        if results[0].error is not None:
            on_error(items[0], results[0].error)
        return results
    with ThreadPoolExecutor(max_workers=max(1, n_parallel), thread_name_prefix="board") as pool:
        futures = [pool.submit(attempt, item) for item in items]
        try:
            for future in as_completed(futures):
                result = future.result()
                if result.error is not None and not isinstance(result.error, NotTriedError):
                    on_error(result.item, result.error)
        except BaseException:
            for future in futures:
                future.cancel()
            if links is not None:
                links.close()
            raise
        return [future.result() for future in futures]


def is_too_many(n_failed: int, n_all: int, fail_percent: float | None) -> bool:
    """Whether more failed than `fail_percent` % of all; None sets no limit."""
    return fail_percent is not None and n_failed * 100 > fail_percent * n_all


def exit_code(results: Sequence[Result[Any, Any]], fail_percent: float | None = None) -> int:
    """0 when all is well or no more than `fail_percent` % failed, else 3 when some failed or all failed each in its own
    way, else the code of them all."""
    errors = [result.error for result in results if result.error is not None]
    if fail_percent is not None and not is_too_many(len(errors), len(results), fail_percent):
        return 0
    codes = {error.exit_code for error in errors if not isinstance(error, NotTriedError)}
    if len(errors) < len(results):
        codes.add(0)
    return codes.pop() if len(codes) == 1 else SOME_FAILED
