"""`minillm doctor`: what this machine has, and what is missing."""

import importlib.metadata
import os
import platform
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

REQUIRED = (
    "numpy", "torch", "matplotlib", "jupyter", "tiktoken", "datasets", "scipy", "nltk", "tqdm", "pytest", "regex",
    "safetensors",
)  # fmt: skip
OPTIONAL = {
    "pytest-timeout": "dev", "ruff": "lint", "import-linter": "lint", "transformers": "oracle-hf",
    "tokenizers": "oracle-hf",
}  # fmt: skip
OLDEST_PYTHON = (3, 11)
GIGABYTE = 1e9


@dataclass(frozen=True)
class Settings:
    """Print versions, cores, memory, device, free disk, and what is missing. Exit code 1 if a needed package is."""


def run(settings: Settings) -> int:
    """Print the report; returns 1 if a required package is missing, else 0."""
    missing = [name for name in REQUIRED if version_of(name) is None]
    print(f"minillm   {version_of('minillm') or 'not installed (run: pip install -e .)'}")
    age = "" if sys.version_info >= OLDEST_PYTHON else "  TOO OLD: 3.11 or newer is needed"
    print(f"python    {sys.version.split()[0]} on {platform.system()} {platform.machine()}{age}")
    print(f"cores     {usable_cores()} usable of {os.cpu_count()}")
    print(f"memory    {memory_text()}")
    print(f"disk      {shutil.disk_usage(Path.cwd()).free / GIGABYTE:.1f} GB free in {Path.cwd()}")
    for name in REQUIRED:
        print(f"{'package' if name == REQUIRED[0] else '':9} {name} {version_of(name) or 'MISSING'}")
    for name, extra in OPTIONAL.items():
        found = version_of(name) or f"not installed (extra {extra!r})"
        print(f"{'optional' if name == next(iter(OPTIONAL)) else '':9} {name} {found}")
    if "torch" not in missing:
        print_devices()
    if missing:
        print(f'missing   {", ".join(missing)}: run pip install -c constraints.txt -e ".[dev]"')
    return 1 if missing else 0


def version_of(package: str) -> str | None:
    """Installed version, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_text() -> str:
    """Free and total memory where the system tells (Linux), else a dash."""
    try:
        rows = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    except OSError:
        return "unknown on this system"
    kilobytes = {name: int(rows[name].split()[0]) for name in ("MemAvailable", "MemTotal")}
    return f"{kilobytes['MemAvailable'] / 1e6:.1f} GB available of {kilobytes['MemTotal'] / 1e6:.1f} GB"


def print_devices() -> None:
    """The device that `--device auto` would take, and the number format that `--precision auto` would."""
    import torch

    from minillm.runtime import choose_device, choose_dtype

    device = choose_device("auto")
    card = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    print(f"device    {device}" + (f" ({card.name}, {card.total_memory / GIGABYTE:.0f} GB)" if card else ""))
    print(f"threads   {torch.get_num_threads()} (torch)")
    choice = choose_dtype("auto", device)
    print(f"precision {choice.name}: {choice.reason}")
