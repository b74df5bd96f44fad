"""Budgets: the greedy one against every possibility, the hull against every choice."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from turbocode.errors import OptionError
from turbocode.training.bit_budget import choose_options, remaining_cost, spend_rates

NMSE = (1.0, 0.27, 0.07, 0.02)


@pytest.mark.parametrize("n_bytes", [2, 5, 7, 12])
def test_rates_are_the_best_of_all(n_bytes: int) -> None:
    costs = {"a": np.array([9.0, 0.4]), "b": np.array([3.0, 2.9])}
    rates = spend_rates(costs, NMSE, n_bytes, at_least=1)
    assert sum(int(found.sum()) for found in rates.values()) == n_bytes

    def cost(choice: tuple[int, ...]) -> float:
        pairs = {"a": np.array(choice[:2]), "b": np.array(choice[2:])}
        return sum(remaining_cost(costs[key], pairs[key], NMSE) for key in costs)

    possible = [
        choice
        for choice in itertools.product(range(4), repeat=4)
        if sum(choice) == n_bytes and sum(choice[:2]) >= 1 and sum(choice[2:]) >= 1
    ]
    assert cost((*rates["a"], *rates["b"])) == pytest.approx(min(cost(choice) for choice in possible))


def test_every_side_gets_its_least() -> None:
    rates = spend_rates({"a": np.array([1e9, 1e8]), "b": np.array([1.0, 0.5])}, NMSE, 5, at_least=2)
    assert {key: int(found.sum()) for key, found in rates.items()} == {"a": 3, "b": 2}


@pytest.mark.parametrize("n_bytes", [3, 13])
def test_what_rates_cannot_take(n_bytes: int) -> None:
    with pytest.raises(OptionError, match="4 to 12 are possible"):
        spend_rates({"a": np.ones(2), "b": np.ones(2)}, NMSE, n_bytes)


def test_nmse_that_does_not_fall_ever_slower() -> None:
    with pytest.raises(OptionError, match="fall ever slower"):
        spend_rates({"a": np.ones(2)}, (1.0, 0.9, 0.1), 2)


@pytest.mark.parametrize("budget", [4.0, 6.0, 8.0, 9.0, 12.0])
def test_options_are_on_the_hull_and_fit(budget: float) -> None:
    options = {
        "a": [(2.0, 8.0), (3.0, 7.9), (4.0, 2.0), (6.0, 1.0)],  # the second lies above the hull
        "b": [(6.0, 0.5), (2.0, 4.0), (4.0, 1.0), (4.0, 3.0)],
    }
    chosen = choose_options(options, budget)
    size = sum(options[key][index][0] for key, index in chosen.items())
    cost = sum(options[key][index][1] for key, index in chosen.items())
    assert size <= budget
    best = min(
        options["a"][i][1] + options["b"][j][1]
        for i, j in itertools.product(range(4), repeat=2)
        if options["a"][i][0] + options["b"][j][0] <= size
    )
    assert cost == pytest.approx(best)


def test_a_budget_that_nothing_fits() -> None:
    with pytest.raises(OptionError, match="smallest choices take 4"):
        choose_options({"a": [(4.0, 1.0)]}, 3.0)
