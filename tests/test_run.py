"""Commands that memmon runs: their input, output, time limit and end."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from harness import RUN_SECS, is_running, wait_until
from samples import options, reading

import memmon


@pytest.mark.parametrize('command, text, printed', [
    ('cat', b'in', b'in'),
    (['cat'], b'in', b'in'),
    ('echo out; echo error >&2', b'', b'out\n'),
    ('echo out', b'x' * 2 ** 20, b'out\n'),  # does not read
    (['printf', '%s', '$HOME;'], b'', b'$HOME;'),
], ids=['shell', 'list', 'stderr', 'much that it does not read', 'no shell'])
def test_run_returns_what_a_command_prints(command: str | list[str], text: bytes, printed: bytes
                                           ) -> None:
    assert memmon.run(command, RUN_SECS, text) == printed


@pytest.mark.parametrize('command, how, status', [
    ('exit 3', 'exit status 3', 3),
    ('kill -9 $$', 'killed by signal 9', 0),
    ('sleep 60', 'not done after 1 seconds, so killed', 0),
    ('sleep 60 & sleep 60', 'not done after 1 seconds, so killed', 0),
])
def test_run_says_how_a_command_failed(command: str, how: str, status: int) -> None:
    with pytest.raises(memmon.CommandError) as error:
        memmon.run(command, 1)
    assert (str(error.value), error.value.status) == (how, status)


def test_run_of_what_is_not_there() -> None:
    with pytest.raises(FileNotFoundError):
        memmon.run(['/nonexistent'], RUN_SECS)


def read_pid(file: Path) -> int:
    """Return the pid that a command has written to a file."""
    text = file.read_text() if file.exists() else ''
    assert text.endswith('\n'), f'no pid in {file}: {text!r}'
    return int(text)


def assert_ended(pid: int) -> None:
    assert not is_running(pid), f'pid {pid} is still running'


@pytest.mark.parametrize('grandchild', [
    'sleep 60',
    'sh -c "trap \'\' TERM HUP INT; sleep 60; sleep 60"',
    # With job control, a process group of its own.
    pytest.param('sh -c "set -m; sleep 60 & echo \\$! >pid; wait"', marks=pytest.mark.skipif(
        not os.path.exists('/proc/self'), reason='only /proc shows all of a session')),
])
def test_command_whose_time_is_up_leaves_nothing_behind(
        grandchild: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    began = time.monotonic()
    with pytest.raises(memmon.CommandError):
        memmon.run(f'{grandchild} & [ -e pid ] || echo $! >pid; wait', 1)
    assert time.monotonic() - began < 30
    pid = read_pid(tmp_path / 'pid')
    wait_until(lambda: assert_ended(pid))


def relay(command: str, secs: int = RUN_SECS, redirection: str = '', text: str = ''
          ) -> subprocess.CompletedProcess[str]:
    """Run a command for the user in an interpreter of its own, and say there how it went."""
    script = (f'import memmon, sys\n'
              f'try:\n'
              f'    memmon.run_for_user({command!r}, {secs}, {text.encode()!r}, {{"X": "7"}})\n'
              f'    how = "done"\n'
              f'except memmon.CommandError as error:\n'
              f'    how = str(error)\n'
              f'open("how", "w").write(how)\n')
    shell = ['sh', '-c', f'"$@" {redirection}', 'sh', sys.executable, '-c', script]
    return subprocess.run(shell, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True, check=False, timeout=RUN_SECS,
                          env={**os.environ, 'KEPT': '8', 'SUPERVISOR_PASSWORD': 'secret'})


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory in which commands run."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_output_for_the_user_goes_to_stderr(here: Path) -> None:
    done = relay('echo out; echo error >&2; cat', text='in\n')
    assert (done.stdout, done.stderr) == ('', 'out\nerror\nin\n')
    assert (here / 'how').read_text() == 'done'


def test_long_output_for_the_user_is_whole(here: Path) -> None:
    assert relay('seq 100000').stderr == ''.join(f'{number}\n' for number in range(1, 100001))


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='needs the /dev/full of Linux')
@pytest.mark.parametrize('redirection', ['2>/dev/full', '2>&-', '2<&0'])
def test_output_that_stderr_does_not_take_harms_no_command(redirection: str, here: Path) -> None:
    done = relay('seq 100000; echo $? >status', redirection=redirection)
    assert (done.stdout, done.returncode) == ('', 0)
    assert (here / 'how').read_text() == 'done'
    assert (here / 'status').read_text() == '0\n'


def test_reader_of_stderr_that_has_gone_kills_no_command(here: Path) -> None:
    """Not by SIGPIPE, and not by EPIPE."""
    done = relay('sleep 0.5; seq 100000; echo $? >status', redirection='2>&1 | true')
    wait_until(lambda: assert_done(here))
    assert (here / 'status').read_text() == '0\n'
    assert done.stderr == ''


def assert_done(path: Path) -> None:
    assert (path / 'how').exists() and (path / 'how').read_text() == 'done'


def test_background_child_holds_up_no_command(here: Path) -> None:
    began = time.monotonic()
    relay('echo out; sleep 60 & echo $! >pid')
    assert time.monotonic() - began < 30
    os.kill(read_pid(here / 'pid'), 9)
    assert (here / 'how').read_text() == 'done'


def test_command_of_the_user_that_fails_or_takes_too_long(here: Path) -> None:
    assert relay('echo out; exit 75').stderr == 'out\n'
    assert (here / 'how').read_text() == 'exit status 75'
    assert relay('echo out; sleep 60', 1).stderr == 'out\n'
    assert (here / 'how').read_text() == 'not done after 1 seconds, so killed'


@pytest.mark.parametrize('event, commands, asks_to_wait, printed, failures', [
    ('before', ['echo a', 'echo b'], False, 'a\nb\n', []),
    ('before', ['exit 75', 'echo b'], True, '', []),
    ('before', ['echo a', 'exit 75'], True, 'a\n', []),
    ('before', ['exit 1', 'exit 75'], True, '', ["'exit 1' of -o before failed: exit status 1"]),
    ('before', ['exit 1', 'echo b'], False, 'b\n', [
        "'exit 1' of -o before failed: exit status 1"]),
    ('before', ['kill -9 $$'], False, '', ["'kill -9 $$' of -o before failed: killed by signal 9"]),
    ('after', ['exit 75', 'echo b'], False, 'b\n', [
        "'exit 75' of -o after failed: exit status 75"]),
    ('held', [], False, '', []),
])
def test_commands_of_an_event_run_in_turn(
        event: str, commands: list[str], asks_to_wait: bool, printed: str, failures: list[str],
        capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    args = [arg for command in commands for arg in ('-o', f'{event}={command}')]
    parsed = memmon.parse_args(['-a', '1MB', '-o', 'warn=echo wrong', *args])
    assert memmon.run_commands(parsed, event, reading(), 'why') == asks_to_wait
    assert capfd.readouterr().err == printed
    assert caplog.messages == [f'web:web: the command {failure}' for failure in failures]


def test_command_over_the_second_size_is_run_but_not_heard(
        capfd: pytest.CaptureFixture[str]) -> None:
    parsed = memmon.parse_args(['-a', '1MB', '-o', 'before=echo a; exit 75', '-o', 'before=echo b'])
    urgent = reading(arg='-a 200MB..250MB')
    assert not memmon.run_commands(parsed, 'before', urgent, 'why')
    assert capfd.readouterr().err == 'a\nb\n'


def test_command_that_cannot_be_run_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """A process whose name holds a NUL cannot be put into an environment."""
    memmon.run_commands(options('-a 1MB -o held=true'), 'held', reading('a\0b'), 'why')
    assert caplog.messages == [
        "a\0b:a\0b: the command 'true' of -o held failed: embedded null byte"]
