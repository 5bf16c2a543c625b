"""What reports show of shared keys and values, head widths and styles, and nothing of them where there is none."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest

from edge_lts.arch import Architecture, LayerSpec
from edge_lts_host import store
from edge_lts_host.recipes import flops_per_token
from edge_lts_host.report import compare, health, pages, shapes
from edge_lts_host.store import RunFolder
from tests.unit.host.sample_runs import write_run

RUN = "20261122-101530-rpi5-ab12"
ARCH = Architecture(backbone="gpt2", d_model=128, layers=(LayerSpec(d_inner=256, n_head=8),), vocab_size=100)


@pytest.fixture
def report() -> dict[str, Any]:
    return compare.build_report([RunFolder(write_run(store.runs_root(), RUN))])


def rows_of(report: dict[str, Any]) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(pages.report(report, "csv"))))


def test_plain_decoders_have_no_columns_for_styles(report: dict[str, Any]) -> None:
    text = pages.report(report, "table")
    assert "activation" not in text
    assert not {"n_kv_head", "d_head", "activation"} & set(rows_of(report)[0])


def test_what_members_differ_in_has_a_column_with_the_backbones_own_value_for_the_rest(report: dict[str, Any]) -> None:
    entries = report["runs"][0]["frontier"]
    other = entries[0]["architecture"]
    other |= {"activation": "relu2", "d_head": 48}
    other["layers"] = [{**layer, "n_kv_head": 2} for layer in other["layers"]]
    lines = pages.report(report, "table").splitlines()
    heading = next(line for line in lines if line.startswith("arch_id"))
    assert {"d_head", "activation"} <= set(heading.split())
    assert not {"norm", "is_gated"} & set(heading.split())
    first = next(line for line in lines if entries[0]["arch_id"] in line)
    second = next(line for line in lines if entries[1]["arch_id"] in line)
    assert "4/2" in first.split()
    assert {"relu2", "48"} <= set(first.split())
    assert "gelu" in second.split()
    rows = rows_of(report)
    assert rows[0]["n_kv_head"].split(";") == ["2"] * len(other["layers"])
    assert (rows[0]["activation"], rows[0]["d_head"]) == ("relu2", "48")
    assert (rows[1]["n_kv_head"], rows[1]["activation"]) == ("", "")


def test_heads_at_a_glance() -> None:
    shared = ARCH.replace(layers=(LayerSpec(d_inner=256, n_head=8, n_kv_head=2), LayerSpec(d_inner=256, n_head=4)))
    assert shapes.words(ARCH.to_json()) == "1 x 128, ffn 256, heads 8"
    assert shapes.words(shared.to_json()) == "2 x 128, ffn 256, heads 4-8/2-4"


def test_a_head_width_of_its_own_is_held_against_the_validated_range() -> None:
    def sides(arch: Architecture) -> list[str]:
        return [note["side"] for note in health.health([arch], None) if note["rule"] == "d_head"]

    assert sides(ARCH) == ["low"]  # 128 / 8
    assert sides(ARCH.replace(d_head=64)) == []
    assert sides(ARCH.replace(d_head=160)) == ["high"]


def test_attention_of_a_recipe_counts_the_width_of_the_queries() -> None:
    plain, wide = ARCH, ARCH.replace(d_head=32)
    assert flops_per_token(plain, 100) == 6.0 * plain.decoder_params + 12.0 * 128 * 100
    assert flops_per_token(wide, 100) == 6.0 * wide.decoder_params + 12.0 * 256 * 100
