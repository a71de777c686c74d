"""Make a virtual environment with minillm and the extras named, once: a second call finds nothing to do.

Standard library only; runs under the system's Python (3.11 or newer). Used by the Makefile.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import urllib.request
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CPU_INDEX = "https://download.pytorch.org/whl/cpu"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("folder", help="name of the environment's folder, for example .venv")
    parser.add_argument("extras", help="extras of pyproject.toml, separated by commas")
    parser.add_argument("--torch-index", default="ask", help="index URL for torch, empty for PyPI, 'ask' to find out")
    arguments = parser.parse_args()
    if sys.version_info < (3, 11):  # noqa: UP036 (this runs under whatever python3 there is)
        print(f"minillm needs Python 3.11 or newer; this is {sys.version.split()[0]}. Try: make PYTHON=python3.12 demo")
        return 1
    folder = ROOT / arguments.folder
    stamp = folder / "installed"
    wanted = set(arguments.extras.split(","))
    fingerprint = fingerprint_of_settings()
    done = stamp.read_text().split() if stamp.is_file() and works(folder) else []
    if done[:1] == [fingerprint] and wanted <= set(done[1:]):
        return 0
    extras = sorted(wanted | set(done[1:]))
    if not works(folder):
        print(f"making {arguments.folder} ...", flush=True)
        venv.create(folder, with_pip=True, clear=True)
    index = cpu_index_if_useful() if arguments.torch_index == "ask" else arguments.torch_index
    print(
        f"installing minillm[{','.join(extras)}]" + (f" with torch from {index}" if index else "") + " ...", flush=True
    )
    command = [
        python_of(folder),
        "-m",
        "pip",
        "install",
        "--quiet",
        "-c",
        "constraints.txt",
        "-e",
        f".[{','.join(extras)}]",
    ]
    if index:
        command += ["--extra-index-url", index]
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    if subprocess.run(command, cwd=ROOT, env=environment).returncode:
        print(
            "pip could not install the packages: is a package index within reach? Nothing was changed outside", folder
        )
        return 1
    stamp.write_text(" ".join([fingerprint, *extras]) + "\n")
    return 0


def fingerprint_of_settings() -> str:
    """Changes when the dependencies, the pins or the place of the clone do (an environment cannot be moved)."""
    digest = hashlib.sha256(str(ROOT).encode())
    for name in ("pyproject.toml", "constraints.txt"):
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()[:16]


def python_of(folder: Path) -> str:
    return str(folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))


def works(folder: Path) -> bool:
    """Whether the environment's Python starts (it does not after the system's Python was replaced)."""
    python = python_of(folder)
    return Path(python).exists() and subprocess.run([python, "-c", ""], capture_output=True).returncode == 0


def cpu_index_if_useful() -> str:
    """PyTorch's CPU index on Linux without an NVIDIA driver, if it answers within three seconds; else PyPI."""
    if not sys.platform.startswith("linux") or shutil.which("nvidia-smi") or Path("/proc/driver/nvidia").exists():
        return ""
    try:
        with urllib.request.urlopen(f"{CPU_INDEX}/torch/", timeout=3) as answer:
            return CPU_INDEX if answer.status == 200 else ""
    except OSError:
        return ""


if __name__ == "__main__":
    sys.exit(main())
