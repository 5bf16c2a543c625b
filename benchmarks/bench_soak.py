"""Pull the plug of a whole emulated board, at random moments of deploying, searching and pulling; what is lost?

    python benchmarks/bench_soak.py [--cuts 32] [--seed 1]     goes on where it was interrupted; writes the results
    python benchmarks/bench_soak.py --evaluate                 only the page

One JSON line per cut. After each the board boots again, and before anything is resumed its disk is looked at: every
record that was announced (an event follows the ledger's fsync) and every byte that was pulled or seen after an earlier
boot must be there, no architecture may have been searched twice, and the seconds spent must be counted. Timings under
emulation are no performance; the kernel, its file system (ext4) and its page cache are real.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import RESULTS, ROOT, read_rows, where, where_line, write_result

sys.path[:0] = [str(ROOT)]

from edge_lts import ledger  # noqa: E402  (a checkout needs no installation)
from edge_lts.errors import EdgeLtsError  # noqa: E402
from tests.board import workstation  # noqa: E402
from tests.board.whole import TARGET, WholeBoard, build_board, deployed_board, remember_deployed  # noqa: E402
from tests.board.workstation import SMALL, Workstation  # noqa: E402

RAW = RESULTS / "soak_emulated-arm64_202611.jsonl"
MIN_CUTS = 30
N_DEPLOY = 8
LIMIT_S = 50 * 60.0
FINISH_S = 700.0  # what a deploy to the end takes, roughly
MEMORY_BYTES = 2 << 30
LONGEST_S = 70.0  # from `resume` to the cut, where the moment is any; torch takes half of that to import
PATIENCE_S = 300.0  # for the first record of a life
AFTER_RECORD_S = 15.0  # from there to the cut, at most: the next one is being measured
MAX_LOST_S = 30.0  # of the budget: heartbeat, journal's commit and boot under emulation
MAX_PROCESSES = 4  # in which one architecture is measured: three, and one more after a retry
LINK_LOST = 4
NOTICE_S = 120.0
# The stage of `deploy` whose end a cut waits for, and how long after it the cut may come.
DEPLOY_MOMENTS = (("", 15.0), ("get wheels", 50.0), ("get wheels", 50.0), ("MB of wheels (", 60.0))
STAGES = {"deploy": "deploying", "pull": "searching and pulling", "search": "searching"}
RUNS = f"{workstation.ROOT}/runs"
Line = dict[str, Any]


@dataclass
class Disk:
    """What is on the board's disk of one run: the ledger's bytes, status.json, and the size of events.jsonl."""

    data: bytes
    status: dict[str, Any]
    events_bytes: int
    records: list[dict[str, Any]] = field(default_factory=list)
    torn_bytes: int = 0
    problem: str = ""

    @property
    def spent_s(self) -> float:
        """What a resume will count as spent."""
        recorded = max((float(record["spent_s"]) for record in self.records), default=0.0)
        return max(recorded, float(self.status.get("spent_s", 0.0)))


def look_at(board: WholeBoard, run_id: str, scratch: Path) -> Disk:
    script = f"cd {RUNS}/{run_id} && base64 -w0 ledger.jsonl; echo; cat status.json; echo; stat -c %s events.jsonl"
    lines = board.ssh(script, check=False).stdout.split("\n")
    data = base64.b64decode(lines[0]) if lines else b""
    try:
        status = json.loads(lines[1])
    except (ValueError, IndexError):
        status = {}
    size = next((int(line) for line in lines[2:] if line.isdigit()), 0)
    disk = Disk(data, status if isinstance(status, dict) else {}, size)
    path = scratch / "ledger.jsonl"
    path.write_bytes(data)
    try:
        disk.records, disk.torn_bytes = ledger.read(path)
    except EdgeLtsError as exc:
        disk.problem = str(exc)
    return disk


class Follower:
    """Reads a run's events as they are written, over a link of its own: what the board has said before the cut."""

    def __init__(self, board: WholeBoard, run_id: str, offset: int) -> None:
        command = f"tail -c +{offset + 1} -s 0.2 -F {RUNS}/{run_id}/events.jsonl 2>/dev/null"
        self._process = subprocess.Popen(
            ["ssh", *board.ssh_options, f"{board.user}@{board.address}", command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.n_announced = 0
        self.started: tuple[float, float] | None = None  # when it was heard, what was spent by then
        self.heard = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if event["event"] == "started":
                self.started = time.monotonic(), float(event["spent_s"])
            if event["event"] in ("measured", "failed"):
                self.n_announced += 1
                self.heard.set()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._thread.join()


def check(before: Disk, after: Disk, follower: Follower, pulled: bytes, cut_s: float) -> tuple[Line, list[str]]:
    """What a cut did to the disk, in numbers, and what is wrong with it in words."""
    problems = [after.problem] if after.problem else []
    if not after.data.startswith(before.data[: len(before.data) - before.torn_bytes]):
        problems.append("records seen after an earlier boot are gone or changed")
    if not after.data.startswith(pulled):
        problems.append(f"{len(pulled)} bytes were pulled that the board no longer has")
    if len(after.records) < len(before.records) + follower.n_announced:
        problems.append(f"{follower.n_announced} records were announced, {len(after.records)} are there")
    searched = [record["arch_id"] for record in after.records if record["purpose"] == "search"]
    if len(set(searched)) != len(searched):
        problems.append("an architecture was searched twice")
    again = Counter(record["arch_id"] for record in after.records if record["purpose"] != "one_thread")
    if again and max(again.values()) > MAX_PROCESSES:
        problems.append(f"one architecture was measured in {max(again.values())} processes")
    spent = [float(record["spent_s"]) for record in after.records]
    if spent != sorted(spent):
        problems.append("spent_s goes backwards")
    lost_s = None
    if follower.started is not None:
        heard_s, spent_s = follower.started
        lost_s = round(spent_s + cut_s - heard_s - after.spent_s, 1)
        if lost_s > MAX_LOST_S:
            problems.append(f"{lost_s} s of the budget were not counted")
    elif after.spent_s < before.spent_s:
        problems.append("the seconds spent went down")
    numbers = {
        "n_announced": follower.n_announced,
        "n_records_before": len(before.records),
        "n_records": len(after.records),
        "torn_bytes": after.torn_bytes,
        "pulled_bytes": len(pulled),
        "spent_s": round(after.spent_s, 1),
        "budget_not_counted_s": lost_s,
    }
    return numbers, problems


class Soak:
    """Cuts on one board; `write` gets the line of each."""

    def __init__(self, board: WholeBoard, home: Path, rng: random.Random, write: Callable[[Line], None]) -> None:
        self.board, self._rng, self._write = board, rng, write
        workstation.copy_sources(home)
        self.work = Workstation(home=home, board=board)

    def cut(self, processes: list[subprocess.Popen[str]], line: Line, look: Callable[[], list[str]]) -> None:
        """Pull the plug, see how the commands that were running end, boot, look at the disk, write the line."""
        self.board.power_off()
        problems = []
        line["exit_codes"] = []
        for process in processes:
            try:
                _, stderr = process.communicate(timeout=NOTICE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                _, stderr = process.communicate()
                problems.append(f"a command did not notice in {NOTICE_S:g} s that the board is gone")
            line["exit_codes"].append(process.returncode)
            if process.returncode not in (0, LINK_LOST) or "Traceback" in stderr:
                problems.append(f"a command ended with {process.returncode}: {stderr[-500:]}")
        begun = time.monotonic()
        self.board.power_on()
        line["boot_s"] = round(time.monotonic() - begun, 1)
        problems += look()
        self._write({**line, "problems": problems})


class SearchSoak(Soak):
    """A run that is resumed after each cut."""

    def begin(self) -> None:
        remember_deployed(self.board, self.work.home / "state")
        self.run_id = self.work("run", "--target", TARGET, "--budget", "10h", *SMALL).stdout.strip()
        self.disk = Disk(b"", {}, 0)
        self.is_interrupted = False

    def cut_once(self, stage: str) -> None:
        """`stage` search or pull: with the latter the workstation pulls all the time."""
        moment = self._rng.choice(("any", "any", "measuring"))
        delay_s = self._rng.uniform(0.0, LONGEST_S if moment == "any" else AFTER_RECORD_S)
        follower = Follower(self.board, self.run_id, self.disk.events_bytes)
        begun = time.monotonic()
        processes = [self.work.begin("resume", self.run_id)] if self.is_interrupted else []
        self.is_interrupted = True
        try:
            end = begun + delay_s if moment == "any" else None
            while end is None or time.monotonic() < end:
                if end is None and (follower.heard.wait(0.1) or time.monotonic() > begun + PATIENCE_S):
                    end = time.monotonic() + delay_s
                if stage == "pull" and all(process.poll() is not None for process in processes):
                    processes.append(self.work.begin("pull", self.run_id))
                time.sleep(0.1)
            cut_s = time.monotonic()
            line: Line = {
                "stage": stage,
                "moment": moment,
                "delay_s": round(delay_s, 2),
                "after_s": round(cut_s - begun, 1),
                "n_pulls": len(processes) - 1 if stage == "pull" else 0,
            }
            self.board.power_off()
        finally:
            follower.close()

        def look() -> list[str]:
            before, self.disk = self.disk, look_at(self.board, self.run_id, self.work.home)
            path = self.work.here(self.run_id) / "ledger.jsonl"
            pulled = path.read_bytes() if path.exists() else b""
            numbers, problems = check(before, self.disk, follower, pulled, cut_s)
            line.update(numbers)
            return problems

        self.cut(processes, line, look)

    def finish(self) -> Line:
        """One life without a cut: it must go on, and all of it must arrive."""
        problems = []
        before = self.disk
        self.work("resume", self.run_id)
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end and len(look_at(self.board, self.run_id, self.work.home).records) <= len(
            before.records
        ):
            time.sleep(2.0)
        self.work("stop", self.run_id, "--timeout", "5m")
        self.disk = look_at(self.board, self.run_id, self.work.home)
        if len(self.disk.records) <= len(before.records):
            problems.append("nothing was measured after the last cut")
        if (self.work.here(self.run_id) / "ledger.jsonl").read_bytes() != self.disk.data:
            problems.append("the ledger here is not the board's")
        (run,) = self.work.json("report", connects=False)["runs"]
        if not run["frontier"]:
            problems.append("there is no frontier")
        return {"finished": "search", "n_records": len(self.disk.records), "problems": problems}


class DeploySoak(Soak):
    """A fresh board that is deployed to, again and again."""

    def cut_once(self) -> None:
        mark, longest_s = self._rng.choice(DEPLOY_MOMENTS)
        delay_s = self._rng.uniform(0.0, longest_s)
        begun = time.monotonic()
        process = self.work.begin("deploy", "--host", self.work.host, "--target", TARGET)
        seen: list[str] = []
        is_reached = threading.Event()
        if not mark:
            is_reached.set()

        def read() -> None:
            assert process.stderr is not None
            for text in process.stderr:
                seen.append(text)
                if mark and mark in text:
                    is_reached.set()

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        end = time.monotonic() + PATIENCE_S
        while not is_reached.wait(0.1) and process.poll() is None and time.monotonic() < end:
            pass
        time.sleep(delay_s)
        line: Line = {
            "stage": "deploy",
            "moment": mark or "begin",
            "delay_s": round(delay_s, 2),
            "after_s": round(time.monotonic() - begun, 1),
            "after_line": seen[-1].strip() if seen else "",
        }
        self.board.power_off()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=NOTICE_S)
            reader.join()
        if process.returncode not in (0, LINK_LOST) or any("Traceback" in text for text in seen):
            line["said"] = "".join(seen)[-500:]
        self.cut([process], line, self._look)

    def _look(self) -> list[str]:
        """Whatever has a final name must be whole."""
        script = (
            f"cd {workstation.ROOT} 2>/dev/null || exit 0; ls -d env/*/edge-lts-env.json env/* ; sha256sum agents/*.pyz"
        )
        words = self.board.ssh(script, check=False).stdout.split("\n")
        problems = []
        for text in words:
            digest, _, name = text.partition("  agents/")
            if name and not digest.startswith(name.removesuffix(".pyz")):
                problems.append(f"agents/{name} is not what its name says")
        whole = {text.split("/")[1] for text in words if text.endswith("/edge-lts-env.json") and ".part/" not in text}
        named = {Path(text).name for text in words if text.startswith("env/") and text.count("/") == 1}
        half = {name for name in named if not name.endswith((".part", ".lock"))} - whole
        if half:
            problems.append(f"an environment is not whole but has its final name: {sorted(half)}")
        return problems

    def finish(self) -> Line:
        outcome = self.work.json("deploy", "--host", self.work.host, "--target", TARGET)["hosts"][0]
        again = self.work.json("deploy", "--host", self.work.host, "--target", TARGET)["hosts"][0]
        problems = [] if again["steps"] == [] else [f"a second deploy still did {again['steps']}"]
        sent = outcome["n_bytes_sent"]
        return {"finished": "deploy", "n_bytes_sent": sent, "torch": outcome["torch"], "problems": problems}


def soak(n_cuts: int, seed: int) -> int:
    begun = time.monotonic()
    rows = read_rows(RAW) if RAW.exists() else []
    session = 1 + max((row["session"] for row in rows), default=0)
    rng = random.Random(f"{seed}/{session}")
    done = Counter(row["stage"] for row in rows if "stage" in row)
    finished = {row["finished"] for row in rows if "finished" in row}

    def write(line: Line) -> None:
        with RAW.open("a") as out:
            out.write(json.dumps({"session": session, **line}) + "\n")
        rows.append(line)
        what = line.get("stage") or f"finished {line['finished']}"
        print(
            f"{time.monotonic() - begun:.0f} s: {what} {line.get('moment', '')} {line['problems'] or 'good'}",
            flush=True,
        )

    n_deploy = max(0, min(N_DEPLOY, n_cuts // 4) - done["deploy"])
    n_search = max(0, n_cuts - done["deploy"] - n_deploy - done["search"] - done["pull"])
    if n_search or "search" not in finished:
        with on(deployed_board(memory_bytes=MEMORY_BYTES)) as (board, home):
            searching = SearchSoak(board, home, rng, write)
            searching.begin()
            for number in range(n_search):
                searching.cut_once("pull" if number % 5 in (1, 3) else "search")
            write(searching.finish())
    if n_deploy or "deploy" not in finished:
        with on(WholeBoard(build_board(), memory_bytes=MEMORY_BYTES)) as (board, home):
            deploying = DeploySoak(board, home, rng, write)
            for _ in range(n_deploy):
                deploying.cut_once()
            if time.monotonic() - begun + FINISH_S < LIMIT_S:
                write(deploying.finish())
    return conclude()


@contextlib.contextmanager
def on(board: WholeBoard) -> Iterator[tuple[WholeBoard, Path]]:
    """The board switched on, and a home for a workstation."""
    with board, tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        yield board, Path(home)


def conclude() -> int:
    """The page from the raw data."""
    rows = read_rows(RAW)
    cuts = [row for row in rows if "stage" in row]
    lost = [row["budget_not_counted_s"] for row in cuts if row.get("budget_not_counted_s") is not None]
    result = {
        "what": "power cuts at random moments, and what they took",
        "command": f"python benchmarks/bench_soak.py --cuts {len(cuts)}",
        "n_cuts": len(cuts),
        "by_stage": dict(Counter(row["stage"] for row in cuts)),
        "n_problems": sum(len(row["problems"]) for row in rows),
        "n_announced": sum(row.get("n_announced", 0) for row in cuts),
        "n_torn": sum(1 for row in cuts if row.get("torn_bytes")),
        "n_link_lost": sum(LINK_LOST in row["exit_codes"] for row in cuts),
        "max_budget_not_counted_s": max(lost, default=None),
        "finished": sorted(row["finished"] for row in rows if "finished" in row),
        "conditions": where(board="qemu-system-aarch64, cortex-a72, 2 cores, 2 GiB, ext4; the plug is SIGKILL for it"),
    }
    write_result(RAW.with_suffix(".json"), result, page(result, where_line(result["conditions"])))
    print("\n".join(page(result, "")))
    return 0 if result["n_problems"] == 0 and len(cuts) >= MIN_CUTS else 1


def page(result: Line, conditions: str) -> list[str]:
    stages = ", ".join(f"{n} while {STAGES[stage]}" for stage, n in sorted(result["by_stage"].items()))
    n_wrong = result["n_problems"]
    return [
        "# What does a power cut take?",
        "",
        conditions,
        f"`{result['command']}`; raw: [{RAW.name}]({RAW.name}). On an emulated board (qemu-system-aarch64 with "
        "Debian's kernel, ext4): the emulator is killed, and what its kernel had not written is gone.",
        "",
        "| cuts | in which stages | records announced before a cut | torn last lines | wrong |",
        "|---:|---|---:|---:|---:|",
        f"| {result['n_cuts']} | {stages} | {result['n_announced']} | {result['n_torn']} | {n_wrong} |",
        "",
        f"- Went on to the end after the last cut: {', '.join(result['finished']) or 'nothing'}.",
        f"- The budget that a cut forgot: at most {result['max_budget_not_counted_s']} s (limit {MAX_LOST_S:g} s).",
        "- Wrong would be: a record gone or changed that was announced, pulled or seen before; an architecture "
        "searched twice; time not counted; an agent or environment that has its final name and is not whole; a command "
        "here that ends with anything but 0 or 4 (the link is lost), or with a traceback.",
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cuts", type=int, default=32, help="power cuts in all (default: 32)")
    parser.add_argument("--seed", type=int, default=1, help="of the moments (default: 1)")
    parser.add_argument("--evaluate", action="store_true", help="only the page")
    arguments = parser.parse_args()
    return conclude() if arguments.evaluate else soak(arguments.cuts, arguments.seed)


if __name__ == "__main__":
    sys.exit(main())
