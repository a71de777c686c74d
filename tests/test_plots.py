"""Figures are drawn, saved as PNG, and refuse to be empty."""

import subprocess
import sys

import pytest

from minillm.errors import DataError
from minillm.plots import Line, Panel, plot_bars, plot_panels, running_mean

PNG = b"\x89PNG\r\n\x1a\n"


def test_panels_make_a_png_that_is_the_same_every_time(tmp_path):
    panel = Panel(
        "Loss",
        "step",
        "nats",
        {"raw": Line([0, 1, 2], [3.0, 2.0, 1.5], faint=True), "mean": Line([0, 2], [3.0, 2.0])},
        {"floor": 1.0},
    )
    for name in ("a.png", "b.png"):
        plot_panels([panel, panel], tmp_path / name)
    first, second = ((tmp_path / name).read_bytes() for name in ("a.png", "b.png"))
    assert first[:8] == PNG and first == second and len(first) < 60_000


def test_bars_make_a_png(tmp_path):
    plot_bars("Models", "bits per byte", {"uniform": 8.0, "gpt": 2.0}, tmp_path / "bars.png", floor=("entropy", 1.9))
    assert (tmp_path / "bars.png").read_bytes()[:8] == PNG


def test_nothing_to_draw_is_an_error_and_writes_no_file(tmp_path):
    with pytest.raises(DataError, match="nothing to draw"):
        plot_panels([Panel("", "", "", {"empty": Line([], [])})], tmp_path / "no.png")
    with pytest.raises(DataError, match="nothing to draw"):
        plot_bars("", "", {}, tmp_path / "no.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("width", [1, 3, 10])
def test_running_mean_by_brute_force(width):
    values = [5.0, 1.0, 4.0, 1.0, 5.0, 9.0]
    windows = [values[max(0, i + 1 - width) : i + 1] for i in range(len(values))]
    assert running_mean(values, width) == pytest.approx([sum(window) / len(window) for window in windows])


def test_style_does_not_leak():
    import matplotlib

    from minillm.plots import house_style

    before = matplotlib.rcParams["axes.grid"]
    with house_style():
        assert matplotlib.rcParams["axes.grid"] is True
    assert matplotlib.rcParams["axes.grid"] == before


def test_a_figure_does_not_need_the_global_state_of_pyplot(tmp_path):
    program = (
        "import sys; from pathlib import Path; from minillm.plots import plot_bars; "
        "plot_bars('', '', {'a': 1.0}, Path(sys.argv[1])); sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "bars.png")], check=True)
    assert (tmp_path / "bars.png").exists()


def test_notebooks_draw_small_figures_in_our_style():
    import matplotlib

    from minillm.plots import COLOURS, use_house_style

    with matplotlib.rc_context():
        use_house_style(dpi=72)
        assert matplotlib.rcParams["axes.prop_cycle"].by_key()["color"] == list(COLOURS)
        assert matplotlib.rcParams["figure.dpi"] == matplotlib.rcParams["savefig.dpi"] == 72
        width, _ = matplotlib.rcParams["figure.figsize"]
        assert 400 < width * 72 < 640
