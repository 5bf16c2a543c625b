"""`--baseline`: what it names, what the spec gets, and what the report makes of what was measured."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edge_lts.arch import Architecture, LayerSpec
from edge_lts.baselines import Baseline
from edge_lts.objectives import Constraint
from edge_lts.records import Evaluation, Failure, Measurement
from edge_lts_host import launch, spaces, store
from edge_lts_host.baselines import DEPTHS, label, resolve
from edge_lts_host.errors import UsageError
from edge_lts_host.export.find import find_member
from edge_lts_host.follow import latest_measurement
from edge_lts_host.report import baselines as section_of
from edge_lts_host.report.compare import report_run
from edge_lts_host.report.pick import build_pick
from edge_lts_host.store import RunFolder
from edge_lts_host.targets import load_targets
from tests.unit.host.conftest import Run
from tests.unit.host.sample_runs import architecture, evaluation, write_run
from tests.unit.host.test_commands_remote import ENTRY, arguments

RUN = "20261122-101530-rpi5-ab12"
MEMBERS = [architecture(4, 64 * width, 256 * width) for width in (1, 2, 3, 4)]


# --- what it names ---


def test_the_scaled_families_are_the_papers_decoders_with_the_ends_of_the_space() -> None:
    space, _ = spaces.load_space("lts-transformer-xl")
    found = resolve(["scaled-transformer-xl"], space)
    assert [one.architecture.n_layer for one in found] == list(DEPTHS) == list(range(1, 17))
    per_layer = {one.architecture.decoder_params / one.architecture.n_layer for one in found}
    assert per_layer == {3_413_504}  # 3.41M a layer, 54.6M at 16 layers, as published
    last = found[-1].architecture
    assert (last.vocab_size, last.embedding_factor, last.d_embed) == (267735, 4, 512)
    (gpt2, *_, deepest) = resolve(["scaled-gpt2"], spaces.load_space("lts-gpt2")[0])
    assert gpt2.architecture.layers == (LayerSpec(d_inner=2048, n_head=8),)
    assert (deepest.architecture.d_model, deepest.architecture.vocab_size, deepest.family) == (
        1024,
        50257,
        "scaled-gpt2",
    )


def test_genes_of_the_embedding_give_their_largest_value() -> None:
    space = {"backbone": "gpt2", "genes": {"vocab_size": [512, 4096], "d_embed": {"min": 64, "max": 256, "step": 64}}}
    arch = resolve(["scaled-gpt2"], space)[0].architecture
    assert (arch.vocab_size, arch.d_embed) == (4096, 256)


def test_files_hold_an_architecture_or_several_and_each_counts_once(tmp_path: Path) -> None:
    one, many = tmp_path / "My Shape.json", tmp_path / "many.json"
    one.write_text(json.dumps(MEMBERS[0].to_json()))
    many.write_text(json.dumps([arch.to_json() for arch in MEMBERS[:2]]))
    found = resolve([str(one), str(many), "opt-350m"], {})
    assert [(item.family, item.architecture.backbone) for item in found] == [
        ("my-shape", "gpt2"),
        ("many", "gpt2"),
        ("opt-350m", "opt"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "neither a file nor one of scaled-gpt2, scaled-transformer-xl, opt-350m"),
        ("{", "is not JSON"),
        ("[]", "holds no architecture"),
        ('{"backbone": "gpt2"}', "lacks 'd_model'"),
        (json.dumps([architecture(n, 64, 64).to_json() for n in range(1, 66)]), "65 architectures are more than 64"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "x.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError, match=message):
        resolve([str(path)], {})


def spoken(*words: str) -> tuple[Any, list[str]]:
    said: list[str] = []
    target = launch.target_of(ENTRY, load_targets())
    return launch.make_spec(arguments(*words), ENTRY, target, "run-1", said.append), said


def test_the_command_line_puts_them_into_the_spec_and_says_what_they_take() -> None:
    spec, said = spoken("--space", "lts-gpt2", "--baseline", "scaled-gpt2", "--baseline", "opt-350m")
    assert len(spec.baselines) == 17
    text = "\n".join(said)
    assert "pi: 17 baselines (scaled-gpt2, opt-350m) take up to 720 s of the budget" in text.replace("12m", "720 s")
    assert "baselines of another backbone (opt)" in text
    assert "there may be no time for all of them" in spoken("--space", "demo", "--baseline", "scaled-gpt2")[1][0] + text
    assert not spoken("--space", "demo")[0].baselines


def test_guided_search_expects_fewer_candidates_beside_baselines() -> None:
    def expected(*words: str) -> float:
        args = arguments(*words)
        return launch.budget_besides(args)

    assert expected() == 3600
    assert expected("--baseline", "opt-350m") == pytest.approx(
        2700
    )  # of which four fifths, 2160 s, are 60 % of an hour


# --- what the report makes of them ---


def beside(name: str, *archs: Architecture) -> tuple[Baseline, ...]:
    return tuple(Baseline(family=name, architecture=arch) for arch in archs)


def plain(n_layer: int, d_model: int, d_inner: int) -> Architecture:
    layers = (LayerSpec(d_inner=d_inner, n_head=4),) * n_layer
    return Architecture(backbone="gpt2", d_model=d_model, layers=layers, vocab_size=4096)


SMALLER = plain(4, 128, 512)  # a little less than the second member
LARGER = plain(6, 256, 1024)  # than all


def reported(
    own: tuple[Baseline, ...], records: Sequence[Evaluation | Failure], change: Any = None, **fields: Any
) -> dict[str, Any]:
    """The report of a sample run that measured `records` besides."""
    folder = write_run(store.runs_root(), RUN, baselines=own, **fields)
    with (folder / "ledger.jsonl").open("a") as file:
        for record in records:
            file.write(json.dumps(record.to_json()) + "\n")
    return report_run(RunFolder(folder))


def slow(number: int, arch: Architecture, scale: float = 2.0, n: int = 1) -> list[Evaluation]:
    """Of a baseline that takes `scale` times what its size would."""
    return [
        replace(evaluation(number, arch, scale=scale * factor, purpose="baseline"), spent_s=100.0 + 10 * number)
        for factor in (1.0, 1.01, 0.99)[:n]
    ]


def test_a_baseline_is_held_against_the_cheapest_member_of_at_least_its_size() -> None:
    assert MEMBERS[0].decoder_params < SMALLER.decoder_params < MEMBERS[1].decoder_params
    data = reported(beside("mine", SMALLER), slow(0, SMALLER, n=3))["baselines"]
    (one,) = data["members"]
    assert (one["label"], one["n_processes"], data["n_measured"], data["n_failed"]) == ("mine", 3, 1, 0)
    assert set(one["rivals"]) == {"decode_latency_s", "peak_memory_bytes"}  # what was searched
    rival = one["rivals"]["decode_latency_s"]
    assert rival["arch_id"] == MEMBERS[1].arch_id
    speed = rival["ratios"]["decode_latency_s"]
    assert speed["ratio"] == pytest.approx(2 * SMALLER.total_params / MEMBERS[1].total_params, rel=0.02)
    assert speed["low"] < speed["ratio"] < speed["high"]
    assert speed["is_different"] is True
    assert set(rival["ratios"]) == {"decode_latency_s", "prefill_latency_s", "peak_memory_bytes"}
    memory = rival["ratios"]["peak_memory_bytes"]
    assert memory["ratio"] == pytest.approx((4 * SMALLER.total_params + 5e6) / (4 * MEMBERS[1].total_params + 5e6))
    assert memory["ratio"] < 1
    (summary,) = data["summary"]
    assert summary["costs"]["decode_latency_s"]["n_beaten"] == 1
    assert summary["costs"]["decode_latency_s"]["best"]["label"] == "mine"


def test_differences_inside_the_intervals_are_none() -> None:
    same = slow(0, SMALLER, scale=MEMBERS[1].total_params / SMALLER.total_params, n=3)
    data = reported(beside("mine", SMALLER), same)["baselines"]
    ratio = data["members"][0]["rivals"]["decode_latency_s"]["ratios"]["decode_latency_s"]
    assert ratio["is_different"] is False
    assert data["summary"][0]["costs"]["decode_latency_s"] | {"median_ratio": 0} == {
        "n": 1,
        "n_beaten": 0,
        "n_better": 0,
        "median_ratio": 0,
        "best": None,
    }


def test_a_baseline_that_beats_everything_is_still_none_of_the_frontier() -> None:
    fast = slow(0, SMALLER, scale=0.01, n=3)
    with_it = reported(beside("mine", SMALLER), fast)
    ids = [entry["arch_id"] for entry in with_it["frontier"]]
    assert ids == [arch.arch_id for arch in MEMBERS]
    assert with_it["n_measured"] == 5
    ratio = with_it["baselines"]["members"][0]["rivals"]["decode_latency_s"]["ratios"]["decode_latency_s"]
    assert ratio["ratio"] < 0.1
    assert with_it["baselines"]["summary"][0]["costs"]["decode_latency_s"]["n_better"] == 1


def test_where_nothing_is_as_large_the_largest_member_is_named_and_nothing_claimed() -> None:
    run = reported(beside("mine", LARGER), slow(0, LARGER))
    data = run["baselines"]
    (one,) = data["members"]
    assert one["rivals"] == {}
    assert one["nearest"]["arch_id"] == MEMBERS[-1].arch_id
    assert one["nearest"]["quality_ratio"] == MEMBERS[-1].decoder_params / LARGER.decoder_params < 1
    assert data["summary"][0] == {"family": "mine", "n": 1, "n_beyond": 1, "costs": {}}
    text = section_of.section(run, "table")
    share = MEMBERS[-1].decoder_params / LARGER.decoder_params
    assert f"1 larger than anything on the frontier; the largest member, {MEMBERS[-1].arch_id}, has {share:.0%}" in text
    assert "decode x 2" in text


def test_timings_of_an_emulated_board_are_compared_with_nothing() -> None:
    run = reported(beside("mine", SMALLER), slow(0, SMALLER, n=3), is_emulated=True)
    ratios = run["baselines"]["members"][0]["rivals"]["decode_latency_s"]["ratios"]
    assert set(ratios) == {"peak_memory_bytes"}
    assert "decode ms (emulated)" in section_of.section(run, "table")


def test_one_that_failed_and_one_without_time_are_said() -> None:
    hostile = "predicted \x1b[31m<script>9|9"
    failed = Failure(
        candidate_id=1, architecture=LARGER, kind="oom", message=hostile, purpose="baseline", spent_s=120.0
    )
    third = plain(2, 128, 512)
    run = reported(beside("mine", SMALLER, LARGER, third), [*slow(0, SMALLER, n=3), failed])
    assert run["n_failed"] == 1, "that of the search"
    data = run["baselines"]
    assert [bool(one["objectives"]) for one in data["members"]] == [True, False, False]
    assert data["members"][1]["failure"] == {"kind": "oom", "message": hostile}
    assert (data["n_measured"], data["n_failed"]) == (1, 1)
    text = section_of.section(run, "md")
    assert "mine 6 layers failed: predicted" in text
    assert "\x1b" not in text
    assert "<script>" not in text.replace("\\<script\\>", "")
    assert "1 of 3 were not measured: no time" in text


def test_what_makes_the_comparison_lame_is_said() -> None:
    other = SMALLER.replace(backbone="opt", vocab_size=50272)
    run = reported(beside("mine", other), slow(0, other, n=3))
    assert [(note["differs"], note["baseline"], note["frontier"]) for note in run["baselines"]["notes"]] == [
        ("backbone", ["opt"], ["gpt2"]),
        ("vocab_size", [50272], [4096]),
    ]
    text = section_of.section(run, "table")
    assert "the proxy was shown to rank within a backbone, not across" in text
    assert "mine has vocab_size 50,272, the frontier 4,096: part of the ratios is the vocabulary" in text


def test_the_report_shows_the_table_in_every_format_for_people(run: Run) -> None:
    reported(beside("scaled", SMALLER, LARGER), [*slow(0, SMALLER, n=3), *slow(1, LARGER)])
    for output in ("table", "md"):
        text = run("report", "-o", output)
        assert "Baselines" in text
        assert "scaled 4 layers" in text
        assert "none as large" in text
        assert "up to 1." in text
        assert "1 larger than anything on the frontier" in text
    entry = json.loads(run("report", "-o", "json"))["runs"][0]
    assert entry["baselines"]["families"] == ["scaled"]


def test_labels_are_unmistakable() -> None:
    twins = beside("mine", SMALLER, SMALLER.replace(d_embed=64))
    run = reported(twins, [])
    assert [one["label"] for one in run["baselines"]["members"]] == [
        f"mine {one.architecture.arch_id}" for one in twins
    ]
    deep = beside("mine", plain(1, 64, 64), plain(2, 64, 64))
    assert [label("mine", one.architecture, [it.architecture for it in deep]) for one in deep] == [
        "mine 1 layer",
        "mine 2 layers",
    ]


def test_a_baseline_can_be_exported_by_its_id_and_is_never_picked() -> None:
    own = beside("mine", SMALLER)
    reported(own, slow(0, SMALLER, scale=0.01, n=3))
    folder = RunFolder(store.runs_root() / RUN)
    found, evidence = find_member(folder, SMALLER.arch_id)
    assert (found, evidence["is_member"]) == (SMALLER, False)
    limit = Constraint(name="decode_latency_s", maximum=1e-9 * MEMBERS[0].total_params * 0.9)
    picked = build_pick(folder, [limit])
    assert picked["best"] is None, "only the baseline is as fast"


def test_whoever_follows_a_run_is_told_that_the_latest_was_a_baseline() -> None:
    failed = Failure(candidate_id=0, architecture=SMALLER, kind="oom", message="x", purpose="baseline", spent_s=120.0)
    folder = RunFolder(store.runs_root() / RUN)
    reported(beside("mine", SMALLER), [failed])
    assert latest_measurement(folder) == "latest baseline: oom"
    with (folder / "ledger.jsonl").open("a") as file:
        file.write(json.dumps(slow(0, SMALLER)[0].to_json()) + "\n")
    assert latest_measurement(folder).startswith("latest baseline: decoder params 0.7")


def test_a_run_without_baselines_says_nothing_of_them(run: Run) -> None:
    folder = write_run(store.runs_root(), RUN)
    assert report_run(RunFolder(folder))["baselines"] is None
    assert "aselines" not in run("report")


def test_a_baseline_is_corrected_by_the_speed_that_anchors_of_its_own_kind_tell() -> None:
    """A slow minute shows in the anchors: of the same kind it is divided out, of another kind it says nothing."""

    def at(one: Evaluation, speed: float, usual_s: float) -> Evaluation:
        names = ("prefill_latency_s", "decode_latency_s", "stream_s")
        conditions = {**one.conditions, "anchor_s": dict.fromkeys(names, usual_s * speed)}
        values = {
            name: replace(value, median=value.median * speed, ci95=None) if isinstance(value, Measurement) else value
            for name, value in one.objectives.items()
            if name != "peak_memory_bytes"
        }
        return replace(one, conditions=conditions, objectives={**one.objectives, **values}, samples={})

    other = SMALLER.replace(backbone="transformer-xl")
    wobble = [0.9, 1.1, 0.95, 1.05, 1.0, 0.92, 1.08, 0.97, 1.03, 1.0, 0.94, 1.06]
    searched = [at(evaluation(10 + i, plain(2, 64, 64 + 4 * i)), speed, 1e-3) for i, speed in enumerate(wobble)]
    (same,), (foreign,) = slow(0, SMALLER, scale=1.0), slow(1, other, scale=1.0)
    run = reported(beside("mine", SMALLER, other), [*searched, at(same, 1.1, 1e-3), at(foreign, 1.1, 5e-3)])
    found = [one["objectives"]["decode_latency_s"]["median"] for one in run["baselines"]["members"]]
    raw = 1e-9 * SMALLER.total_params
    assert found[0] == pytest.approx(raw * 1.1 / 1.1**1.2, rel=0.03)
    assert found[1] == pytest.approx(1e-9 * other.total_params * 1.1, rel=1e-6)
    assert run["drift"]["decode_latency_s"]["n"] == len(wobble), "baselines are no drift"
