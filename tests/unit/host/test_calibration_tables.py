"""Tables of trained models, statistics over them, and the verbs `proxies`, `calibrate` and `validate`."""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_lts.proxies.closed import FORMULAS
from edge_lts.proxies.shape import Shape
from edge_lts_host.calibration import pages, scores, statistics, validation
from edge_lts_host.calibration.from_table import draw
from edge_lts_host.calibration.panel import read_panel
from edge_lts_host.calibration.scores import NAMES
from edge_lts_host.errors import UsageError
from edge_lts_host.proxy_files import load_proxy
from edge_lts_host.report.plots import ranked
from tests.panels import architectures, made_up, published, row, write_table
from tests.support import require

Run = Callable[..., str]
ARCHS = architectures(12, 3)


def rows(n: int = 12) -> list[dict[str, Any]]:
    return [row(f"m{index}", arch, 40.0 + index) for index, arch in enumerate(ARCHS[:n])]


# --- tables ---


def test_a_table_is_read_as_given(tmp_path: Path) -> None:
    panel = read_panel(write_table(tmp_path / "some.csv", rows()), backbone="gpt2")
    assert (panel.name, panel.label, panel.unit, panel.backbone) == ("some", "valid_ppl", "nats/token", "gpt2")
    assert panel.warnings == ()
    assert [one.architecture for one in panel.models] == ARCHS
    assert panel.quality.tolist() == pytest.approx([-math.log(40.0 + index) for index in range(12)])
    expected = Shape.of_many(ARCHS)
    for field in ("decoder_params", "attention_params", "n_layer", "d_model", "d_embed", "log_heads", "total_params"):
        assert getattr(panel.shape, field).tolist() == pytest.approx(getattr(expected, field).tolist())


def test_without_a_backbone_the_columns_are_all_that_is_known(tmp_path: Path) -> None:
    table = [{**one, "decoder_params": 5} for one in rows()]
    panel = read_panel(write_table(tmp_path / "some.csv", table))
    assert panel.backbone is None
    assert panel.warnings == ()
    assert set(panel.shape.decoder_params) == {5.0}


def test_counts_that_differ_from_the_formula_are_one_warning(tmp_path: Path) -> None:
    table = rows()
    for one in table[:3]:
        one["decoder_params"] += 7
    panel = read_panel(write_table(tmp_path / "some.csv", table), backbone="gpt2")
    (warning,) = panel.warnings
    assert "3 of 12 models" in warning
    assert "m0" in warning
    assert panel.shape.decoder_params[0] == ARCHS[0].decoder_params + 7


def test_a_label_that_is_missing_leaves_the_row_out(tmp_path: Path) -> None:
    table = rows()
    table[4]["valid_ppl"] = ""
    panel = read_panel(write_table(tmp_path / "some.csv", table))
    assert len(panel.models) == 11
    assert "1 rows have no valid_ppl" in panel.warnings[0]


def test_repeats_are_one_model_and_say_what_the_noise_is(tmp_path: Path) -> None:
    table = rows()
    table += [{**one, "valid_ppl": one["valid_ppl"] * 1.02} for one in table[:4]]
    panel = read_panel(write_table(tmp_path / "some.csv", table))
    assert [one.n_trainings for one in panel.models] == [2] * 4 + [1] * 8
    assert panel.quality[0] == pytest.approx(-math.log(40.0) - math.log(1.02) / 2)
    of_one = math.log(1.02) / math.sqrt(2)
    assert panel.known_noise == pytest.approx(of_one / math.sqrt(16 / 12))
    assert read_panel(write_table(tmp_path / "other.csv", rows())).known_noise == 0


def test_bits_per_byte_go_before_perplexity(tmp_path: Path) -> None:
    path = write_table(tmp_path / "some.csv", [{**one, "bits_per_byte": 2.0} for one in rows()])
    panel = read_panel(path)
    assert (panel.label, panel.unit) == ("bits_per_byte", "nats/byte")
    assert panel.quality.tolist() == pytest.approx([-2 * math.log(2)] * 12)
    assert read_panel(path, label="valid_ppl").unit == "nats/token"


def test_rows_may_name_their_backbone_and_share_heads(tmp_path: Path) -> None:
    table = [{**one, "backbone": "llama", "d_inner": 512, "n_head": 8, "n_kv_head": 2} for one in rows()]
    for one in table:
        del one["decoder_params"], one["attention_params"], one["total_params"], one["div_val"]
    panel = read_panel(write_table(tmp_path / "some.csv", table))
    assert panel.backbone == "llama"
    for one, arch in zip(panel.models, ARCHS, strict=True):
        assert one.architecture is not None
        assert one.architecture.n_layer == arch.n_layer
        assert {layer.n_kv_head for layer in one.architecture.layers} == {2}
        assert one.shape.decoder_params == one.architecture.decoder_params


def test_rows_need_no_name(tmp_path: Path) -> None:
    table = [{key: value for key, value in one.items() if key != "name"} for one in rows(3)]
    names = [one.name for one in read_panel(write_table(tmp_path / "some.csv", table)).models]
    assert names == ["line 2", "line 3", "line 4"]


def test_a_row_is_known_again_by_what_stands_in_it(tmp_path: Path) -> None:
    panel = read_panel(write_table(tmp_path / "some.csv", rows()))
    again = read_panel(write_table(tmp_path / "turned.csv", rows()[::-1]))
    assert {one.key for one in panel.models} == {one.key for one in again.models}
    other = read_panel(write_table(tmp_path / "other.csv", [{**one, "valid_ppl": 9.5} for one in rows()]))
    assert not {one.key for one in panel.models} & {one.key for one in other.models}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"n_head": "4;x"}, ":2: n_head"),
        ({"n_head": "4;4;4;4;4;4;4;4;4;4;4;4;4;4;4;4;4;4"}, ":2: n_head has 18 values"),
        ({"n_head": "4", "d_inner": "64", "n_layer": "1e14"}, ":2: n_layer: 100000000000000 layers are more"),
        ({"valid_ppl": "-3"}, ":2: valid_ppl"),
        ({"valid_ppl": "nan"}, ":2: valid_ppl"),
        ({"d_model": ""}, ":2: d_model"),
        ({"decoder_params": "many"}, ":2: decoder_params"),
        ({"decoder_params": ""}, ":2: there is no decoder_params; --backbone"),
    ],
)
def test_errors_name_file_line_and_column(tmp_path: Path, change: dict[str, str], words: str) -> None:
    table = rows()
    table[0] |= change
    path = write_table(tmp_path / "some.csv", table)
    with pytest.raises(UsageError) as caught:
        read_panel(path)
    assert f"some.csv{words}" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "no column 'd_model'"),
        (b"name,d_model,n_head,d_inner\n", "there is no label"),
        (b"name,d_model,n_head,d_inner,valid_ppl\na,1\n", "another number of cells"),
        (b"name,d_model,n_head,d_inner,valid_ppl\na,1,1,1,1,1\n", "another number of cells"),
        (b"\xff\xfe\x00", "not UTF-8"),
    ],
)
def test_what_is_no_table_is_one_line(tmp_path: Path, text: bytes, words: str) -> None:
    path = tmp_path / "some.csv"
    path.write_bytes(text)
    with pytest.raises(UsageError, match=words):
        read_panel(path)
    with pytest.raises(UsageError, match="cannot be read"):
        read_panel(tmp_path / "absent.csv")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_table_is_read_or_refused_in_one_line(tmp_path: Path, data: st.DataObject) -> None:
    table = rows(3)
    for _ in range(data.draw(st.integers(1, 3))):
        one, column = data.draw(st.sampled_from(table)), data.draw(st.sampled_from(sorted(table[0])))
        one[column] = data.draw(
            st.sampled_from(["", "0", "-1", "1e9", "1e300", "inf", "nan", "4;", ";", "4;4", "x", "é", '"', "7", "1e14"])
            | st.text(max_size=6)
        )
    path = write_table(tmp_path / "some.csv", table)
    raw = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw)
    try:
        panel = read_panel(path, backbone=data.draw(st.sampled_from([None, "gpt2", "transformer-xl"])))
    except UsageError as exc:
        assert "\n" not in str(exc).split(":", 1)[0]
    else:
        assert all(math.isfinite(one.quality) for one in panel.models)


def test_a_draw_is_the_seed_s_and_without_repetition(tmp_path: Path) -> None:
    panel = read_panel(made_up(tmp_path / "some.csv"))
    names = [one.name for one in draw(panel, 16, 5).models]
    assert names == [one.name for one in draw(panel, 16, 5).models]
    assert len(set(names)) == 16
    assert names != [one.name for one in draw(panel, 16, 6).models]
    for n_models in (5, 81):
        with pytest.raises(UsageError, match=f"{n_models} models cannot be drawn from the 80"):
            draw(panel, n_models, 0)


# --- statistics ---


def test_equal_size_tau_counts_the_pairs_within_a_tenth() -> None:
    sizes = np.array([100.0, 109.0, 111.0, 200.0, 219.0, 400.0])
    score = np.array([1.0, 2.0, 2.0, 5.0, 4.0, 0.0])
    quality = np.array([0.3, 0.1, 0.2, 0.7, 0.9, 0.0])
    pairs = [
        (i, j)
        for i, j in itertools.combinations(range(6), 2)
        if abs(sizes[i] - sizes[j]) / max(sizes[i], sizes[j]) < 0.1
    ]
    assert pairs == [(0, 1), (0, 2), (1, 2), (3, 4)]
    agree = sum(np.sign(score[i] - score[j]) * np.sign(quality[i] - quality[j]) for i, j in pairs)
    told = sum(score[i] != score[j] for i, j in pairs) * sum(quality[i] != quality[j] for i, j in pairs)
    assert statistics.equal_size_tau(score, quality, sizes) == pytest.approx(agree / math.sqrt(told))
    assert statistics.equal_size_tau(np.ones(6), quality, sizes) is None


def test_common_ratio_is_the_share_of_the_best_that_is_found() -> None:
    quality, score = np.arange(20.0), np.arange(20.0)
    assert statistics.common_ratio(score, quality, 10) == 1.0
    score[19] = -1  # the best is put last: of the best two one is found, of the best ten nine
    assert statistics.common_ratio(score, quality, 10) == 0.5
    assert statistics.common_ratio(score, quality, 50) == 0.9


def test_every_statistic_has_an_interval_around_it_and_pairs_are_counted() -> None:
    rng = np.random.default_rng(0)
    shape = Shape.of_many(architectures(60, 1))
    quality = np.log(shape.decoder_params) + rng.normal(0, 0.3, 60)
    found = statistics.rank_statistics(np.asarray(shape.decoder_params), quality, shape)
    for name, one in found.items():
        if one["value"] is not None:
            low, high = one["ci95"]
            assert low <= one["value"] <= high, name
    assert found["kendall_tau"]["n_pairs"] == 60 * 59 // 2
    assert found["equal_size_tau"]["n_pairs"] >= found["equal_size_tau_within_d_embed"]["n_pairs"]
    assert found["spearman"]["value"] > 0.9


def test_too_few_pairs_of_one_size_say_nothing() -> None:
    archs = [ARCHS[0].replace(layers=ARCHS[0].layers[:1] * n) for n in (1, 3, 9, 27)]
    found = statistics.rank_statistics(np.arange(4.0), np.arange(4.0), Shape.of_many(archs))
    assert found["equal_size_tau"] == {"value": None, "ci95": None, "n_pairs": 0}


def test_published_correlations_are_found_again() -> None:
    panel = read_panel(published("random_GPT2_wt103"), backbone="gpt2")
    assert panel.warnings == ()
    (found,) = validation.validate(panel, ["decoder_params"], [], lambda text: None, {})
    assert found["n_rows"] == 200
    assert found["spearman"]["value"] == pytest.approx(0.967, abs=5e-4)
    assert found["kendall_tau"]["value"] == pytest.approx(0.847, abs=5e-4)
    assert found["equal_size_tau"]["n_pairs"] == 1070
    assert found["equal_size_tau"]["value"] == pytest.approx(0.164, abs=5e-4)
    assert found["common_ratio_top10"]["value"] == pytest.approx(0.70)


def test_a_published_table_of_another_backbone_s_counts_is_a_warning() -> None:
    (warning,) = read_panel(published("random_TransXL_lm1b"), backbone="gpt2").warnings
    assert "183 of 183" in warning
    assert read_panel(published("random_TransXL_lm1b"), backbone="transformer-xl").warnings == ()


# --- verbs ---


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_up(tmp_path_factory.mktemp("tables") / "made_up.csv", 60)


@pytest.fixture(scope="module")
def proxy_file(table: Path) -> Path:
    from edge_lts_host.calibration.from_table import calibrate_file

    path = table.with_name("proxy.json")
    calibrate_file(table, to=path, seed=1, models=10)
    return path


def test_calibrate_writes_what_it_drew_and_how_well_it_fits(run: Run, table: Path, tmp_path: Path) -> None:
    to = tmp_path / "p.json"
    words = ["calibrate", "--labels", str(table), "--models", "8", "--seed", "2", "--to", str(to)]
    said = json.loads(run(*words, "-o", "json"))
    written = json.loads(to.read_text())
    assert said["n_models"] == len(said["rows"]) == 8
    assert said["rows"] == [one["name"] for one in written["source"]["rows"]]
    assert written["source"]["seed"] == 2
    assert written["source"]["labels"] == "made_up.csv"
    assert said["digest"] == load_proxy(to).digest
    assert said["error"] > 0
    first = to.read_bytes()
    assert "that of size alone" in run(*words)
    assert to.read_bytes() == first


def test_a_table_of_few_models_is_used_whole_unless_more_are_asked_for(run: Run, tmp_path: Path) -> None:
    small = made_up(tmp_path / "small.csv", 7)
    words = ("calibrate", "--labels", str(small), "--to", str(tmp_path / "p.json"))
    assert json.loads(run(*words, "-o", "json"))["n_models"] == 7
    assert "8 models cannot be drawn" in run(*words, "--models", "8", status=2)
    assert "8 models cannot" not in run(*words, "--models", "6", "--seed", "-1", status=2)


def test_validate_leaves_out_what_the_proxy_was_fitted_to(run: Run, table: Path, proxy_file: Path) -> None:
    words = ("validate", "--panel", str(table), "-o", "json")
    found = json.loads(run(*words, "--proxy", str(proxy_file)))
    assert (found["n_rows"], found["n_left_out"]) == (50, 10)
    assert found["equal_size_tau"]["value"] > 0.3
    assert 0.5 < found["share_above_bound"] <= 1
    assert set(found["of_mean"]) >= {"spearman", "equal_size_tau"}
    size = json.loads(run(*words, "--proxy", "decoder_params"))
    assert (size["n_rows"], size["n_left_out"]) == (60, 0)
    size = json.loads(run(*words, "--proxy", "decoder_params", "--leave-out", str(proxy_file)))
    assert (size["n_rows"], size["n_left_out"]) == (50, 10)
    assert found["equal_size_tau"]["value"] > size["equal_size_tau"]["value"]


def test_several_proxies_are_compared_on_the_same_rows(run: Run, table: Path, proxy_file: Path) -> None:
    words = ["validate", "--panel", str(table)]
    for name in (*FORMULAS, str(proxy_file)):
        words += ["--proxy", name]
    found = json.loads(run(*words, "-o", "json"))["validations"]
    assert [one["proxy"]["name"] for one in found] == [*FORMULAS, "made_up, 10 models"]
    assert {one["n_rows"] for one in found} == {50}
    shown = pages.validated(found, "table")
    assert "50 trained models, 10 left out" in shown
    assert "tau-b at equal size" in shown
    assert len(pages.validated(found, "csv").splitlines()) == 6
    assert len(pages.validated(found, "jsonl").splitlines()) == 5
    assert "|--" in pages.validated(found, "md")
    assert json.loads(pages.validated(found[:1], "json")) == found[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--proxy", "weather"), "there is no proxy 'weather'"),
        (("--proxy", "absent.json"), "absent.json: it cannot be read"),
        (("--proxy", "synflow"), "--backbone says"),
        (("--proxy", "nsc", "--backbone", "rnn"), "unknown backbone"),
        (("--proxy", "nsc", "--label", "bits_per_byte"), "there is no label"),
    ],
)
def test_validate_says_what_it_lacks(run: Run, table: Path, words: tuple[str, ...], message: str) -> None:
    assert message in run("validate", "--panel", str(table), *words, status=2)


def test_models_are_built_once_for_all_proxies_that_need_them_and_for_the_picture(
    run: Run, table: Path, proxy_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an agent would say is made up here; tests/integration/test_model_proxies.py has a real one."""
    asked: list[tuple[int, tuple[str, ...]]] = []

    def events(archs: Any, names: Any, **how: Any) -> list[dict[str, Any]]:
        asked.append((len(archs), tuple(names)))
        return [
            {"scores": {"synflow": arch.decoder_params, "snip": -arch.n_layer}, "seconds": {}, "error": None}
            for arch in archs
        ]

    drawn: list[Any] = []
    monkeypatch.setattr(scores, "events", events)
    monkeypatch.setattr(ranked, "draw", lambda points, *rest: drawn.extend(points) or [])
    words = ["--backbone", "gpt2", "--leave-out", str(proxy_file), "--plots", str(tmp_path)]
    for name in ("synflow", "decoder_params", "snip", "synflow"):
        words += ["--proxy", name]
    found = json.loads(run("validate", "--panel", str(table), *words, "-o", "json"))["validations"]
    assert asked == [(50, ("synflow", "snip"))]
    assert [one["proxy"]["kind"] for one in found] == ["model", "formula", "model", "model"]
    assert found[0]["spearman"] == found[1]["spearman"] == found[3]["spearman"] != found[2]["spearman"]
    assert (found[0]["n_rows"], found[0]["n_left_out"]) == (50, 10)
    assert list(drawn[0].score) == list(drawn[1].score)
    assert set(drawn[2].score) <= set(range(-16, 0))


def test_a_model_that_cannot_be_scored_is_named_with_the_reason(
    run: Run, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[dict[str, Any]] = [{"scores": {"synflow": 1.0}, "seconds": {}, "error": None} for _ in range(60)]
    monkeypatch.setattr(scores, "events", lambda *what, **how: said)
    words = ("validate", "--panel", str(table), "--backbone", "gpt2", "--proxy", "synflow")
    run(*words)
    said[7] = {"scores": {}, "seconds": {}, "error": "MemoryError: no memory left"}
    said[9] = {"scores": {}, "seconds": {}, "error": "another"}
    message = "synflow could not be had for 2 of 60 models, such as m7: MemoryError: no memory left"
    assert message in run(*words, status=1)
    said[7]["error"] = None
    assert "such as m7: the score is not finite" in run(*words, status=1)


def test_calibrate_takes_one_source_of_labels(run: Run) -> None:
    assert "--labels TABLE.csv, or --corpus" in run("calibrate", status=2)
    assert "--labels TABLE.csv, or --corpus" in run("calibrate", "--labels", "a", "--corpus", "b", status=2)


def test_proxies_lists_every_one_with_its_cost_and_source(run: Run) -> None:
    listed = json.loads(run("proxies", "-o", "json"))["proxies"]
    assert [one["name"] for one in listed] == [*FORMULAS, *NAMES, "calibrated"]
    assert all(one["cost"] and one["source"] and one["evidence"] for one in listed)
    assert "arXiv 2609.23087" in run("proxies")


def test_a_picture_of_each_proxy_is_drawn(run: Run, table: Path, proxy_file: Path, tmp_path: Path) -> None:
    require("matplotlib", importlib.util.find_spec("matplotlib"), "pip install 'edge-lts[plots]'")
    words = ("--proxy", "decoder_params", "--proxy", str(proxy_file), "--plots", str(tmp_path / "pictures"))
    run("validate", "--panel", str(table), *words)
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == [
        "validated-made_up.png",
        "validated-made_up.svg",
    ]
    svg = (tmp_path / "pictures" / "validated-made_up.svg").read_text()
    assert "made_up, 10 models" in svg
