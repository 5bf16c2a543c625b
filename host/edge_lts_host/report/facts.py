"""The head of a run's page: what ran where, how, how far, and how undisturbed. Data in, pairs of words out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edge_lts_host.report import own_cost, proxy, render

# What a Protocol.comparison_key is made of, in words for a heading.
PROTOCOL_KEYS = ("name", "prompt_tokens", "context_tokens", "logits", "threads", "precision", "heat", "method_version")
STEADY = 0.97  # a clock that never fell below this share of its maximum was steady
NEGLIGIBLE = 0.0005  # shares that would be shown as 0.0%
TAINTS_NAMED = 3
THROTTLE_WORDS = ("undervoltage", "clock capped", "throttled", "soft temperature limit")  # bits 0 to 3


def facts(run: Mapping[str, Any]) -> list[tuple[str, str]]:
    device, spec = run["device"] or {}, run["spec"]
    is_over = run["state"] in ("done", "stopped", "failed")
    state = render.text(run["state"]) + (
        "" if is_over or not run["updated_at"] else f" as of {render.text(run['updated_at'])}"
    )
    if run["reasons"]:
        state += f" ({render.text(', '.join(run['reasons']))})"
    measured = f"{run['n_measured']} candidates"
    if run["n_failed"]:
        kinds = ", ".join(f"{n} {kind}" for kind, n in run["failures"].items())
        measured += f", {run['n_failed']} failed ({kinds})"
    quality = run["quality"]
    found = [
        ("target", render.text(run["target"])),
        ("host", where(run)),
        ("device", _device(device, has_governor=not (quality and quality["governors"]))),
        ("torch", f"{render.text(device.get('torch'))}, Python {render.text(device.get('python'))}"),
        ("protocol", protocol(run["protocol"])),
        (
            "space",
            f"{render.text(spec['space'].get('name', '-'))}, {render.text(spec['strategy'])}, seed {spec['seed']}",
        ),
        *([("proxy", proxy.words(run["proxy"]))] if run.get("proxy") else []),
        ("measured", measured),
        ("budget", f"{render.duration(run['spent_s'])} of {render.duration(spec['budget_s'])}"),
        *own_cost.lines(run),
        ("state", state),
    ]
    if run["drift"]:
        found.append(("speed", _drift(run["drift"])))
    if quality:
        found.append(("health", health_line(quality, n_members(run))))
    if run["is_emulated"]:
        found.append(("note", render.EMULATED_NOTE))
    return found + [("warning", render.text(warning, 300)) for warning in run["warnings"]]


def n_members(run: Mapping[str, Any]) -> int:
    """Of the whole frontier, also where a filter left fewer."""
    selection = run.get("selection")
    return int(selection["n_frontier"]) if selection else len(run["frontier"])


def where(run: Mapping[str, Any]) -> str:
    """Where a run measured: its board, the boards of its pool, or this machine."""
    if run.get("boards"):
        return f"a pool of {len(run['boards'])} boards: {render.text(', '.join(run['boards']), 200)}"
    return render.text(run["host"] or "this machine")


def protocol(data: Mapping[str, Any]) -> str:
    threads = data["threads"]
    return (
        f"{data['name']}: prompt {data['prompt_tokens']}, context {data['context_tokens']}, "
        f"{_memory_length(data)}"
        f"logits {data['logits']}, {'all cores' if threads == 0 else f'{threads} thread' + 's' * (threads != 1)}, "
        f"{data['precision']}, {'sustained heat, ' * (data.get('heat') == 'sustained')}method {data['method_version']}"
    )


def health_line(quality: Mapping[str, Any], n_members: int | None = None) -> str:
    """A run's `quality` in one line: what disturbed it; the board's state; what could not be read."""
    parts = [", ".join(_samples(quality, n_members)), ", ".join(_board(quality))]
    lacking = [
        words
        for words, is_known in (
            ("temperature", quality["temperature_c_max"] is not None),
            ("clock", quality["frequency_hz"] is not None),
            ("throttling", quality["throttle"] is not None),
            ("pressure", quality["cpu_pressure_share"] is not None),
        )
        if not is_known
    ]
    if lacking:
        parts.append(f"not readable: {', '.join(lacking)}")
    return "; ".join(part for part in parts if part)


def _samples(quality: Mapping[str, Any], n_members: int | None) -> list[str]:
    n, n_disturbed = quality["n_samples"], quality["n_disturbed"]
    words = []
    if n:
        share = 1 - n_disturbed / n
        often = list(quality["taints"].items())[:TAINTS_NAMED]
        why = ", ".join(f"{count} {render.flag_words([taint])}" for taint, count in often)
        if n_disturbed == 0:
            words.append(f"{n:,} samples, all undisturbed")
        else:
            shown = f"{share:.1%}" if share > 0.99 else f"{share:.0%}"
            words.append(f"{shown} of {n:,} samples undisturbed" + (f" ({why})" if why else ""))
    if quality["n_retried"]:
        words.append(f"{quality['n_retried']:,} taken again")
    if n_members:
        words.append(f"{quality['n_flagged_members'] or 'none'} of {n_members} members flagged")
    return words


def _board(quality: Mapping[str, Any]) -> list[str]:
    words = []
    if quality["temperature_c_max"] is not None:
        words.append(f"{quality['temperature_c_max']:.0f} C at most")
    clock = quality["frequency_hz"]
    if clock is not None:
        low, high = f"{clock['min'] / 1e9:.3g}", f"{clock['max'] / 1e9:.3g}"
        is_steady = clock["min"] >= STEADY * clock["max"]
        words.append(f"clock {high} GHz throughout" if is_steady else f"clock {low} to {high} GHz")
    if quality["throttle"] is not None:
        words.append(_throttling(quality["throttle"]))
    if quality["governors"]:
        words.append(f"governor {render.text(', '.join(quality['governors']))}")
    if quality["cpu_pressure_share"] is not None:
        words.append(f"pressure {_small(quality['cpu_pressure_share'])}")
    for key, name in (
        ("memory_pressure_share", "memory pressure"),
        ("steal_share", "steal"),
        ("others_share", "other processes"),
    ):
        if (quality[key] or 0) >= NEGLIGIBLE:
            words.append(f"{name} {_small(quality[key])}")
    if quality["swap_ins"]:
        words.append(f"{quality['swap_ins']:,} pages swapped in")
    return words


def _throttling(throttle: Mapping[str, Any]) -> str:
    during = _bits(throttle["now"] | throttle["since"])
    if during:
        return f"{', '.join(during)} reported"
    before = _bits(throttle["before"])
    return "no throttling" + (f" (before this run: {', '.join(before)})" if before else "")


def _bits(bits: int) -> list[str]:
    return [words for bit, words in enumerate(THROTTLE_WORDS) if bits >> bit & 1]


def _small(share: float) -> str:
    return f"{share:.1%}" if share < 0.0995 else f"{share:.0%}"


_ANCHORS = {"prefill_latency_s": "computing", "decode_latency_s": "small weights", "stream_s": "streaming from memory"}


def _drift(drift: Mapping[str, Mapping[str, float]]) -> str:
    """How far the anchors moved while the run measured."""
    moved = [
        f"{words} {render.percent(drift[name]['p90_s'] / drift[name]['p10_s'] - 1)}"
        for name, words in _ANCHORS.items()
        if name in drift
    ]
    return f"moved by {', '.join(moved)} (anchors, 10th to 90th percentile); latencies are given at its usual speed"


def _device(device: Mapping[str, Any], *, has_governor: bool) -> str:
    """`has_governor`: say the one that was found at the beginning; otherwise the line on health says it."""
    model = device.get("model") or device.get("cpu_model")
    if model is None:
        return render.text(device.get("machine"))
    memory = device.get("memory_total_bytes")
    parts = [render.text(model), render.text(device.get("machine"))]
    if device.get("n_cores"):
        parts.append(f"{render.text(device['n_cores'])} cores")
    if isinstance(memory, (int, float)):
        parts.append(render.size(memory))
    if device.get("governor") and has_governor:
        parts.append(f"governor {render.text(device['governor'])}")
    return ", ".join(parts)


def _memory_length(data: Mapping[str, Any]) -> str:
    mem_len = data.get("mem_len")  # runs of before Transformer-XL have none
    return "" if mem_len is None else f"mem_len {mem_len}, "
