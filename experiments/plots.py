"""Pictures that look alike and stay legible in grey: every line has a style of its own beside its colour."""

import numpy as np
from matplotlib.ticker import NullFormatter

STYLES = (
    ("black", "-", "o"),
    ("tab:blue", "--", "s"),
    ("tab:orange", "-.", "^"),
    ("tab:green", ":", "D"),
    ("tab:red", (0, (5, 1)), "v"),
    ("tab:purple", (0, (3, 1, 1, 1)), "P"),
    ("tab:brown", (0, (1, 1)), "X"),
    ("tab:cyan", (0, (8, 2)), "*"),
    ("tab:pink", "-", "h"),
    ("tab:olive", "--", "p"),
    ("tab:gray", "-.", "<"),
    ("navy", ":", ">"),
    ("goldenrod", (0, (5, 1)), "d"),
    ("darkgreen", (0, (3, 1, 1, 1)), "8"),
)


def style(number: int, marker: bool = True) -> dict:
    """Keyword arguments of matplotlib's plot for the number-th line."""
    color, line, mark = STYLES[number % len(STYLES)]
    return {"color": color, "linestyle": line, **({"marker": mark, "markersize": 4} if marker else {})}


def marked(axes, values) -> None:
    """Ticks of a logarithmic axis at the values that were measured, and no other numbers beside them."""
    axes.set_xticks(values, [f"{value:g}" for value in values])
    axes.xaxis.set_minor_formatter(NullFormatter())


def band(axes, x, values, label: str, number: int, marker: bool = False) -> None:
    """The mean of values [runs, points] with a band of one standard deviation over runs.

    Args:
      axes: of matplotlib.
      x: [points].
      values: [runs, points]; NaN where a run gave nothing.
      label: for the legend.
      number: of the line's style.
      marker: whether points are marked.
    """
    values = np.ma.masked_invalid(np.asarray(values, float))
    mean = values.mean(0)
    axes.plot(x, mean, label=label, **style(number, marker))
    if len(values) > 1:
        deviation = values.std(0, ddof=1)
        color = STYLES[number % len(STYLES)][0]
        axes.fill_between(x, mean - deviation, mean + deviation, color=color, alpha=0.15, linewidth=0)
