"""Signals while a run trains: answered at once, even in the middle of a call that lasts."""

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from mlx_lora.commands import trainstop
from mlx_lora.commands.trainstop import Stop, stop_signals
from mlx_lora.console import talk
from mlx_lora.training.distributed import Group


def long_call(rounds=600_000):
    """Some tenths of a second in C, between two bytecodes, as a step of a large model is."""
    hashlib.pbkdf2_hmac("sha256", b"", b"", rounds)


def send(*numbers, after=0.05):
    """Signals to this process, from a thread, while the main one is in its call."""

    def later():
        for number in numbers:
            time.sleep(after)
            os.kill(os.getpid(), number)

    thread = threading.Thread(target=later)
    thread.start()
    return thread


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_answered_while_the_step_still_runs(number, capsys):
    stop = Stop(training=True)
    with stop_signals(stop, Group()):
        sender = send(number)
        long_call()
        assert stop.asked
        sender.join()
    assert capsys.readouterr().err == "stopping after this step; once more to stop at once\n"


def test_two_signals_in_one_call_are_two():
    stop = Stop(training=True)

    def step():
        with stop_signals(stop, Group()):
            sender = send(signal.SIGINT, signal.SIGINT)
            long_call(1_200_000)
            sender.join()
            time.sleep(5)

    with pytest.raises(KeyboardInterrupt):
        step()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_before_the_first_step_one_signal_is_enough():
    def load():
        with stop_signals(Stop(), Group()):
            send(signal.SIGTERM).join()
            time.sleep(5)

    with pytest.raises(KeyboardInterrupt):
        load()


def test_a_signal_that_is_read_only_at_the_end_does_not_end_the_process(monkeypatch):
    left = []
    monkeypatch.setattr(trainstop.os, "_exit", left.append)
    monkeypatch.setattr(trainstop, "GRACE_SECONDS", 0.01)
    signals = trainstop._Signals()
    os.write(signals.writing, bytes([signal.SIGTERM]))
    signals.end()
    signals.watch(Stop())
    signals.close()
    assert left == []


def test_a_closed_terminal_asks_for_an_end_in_silence(capsys):
    stop = Stop(training=True)
    try:
        with stop_signals(stop, Group()):
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.asked
        assert capsys.readouterr().err == ""
        assert talk.quiet
    finally:
        talk.quiet = False


def test_under_nohup_a_closed_terminal_says_nothing():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        stop = Stop(training=True)
        with stop_signals(stop, Group()):
            os.kill(os.getpid(), signal.SIGHUP)
        assert not stop.asked
    finally:
        signal.signal(signal.SIGHUP, before)


DEAF = """
import hashlib, os, signal, threading, time
from mlx_lora.commands import trainstop
from mlx_lora.training.distributed import Group
trainstop.GRACE_SECONDS = 0.1
def send():
    for _ in range(2):
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=send).start()
with trainstop.stop_signals(trainstop.Stop(training=True), Group()):
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # half an hour
"""


def test_a_call_that_does_not_return_is_left_after_the_grace():
    run = subprocess.run([sys.executable, "-c", DEAF], capture_output=True, text=True, check=False, timeout=60)
    assert run.returncode == 130
    assert "stopping after this step" in run.stderr
