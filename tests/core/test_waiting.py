"""Waits are reported and end."""

import time
from datetime import timedelta

import pytest

from densepath.core import waiting
from densepath.core.errors import UserError
from densepath.core.waiting import Stuck, listening, wait_for


def never(seconds):
    time.sleep(seconds)
    raise TimeoutError


def test_what_comes_in_time_is_returned_without_a_report(monkeypatch):
    heard = []
    with listening(lambda what, waited: heard.append(what)):
        assert wait_for(lambda seconds: 7, "a number", "") == 7
    assert heard == []


def test_a_wait_ends_with_what_was_waited_for_and_listeners_hear_of_it(monkeypatch):
    monkeypatch.setenv("DENSEPATH_WAIT_LIMIT", "0.3")
    monkeypatch.setattr(waiting, "_LOOK", 0.05)
    heard = []
    with listening(lambda *about: heard.append(about)), pytest.raises(Stuck, match="no image data for 0 s; look at it"):
        wait_for(never, "image data", "look at it")
    assert len(heard) >= 3 and {what for what, _ in heard} == {"image data"}
    waited = [seconds for _, seconds in heard]
    assert waited == sorted(waited) and 0.3 < waited[-1] < 5
    count = len(heard)
    with pytest.raises(Stuck):
        wait_for(never, "image data", "look at it")
    assert len(heard) == count


def test_what_a_listener_raises_ends_the_wait(monkeypatch):
    def stop(what, waited):
        raise KeyboardInterrupt

    with listening(stop), pytest.raises(KeyboardInterrupt):
        wait_for(never, "image data", "")


@pytest.mark.parametrize("text", ["inf", "1e300"])
def test_no_limit_is_a_time_that_clocks_can_count(monkeypatch, text):
    monkeypatch.setenv("DENSEPATH_WAIT_LIMIT", text)
    assert timedelta(days=365) < timedelta(seconds=waiting.limit_seconds()) < timedelta.max / 1000


@pytest.mark.parametrize("text", ["soon", "0", "-1", "nan"])
def test_a_limit_that_is_not_a_number_of_seconds_is_refused(monkeypatch, text):
    monkeypatch.setenv("DENSEPATH_WAIT_LIMIT", text)
    with pytest.raises(UserError, match=r"DENSEPATH_WAIT_LIMIT is .*; give a number of seconds"):
        waiting.limit_seconds()
