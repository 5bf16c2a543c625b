"""Pictures, and the data behind them: what lies where, and that nothing is said by colour alone."""

from __future__ import annotations

import importlib.util
import json
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_lts.objectives import resolve_objectives
from edge_lts.records import TAINTS, Evaluation, Protocol
from edge_lts.speed import BOARD_FACTOR
from edge_lts_host import store
from edge_lts_host.report import along, compare, facts, points
from edge_lts_host.report.layer_kinds import KINDS, breakdown
from edge_lts_host.report.pairs import hypervolume
from edge_lts_host.report.plots import frontier, gallery, kinds, progress, style
from edge_lts_host.report.sides import Side, side_of
from edge_lts_host.store import RunFolder
from tests.pretended import SPACE, Machine
from tests.support import require
from tests.unit.host.conftest import Run
from tests.unit.host.sample_runs import RPI5, architecture, change_evaluations, evaluation, observed, write_run

A = "20261122-101530-rpi5-ab12"
B = "20261123-101530-rpi4-cd34"
PNG = b"\x89PNG\r\n\x1a\n"
AXES = resolve_objectives(["decoder_params", "decode_latency_s", "peak_memory_bytes"])


@pytest.fixture
def matplotlib() -> None:
    require("matplotlib", importlib.util.find_spec("matplotlib"), "pip install matplotlib")


@pytest.fixture
def figures(matplotlib: None, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What would have been saved."""
    drawn: list[Any] = []
    monkeypatch.setattr(style, "save", lambda figure, folder, name: drawn.append(figure) or [folder / name])
    return drawn


def side(run_id: str = A, **settings: Any) -> Side:
    return side_of(RunFolder(write_run(store.runs_root(), run_id, **settings)))


def append(folder: Path, *outcomes: Evaluation) -> None:
    with (folder / "ledger.jsonl").open("a") as ledger:
        ledger.write("".join(json.dumps(one.to_json()) + "\n" for one in outcomes))


def with_baseline() -> Side:
    folder = write_run(store.runs_root(), A)
    arch, failed = architecture(6, 96, 384), architecture(8, 96, 384)  # the second one was never measured
    spec = json.loads((folder / "spec.json").read_text())
    spec["baselines"] = [{"family": "scaled-gpt2", "architecture": one.to_json()} for one in (arch, failed)]
    (folder / "spec.json").write_text(json.dumps(spec))
    append(folder, evaluation(90, arch, scale=5, purpose="baseline"))
    return side_of(RunFolder(folder))


# --- the data ---


def test_points_are_members_baselines_and_everything_else_measured() -> None:
    found = points.points(with_baseline())
    assert [one.kind for one in found] == [*["member"] * 4, "baseline", "measured"]
    first, baseline = found[0], found[4]
    assert first.bounds["decode_latency_s"].kind == "borrowed"
    assert first.bounds["decode_latency_s"].low < first.values["decode_latency_s"]
    assert "decoder_params" not in first.bounds  # exact
    assert (baseline.family, baseline.name) == ("scaled-gpt2", "scaled-gpt2 6 layers")


def test_hypervolume_grows_with_each_measurement_and_ends_with_all() -> None:
    [curve] = along.hypervolumes([side()], AXES)
    assert curve["share"] == sorted(curve["share"])
    assert 0 < curve["share"][0] < curve["share"][-1] == pytest.approx(1.0)
    assert curve["spent_s"] == sorted(curve["spent_s"])
    assert curve["spent_s"][0] == 10.0
    assert curve["spent_s"][-1] == 95.5  # the run's end, not that of its last discovery


def test_curves_of_several_runs_end_at_their_shares_of_the_joint_volume() -> None:
    sides = [side(), side(B, scale=2.0)]
    shares = {one["run_id"]: one["share"] for one in (hypervolume(sides, AXES) or {})["runs"]}
    for curve in along.hypervolumes(sides, AXES):
        assert curve["share"][-1] == pytest.approx(shares[curve["run_id"]])
    assert along.hypervolumes(sides, AXES[:1]) == []


def test_a_dominated_candidate_and_a_baseline_move_no_curve() -> None:
    [plain] = along.hypervolumes([side()], AXES)
    folder = RunFolder(store.runs_root() / A)
    better = evaluation(91, architecture(6, 96, 384), scale=0.01, purpose="baseline")
    append(folder.path, replace(better, spent_s=92.0))
    assert along.hypervolumes([side_of(folder)], AXES) == [plain]


def test_the_state_of_the_board_at_each_process() -> None:
    folder = write_run(store.runs_root(), A)

    def change(record: dict[str, Any]) -> None:
        record["conditions"] |= observed()

    change_evaluations(folder, change)
    rows = along.conditions(side_of(RunFolder(folder)))
    assert len(rows) == 7
    assert rows[0]["temperature_c"] == 71.4
    assert rows[0]["frequency_hz"] == 1_500_000_000
    assert rows[0]["slowdown"] is None  # no anchors
    assert [row["taints"] for row in rows if row["taints"]] == [["noisy"], ["contended"]]
    assert set(rows[0]["taints"]) <= set(TAINTS)


def pool_run(run_id: str = A) -> Path:
    """Twelve processes in turn on two boards, of which b needs twice the time and says so."""
    folder = write_run(store.runs_root(), run_id, host=None)
    boards = [{"name": name, "destination": f"pi@{name}"} for name in ("a", "b")]
    meta = {"schema_version": 1, "host": None, "destination": "local", "pool": {"boards": boards, "tolerance": 0.1}}
    (folder / "host.json").write_text(json.dumps(meta))
    more = []
    for index in range(12):
        factor = 1.0 + index % 2
        one = evaluation(20 + index, architecture(4, 64 + 8 * index, 256), scale=factor)
        anchors = dict.fromkeys(("prefill_latency_s", "decode_latency_s", "stream_s"), 1e-3 * factor)
        slower = {"decode_latency_s": factor, "prefill_latency_s": factor, "anchor_s": dict.fromkeys(anchors, factor)}
        conditions = {**one.conditions, "anchor_s": anchors, BOARD_FACTOR: slower}
        more.append(replace(one, board="ab"[index % 2], conditions=conditions))
    append(folder, *more)
    return folder


def test_a_slower_board_of_a_pool_is_no_drift_and_the_pool_is_named(run: Run) -> None:
    report = compare.build_report([RunFolder(pool_run())])
    [entry] = report["runs"]
    assert entry["boards"] == ["a", "b"]
    assert entry["host"] is None
    for anchor in entry["drift"].values():
        assert anchor["p90_s"] == pytest.approx(anchor["p10_s"])
    assert dict(facts.facts(entry))["host"] == "a pool of 2 boards: a, b"
    assert "(a pool of 2 boards: a, b)" in run("pick", A)
    slowdowns = [row["slowdown"] for row in along.conditions(side_of(RunFolder(store.runs_root() / A)))]
    assert [one for one in slowdowns if one is not None] == pytest.approx([1.0] * 12)


def modelled() -> tuple[Side, list[dict[str, Any]]]:
    machine, found = Machine(), side()
    rng = np.random.default_rng(3)
    archs = {one.arch_id: one for one in (SPACE.sample(rng) for _ in range(40))}
    outcomes = [machine.measure(index, arch) for index, arch in enumerate(archs.values())]
    entries = [{"arch_id": one.arch_id, "architecture": one.to_json()} for one in list(archs.values())[:5]]
    found.outcomes = list(outcomes)
    return found, entries


def test_the_parts_by_kind_of_layer_add_up_to_the_models_prediction() -> None:
    found, entries = modelled()
    parts = breakdown(found, entries)
    assert set(parts) == {"decode_latency_s", "prefill_latency_s"}
    for bars in parts.values():
        assert [bar["arch_id"] for bar in bars] == [entry["arch_id"] for entry in entries]
        for bar in bars:
            assert list(bar["parts"]) == list(KINDS)
            assert sum(bar["parts"].values()) == pytest.approx(bar["predicted_s"])
            assert min(bar["parts"].values()) >= 0
    decode = parts["decode_latency_s"]
    assert all(bar["parts"]["attention"] + bar["parts"]["feed-forward"] > 0.5 * bar["predicted_s"] for bar in decode)
    assert breakdown(side(B), []) == {}  # five measurements are too few


# --- the pictures ---


def test_every_picture_is_written_twice_and_the_same_each_time(matplotlib: None, run: Run, tmp_path: Path) -> None:
    for run_id in (A, B):
        write_run(store.runs_root(), run_id)
    run("compare", A, B, "--plots", str(tmp_path / "one"))
    run("compare", A, B, "--plots", str(tmp_path / "two"))
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    stems = [f"{kind}-{one}" for kind in ("frontier", "hypervolume") for one in (A, B)] + ["devices-1", "hypervolume-1"]
    assert names == sorted(f"{stem}.{suffix}" for stem in stems for suffix in ("png", "svg"))
    for name in names:
        data = (tmp_path / "one" / name).read_bytes()
        assert data == (tmp_path / "two" / name).read_bytes()
        assert data.startswith(PNG) if name.endswith("png") else ET.fromstring(data).tag.endswith("svg")
    words = "".join(ET.fromstring((tmp_path / "one" / "devices-1.svg").read_bytes()).itertext())
    for expected in ("decode ms", "peak MiB", "decoder M", "A: Raspberry Pi 5", "B: Raspberry Pi 5", "ab12", "cd34"):
        assert expected in words


def test_members_lie_at_their_values_with_their_intervals(figures: list[Any], tmp_path: Path) -> None:
    one = with_baseline()
    frontier.draw([one], tmp_path, "x")
    panel = figures[0].axes[0]
    by_label = {line.get_label(): line for line in panel.lines}
    members = by_label["member of the frontier"]
    expected = [entry["objectives"]["decode_latency_s"]["median"] * 1e3 for entry in one.run["frontier"]]
    assert list(members.get_xdata()) == pytest.approx(expected)
    assert list(members.get_ydata()) == pytest.approx([e["objectives"]["decoder_params"] / 1e6 for e in one.members])
    bars = [tuple(segment[:, 0]) for lines in panel.collections for segment in lines.get_segments()]
    bounds = [one.bounds("decode_latency_s", entry["objectives"]["decode_latency_s"]) for entry in one.members]
    for its, bar in zip(bounds, bars, strict=False):
        assert its is not None
        assert bar == pytest.approx((its.low * 1e3, its.high * 1e3))
    assert len(bars) == 5  # the baseline has one, too
    assert "baseline scaled-gpt2" in by_label
    assert "6 layers" in [note.get_text() for note in panel.texts]
    assert (panel.get_xscale(), panel.get_yscale()) == ("log", "log")


def test_devices_differ_in_more_than_colour(figures: list[Any], tmp_path: Path) -> None:
    sides = [side(f"2026112{index}-101530-rpi5-ab1{index}", scale=1.0 + index) for index in range(2, 6)]
    frontier.draw(sides, tmp_path, "x")
    progress.draw_hypervolume(sides, tmp_path, "y")
    names = points.labels(sides).values()
    lines = [line for line in figures[0].axes[0].lines if line.get_label() in names]
    assert len({line.get_marker() for line in lines}) == len({line.get_color() for line in lines}) == 4
    curves = figures[1].axes[0].lines
    assert len({str(curve.get_linestyle()) for curve in curves}) == 4
    assert len(set(style.COLOURS)) == len(set(style.MARKERS)) == len({str(line) for line in style.LINES})


def test_along_a_run_only_what_the_board_could_say_is_drawn(figures: list[Any], tmp_path: Path) -> None:
    assert progress.draw_conditions(side(), tmp_path, "x") == []
    folder = write_run(store.runs_root(), B)

    def change(record: dict[str, Any]) -> None:
        record["conditions"] |= observed(health={"frequency_hz": None})

    change_evaluations(folder, change)
    progress.draw_conditions(side_of(RunFolder(folder)), tmp_path, "x")
    [panel] = figures[0].axes
    assert panel.get_ylabel() == "temperature, °C"
    assert "not readable: lowest clock" in figures[0].get_suptitle()
    assert list(panel.lines[0].get_ydata()) == [71.4] * 7
    assert len(panel.lines[1].get_xdata()) == 2  # disturbed
    progress.draw_conditions(side_of(RunFolder(pool_run("20261124-101530-rpi5-ef56"))), tmp_path, "x")
    assert [line.get_label() for line in figures[1].axes[0].lines if line.get_label() in "ab"] == ["a", "b"]


def test_the_breakdown_has_a_bar_for_each_kind_with_a_hatch_of_its_own(figures: list[Any], tmp_path: Path) -> None:
    found, entries = modelled()
    for entry in entries:
        entry["objectives"] = {"decoder_params": 1_000_000, "decode_latency_s": {"median": 0.001, "ci95": None}}
        entry["probably_dominated"] = False
    found.members = entries
    kinds.draw(found, tmp_path, "x")
    decode, prefill = figures[0].axes
    assert [bars.get_label() for bars in decode.containers] == list(KINDS)
    assert len({(bars[0].get_hatch(), bars[0].get_facecolor()) for bars in decode.containers}) == len(KINDS)
    assert decode.get_xlabel() == "decode ms"
    assert prefill.get_xlabel() == "prefill ms"
    assert "not a profile" in figures[0].legends[0].get_title().get_text()


def test_emulated_boards_are_marked_and_share_no_picture_with_real_ones(figures: list[Any], tmp_path: Path) -> None:
    sides = [side(), side(B, is_emulated=True), side("20261124-101530-rpi3-ef56", protocol=Protocol.named("lts"))]
    assert len(points.drawn_together(sides)) == 3
    paths = gallery.draw(sides, tmp_path)
    assert not [path for path in paths if path.name.startswith("devices")]
    assert figures[2].axes[0].get_xlabel() == "decode ms (emulated)"
    assert figures[0].axes[0].get_xlabel() == "decode ms"


def test_what_a_board_calls_itself_is_drawn_as_text(matplotlib: None, tmp_path: Path) -> None:
    hostile = "$\\frac{1}{0}$ </svg><script>x</script> \u4e2d \x1b[2J"
    one = side(device=replace(RPI5, model=hostile))
    png, svg = frontier.draw([one], tmp_path, "x")
    assert png.read_bytes().startswith(PNG)
    tree = ET.fromstring(svg.read_bytes())
    assert not [element for element in tree.iter() if "script" in str(element.tag)]
    assert "$\\frac{1}{0}$ </svg><script>" in "".join(tree.itertext())


def test_without_matplotlib_it_is_one_line_that_says_how_to_get_it(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(store.runs_root(), A)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "matplotlib.figure", raising=False)
    error = run("report", "--plots", str(tmp_path / "plots"), status=2)
    assert "pip install 'edge-lts[plots]'" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "plots").exists()


def test_a_folder_that_cannot_be_written_is_said(matplotlib: None, run: Run, tmp_path: Path) -> None:
    write_run(store.runs_root(), A)
    (tmp_path / "file").write_text("")
    assert "cannot write" in run("report", "--plots", str(tmp_path / "file"), status=1)
