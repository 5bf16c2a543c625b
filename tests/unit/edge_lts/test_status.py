"""What may be believed of a run that is no longer alive."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edge_lts.job import boot_id
from edge_lts.on_boot import ENTRY
from edge_lts.runfolder import RunFolder
from edge_lts.status import describe


@pytest.mark.parametrize(
    ("is_rebooted", "is_arranged", "goes_on"),
    [(True, True, True), (False, True, False), (True, False, False)],
)
def test_only_a_run_that_was_arranged_so_goes_on_and_only_after_a_reboot(
    tmp_path: Path, is_rebooted: bool, is_arranged: bool, goes_on: bool
) -> None:
    status = {"schema_version": 1, "state": "running", "spent_s": 1, "budget_s": 2, "n_measured": 0, "n_failed": 0}
    status |= {"n_frontier": 0, "boot_id": "the boot before" if is_rebooted else boot_id()}
    (tmp_path / "status.json").write_text(json.dumps(status))
    if is_arranged:
        (tmp_path / ENTRY).write_text("{}")
    found = describe(RunFolder(tmp_path))
    assert found["state"] == "interrupted"
    assert found["goes_on_by_itself"] is goes_on
