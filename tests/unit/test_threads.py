"""Background threads: order, bounds, and errors."""

import threading
import time

import pytest

from emdiffuse.runtime.threads import ahead, behind


def test_items_come_in_order_and_no_more_than_two_ahead():
    made = []

    def items():
        for n in range(20):
            made.append((n, threading.current_thread()))
            yield n

    with ahead(items()) as taken:
        for n in range(20):
            assert next(taken) == n
            assert len(made) <= n + 4
        assert next(taken, None) is None
    assert threading.main_thread() not in {thread for _, thread in made}


def test_what_nobody_takes_is_not_made():
    made = []
    with ahead(made.append(n) or n for n in range(100)) as taken:
        next(taken)
    assert len(made) <= 4


def test_an_error_is_raised_where_its_item_is_asked_for():
    with ahead(1 // (2 - n) for n in range(4)) as taken:
        assert [next(taken), next(taken)] == [0, 1]
        with pytest.raises(ZeroDivisionError):
            next(taken)


def test_all_is_put_away_at_the_end_in_order():
    stored = []

    def store(n):
        time.sleep(0.01)
        stored.append(n)

    with behind(store) as put:
        for n in range(5):
            put(n)
            assert len(stored) >= n - 1
    assert stored == list(range(5))


@pytest.mark.parametrize("last", [True, False])
def test_an_error_of_putting_away_is_not_lost(last):
    def refuse(n):
        if n == 1:
            raise OSError("no room")

    with pytest.raises(OSError, match="no room"), behind(refuse) as put:
        put(0)
        put(1)
        if not last:
            put(2)
