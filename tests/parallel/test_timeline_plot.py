"""The picture shows every action once, where and as long as it happens."""

import matplotlib

from minillm.parallel.schedules import make_schedule
from minillm.parallel.simulator import simulate
from minillm.parallel.timeline_plot import draw_timelines

matplotlib.use("Agg")


def test_a_box_for_each_action():
    timelines = [simulate(make_schedule(*what)) for what in (("1f1b", 3, 4), ("interleaved", 2, 4, 2))]
    figure = draw_timelines(timelines, ["one", "two"])
    for axes, timeline in zip(figure.axes, timelines, strict=True):
        boxes = {(round(box.get_y() + box.get_height() / 2), box.get_x(), box.get_width()) for box in axes.patches}
        assert boxes == {(e.rank, float(e.start), float(e.end - e.start)) for e in timeline.events}
        assert len(axes.patches) == len(timeline.events)
    assert [axes.get_title() or axes.get_title(loc="left") for axes in figure.axes] == ["one", "two"]
    matplotlib.pyplot.close(figure)
