"""`--on-boot`: a run that goes on by itself after the board has rebooted. The board's side is edge_lts.on_boot."""

from __future__ import annotations

import argparse
import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge_lts_host.session import Session

QUICK_S = 120.0
_HOW = {"systemd": "a systemd user unit", "cron": "a line of the crontab"}


def add_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--on-boot",
        action="store_true",
        help="let the board go on by itself after a power cut or reboot: by a systemd user unit where those run "
        "without a login (switched on through loginctl or sudo -n), else by the crontab; removed when the run is over",
    )


def arrange(session: Session, run_id: str) -> None:
    """Make the entry on the board and say which. Raises the board's error where nothing there starts at boot."""
    from edge_lts_host.report import render

    argv = ["on-boot", session.place.run_dir(run_id), "--root", session.place.root]
    events = session.call(argv, timeout_s=QUICK_S)
    how = next((event.get("how") for event in events if event["event"] == "on_boot"), None)
    render.talk(f"{session.place.name}: after a reboot {run_id} goes on by itself ({_HOW.get(str(how), 'an entry')})")


def cancel(session: Session, run_id: str) -> None:
    """Remove the entry of a run that never began."""
    from edge_lts.errors import EdgeLtsError

    with contextlib.suppress(EdgeLtsError):
        session.call(["on-boot", session.place.run_dir(run_id), "--remove"], timeout_s=QUICK_S)
