import re
import subprocess
from typing import List, Tuple

import pytest
from harness import MEMMON

import memmon

URL = {'SUPERVISOR_SERVER_URL': 'unix:///nonexistent/supervisor.sock'}


def run(*args: str, **env: str) -> Tuple[int, bytes, str]:
    """Run the real script with no events; return its status, stdout and stderr."""
    done = subprocess.run([MEMMON, *args], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          env=env, check=False)
    return done.returncode, done.stdout, done.stderr.decode()


@pytest.mark.parametrize('args', ['-h', '--help', '-a 200MB --help', '--he'])
def test_help_is_the_docstring(args: str) -> None:
    assert run(*args.split()) == (0, (memmon.__doc__ or '').encode(), '')


@pytest.mark.parametrize('args', ['-V', '--version'])
def test_version(args: str) -> None:
    assert run(args) == (0, f'memmon {memmon.__version__}\n'.encode(), '')


def test_help_shows_every_option() -> None:
    shown = re.findall('^  (?:-(.), |    )--([a-z_]+)(?: ([A-Z=]+))?(?:  |$)', memmon.__doc__ or '', re.M)
    assert [(letter, name, bool(argument)) for letter, name, argument in shown] == [
        (option.letter, option.name, bool(option.parse)) for option in memmon.OPTIONS]


NOT_A_SIZE = 'is not a size: give a number of bytes above 0, or one with KB, MB, GB or TB, such as 200MB'
NO_LIMIT = 'nothing to watch: give a limit with -p, -g or -a, such as -a 200MB; see memmon --help'

USAGE: List[Tuple[List[str], str]] = [
    ([], NO_LIMIT),
    (['-m', 'bob@example.com'], NO_LIMIT),
    (['-x'], 'option -x not recognized; memmon --help lists the options'),
    (['--nonsense'], 'option --nonsense not recognized; memmon --help lists the options'),
    (['-p'], 'option -p requires argument; memmon --help lists the options'),
    (['--verbose=yes', '-a', '1MB'],
     'option --verbose must not have an argument; memmon --help lists the options'),
    (['-p', 'web'], "-p: 'web' is not NAME=SIZE, such as web=200MB"),
    (['--program==1MB'], "--program: '=1MB' is not NAME=SIZE, such as web=200MB"),
    (['-g', 'web=much'], f"-g: 'much' {NOT_A_SIZE}"),
    (['-a', '0'], f"-a: '0' {NOT_A_SIZE}"),
    (['-a', ''], f"-a: '' {NOT_A_SIZE}"),
    (['-a', '-5MB'], f"-a: '-5MB' {NOT_A_SIZE}"),
    (['-a', '1MB', '-u', 'soon'],
     "-u: 'soon' is not a duration: give a number of seconds above 0, or one with s, m, h or d, such as 5m"),
    (['-a', '1MB', '-m', ''], "-m: '' is not an email address, nor several with commas between them"),
    (['-a', '1MB', '-s', ' '], '-s: the command is empty: give one that sends the mail on its standard input'),
    (['-a', '1MB', '-n', 'a\nb'], r"-n: 'a\nb' is not one line of text"),
    (['-p', 'a=500MB', 'b=300MB'], "'b=300MB' belongs to no option: each NAME=SIZE wants a -p or -g of its own"),
    (['-p', 'a=500MB', 'b=300MB', '-m', 'bob@example.com'],
     "'b=300MB' belongs to no option: each NAME=SIZE wants a -p or -g of its own"),
    (['-a', '1MB', 'please'], "'please' belongs to no option: memmon --help lists the options"),
]


@pytest.mark.parametrize('args, error', USAGE)
def test_usage_error_is_one_line(args: List[str], error: str) -> None:
    assert run(*args, **URL) == (2, b'', f'memmon: {error}\n')


def test_no_supervisord_is_told_with_a_section() -> None:
    assert run('-a', '200MB') == (2, b'', (
        'memmon: this is a supervisor event listener, to be started by supervisord from a section like: '
        '[eventlistener:memmon] command=memmon -a 200MB events=TICK_60; '
        'for one look at what runs now: memmon --check -a 200MB\n'))


def test_supervisord_without_rpc_server_is_told_what_to_add() -> None:
    assert run('-a', '200MB', SUPERVISOR_ENABLED='1') == (2, b'', (
        'memmon: supervisord has no RPC server for memmon to call: add a [unix_http_server] and a '
        '[rpcinterface:supervisor] section to supervisord.conf\n'))


@pytest.mark.parametrize('args', [
    ['-a', '200MB', '-m', 'bob@example.com'],
    ['-c', '-a', '250MB'],
    ['-g', 'environment=3072MB', '-m', 'sysops+supervisord@example.com'],
    ['--program=bosun=150MB', '--email=a@example.com'],
    ['-p', 'client1=700MB', '-p', 'client2=700MB'],
    ['-p', 'instance1=2GB', '-m', 'admin@example.com'],
    ['-p', 'foo=200MB', '-m', 'bob@example.com', '-u', '2d'],
    ['-c', '-p', 'foo=50MB', '-g', 'bar=10kB', '--any', '250', '-s', 'mutt', '-m', 'me@example.com', '-u', '1d',
     '-n', 'myproject'],
    ['--cumulative', '--group=bar=10KB', '--sendmail_program=mutt', '--uptime=5m', '--name=x'],
    ['--groupname', 'bar=10KB', '--sendmail', 'mutt', '--verbose'],
])
def test_command_lines_in_use_are_taken(args: List[str]) -> None:
    assert run(*args, **URL) == (0, b'READY\n', '')


def test_parse_args_keeps_everything() -> None:
    assert memmon.parse_args([
        '-n', 'shop', '-a', '1KB', '-p', 'foo=2KB', '-g', 'bar=3KB', '-c', '-v', '-s', 'mutt', '-u', '1d',
        '-m', 'a@example.com,b@example.com', '-m', 'c@example.com', '--program', 'x:y=4KB',
    ]) == memmon.Options(
        limits=(
            memmon.Limit('program', 'foo', 2048, '-p foo=2KB'),
            memmon.Limit('program', 'x:y', 4096, '--program x:y=4KB'),
            memmon.Limit('groupname', 'bar', 3072, '-g bar=3KB'),
            memmon.Limit('any', '*', 1024, '-a 1KB'),
        ),
        cumulative=True,
        email=('a@example.com', 'b@example.com', 'c@example.com'),
        sendmail_program='mutt',
        uptime=86400,
        name='shop',
        verbose=True,
        check=False,
        help=False,
        version=False,
    )
