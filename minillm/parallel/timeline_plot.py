"""The picture of a pipeline: one row for each rank, a box for each action, the bubble left white."""

from collections.abc import Sequence
from typing import Any

from minillm.parallel.schedules import FORWARD
from minillm.parallel.simulator import Timeline
from minillm.plots import COLOURS

SHADES = {"F": (COLOURS[0], COLOURS[5]), "B": (COLOURS[2], "#7fd0b5")}


def draw_timelines(timelines: Sequence[Timeline], titles: Sequence[str], width: float = 9.0) -> Any:
    """Timelines one below the other, with one time axis, so that their lengths can be compared.

    Forward is blue, backward green; later chunks of a rank are lighter. Boxes carry the number of their micro-batch.

    Args:
        timelines: at least one.
        titles: of the same number.
        width: of the figure in inches.

    Returns:
        The matplotlib figure.
    """
    from matplotlib import pyplot as plt

    heights = [timeline.n_ranks for timeline in timelines]
    size = (width, sum(0.26 * height + 0.55 for height in heights) + 0.3)
    figure, rows = plt.subplots(
        len(timelines), 1, figsize=size, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights}
    )
    end = max(float(timeline.makespan) for timeline in timelines)
    for axes, timeline, title in zip(rows[:, 0], timelines, titles, strict=True):
        draw_rows(axes, timeline, end / width)
        axes.set(title=title, xlim=(0, end), ylabel="rank")
    rows[-1, 0].set_xlabel("time")
    return figure


def draw_rows(axes: Any, timeline: Timeline, time_per_inch: float) -> None:
    """One timeline into given axes; numbers only where a box is wide enough for them."""
    for event in timeline.events:
        start, length = float(event.start), float(event.end - event.start)
        shades = SHADES[event.action.kind]
        colour = shades[min(event.action.chunk, len(shades) - 1)]
        axes.barh(event.rank, length, left=start, height=0.86, color=colour, edgecolor="white", linewidth=0.6)
        if length / time_per_inch > 0.13:
            ink = "white" if event.action.chunk == 0 else "black"
            axes.text(start + length / 2, event.rank, event.action.microbatch, ha="center", va="center",
                      fontsize=7, color=ink)
    axes.set_yticks(range(timeline.n_ranks))
    axes.set_ylim(timeline.n_ranks - 0.5, -0.5)
    axes.grid(visible=False)


def legend_handles() -> list[Any]:
    """Two coloured patches, forward and backward, for a figure's legend."""
    from matplotlib.patches import Patch

    return [Patch(color=SHADES[FORWARD][0], label="forward"), Patch(color=SHADES["B"][0], label="backward")]
