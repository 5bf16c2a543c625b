"""An architecture as something to train and to run: pure torch, a Hugging Face folder, ONNX."""

from edge_lts_host.export.formats import FORMATS, Exported, export
from edge_lts_host.export.source import write_torch

__all__ = ["FORMATS", "Exported", "export", "write_torch"]
