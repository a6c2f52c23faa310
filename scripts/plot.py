"""Plots as SVG files, drawn by matplotlib. Imported by the scripts here that measure; matplotlib need not be installed.

Where it is not, it goes into an environment of its own below target/, fetched with pip once, and this file is run there
with the figures as JSON on its standard input. Without either there are no plots, which is said and fails nothing.

A figure is {"file", "title", "columns", "panels": [panel]}; a panel {"title", "x_label", "y_label", "x_log", "y_log", "x_ticks",
"series": [series], "spans": [[from, to]], "span_label"}; a series {"label", "x", "y", "low", "high", "color", "dashed", "plain"}.
"""

import json
import subprocess
import sys
from pathlib import Path

MATPLOTLIB = "matplotlib==3.11.2"
INSTALL_SECONDS_MAX = 300
DRAW_SECONDS_MAX = 120
# Okabe and Ito's: told apart with every kind of colour vision.
BLUE, ORANGE, RED, GREEN, GREY = "#0072B2", "#E69F00", "#D55E00", "#009E73", "#666666"
PANEL_INCHES = (4.8, 3.8)
# With longer ones fewer labels stand side by side.
LABEL_CHARACTERS_SHORT = 14


def draw(figures, folder, work, say, png=False):
    """Draws into `folder` and returns the names of the files; none, with a message, where matplotlib can't be had."""
    try:
        python = interpreter(work)
        folder.mkdir(parents=True, exist_ok=True)
        task = json.dumps({"figures": figures, "folder": str(folder), "png": png})
        subprocess.run(
            [python, __file__], input=task, text=True, check=True, timeout=DRAW_SECONDS_MAX, stderr=subprocess.PIPE
        )
    except subprocess.SubprocessError as error:
        say(f"no plots: {str(getattr(error, 'stderr', None) or error).strip()[-500:]}")
        say(f"    they need matplotlib: pip install {MATPLOTLIB} for {sys.executable}, or a pip that reaches its index")
        return []
    return [figure["file"] for figure in figures]


def interpreter(work):
    """A Python that has matplotlib."""
    try:
        import matplotlib  # noqa: F401
        return sys.executable
    except ImportError:
        pass
    venv = work / "plot-venv"
    python = venv / "bin" / "python3"
    ready = venv / "ready"
    if not ready.exists() or ready.read_text() != MATPLOTLIB:
        quiet = {"check": True, "timeout": INSTALL_SECONDS_MAX, "capture_output": True, "text": True}
        subprocess.run([sys.executable, "-m", "venv", "--clear", venv], **quiet)
        subprocess.run([python, "-m", "pip", "install", "--quiet", MATPLOTLIB], **quiet)
        ready.write_text(MATPLOTLIB)
    return python


def paint_panel(axes, panel):
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    for span in panel.get("spans", []):
        axes.axvspan(*span, color="#f0e4c2", linewidth=0, label=panel.get("span_label") if span is panel["spans"][0] else None)
    for series in panel["series"]:
        style = {"color": series["color"], "linestyle": "--" if series.get("dashed") else "-", "linewidth": 1.6}
        style |= {} if series.get("plain") else {"marker": "o", "markersize": 3.5}
        axes.plot(series["x"], series["y"], label=series["label"], **style)
        if "low" in series:
            axes.fill_between(series["x"], series["low"], series["high"], color=series["color"], alpha=0.15, linewidth=0)
    axes.set_title(panel["title"], fontsize=10)
    axes.set_xlabel(panel["x_label"], fontsize=9)
    axes.set_ylabel(panel["y_label"], fontsize=9)
    axes.grid(True, which="major", color="#dddddd", linewidth=0.6)
    axes.tick_params(labelsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    plain = FuncFormatter(lambda value, _: f"{value:,.10g}")
    if panel.get("x_log"):
        axes.set_xscale("log", base=2)
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.set_xlim(left=0)
    if panel.get("x_ticks"):
        axes.set_xticks([place for place, _ in panel["x_ticks"]], [name for _, name in panel["x_ticks"]])
    if panel.get("y_log"):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(plain)
    if len(panel["series"]) > 1 or panel.get("spans"):
        # Below, so that it never covers a line.
        columns = 2 if any(len(series["label"] or "") > LABEL_CHARACTERS_SHORT for series in panel["series"]) else 4
        axes.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=columns)


def paint(figure, folder, png):
    from matplotlib import pyplot

    columns = figure.get("columns", len(figure["panels"]))
    rows = -(-len(figure["panels"]) // columns)
    width, height = PANEL_INCHES
    size = (width * columns, height * rows)
    picture, axes = pyplot.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    picture.suptitle(figure["title"], fontsize=11)
    for one, panel in zip(axes.flat, figure["panels"]):
        paint_panel(one, panel)
    # White, whatever the page is; and without a date, so that equal figures are equal files.
    style = {"facecolor": "white", "edgecolor": "none"}
    picture.savefig(folder / figure["file"], format="svg", metadata={"Date": None, "Creator": None}, **style)
    if png:
        picture.savefig((folder / figure["file"]).with_suffix(".png"), dpi=100, **style)
    pyplot.close(picture)


def main():
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "quorate"}
    task = json.load(sys.stdin)
    for figure in task["figures"]:
        paint(figure, Path(task["folder"]), task["png"])


if __name__ == "__main__":
    main()
