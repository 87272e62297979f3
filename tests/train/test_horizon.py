"""Budgets: what is written is understood, and a run ends on time whatever the machine does."""

import itertools

import pytest

from jax_mlm.errors import UserError
from jax_mlm.train.duration import parse_budget
from jax_mlm.train.pace import Pace

START = {"step": 0, "elapsed": 0.0, "horizon": 0}


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("30m", 1800), ("1.5h", 5400), ("2d", 172800)])
def test_budgets_are_read(text, seconds):
    assert parse_budget(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "m", "-3m", "0m", "3 weeks", "9" * 400 + "d"])
def test_a_bad_budget_names_the_option(text):
    with pytest.raises(UserError, match="--budget"):
        parse_budget(text)


def simulate(budget: float, step_seconds, evaluation: float, final: float, meta=START) -> tuple[float, int, int]:
    """Runs the loop of train.py on a clock of its own; returns the time of its end, the steps and the validations."""
    now = [0.0]
    pace = Pace(0, budget, 0, meta, final / evaluation, clock=lambda: now[0])
    done, evaluations = int(meta["step"]), 0
    while done < pace.horizon:
        now[0] += step_seconds(now[0])
        done += 1
        due = pace.evaluation_due(done)
        if done % 10 == 0 or done.bit_count() == 1 or due:
            pace.measure(done)
        if due:
            with pace.evaluating():
                now[0] += evaluation
            evaluations += 1
    return now[0] + final + float(meta["elapsed"]), done, evaluations


@pytest.mark.parametrize(
    "step_seconds",
    [
        lambda t: 0.3,
        lambda t: 0.3 if t < 300 else 0.45,
        lambda t: 0.3 if t < 500 else 0.2,
        lambda t: 0.3 + 0.1 * (t % 20 > 10),
    ],
    ids=["steady", "slower", "faster", "uneven"],
)
def test_a_budget_is_met_within_two_percent(step_seconds):
    end, _, evaluations = simulate(600, step_seconds, evaluation=3.0, final=9.0)
    assert abs(end - 600) <= 12
    assert 8 <= evaluations <= 10


def test_hosts_with_clocks_of_their_own_end_a_budget_at_the_same_step_in_time():
    """Each gets the first one's horizon one measurement later, as `jax_mlm.parallel.stop.Greatest` hands it on."""
    handed_in: list[list[int]] = []

    def host(number: int) -> tuple[list[float], Pace]:
        turns, now = itertools.count(), [0.0]

        def agreed(horizon: int) -> int:
            turn = next(turns)
            if turn == len(handed_in):
                handed_in.append([])
            handed_in[turn].append(0 if number else horizon)
            return max(handed_in[turn - 1]) if turn else 0

        return now, Pace(0, 600.0, 0, START, 1.0, clock=lambda: now[0], agreed=agreed)

    (first, one), (second, other) = host(0), host(1)
    done = 0
    while done < one.horizon:
        done += 1
        first[0] += 0.3 if first[0] < 300 else 0.4
        second[0] += 0.1
        if done % 10 == 0 or done.bit_count() == 1:
            one.measure(done)
            other.measure(done)
        assert one.horizon == other.horizon
        assert one.evaluation_due(done) == other.evaluation_due(done)
    assert abs(first[0] - 600) <= 12


def test_a_resumed_budget_counts_the_time_before():
    end, _, _ = simulate(600, lambda t: 0.3, 3.0, 9.0, meta={"step": 1000, "elapsed": 330.0, "horizon": 1900})
    assert abs(end - 600) <= 12


def test_steps_are_kept_and_validated_ten_times():
    pace = Pace(95, None, 0, START, 1.0)
    assert pace.horizon == 95
    assert [done for done in range(1, 96) if pace.evaluation_due(done)] == [10, 20, 30, 40, 50, 60, 70, 80, 90]
    assert [done for done in range(1, 96) if Pace(95, None, 40, START, 1.0).evaluation_due(done)] == [40, 80]


@pytest.mark.parametrize("options", [(200, None, 0), (205, None, 30), (50, None, 70)])
def test_the_next_validation_that_is_told_is_the_next_that_happens(options):
    pace = Pace(*options, START, 1.0, clock=lambda: 0.0)
    due = [done for done in range(1, pace.horizon) if pace.evaluation_due(done)] + [pace.horizon]
    for done in range(pace.horizon):
        assert pace.next_evaluation(done) == next(step for step in due if step > done)


def test_under_a_budget_the_next_validation_lies_ahead_and_is_told_right_when_the_pace_is_steady():
    now = [0.0]
    pace = Pace(0, 300.0, 0, START, 1.0, clock=lambda: now[0])
    told, happened, done = None, [], 0
    while done < pace.horizon:
        now[0] += 0.5
        done += 1
        pace.measure(done)
        if pace.evaluation_due(done):
            with pace.evaluating():
                happened.append((told, done))
        assert done < pace.next_evaluation(done) <= pace.horizon or done == pace.horizon
        told = pace.next_evaluation(done)
    assert len(happened) == 9
    assert all(abs(told - step) <= 1 for told, step in happened[1:])
