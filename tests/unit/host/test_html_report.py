"""The HTML report as a file: whole by itself, and nothing that a board says becomes part of its markup."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from edge_lts.records import Protocol
from edge_lts_host import store
from edge_lts_host.report import latex, render
from edge_lts_host.report.html import page, text
from tests.unit.host.conftest import Run
from tests.unit.host.sample_runs import RPI5, change_evaluations, observed, write_run

A = "20261122-101530-rpi5-ab12"
B = "20261123-101530-rpi4-cd34"
# What would end an element, an attribute, a comment or a script, or start one.
HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)>\"'><!--\u2028&lt;b&gt;]]>"
ELEMENTS = {
    *("html", "head", "meta", "title", "style", "body", "header", "main", "script", "div", "p", "ul", "li"),
    *("h1", "h2", "h3", "h4", "h5", "table", "thead", "tbody", "tr", "th", "td"),
}


class Page(HTMLParser):
    """The elements of a page, with their attributes and text."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.raw: dict[str, list[str]] = {"script": [], "style": []}
        self.n_comments = 0
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_comment(self, data: str) -> None:
        self.n_comments += 1

    def handle_data(self, data: str) -> None:
        tag = self.elements[-1][0] if self.elements else ""
        if tag in self.raw and self.cdata_elem == tag:
            self.raw[tag].append(data)
        else:
            self.words.append(data)

    @property
    def data(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.raw["script"][0])
        return found


def hostile_run(root: Path, run_id: str = A) -> Path:
    device = replace(RPI5, model=HOSTILE, cpu_model=HOSTILE, torch=HOSTILE, governor=HOSTILE, machine=HOSTILE)
    folder = write_run(root, run_id, device=device, host=HOSTILE, space={"name": HOSTILE, "backbone": "gpt2"})

    def change(record: dict[str, Any]) -> None:
        record["flags"] = [HOSTILE]
        record["conditions"] |= observed(health={"governor": HOSTILE})
        record["board"] = HOSTILE

    change_evaluations(folder, change)
    status = json.loads((folder / "status.json").read_text())
    changed = {**status, "state": HOSTILE, "reasons": [HOSTILE], "updated_at": HOSTILE}
    (folder / "status.json").write_text(json.dumps(changed))
    return folder


def test_the_page_is_one_file_with_every_member_and_its_evidence(run: Run) -> None:
    write_run(store.runs_root(), A)
    report = json.loads(run("report", "-o", "json"))
    found = Page(run("report", "-o", "html"))
    [group] = found.data["groups"]
    [entry] = group["runs"]
    members = {one["arch_id"]: one for one in report["runs"][0]["frontier"]}
    points = {one["id"]: one for one in entry["points"] if one["kind"] == "member"}
    assert set(points) == set(members)
    for arch_id, point in points.items():
        value = members[arch_id]["objectives"]["decode_latency_s"]
        middle, low, high, how = point["at"]["decode_latency_s"]
        assert middle == pytest.approx(value["median"] * 1e3)
        assert low < middle < high
        assert how in ("pi95", "borrowed")
        assert point["at"]["decoder_params"][0] == members[arch_id]["objectives"]["decoder_params"] / 1e6
        assert len(point["layers"]) == len(members[arch_id]["architecture"]["layers"])
        shown = dict(point["facts"])
        assert shown["decode ms"] == render.objective("decode_latency_s", value)
        assert shown["flags"] == render.flag_words(members[arch_id]["flags"]) or "none"
        assert arch_id in found.words
    assert [axis["label"] for axis in group["axes"]] == ["decode ms", "peak MiB", "prefill ms"]
    assert any("measured" in one["kind"] for one in entry["points"])
    assert dict(entry["facts"])["host"] == "pi5-a"
    [curve] = group["volumes"]
    assert curve["at"][-1][1] == pytest.approx(1.0)


@pytest.mark.parametrize("words", [("report",), ("pick",), ("compare", A, B)], ids=lambda words: words[0])
def test_the_page_needs_no_network_and_runs_only_its_own_scripts(run: Run, words: tuple[str, ...]) -> None:
    for run_id in (A, B):
        write_run(store.runs_root(), run_id)
    source = run(*words, "-o", "html")
    found = Page(source)
    assert {tag for tag, _ in found.elements} <= ELEMENTS
    for tag, attributes in found.elements:
        assert not {"src", "href", "action", "style"} & set(attributes)
        assert not [name for name in attributes if name.startswith("on")], tag
    urls = set(re.findall(r"[a-z]+://[^\s\"')]+", source))
    assert urls <= {"http://www.w3.org/2000/svg"}  # a name, not an address
    [policy] = [one["content"] or "" for _, one in found.elements if one.get("http-equiv")]
    scripts = found.raw["script"][1:]
    assert len(scripts) == 2
    for kind, content in [("script-src", one) for one in scripts] + [("style-src", found.raw["style"][0])]:
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert re.search(rf"{kind} [^;]*'sha256-{re.escape(digest)}'", policy)
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy


def test_hostile_strings_stay_text(run: Run) -> None:
    for run_id in (A, B):
        hostile_run(store.runs_root(), run_id)
    for words in (["report", "--all"], ["compare", A, B], ["pick", A]):
        source = run(*words, "-o", "html")
        found = Page(source)
        assert {tag for tag, _ in found.elements} <= ELEMENTS
        assert [tag for tag, _ in found.elements].count("script") == 3
        assert found.n_comments == 0
        assert "owned" in "".join(found.words)
        assert "<" not in found.raw["script"][0]
        assert "owned" in found.raw["script"][0] or words[0] == "pick"


def test_json_in_a_page_reads_back_and_shows_the_parser_nothing() -> None:
    data = {"text": HOSTILE, "more": ["\u2029", "ünïcode", 1.5, None]}
    found = page.embedded(data)
    assert json.loads(found) == data
    assert not set(found) & set("<>&\u2028\u2029")
    assert found.isascii()
    assert text.escape("<a href='x'>&\"") == "&lt;a href=&#x27;x&#x27;&gt;&amp;&quot;"


def test_runs_that_measured_differently_share_no_chart_and_emulated_ones_stand_apart(run: Run) -> None:
    root = store.runs_root()
    write_run(root, A)
    write_run(root, B, protocol=Protocol.named("lts"))
    write_run(root, "20261124-000000-rpi3-ef56", is_emulated=True)
    groups = Page(run("report", "--all", "-o", "html")).data["groups"]
    assert [[one["run_id"] for one in group["runs"]] for group in groups] == [
        [A],
        ["20261124-000000-rpi3-ef56"],
        [B],
    ]
    assert groups[1]["axes"][0]["label"] == "decode ms (emulated)"
    assert "(emulated)" in groups[1]["runs"][0]["label"]
    assert groups[0]["axes"][0]["label"] == "decode ms"


def test_a_filter_holds_for_the_chart_as_for_the_table(run: Run) -> None:
    write_run(store.runs_root(), A)
    found = Page(run("report", "--filter", "decode<2ms", "-o", "html"))
    points = found.data["groups"][0]["runs"][0]["points"]
    assert len([one for one in points if one["kind"] == "member"]) == 2


def test_a_run_without_members_still_has_a_page(run: Run) -> None:
    folder = write_run(store.runs_root(), A)
    (folder / "ledger.jsonl").unlink()
    found = Page(run("report", "-o", "html"))
    assert found.data == {"groups": []}
    assert any("Nothing measured yet" in words for words in found.words)


# --- LaTeX ---


def test_latex_escapes_what_a_board_says_and_has_a_row_for_each_member(run: Run) -> None:
    hostile = "\\input{/etc/passwd} $x$ 50% & # _ ^ ~ {a}\n\n\\end{tabular}[1]"
    write_run(store.runs_root(), A, device=replace(RPI5, model=hostile), host=hostile)
    write_run(store.runs_root(), B)
    for words in (["report", A], ["compare", A, B], ["pick", A]):
        found = run(*words, "-o", "latex")
        assert r"\input" not in found
        assert "\\textbackslash{}input\\{/etc/passwd\\} \\$x\\$ 50\\% \\& \\# \\_ " in found
        assert found.count(r"\begin{tabular}") == found.count(r"\end{tabular}") > 0
        assert r"\toprule" in found
    ids = [entry["arch_id"] for entry in json.loads(run("report", A, "-o", "json"))["runs"][0]["frontier"]]
    rows = [line for line in run("report", A, "-o", "latex").splitlines() if line[:12] in ids]
    assert len(rows) == 2 * len(ids)  # in both tables
    assert all(line.endswith(r" \\") for line in rows)


def test_latex_sets_numbers_to_the_right_and_words_to_the_left() -> None:
    found = latex.table([["a_b", "1.5 [1, 2]", "-"], ["c", "-", "x"]], ["name", "ms", "mark"])
    assert found.splitlines() == [
        r"\begin{tabular}{lrl}",
        r"\toprule",
        r"name & ms & mark \\",
        r"\midrule",
        r"a\_b & 1.5 {[}1, 2{]} & - \\",
        r"c & - & x \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]
    assert latex.bullets(["±3 µs"]) == "\\begin{itemize}\n\\item \\(\\pm\\)3 \\(\\mu\\)s\n\\end{itemize}"
