"""In which precision networks train and score: float32, or bfloat16 where the chip multiplies matrices in it."""

from __future__ import annotations

import contextlib
from functools import cache
from pathlib import Path
from typing import Literal

import torch

Precision = Literal["float32", "bfloat16"]
CPU_FLAGS = Path("/proc/cpuinfo")
MATRIX_UNITS = "amx_bf16"  # a CPU without them gains nothing from bfloat16


@cache
def has_matrix_units(device_type: str) -> bool:
    """Whether a kind of device multiplies bfloat16 matrices in hardware."""
    if device_type == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    if device_type != "cpu" or not CPU_FLAGS.is_file():
        return False
    return MATRIX_UNITS in CPU_FLAGS.read_text(encoding="utf-8", errors="replace").split()


def choose_precision(wanted: str, device: torch.device) -> Precision:
    """The precision of a setting: `auto` is bfloat16 where the device has units for it.

    >>> choose_precision("float32", torch.device("cpu"))
    'float32'
    """
    if wanted == "auto":
        return "bfloat16" if has_matrix_units(device.type) else "float32"
    return "bfloat16" if wanted == "bfloat16" else "float32"


def autocast(device: torch.device, precision: Precision) -> contextlib.AbstractContextManager[object]:
    """A block in which matrix products are computed in a precision; weights and sums stay float32.

    >>> with autocast(torch.device("cpu"), "bfloat16"):
    ...     (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
    torch.bfloat16
    """
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)
