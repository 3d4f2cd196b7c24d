"""The example of a container: its supervisord.conf, in a PID namespace and a control group.

Docker is not needed: what matters is that supervisord is the first process, that its memory is
limited, and that all logs go to its stderr. The Dockerfile itself is not tried.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Iterator

import pytest
from harness import (BIN, StartListener, StartSupervisord, assert_in, children_of, descendants_of,
                     end_process, has_pid_namespaces, in_pid_namespace, kill, run, section,
                     wait_until)

EXAMPLE = Path(__file__).parent.parent / 'examples' / 'container'
GROUPS = Path('/sys/fs/cgroup/memory')  # version 1
README_LIMIT = re.findall(r'docker run .*--memory (\d+)m ',
                          (EXAMPLE / 'README.rst').read_text(encoding='utf-8'))


@pytest.fixture
def control_group() -> Iterator[Path]:
    """A control group with the memory that README gives to the container."""
    group = GROUPS / f'memmon-test-{os.getpid()}'
    try:
        group.mkdir()
    except OSError:
        pytest.skip('needs root, and version 1 of control groups')
    (group / 'memory.limit_in_bytes').write_text(str(int(README_LIMIT[0]) << 20))
    yield group
    kill(*map(int, (group / 'cgroup.procs').read_text().split()))
    wait_until(lambda: remove(group))


def remove(group: Path) -> None:
    """Remove a control group; to be used with wait_until."""
    try:
        group.rmdir()
    except OSError as error:
        raise AssertionError(str(error)) from None


def kills(group: Path) -> int:
    """Return how many processes the kernel has killed in a control group."""
    counts = dict(line.split() for line in
                  (group / 'memory.oom_control').read_text().splitlines())
    return int(counts['oom_kill'])


def copy_example(path: Path) -> Path:
    """Copy the example; return its supervisord.conf with the paths of a test."""
    shutil.copy(EXAMPLE / 'web.py', path)
    text = (EXAMPLE / 'supervisord.conf').read_text(encoding='utf-8')
    # A test's /dev/stderr is a file, which supervisord would open anew and write over.
    for old, new in (('/run/', f'{path}/'), ('/app/', f'{path}/'),
                     ('/dev/stderr', '/dev/fd/2'),
                     ('command=python ', f'command={sys.executable} ')):
        assert old in text
        text = text.replace(old, new)
    conf = path / 'supervisord.conf'
    conf.write_text(text)
    return conf


@pytest.mark.waits
def test_container_restarts_what_leaks_before_the_kernel_kills(
        tmp_path: Path, control_group: Path) -> None:
    pytest.importorskip('prometheus_client')
    if not has_pid_namespaces():
        pytest.skip('needs root, and unshare from util-linux')
    conf, stderr = copy_example(tmp_path), tmp_path / 'stderr'
    enter = f'echo $$ >{control_group}/cgroup.procs; exec "$@"'
    command = in_pid_namespace(str(BIN / 'supervisord'), '-n', '-c', str(conf))
    environment = {**os.environ, 'PATH': f'{BIN}:{os.environ["PATH"]}'}
    with stderr.open('ab') as output:
        container = subprocess.Popen(['sh', '-c', enter, 'sh', *command], stdout=output,
                                     stderr=output, cwd=tmp_path, env=environment)
    try:
        # At 10 MB a second, twice in less than a minute.
        wait_until(lambda: assert_in(' restarted web:web: ', stderr.read_text()), secs=60)
        restart = re.search(r' INFO memmon: restarted web:web: (.*)', stderr.read_text())
        assert restart and re.search(r'\((-a 50%|-t 85%\.\.95%)\)', restart.group(1))
        assert kills(control_group) == 0
        check = re.search(r'HEALTHCHECK .*CMD \["memmon", (.*)\]',
                          (EXAMPLE / 'Dockerfile').read_text(encoding='utf-8'))
        assert check
        args = check.group(1).replace('"', '').replace('/run/', f'{tmp_path}/').split(', ')
        first, = children_of(container.pid)
        inside = ['nsenter', f'--target={first}', '--pid', '--mount', str(BIN / 'memmon')]
        wait_until(lambda: assert_healthy(*inside, *args, '--config', str(conf)))
    finally:
        kill(*descendants_of(container.pid))
        end_process(container)


def test_percentages_follow_a_container_that_is_resized(
        control_group: Path, start_supervisord: StartSupervisord, start_listener: StartListener
        ) -> None:
    supervisord = start_supervisord(section('big', '--once', 'big'))
    pid, = supervisord.wait_big('big')
    (control_group / 'memory.limit_in_bytes').write_text(str(1000 << 20))
    enter = f'echo $$ >{control_group}/cgroup.procs; exec "$0" "$@"'
    listener = start_listener(supervisord, '-v', '-a', '10%', wrapper=['sh', '-c', enter])
    listener.send()
    listener.assert_log('MB of 100MB (-a 10%)')
    (control_group / 'memory.limit_in_bytes').write_text(str(400 << 20))
    listener.send()
    supervisord.wait_new_pid('big', pid)
    listener.wait_log(' is over 40MB (-a 10%), ')


def assert_healthy(*command: str) -> None:
    """Assert that the health check succeeds; to be used with wait_until."""
    done = run(*command)
    assert (done.status, done.stderr) == (0, ''), done
