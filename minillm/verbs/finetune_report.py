"""What `minillm finetune --table` writes: means over seeds with intervals, as CSV, Markdown and a plot."""

import csv
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minillm.plots import COLOURS, house_style

QUALITY = {  # task -> title, axis, whether more is better
    "sentiment": ("sentiment", "accuracy", True),
    "domain": ("new domain", "bits per byte", False),
    "records": ("records to text", "exact texts", True),
}
PLOTTED = {  # task -> field, its interval, axis: exact texts are none or all with most methods, BLEU says more
    "records": ("bleu", "bleu_half_width", "BLEU"),
}


def table_rows(
    config: Any,
    runs: Sequence[dict[str, Any]],
    rates: Mapping[str, float],
    seconds: Mapping[str, float],
    old: Sequence[float],
) -> list[dict[str, Any]]:
    """One row per method and task: means over seeds, and half the width of a 95 % interval of the mean.

    Args:
        config: a `TableConfig`.
        runs: one entry per method, task and seed.
        rates: method -> learning rate.
        seconds: method -> seconds per step.
        old: bits per byte of the old domain before anything is adapted, for the base of each seed.
    """
    rows = []
    for method in config.methods:
        for task in config.tasks:
            found = [run for run in runs if run["key"]["method"] == method and run["key"]["task"] == task]
            if found:
                shared = {"method": method, "task": task, "n_seeds": len(found), "learning_rate": rates[method]}
                rows.append(shared | summary(found, old) | {"seconds_per_step": seconds.get(method, "")})
    return rows


def summary(found: Sequence[dict[str, Any]], old: Sequence[float]) -> dict[str, Any]:
    """The figures of one method on one task."""
    first, scores = found[0], [run["score"] for run in found]
    forgotten = [run["old_bits_per_byte"] - old[run["key"]["seed"]] for run in found]
    return {
        "n_trained": first["n_trained"], "share": first["n_trained"] / first["n_base"],
        "score": statistics.fmean(scores), "half_width": half_width(scores),
        "scores": " ".join(f"{score:.4g}" for score in scores),
        "bleu": statistics.fmean(run["bleu"] for run in found) if "bleu" in first else "",
        "bleu_half_width": half_width([run["bleu"] for run in found]) if "bleu" in first else "",
        "memory_bytes": first["memory_bytes"], "delta_bytes": first["delta_bytes"],
        "forgotten_bits_per_byte": statistics.fmean(forgotten), "forgotten_half_width": half_width(forgotten),
    }  # fmt: skip


def half_width(values: Sequence[float]) -> float:
    """Half the width of the 95 % interval of the mean by Student's t; infinite for a single value.

    Example:
        >>> round(half_width([1.0, 2.0, 3.0]), 4)
        2.4841
    """
    from scipy.stats import t

    if len(values) < 2:
        return math.inf
    return float(t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5)


def write_table(out: Path, rows: Sequence[dict[str, Any]], before: Mapping[str, float], settings: str) -> None:
    """finetune_table.csv, .md and .png in a folder.

    Args:
        out: the folder.
        rows: of `table_rows`.
        before: bits per byte of the "old" domain, and the base's own scores of tasks without a new head.
        settings: a paragraph for the Markdown.
    """
    with (out / "finetune_table.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: rounded(value) for name, value in row.items()} for row in rows)
    (out / "finetune_table.md").write_text(table_in_markdown(rows, before, settings), encoding="utf-8")
    plot_table(rows, before, out / "finetune_table.png")


def rounded(value: Any) -> Any:
    """Floats with five figures."""
    return float(f"{value:.5g}") if isinstance(value, float) else value


def table_in_markdown(rows: Sequence[dict[str, Any]], before: Mapping[str, float], settings: str) -> str:
    """The table for people: one line per method, a column per task."""
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    titles = [f"{QUALITY[task][0]} ({QUALITY[task][1]})" for task in tasks]
    head = [
        "method", "parameters", "%", *titles, "time of a step", "memory, MB", "saved, KB", "forgotten, bits per byte",
        "rate",
    ]  # fmt: skip
    times = {row["method"]: row["seconds_per_step"] for row in rows if row["seconds_per_step"]}
    longest = times.get("full") or max(times.values(), default=1.0)
    lines = [head, ["---"] + ["--:"] * (len(head) - 1)]
    for method in dict.fromkeys(row["method"] for row in rows):
        of_method = {row["task"]: row for row in rows if row["method"] == method}
        first = next(iter(of_method.values()))
        seconds = first["seconds_per_step"]
        forgotten = " / ".join(
            f"{of_method[task]['forgotten_bits_per_byte']:.3f}" if task in of_method else "-" for task in tasks
        )
        lines.append([
            method, f"{first['n_trained']:,}", f"{100 * first['share']:.3g}",
            *(cell(task, of_method.get(task)) for task in tasks), f"{seconds / longest:.2f}" if seconds else "-",
            f"{first['memory_bytes'] / 1e6:.1f}", f"{first['delta_bytes'] / 1e3:.1f}", forgotten,
            f"{first['learning_rate']:g}",
        ])  # fmt: skip
    known = [f"{QUALITY[task][0]} {before[task]:.3f} {QUALITY[task][1]}" for task in tasks if task in before]
    known.append(f"old domain {before['old']:.3f} bits per byte")
    notes = [
        settings,
        f"Before adapting: {', '.join(known)}.",
        "Parameters, memory, bytes and time are those of the first task (with its head, where it has one). Memory is "
        "counted: weights, gradients, Adam's two means and what autograd keeps of one batch. The time of a step is a "
        "median, all methods in turn, with that of full tuning (or else the longest) as 1. Forgotten: how many bits "
        f"per byte the old stories cost more with the adapter on, for {' / '.join(tasks)}; switched off, every method "
        "gives the base back bit for bit. The learning rate is the best of three in a short search with another seed.",
    ]
    return "\n\n".join([*notes, "\n".join(f"| {' | '.join(line)} |" for line in lines)]) + "\n"


def cell(task: str, row: dict[str, Any] | None) -> str:
    """Quality with its interval; BLEU where there is one."""
    if row is None:
        return "-"
    bleu = f", BLEU {row['bleu']:.1f}" if row["bleu"] != "" else ""
    return f"{row['score']:.3f} ± {row['half_width']:.3f}{bleu}"


def plot_table(rows: Sequence[dict[str, Any]], before: Mapping[str, float], path: Path) -> None:
    """Quality against trained parameters, one panel per task, with intervals; better is higher in each panel."""
    from matplotlib.figure import Figure

    tasks = list(dict.fromkeys(row["task"] for row in rows))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    markers = "osD^v<>pPX*hd8H"
    with house_style():
        figure = Figure(figsize=(4.2 * len(tasks), 4.6))
        for axes, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
            title, label, larger_is_better = QUALITY[task]
            score, interval, label = PLOTTED.get(task, ("score", "half_width", label))
            for number, method in enumerate(methods):
                for row in (row for row in rows if (row["method"], row["task"]) == (method, task)):
                    axes.errorbar(
                        row["n_trained"], row[score], row[interval], fmt=markers[number % len(markers)],
                        color=COLOURS[number % len(COLOURS)], markersize=6, capsize=2, linewidth=1, label=method,
                    )  # fmt: skip
            axes.set(title=title, xlabel="trained parameters", ylabel=label, xscale="log")
            if task in before and task not in PLOTTED:
                axes.axhline(before[task], color="0.6", linewidth=1, linestyle=":")
            if not larger_is_better:
                axes.invert_yaxis()
            if label == "accuracy":
                axes.set_ylim(top=1.02)                            # intervals of means may reach beyond 1, shares not
        handles, labels = max((axes.get_legend_handles_labels() for axes in figure.axes), key=lambda pair: len(pair[1]))
        figure.legend(handles, labels, loc="outside lower center", ncols=min(8, len(labels)), fontsize="small")
        figure.savefig(path)
