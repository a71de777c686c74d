"""The few figures that every chapter needs, in one style. matplotlib is imported when a figure is drawn.

Colours are those of Okabe and Ito (2008), which people with any common colour vision can tell apart; lines also differ
in their dashes.
"""

from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from minillm.errors import DataError

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", ":")


@dataclass(frozen=True)
class Line:
    """One curve: x and y of equal length, drawn thin if it is `faint` (noisy raw values)."""

    x: Sequence[float]
    y: Sequence[float]
    faint: bool = False


@dataclass(frozen=True)
class Panel:
    """One coordinate system with named curves and named horizontal reference lines; `log_y` spreads small values."""

    title: str
    x_label: str
    y_label: str
    lines: Mapping[str, Line]
    levels: Mapping[str, float] = field(default_factory=dict)
    log_y: bool = False


@contextmanager
def house_style():
    """Inside this block matplotlib draws in our style, without a display."""
    import matplotlib

    with matplotlib.rc_context(_house_settings()):
        yield


def use_house_style(dpi: int = 80) -> None:
    """Draw in our style from now on, for notebooks.

    Args:
        dpi: dots per inch of a figure, 72 to 100 keep a notebook small.
    """
    import matplotlib

    sizes = {"figure.dpi": dpi, "savefig.dpi": dpi, "figure.figsize": (6.0, 3.4)}
    matplotlib.rcParams.update(_house_settings() | sizes)


def _house_settings() -> dict:
    import matplotlib

    return {
        "axes.prop_cycle": matplotlib.cycler(color=COLOURS),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.25,
        "axes.titlesize": 11,
        "axes.titlelocation": "left",
        "font.size": 10,
        "legend.frameon": False,
        "figure.constrained_layout.use": True,
        "savefig.dpi": 100,
    }


def plot_panels(panels: Sequence[Panel], path: Path) -> None:
    """Draw the panels side by side and save them as a PNG file.

    Args:
        panels: at least one.
        path: where to write the picture; its folder must exist.

    Raises:
        DataError: if there is nothing to draw.
    """
    if not any(line.x for panel in panels for line in panel.lines.values()):
        raise DataError(f"there is nothing to draw in {path}: no curve has a point yet; train for a few more steps")
    from matplotlib.figure import Figure

    with house_style():
        figure = Figure(figsize=(5.4 * len(panels), 3.6))
        for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            _draw(axes, panel)
        figure.savefig(path)


def _draw(axes, panel: Panel) -> None:
    solid = 0
    for name, line in panel.lines.items():
        if line.faint:
            axes.plot(line.x, line.y, color="0.75", linewidth=0.8, label=name, zorder=1)
        else:
            style = {"color": COLOURS[solid % len(COLOURS)], "linestyle": DASHES[solid % len(DASHES)]}
            marker = "o" if len(line.x) < 15 else None
            axes.plot(line.x, line.y, linewidth=1.8, marker=marker, markersize=4, label=name, zorder=2, **style)
            solid += 1
    for number, (name, level) in enumerate(panel.levels.items()):
        axes.axhline(
            level, color=COLOURS[(solid + number) % len(COLOURS)], linewidth=1.4, linestyle=(0, (1, 1)), label=name
        )
    axes.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label)
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    if all(isinstance(x, int) for line in panel.lines.values() for x in line.x):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if panel.log_y:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter("{x:g}")
    beside = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5), "fontsize": "small"}
    axes.legend(**(beside if len(panel.lines) > 5 else {}))  # too many names would cover the curves


def plot_bars(
    title: str, axis_label: str, values: Mapping[str, float], path: Path, floor: tuple[str, float] | None = None
) -> None:
    """Horizontal bars on a log scale with their numbers, sorted as given from the top, and a line for the floor.

    Args:
        title: heading of the figure.
        axis_label: what the numbers mean, with unit.
        values: bar name -> value above 0.
        path: where to write the PNG.
        floor: (name, value) of a bound that no bar can pass, if known.
    """
    if not values:
        raise DataError(f"there is nothing to draw in {path}: no values were given")
    from matplotlib.figure import Figure

    with house_style():
        figure = Figure(figsize=(7.2, 0.9 + 0.42 * len(values)))
        axes = figure.subplots()
        names = list(values)[::-1]
        bars = axes.barh(names, [values[name] for name in names], color=COLOURS[0], height=0.66)
        axes.bar_label(bars, fmt="%.2f", padding=4)
        axes.set_xscale("log")
        smallest = min([*values.values(), *([floor[1]] if floor else [])])
        axes.set_xlim(smallest / 2, max(values.values()) * 2)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("" if max(values.values()) > 10 * smallest else "{x:g}")
        axes.grid(axis="y", visible=False)
        if floor is not None:
            axes.axvline(floor[1], color=COLOURS[1], linewidth=1.8, linestyle="--", label=f"{floor[0]}: {floor[1]:.3f}")
            axes.legend(loc="lower right")
        axes.set(title=title, xlabel=axis_label)
        figure.savefig(path)


def running_mean(values: Sequence[float], width: int) -> list[float]:
    """Mean of each value and up to `width - 1` values before it: a curve that the eye can follow.

    Example:
        >>> running_mean([1.0, 3.0, 5.0], 2)
        [1.0, 2.0, 4.0]
    """
    means, total = [], 0.0
    for index, value in enumerate(values):
        total += value - (values[index - width] if index >= width else 0.0)
        means.append(total / min(index + 1, width))
    return means
