"""The charts of one run."""

from __future__ import annotations

from jax_mlm.report.charts import Chart, Series
from jax_mlm.report.smoothing import smoothed
from jax_mlm.report.summary import Summary


def curves(summary: Summary) -> dict[str, Chart]:
    """Return loss, accuracy, learning_rate and speed, and whatever else the run has logged, each under its name."""

    def trained(key: str) -> list[Series]:
        raw = summary.curve(summary.train, key)
        return [Series("each log line", raw, 0, "faint"), Series("train", smoothed(raw))]

    def both(key: str) -> list[Series]:
        return [*trained(key), Series("valid", summary.curve(summary.valid, key), 1, "dots")]

    def one(name: str, key: str, colour: int) -> list[Series]:
        return [Series(name, summary.curve(summary.train, key), colour)]

    charts = {
        "loss": Chart("loss" if summary.metric else "loss (nats per masked token)", both("loss")),
        "accuracy": Chart("accuracy" if summary.metric else "masked accuracy", both("accuracy")),
        "learning_rate": Chart("learning rate", one("peak rate × schedule", "lr", 2), from_zero=True),
        "speed": Chart("tokens per second", one("speed", "tokens_per_second", 3), from_zero=True),
    }
    if summary.metric not in ("", "loss", "accuracy"):
        charts[summary.metric] = Chart(
            summary.metric, [Series("valid", summary.curve(summary.valid, summary.metric), 1)]
        )
    if any("soft" in line for line in summary.train):
        charts["soft"] = Chart("soft targets: divergence from the teacher (nats × T²)", trained("soft"))
    if any("cosine" in line for line in summary.train):
        charts["cosine"] = Chart("hidden states: 1 − cosine to the teacher's", trained("cosine"))
    if len({round(line["mask_rate"], 6) for line in summary.train if "mask_rate" in line}) > 1:
        charts["mask_rate"] = Chart("mask rate", one("share of tokens masked", "mask_rate", 4), from_zero=True)
    return charts
