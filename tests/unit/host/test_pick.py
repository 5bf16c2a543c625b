"""Picking: the best within limits, what limits cost, what a law adds, and how a decision reads."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edge_lts.objectives import Constraint
from edge_lts.records import Evaluation, Measurement
from edge_lts_host import recipes, store
from edge_lts_host.cli import main
from edge_lts_host.errors import UsageError
from edge_lts_host.report import pick
from edge_lts_host.report.loss_law import LAWS
from edge_lts_host.store import RunFolder
from tests.unit.host.conftest import Run
from tests.unit.host.sample_runs import RPI5, architecture, evaluation, write_run

RUN = "20261122-101530-rpi5-ab12"


@pytest.fixture
def folder() -> Path:
    return write_run(store.runs_root(), RUN)


def decided(*limits: Constraint, **settings: Any) -> dict[str, Any]:
    return pick.build_pick(RunFolder(store.runs_root() / RUN), limits, **settings)


def median(member: dict[str, Any], name: str = "decode_latency_s") -> float:
    return float(member["objectives"][name]["median"])


def members(run: Run) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(run("report", "-o", "json"))["runs"][0]["frontier"]
    return found


def add(folder: Path, *lines: Any) -> None:
    with (folder / "ledger.jsonl").open("a") as ledger:
        ledger.write("".join(json.dumps(line.to_json()) + "\n" for line in lines))


def dominated(scale: float) -> Evaluation:
    """A little smaller than the largest member, and worse in everything."""
    found = evaluation(9, architecture(4, 256, 960), scale=scale)
    found.objectives["peak_memory_bytes"] = Measurement(median=1e9)
    return found


def test_the_json_holds_what_the_design_promises(run: Run, folder: Path) -> None:
    frontier = members(run)
    data = json.loads(run("pick", "-o", "json"))
    best = data["best"]
    assert best["arch_id"] == frontier[-1]["arch_id"]
    assert {key: best[key] for key in frontier[-1] if key != "limits"} == frontier[-1]
    assert [one["arch_id"] for one in data["runners_up"]] == [one["arch_id"] for one in frontier[-2::-1]]
    assert data["notes"][0] == {"kind": "equal_convergence"}


@pytest.mark.parametrize("place", range(4))
def test_the_best_is_the_largest_that_keeps_every_limit(run: Run, folder: Path, place: int) -> None:
    frontier = members(run)
    limit_s = median(frontier[place]) * 1.0001
    data = json.loads(run("pick", RUN, "--max-decode-latency", f"{limit_s:.9f}", "--runners-up", "9", "-o", "json"))
    assert data["best"]["arch_id"] == frontier[place]["arch_id"]
    assert [one["arch_id"] for one in data["runners_up"]] == [one["arch_id"] for one in frontier[:place][::-1]]
    assert data["limits"] == [{"name": "decode_latency_s", "minimum": None, "maximum": pytest.approx(limit_s)}]
    [cost] = data["limits_cost"]
    assert cost["is_binding"] == (place < 3)
    assert cost["without"]["arch_id"] == frontier[-1]["arch_id"]
    assert cost["needs"] == median(frontier[-1])
    ratio = frontier[-1]["objectives"]["decoder_params"] / frontier[place]["objectives"]["decoder_params"]
    assert cost["gain"] == pytest.approx(ratio)


def test_each_limit_is_priced_with_the_others_kept(run: Run, folder: Path) -> None:
    frontier = members(run)
    decode = Constraint(name="decode_latency_s", maximum=median(frontier[2]) * 1.001)
    memory = Constraint(name="peak_memory_bytes", maximum=median(frontier[1], "peak_memory_bytes") * 1.001)
    data = decided(decode, memory)
    assert data["best"]["arch_id"] == frontier[1]["arch_id"]
    free, costly = data["limits_cost"]
    assert (free["is_binding"], free["without"]["arch_id"]) == (False, frontier[1]["arch_id"])
    assert (costly["is_binding"], costly["without"]["arch_id"]) == (True, frontier[2]["arch_id"])
    text = run("pick", "--max-decode-latency", f"{decode.maximum:.9f}", "--max-peak-memory", f"{memory.maximum:.0f}")
    assert "costs nothing: without it the same one is picked" in text
    assert f"without it {frontier[2]['arch_id']}" in text
    assert "assumes that every one is trained until it has converged" in text
    assert "measured on Raspberry Pi 5" in text
    assert "this one in 3 processes" in text
    assert "decode ms of each process, as measured" in text


def test_a_limit_that_the_search_did_not_know_may_choose_off_the_frontier(run: Run, folder: Path) -> None:
    """Slower at decoding than a smaller one, so dominated; but the only large one that is quick with a prompt."""
    quick = dominated(5.0)
    quick.objectives["prefill_latency_s"] = Measurement(median=1e-3)
    add(folder, quick)
    frontier = members(run)
    assert quick.architecture.arch_id not in [one["arch_id"] for one in frontier]
    data = json.loads(run("pick", "--max-prefill-latency", "2ms", "-o", "json"))
    assert data["best"]["arch_id"] == quick.architecture.arch_id
    assert data["best"]["on_frontier"] is False
    assert "not on the run's frontier" in run("pick", "--max-prefill-latency", "2ms")


def test_a_cap_on_size_may_choose_what_a_larger_one_dominates(run: Run, folder: Path) -> None:
    frontier = members(run)
    largest = frontier[-1]["objectives"]["decoder_params"]
    capped = dominated(1.2)
    assert frontier[-2]["objectives"]["decoder_params"] < capped.architecture.decoder_params < largest
    add(folder, capped)
    assert capped.architecture.arch_id not in [one["arch_id"] for one in members(run)]
    data = decided(Constraint(name="decoder_params", maximum=largest - 1))
    assert data["best"]["arch_id"] == capped.architecture.arch_id


def test_by_the_median_is_not_for_sure(run: Run, folder: Path) -> None:
    """The second member has three processes and an interval of its own, which reaches beyond the limit."""
    second = members(run)[1]
    limit_s = median(second) * 1.0001
    assert second["objectives"]["decode_latency_s"]["pi95"][1] > limit_s
    limit = Constraint(name="decode_latency_s", maximum=limit_s)
    data = decided(limit)
    assert data["best"]["arch_id"] == second["arch_id"]
    assert data["best"]["limits"][0]["is_sure"] is False
    assert data["best_sure"]["arch_id"] == members(run)[0]["arch_id"]
    assert decided(limit, only_sure=True)["best"]["arch_id"] == data["best_sure"]["arch_id"]
    text = run("pick", "--max-decode-latency", f"{limit_s:.9f}")
    assert "By its median only" in text
    assert f"surely within is {data['best_sure']['arch_id']} (--sure)" in text


def test_limits_that_nothing_keeps_say_what_is_nearest(run: Run, folder: Path) -> None:
    words = ("pick", "--max-decode-latency", "0.001ms", "--min-decoder-params", "1M")
    error = run(*words, status=1)
    assert "nothing that was measured keeps all limits" in error
    assert "decode at most 0.001 ms alone is kept by 0 (smallest measured: " in error
    assert "nearest is" in error
    assert error.count("\n") == 1
    assert main([*words, "-o", "json"]) == 1


def test_json_is_printed_even_when_nothing_was_found(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pick", "--max-decode-latency", "0.001ms", "-o", "json"]) == 1
    data = json.loads(capsys.readouterr().out)
    assert data["best"] is None
    assert data["runners_up"] == []
    assert data["nearest"]["excess"] > 1


def test_the_laws_are_those_that_were_published() -> None:
    """Chinchilla itself (70 G parameters, 1.4 T tokens) and GPT-3 as Hoffmann et al. place it; Kaplan's N alone."""
    chinchilla, kaplan = LAWS["chinchilla"].loss, LAWS["kaplan"].loss
    assert chinchilla(70e9, 1.4e12) == pytest.approx(1.937, abs=0.005)
    assert chinchilla(175e9, 300e9) == pytest.approx(2.002, abs=0.005)
    assert kaplan(1.5e9, 1e30) == pytest.approx((6.4e13 / 1.5e9) ** 0.076, rel=1e-6)
    for law in LAWS.values():
        assert law.loss(1e7, 1e9) > law.loss(2e7, 1e9) > law.loss(2e7, 4e9)


def test_a_law_ranks_by_tokens_and_warns_when_they_are_few(run: Run, folder: Path) -> None:
    data = decided(train_tokens=1e7)
    sizes = [one["loss"]["n_params"] for one in (data["best"], *data["runners_up"])]
    losses = [one["loss"]["nats"] for one in (data["best"], *data["runners_up"])]
    assert sizes == sorted(sizes, reverse=True)
    assert losses == sorted(losses)
    kinds = {note["kind"]: note for note in data["notes"]}
    assert "equal_convergence" not in kinds
    starved = kinds["few_tokens"]["members"]
    for one in (data["best"], *data["runners_up"]):
        assert (one["arch_id"] in starved) == (1e7 / one["loss"]["n_params"] < 20)
    assert starved
    assert "few_tokens" not in {note["kind"] for note in decided(train_tokens=1e12)["notes"]}
    text = run("pick", "--train-tokens", "10M")
    assert "law chinchilla: Hoffmann et al. 2022, arXiv 2203.15556, eq. 10" in text
    assert "under 20 tokens per parameter" in text
    assert "was fitted on homogeneous decoders of 70 M" in text


def test_a_law_that_counts_the_embedding_says_so(run: Run, folder: Path) -> None:
    add(folder, evaluation(9, architecture(4, 256, 896, 16384), scale=0.1))
    data = decided(train_tokens=1e9)
    largest = max((data["best"], *data["runners_up"]), key=lambda one: int(one["objectives"]["decoder_params"]))
    assert data["best"]["arch_id"] != largest["arch_id"]
    kinds = {note["kind"] for note in data["notes"]}
    assert {"embedding", "vocabularies"} <= kinds
    assert decided(train_tokens=1e9, law="kaplan")["best"]["arch_id"] == largest["arch_id"]
    assert "--loss-law kaplan counts it alone" in run("pick", "--train-tokens", "1G")


def test_csv_and_jsonl_list_the_best_first(run: Run, folder: Path) -> None:
    data = json.loads(run("pick", "-o", "json"))
    lines = [json.loads(line) for line in run("pick", "-o", "jsonl").splitlines()]
    assert lines == [data["best"], *data["runners_up"]]
    rows = list(csv.DictReader(io.StringIO(run("pick", "-o", "csv"))))
    assert [row["arch_id"] for row in rows] == [line["arch_id"] for line in lines]
    assert float(rows[0]["decode_latency_s"]) == median(lines[0])
    assert rows[0]["place"] == "1"


def test_emulated_boards_and_boards_that_write_escapes(run: Run) -> None:
    hostile = "\x1b[2J\u202e<b>|"
    write_run(store.runs_root(), RUN, is_emulated=True, device=replace(RPI5, model=hostile, torch=hostile))
    for output in ("table", "md", "csv", "json", "jsonl"):
        text = run("pick", "-o", output)
        assert all(character == "\n" or character.isprintable() for character in text)
    text = run("pick", "-o", "md")
    assert "emulated: timings are not performance" in text
    assert "<b>" not in text.replace("\\<b\\>", "")


def test_a_run_without_measurements_cannot_decide(run: Run, folder: Path) -> None:
    (folder / "ledger.jsonl").unlink()
    assert "has measured nothing yet" in run("pick", status=2)


# Recipes --------------------------------------------------------------------------------------------------------------


def test_a_recipe_follows_its_sources() -> None:
    """C = (6 N + 12 l d T) D with 100 M tokens, by hand."""
    arch = architecture(4, 256, 1024)
    made = recipes.recipe(arch, 1e8)
    flops = (6 * arch.decoder_params + 12 * 4 * 256 * 1024) * 1e8
    assert made["flops"] == flops
    assert made["learning_rate"] == pytest.approx(0.3118 * flops**-0.125, rel=0.005)
    assert made["batch_windows"] == round(0.2920 * flops**0.3271 / 1024)
    assert made["steps"] * made["batch_windows"] * 1024 >= 1e8
    assert made["warmup_steps"] <= made["steps"] // 10
    assert made["notes"]  # far below what the law was fitted on
    assert set(made["sources"]) >= {"learning_rate", "batch_windows", "tokens"}
    assert recipes.recipe(arch)["tokens"] == 20 * arch.total_params


@pytest.mark.parametrize("backbone", ["opt", "transformer-xl"])
def test_post_norm_gets_the_rate_of_its_own_paper(backbone: str) -> None:
    made = recipes.recipe(architecture(4, 256, 1024).replace(backbone=backbone), 1e8)
    assert made["learning_rate"] == 2.5e-4
    assert "Dai et al. 2019" in made["sources"]["learning_rate"]


def test_a_recipe_is_written_for_the_best_and_never_over_something_else(
    run: Run, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "recipe"
    for _ in range(2):  # an older recipe is replaced
        run("pick", "--recipe", str(place), "--train-tokens", "100M")
    assert {path.name for path in place.iterdir()} == {
        "model.py",
        "config.json",
        "example.py",
        "train.py",
        "recipe.json",
    }
    made = json.loads((place / "recipe.json").read_text())
    assert made["arch_id"] == json.loads(run("pick", "-o", "json"))["best"]["arch_id"]
    assert made["tokens"] == 100_000_000
    compile((place / "train.py").read_text(), "train.py", "exec")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    assert "holds no recipe" in run("pick", "--recipe", str(tmp_path / "mine"), status=2)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]
    with pytest.raises(UsageError, match="holds no recipe"):
        recipes.write_recipe(architecture(4, 64, 128), tmp_path / "mine" / "thesis.tex")
