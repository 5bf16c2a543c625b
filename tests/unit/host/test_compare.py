"""Comparing runs: what may be compared, what is called a difference, and how it reads."""

from __future__ import annotations

import csv
import io
import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_lts.pareto import hypervolume
from edge_lts.records import Protocol
from edge_lts_host import store
from edge_lts_host.report import across, intervals, ranks, shapes
from edge_lts_host.report.sides import KEY_NAMES, load_sides
from edge_lts_host.store import RunFolder
from tests.unit.host.conftest import Run
from tests.unit.host.sample_runs import RPI5, architecture, change_evaluations, evaluation, write_run

A = "20261122-101530-rpi5-ab12"
B = "20261123-101530-rpi4-cd34"
C = "20261124-101530-rpi3-ef56"


def compared(*run_ids: str, **settings: Any) -> dict[str, Any]:
    return across.build_comparison([RunFolder(store.runs_root() / run_id) for run_id in run_ids], **settings)


def confirm_all(folder: Path) -> None:
    """Three processes of every member, so that each has its own interval."""
    archs = [architecture(4, 64 * width, 256 * width) for width in (1, 2, 3, 4)]
    lines = []
    for number, arch in enumerate(archs):
        scale = json.loads((folder / "ledger.jsonl").read_text().splitlines()[number])
        factor = scale["objectives"]["decode_latency_s"]["median"] / (1e-9 * arch.total_params)
        for process in (1.004, 0.997):
            again = evaluation(number, arch, scale=factor * process, purpose="confirm")
            lines.append(replace(again, spent_s=100.0 + 10 * len(lines)).to_json())
    with (folder / "ledger.jsonl").open("a") as ledger:
        ledger.write("".join(json.dumps(line) + "\n" for line in lines))


def test_a_slower_board_is_said_to_be_slower_and_by_how_much() -> None:
    root = store.runs_root()
    for run_id, scale in ((A, 1.0), (B, 2.0)):
        confirm_all(write_run(root, run_id, scale=scale))
    data = compared(A, B)
    [group] = data["groups"]
    assert group["axes"] == ["decoder_params", "decode_latency_s", "peak_memory_bytes"]
    assert group["quality"] == "decoder_params"
    for level in group["levels"]:
        first, second = level["cells"]["decode_latency_s"]
        assert first["ratio"] is None
        assert second["ratio"]["is_different"] is True
        assert second["ratio"]["low"] < 2.0 < second["ratio"]["high"]
        assert second["ratio"]["ratio"] == pytest.approx(2.0, rel=0.01)
        memory = level["cells"]["peak_memory_bytes"][1]
        assert memory["ratio"]["ratio"] == 1.0
        assert memory["ratio"]["is_different"] is False
    [pair] = group["pairs"]
    assert pair["ratios"]["decode_latency_s"]["n_different"] == len(group["levels"])
    assert pair["ratios"]["peak_memory_bytes"]["n_different"] == 0
    assert pair["rank_correlation"]["decode_latency_s"]["spearman"] == pytest.approx(1.0)
    n_pairs, n_decided, n_alike = pair["rank_correlation"]["decode_latency_s"]["decided"]
    assert n_pairs >= n_decided == n_alike > 0
    shares = {one["run_id"]: one["share"] for one in group["hypervolume"]["runs"]}
    assert shares[A] == pytest.approx(1.0)
    assert shares[B] < 0.7


def test_the_volume_is_that_of_the_losses_on_the_reference_that_it_names() -> None:
    root = store.runs_root()
    for run_id, scale in ((A, 1.0), (B, 1.7)):
        write_run(root, run_id, scale=scale)
    sides = load_sides([RunFolder(root / A), RunFolder(root / B)])
    volume = compared(A, B)["groups"][0]["hypervolume"]
    corner = [math.log(volume["reference"][name]) for name in volume["axes"]]
    corner[0] = -corner[0]
    losses = [
        [
            [
                -math.log(entry["objectives"]["decoder_params"]),
                *(math.log(entry["objectives"][name]["median"]) for name in volume["axes"][1:]),
            ]
            for entry in side.members
        ]
        for side in sides
    ]
    joint = hypervolume(losses[0] + losses[1], corner)
    assert volume["joint"] == pytest.approx(joint)
    for run, own in zip(volume["runs"], losses, strict=True):
        assert run["share"] == pytest.approx(hypervolume(own, corner) / joint)
        assert run["low"] < run["share"] < run["high"]
    worst = max(loss for own in losses for row in own for loss in row[1:2])
    assert corner[1] == pytest.approx(worst + math.log(1.1))


def test_boards_inside_each_others_intervals_do_not_differ(run: Run) -> None:
    root = store.runs_root()
    for run_id, scale in ((A, 1.0), (B, 1.002)):
        confirm_all(write_run(root, run_id, scale=scale))
    data = compared(A, B)
    ratios = [level["cells"]["decode_latency_s"][1]["ratio"] for level in data["groups"][0]["levels"]]
    assert [one["is_different"] for one in ratios] == [False] * len(ratios)
    text = run("compare", A, B)
    assert "no difference" in text
    assert "decode: no difference at any of 6 levels" in text
    assert "What one frontier loses on another's board was not measured: --transfer" in text


def test_without_repeated_processes_no_difference_in_time_is_claimed(run: Run) -> None:
    """Twice as slow, but all that is known is each process's own spread: it may have been a slow minute."""
    root = store.runs_root()
    for run_id, scale in ((A, 1.0), (B, 2.0)):
        folder = write_run(root, run_id, scale=scale)
        lines = (folder / "ledger.jsonl").read_text().splitlines(keepends=True)
        (folder / "ledger.jsonl").write_text("".join(line for line in lines if '"confirm"' not in line))
    data = compared(A, B)
    [group] = data["groups"]
    cells = [level["cells"]["decode_latency_s"][1] for level in group["levels"]]
    assert {cell["interval"]["kind"] for cell in cells} == {"ci95"}
    assert {cell["ratio"]["is_different"] for cell in cells} == {None}
    assert not any(one["is_firm"] for one in group["hypervolume"]["runs"])
    assert any("no difference in time is claimed" in text for text in group["warnings"])
    assert "open, the spread between processes is not known" in run("compare", A, B)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"threads": 1}, "threads 1, 4; --across threads"),
        ({"precision": "int8-onednn"}, "precision float32, int8-onednn; --across precision"),
        ({"precision": "int8-onednn", "threads": 1}, "--across precision,threads takes them for different boards"),
        ({"prompt_tokens": 64}, "prompt_tokens 192, 64"),
        ({"method_version": 1}, "method_version 1, 2"),
        ({"heat": "sustained"}, "heat burst, sustained"),
    ],
)
def test_runs_that_measured_differently_are_refused(run: Run, changes: dict[str, Any], words: str) -> None:
    root = store.runs_root()
    write_run(root, A)
    write_run(root, B, protocol=Protocol(**changes))
    error = run("compare", A, B, status=2)
    assert "these runs measured differently" in error
    assert words in error
    assert ("--across" in error) == bool({"threads", "precision"} & set(changes))


def test_threads_and_precision_may_be_part_of_what_is_compared(run: Run) -> None:
    root = store.runs_root()
    write_run(root, A, protocol=Protocol(threads=2))
    write_run(root, B, protocol=Protocol(threads=1), scale=2.0)
    write_run(root, C, protocol=Protocol(threads=1, precision="int8-onednn"), scale=0.5)
    two = json.loads(run("compare", A, B, C, "--across", "threads", "-o", "json"))
    assert [group["runs"] for group in two["groups"]] == [[A, B], [C]]
    text = run("compare", A, B, C, "--across", "threads")
    assert "the groups are not compared with one another" in text
    assert "C alone: nothing here measured like it." in text
    one = json.loads(run("compare", A, B, C, "--across", "threads,precision", "-o", "json"))
    assert [group["runs"] for group in one["groups"]] == [[A, B, C]]
    assert one["groups"][0]["differs"]["threads"] == {A: 2, B: 1, C: 1}
    assert "but threads 2, 1; precision float32, int8-onednn" in run(
        "compare", A, B, C, "--across", "threads,precision"
    )
    assert "cannot be set aside" in run("compare", A, B, "--across", "method_version", status=2)


def test_threads_that_every_run_left_to_its_board_do_not_stand_between_them() -> None:
    root = store.runs_root()
    write_run(root, A)
    change_evaluations(write_run(root, B), lambda record: record["conditions"].update(threads=8))
    [group] = compared(A, B)["groups"]
    assert group["differs"] == {"threads": {A: 4, B: 8}}


def test_the_names_of_the_comparison_key_are_those_of_the_protocol() -> None:
    protocol = Protocol(prompt_tokens=11, context_tokens=12, logits="all", threads=13, precision="bfloat16", mem_len=14)
    key = dict(zip(KEY_NAMES, protocol.comparison_key, strict=True))
    assert key["protocol"] == protocol.name
    assert key["memory_tokens"] == protocol.memory_tokens
    for name in set(KEY_NAMES) - {"protocol", "memory_tokens"}:
        assert key[name] == getattr(protocol, name)


def test_emulated_timings_are_compared_with_nothing(run: Run) -> None:
    root = store.runs_root()
    confirm_all(write_run(root, A))
    confirm_all(write_run(root, B, scale=40.0, is_emulated=True))
    [group] = compared(A, B)["groups"]
    assert all(level["cells"]["decode_latency_s"][1]["ratio"] is None for level in group["levels"])
    assert group["hypervolume"]["axes"] == ["decoder_params", "peak_memory_bytes"]
    [pair] = group["pairs"]
    assert set(pair["ratios"]) == {"peak_memory_bytes"}
    assert pair["rank_correlation"] == {}
    assert pair["genes"] == []
    text = run("compare", A, B)
    assert "B (emulated)" in text
    assert "is emulated: its timings are shown and compared with nothing" in text
    assert "nothing is timed there" not in text


def test_csv_and_jsonl_hold_the_levels(run: Run) -> None:
    root = store.runs_root()
    for run_id, scale in ((A, 1.0), (B, 2.0)):
        confirm_all(write_run(root, run_id, scale=scale))
    data = json.loads(run("compare", A, B, "--levels", "3", "-o", "json"))
    assert [json.loads(line) for line in run("compare", A, B, "--levels", "3", "-o", "jsonl").splitlines()] == data[
        "groups"
    ]
    rows = list(csv.DictReader(io.StringIO(run("compare", A, B, "--levels", "3", "-o", "csv"))))
    assert len(rows) == 3 * 2 * 2
    first = next(row for row in rows if row["run_id"] == B and row["objective"] == "decode_latency_s")
    cell = data["groups"][0]["levels"][0]["cells"]["decode_latency_s"][1]
    assert float(first["value"]) == cell["value"]
    assert float(first["ratio_low"]) == cell["ratio"]["low"]
    assert (first["is_different"], first["ratio_to"]) == ("true", A)


@pytest.mark.parametrize("output", ["table", "md", "csv", "json", "jsonl"])
def test_a_board_cannot_drive_the_terminal_or_a_page(run: Run, output: str) -> None:
    hostile = "\x1b[2J\u202e<script>|`x`"
    root = store.runs_root()
    for run_id in (A, B):
        write_run(root, run_id, device=replace(RPI5, model=hostile, torch=hostile + run_id))
    text = run("compare", A, B, "-o", output)
    assert all(character == "\n" or character.isprintable() for character in text)
    if output == "md":
        assert "<script>" not in text.replace("\\<script\\>", "")


def test_one_run_or_the_same_twice_is_no_comparison(run: Run) -> None:
    write_run(store.runs_root(), A)
    assert "takes two runs or more" in run("compare", A, status=2)
    assert "takes two runs or more" in run("compare", A, "ab12", status=2)


def test_frontiers_without_a_common_size_have_no_table(run: Run) -> None:
    root = store.runs_root()
    write_run(root, A)
    folder = write_run(root, B, vocab_size=4096)
    lines = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    for index, line in enumerate(lines):
        arch = architecture(12, 512, 1024 + 64 * index)
        if line["kind"] == "evaluation":
            line.update(evaluation(line["candidate_id"], arch).to_json())
    (folder / "ledger.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = compared(A, B)
    assert data["groups"][0]["levels"] == []
    assert "share no range of sizes" in run("compare", A, B)
    assert "measured no architecture in common" in run("compare", A, B)


# Statistics -----------------------------------------------------------------------------------------------------------


def test_spearman_and_kendall_of_a_known_example() -> None:
    """Two swapped neighbours of five: rho = 1 - 6 * 2 / (5 * 24), tau = (9 - 1) / 10. Ties: Kendall's tau-b by hand."""
    a, b = np.array([1.0, 2, 3, 4, 5]), np.array([1.0, 3, 2, 4, 5])
    assert ranks.spearman(a, b) == pytest.approx(0.9)
    assert ranks.kendall(a, b) == pytest.approx(0.8)
    assert ranks.kendall(np.array([1.0, 1, 2]), np.array([1.0, 2, 3])) == pytest.approx(2 / (2 * 3) ** 0.5)
    assert ranks.spearman(np.array([1.0, 1, 1]), np.array([1.0, 2, 3])) is None
    assert ranks.kendall(np.array([1.0, 1, 1]), np.array([1.0, 2, 3])) is None


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=12))
def test_correlations_are_those_of_their_definitions(values: list[tuple[int, int]]) -> None:
    a, b = (np.array(side, dtype=float) for side in zip(*values, strict=True))
    pairs = [((x > z) - (x < z), (y > w) - (y < w)) for (x, y) in values for (z, w) in values]
    ties = [sum(1 for pair in pairs if pair[side]) for side in (0, 1)]
    tau = ranks.kendall(a, b)
    if not all(ties):
        assert tau is None
        assert ranks.spearman(a, b) is None
    else:
        assert tau == pytest.approx(sum(x * y for x, y in pairs) / (ties[0] * ties[1]) ** 0.5)
        by_rank = [
            [sum(1 for z in side if z < x) + sum(1 for z in side if z == x) / 2 for x in side] for side in (a, b)
        ]
        assert ranks.spearman(a, b) == pytest.approx(np.corrcoef(*by_rank)[0, 1])


def test_pairs_within_noise_are_not_decided() -> None:
    def pair(size: float, a: float, b: float, reach: float = 0.1) -> ranks.Pair:
        bounds = [intervals.Bounds(x - reach, x + reach, "pi95") for x in (a, b)]
        return ranks.Pair(size, a, b, *bounds)

    found = ranks.rank_correlation([pair(100, 1, 1), pair(105, 1.05, 1.5), pair(200, 2, 1.1)])
    assert found["decided"] == [3, 1, 0]  # 1.05 before 2, and 1.5 behind 1.1: surely turned round
    assert found["decided_near"] == [1, 0, 0]
    unsure = pair(300, 3, 3)._replace(bounds_b=intervals.Bounds(2.9, 3.1, "ci95"))
    assert ranks.rank_correlation([pair(100, 1, 1), unsure])["decided"] == [1, 0, 0]


def test_a_gene_differs_only_at_equal_size() -> None:
    """B's members are all larger, and larger ones are wider: no difference. With more layers at each size: one."""
    rng = random.Random(1)

    def frontier(n: int, first: int, extra_layers: int) -> list[tuple[float, dict[str, Any]]]:
        found = []
        for index in range(n):
            d_model = 64 * (first + index // 4)
            n_layer = 4 + extra_layers + rng.randint(0, 1)
            arch = architecture(n_layer, d_model, 2 * d_model).to_json()
            found.append((float(d_model * 1000 + rng.randint(0, 200)), arch))
        return found

    genes = {gene["gene"]: gene for gene in shapes.differing_genes(frontier(24, 2, 0), frontier(24, 3, 0))}
    assert not any(gene["is_different"] for gene in genes.values())
    genes = {gene["gene"]: gene for gene in shapes.differing_genes(frontier(24, 2, 0), frontier(24, 2, 3))}
    assert genes["n_layer"]["is_different"]
    assert genes["n_layer"]["difference"] == pytest.approx(3, abs=0.6)
    few = shapes.differing_genes(frontier(24, 2, 0)[::6], frontier(24, 2, 3))
    assert few
    assert {gene["is_different"] for gene in few} == {None}


def test_chance_alone_seldom_makes_a_gene_differ() -> None:
    rng = random.Random(7)
    false = 0
    for _ in range(60):
        sides = [
            [
                (float(size), architecture(rng.randint(4, 8), 64 * rng.randint(2, 6), 512).to_json())
                for size in range(100, 120)
            ]
            for _ in range(2)
        ]
        false += any(gene["is_different"] for gene in shapes.differing_genes(*sides))
    assert false <= 8  # 5 % of 60 are 3


def test_an_interval_is_the_members_own_or_the_runs_usual_one() -> None:
    own = {"median": 1.0, "pi95": [0.9, 1.2], "ci95": [0.99, 1.01], "n": 30}
    only_now = {"median": 2.0, "pi95": None, "ci95": [1.99, 2.01], "n": 10}
    widths = intervals.usual_widths([{"objectives": {"decode_latency_s": own}}])
    assert intervals.bounds("decode_latency_s", own, widths) == (0.9, 1.2, "pi95")
    borrowed = intervals.bounds("decode_latency_s", only_now, widths)
    assert borrowed == (pytest.approx(1.8), pytest.approx(2.4), "borrowed")
    assert intervals.bounds("decode_latency_s", only_now, {}) == (1.99, 2.01, "ci95")
    assert intervals.bounds("decode_latency_s", {"median": 2.0, "n": 1}, {}) is None
    assert intervals.bounds("decoder_params", 7, {}) == (7, 7, "exact")
    device = {"n_cores": 4, "page_size_bytes": 16384}
    memory = {"median": 50.0 * (1 << 20), "n": 1}
    assert intervals.bounds("peak_memory_bytes", memory, {}, device) == (46 * (1 << 20), 54 * (1 << 20), "resolution")
