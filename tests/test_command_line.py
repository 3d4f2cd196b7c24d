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


def test_help_shows_the_defaults() -> None:
    """Those of options that are off without being given need no words."""
    text = re.sub(r'\n {29}', ' ', memmon.__doc__ or '')
    shown = re.findall(r'^  .*--([a-z_-]+) .*\(default: (.*?)\)$', text, re.M)
    assert shown == [(option.name, option.default) for option in memmon.OPTIONS
                     if option.default not in (False, None, (), 0, '', float('inf'))]


def test_help_fits_a_terminal() -> None:
    assert max(map(len, (memmon.__doc__ or '').splitlines())) <= 80


def test_names_of_options_are_not_taken_twice() -> None:
    for names in ([option.letter for option in memmon.OPTIONS if option.letter],
                  [option.name for option in memmon.OPTIONS],
                  [option.field or option.name for option in memmon.OPTIONS]):
        assert len(set(names)) == len(names)


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


DEFAULTS = memmon.Options(
    limits=(memmon.Limit('any', '*', (memmon.Size(1), None), '-a 1'),), total=None,
    cumulative=False, kind='rss', patience=0, restarts=None, on=(), warn=0, dry_run=False, email=(),
    sendmail_program='/usr/sbin/sendmail -t -i', uptime=float('inf'), name='', verbose=False,
    metrics='', check=False, config='', help=False, version=False)
LIMITS = (
    memmon.Limit('program', 'foo', (memmon.Size(2048), None), '-p foo=2KB'),
    memmon.Limit('program', 'x:y', None, '--program x:y=none'),
    memmon.Limit('groupname', 'bar', (memmon.Size(0, 25), memmon.Size(0, 50)), '-g bar=25%..50%'),
    memmon.Limit('any', '*', (memmon.Size(1024), None), '--any 1KB'),
)


@pytest.mark.parametrize('args, options', [
    ('-a 1', DEFAULTS),
    # Limits are in the order of their options, whatever the order they are given in.
    ('--any 1KB -g bar=25%..50% -p foo=2KB --program x:y=none', DEFAULTS._replace(limits=LIMITS)),
    ('-a 1 -a 1KB --any=1KB', DEFAULTS._replace(limits=LIMITS[3:])),
    ('-t 80%%', DEFAULTS._replace(limits=(), total=memmon.Limit(
        'total', '', (memmon.Size(0, 80), None), '-t 80%%'))),
    ('-t1', DEFAULTS._replace(limits=(), total=memmon.Limit(
        'total', '', (memmon.Size(1), None), '-t 1'))),
    ('-a 1 -c -v', DEFAULTS._replace(cumulative=True, verbose=True)),
    ('-cva1', DEFAULTS._replace(cumulative=True, verbose=True)),
    ('-a 1 -k RSS -f 5m -r 3/1h -w 80 --dry-run', DEFAULTS._replace(
        patience=300, restarts=memmon.Rate(3, 3600), warn=80, dry_run=True)),
    ('-a 1 -o warn=a -o after=b --on warn=c', DEFAULTS._replace(
        on=(('warn', 'a'), ('after', 'b'), ('warn', 'c')))),
    ('-a 1 -m a@b,c@d -m e --email=f', DEFAULTS._replace(email=('a@b', 'c@d', 'e', 'f'))),
    ('-a 1 -s mutt -u 1d -n shop', DEFAULTS._replace(
        sendmail_program='mutt', uptime=86400, name='shop')),
    ('-u 1d -u 2d -a 1', DEFAULTS._replace(uptime=172800)),
    ('--check', DEFAULTS._replace(limits=(), check=True)),
    ('--check --config /etc/x.conf', DEFAULTS._replace(
        limits=(), check=True, config='/etc/x.conf')),
    ('-h', DEFAULTS._replace(limits=(), help=True)),
    ('-V', DEFAULTS._replace(limits=(), version=True)),
])
def test_parse_args(args: str, options: memmon.Options) -> None:
    assert memmon.parse_args(args.split()) == options


@pytest.mark.parametrize('args', ['', '-a none', '-p web=none -g web=none -a none', '-m root',
                                  '--dry-run', '-v'])
def test_nothing_to_watch_is_an_error(args: str) -> None:
    with pytest.raises(memmon.UsageError) as error:
        memmon.parse_args(args.split())
    assert str(error.value) == NO_LIMIT


@pytest.mark.parametrize('args', [
    '--config x -a 1', '--config x -h', '-a', '--con', '-k uss -a 1', '--metrics= -a 1', '-a 1 -',
])
def test_command_line_that_makes_no_sense_is_an_error(args: str) -> None:
    with pytest.raises(memmon.UsageError) as error:
        memmon.parse_args(args.split())
    assert str(error.value).isprintable()
