"""The example, as README shows it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from harness import BIN, RUN_SECS, assert_in, end_process, wait_until

ROOT = Path(__file__).parent.parent

RESTART = (r' INFO memmon: restarted leak:leak: RSS [\d.]+MB is over 70MB \(-p leak=70MB\), '
           r'uptime 0:00:\d\d; pid (\d+) -> (\d+), RSS ')


def find_restart(console: Path) -> tuple[str, str]:
    """Return the old pid and the new one; to be used with wait_until."""
    text = console.read_text()
    match = re.search(RESTART, text)
    assert match, f'no restart is shown: {text}'
    return match.group(1), match.group(2)


@pytest.mark.waits
def test_example_shows_the_leak_the_restart_and_the_new_pid(directory: Path) -> None:
    # In a copy with a socket of its own, for several tests may run at a time.
    shutil.copy(ROOT / 'examples' / 'leak.py', directory)
    text = (ROOT / 'examples' / 'supervisord.conf').read_text()
    conf = directory / 'supervisord.conf'
    conf.write_text(text.replace('/tmp/memmon-example', f'{directory}/s'))
    console = directory / 'console'
    with console.open('ab') as output:
        supervisord = subprocess.Popen(
            [BIN / 'supervisord', '-c', conf], stdout=output, stderr=output, cwd=directory,
            env={**os.environ, 'PATH': f'{BIN}:{os.environ["PATH"]}'})
    try:
        for pid in wait_until(lambda: find_restart(console), secs=60):
            wait_until(lambda: assert_in(f'leak: pid {pid} has leaked 10MB\n',
                                         console.read_text()))
        supervisord.send_signal(signal.SIGINT)
        assert supervisord.wait(RUN_SECS) == 0
    finally:
        end_process(supervisord)
