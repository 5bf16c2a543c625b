"""Run folders as a board leaves them, with made-up numbers that are the same every time."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from edge_lts.arch import Architecture, LayerSpec
from edge_lts.records import DeviceInfo, Evaluation, Failure, Measurement, Protocol, RunSpec

RPI5 = DeviceInfo(
    model="Raspberry Pi 5 Model B Rev 1.0",
    machine="aarch64",
    kernel="6.12.25+rpt-rpi-2712",
    cpu_model="Cortex-A76",
    cpu_features=("asimd", "atomics"),
    n_cores=4,
    memory_total_bytes=8 << 30,
    memory_available_bytes=7 << 30,
    page_size_bytes=16384,
    governor="ondemand",
    python="3.11.2",
    python_bits=64,
    platform="linux-aarch64",
    libc="glibc 2.36",
    torch="2.9.1+cpu",
    numpy="2.2.6",
    boot_id="5f0c2d0a-0000-4000-8000-000000000001",
    is_emulated=False,
)


def architecture(n_layer: int, d_model: int, d_inner: int, vocab_size: int = 4096) -> Architecture:
    layers = tuple(LayerSpec(d_inner=d_inner + 64 * index, n_head=4) for index in range(n_layer))
    return Architecture(backbone="gpt2", d_model=d_model, layers=layers, vocab_size=vocab_size)


def evaluation(
    candidate_id: int, arch: Architecture, *, scale: float = 1.0, purpose: Any = "search", flags: tuple[str, ...] = ()
) -> Evaluation:
    """Latency and memory in proportion to the size of the model, times `scale`; ten samples around it."""
    decode_s = 1e-9 * arch.total_params * scale
    decode = [decode_s * (1 + 0.002 * step) for step in range(-5, 5)]
    prefill = [20 * sample for sample in decode]
    return Evaluation(
        candidate_id=candidate_id,
        architecture=arch,
        objectives={
            "decoder_params": arch.decoder_params,
            "decode_latency_s": Measurement(median=decode[5], mad=decode_s * 0.005, ci95=(decode[1], decode[8]), n=10),
            "prefill_latency_s": Measurement(
                median=prefill[5], mad=decode_s * 0.1, ci95=(prefill[1], prefill[8]), n=10
            ),
            "peak_memory_bytes": Measurement(median=float(4 * arch.total_params + 5_000_000), n=1),
        },
        samples={"decode_latency_s": decode, "prefill_latency_s": prefill},
        conditions={"threads": 4, "torch": "2.9.1+cpu"},
        flags=flags,
        purpose=purpose,
        spent_s=10.0 * (candidate_id + 1),
        measured_at="2026-11-22T10:20:00Z",
    )


def write_run(
    root: Path,
    run_id: str,
    *,
    target: str = "rpi5",
    host: str | None = "pi5-a",
    device: DeviceInfo | None = RPI5,
    protocol: Protocol | None = None,
    vocab_size: int = 4096,
    is_emulated: bool = False,
    state: str = "done",
    scale: float = 1.0,
    space: dict[str, Any] | None = None,
    **spec_fields: Any,
) -> Path:
    """A run: five measured architectures, one of them dominated; one failure; two confirmations of one member."""
    folder = root / run_id
    folder.mkdir(parents=True)
    spec = RunSpec(
        run_id=run_id,
        space=space or {"name": "demo", "backbone": "gpt2"},
        budget_s=3600.0,
        target=target,
        protocol=protocol or Protocol(),
        is_emulated=is_emulated,
        **spec_fields,
    )
    archs = [architecture(4, 64 * width, 256 * width, vocab_size) for width in (1, 2, 3, 4)]
    lines: list[Any] = [evaluation(index, arch, scale=scale) for index, arch in enumerate(archs)]
    slow = architecture(4, 192, 704, 2 * vocab_size)
    lines.append(evaluation(4, slow, scale=3 * scale, flags=("noisy",)))
    failed = architecture(12, 512, 2048, vocab_size)
    lines.append(Failure(candidate_id=5, architecture=failed, kind="oom", message="out of memory", spent_s=70.0))
    confirmed = evaluation(1, archs[1], scale=1.02 * scale, purpose="confirm", flags=("contended",))
    lines += [
        replace(confirmed, spent_s=80.0),
        replace(evaluation(1, archs[1], scale=0.99 * scale, purpose="confirm"), spent_s=90.0),
    ]
    (folder / "spec.json").write_text(json.dumps(spec.to_json()) + "\n")
    (folder / "ledger.jsonl").write_text("".join(json.dumps(line.to_json()) + "\n" for line in lines))
    status = {
        "schema_version": 1,
        "run_id": run_id,
        "state": state,
        "spent_s": 95.5,
        "budget_s": 3600.0,
        "n_measured": 5,
        "n_failed": 1,
        "n_frontier": 4,
        "reasons": ["budget spent"] if state == "done" else [],
        "updated_at": "2026-11-22T11:15:30Z",
    }
    (folder / "status.json").write_text(json.dumps(status) + "\n")
    if device is not None:
        (folder / "device.json").write_text(json.dumps(device.to_json()) + "\n")
    if host is not None:
        meta = {"schema_version": 1, "host": host, "target": target, "destination": f"pi@{host}"}
        (folder / "host.json").write_text(json.dumps(meta) + "\n")
    return folder


def change_evaluations(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Rewrite the ledger of a run; `change` gets the JSON of each evaluation."""
    path = folder / "ledger.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records:
        if record["kind"] == "evaluation":
            change(record)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def observed(**changes: Any) -> dict[str, Any]:
    """`conditions` as the quality gate leaves them: 20 samples of which 2 were disturbed and taken again."""
    conditions: dict[str, Any] = {
        "quality": {
            "n_retried": 2,
            "taints": {"contended": 2},
            "tainted_samples": {"decode_latency_s": [3], "prefill_latency_s": [0]},
            "steal_share": 0.0,
            "others_share": 0.01,
            "cpu_pressure_share": 0.002,
            "memory_pressure_share": 0.0,
            "involuntary_switches": 3,
            "major_faults": 0,
            "swap_ins": 0,
            "load_1min": 1.2,
            "monitoring_s": 0.01,
        },
        "health": {
            "temperature_c": {"before": 52.0, "max": 71.4, "after": 70.0},
            "frequency_hz": {"before": 600_000_000, "min": 1_500_000_000, "after": 1_500_000_000},
            "throttle": {"now": 0, "before": 0, "after": 0, "source": "vcio"},
            "governor": "ondemand",
        },
    }
    for name, change in changes.items():
        conditions[name] = {**conditions.get(name, {}), **change}
    return conditions
