# SPDX-License-Identifier: Apache-2.0
"""What ``repeat`` and ``scale`` share: signals, and one process alone."""

from __future__ import annotations

import os
import signal

import pytest

from bertbench.common.cli.run_words import settings_of, stoppable
from bertbench.common.errors import BadInput


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
@pytest.mark.parametrize("nohup", [True, False])
def test_nohup_is_honoured(number: signal.Signals, nohup: bool) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if nohup else signal.SIG_DFL)
    stopped = False
    try:
        with stoppable():
            os.kill(os.getpid(), number)
    except KeyboardInterrupt:
        stopped = True
    finally:
        signal.signal(signal.SIGHUP, before)
    assert stopped == (not nohup or number == signal.SIGTERM)


@pytest.mark.parametrize(
    "environment",
    [
        {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"},
        {"WORLD_SIZE": "2", "RANK": "1"},
        {"PET_NNODES": "2"},
    ],
)
def test_each_of_several_processes_would_start_them_all(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    words = ["run", "mini", "--synthetic"]
    settings_of(words)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(BadInput, match=r"several processes were started|WORLD_SIZE"):
        settings_of(words)
