"""`edge-lts export`: a frontier member as a model to train: pure torch, a Hugging Face folder, ONNX."""

from __future__ import annotations

import argparse

from edge_lts_host.commands import common

NAME = "export"
HELP = "write a frontier member as a model to train and run: torch, Hugging Face, ONNX"
EXAMPLE = "edge-lts export 3f9a --to my-model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "id", metavar="ID", help="how the arch_id of a frontier member begins, or an architecture file, or - for stdin"
    )
    parser.add_argument(
        "--run", metavar="RUN", help="run id, or how one begins or ends, that ID is looked for in (default: the newest)"
    )
    parser.add_argument(
        "--to", metavar="DIR", required=True, help="folder to write DIR/torch, DIR/hf and DIR/onnx into"
    )
    parser.add_argument(
        "--format",
        choices=("torch", "hf", "onnx"),
        action="append",
        help="only this one; repeatable (default: all, but those that lack their libraries)",
    )
    parser.add_argument(
        "--checkpoint",
        metavar="PATH",
        help="trained weights: .safetensors, a state dict of torch.save, or the folder that Trainer wrote "
        "(default: initial values)",
    )
    parser.add_argument("--force", action="store_true", help="replace what an earlier export wrote into DIR")
    common.add_output(parser, ("table", "md", "json"))


def run(args: argparse.Namespace) -> int:
    from pathlib import Path

    from edge_lts_host import store
    from edge_lts_host.arch_files import load_architecture
    from edge_lts_host.errors import PreflightError
    from edge_lts_host.export import FORMATS, export
    from edge_lts_host.export.find import find_member, is_arch_id
    from edge_lts_host.report import exported, render

    evidence = None
    if is_arch_id(args.id):
        architecture, evidence = find_member(store.resolve(args.run), args.id)
        if not evidence["is_member"]:
            render.warn(
                f"{architecture.arch_id} was measured, but is no member of the frontier of {evidence['run_id']}"
            )
    else:
        architecture = load_architecture(args.id)
    if architecture.precision not in (None, "float32"):
        render.warn(f"the precision {architecture.precision} is left to whoever deploys: the export is float32")
    done = export(
        architecture,
        Path(args.to),
        args.format or FORMATS,
        checkpoint=None if args.checkpoint is None else Path(args.checkpoint),
        evidence=evidence,
        is_forced=args.force,
        report=render.talk,
    )
    data = {
        "arch_id": architecture.arch_id,
        "decoder_params": architecture.decoder_params,
        "total_params": architecture.total_params,
        "formats": [item.to_json() for item in done],
    }
    render.emit(exported.page(data, args.output))
    skipped = [item for item in done if item.skipped]
    if args.format and skipped:
        raise PreflightError(f"{skipped[0].name} was not written: {skipped[0].skipped}", "")
    return 0
