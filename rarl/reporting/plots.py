"""The page's figures, as inline SVG that takes its text colour from the page (light or dark).

Each function returns the SVG's text, or an empty string if the run has no data for it.
"""

import io
import re
from collections.abc import Iterable
from html import escape

from rarl.registry import MODELS, Model

COLOURS = {name: model.colour for name, model in MODELS.items()}
#: Placeholders that are replaced by the page's own colours in the finished SVG.
TEXT, LINE = "#010203", "#010204"

Series = list[tuple[float, float]]
Logs = dict[str, dict[str, Series]]


def _figure(width: float, height: float, rows: int = 1, columns: int = 1, **options):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams |= dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), TEXT)
    plt.rcParams |= {"axes.edgecolor": LINE, "grid.color": LINE, "grid.linewidth": 0.7, "axes.axisbelow": True}
    plt.rcParams |= {"font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "font.size": 9}
    plt.rcParams |= {"axes.grid": True, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}
    plt.rcParams |= {"axes.titlesize": 9.5, "axes.titlelocation": "left", "xtick.major.size": 0, "ytick.major.size": 0}
    plt.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "rarl", "text.parse_math": False}
    return plt.subplots(rows, columns, figsize=(width, height), layout="constrained", squeeze=False, **options)


def _svg(figure, name: str, description: str) -> str:
    """Return the figure as SVG for use inside HTML: no fixed size, ids that are unique on the page."""
    import matplotlib.pyplot as plt

    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    plt.close(figure)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    for size in ("width", "height"):
        svg = re.sub(rf'(<svg[^>]*?) {size}="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = svg.replace(TEXT, "currentColor").replace(LINE, "var(--line)")
    # The page's own fonts, because the reader may lack matplotlib's.
    svg = re.sub(r"(font: [\d.]+px) [^;\"]*", r"\1 inherit", svg).replace("'DejaVu Sans'", "inherit")
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(description)}"', 1)


def window(length: int) -> int:
    """Return the number of steps over which a training curve is averaged: a tenth of the run, at most 25."""
    return max(1, min(25, length // 10))


def _moving_mean(values: list[float], width: int) -> list[float]:
    """Centred mean over `width` values, over fewer at the ends.

    >>> _moving_mean([1.0, 2.0, 6.0], 2)
    [1.0, 1.5, 4.0]
    """
    left = width // 2
    parts = [values[max(0, i - left) : i - left + width] for i in range(len(values))]
    return [sum(part) / len(part) for part in parts]


def _curve(axis, series: Series, colour: str, label: str, smooth: bool) -> None:
    steps, values = [s for s, _ in series], [v for _, v in series]
    width = window(len(series)) if smooth else 1
    if width > 1:
        axis.plot(steps, values, color=colour, linewidth=0.7, alpha=0.35)
        values = _moving_mean(values, width)
    axis.plot(steps, values, color=colour, linewidth=1.8, label=label, marker="" if smooth else "o", markersize=3.5)


def curves(logs: Logs, column: str, title: str, labels: dict[str, str], smooth: bool = True) -> str:
    """Plot one column of the training logs over the optimizer steps, a line for each method that has it."""
    found = {method: log[column] for method, log in logs.items() if log.get(column)}
    if not found:
        return ""
    figure, axes = _figure(4.4, 2.7)
    for method, series in found.items():
        _curve(axes[0, 0], series, COLOURS[method], labels[method], smooth)
    axes[0, 0].set(title=title, xlabel="optimizer step")
    axes[0, 0].legend(loc="best", fontsize=8.5)
    return _svg(figure, f"curve-{column}", f"{title} over the optimizer steps")


def panels(logs: Logs, columns: dict[str, str], name: str, labels: dict[str, str]) -> str:
    """Plot small panels, two per row, one for each column of the logs that any method has."""
    there = {c: title for c, title in columns.items() if any(log.get(c) for log in logs.values())}
    if not there:
        return ""
    rows = (len(there) + 1) // 2
    figure, axes = _figure(4.4, 0.35 + 1.55 * rows, rows, 2, sharex=True)
    for axis, (column, title) in zip(axes.flat, there.items()):
        for method, log in logs.items():
            if log.get(column):
                _curve(axis, log[column], COLOURS[method], labels[method], smooth=True)
        axis.set_title(title)
    for axis in list(axes.flat)[len(there) :]:
        axis.set_visible(False)
    for column in range(2):
        shown = [axis for axis in axes[:, column] if axis.get_visible()]
        if shown:
            shown[-1].tick_params(labelbottom=True)
    handles = {label: h for a in axes.flat for h, label in zip(*a.get_legend_handles_labels())}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize=8.5)
    return _svg(figure, f"panels-{name}", f"{', '.join(there.values())} over the optimizer steps")


def _errors(values: Iterable[float], low: Iterable[float], high: Iterable[float]) -> list[list[float]]:
    """Return the lengths of error bars below and above values with these ends, as matplotlib takes them."""
    return [[a - b for a, b in zip(values, low)], [b - a for a, b in zip(values, high)]]


def bars(rows: list[dict], lines: dict[str, float], title: str, name: str = "bars") -> str:
    """Plot final scores as horizontal bars with intervals.

    Args:
        rows: `label`, `colour`, `final`, `final_low`, `final_high` in percent, `faint` for a secondary mode, and
            optionally `noise` with `low` and `high` over seeds.
        lines: baselines in percent by label, plotted as vertical lines.
        title: of the figure.
        name: of the figure, unique on its page.
    """
    if not rows:
        return ""
    figure, axes = _figure(4.4, 0.9 + 0.24 * len(rows) + 0.14 * len(lines))
    axis = axes[0, 0]
    for position, row in enumerate(rows):
        axis.barh(position, row["final"], color=row["colour"], alpha=0.4 if row["faint"] else 0.95, height=0.7)
        ends = [[row["final"] - row["final_low"]], [row["final_high"] - row["final"]]]
        axis.errorbar(row["final"], position, xerr=ends, color=TEXT, linewidth=1, capsize=2)
        if row.get("noise"):
            axis.hlines(position + 0.42, row["noise"]["low"], row["noise"]["high"], color=TEXT, linewidth=3)
    for (label, value), style in zip(lines.items(), ("--", ":", "-.")):
        axis.axvline(value, color=TEXT, linewidth=1.1, linestyle=style, label=f"{label}: {value:.1f} %")
    axis.set_yticks(range(len(rows)), [row["label"] for row in rows])
    axis.set(title=title, xlim=(0, 100), xlabel="final score, percent")
    axis.invert_yaxis()
    axis.grid(visible=False, axis="y")
    if lines:
        figure.legend(loc="outside lower center", fontsize=8)
    return _svg(figure, name, title)


def dots(
    rows: dict[str, dict[str, tuple[float, float, float]]], known: dict[str, Model], title: str, name: str = "dots"
) -> str:
    """Plot the final score and interval of every model, as a row of dots for each test set or experiment.

    Args:
        rows: row's label -> model -> (score, low, high) in percent.
        known: label and colour of the models; others are left out.
        title: of the figure.
        name: of the figure, unique on its page.
    """
    rows = {label: {model: cell for model, cell in cells.items() if model in known} for label, cells in rows.items()}
    if not any(rows.values()):
        return ""
    models = list(dict.fromkeys(model for cells in rows.values() for model in cells))
    figure, axes = _figure(4.4, 0.9 + 0.42 * len(rows) * max(1, len(models) / 5))
    axis = axes[0, 0]
    for rank, model in enumerate(models):
        shift = min(0.17, 0.85 / len(models)) * (rank - (len(models) - 1) / 2)
        points = [(i + shift, *cells[model]) for i, cells in enumerate(rows.values()) if model in cells]
        y, x, low, high = zip(*points)
        ends = _errors(x, low, high)
        style = {"color": known[model].colour, "linewidth": 1.3, "label": known[model].label}
        axis.errorbar(x, y, xerr=ends, fmt="o", markersize=4, **style)
    axis.set_yticks(range(len(rows)), list(rows))
    axis.set(title=title, xlim=(0, 100), ylim=(len(rows) - 0.5, -0.5), xlabel="final score, percent")
    axis.grid(visible=False, axis="y")
    for border in range(1, len(rows)):
        axis.axhline(border - 0.5, color=LINE, linewidth=0.7)
    figure.legend(loc="outside lower center", ncols=4, fontsize=8.5, handletextpad=0.2, columnspacing=1.2)
    return _svg(figure, name, title)


def by_samples(
    lines: dict[str, list[tuple[float, ...]]],
    styles: dict[str, tuple[str, bool]],
    level: tuple[float, float, float] | None,
    title: str,
) -> str:
    """Plot a score with its interval over the number of training samples, a line for each method.

    Args:
        lines: method -> (samples, score, low, high) of each training, in percent.
        styles: method -> the model whose colour it has, and whether its line is dashed.
        level: (score, low, high) of the untuned base, plotted as a band.
        title: of the figure.
    """
    if not lines:
        return ""
    figure, axes = _figure(4.4, 3.2)
    axis = axes[0, 0]
    if level:
        axis.axhspan(*level[1:], color=COLOURS["base"], alpha=0.15, linewidth=0)
        axis.axhline(level[0], color=COLOURS["base"], linewidth=1.3, label="Base, untuned")
    for rank, (method, points) in enumerate(lines.items()):
        samples, score, low, high = zip(*points)
        # Side by side, so that the intervals of one number of samples can be told apart.
        x = [count * 1.035 ** (rank - (len(lines) - 1) / 2) for count in samples]
        ends = _errors(score, low, high)
        model, dashed = styles[method]
        style = {"color": COLOURS[model], "linestyle": "--" if dashed else "-", "linewidth": 1.3, "elinewidth": 1}
        axis.errorbar(x, score, yerr=ends, fmt="o", markersize=4, label=method, **style)
    axis.set(title=title, xscale="log", xlabel="training samples", ylabel="percent right")
    counts = sorted({point[0] for points in lines.values() for point in points})
    axis.set_xticks(counts, [f"{count:,.0f}" for count in counts])
    axis.set_xticks([], minor=True)
    figure.legend(loc="outside lower center", ncols=2, fontsize=8.5)
    return _svg(figure, "samples", f"{title} over the number of training samples")


def by_share(panels: dict[str, dict[str, list[tuple[float, ...]]]], styles: dict[str, tuple[str, str]]) -> str:
    """Plot scores with their intervals over the annotated share of the training rows.

    Args:
        panels: title -> label -> (share in percent, score, low, high) of each training. A label with one training is a
            horizontal line.
        styles: label -> the model whose colour it has, and the style of its line.
    """
    figure, axes = _figure(4.4, 0.6 + 2.2 * len(panels), len(panels), 1, sharex=True)
    for axis, (title, lines) in zip(axes.flat, panels.items()):
        for rank, (label, points) in enumerate(lines.items()):
            model, dashes = styles[label]
            style = {"color": COLOURS[model], "linewidth": 1.3, "linestyle": dashes, "label": label}
            if len(points) == 1:
                axis.axhline(points[0][1], **style)
                continue
            share, score, low, high = zip(*points)
            x = [value + 0.8 * (rank - (len(lines) - 1) / 2) for value in share]  # side by side
            ends = _errors(score, low, high)
            axis.errorbar(x, score, yerr=ends, fmt="o", markersize=4, elinewidth=1, **style)
        axis.set(title=title, ylim=(0, 100), ylabel="percent")
        axis.set_xticks(sorted({point[0] for points in lines.values() for point in points}))
    axes[-1, 0].set_xlabel("annotated share of the training rows, percent")
    handles = {label: h for a in axes.flat for h, label in zip(*a.get_legend_handles_labels())}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=2, fontsize=8.5)
    return _svg(figure, "annotation", f"{', '.join(panels)} over the annotated share")


def threshold(part: str, found: dict, used: float) -> str:
    """Plot the share of labelled pairs that the semantic judge accepts over its threshold, and the one in use."""
    figure, axes = _figure(4.4, 2.7)
    axis = axes[0, 0]
    grid, taken, refused = zip(*found["curve"])
    axis.plot(grid, [100 * v for v in taken], color=COLOURS["rarl"], label="right pairs")
    axis.plot(grid, [100 * v for v in refused], color=COLOURS["sft"], label="wrong pairs")
    axis.axvspan(found["low"], found["high"], color=LINE, alpha=0.6, linewidth=0)
    axis.axvline(found["chosen"], color=TEXT, linewidth=1, label=f"best {found['chosen']:.2f}")
    axis.axvline(used, color=TEXT, linewidth=1.2, linestyle=":", label=f"in use {used:.2f}")
    axis.set(title=f"{part.capitalize()}: accepted pairs, percent", xlabel="threshold (cosine)", ylim=(0, 103))
    axis.legend(loc="lower left", fontsize=8.5)
    return _svg(figure, f"threshold-{part}", f"Accepted pairs over the threshold, {part}")
