"""Several boards side by side: one failing never stops the others, and the exit code says so (3: some failed).

A thread per board, because the work is waiting. Ctrl-C closes every connection that was registered, so that the
threads end.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Generic, TypeVar

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


class Links(AbstractContextManager["Links"]):
    """Every connection of a command, so that they can be closed together, from any thread."""

    def __init__(self) -> None:
        self._open: list[Transport] = []
        self._guard = threading.Lock()
        self._is_closed = False

    def add(self, transport: Transport) -> Transport:
        with self._guard:
            self._open.append(transport)
            is_late = self._is_closed
        if is_late:
            transport.close()
        return transport

    def close(self) -> None:
        with self._guard:
            self._is_closed = True
            transports, self._open = self._open, []
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
) -> list[Result[Item, Value]]:
    """`work` for each item, `n_parallel` at a time, results in their order. Only an EdgeLtsError is a result."""

    def attempt(item: Item) -> Result[Item, Value]:
        try:
            return Result(item, value=work(item))
        except EdgeLtsError as error:
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
                if result.error is not None:
                    on_error(result.item, result.error)
        except BaseException:
            for future in futures:
                future.cancel()
            if links is not None:
                links.close()
            raise
        return [future.result() for future in futures]


def exit_code(results: Sequence[Result[Item, Value]]) -> int:
    """0 when all is well, 3 when some failed or all failed each in its own way, else the code of them all."""
    codes = [0 if result.error is None else result.error.exit_code for result in results]
    if len(set(codes)) == 1:
        return codes[0]
    return SOME_FAILED
