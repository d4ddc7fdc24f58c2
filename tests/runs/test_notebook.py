"""How a run that is interrupted ends in Python."""

import sys
from types import SimpleNamespace

import pytest

from densepath.runs.signals import Interrupted, as_keyboard_interrupt


def test_an_interrupted_run_can_be_caught_as_ctrl_c_and_ends_a_script_with_its_code():
    for caught in (KeyboardInterrupt, SystemExit):
        with pytest.raises(caught) as stop, as_keyboard_interrupt():
            raise Interrupted(15)
        assert stop.value.code == 143


def test_a_notebook_gets_a_plain_keyboard_interrupt(monkeypatch):
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: object()))
    with pytest.raises(KeyboardInterrupt, match="resume=True continues") as stop, as_keyboard_interrupt():
        raise Interrupted(2)
    assert not isinstance(stop.value, SystemExit)
