"""Run a notebook in a fresh kernel and keep only those parts of its outputs that are the same in every run."""

import asyncio
import base64
import io
import os
import re
import tempfile
import time
from pathlib import Path
from typing import IO

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellControlSignal, CellExecutionError, DeadKernelError

from minillm.errors import CourseError

ADDRESS = re.compile(r" at 0x[0-9a-f]+")
PROGRESS = re.compile(r"\d+%\||\d+(it|B) \[")  # what tqdm writes, with and without a known total
ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
LANGUAGE = {"name": "python"}  # without the version, which would differ from machine to machine


def execute(notebook: nbformat.NotebookNode, root: Path, cell_seconds: int, all_seconds: int, where: str) -> None:
    """Run every cell, with the folder `root` as the kernel's own; outputs are written into the notebook.

    The kernel is this very Python, whatever kernels the user has installed, without the user's IPython settings.

    Args:
        notebook: changed in place.
        root: working directory of the cells.
        cell_seconds: the longest that one cell may take.
        all_seconds: the longest that everything may take, the kernel's start included.
        where: name of the chapter for messages.

    Raises:
        CourseError: if a cell fails, takes too long or kills the kernel, or if it writes anything but progress bars
            to stderr (a learner would see that warning too); the message shows the cell.
    """
    with tempfile.TemporaryDirectory(prefix="minillm-notebook-") as folder, tempfile.TemporaryFile("w+") as log:
        client = _client(notebook, root, cell_seconds)
        run = client.async_execute(env=_environment(Path(folder)), cleanup_kc=True, stderr=log)
        deadline = time.monotonic() + all_seconds
        try:
            asyncio.run(asyncio.wait_for(run, all_seconds))
        except CellExecutionError as error:
            raise CourseError(f"{where}: {_failed_cell(notebook)}\n{ESCAPES.sub('', str(error.traceback))}") from error
        except (CellControlSignal, DeadKernelError, RuntimeError, TimeoutError) as error:
            # stopping at the deadline takes the kernel away from nbclient, which may call that a dead kernel
            late = isinstance(error, TimeoutError) or time.monotonic() >= deadline
            limits = f"took too long: a cell may take {cell_seconds} s, a notebook {all_seconds} s"
            reason = limits if late else f"ended the kernel: {error}\n{_last_words(log)}"
            raise CourseError(f"{where}: {_failed_cell(notebook)} {reason}") from error
    notebook.metadata["language_info"] = dict(LANGUAGE)
    for number, cell in enumerate(notebook.cells, start=1):
        if cell.cell_type == "code":
            cell.outputs = [_lasting(output, root) for output in _visible_outputs(cell, f"{where}, cell {number}")]


def _client(notebook: nbformat.NotebookNode, root: Path, cell_seconds: int) -> NotebookClient:
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager

    native = AsyncKernelManager(kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))
    return NotebookClient(
        notebook,
        km=native,
        timeout=cell_seconds,
        record_timing=False,
        extra_arguments=["--log-level=ERROR"],  # the kernel's talk about its transport is no output of a cell
        resources={"metadata": {"path": str(root)}},
    )


def _environment(folder: Path) -> dict[str, str]:
    (folder / "matplotlibrc").touch()
    settings = {
        "PYTHONHASHSEED": "0",
        "OMP_NUM_THREADS": "1",  # the same figures on machines with more cores, and steady times on a busy one
        "OPENBLAS_NUM_THREADS": "1",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        "IPYTHONDIR": str(folder),
        "MATPLOTLIBRC": str(folder),
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    }
    return {**os.environ, **settings}


def _last_words(log: IO[str]) -> str:
    """The end of what the kernel's process itself wrote: "Fatal Python error", or nothing."""
    log.seek(0)
    return log.read()[-2000:]


def _failed_cell(notebook: nbformat.NotebookNode) -> str:
    """The last cell that was started, with its code."""
    started = [(n, cell) for n, cell in enumerate(notebook.cells, start=1) if cell.get("execution_count")]
    number, cell = started[-1] if started else (1, notebook.cells[0])
    return f"cell {number}\n{'-' * 20}\n{cell.source}\n{'-' * 20}"


def _visible_outputs(cell: nbformat.NotebookNode, where: str) -> list[nbformat.NotebookNode]:
    """Streams in one piece each, without progress bars."""
    kept: list[nbformat.NotebookNode] = []
    for output in cell.outputs:
        if output.output_type == "stream" and output.name == "stderr":
            _refuse_warnings(output.text, cell.source, where)
        elif output.output_type == "stream" and kept and kept[-1].output_type == "stream":
            kept[-1].text += output.text
        else:
            kept.append(output)
    return kept


def _refuse_warnings(text: str, source: str, where: str) -> None:
    rest = [piece for piece in re.split(r"[\r\n]+", text) if piece.strip() and not PROGRESS.search(piece)]
    if rest:
        message = "\n".join(rest)
        raise CourseError(f"{where} wrote to stderr, which a learner would see:\n{message}\nThe cell:\n{source}")


def _lasting(output: nbformat.NotebookNode, root: Path) -> nbformat.NotebookNode:
    """The output without the paths of this machine, addresses in memory and colours of a terminal."""

    def clean(text: str) -> str:
        return ADDRESS.sub(" at 0x...", ESCAPES.sub("", text.replace(str(root), ".")))

    if output.output_type == "stream":
        output.text = clean(output.text)
    elif output.output_type == "error":
        output.traceback = [clean(f"{output.ename}: {output.evalue}")]
        output.evalue = clean(output.evalue)
    else:
        texts = [kind for kind in output.data if kind.startswith("text/")]
        output.data.update({kind: clean(output.data[kind]) for kind in texts})
        if "image/png" in output.data:
            png = with_a_palette(base64.b64decode(output.data["image/png"]))
            output.data["image/png"] = base64.b64encode(png).decode()
    return output


def with_a_palette(png: bytes, n_colours: int = 256) -> bytes:
    """The same picture in a third of the bytes: a plot has few colours, so each pixel names one from a palette.

    Args:
        png: a PNG file, without transparency.
        n_colours: size of the palette, at most 256; a picture with more colours gets the nearest ones.
    """
    from PIL import Image

    buffer = io.BytesIO()
    picture = Image.open(io.BytesIO(png)).convert("RGB").quantize(n_colours, dither=Image.Dither.NONE)
    picture.save(buffer, format="PNG", optimize=True)
    return min(buffer.getvalue(), png, key=len)
