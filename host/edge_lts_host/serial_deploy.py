"""A deploy over a serial console: the agent goes over the line, torch does not.

At 115200 baud the wheels of torch would take hours, so they have to be on the board already: installed by an earlier
deploy over a network, fetched by the board itself (--online), or as files in env/wheels.part of its edge-lts directory,
brought there on its SD card; those are checked by their SHA-256 and installed without another byte.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from pathlib import Path

from edge_lts_host.board_facts import BoardFacts
from edge_lts_host.deploy import Deployment
from edge_lts_host.environment import Environment
from edge_lts_host.errors import PreflightError
from edge_lts_host.report.render import duration
from edge_lts_host.transport.serial_port import SerialDestination
from edge_lts_host.wheelhouse import Wheel

MAX_BYTES = 4 << 20  # of wheels: what a console carries in minutes
_HASHING_S = 900.0


class SerialDeployment(Deployment):
    """Deployment that never pushes torch over the console: raises PreflightError with the time that it would take."""

    def _plan(self, environment: Environment, has_agent: bool, is_proved: bool) -> tuple[str, ...]:
        steps = super()._plan(environment, has_agent, is_proved)
        if environment.is_there or environment.wheels is None:
            return steps
        note = f"({self._time(environment.wheels.download_bytes)} over this line: not without the wheels on the board)"
        return (f"{steps[0]} {note}", *steps[1:])

    def _push_wheels(self, paths: Mapping[Wheel, Path], facts: BoardFacts) -> None:
        there = self._staged(tuple(paths), facts)
        missing = [wheel for wheel in paths if wheel not in there]
        n_bytes = sum(wheel.size_bytes for wheel in missing)
        if n_bytes > MAX_BYTES:
            folder = posixpath.join(facts.root_path, "env", "wheels.part")
            files = " ".join(str(paths[wheel]) for wheel in missing)
            raise PreflightError(
                f"{self._transport.name}: torch is not on the board, and its {n_bytes / 1e6:.0f} MB of wheels would "
                f"take {self._time(n_bytes)} over this line",
                f"copy {files} into {folder} on its SD card, or deploy once over a network, or let the board fetch "
                "them (--online); then deploy again",
            )
        super()._push_wheels(paths, facts)

    def _staged(self, wheels: tuple[Wheel, ...], facts: BoardFacts) -> set[Wheel]:
        """Those that lie whole on the board."""
        named = [wheel for wheel in wheels if wheel.file in facts.staged]
        if not named:
            return set()
        paths = [posixpath.join(facts.root_path, "env", "wheels.part", wheel.file) for wheel in named]
        with self._stages.stage("check the wheels that are on the board"):
            result = self._transport.run(["sha256sum", "--", *paths], timeout_s=_HASHING_S)
        found = {line[66:]: line[:64] for line in result.stdout.decode("utf-8", "replace").splitlines()}
        return {wheel for wheel, path in zip(named, paths, strict=True) if found.get(path) == wheel.sha256}

    def _time(self, n_bytes: int) -> str:
        return duration(n_bytes / SerialDestination.parse(self._entry.destination).payload_bytes_per_s)
