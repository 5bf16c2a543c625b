"""The words for what `doctor` finds: for each code what it is, and what to do about it.

A board sends codes and data (edge_lts/checkup.py); a code that is not known here was sent by a newer agent and is shown
as it is. Braces hold the finding's data, and `{host}`, `{deploy}` and `{run}`: how to name, mend and use that host.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edge_lts_host.report import render

SEVERITIES = ("error", "warning", "note")
WORKSTATION = "workstation"
_BITS = ((1, "undervoltage"), (2, "clock capped"), (4, "throttled"), (8, "soft temperature limit"))
_TUNE = "{run} --tune (it puts the governor back afterwards), or as root: cpupower frequency-set -g performance"
_COOL = "give it a heat sink and a fan, or measure what it does when hot: {run} --heat sustained"
_NO_REMEDY = "nothing has to be done: "

# Code -> (what it is, the remedy).
WORDS: dict[str, tuple[str, str]] = {
    # The Python and its libraries
    "python_32bit": (
        "its Python is 32-bit ({platform}), for which there is no torch",
        "install the 64-bit image of the system; boards without a 64-bit CPU (Raspberry Pi Zero, 1) cannot take part",
    ),
    "python_old": ("its Python is {python}; 3.10 or newer is needed", "edge-lts deploy --host {host} --python PATH"),
    "libc_musl": ("its C library is {libc}, for which there is no torch", "install a system with glibc, as Debian"),
    "emulated": (
        "it is an emulator: timings are not performance",
        "use it to try things out, and a real board for numbers",
    ),
    "torch_missing": ("torch is not installed for {python}", "{deploy}"),
    "numpy_missing": ("numpy is not installed for {python}", "{deploy}"),
    "torch_broken": ("torch does not work there: {reason}", "{deploy}"),
    "torch_cuda": ("its torch {version} is a build for CUDA: large, and slow to import", "{deploy}"),
    # Power and heat
    "undervolted_now": (
        "its supply voltage is too low right now: {bits}",
        "use the board maker's own power supply and cable, and take off USB devices",
    ),
    "undervolted_since_boot": (
        "its supply voltage was too low since it was started: {bits}",
        "use the board maker's own power supply and cable, then restart it: ssh {host} sudo reboot",
    ),
    "throttled_now": ("it throttles right now: {bits}", _COOL),
    "throttled_since_boot": ("it has throttled since it was started: {bits}", _COOL),
    "hot": ("it is {temperature_c} and throttles at {limit_c}", _COOL),
    # Who else uses it
    "board_busy": ("run {run_id} (pid {pid}) holds it", "wait for it, or end it: edge-lts stop {run_id}"),
    "left_tuned": (
        "a run that crashed left its governor changed",
        "the next run puts it back; or restart it: ssh {host} sudo reboot",
    ),
    "busy_process": ("{name} (pid {pid}) uses {share} of a core", "end it, or wait until it is done"),
    "background_load": (
        "something else runs there: load {load_1min} on {n_cores} cores",
        "see what it is and end it: ssh {host} top",
    ),
    "pressure_cpu": (
        "in the last minute something waited for a CPU {share} of the time",
        "see what competes and end it: ssh {host} top",
    ),
    "pressure_memory": (
        "in the last minute something waited for memory {share} of the time",
        "end what needs it: ssh {host} top -o %MEM",
    ),
    "steal": (
        "the machine below this virtual one takes its CPU away: {share} now, {share_since_boot} since boot",
        "use a machine of its own, or expect retries and flagged numbers",
    ),
    "updates_running": (
        "updates are being installed ({names})",
        "wait for them; to keep them away: sudo systemctl stop apt-daily.timer apt-daily-upgrade.timer",
    ),
    "desktop_running": (
        "a graphical desktop runs ({names})",
        "without it: sudo systemctl isolate multi-user.target (for good: sudo systemctl set-default multi-user.target)",
    ),
    # Memory and disk
    "memory_unknown": ("it does not say how much memory it has", "mount /proc there"),
    "memory_small": (
        "it has {total_bytes} of memory; below {needed_bytes} little is left beside torch",
        "use a board with more memory, or small models: {run} --max-peak-memory 100MiB",
    ),
    "memory_full": (
        "only {available_bytes} of its {total_bytes} of memory is free",
        "end what needs it: ssh {host} top -o %MEM",
    ),
    "swap_used": (
        "it is swapping: {used_bytes} in use",
        "end what needs memory, then: sudo swapoff -a && sudo swapon -a",
    ),
    "swap_zram": (
        "its swap is compressed memory (zram, {size_bytes}): running out of memory may hang it for minutes",
        "sudo swapoff -a before a run, or keep models small: {run} --max-peak-memory SIZE",
    ),
    "disk_full": (
        "{path} has {free_bytes} left; a run needs {needed_bytes}",
        "make room: edge-lts clean --host {host}",
    ),
    "disk_small": (
        "{path} has {free_bytes} left; deploying another torch needs {needed_bytes}",
        "make room: edge-lts clean --host {host} --keep-runs",
    ),
    "tmp_in_memory": (
        "{path} is kept in memory",
        "put no large files there; or: sudo systemctl mask tmp.mount, and restart it",
    ),
    # CPUs
    "governor": ("its CPU governor is {governor}: the clock follows the load", _TUNE),
    "cpu_quota": ("a quota allows it {cores} cores' worth of time", "raise the limit of its container or slice"),
    "isolated_cpus": (
        "the kernel keeps CPUs {cpus} free of processes",
        "remove isolcpus from its kernel command line, or give them to the run: taskset -c {cpus}",
    ),
    "cannot_pin": (
        "its fastest cores ({fastest}) cannot be chosen; allowed: {allowed}",
        "start it without taskset, cpuset or container limits that leave them out",
    ),
    # What it cannot say
    "no_temperature": ("it has no temperature sensor", _NO_REMEDY + "throttling by heat may go unseen"),
    "no_clock": ("it does not say its clock", _NO_REMEDY + "a slow clock is only seen in the timings"),
    "no_throttle_bits": (
        "its firmware cannot be asked about throttling",
        "sudo usermod -aG video $USER, then log in again",
    ),
    "no_meter": ("it has no energy meter", "to measure energy, connect one: {run} --meter KIND:ARG"),
    "no_clear_refs": (
        "its kernel {kernel} cannot reset the memory watermark",
        _NO_REMEDY + "peak memory is measured in a fresh process instead",
    ),
    "no_pressure": ("its kernel {kernel} says nothing about pressure (PSI)", "add psi=1 to its kernel command line"),
    "huge_pages_always": (
        "huge pages are used for everything: memory comes in pieces of 2 MiB",
        "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled",
    ),
    "page_size": (
        "its memory pages have {page_size_bytes}: memory is not comparable with boards of 4 KiB",
        "on a Raspberry Pi 5, kernel=kernel8.img in /boot/firmware/config.txt gives 4 KiB",
    ),
    "clock_unset": ("its clock says {year}", "sudo timedatectl set-ntp true"),
    "clock_not_synchronised": (
        "its clock is kept neither by a battery nor over the network",
        "sudo timedatectl set-ntp true (times of records may be wrong; durations are right)",
    ),
    # Seen from the workstation
    "unreachable": ("it cannot be reached: {message}", "{remedy}"),
    "preflight": ("{message}", "{remedy}"),
    "agent_failed": ("it could not be examined: {message}", "{deploy}"),
    "state_damaged": ("{message}", "mend the file, or move it away"),
    "runs_unwritable": ("{path} cannot be written: {message}", "set EDGE_LTS_RUNS to a folder of yours"),
    "runs_disk_small": ("{path} has {free_bytes} left", "make room, or set EDGE_LTS_RUNS to another disk"),
    "target_unknown": ("it was deployed as {target}, which is no target now", "give --target-file, or {deploy}"),
    "torch_skew": (
        "it has torch {torch}, its target {target} wants {wanted}: such numbers are not compared with its like",
        "{deploy}",
    ),
    "agent_skew": ("another version of edge-lts deployed to it", "{deploy} (a run brings its own agent anyway)"),
}


def finding(
    code: str, severity: str, data: Mapping[str, Any], *, host: str | None = None, is_local: bool = False
) -> dict[str, Any]:
    """A finding with its words. `host` is how to reach a board; this machine has none."""
    what, remedy = WORDS.get(code, (code.replace("_", " "), "upgrade edge-lts on this machine, which does not know it"))
    values = _Values({key: _shown(str(key), value) for key, value in data.items()})
    values["reason"] = _reason(data)
    at = "local" if host is None else host
    values |= {"host": at, "run": f"edge-lts run --{'target' if host is None else 'host'} {at}"}
    values["deploy"] = "pip install -U 'edge-lts[local]'" if host is None else f"edge-lts deploy --host {host}"
    if host is None:
        remedy = remedy.replace("ssh {host} ", "")
    return {
        "code": code,
        "severity": severity if severity in SEVERITIES else "warning",
        "what": what.format_map(values),
        "remedy": remedy.format_map(values) or "see docs/troubleshooting.md",
        "data": dict(data),
    }


def worst_first(findings: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return sorted(map(dict, findings), key=lambda one: SEVERITIES.index(one["severity"]))


def show(hosts: Sequence[Mapping[str, Any]], output: str) -> str:
    """`[{"host", "findings"}]` in a format of common.FORMATS."""
    if output in ("json", "jsonl"):
        return render.records(hosts, output, (), "hosts")
    if output == "table":
        return "\n".join(line for host in hosts for line in _lines(host))
    names = ("host", "severity", "code", "what", "remedy")
    rows = [{"host": host["host"], **each} for host in hosts for each in host["findings"]]
    return render.records(rows, output, [(name, name, _whole) for name in names], "hosts")


def _lines(host: Mapping[str, Any]) -> list[str]:
    name = render.text(host["host"])
    if not host["findings"]:
        return [f"{name}: nothing found"]
    lines = [name]
    for each in host["findings"]:
        lines.append(f"  {each['severity']:<8} {_whole(each['what'])}")
        lines.append(f"  {'':<8}   {_whole(each['remedy'])}")
    return lines


def _whole(value: object) -> str:
    return render.text(value, 400)


class _Values(dict[str, str]):
    """What is missing in a finding's data is a question mark: a board is not trusted to be complete."""

    def __missing__(self, key: str) -> str:
        return "?"


def _shown(key: str, value: Any) -> str:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if key == "bits" and isinstance(value, int):
        return ", ".join(words for bit, words in _BITS if value & bit)
    if is_number and key.endswith("_bytes"):
        return render.size(value)
    if is_number and key.startswith("share"):
        return render.percent(value)
    if is_number and key.endswith("_c"):
        return f"{value:.0f} °C"
    if isinstance(value, list):
        return ", ".join(render.text(each) for each in value) or "none"
    return render.text(value, 300)


def _reason(data: Mapping[str, Any]) -> str:
    signal = data.get("signal")
    if signal is None:
        return render.text(data.get("message") or "it says nothing", 300)
    return f"signal {render.text(signal)}" + (" (built for another CPU)" if signal == 4 else "")
