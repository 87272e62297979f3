"""The exponential mean of the live panel and of the charts."""

from __future__ import annotations

from collections.abc import Sequence


class ExponentialMean:
    """An exponential mean that starts unbiased (Kingma & Ba 2014)."""

    def __init__(self, keep: float = 0.8) -> None:
        """`keep` is the weight of the past at each new value."""
        self._keep, self._sum, self._weight = keep, 0.0, 0.0

    def add(self, value: float) -> float:
        """Take in a value and return the mean."""
        self._sum = self._keep * self._sum + (1 - self._keep) * value
        self._weight = self._keep * self._weight + 1 - self._keep
        return self._sum / self._weight


def smoothed(points: Sequence[tuple[float, float]], span: int = 20) -> list[tuple[float, float]]:
    """Return the curve's exponential mean over about `span` points; over fewer if there are less than ten spans."""
    mean = ExponentialMean(1 - 2 / (min(span, max(len(points) // 10, 1)) + 1))
    return [(x, mean.add(y)) for x, y in points]
