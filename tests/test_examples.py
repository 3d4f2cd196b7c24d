"""The example, as README shows it."""

import os
import re
import signal
import subprocess
from pathlib import Path

from harness import BIN, wait_until

ROOT = Path(__file__).parent.parent


def test_example_shows_the_leak_the_restart_and_the_new_pid(tmp_path: Path) -> None:
    # In a copy with a socket of its own, for several tests may run at a time.
    text = (ROOT / 'examples' / 'supervisord.conf').read_text().replace('/tmp/memmon-example', f'{tmp_path}/s')
    (tmp_path / 'supervisord.conf').write_text(text)
    (tmp_path / 'leak.py').write_text((ROOT / 'examples' / 'leak.py').read_text())
    console = tmp_path / 'console'
    with console.open('ab') as output:
        supervisord = subprocess.Popen([BIN / 'supervisord', '-c', tmp_path / 'supervisord.conf'], stdout=output,
                                       stderr=output, env={**os.environ, 'PATH': f'{BIN}:{os.environ["PATH"]}'})
    try:
        restart = wait_until(lambda: re.search(
            r' INFO memmon: restarted leak:leak: RSS [\d.]+MB is over 70MB \(-p leak=70MB\), uptime 0:00:\d\d; '
            r'pid (\d+) -> (\d+)\n', console.read_text()), secs=30)
        for pid in restart.groups():
            wait_until(lambda: f'leak: pid {pid} has leaked 10MB\n' in console.read_text())
    finally:
        supervisord.send_signal(signal.SIGINT)
        assert supervisord.wait(20) == 0
