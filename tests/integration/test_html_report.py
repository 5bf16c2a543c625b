"""The HTML report in a real browser without a window: it draws, sorts, toggles, and runs nothing hostile.

A page is looked at in two ways. As it is, with its policy in force: what its own scripts made of it (`--dump-dom`), and
how it looks (`--screenshot`). With its policy taken out and a script of the test put in: what a click does.
"""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_lts_host import store
from edge_lts_host.report import compare, pages
from edge_lts_host.report.html import page
from edge_lts_host.report.sides import side_of
from edge_lts_host.store import RunFolder
from tests.support import require
from tests.unit.host.sample_runs import write_run
from tests.unit.host.test_html_report import hostile_run

A = "20261122-101530-rpi5-ab12"
B = "20261123-101530-rpi4-cd34"
TIMEOUT_S = 300
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
# What the test's own script leaves behind for it to read.
RESULT = re.compile(r'<pre id="result">(.*?)</pre>', re.DOTALL)
ACTIONS = """
const out = {}, all = (what) => [...document.querySelectorAll(what)];
const click = (element) => element.dispatchEvent(new MouseEvent("click", {bubbles: true}));
const firstColumn = () => all("main table")[0].tBodies[0].rows;
const ids = () => [...firstColumn()].map((row) => row.cells[0].textContent);
const drawnBy = () => all(".point").map((point) => point.dataset.run);
out.points = all(".point").length;
out.table = ids();
const heading = all("main table")[0].tHead.rows[0].cells;
const decode = [...heading].findIndex((cell) => cell.textContent.startsWith("decode ms"));
click(heading[decode].firstChild); out.up = ids(); out.sortUp = heading[decode].getAttribute("aria-sort");
click(heading[decode].firstChild); out.down = ids(); out.sortDown = heading[decode].getAttribute("aria-sort");
const spot = all(".point")[0];
spot.dispatchEvent(new PointerEvent("pointermove", {bubbles: true, clientX: 50, clientY: 50}));
out.tip = document.querySelector(".tip").hidden ? null : document.querySelector(".tip").textContent;
spot.dispatchEvent(new PointerEvent("pointerleave"));
out.tipAfter = document.querySelector(".tip").hidden;
click(spot);
out.clicked = spot.dataset.id;
out.panel = document.querySelector("aside").textContent;
out.layers = all("aside svg text").map((one) => one.textContent);
out.chosen = all(".chosen").map((one) => one.dataset.id);
click(firstColumn()[2]);
out.row = firstColumn()[2].dataset.id;
out.panelOfRow = document.querySelector("aside h4").textContent;
const chips = all(".chip input");
chips[0].checked = false; chips[0].dispatchEvent(new Event("change"));
out.withoutFirst = [...new Set(drawnBy())];
chips[0].checked = true; chips[0].dispatchEvent(new Event("change"));
out.withFirst = [...new Set(drawnBy())].length;
const select = document.querySelector("select");
select.value = "1"; select.dispatchEvent(new Event("change"));
out.axis = [...document.querySelectorAll(".plot-box svg text")].map((one) => one.textContent);
const pre = document.createElement("pre"); pre.id = "result"; pre.textContent = JSON.stringify(out);
document.body.append(pre);
"""


@pytest.fixture
def chromium(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The browser's name; runs are kept in the test's folder."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    require("chromium", found, "no chromium on the PATH")
    monkeypatch.setenv("EDGE_LTS_RUNS", str(tmp_path / "runs"))
    return str(found)


def browse(chromium: str, path: Path, *words: str, fragment: str = "") -> str:
    """Stdout of the browser after it has loaded the file. It lives and dies in the test's folder."""
    profile = path.parent / "profile"
    argv = [
        chromium,
        "--headless=new",
        "--no-sandbox",  # of use only against pages that are not ours; root has none
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
        f"--user-data-dir={profile}",
        *words,
        f"{path.as_uri()}{fragment}",
    ]
    result = subprocess.run(argv, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    return result.stdout


def written(tmp_path: Path, *run_ids: str) -> Path:
    """The page of these runs as a file."""
    folders = [RunFolder(store.runs_root() / run_id) for run_id in run_ids]
    report = compare.build_report(folders)
    sides = [side_of(folder, run) for folder, run in zip(folders, report["runs"], strict=True)]
    path = tmp_path / "report.html"
    path.write_text(page.report(report, sides, pages.report(report, "html")), encoding="utf-8")
    return path


def acted(chromium: str, path: Path, script: str) -> dict[str, Any]:
    """What `script` found out in the page, its policy taken out."""
    source, n_policies = POLICY.subn("", path.read_text(encoding="utf-8"))
    assert n_policies == 1
    other = path.with_name("acted.html")
    other.write_text(source.replace("</body>", f"<script>(() => {{{script}}})()</script></body>"), encoding="utf-8")
    [found] = RESULT.findall(browse(chromium, other, "--dump-dom"))
    result: dict[str, Any] = json.loads(found.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    return result


def test_points_rows_devices_and_axes_answer(chromium: str, tmp_path: Path) -> None:
    for run_id, scale in ((A, 1.0), (B, 2.0)):
        write_run(store.runs_root(), run_id, scale=scale)
    found = acted(chromium, written(tmp_path, A, B), ACTIONS)
    assert found["points"] == 8
    assert len(found["table"]) == 4
    assert (found["sortUp"], found["sortDown"]) == ("ascending", "descending")
    assert found["up"] == found["table"]  # a frontier: who is larger is slower
    assert found["down"] == found["up"][::-1]
    assert found["clicked"] in found["tip"]
    assert "4 x 64, ffn 256-448, heads 4" in found["tip"]
    assert found["tipAfter"] is True
    assert found["clicked"] in found["panel"]
    assert "decode ms" in found["panel"]
    assert "embedding" in found["panel"]
    assert found["layers"] == [f"ffn {256 + 64 * index}, heads 4" for index in range(4)]
    assert set(found["chosen"]) == {found["clicked"]}
    assert found["panelOfRow"] == found["row"]
    assert found["withoutFirst"] == [B]
    assert found["withFirst"] == 2
    assert "peak MiB" in found["axis"]


def test_a_hostile_board_runs_nothing_and_a_link_opens_its_member(chromium: str, tmp_path: Path) -> None:
    hostile_run(store.runs_root())
    path = written(tmp_path, A)
    ids = re.findall(r'"id":"([0-9a-f]{12})","kind":"member"', path.read_text())
    dom = browse(chromium, path, "--dump-dom", fragment=f"#{ids[2]}")
    assert 'data-ready="yes"' in dom  # our own scripts ran under the policy
    assert f"<h4>{ids[2]}</h4>" in dom
    assert "<title>edge-lts report" in dom
    assert not re.search(r"<(img|b|iframe|object|embed)[ >]", dom)
    assert dom.count("<script") == 3
    assert dom.count('class="point') == len(ids) == 4


def test_the_policy_would_stop_a_script_that_got_in(chromium: str, tmp_path: Path) -> None:
    write_run(store.runs_root(), A)
    path = written(tmp_path, A)
    foreign = "<script>document.title = 'owned'</script><img src=x onerror=\"document.title = 'owned'\"></body>"
    source = path.read_text(encoding="utf-8").replace("</body>", foreign)
    path.write_text(source, encoding="utf-8")
    assert "<title>edge-lts report" in browse(chromium, path, "--dump-dom")
    path.write_text(POLICY.sub("", source), encoding="utf-8")
    assert "<title>owned</title>" in browse(chromium, path, "--dump-dom")  # so the first look could have seen it


@pytest.mark.parametrize("width", [1200, 500])
def test_it_looks_like_a_page_light_and_dark(chromium: str, tmp_path: Path, width: int) -> None:
    write_run(store.runs_root(), A)
    path = written(tmp_path, A)
    papers = []
    for scheme in ("1", "0"):  # light, dark
        image = tmp_path / f"{scheme}.png"
        settings = [f"--window-size={width},900", f"--blink-settings=preferredColorScheme={scheme}"]
        browse(chromium, path, *settings, f"--screenshot={image}")
        n_columns, rows = pixels(image.read_bytes())
        assert n_columns == width
        counts: dict[bytes, int] = {}
        for row in rows:
            for pixel in row:
                counts[pixel] = counts.get(pixel, 0) + 1
        papers.append(max(counts, key=lambda pixel: counts[pixel]))
        series = bytes.fromhex("0072b2" if scheme == "1" else "56b4e9")
        assert counts.get(series, 0) > 60  # the members, in the colour of the first device
        assert counts[papers[-1]] < 0.98 * width * 900  # and there is something on the page
    assert papers == [bytes.fromhex("ffffff"), bytes.fromhex("16181b")]


def pixels(data: bytes) -> tuple[int, Iterator[list[bytes]]]:
    """Width, and rows of RGB pixels, of an 8-bit PNG without interlacing (PNG specification, 9.2)."""
    at, packed, header = 8, b"", b""
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        body = data[at + 8 : at + 8 + length]
        header = body if kind == b"IHDR" else header
        packed += body if kind == b"IDAT" else b""
        at += 12 + length
    width, _, depth, colour, _, _, interlace = struct.unpack(">IIBBBBB", header)
    assert (depth, interlace) == (8, 0)
    n = {2: 3, 6: 4}[colour]
    return width, _rows(zlib.decompress(packed), width, n)


def _rows(raw: bytes, width: int, n: int) -> Iterator[list[bytes]]:
    stride = width * n
    above = bytearray(stride)
    for start in range(0, len(raw), stride + 1):
        kind, line = raw[start], bytearray(raw[start + 1 : start + 1 + stride])
        for i in range(stride if kind else 0):
            a, b, c = (line[i - n] if i >= n else 0), above[i], (above[i - n] if i >= n else 0)
            line[i] = (line[i] + (0, a, b, (a + b) // 2, _paeth(a, b, c))[kind]) & 255
        above = line
        yield [bytes(line[i : i + 3]) for i in range(0, stride, n)]


def _paeth(a: int, b: int, c: int) -> int:
    p = a + b - c
    pa, pb, pc = abs(p - a), abs(p - b), abs(p - c)
    return a if pa <= pb and pa <= pc else b if pb <= pc else c
