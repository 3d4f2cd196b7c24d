"""The command line: what is accepted, and what is said of the rest."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from harness import MEMMON, RUN_SECS, Done

import memmon

URL = {'SUPERVISOR_SERVER_URL': 'unix:///nonexistent/supervisor.sock'}
COMMANDS = {'memmon': [MEMMON], 'python -m memmon': [sys.executable, '-m', 'memmon'],
            'python memmon.py': [sys.executable, memmon.__file__]}


def run(*args: str, command: str = 'memmon', **env: str) -> Done:
    """Run memmon with no events, and with no other environment than this."""
    done = subprocess.run([*COMMANDS[command], *args], stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env, check=False,
                          timeout=RUN_SECS)
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.mark.parametrize('args', ['-h', '--help', '-a 200MB --help', '--he'])
def test_help_is_the_docstring(args: str) -> None:
    assert run(*args.split()) == (0, memmon.__doc__, '')


@pytest.mark.parametrize('args', ['-V', '--version'])
def test_version_is_that_of_the_module(args: str) -> None:
    assert run(args) == (0, f'memmon {memmon.__version__}\n', '')


def test_help_shows_every_option() -> None:
    shown = re.findall('^  (?:-(.), |    )--([a-z_-]+)(?: ([A-Z/=]+))?(?:  |$)',
                       memmon.__doc__ or '', re.M)
    assert [(letter, name, bool(argument)) for letter, name, argument in shown] == [
        (option.letter, option.name, bool(option.parse)) for option in memmon.OPTIONS]


@pytest.mark.parametrize('command', COMMANDS)
def test_status_is_the_same_however_memmon_is_run(command: str) -> None:
    assert run('--version', command=command).status == 0
    assert run('-a', 'nonsense', command=command).status == 2
    assert run('--check', command=command, **URL).status == 2


SEE_HELP = 'memmon --help lists the options'
NOT_A_SIZE = ('is not a size: give a number of bytes above 0, or a number with KB, MB, GB or TB, '
              'such as 200MB')
NOT_A_DURATION = ('is not a duration: give a number of seconds above 0, or a number with s, m, h '
                  'or d, such as 5m')
NO_LIMIT = ('nothing to watch: give a limit with -p, -g, -a or -t, such as -a 200MB; see memmon '
            '--help')
NO_OPTION = 'belongs to no option: each NAME=SIZE needs a -p or -g of its own'


@pytest.mark.parametrize('args, error', [
    ([], NO_LIMIT),
    (['-m', 'bob@example.com'], NO_LIMIT),
    (['-x'], f'option -x not recognized; {SEE_HELP}'),
    (['--nonsense'], f'option --nonsense not recognized; {SEE_HELP}'),
    (['-p'], f'option -p requires argument; {SEE_HELP}'),
    (['--verbose=yes', '-a', '1MB'], f'option --verbose must not have an argument; {SEE_HELP}'),
    (['-p', 'web'], "-p: 'web' is not NAME=SIZE, such as web=200MB"),
    (['--program==1MB'], "--program: '=1MB' is not NAME=SIZE, such as web=200MB"),
    (['-g', 'web=much'], f"-g: 'much' {NOT_A_SIZE}"),
    (['-a', '0'], f"-a: '0' {NOT_A_SIZE}"),
    (['-a', ''], f"-a: '' {NOT_A_SIZE}"),
    (['-a', '-5MB'], f"-a: '-5MB' {NOT_A_SIZE}"),
    (['-a', '1MB', '-u', 'soon'], f"-u: 'soon' {NOT_A_DURATION}"),
    (['-a', '1MB', '-m', ''],
     "-m: '' is not an email address, nor several separated by commas"),
    (['-a', '1MB', '-s', ' '], '-s: the command is empty'),
    (['-a', '1MB', '-n', 'a\nb'], r"-n: 'a\nb' is not one line of text"),
    (['-p', 'a=500MB', 'b=300MB'], f"'b=300MB' {NO_OPTION}"),
    (['-p', 'a=500MB', 'b=300MB', '-m', 'bob@example.com'], f"'b=300MB' {NO_OPTION}"),
    (['-a', '1MB', 'please'], f"'please' belongs to no option: {SEE_HELP}"),
])
def test_usage_error_is_one_line(args: list[str], error: str) -> None:
    assert run(*args, **URL) == (2, '', f'memmon: {error}\n')


@pytest.mark.parametrize('env, error', [
    ({}, (
        'memmon is a supervisor event listener, to be started by supervisord from a section like: '
        '[eventlistener:memmon] command=memmon -a 200MB events=TICK_60; for one look at what runs '
        'now: memmon --check -a 200MB')),
    ({'SUPERVISOR_ENABLED': '1'}, (
        'supervisord has no RPC server for memmon to call: add a [unix_http_server] and a '
        '[rpcinterface:supervisor] section to supervisord.conf')),
    ({'SUPERVISOR_SERVER_URL': 'tcp://bob:secret@localhost'}, (
        "the URL of supervisord is 'tcp://localhost': it must be unix://PATH or "
        'http://HOST:PORT')),
])
def test_memmon_without_a_server_says_what_to_do(env: dict[str, str], error: str) -> None:
    assert run('-a', '200MB', **env) == (2, '', f'memmon: {error}\n')


@pytest.mark.parametrize('args', [
    '-a 200MB -m bob@example.com',
    '-c -a 250MB',
    '-g environment=3072MB -m sysops+supervisord@example.com',
    '--program=bosun=150MB --email=a@example.com',
    '-p client1=700MB -p client2=700MB',
    '-p instance1=2GB -m admin@example.com',
    '-p foo=200MB -m bob@example.com -u 2d',
    '-c -p foo=50MB -g bar=10kB --any 250 -s mutt -m me@example.com -u 1d -n myproject',
    '--cumulative --group=bar=10KB --sendmail_program=mutt --uptime=5m --name=x',
    '--groupname bar=10KB --sendmail mutt --verbose',
])
def test_command_lines_in_use_are_accepted(args: str) -> None:
    done = run(*args.split(), **URL)
    assert (done.status, done.stdout) == (0, 'READY\n')
    assert ' waits for TICK events: -' in done.stderr.splitlines()[0]


def test_parse_args_keeps_everything() -> None:
    options = memmon.parse_args([
        '-n', 'shop', '-a', '1KB', '-p', 'foo=2KB', '-g', 'bar=3KB', '-c', '-v', '-s', 'mutt',
        '-u', '1d', '-m', 'a@example.com,b@example.com', '-m', 'c@example.com',
        '--program', 'x:y=4KB'])
    assert [(limit.option, limit.pattern, limit.given) for limit in options.limits] == [
        ('program', 'foo', '-p foo=2KB'), ('program', 'x:y', '--program x:y=4KB'),
        ('groupname', 'bar', '-g bar=3KB'), ('any', '*', '-a 1KB')]
    assert (options.cumulative, options.verbose, options.check) == (True, True, False)
    assert options.email == ('a@example.com', 'b@example.com', 'c@example.com')
    assert (options.sendmail_program, options.uptime, options.name) == ('mutt', 86400, 'shop')
