"""Weights in 8 bits, made layer by layer: what an int8 model is built of.

    Int8Linear    torch's dynamic int8 product in the engine's own packing (qnnpack or onednn): the input is quantised
                  when it arrives, the sum of products is an integer, the result float32
    Int8Table     rows in 8 bits with a scale each, turned to float32 as they are looked up
    TableProduct  the product with such a table, without a second copy of it: so tied embeddings stay tied, where
                  torch's `quantize_dynamic` keeps the float table and puts a packed head beside it

Each matrix is filled as a float32 tensor, quantised, packed and gone before the next; a table in pieces. There is never
more than one matrix in float32. The engines keep the original weights beside the packed ones, for `unpack` alone; they
are taken away from them after the first product, by which they are packed.

Int8Linear has one scale per matrix, as `quantize_dynamic` by default. With one per row, onednn of torch 2.9.1 computes
nonsense on ARM for any input of more than one row; hence also the check of the engine's numbers (`Int8Parts`).
"""

import platform
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from edge_lts.errors import EvaluationError
from edge_lts.model.layers import Parts

Fill = Callable[[Tensor], object]

_PIECE = 1 << 18  # numbers of a table in float32 at a time: 1 MiB
_WORST_ERROR = 0.05  # of the engine's product, relative; 8 bits for weights and input give 0.014
_IS_X86 = platform.machine() in ("x86_64", "AMD64")


def _one_row_dtype() -> torch.dtype | None:
    """The dtype in which torch's product of one row with an int8 table is vectorised; None where it is a plain loop.

    aten/native/cpu/int8mm_kernel.cpp: NEON for all, AVX2 and AVX-512 for bfloat16.
    """
    if _IS_X86:
        return torch.bfloat16 if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512") else None
    return torch.float32 if platform.machine() in ("aarch64", "arm64") else None


def _scale(largest: Tensor) -> Tensor:
    return largest.clamp_min(1e-12) / 127


class Int8Linear(nn.Module):
    """Uninitialised until `load`. Keeps no parameter: what it holds is in `packed` and counted by `n_bytes`."""

    packed: Any

    def __init__(self, engine: str, has_bias: bool) -> None:
        super().__init__()
        self.engine = engine
        self.has_bias = has_bias
        # As torch.ao does: without VNNI, sums of products of 8 bits overflow 16.
        self.reduce_range = engine == "onednn" and _IS_X86 and not torch.cpu._is_vnni_supported()
        self.n_bytes = 0

    def load(self, weight: Tensor, bias: Tensor | None) -> None:
        """Quantise and pack (out, in) float32 weights, which are then no longer needed."""
        self.n_bytes = weight.numel() + (0 if bias is None else 4 * len(bias))
        before = torch.backends.quantized.engine
        try:
            torch.backends.quantized.engine = self.engine
            with torch.inference_mode(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch tells users of quantised tensors to move to torchao
                low, high = torch.aminmax(weight)
                scale = float(_scale(torch.maximum(-low, high)))
                quantised = torch.quantize_per_tensor(weight, scale, 0, torch.qint8)
                self.packed = torch.ops.quantized.linear_prepack(quantised, bias)
                self(weight[:1])
                quantised.untyped_storage().resize_(0)
        finally:
            torch.backends.quantized.engine = before

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = torch.ops.quantized.linear_dynamic(x, self.packed, self.reduce_range)
        return y


class Int8Table(nn.Module):
    """(rows, width) in 8 bits. Uninitialised until `load`."""

    def __init__(self, n_rows: int, width: int) -> None:
        super().__init__()
        self.values: Tensor
        self.scales: Tensor
        self.register_buffer("values", torch.empty(n_rows, width, dtype=torch.int8))
        self.register_buffer("scales", torch.empty(n_rows))
        self.one_row_scales: Tensor | None = None
        self.n_bytes = n_rows * (width + 4)

    def load(self, fill: Fill) -> None:
        """Fill piece by piece: `fill` writes float32 tensors of consecutive rows."""
        n_rows, width = self.values.shape
        for start in range(0, n_rows, self.piece):
            rows = torch.empty(min(self.piece, n_rows - start), width)
            fill(rows)
            scales = _scale(rows.abs().amax(1))
            self.scales[start : start + len(rows)] = scales
            self.values[start : start + len(rows)] = rows.div_(scales[:, None]).round_()
        dtype = _one_row_dtype() if width % 16 == 0 else None  # the kernels read 8 or 16 numbers at a time
        self.one_row_scales = None if dtype is None else self.scales.to(dtype)

    @property
    def piece(self) -> int:
        """Rows that are held in float32 at a time."""
        return max(1, _PIECE // self.values.shape[1])

    def forward(self, ids: Tensor) -> Tensor:
        return self.values[ids] * self.scales[ids].unsqueeze(-1)

    def rows(self, start: int, end: int) -> Tensor:
        return self.values[start:end] * self.scales[start:end, None]


class TableProduct(nn.Module):
    """From the table's width to its number of rows, and back."""

    def __init__(self, table: Int8Table, bias: Tensor | None) -> None:
        super().__init__()
        self.table = table
        self.bias = None if bias is None else nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        values, one_row_scales = self.table.values, self.table.one_row_scales
        x_nK = x.reshape(-1, x.shape[-1])
        if len(x_nK) == 1 and one_row_scales is not None:
            y_nV = torch._weight_int8pack_mm(x_nK.to(one_row_scales.dtype), values, one_row_scales).float()
        else:
            y_nV = x.new_empty(len(x_nK), len(values))
            for start in range(0, len(values), self.table.piece):
                piece = values[start : start + self.table.piece].float()
                torch.mm(x_nK, piece.t(), out=y_nV[:, start : start + len(piece)])
            y_nV *= self.table.scales
        if self.bias is not None:
            y_nV += self.bias
        return y_nV.view(*x.shape[:-1], -1)

    def transposed(self, x: Tensor) -> Tensor:
        """(..., rows) to (..., width), without the bias."""
        values, piece = self.table.values, self.table.piece
        scaled = x * self.table.scales
        y = scaled[..., :piece] @ values[:piece].float()
        for start in range(piece, len(values), piece):
            y += scaled[..., start : start + piece] @ values[start : start + piece].float()
        return y


class Int8Parts(Parts):
    """Parts in 8 bits with values from `fill`. Raises EvaluationError where torch or this CPU has no such engine."""

    def __init__(self, engine: str, fill: Fill) -> None:
        self._engine = engine
        self._fill = fill
        offered = [name for name in ("qnnpack", "onednn") if name in torch.backends.quantized.supported_engines]
        found = "is not in this torch"
        if engine in offered:
            try:
                error = _error_of(engine)
            except RuntimeError as failure:
                found = f"does not work here ({failure!s:.80})"
            else:
                if error < _WORST_ERROR:
                    return
                found = f"computes wrong results here (relative error {error:.2g})"
        others = [f"int8-{name}" for name in offered if name != engine]
        raise EvaluationError("unsupported", f"int8-{engine}: {found}; use {', '.join([*others, 'float32'])}")

    def linear(self, width: int, n_out: int, bias: bool = True) -> nn.Module:
        linear = Int8Linear(self._engine, bias)
        linear.load(self._filled(n_out, width), self._filled(n_out) if bias else None)
        return linear

    def table(self, n_rows: int, width: int) -> Any:
        table = Int8Table(n_rows, width)
        table.load(self._fill)
        return table

    def tied(self, table: Any, bias: bool) -> nn.Module:
        return TableProduct(table, self._filled(table.values.shape[0]) if bias else None)

    def head(self, width: int, n_out: int, bias: bool) -> nn.Module:
        return self.tied(self.table(n_out, width), bias)

    def projection(self, width: int, n_out: int) -> nn.Module:
        return self.head(width, n_out, bias=False)

    def _filled(self, *shape: int) -> Tensor:
        tensor = torch.empty(shape)
        self._fill(tensor)
        return tensor


def _error_of(engine: str) -> float:
    """Of one and of several rows' products, relative to float32."""
    generator = torch.Generator().manual_seed(0)
    weight, bias, x = (torch.randn(shape, generator=generator) for shape in ((48, 64), (48,), (5, 64)))
    linear = Int8Linear(engine, True)
    linear.load(weight, bias)
    with torch.inference_mode():
        right = x @ weight.t() + bias
        found = torch.cat([linear(x[:1]), linear(x[1:])])
    return float((found - right).norm() / right.norm())
