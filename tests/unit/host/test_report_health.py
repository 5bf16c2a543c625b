"""What a report says of a space: bounds that the frontier leans on, and members where the proxy was never checked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge_lts.arch import Architecture, LayerSpec
from edge_lts.space_rules import VALIDATED, Genes
from edge_lts_host import store
from edge_lts_host.cli import main
from edge_lts_host.report import pages
from edge_lts_host.report.health import genes_of, health
from edge_lts_host.spaces import list_spaces, load_space
from tests.unit.host.sample_runs import evaluation, write_run

RUN = "20261122-101530-rpi5-ab12"
GENES = Genes(n_layer=(4, 6, 8), d_model=(64, 128, 256), d_inner=(128, 512, 1024), n_head=(2, 4))
# The members of write_run have 4 layers, widths 64 to 256, d_inner 256 to 1216 and 4 heads.
SPACE: dict[str, Any] = {
    "name": "leaning",
    "backbone": "gpt2",
    "genes": {"n_layer": [4, 6], "d_model": [64, 128, 192, 256], "d_inner": [64, 704, 2048], "n_head": [2, 4]},
}


def arch(n_layer: int, d_model: int, d_inner: int, n_head: int = 4, **fields: Any) -> Architecture:
    layers = (LayerSpec(d_inner=d_inner, n_head=n_head),) * n_layer
    return Architecture(backbone="gpt2", d_model=d_model, layers=layers, vocab_size=1000).replace(**fields)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def run(*words: str) -> str:
        assert main(words) == 0
        return capsys.readouterr().out

    return run


def of_kind(kind: str, notes: list[dict[str, Any]]) -> list[tuple[str, str, int, list[str]]]:
    key = "gene" if kind == "bound" else "rule"
    return [(note[key], note["side"], note["value"], note["members"]) for note in notes if note["kind"] == kind]


def test_bounds_are_named_where_more_than_the_ends_stand_at_them() -> None:
    small, middle, large = arch(4, 128, 512), arch(6, 256, 512), arch(8, 256, 512)
    assert small.decoder_params < middle.decoder_params < large.decoder_params
    assert of_kind("bound", health([small, middle, large], GENES)) == [
        ("d_model", "high", 256, [middle.arch_id, large.arch_id]),
        ("n_head", "high", 4, [small.arch_id, middle.arch_id, large.arch_id]),
    ]  # n_layer 4 and 8 only at the ends: no note


def test_the_ends_alone_say_nothing() -> None:
    assert of_kind("bound", health([arch(4, 64, 128), arch(8, 256, 1024)], GENES)) == []
    assert health([], GENES) == []


def test_a_bound_counts_in_any_layer() -> None:
    layers = (LayerSpec(d_inner=512, n_head=4), LayerSpec(d_inner=1024, n_head=2)) * 3
    middle = arch(6, 128, 512, layers=layers)
    found = of_kind("bound", health([arch(4, 128, 512), middle, arch(8, 256, 512)], GENES))
    assert ("d_inner", "high", 1024, [middle.arch_id]) in found
    assert ("n_head", "low", 2, [middle.arch_id]) in found


def test_a_side_that_was_widened_and_a_floor_of_one_are_no_bounds() -> None:
    genes = Genes(n_layer=(1, 2, 3), d_model=(64, 128), d_inner=(256, 512), n_head=(1, 2))
    frontier = [arch(1, 128, 512, 1), arch(1, 192, 512, 1), arch(2, 192, 512, 1)]
    frontier.insert(1, arch(1, 128, 768, 1))
    sizes = [member.decoder_params for member in frontier]
    assert sizes == sorted(set(sizes))
    assert of_kind("bound", health(frontier, genes)) == []  # n_layer and n_head 1; 192 and 768 lie beyond the genes


def test_embedding_genes_have_bounds_too() -> None:
    genes = Genes.from_json(GENES.to_json() | {"vocab_size": [1000, 2000], "d_embed": [32, 64]})
    frontier = [arch(n, 128, 512, d_embed=32) for n in (5, 6, 7)]
    found = {(name, side): len(ids) for name, side, _, ids in of_kind("bound", health(frontier, genes))}
    assert found == {("d_embed", "low"): 3, ("vocab_size", "low"): 3, ("n_head", "high"): 3}


def test_members_outside_the_validated_ranges_are_named_with_the_rule() -> None:
    tiny = arch(4, 64, 256, 2)
    shallow = arch(3, 256, 1024, 4)
    wide = arch(4, 256, 2112, 8)
    headed = arch(4, 512, 2048, 2)
    huge = arch(16, 1024, 4096, 8)
    good = arch(4, 256, 2048, 8)
    notes = health([tiny, shallow, wide, headed, huge, good], None)
    assert of_kind("bound", notes) == []
    assert of_kind("unvalidated", notes) == [
        ("decoder_params", "low", 400_000, [tiny.arch_id]),
        ("decoder_params", "high", 100_000_000, [huge.arch_id]),
        ("n_layer", "low", 4, [shallow.arch_id]),
        ("d_head", "high", 128, [headed.arch_id]),
        ("d_inner_over_d_model", "high", 8, [wide.arch_id]),
    ]
    narrow = arch(4, 256, 1024, 16)
    assert of_kind("unvalidated", health([narrow], None)) == [("d_head", "low", 32, [narrow.arch_id])]


def test_the_spaces_with_guard_rails_keep_the_validated_ranges() -> None:
    checked = 0
    for name in list_spaces():
        space, _ = load_space(name)
        rules = space.get("rules", {})
        if "d_head" in rules:
            checked += 1
            low, high = VALIDATED["d_head"]
            assert rules["d_head"] == {"at_least": low, "at_most": high}
            assert rules["d_inner_over_d_model"]["at_most"] <= VALIDATED["d_inner_over_d_model"][1]
            assert rules["decoder_params"]["at_least"] >= (VALIDATED["decoder_params"][0] or 0)
            assert Genes.from_json(space["genes"]).n_layer[0] >= (VALIDATED["n_layer"][0] or 0)
    assert checked >= 3


@pytest.mark.parametrize("space", [{}, {"genes": None}, {"genes": {"n_layer": [1]}}, {"genes": {"d_kv": [1]}}])
def test_a_space_that_cannot_be_read_has_no_bounds(space: dict[str, Any]) -> None:
    assert genes_of(space) is None
    assert genes_of(SPACE) == Genes.from_json(SPACE["genes"])


def test_the_report_names_genes_rules_and_members(run: Callable[..., str]) -> None:
    write_run(store.runs_root(), RUN, space=SPACE, strategy="guided")
    [entry] = json.loads(run("report", "-o", "json"))["runs"]
    ids = [member["arch_id"] for member in entry["frontier"]]
    assert entry["health"] == [
        {"kind": "bound", "gene": "n_layer", "side": "low", "value": 4, "members": ids},
        {"kind": "bound", "gene": "n_head", "side": "high", "value": 4, "members": ids},
        {"kind": "unvalidated", "rule": "decoder_params", "side": "low", "value": 400_000, "members": ids[:1]},
        {"kind": "unvalidated", "rule": "d_head", "side": "low", "value": 32, "members": ids[:1]},
    ]
    lines = [
        f"- n_layer: 4 of 4 members are at its lower bound 4 ({', '.join(ids)}); beyond it the proxy was not checked",
        f"- n_head: 4 of 4 members are at its upper bound 4 ({', '.join(ids)}); the space may be too small: --widen",
        f"- decoder_params: 1 of 4 members is below 400 k ({ids[0]}); the proxy was not checked there",
        f"- d_head: 1 of 4 members is below 32 ({ids[0]}); the proxy was not checked there",
    ]
    for output in ("table", "md"):
        text = run("report", "-o", output)
        assert "\n\n" + "\n".join(lines) + "\n\n" in text
        assert text.index(ids[-1]) < text.index(lines[0])  # behind the table of the frontier
    assert "members" not in run("report", "-o", "csv")


@pytest.mark.parametrize(
    "fields", [{"strategy": "evolution"}, {"strategy": "guided", "settings": {"widen": True}}], ids=str
)
def test_widen_is_only_advised_where_it_is_of_use(run: Callable[..., str], fields: dict[str, Any]) -> None:
    write_run(store.runs_root(), RUN, space=SPACE, **fields)
    text = run("report")
    assert "; the space may be too small: take a larger one" in text
    assert "--widen" not in text


def test_long_lists_of_members_are_cut_after_five() -> None:
    members = [f"{index:012x}" for index in range(9)]
    note = {"kind": "bound", "gene": "d_model", "side": "high", "value": 960, "members": members}
    run = {"frontier": [None] * 18, "spec": {"strategy": "guided", "settings": {}}}
    assert pages._health_note(note, run) == (
        f"d_model: 9 of 18 members are at its upper bound 960 ({', '.join(members[:5])} and 4 more); "
        "the space may be too small: --widen"
    )
    assert "(000000000000, 000000000001, 000000000002, 000000000003, 000000000004);" in pages._health_note(
        note | {"members": members[:5]}, run
    )


@pytest.mark.parametrize("gene", ["d_embed", "vocab_size"])
def test_nobody_is_advised_to_look_for_ever_smaller_embeddings(gene: str) -> None:
    note = {"kind": "bound", "gene": gene, "side": "low", "value": 512, "members": ["0" * 12]}
    run = {"frontier": [None] * 3, "spec": {"strategy": "guided", "settings": {}}}
    assert pages._health_note(note, run) == (
        f"{gene}: 1 of 3 members is at its lower bound 512 (000000000000); no decoder parameters are lost by less of it"
    )
    assert pages._health_note(note | {"side": "high"}, run).endswith("the space may be too small: --widen")


def test_the_table_shows_what_tells_embeddings_apart(run: Callable[..., str]) -> None:
    folder = write_run(store.runs_root(), RUN)
    assert "vocab_size" not in run("report")
    add_evaluations(folder, [arch(4, 64, 256), arch(4, 64, 192, vocab_size=500)], scale=1e-3)
    text = run("report")
    assert "  vocab_size  " in text
    assert "d_embed" not in text
    add_evaluations(folder, [arch(4, 64, 320, d_embed=16)], scale=1e-3)
    assert "  d_embed  vocab_size  " in run("report")


def add_evaluations(folder: Path, archs: list[Architecture], scale: float) -> None:
    ledger = folder / "ledger.jsonl"
    first = len(ledger.read_text().splitlines())
    lines = [json.dumps(evaluation(first + i, one, scale=scale).to_json()) for i, one in enumerate(archs)]
    ledger.write_text(ledger.read_text() + "".join(line + "\n" for line in lines))
