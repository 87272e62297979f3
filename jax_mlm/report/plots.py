"""`metrics.jsonl` → plots in the run directory."""

from __future__ import annotations

from pathlib import Path

from jax_mlm.run.log import read_metrics

PLOTS = {
    "loss": ("loss (nats per masked token)", "loss"),
    "accuracy": ("masked accuracy", "accuracy"),
    "learning_rate": ("learning rate", "lr"),
}
"""File name → (axis label, key in the metrics)."""


def write_plots(run: Path) -> None:
    """Draws loss, accuracy and learning rate as plots/*.png; validation as dots joined by a line."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = read_metrics(run)
    (run / "plots").mkdir(exist_ok=True)
    for name, (label, key) in PLOTS.items():
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.add_subplot()
        for kind, style in (("train", {"lw": 1.0, "alpha": 0.8}), ("valid", {"lw": 1.5, "marker": "o", "ms": 4})):
            points = [(line["step"], line[key]) for line in lines if line["kind"] == kind and key in line]
            if points:
                axes.plot(*zip(*points, strict=True), label=kind, **style)
        axes.set(xlabel="step", ylabel=label)
        axes.grid(alpha=0.3)
        if len(axes.lines) > 1:
            axes.legend(frameon=False)
        beside = run / "plots" / f".{name}.png"
        FigureCanvasAgg(figure).print_png(str(beside))
        beside.replace(run / "plots" / f"{name}.png")
