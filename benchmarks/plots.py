"""Plots of benchmark results: one small kind, the same look everywhere, readable by the colour-blind."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from dgl_runtime.errors import ConfigError

# Okabe and Ito's colours without yellow, which is too pale for a line on white; the markers keep the
# lines apart in a printout without colours.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "osD^vPX"


def line_plot(
    title: str,
    x_label: str,
    y_label: str,
    series: Mapping[str, Sequence[tuple[float, float]]],
    path: Path,
    *,
    log_x: bool = False,
    log_y: bool = False,
) -> Path:
    """Write a PNG of some lines and return its path.

    Args:
        title: What is seen.
        x_label: Quantity and unit of the x axis.
        y_label: Quantity and unit of the y axis.
        series: Legend entry -> points (x, y), joined in this order.
        path: The file; what was there is replaced.
        log_x: Whether equal steps of the x axis are equal ratios.
        log_y: The same of the y axis.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
    except ImportError as error:
        raise ConfigError(
            "a plot needs matplotlib, which is not installed: pip install 'dgl-retrieval[bench]'."
        ) from error
    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    looks = itertools.cycle(
        itertools.product("- -- :".split(), zip(_COLOURS, _MARKERS, strict=True))
    )
    for (name, points), (line, (colour, marker)) in zip(series.items(), looks, strict=False):
        axes.plot(
            *zip(*points, strict=True), linestyle=line, color=colour, marker=marker, label=name
        )
    axes.set(
        xlabel=x_label,
        ylabel=y_label,
        xscale="log" if log_x else "linear",
        yscale="log" if log_y else "linear",
    )
    for axis, is_log in ((axes.xaxis, log_x), (axes.yaxis, log_y)):
        if is_log:  # 0.5 and 200, not powers of ten
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axis.set_minor_formatter(NullFormatter())
    axes.set_title(title, loc="left", fontweight="bold")
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    # under the lines, never over them
    figure.legend(loc="outside lower center", ncols=min(3, len(series)), frameon=False)
    figure.savefig(path, format="png")
    return path


def linked(drawn: Iterable[tuple[str, Path]]) -> list[str]:
    """Links to what an iterator of (title, path) draws, or one line that says why there are none."""
    try:
        return [f"![{title}]({path.name})" for title, path in drawn]
    except ConfigError as error:
        return [f"No plots: {error}"]
