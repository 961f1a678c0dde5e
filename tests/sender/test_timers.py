"""The heap of timers."""

from __future__ import annotations

from typing import Any

from mpproducer.sender.timers import Timers


def test_timers_fire_in_order_of_time_and_ties_in_order_of_setting() -> None:
    timers = Timers()
    fired: list[Any] = []

    def note(subject: Any, _now_ns: int) -> None:
        fired.append(subject)

    for when, name in ((20, "b"), (10, "a"), (20, "c"), (30, "d")):
        timers.at(when, note, name)
    assert timers.next_ns() == 10
    timers.run(9)
    assert fired == []
    timers.run(20)
    assert fired == ["a", "b", "c"]
    assert timers.next_ns() == 30


def test_a_timer_that_sets_itself_again_for_now_does_not_keep_the_sender_busy() -> None:
    timers = Timers()
    count = 0

    def again(_subject: Any, now_ns: int) -> None:
        nonlocal count
        count += 1
        timers.at(now_ns, again)

    timers.at(5, again)
    timers.run(5)
    assert count == 1
    timers.run(5)
    assert count == 2
