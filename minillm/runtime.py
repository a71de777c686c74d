"""Where the work runs and with which numbers: device, number format, generators, threads, the rank of this process.

Nothing here falls back in silence: what is asked for and missing is a DeviceError, what "auto" chose says why.
"""

import base64
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from minillm.errors import CheckpointError, ConfigError, DeviceError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FASTER_BY = 1.5  # bf16 must beat fp32 by this much in a bare matrix product: the rest of a step gains less

AnyGenerator = torch.Generator | np.random.Generator


@dataclass(frozen=True)
class DtypeChoice:
    """A number format and why it was chosen: `name` is "fp32", "bf16" or "fp16", `dtype` the torch dtype."""

    name: str
    reason: str

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.name]


@dataclass(frozen=True)
class Rank:
    """The place of this process among those that train together; one process alone is number 0 of 1.

    Raises:
        ConfigError: unless 0 <= number < world_size.
    """

    number: int = 0
    world_size: int = 1

    def __post_init__(self):
        if not 0 <= self.number < self.world_size:
            raise ConfigError(f"rank {self.number} of {self.world_size}: expected 0 <= rank < world size")

    def print(self, *values: object) -> None:
        """Print on rank 0 only, at once."""
        if self.number == 0:
            print(*values, flush=True)


def choose_device(name: str = "auto") -> torch.device:
    """The device of that name, if this machine has it.

    Args:
        name: "cpu", "cuda", "cuda:1", "mps", or "auto": cuda if there is a card, else mps, else cpu.

    Returns:
        the device; "cuda" alone is "cuda:0".

    Raises:
        DeviceError: if the name is unknown or the machine does not have the device.

    Example:
        >>> choose_device("cpu")
        device(type='cpu')
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    kind, _, number = name.partition(":")
    numbered = kind == "cuda" and number.isdigit()
    if kind not in ("cpu", "cuda", "mps") or (name != kind and not numbered):
        raise DeviceError(f"device {name!r} is unknown; give auto, cpu, cuda, cuda:N or mps")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("device 'mps' was asked for, but this PyTorch has no Metal support; give --device cpu")
    if kind == "cuda":
        n_cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(number or 0) >= n_cards:
            raise DeviceError(f"device {name!r} was asked for, PyTorch sees {n_cards} CUDA cards; give --device cpu")
        return torch.device("cuda", int(number or 0))
    return torch.device(kind)


def choose_dtype(name: str, device: torch.device) -> DtypeChoice:
    """The number format for the matrix products of training or generation.

    Args:
        name: "fp32", "bf16", "fp16", or "auto": on a CUDA card bf16 where the card has it, else fp16; on a CPU
            bf16 where a probe of under a second finds its matrix product much faster than fp32's; fp32 elsewhere.
        device: where the products will run.

    Returns:
        the format and the reason for it.

    Raises:
        ConfigError: if the name is unknown.
        DeviceError: if the card cannot do the format.
    """
    if name not in ("auto", *DTYPES):
        raise ConfigError(f"precision {name!r} is unknown; known are auto, {', '.join(DTYPES)}")
    card_has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if name == "bf16" and device.type == "cuda" and not card_has_bf16:
        raise DeviceError(f"{torch.cuda.get_device_name(device)} has no bf16; give --precision fp16 or fp32")
    if name != "auto":
        return DtypeChoice(name, "asked for")
    if device.type == "cuda":
        return DtypeChoice("bf16", "the card has it") if card_has_bf16 else DtypeChoice("fp16", "the card has no bf16")
    if device.type != "cpu":
        return DtypeChoice("fp32", f"the safe choice on {device.type}")
    ratio = bf16_speed_ratio()
    chosen = "bf16" if ratio >= FASTER_BY else "fp32"
    return DtypeChoice(chosen, f"a bf16 matrix product on this CPU takes 1/{ratio:.1f} of the time of fp32's")


def bf16_speed_ratio(size: int = 512, budget_seconds: float = 0.6) -> float:
    """Measure how many times faster this CPU multiplies two bf16 matrices than two fp32 matrices.

    Args:
        size: rows and columns of the matrices.
        budget_seconds: time to spend; at least one pair of products is made.

    Returns:
        fastest fp32 seconds over fastest bf16 seconds.
    """
    matrices = {dtype: torch.full((size, size), 0.5, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)}
    best = dict.fromkeys(matrices, float("inf"))
    deadline = time.perf_counter() + budget_seconds
    for attempt in range(30):
        for dtype, matrix in matrices.items():
            start = time.perf_counter()
            matrix @ matrix
            best[dtype] = min(best[dtype], time.perf_counter() - start)
        if attempt and time.perf_counter() > deadline:
            break
    return best[torch.float32] / best[torch.bfloat16]


def generator(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator of its own, so that nothing depends on who else drew numbers before.

    Args:
        seed: 0 <= seed < 2**63.
        device: where the numbers will be drawn.

    Returns:
        the seeded generator.

    Raises:
        ConfigError: if the seed is out of range.

    Example:
        >>> torch.equal(torch.rand(3, generator=generator(1)), torch.rand(3, generator=generator(1)))
        True
    """
    if not 0 <= seed < 1 << 63:
        raise ConfigError(f"seed is {seed}, expected 0 <= seed < 2**63")
    return torch.Generator(device=device).manual_seed(seed)


def default_generators() -> dict[str, torch.Generator]:
    """PyTorch's own generators, from which dropout draws: "torch" for the CPU, "cuda:N" for each card in use."""
    generators = {"torch": torch.default_generator}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        generators |= {f"cuda:{number}": card for number, card in enumerate(torch.cuda.default_generators)}
    return generators


def generator_states(generators: Mapping[str, AnyGenerator]) -> dict[str, dict]:
    """The states of torch and numpy generators as something JSON can hold.

    Args:
        generators: name -> generator.

    Returns:
        name -> {"kind": "torch" or "numpy", "state": base64 text or numpy's dictionary}.
    """
    states = {}
    for name, each in generators.items():
        if isinstance(each, torch.Generator):
            text = base64.b64encode(each.get_state().numpy().tobytes()).decode("ascii")
            states[name] = {"kind": "torch", "state": text}
        else:
            states[name] = {"kind": "numpy", "state": each.bit_generator.state}
    return states


def restore_generators(generators: Mapping[str, AnyGenerator], states: Mapping[str, dict]) -> None:
    """Put generators back into the states that `generator_states` gave; all are checked before one is changed.

    Args:
        generators: name -> generator, changed in place.
        states: what `generator_states` gave; names without a generator here are left alone.

    Raises:
        CheckpointError: if a generator has no saved state or one of another kind.
    """
    for name, each in generators.items():
        kind = "torch" if isinstance(each, torch.Generator) else "numpy"
        found = states.get(name, {}).get("kind", "nothing")
        if found != kind:
            known = ", ".join(sorted(states))
            raise CheckpointError(f"generator {name!r}: expected a saved {kind} state, found {found}; saved: {known}")
    for name, each in generators.items():
        state = states[name]["state"]
        try:
            if isinstance(each, torch.Generator):
                each.set_state(torch.frombuffer(bytearray(base64.b64decode(state)), dtype=torch.uint8))
            else:
                each.bit_generator.state = state
        except (RuntimeError, TypeError, ValueError, KeyError) as error:
            raise CheckpointError(f"generator {name!r}: the saved state does not fit ({error})") from error


def set_threads(n_threads: int) -> None:
    """Use that many CPU threads within one operation; 0 leaves PyTorch's choice.

    Raises:
        ConfigError: if the number is negative.
    """
    if n_threads < 0:
        raise ConfigError(f"threads is {n_threads}, expected 1 or more, or 0 for PyTorch's own choice")
    if n_threads:
        torch.set_num_threads(n_threads)


def matmul_flops_per_second(device: torch.device, dtype: torch.dtype, size: int = 0, n_times: int = 5) -> float:
    """What this device really does in a large matrix product: the yardstick for model FLOPs utilisation.

    Args:
        device: where to multiply.
        dtype: number format of the matrices.
        size: rows and columns; 0 means 2048 on a CPU and 8192 on a card, large enough to keep it busy.
        n_times: products, after one that does not count; the fastest counts.

    Returns:
        floating-point operations per second, 2 size^3 over the seconds.
    """
    size = size or (2048 if device.type == "cpu" else 8192)
    matrix = torch.full((size, size), 0.5, dtype=dtype, device=device)
    fastest = float("inf")
    for attempt in range(n_times + 1):
        wait_for(device)
        start = time.perf_counter()
        matrix @ matrix
        wait_for(device)
        if attempt:
            fastest = min(fastest, time.perf_counter() - start)
    return 2 * size**3 / fastest


def wait_for(device: torch.device) -> None:
    """Return when everything that was asked of a card is done; a CPU is never behind."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
