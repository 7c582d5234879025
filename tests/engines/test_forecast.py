"""The forecast of whole volumes."""

import pytest

from lib.engines.benchmark.forecast import TURNS, between, forecast, roofline


def test_all_slices_take_every_turn():
    found = forecast(150, "all", 1, lambda batch: 1.0, max_batch=1000)
    assert (found.looks, found.calls) == (150, 60 * TURNS + 90)
    assert found.seconds == TURNS


def test_key_slices_need_fewer_looks_and_gpus_share_them():
    every, some = (forecast(600, plan, 1, roofline) for plan in ("all", "auto"))
    assert some.calls * 4 < every.calls
    assert some.seconds < every.seconds
    assert forecast(600, "all", 8, roofline).seconds < every.seconds / 4


def test_a_measured_cost_is_met_at_its_points_and_straight_between():
    cost = between([(1, 1.0), (8, 2.4), (64, 8.0)])
    assert [cost(1), cost(8), cost(64)] == pytest.approx([1.0, 2.4, 8.0])
    assert cost(36) == pytest.approx(5.2)
    assert between([(8, 2.0)])(16) == pytest.approx(4.0)
