"""Where the torch engine computes, and how it works there.

`auto` is a CUDA device where torch sees one, else the CPU. Whether torch or the compiled core computes is not decided
here: `create_engine` asks for a device only where torch has been chosen, so nobody waits for torch to be imported, or
for a driver, without need.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sasrec.core.config import TrainConfig
from sasrec.core.errors import ConfigError
from sasrec.core.suggestions import suggestion

if TYPE_CHECKING:
    import torch

AUTO, CUDA = "auto", "cuda"
DEVICES = "auto, cpu, cuda or cuda:N"  # what a user may write
DRIVER = Path("/proc/driver/nvidia/version")  # what Linux shows where NVIDIA's driver runs


@dataclass(frozen=True)
class Way:
    """How the torch engine works on a kind of device. Results depend on it to rounding only.

    With dropout they also depend on who draws the masks: the device does where attention is fused.
    """

    encode_tokens: int = 4096  # encoded at once: their activations stay in the cache
    full_scores: int = 1 << 22  # of cross_entropy that exist at once: 16 MiB
    group_overhead: float = 300.0  # what one more group of a batch costs, in tokens; inf = one padded rectangle
    fused_attention: bool = False  # without an (L, L) matrix of scores
    bf16: bool = False  # matrix products of training multiply bf16 (autocast)
    ahead: int = 0  # batches that a thread makes and copies while the device works on those before
    ranks: bool = False  # the device ranks items, too; else the compiled core, or NumPy


ON_CPU = Way()
ON_CUDA = Way(
    encode_tokens=1 << 17,  # a kernel should have enough to do: 32 MiB at D = 64
    full_scores=1 << 26,  # 256 MiB
    group_overhead=math.inf,
    fused_attention=True,
    bf16=True,
    ahead=2,
    ranks=True,
)


def device_of(name: str) -> torch.device:
    """The device that a setting names.

    Raises:
        ConfigError: it is none, or torch does not see it.
    """
    import torch

    if name == AUTO:
        return torch.device(CUDA if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(
            f"device={name!r} is not a device{suggestion(name, (AUTO, 'cpu', CUDA))}; use {DEVICES}"
        ) from error
    if device.type not in ("cpu", CUDA):
        raise ConfigError(f"device={name!r} is not supported; use {DEVICES}")
    if device.type == CUDA and not torch.cuda.is_available():
        raise ConfigError(f"device={name!r}: this torch sees no CUDA device; use device=cpu or auto")
    if device.type == CUDA and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device={name!r}: there are CUDA devices 0 to {torch.cuda.device_count() - 1} only")
    return device


def way_on(device: torch.device) -> Way:
    """How the torch engine works on a device."""
    return ON_CUDA if device.type == CUDA else ON_CPU


def name_of(device: torch.device) -> str:
    """What a result says that it was computed with: the CPU's instruction set by torch's word, or the GPU's name."""
    import torch

    if device.type == CUDA:
        return str(torch.cuda.get_device_name(device))
    return str(torch.backends.cpu.get_cpu_capability()).lower()


def to_device(array: NDArray[np.generic], device: torch.device) -> torch.Tensor:
    """An array as a tensor on a device; int32 becomes int64, which indexes tensors.

    To a CUDA device it goes by pinned memory, so that the caller does not wait for the copy. What the same thread or
    another then asks of the device's default stream comes after it.
    """
    import torch

    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if device.type == CUDA:
        with torch.cuda.device(device):  # pinning belongs to the current device, which is a thread's own
            tensor = tensor.pin_memory().to(device, non_blocking=True)
    return tensor.long() if tensor.dtype == torch.int32 else tensor


def seed_device(device: torch.device, seed: int) -> None:
    """Seed the generator that a device draws dropout from. It is the process's, for fused attention takes no other."""
    import torch

    if device.type == CUDA:
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


def has_driver() -> bool:
    """Whether NVIDIA's driver runs here, by what Linux shows of it; torch is not asked."""
    return DRIVER.exists()


def to_serve(trained: TrainConfig, device: str | None = None, threads: int | None = None) -> TrainConfig:
    """The settings of an engine for a model that was trained with other settings, perhaps on another machine.

    Args:
        trained: how it was trained.
        device: where to compute; None = auto, wherever it was trained.
        threads: CPU threads; None = as trained.
    """
    device = AUTO if device is None else device
    engine = trained.engine
    if (engine == "torch" and not _can_import_torch()) or (engine == "native" and device.startswith(CUDA)):
        engine = "auto"
    threads = trained.threads if threads is None else threads
    return replace(trained, device=device, engine=engine, threads=threads, lazy_adam=False)  # nothing is trained here


def to_copy(train: TrainConfig) -> TrainConfig:
    """The settings of an engine that was copied, perhaps to another machine: its own device, if that is here."""
    is_here = not train.device.startswith(CUDA) or _sees(train.device)
    return to_serve(train, train.device if is_here else AUTO)


def _sees(device: str) -> bool:
    try:
        device_of(device)
    except (ImportError, ConfigError):
        return False
    return True


def _can_import_torch() -> bool:
    try:
        import_module("torch")
    except ImportError:
        return False
    return True
