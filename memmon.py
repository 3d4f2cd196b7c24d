"""memmon is a supervisor event listener. On each TICK event it looks at the memory of
supervisord's child processes and restarts those that use more than they are allowed.

The way down this file is the way of the data: an event makes the listener look, a look gives
Readings, judge() says what follows from each, workers restart, and reports tell of it.
"""

from __future__ import annotations

import binascii
import collections
import configparser
import contextlib
import datetime
import email.charset
import email.header
import email.message
import email.utils
import fnmatch
import gc
import getopt
import http.client
import logging
import math
import os
import pickle
import re
import select
import selectors
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
import traceback
import urllib.parse
from functools import lru_cache, partial
from operator import itemgetter
from typing import (Any, Callable, Iterable, Iterator, Mapping, NamedTuple, NoReturn, Optional,
                    Sequence, TextIO, Tuple, TypeVar, get_type_hints)
from xmlrpc.client import Fault, ProtocolError

from supervisor import childutils
from supervisor.states import ProcessStates
from supervisor.xmlrpc import Faults

__version__ = '2.0.0'

log = logging.getLogger('memmon')

PS_TIMEOUT_SECS = 10
RPC_TIMEOUT_SECS = 10
MAIL_TIMEOUT_SECS = 30
COMMAND_TIMEOUT_SECS = 600


# Values: a string in, a value or a ValueError out; and back, for people to read.

KB, MB = 2 ** 10, 2 ** 20
SIZE_UNITS = {'K': KB, 'M': MB, 'G': 2 ** 30, 'T': 2 ** 40}
DURATION_UNITS = {'S': 1, 'M': 60, 'H': 60 * 60, 'D': 24 * 60 * 60}


class Size(NamedTuple):
    """A number of bytes, or a percentage of the memory of the machine or container."""

    bytes: float  # inf: no limit
    percent: float = 0


NO_SIZE = Size(math.inf)


def parse_quantity(units: Mapping[str, int], rest_of_unit: str, what: str, text: str) -> int:
    """Return NUMBER[UNIT] in whole base units, of which there must be 1 or more."""
    match = re.fullmatch(r'\s*\+?([0-9]{1,15}|[0-9]{0,15}\.[0-9]{1,9})\s*'
                         rf'(?:([{"".join(units)}]){rest_of_unit})?\s*', text.upper())
    if match:
        whole, _, decimals = match.group(1).partition('.')
        quantity: int = int(whole + decimals) * units.get(match.group(2), 1) // 10 ** len(decimals)
        if quantity:
            return quantity
    raise ValueError(f'{text!r} is not {what}')


# NUMBER[K|M|G|T][i][B] in bytes, in powers of 1024; and NUMBER[s|m|h|d] in seconds.
parse_size = partial(parse_quantity, SIZE_UNITS, 'I?B?', 'a size: give a number of bytes above 0, '
                     'or a number with KB, MB, GB or TB, such as 200MB')
parse_duration = partial(parse_quantity, DURATION_UNITS, '', 'a duration: give a number of seconds '
                         'above 0, or a number with s, m, h or d, such as 5m')


def parse_percent(text: str) -> float:
    """Return the number of NUMBER[%], or NUMBER%% as in supervisord.conf."""
    match = re.fullmatch(r'\s*([0-9]{0,3}\.?[0-9]{1,9})\s*%{0,2}\s*', text)
    percent = float(match.group(1)) if match else 0
    if not 0 < percent <= 100:
        raise ValueError(f'{text!r} is not a percentage: give more than 0% and at most 100%')
    return percent


def parse_limit(option: str, text: str) -> Limit:
    """Return the limit of NAME=SIZES, or of SIZES where an option takes no name.

    SIZES: SIZE, SIZE..SIZE or none.
    """
    name, sizes = '*', text
    if option in ('program', 'groupname'):
        name, _, sizes = text.rpartition('=')
        if not name.strip():
            raise ValueError(f'{text!r} is not NAME=SIZE, such as web=200MB')
    if sizes.strip().lower() == 'none':
        if option == 'total':
            raise ValueError("'none' is not a limit for the total: give a size, such as 85%")
        return Limit(option, name.strip(), NO_SIZE, NO_SIZE)
    given = [Size(0, parse_percent(part)) if '%' in part else Size(parse_size(part))
             for part in sizes.split('..', 1)]
    soft, hard = [*given, NO_SIZE][:2]
    if bool(soft.percent) == bool(hard.percent) and hard < soft:
        raise ValueError(f'{sizes!r} has its sizes in the wrong order: the hard one, at which '
                         'memmon no longer waits, must not be below the soft one')
    return Limit(option, name.strip(), soft, hard)


def parse_measure(text: str) -> str:
    """Return the key of a row of MEASURES that this system can read."""
    key = text.strip().lower()
    if key not in MEASURES:
        raise ValueError(f'{text!r} is not a measure of memory: give rss, pss or private')
    fields = MEASURES[key].fields
    try:
        if fields:
            read_fields(os.getpid(), fields)
    except OSError:
        raise ValueError(f'this system does not report {" and ".join(fields)} in /proc/PID/'
                         'smaps_rollup: use -k rss' + ' or pss' * (key == 'private')) from None
    return key


def parse_rate(text: str) -> tuple[int, int]:
    """Return the count and the seconds of COUNT/DURATION."""
    count, _, duration = text.partition('/')
    if not re.fullmatch(r'\s*[0-9]{1,9}\s*', count) or not int(count) or not duration:
        raise ValueError(f'{text!r} is not N/DURATION with an N above 0, such as 3/1h')
    return int(count), parse_duration(duration)


COMMAND_EVENTS = ('before', 'after', 'failed', 'held', 'warn')


def parse_on(text: str) -> tuple[str, str]:
    """Return the event and the shell command of EVENT=COMMAND."""
    event, _, command = text.partition('=')
    if event.strip() not in COMMAND_EVENTS or not command.strip():
        raise ValueError(f'{text!r} is not EVENT=COMMAND, where EVENT is one of '
                         f'{", ".join(COMMAND_EVENTS)}')
    return event.strip(), command


def parse_text(text: str) -> str:
    """Return a text that is not empty and fits on one line."""
    if not text.strip() or not re.fullmatch('[^\\0-\\x1f\\x7f]*', text):
        raise ValueError(f'{text!r} is not one line of text')
    return text


def parse_metrics(text: str) -> str:
    """Return the name of a file for metrics."""
    try:
        import prometheus_client  # noqa: F401  Imported here: costs 10 MB and is rarely needed.
    except ImportError:
        raise ValueError(f'this needs prometheus_client: {sys.executable} -m pip install '
                         'prometheus_client') from None
    if os.path.dirname(os.path.abspath(text)) == '/dev':
        raise ValueError(f'{text!r} is in /dev: it would be replaced by a file')
    return parse_text(text)


def parse_addresses(text: str) -> tuple[str, ...]:
    """Return the addresses of ADDRESS[,ADDRESS]..., where each may be NAME <ADDRESS>."""
    parts = list(filter(None, map(str.strip, re.findall('(?:"[^"]*"|[^",])+', parse_text(text)))))
    pairs: list[tuple[str, str]] = []
    with contextlib.suppress(RecursionError):  # of a thousand parentheses
        pairs = email.utils.getaddresses(parts)
    # Atoms of RFC 5322, section 3.2.3; a user of this host needs no domain.
    atoms = re.compile(r"[\w!#$%&'*+./=?^`{|}~-]+(@[\w!#$%&'*+./=?^`{|}~-]+)?", re.ASCII)
    if text.count('"') % 2 or not parts or len(pairs) != len(parts) or not all(
            atoms.fullmatch(address) and (part == address or part.endswith(f'<{address}>'))
            for part, (_, address) in zip(parts, pairs)):
        raise ValueError(f'{text!r} is not an email address, nor several separated by commas')
    return tuple(email.utils.formataddr((printable(name), address)) for name, address in pairs)


def in_unit(size: float, most: float) -> tuple[float, str]:
    """Return bytes in the smallest unit of which there are fewer than so many, and that unit."""
    for unit in ('', 'KB', 'MB', 'GB'):
        if size < most:
            return size, unit
        size /= 1024
    return size, 'TB'


def format_size(size: float) -> str:
    """Return bytes in the largest unit of which there is one or more, such as 212.4MB."""
    size, unit = in_unit(size, 1023.95)  # from there on it would be rounded to 1024
    return f'{round(size, 1):.10g}{unit}'


def format_duration(secs: float) -> str:
    """Return seconds as supervisorctl shows an uptime, such as 0:12:05."""
    most = datetime.timedelta.max // datetime.timedelta(seconds=1)
    return str(datetime.timedelta(seconds=min(max(0, int(secs)), most)))


def one_line(value: object) -> str:
    """Return a text as one line that no terminal takes for more: of several the first and last."""
    lines = [line.strip() for line in re.split('[\r\n]', str(value)) if line.strip()]
    name = type(value).__name__ if isinstance(value, Exception) else ''
    return printable(' ... '.join(lines[:1] + lines[1:][-1:]) or name)


def hide_passwords(line: str) -> str:
    """Return a line without the passwords of URLs: rather less of it than too much."""
    return re.sub(r'(?<!/)//(?!/)([^\s/@:]*:.*|\S*)@', '//', line)


def printable(text: str) -> str:
    """Escape what is not printable in a text, such as ESC or an override of the direction."""
    return ''.join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


# Options: the arguments in, one immutable Options or a UsageError out.

class UsageError(Exception):
    """What keeps memmon from starting, in one line that says what to do."""


class Limit(NamedTuple):
    """What processes may use, and the option that says so."""

    option: str      # the option's long name: program, groupname, any or total
    pattern: str     # of the names that it covers
    soft: Size
    hard: Size
    given: str = ''  # the option as it was given, such as -p web=200MB


NO_LIMIT = Limit('', '', NO_SIZE, NO_SIZE)  # where no option says anything


class Options(NamedTuple):
    """The command line as parse_args read it."""

    limits: Tuple[Limit, ...]
    total: Optional[Limit]
    cumulative: bool
    kind: str                        # a key of MEASURES
    patience: int                    # seconds
    restarts: Tuple[float, int]      # so many times in so many seconds
    dry_run: bool
    on: Tuple[Tuple[str, str], ...]  # events and commands
    warn: float                      # percent; 0: never
    email: Tuple[str, ...]
    sendmail_program: str
    uptime: float                    # seconds
    name: str
    metrics: str
    verbose: bool
    check: bool
    config: str
    help: bool
    version: bool
    given: str = ''                  # the options that say what is restarted when

    @property
    def all_limits(self) -> tuple[Limit, ...]:
        """The limits of single processes, and that of all together."""
        return (*self.limits, *filter(None, [self.total]))


class Option(NamedTuple):
    """A row of the table of options; without a parser it is a flag."""

    heading: str    # of the part of the help that it stands in
    letter: str
    name: str
    argument: str
    help: str
    parse: Optional[Callable[[str], Any]] = None
    default: Any = False  # (): it can be repeated, and the values are put together
    field: str = ''  # of Options; if empty, the name

    @property
    def flags(self) -> str:
        """The option as the help shows it, such as -a, --any SIZE."""
        letter = f'-{self.letter}, ' if self.letter else '    '
        return f'{letter}--{self.name} {self.argument}'.rstrip()


LIMITS, WHEN = 'Limits', 'When to restart'
# getopt accepts any unambiguous prefix of a long option, --group and --sendmail among them.
OPTIONS = (
    Option(LIMITS, 'p', 'program', 'NAME=SIZE', 'limit each process of a program; NAME is a '
           'program or a namespec, GROUP:NAME', partial(parse_limit, 'program'), ()),
    Option(LIMITS, 'g', 'groupname', 'NAME=SIZE', 'limit each process of a group',
           partial(parse_limit, 'groupname'), ()),
    Option(LIMITS, 'a', 'any', 'SIZE', 'limit every child of supervisord',
           partial(parse_limit, 'any'), None),
    Option(LIMITS, 't', 'total', 'SIZE', 'limit all of them together; restart the largest',
           partial(parse_limit, 'total'), None),
    Option(LIMITS, 'c', 'cumulative', '', 'count a process with all its descendants'),
    Option(LIMITS, 'k', 'kind', 'KIND', 'count rss (default), pss (shared memory once), or '
           'private (no file pages, but swap)', parse_measure, 'rss'),
    Option(WHEN, 'f', 'for', 'DURATION', 'only after it has been over its limit for '
           'this long', parse_duration, 0, field='patience'),
    Option(WHEN, 'r', 'restarts', 'N/DURATION', 'at most N times in DURATION: 3/1h',
           parse_rate, (math.inf, 0)),
    Option(WHEN, '', 'dry-run', '', 'never: report what would be restarted',
           field='dry_run'),
    Option('Telling', 'o', 'on', 'EVENT=COMMAND', 'run COMMAND before or after a restart (before '
           'postpones it with exit status 75), or when one has failed, is held by -r, or on warn',
           parse_on, ()),
    Option('Telling', 'w', 'warn', 'PERCENT', 'report once when a process uses PERCENT of its '
           'limit', parse_percent, 0),
    Option('Telling', 'm', 'email', 'ADDRESS', 'mail about restarts and failures; several '
           'addresses with commas, or repeat it', parse_addresses, ()),
    Option('Telling', 's', 'sendmail_program', 'COMMAND', 'pipe mail to COMMAND (default: '
           '/usr/sbin/sendmail -t -i)', parse_text, '/usr/sbin/sendmail -t -i'),
    Option('Telling', 'u', 'uptime', 'DURATION', 'mail about a restart only if the process had '
           'been up no longer than this', parse_duration, math.inf),
    Option('Telling', 'n', 'name', 'TEXT', 'put [TEXT] into the subjects of mails', parse_text,
           ''),
    Option('Telling', '', 'metrics', 'FILE', 'at each tick, write FILE for node_exporter',
           parse_metrics, ''),
    Option('Telling', 'v', 'verbose', '', 'log what each process uses, at each look'),
    Option('Looking', '', 'check', '', 'show processes and limits, or propose limits, and exit: '
           '0 within, 1 over, 2 cannot check; with --metrics, check that memmon ticks'),
    Option('Looking', '', 'config', 'FILE', 'with --check: find supervisord by FILE', parse_text,
           ''),
    Option('Looking', 'h', 'help', '', 'show this help and exit'),
    Option('Looking', 'V', 'version', '', 'show the version and exit'),
)
LIMIT_OPTIONS = ('program', 'groupname', 'any')  # the most specific first

HELP = """\
memmon is a supervisor event listener. On each TICK event it restarts those of
supervisord's child processes that use more memory than they are allowed:

  [eventlistener:memmon]
  command=memmon -a 200MB -m bob@example.com
  events=TICK_60
{options}

SIZE is a number of bytes, or one with KB, MB, GB or TB, in powers of 1024:
200MB, 1.5GB; 25% of the memory of the machine or container; none, to exempt; or
SOFT..HARD, 200MB..300MB: -f and before can postpone a restart until HARD.
DURATION is in seconds, or has s, m, h or d. -p and -g can be repeated, and NAME
may be a shell pattern: 'queue:*'. -p wins over -g over -a, a name over a
pattern, then the first. A process over its limit again within ten minutes of
its restart is left alone until it has grown by half. See man memmon.
"""


def format_help() -> str:
    """Return the text of --help: at most 60 lines of at most 80 columns."""
    lines: list[str] = []
    heading = ''
    for option in OPTIONS:
        if option.heading != heading:
            heading = option.heading
            lines += ['', f'{heading}:']
        words = textwrap.wrap(option.help, 80 - 27)
        lines.append(f'  {option.flags}'.ljust(27) + words.pop(0) if len(option.flags) < 25
                     else f'  {option.flags}')
        lines += [' ' * 27 + line for line in words]
    return HELP.replace('{options}', '\n'.join(lines))


def parse_args(argv: Sequence[str]) -> Options:
    """Return the options that the arguments ask for. Raises UsageError."""
    letters = ''.join(option.letter + ':' * bool(option.parse) for option in OPTIONS
                      if option.letter)
    names = [option.name + '=' * bool(option.parse) for option in OPTIONS]
    try:
        pairs, rest = getopt.getopt(list(argv), letters, names)
    except getopt.GetoptError as error:
        raise UsageError(f'{one_line(error)}; memmon --help lists the options') from None
    if rest:
        raise UsageError(f'unexpected argument {rest[0]!r}: {hint_at(pairs, rest)}')
    values: dict[str, Any] = {option.field or option.name: option.default for option in OPTIONS}
    decisive: list[str] = []
    for flag, text in pairs:
        option = next(option for option in OPTIONS
                      if flag in (f'-{option.letter}', f'--{option.name}'))
        given = one_line(f'{flag} {text}')
        decisive += [given] * (option.heading in (LIMITS, WHEN))
        try:
            value = option.parse(text) if option.parse else True
        except ValueError as error:
            raise UsageError(f'{flag}: {one_line(error)}') from None
        if isinstance(value, Limit):
            value = value._replace(given=given)
        field = option.field or option.name
        values[field] = (*values[field], value) if option.default == () else value
    values['email'] = sum(values['email'], ())
    values['limits'] = (*values.pop('program'), *values.pop('groupname'),
                        *filter(None, [values.pop('any')]))
    options = Options(**values, given=' '.join(decisive))
    watches = any(limit.soft != NO_SIZE for limit in options.all_limits)
    if not (watches or options.check or options.help or options.version):
        raise UsageError('nothing to watch: give a limit with -p, -g, -a or -t, such as -a 200MB; '
                         'see memmon --help')
    if options.config and not options.check:
        raise UsageError('--config goes with --check: supervisord tells a listener where it is')
    return options


def hint_at(pairs: Sequence[tuple[str, str]], rest: Sequence[str]) -> str:
    """Return what to write instead of an argument that belongs to no option."""
    if '=' in rest[0]:
        return 'each NAME=SIZE needs a -p or -g of its own'
    flag, name = pairs[-1] if pairs else ('', '')
    if flag in ('-p', '-g', '--program', '--groupname') and '=' not in name:
        return f'write {flag} {name}={rest[0]}'
    return 'memmon --help lists the options'


def tiny_limits(options: Options) -> list[str]:
    """Return a sentence for each limit below 1 MB, which was perhaps meant to be in MB."""
    return [f'{limit.given} is {size.bytes} bytes; did you mean '
            f'{size.bytes if size.bytes % KB else size.bytes // KB}MB?'
            for limit in options.all_limits for size in (limit.soft, limit.hard)
            if not size.percent and size.bytes < MB]


# Commands: running one, its input, its time limit, its end.

class CommandError(Exception):
    """How a command failed, and its exit status if it had one."""

    def __init__(self, how: str, status: int = 0) -> None:
        super().__init__(how)
        self.status = status


def run(command: str | list[str], timeout_secs: float, text: bytes = b'',
        output: int = subprocess.PIPE, env: Mapping[str, str | bytes] | None = None) -> bytes:
    """Run a command with text on its standard input; return what it printed if output is PIPE.

    A string is for the shell. When time is up, the process group of its session is killed.
    Raises OSError and CommandError.
    """
    child = subprocess.Popen(command, shell=isinstance(command, str), start_new_session=True,
                             stdin=subprocess.PIPE, stdout=output, env=env,
                             stderr=subprocess.DEVNULL if output == subprocess.PIPE else output)
    try:
        printed, _ = child.communicate(text, timeout_secs)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(OSError):  # what runs through sudo cannot be killed
            os.killpg(child.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.communicate(timeout=1)
        raise CommandError(f'killed after {timeout_secs} seconds') from None
    status = child.returncode
    if status:
        raise CommandError(f'exit status {status}' if status > 0 else f'killed by signal {-status}',
                           max(0, status))
    return printed or b''


def run_for_user(command: str, text: bytes, variables: Mapping[str, str]) -> None:
    """Run a shell command of the user's, whose output goes where the log goes.

    A text is a mail. Variables are added to its environment, from which supervisord's password is
    taken. Raises OSError, ValueError and CommandError.
    """
    timeout_secs = MAIL_TIMEOUT_SECS if text else COMMAND_TIMEOUT_SECS
    # In any locale: supervisord's names are UTF-8.
    env: dict[str, str | bytes] = {**os.environ, **{
        name: value.encode('utf-8', 'surrogateescape') for name, value in variables.items()}}
    env.pop('SUPERVISOR_PASSWORD', None)
    # A command that prints where nobody reads any more would be killed by SIGPIPE.
    poll = select.poll()
    poll.register(2, select.POLLOUT)
    has_reader = not any(events & (select.POLLERR | select.POLLNVAL) for _, events in poll.poll(0))
    try:
        run(command, timeout_secs, text, 2 if has_reader else subprocess.DEVNULL, env)
    finally:
        with contextlib.suppress(OSError):
            os.write(2, b'\n')  # what it printed may have no end of its own


# Measure: what processes use.

class MeasureError(Exception):
    """Why the memory of the processes is not known."""


class Measure(NamedTuple):
    """What is counted, and of what."""

    name: str                # for people
    fields: Tuple[str, ...]  # of smaps_rollup, which are added up; none: the RSS counts
    with_tree: bool = False  # with all descendants


# See proc(5). A leak is made of what is private: file pages are dropped when there is no room.
MEASURES = {
    'rss': Measure('RSS', ()),
    'pss': Measure('PSS', ('Pss',)),
    'private': Measure('private memory', ('Pss_Anon', 'Pss_Shmem', 'SwapPss')),
}
# Of all processes together. Swap is no part of the memory of a container.
TOTAL_MEASURES = {
    **dict.fromkeys(('rss', 'pss'), Measure('PSS', ('Pss',), True)),
    'private': Measure('private memory', ('Pss_Anon', 'Pss_Shmem'), True),
}
DEAR_SECS = 1  # what a look may take for smaps_rollup, which takes some 10 ms for each GB

PAGE_BYTES = os.sysconf('SC_PAGE_SIZE')
TASKS = '/proc/%d/task'
GONE = (FileNotFoundError, ProcessLookupError)


def read_proc(path: str) -> bytes:
    """Return a file of /proc, in a third of the time that open() takes. Raises OSError.

    A read gives no more than a page, and as much of that as there is.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        text = os.read(descriptor, 4096)
        if len(text) > 2048:
            while piece := os.read(descriptor, 4096):
                text += piece
        return text
    finally:
        os.close(descriptor)


@lru_cache(8)  # at most looks, there are the same children
def parse_pids(text: bytes) -> frozenset[int]:
    """Return the pids of a list with spaces in between."""
    return frozenset(map(int, text.split()))


class Processes:
    """The processes in Linux's /proc, each read when it is asked for; see proc(5)."""

    def children(self, pid: int) -> Iterable[int]:
        """Return the pids of a process's children. Raises OSError."""
        pids: frozenset[int] = frozenset()
        # Besides . and .. there is a link for each thread; a listing costs three times as much.
        tasks = TASKS % pid
        for task in [str(pid)] if os.stat(tasks).st_nlink == 3 else os.listdir(tasks):
            try:
                pids |= parse_pids(read_proc(f'{tasks}/{task}/children'))
            except GONE:
                if task == str(pid):  # else it is a thread that has ended just now
                    raise
        return pids

    def rss(self, pid: int) -> int | None:
        """Return the RSS of a process in bytes; None if it is not known."""
        try:
            # Not read_proc, and bytes: there is one of these for each process at each look.
            statm = os.open(b'/proc/%d/statm' % pid, os.O_RDONLY)
            try:
                return int(os.read(statm, 100).split(None, 2)[1]) * PAGE_BYTES
            finally:
                os.close(statm)
        except (*GONE, PermissionError):
            return None  # it has ended, or is hidden from this user


PROC_FILES = Processes()


class ProcessTable(Processes):
    """All processes at one time, from ps: the parent and the RSS in bytes of each."""

    def __init__(self, rows: Mapping[int, tuple[int, int]]) -> None:
        self.rows = rows
        self.pids_by_ppid: dict[int, list[int]] = {}
        for pid, (ppid, _) in rows.items():
            self.pids_by_ppid.setdefault(ppid, []).append(pid)

    def children(self, pid: int) -> list[int]:
        return self.pids_by_ppid.get(pid, [])

    def rss(self, pid: int) -> int | None:
        return self.rows[pid][1] if pid in self.rows else None


# A path: without one, Popen lists a candidate for each directory of PATH, which costs 250 KB of
# RSS in 2,000 ticks.
PS = shutil.which('ps')


def find_children(pid: int) -> tuple[Processes, frozenset[int]]:
    """Return the processes of this machine, and which are children of one. Raises MeasureError."""
    try:
        return PROC_FILES, frozenset(PROC_FILES.children(pid))
    except OSError as error:  # no such files here, hidden, or no descriptor left: ps may know
        log.debug('%s: asking ps', error)
    try:
        if not PS:
            raise MeasureError('it is not in PATH')
        # FreeBSD and macOS need each column in an -o of its own.
        columns = ['-o', 'pid=', '-o', 'ppid=', '-o', 'rss=']
        table = parse_ps(run([PS, '-A', *columns], PS_TIMEOUT_SECS))
    except (OSError, CommandError, MeasureError) as error:
        raise MeasureError(f'/proc does not show all processes, nor does ps: {error}') from None
    return table, frozenset(table.children(pid))


def parse_ps(output: bytes) -> ProcessTable:
    """Return the process table of lines PID PPID RSS, the RSS in KB.

    Raises MeasureError unless the table is whole: each line three numbers, the last line ended,
    this process in it.
    """
    rows = {}
    for line in output.splitlines():
        fields = line.split()
        if len(fields) != 3 or not all(field.isdigit() and len(field) < 20 for field in fields):
            raise MeasureError(f'ps printed {line[:60]!r}')
        pid, ppid, kilobytes = map(int, fields)
        rows[pid] = ppid, kilobytes * KB
    if os.getpid() not in rows or not output.endswith(b'\n'):
        raise MeasureError('the output of ps is incomplete')
    return ProcessTable(rows)


def tree(processes: Processes, root: int) -> list[int]:
    """Return a process and all its descendants, each once."""
    pids = {root: None}
    waiting = [root]
    while waiting:
        with contextlib.suppress(*GONE, PermissionError):
            children = [pid for pid in processes.children(waiting.pop()) if pid not in pids]
            pids.update(dict.fromkeys(children))
            waiting += children
    return list(pids)


def read_fields(pid: int, names: Sequence[str], file: str = 'smaps_rollup') -> int:
    """Return the sum of fields of /proc/PID/FILE in bytes. Raises OSError if one is missing."""
    pattern = rf'^(?:{"|".join(names)}):\s+([0-9]+) kB$'.encode()
    sizes = re.findall(pattern, read_proc(f'/proc/{pid}/{file}'), re.M)
    if len(sizes) < len(names):
        raise OSError(f'{file} of {pid} has not all of {", ".join(names)}')
    return sum(map(int, sizes)) * KB


def read_status(pids: Iterable[int], name: str) -> int:
    """Return the sum of a field of /proc/PID/status in bytes: of what is not known, nothing."""
    size = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            size += read_fields(pid, [name], 'status')
    return size


def read_swap(pids: Iterable[int], measure: Measure) -> int:
    """Return how many bytes of some processes are swapped out, where that counts."""
    with contextlib.suppress(OSError):
        # A heading, and a line for each.
        if 'SwapPss' in measure.fields and read_proc('/proc/swaps').count(b'\n') > 1:
            return read_status(pids, 'VmSwap')
    return 0


def measure_exactly(processes: Processes, pids: Iterable[int], measure: Measure
                    ) -> tuple[int, tuple[int, ...]]:
    """Return what smaps_rollup says of some processes, and those of which the bound had to do.

    What has gone counts nothing; what may not be read counts with its own bound.
    """
    memory, unread = 0, []
    for pid in pids:
        try:
            memory += read_fields(pid, measure.fields)
        except GONE:
            pass
        except OSError:
            bound = (processes.rss(pid) or 0) + read_swap([pid], measure)
            memory += bound
            unread += [pid] if bound else []
    return memory, tuple(unread)


class Stat(NamedTuple):
    """Which run of a process a pid is, and in which process group; see proc(5)."""

    start: int  # in clock ticks since the boot
    group: int


def read_stat(pid: int) -> Stat | None:
    """Return a process's start and process group; None for a zombie, and where nobody knows."""
    try:
        # The command's name is in parentheses, and may itself hold spaces and parentheses.
        fields = read_proc(f'/proc/{pid}/stat').rpartition(b')')[2].split()
    except OSError:
        return None
    return None if fields[0] in b'ZX' else Stat(int(fields[19]), int(fields[2]))


def read_machine_memory(proc: str = '/proc/self') -> int:
    """Return the memory of this machine, or of its container if that is less, in bytes.

    What limits a container is its own control group or one above it. It may see its own at the
    root of the mount: what is not there is looked for further up. See cgroups(7) and proc(5).
    """
    sizes = [os.sysconf('SC_PHYS_PAGES') * PAGE_BYTES]
    try:
        with open(f'{proc}/cgroup', errors='surrogateescape') as cgroup, \
                open(f'{proc}/mountinfo', errors='surrogateescape') as mountinfo:
            # By controller: the group of version 1 has that of memory, that of version 2 none.
            groups = dict(re.findall(r'^[0-9]+:(?:[^:\n]*,)?(memory|)(?:,[^:\n]*)?:(.*)$',
                                     cgroup.read(), re.M))
            mounts = re.findall(r'^(?:\S+ ){3}(\S+) (\S+) .* - cgroup(?:2 |.*[ ,](memory)\b)',
                                mountinfo.read(), re.M)
    except OSError:
        return sizes[0]  # not Linux
    for *paths, controller in mounts:
        root, point = (re.sub(r'\\([0-7]{3})', lambda match: chr(int(match.group(1), 8)), path)
                       for path in paths)
        if controller in groups:
            # In version 1, the leaf's limit may be unlimited where one above it is not: memory.stat
            # has the least of them.
            name = 'memory.stat' if controller else 'memory.max'
            parts = os.path.relpath(groups[controller], root).split('/')
            for depth in range(len(parts) + 1):
                with contextlib.suppress(OSError):  # the root has none
                    sizes += map(int, re.findall(
                        rb'^(?:hierarchical_memory_limit )?([0-9]+)$',
                        read_proc('/'.join([point, *parts[:depth], name])), re.M))
    return min(sizes)


# supervisord: where it listens, what it says of its processes, and what it is asked to do.

class SupervisordError(Exception):
    """Why supervisord could not be asked, in one line that a person can act on."""


class ShuttingDown(SupervisordError):
    """supervisord is shutting down or reloading: nothing is to be asked of it any more."""


class Process(NamedTuple):
    """A process as supervisord shows it. http://supervisord.org/api.html"""

    group: str
    name: str
    pid: int         # 0: it has none
    start: int       # seconds since the epoch, as are the other two
    stop: int
    now: int
    state: int
    statename: str
    spawnerr: str
    exitstatus: int  # -1: a signal ended it

    @property
    def namespec(self) -> str:
        return f'{self.group}:{self.name}'

    @property
    def run(self) -> tuple[int, int]:
        """What tells one run of a process from another, which may have got the same pid."""
        return self.pid, self.start

    def has_ended_within(self, secs: float) -> bool:
        """Tell whether it has ended lately, by supervisord's clock."""
        return 0 < self.stop < LAST_SECOND and 0 <= self.now - self.stop < secs


LAST_SECOND = 2 ** 31 - 1  # of 2038: XML-RPC has no larger integers, and all times stay there
PROCESS_TYPES = get_type_hints(Process)
UP_STATES = (ProcessStates.STARTING, ProcessStates.RUNNING)


def to_process(info: Any) -> Process:
    """Return what supervisord answered about a process."""
    return Process(**{field: kind(info[field]) for field, kind in PROCESS_TYPES.items()})


def to_stopped(answers: Any) -> Process:
    """Return what a look and a stop in one request have shown. Raises Fault if one is refused."""
    for answer in answers:
        if isinstance(answer, dict) and 'faultCode' in answer:
            raise Fault(**answer)
    look, _ = answers
    return to_process(look)


Taken = TypeVar('Taken')  # of an answer


def raise_timeout(*_: object) -> NoReturn:
    """Raise what a socket raises when its time is up: this is the handler of SIGALRM."""
    raise socket.timeout('timed out')


class Server(NamedTuple):
    """Where supervisord listens, and its RPC interface. http://supervisord.org/api.html

    All methods raise Fault where supervisord refuses, and SupervisordError.
    """

    url: str  # unix://PATH or http://HOST:PORT
    username: str = ''
    password: str = ''

    def call(self, take: Callable[[Any], Taken], method: str, *args: Any) -> Taken:
        """Call a method such as supervisor.getPID, and return what is taken from its answer.

        Each call has a connection of its own, and 10 seconds, however slowly the answer comes.
        """
        environment = {'SUPERVISOR_SERVER_URL': self.url, 'SUPERVISOR_USERNAME': self.username,
                       'SUPERVISOR_PASSWORD': self.password}
        answer: Any = None
        signal.signal(signal.SIGALRM, raise_timeout)
        try:
            try:
                # And each second after that: a host may have several addresses to connect to.
                signal.setitimer(signal.ITIMER_REAL, RPC_TIMEOUT_SECS, 1)
                with childutils.getRPCInterface(environment) as proxy:
                    answer = getattr(proxy, method)(*args)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            return take(answer)
        except Exception as error:  # anything may listen there, and answer anything
            if not isinstance(error, (OSError, ProtocolError, Fault)):
                log.debug('a call has failed', exc_info=error)  # it may be memmon's own mistake
            traceback.clear_frames(error.__traceback__)  # they keep the connection open
            raise explain(error, self.url, answer) from None

    def pid(self) -> int:
        """Return supervisord's pid."""
        return self.call(int, 'supervisor.getPID')

    def processes(self) -> list[Process]:
        """Return all processes that supervisord knows."""
        return self.call(lambda answer: [to_process(info) for info in (
            answer if isinstance(answer, list) else [answer])], 'supervisor.getAllProcessInfo')

    def process(self, namespec: str) -> Process:
        """Return what supervisord shows of a process now."""
        return self.call(to_process, 'supervisor.getProcessInfo', namespec)

    def configs(self) -> dict[str, dict[str, Any]]:
        """Return the configuration of each process by namespec; {} from supervisord before 4.1."""
        with contextlib.suppress(Fault, SupervisordError, KeyError, TypeError):
            return {f'{config["group"]}:{config["name"]}': config
                    for config in self.call(list, 'supervisor.getAllConfigInfo')}
        return {}

    def start(self, namespec: str) -> None:
        """Start a process, without waiting until it is up."""
        self.call(bool, 'supervisor.startProcess', namespec, False)

    def stop(self, namespec: str) -> Process:
        """Stop a process, without waiting until it is down; return what it was.

        supervisord runs the calls of a system.multicall with nothing in between, as neither of
        these waits: so the look shows just what was stopped.
        """
        look = {'methodName': 'supervisor.getProcessInfo', 'params': [namespec]}
        stop = {'methodName': 'supervisor.stopProcess', 'params': [namespec, False]}
        return self.call(to_stopped, 'system.multicall', [look, stop])


def show_url(url: str) -> str:
    """Return a URL without the password that somebody may have put into it."""
    return one_line(url if url.startswith('unix:///') else re.sub(r'^(\w+://)?.*@', r'\1', url,
                                                                  flags=re.S))


# What went wrong with a connection, the most special first, and what to do about it.
FAILURES: tuple[tuple[type[Exception] | tuple[type[Exception], ...], str], ...] = (
    (FileNotFoundError, 'no such socket: {url}; is supervisord running, with a '
                        '[unix_http_server] section?'),
    (PermissionError, 'no permission to use {url}: see chmod and chown in [unix_http_server]'),
    (ConnectionRefusedError, 'nothing listens at {url}; is supervisord running?'),
    (socket.timeout, f'no answer from supervisord at {{url}} within {RPC_TIMEOUT_SECS} seconds'),
    ((OSError, MemoryError), 'no answer from supervisord at {url}: {error}'),
    (Fault, 'supervisord at {url} has no [rpcinterface:supervisor] section: add it'),
    (UnicodeEncodeError, 'the user name or password for {url} is not UTF-8: {error}'),
    (Exception, 'the server at {url} is not supervisord: {error}'),
)


def explain(error: Exception, url: str, answer: object = None) -> Exception:
    """Return what a call has come to, in one line that says what to do.

    Most faults are answers, as which they are returned.
    """
    if isinstance(error, Fault):
        if error.faultCode == Faults.SHUTDOWN_STATE:
            return ShuttingDown('supervisord is shutting down')
        if error.faultCode != Faults.UNKNOWN_METHOD:
            return error
    text = next(text for kind, text in FAILURES if isinstance(error, kind))
    what = one_line(error) if answer is None else f'it answers {one_line(answer)[:100]}'
    if isinstance(error, ProtocolError):
        if error.errcode == http.client.UNAUTHORIZED:
            text = ('supervisord at {url} refused the user name or password: set '
                    "SUPERVISOR_USERNAME and SUPERVISOR_PASSWORD in memmon's environment to those "
                    'of its HTTP server')
        what = f'HTTP {error.errcode} {one_line(error.errmsg)}'
    return SupervisordError(text.format(url=show_url(url), error=what))


def find_server(env: Mapping[str, str]) -> Server:
    """Return the server of an environment such as supervisord's children get. Raises UsageError."""
    url = env.get('SUPERVISOR_SERVER_URL')
    if not url and 'SUPERVISOR_ENABLED' in env:
        raise UsageError('supervisord has no RPC server for memmon to call: add a '
                         '[unix_http_server] and a [rpcinterface:supervisor] section to '
                         'supervisord.conf')
    if url is None:
        raise UsageError('memmon is a supervisor event listener, to be started by supervisord from '
                         'a section like: [eventlistener:memmon] command=memmon -a 200MB '
                         'events=TICK_60; for one look at what runs now: memmon --check -a 200MB')
    with contextlib.suppress(ValueError):  # from urlsplit and port
        parts = urllib.parse.urlsplit(url)
        if re.match('unix://.', url) or (
                url.startswith('http://') and parts.hostname and parts.port != 0):
            return Server(url, env.get('SUPERVISOR_USERNAME', ''),
                          env.get('SUPERVISOR_PASSWORD', ''))
    raise UsageError(f'the URL of supervisord is {show_url(url)!r}: it must be unix://PATH or '
                     'http://HOST:PORT')


def is_alive(pid: int) -> bool:
    """Tell whether there is a process with this pid."""
    try:
        os.kill(pid, 0)
        return True
    except OSError as error:
        return isinstance(error, PermissionError)


# Decide: which limit applies to a process, what is known of it, and what follows.

class Reading(NamedTuple):
    """One measurement of a process, or of all processes together, with the limit for it.

    Without the fields that have a default it says what is to be measured.
    """

    process: Process              # ALL for the total
    limit: Limit
    soft: float                   # bytes, as is hard; inf: no limit
    hard: float
    measure: Measure              # what counts
    rss: Optional[int] = None     # bytes, as are the next two; None: not known
    bound: Optional[int] = None   # what the memory cannot exceed
    memory: Optional[int] = None  # what counts
    at: int = 0                   # when it was taken, in seconds since the epoch
    is_exact: bool = True         # else the memory is the bound
    descendants: Sequence[int] = ()  # the pids of those that count as well
    unread: Tuple[int, ...] = ()  # pids of which the bound had to do

    @property
    def pids(self) -> list[int]:
        """What was measured: the process, then its descendants if they count."""
        return [self.process.pid, *self.descendants]

    @property
    def uptime(self) -> int | None:
        """For how many seconds the process has run; None if that is not known."""
        start = self.process.start
        return max(0, self.at - start) if start < LAST_SECOND else None

    @property
    def level(self) -> str:
        """Which size of the limit is exceeded: hard, soft, or none."""
        if self.memory is None or self.memory <= self.soft:
            return ''
        return HARD if self.memory > self.hard else SOFT

    @property
    def room(self) -> float:
        """How many bytes are left below the soft size."""
        return self.soft - (self.memory or 0)

    @property
    def share(self) -> float | None:
        """How much of the limit is used, 1 being all of it; None if that is not known."""
        if self.memory is None or self.soft == math.inf:
            return None
        return self.memory / max(1, self.soft)


SOFT, HARD = 'soft', 'hard'
ALL = Process('', 'total', 0, LAST_SECOND, 0, 0, 0, '', '', 0)  # with no uptime


def sizes_of(limit: Limit, machine: int) -> tuple[float, float]:
    """Return a limit's soft and hard size in bytes, where there are so many bytes of memory."""
    soft, hard = (int(machine * size.percent / 100) if size.percent else size.bytes
                  for size in (limit.soft, limit.hard))
    # 200MB..25% cannot be refused at the start: the container may become smaller.
    return min(soft, hard), hard


def take_reading(processes: Processes, of: Reading, exactly: bool, now: int = 0) -> Reading:
    """Measure a process: exactly as its limit counts, or by what that cannot exceed.

    of: another reading of it. now: seconds since the epoch, if the caller knows them: to ask costs
    as much as to judge.
    """
    measure, pid = of.measure, of.process.pid
    rss = processes.rss(pid)
    descendants: Sequence[int] = ()
    if measure.with_tree and rss is not None:
        descendants = tree(processes, pid)[1:]
        rss += sum(filter(None, map(processes.rss, descendants)))
    bound = memory = rss
    unread: tuple[int, ...] = ()
    if measure.fields and rss is not None:
        pids = [pid, *descendants]
        bound = memory = rss + read_swap(pids, measure)
        if exactly:
            memory, unread = measure_exactly(processes, pids, measure)
    return Reading(of.process, of.limit, of.soft, of.hard, measure, rss, bound, memory,
                   now or int(time.time()), exactly or not measure.fields, descendants,
                   unread)


def add_up(of: Reading, readings: Sequence[Reading]) -> Reading:
    """Return the reading of all processes together; of: another one."""
    return of._replace(memory=sum(reading.memory or 0 for reading in readings),
                       is_exact=all(reading.is_exact for reading in readings))


class Course:
    """The memory of a process over time, in points that get fewer as they get older.

    A point stands for a stretch of looks, and is that which showed the most.
    """

    MOST_POINTS = 32

    def __init__(self) -> None:
        self.past: list[tuple[float, int]] = []  # seconds of the monotonic clock, bytes
        self.last = -math.inf, 0
        self.stretch = 1                         # looks
        self.looks = 0

    def add(self, now: float, memory: int) -> None:
        """Add what a look has shown."""
        self.last = now, memory
        if self.looks % self.stretch == 0:
            self.past.append(self.last)
            if len(self.past) == self.MOST_POINTS - 1:
                first, *others = self.past
                self.past = [first, *(max(pair, key=itemgetter(1))
                                      for pair in zip(others[::2], others[1::2]))]
                self.looks = self.stretch  # the last pair is half of a new stretch and this look
                self.stretch *= 2
        elif memory >= self.past[-1][1]:
            self.past[-1] = self.last
        self.looks += 1

    @property
    def points(self) -> list[tuple[float, int]]:
        """The first look, the most of each stretch, and the last look."""
        return self.past + [self.last] * (self.past != [] and self.last != self.past[-1])

    def describe(self, room: float) -> str:
        """Return where it came from and where it goes, when so many bytes are left; or nothing."""
        points = self.points
        if len(points) < 2:
            return ''
        (began, first), (now, last) = points[0], points[-1]
        text = (f'{format_size(first)} -> {format_size(last)} in {format_duration(now - began)}, '
                f'peak {format_size(max(map(itemgetter(1), points)))}')
        then, middle = points[(len(points) - 1) // 2]
        growth = (last - middle) / (now - then) if now > then else 0
        if growth > 0 and 0 < room <= growth * LONGEST_FORECAST_SECS:
            text += (f', growing {format_size(growth * 3600)}/h, reaches its limit in '
                     f'{format_duration(room / growth)}')
        return text

    def draw(self, room: float) -> str:
        """Return the points as block characters, from nothing to the peak, and describe them."""
        sizes = [size for _, size in self.points]
        peak = max(sizes, default=0) or 1
        picture = ''.join('▁▂▃▄▅▆▇█'[min(7, 8 * size // peak)] for size in sizes)
        return f'{picture}  {self.describe(room)}' if len(sizes) > 1 else ''


LONGEST_FORECAST_SECS = 365 * 24 * 60 * 60


class Restart(NamedTuple):
    """A restart by memmon."""

    at: float     # seconds of the monotonic clock
    level: str    # the size of the limit that was exceeded
    is_for_total: bool


class TooLow(NamedTuple):
    """A restart that did not help: the process was over its limit again."""

    since: float  # when that was noticed, by the monotonic clock
    peak: int     # bytes, the most that it used until a minute later


TOO_LOW_SECS = 600    # over its limit again within this time after a restart: it did not help
PEAK_SECS = 60        # for how long after that was noticed the most that it uses is taken
TOO_LOW_GROWTH = 1.5  # how many times its peak it is restarted at again
TOTAL_GROWTH = 0.01   # how much of the limit of the total a process must grow by to be a cause


class History:
    """What is remembered of a process from look to look."""

    def __init__(self, process: Process) -> None:
        # What is to be measured, and for which limit.
        self.blank = Reading(process, NO_LIMIT, math.inf, math.inf, MEASURES['rss'])
        self.pool: tuple[str, ...] = ()
        self.is_blocked = False               # its pool is being restarted, or has lost one
        self.seen_at = 0.0                    # when it was measured last, as are all times below:
        self.over_last = -math.inf            # seconds of the monotonic clock
        self.too_low: dict[str, TooLow] = {}  # by level
        self.restarts: list[Restart] = []
        self.lost: Lost | None = None
        self.restarts_total = 0
        self.failures_total = 0
        self.begin_run(process)

    def begin_run(self, process: Process) -> None:
        """Forget what was true of another run."""
        self.process = process
        self.is_hidden = False                  # it runs, and cannot be measured
        self.reading: Reading | None = None     # the last
        self.course = Course()
        self.rate = 0.0                         # bytes a second, since the look before or its start
        self.over_since = math.inf              # inf: it is not over
        self.part: Reading | None = None        # of the total
        self.total_base: Reading | None = None  # likewise, when that was last within its limit
        self.said: dict[str, float] = {}        # of its excess over its own limit, and when
        self.total_said: dict[str, float] = {}  # likewise over that of the total
        self.wrapper_due = process.start + 10   # seconds since the epoch: look for descendants

    def show(self, process: Process) -> None:
        """Take over what supervisord shows."""
        if process.run != self.process.run:
            self.begin_run(process)
        self.process = process

    def note(self, reading: Reading, now: float) -> None:
        """Remember what a look has shown."""
        before, self.reading = self.reading, reading
        memory, last = reading.memory, self.seen_at
        is_steady = before and before.memory == memory  # as most are
        self.rate = 0.0 if is_steady else growth(before, reading, now - last)
        if memory is None:
            return
        self.seen_at = now
        if reading.is_exact:
            self.course.add(now, memory)
        is_over = memory > reading.soft
        if is_over != (self.over_since < math.inf):
            self.over_since = now if is_over else math.inf
            self.said = {event: at for event, at in self.said.items()
                         if event in (NEAR, HELD)}
        if is_over:
            self.over_last = now
            # The first look after the minute counts as well: a tick is up to a second late.
            self.too_low = {level: too_low._replace(peak=max(too_low.peak, memory))
                            if last < too_low.since + PEAK_SECS else too_low
                            for level, too_low in self.too_low.items()}
        elif self.too_low and now - self.over_last >= TOO_LOW_SECS:
            self.too_low = {}

    def restarts_within(self, secs: float, now: float) -> list[Restart]:
        """Return memmon's restarts within some time, whoever else restarted it in between."""
        return [restart for restart in self.restarts if restart.at > now - secs]

    def was_restarted(self, level: str, for_total: bool, now: float) -> bool:
        """Tell whether it was restarted lately, for its own limit or for the total.

        What was in vain at the soft size is tried once at the hard one.
        """
        return any(restart.is_for_total == for_total and (level == SOFT or restart.level == HARD)
                   for restart in self.restarts_within(TOO_LOW_SECS, now))


def growth(last: Reading | None, reading: Reading, secs: float) -> float:
    """Return by how many bytes a second a process grows; since its start, if it is new."""
    if reading.memory is None or reading.bound is None:
        return 0
    if not last or last.memory is None or last.bound is None:
        return 0 if reading.uptime is None else reading.memory / max(1, reading.uptime)
    if last.is_exact == reading.is_exact:
        return (reading.memory - last.memory) / max(0.001, secs)
    return (reading.bound - last.bound) / max(0.001, secs)


class Lost(NamedTuple):
    """A process that memmon took down and that has not come up again."""

    tried: int    # memmon's last try to start it, by supervisord's clock
    until: float  # monotonic; inf: until it is up, or an operator has stopped or removed it
    said_at: float = -math.inf  # likewise, when that was last reported


def is_lost(history: History, now: float) -> bool:
    """Tell whether a process is still down because of memmon."""
    process, lost = history.process, history.lost
    if not lost or now >= lost.until:
        return False
    if process.state == ProcessStates.RUNNING:  # a broken one may run for some seconds, each time
        return process.start < LAST_SECOND and 0 <= process.now - process.start < FIRST_UP_SECS
    if process.state == ProcessStates.STOPPED and lost.until == math.inf:
        # Not started since memmon stopped it: without its file, no try shows; see NO_FILE.
        return 0 < process.start <= process.stop <= lost.tried
    # A start in the future is an old one: the clock was set back.
    is_restarted = lost.tried < process.start <= process.now
    return not is_restarted or supervisord_goes_on(process)


def supervisord_goes_on(process: Process) -> bool:
    """Tell whether supervisord is about to start, or to stop, a process by itself."""
    if process.state == ProcessStates.EXITED:
        return process.has_ended_within(3)  # then autorestart has started it
    return process.state not in (ProcessStates.STOPPED, ProcessStates.FATAL)


# Verdicts; three of them are events as well.
WITHIN = 'within its limit'
NEAR = 'near limit'                                    # -w
BLOCKED = 'waiting for its pool'
HELD = 'held'                                          # -r
BRIEF = 'over its limit, but not for long enough'      # -f
TOO_LOW = 'limit too low'                              # a restart would not help
DUE = 'to be restarted'
REFUSED = 'refused at '  # before a level: besides the verdicts in what was said of a process


def judge(reading: Reading, history: History, options: Options, now: float,
          total: Reading | None = None) -> str:
    """Return what follows from a reading; with a total, from that of all processes together.

    In this order: a program that has lost a process loses no second one; -r; -f, unless over the
    hard size; a restart that was in vain is repeated only if the process has grown since: for the
    total, since that was last within its limit.
    """
    judged = total or reading
    if judged.memory is None or reading.memory is None:
        return WITHIN
    if judged.memory <= judged.soft:
        is_near = options.warn and judged.memory * 100 >= options.warn * judged.soft
        return NEAR if is_near else WITHIN
    if history.is_blocked:
        return BLOCKED
    times, secs = options.restarts
    if len(history.restarts_within(secs, now)) >= times:
        return HELD
    if total:
        base = history.total_base
        helps = not history.was_restarted(total.level, True, now) or (
            base is not None and growth(base, reading, 1) > TOTAL_GROWTH * total.soft)
    elif reading.level == SOFT and now - min(now, history.over_since) < options.patience:
        return BRIEF
    else:
        helps = reading.memory > size_when_too_low(reading.level, history, now)
    return DUE if helps else TOO_LOW


def size_when_too_low(level: str, history: History, now: float) -> float:
    """Return the bytes that a process must exceed to be restarted at a level; 0 if any will do."""
    too_low = history.too_low.get(level)
    if too_low:
        return math.inf if now < too_low.since + PEAK_SECS else too_low.peak * TOO_LOW_GROWTH
    # With -f, it has been over its limit for some time.
    was_restarted = history.was_restarted(level, False, min(now, history.over_since))
    return math.inf if was_restarted else 0


def next_size(reading: Reading, history: History, options: Options, now: float, waits: bool
              ) -> float:
    """Return the bytes above which a restart would be due that is not now; inf if above none.

    waits: whether something else than the hard size can postpone it.
    """
    sizes = [max(size, size_when_too_low(level, history, now)) for level, size in (
        [(HARD, reading.hard)] if waits else [(SOFT, reading.soft), (HARD, reading.hard)])]
    return min((size for size in sizes if (reading.memory or 0) <= size < math.inf and DUE == judge(
        reading._replace(memory=int(size) + 1), history, options, now)), default=math.inf)


def program_of(process: Process) -> str:
    """Return the name of the program that a process belongs to.

    With numprocs, a number ends the process name or is all of it: queue_00, or 00 in its group.
    http://supervisord.org/configuration.html
    """
    if process.name == process.group:
        return process.name
    if process.name.isdigit():
        return process.group
    return re.sub(r'[-_.][0-9]+$', '', process.name)


def pool_of(process: Process, is_alone: bool, limit: Limit, command: str) -> tuple[str, ...]:
    """Return what the processes have in common of which memmon restarts one at a time.

    Members of one group whose names differ by a number at their end; without a group, programs
    that have one limit and one command as well, but for numbers. is_alone: in its group.
    """
    stem = re.sub(r'[-_.]?[0-9]+$', '', process.name)
    if process.name != process.group or not is_alone:
        return process.group, stem
    return '', stem, limit.given, re.sub('[0-9]+', '0', command)


def names_for(limit: Limit, process: Process) -> list[str]:
    """Return the names by which a limit may mean a process: its own, then its program's."""
    if limit.option == 'groupname':
        return [process.group]
    group = f'{process.group}:' if ':' in limit.pattern else ''
    return [group + process.name, group + program_of(process)]


def covers(limit: Limit, process: Process) -> bool:
    """Tell whether a limit has a name of a process, or a pattern that matches one."""
    return any(name == limit.pattern or fnmatch.fnmatchcase(name, limit.pattern)
               for name in names_for(limit, process))


def find_limit(process: Process, limits: Sequence[Limit]) -> Limit:
    """Return the limit that applies to a process: the most specific, then the first given."""
    return min((limit for limit in limits if covers(limit, process)), default=NO_LIMIT,
               key=lambda limit: (LIMIT_OPTIONS.index(limit.option), [
                   name != limit.pattern for name in names_for(limit, process)]))


def find_unmatched(limits: Sequence[Limit], processes: Sequence[Process]) -> list[Limit]:
    """Return the limits with a name or a pattern that match no process."""
    return [limit for limit in limits if limit.option != 'any'
            and not any(covers(limit, process) for process in processes)]


def explain_unmatched(limit: Limit, processes: Sequence[Process]) -> str:
    """Return a sentence on a limit that matches no process, and what was perhaps meant."""
    line = f'{limit.given} matches no process'
    for option, what in (('groupname', 'group: use -g'), ('program', 'program: use -p')):
        other = limit._replace(option=option)
        if any(limit.pattern in names_for(other, process) for process in processes):
            return f'{line}; {limit.pattern} is a {what}'
    import difflib  # Imported here: costs 130 KB and is rarely needed.
    similar = difflib.get_close_matches(limit.pattern, sorted(
        {name for process in processes for name in names_for(limit, process)}))
    return f'{line}; similar: {", ".join(similar)}' if similar else line


NEGLIGIBLE = 4 * MB  # a shell and a sleep
WHOLE_TREES = ('its section needs killasgroup=true (and stopasgroup=true for a shell, but not for '
               'what stops its workers itself)')


def look_below(processes: Processes, process: Process) -> str:
    """Return a sentence on a process whose descendants use more than itself; else nothing."""
    own, *below = [processes.rss(pid) or 0 for pid in tree(processes, process.pid)]
    if sum(below) <= max(own, NEGLIGIBLE):
        return ''
    return (f'{process.namespec} uses {format_size(own)}, and its descendants use '
            f'{format_size(sum(below))}: add -c to count them as well; {WHOLE_TREES}')


def describe_use(reading: Reading) -> str:
    """Return what a process uses, such as RSS 70.6MB."""
    if reading.memory is None:
        return f'{reading.measure.name} unknown'
    colon = ':' * (' with ' in reading.measure.name)
    most = '' if reading.is_exact else 'at most '
    return f'{reading.measure.name}{colon} {most}{format_size(reading.memory)}'


def describe_sizes(reading: Reading) -> str:
    """Return what the limit comes to, such as 200MB, 200MB..300MB or none."""
    sizes = [format_size(size) for size in (reading.soft, reading.hard) if size != math.inf]
    return '..'.join(sizes) or 'none'


def describe_use_of_limit(reading: Reading) -> str:
    """Return what is used of which limit, such as RSS 70.6MB of 200MB (-a 200MB)."""
    if reading.limit == NO_LIMIT:
        return f'{describe_use(reading)}, no limit'
    return f'{describe_use(reading)} of {describe_sizes(reading)} ({reading.limit.given})'


def describe_excess(reading: Reading) -> str:
    """Return what exceeds which limit, such as RSS 270.6MB is over 200MB (-a 200MB)."""
    size = reading.hard if reading.level == HARD else reading.soft
    return f'{describe_use(reading)} is over {format_size(size)} ({reading.limit.given})'


def describe_cause(reading: Reading, total: Reading | None) -> str:
    """Return why it is this process that is to be restarted."""
    uptime = 'unknown' if reading.uptime is None else format_duration(reading.uptime)
    if not total:
        return f'{describe_excess(reading)}, uptime {uptime}'
    return (f'total {describe_excess(total)}, and {reading.process.namespec} has '
            f'{format_size(reading.memory or 0)}, uptime {uptime}')


# Report: an event, and its three sinks: the log, the mail and the user's command.

class Event(NamedTuple):
    """A row of the table of events."""

    level: int
    subject: str = ''  # of the mail; none: there is none
    command: str = ''  # the event of -o


EVENTS = {
    'restarted': Event(logging.INFO, 'process {} restarted', 'after'),
    'not restarted': Event(logging.INFO),
    'postponed': Event(logging.INFO),
    'postponed for an hour': Event(logging.WARNING, 'restart of process {} postponed', 'held'),
    'failed to stop': Event(logging.ERROR, 'failed to stop process {}', 'failed'),
    'failed to start': Event(logging.ERROR, 'failed to start process {}', 'failed'),
    'gave up starting': Event(logging.ERROR, 'gave up starting process {}', 'failed'),
    'still down': Event(logging.ERROR, 'process {} is still down'),
    'would restart': Event(logging.INFO, 'would restart process {}'),
    'limit too low': Event(logging.WARNING, 'limit of process {} is too low'),
    'total too low': Event(logging.WARNING, 'no restart brings the total below its limit'),
    'held': Event(logging.WARNING, 'process {} held', 'held'),
    'near limit': Event(logging.WARNING, 'process {} is near its limit', 'warn'),
    'tick skipped': Event(logging.ERROR),
    'blind': Event(logging.ERROR, 'nothing could be checked at two ticks in a row'),
    'seen again': Event(logging.INFO, 'processes are checked again'),
}


class Report(NamedTuple):
    """Something to report."""

    event: str                         # a key of EVENTS
    line: str                          # of the log, without the event
    reading: Optional[Reading] = None  # of the process that it is about
    total: Optional[Reading] = None    # where the restart is for its sake
    new_pid: Optional[int] = None      # 0: the process does not run; None: it was not touched
    course: Optional[Course] = None    # of the memory of the process
    command: str = ''                  # the event of -o whose commands a worker runs for it
    about: str = ''                    # the namespec of a process of which there is no reading

    @property
    def namespec(self) -> str:
        return self.reading.process.namespec if self.reading else self.about

    @property
    def text(self) -> str:
        """The line of the log."""
        return one_line(f'{self.event} {self.namespec}'.rstrip() + f': {self.line}')


def say_once(said: set[str], what: str, level: int, line: str) -> None:
    """Log a line unless that was said before."""
    if what not in said:
        said.add(what)
        log.log(level, '%s', line)


def tell(options: Options, report: Report) -> list[Delivery]:
    """Log a report, and return the mail and the user's commands for it: its three sinks.

    A worker has logged what it runs commands for, before their output.
    """
    event, reading = EVENTS[report.event], report.reading
    left = []
    if not report.command:
        log.log(event.level, '%s', report.text)
        left = commands(options, event.command, report)
    is_young = not reading or reading.uptime is None or reading.uptime <= options.uptime
    if options.email and event.subject and (report.event != 'restarted' or is_young):
        left.insert(0, Delivery(options.sendmail_program, bytes(write_mail(options, report)), {}))
    return left


def commands(options: Options, event: str, report: Report) -> list[Delivery]:
    """Return the user's commands for an event of -o."""
    return [Delivery(command, b'', variables(event, report))
            for name, command in options.on if name == event]


class Delivery(NamedTuple):
    """A command of the user's to run, with what it reads from stdin and from its environment."""

    command: str
    text: bytes                  # a mail; empty: it is a command of -o
    variables: Mapping[str, str]


def deliver(*left: Delivery) -> int:
    """Run commands of the user's, log how they fail, and return the last status that was not 0."""
    status = 0
    for delivery in left:
        try:
            run_for_user(*delivery)
        except (OSError, ValueError, CommandError) as error:
            status = getattr(error, 'status', 0) or 1
            event = delivery.variables.get('MEMMON_EVENT', '')
            if event != 'before' or status != os.EX_TEMPFAIL:
                what = f'-o {event} failed' if event else '-s failed, and no mail was sent'
                log.error('the command %s of %s: %s',
                          hide_passwords(one_line(repr(delivery.command))), what, one_line(error))
    return status


def variables(event: str, report: Report) -> dict[str, str]:
    """Return what a command of the user's finds in its environment; sizes are in bytes."""
    reading, total = report.reading, report.total
    assert reading
    soft = math.inf if total else reading.soft
    found = {
        'EVENT': event,
        'PROCESS': reading.process.namespec,
        'GROUP': reading.process.group,
        'NAME': reading.process.name,
        'PID': reading.process.pid,
        'NEW_PID': report.new_pid or '',
        'MEMORY': '' if reading.memory is None else reading.memory,
        'LIMIT': '' if soft == math.inf else int(soft),
        'TOTAL': total.memory if total else '',
        'TOTAL_LIMIT': int(total.soft) if total else '',
        'UPTIME': '' if reading.uptime is None else reading.uptime,
        'REASON': report.text,
    }
    return {f'MEMMON_{name}': str(value).replace('\0', '') for name, value in found.items()}


# Neither base64 nor quoted-printable: readable for any command that -s may name.
UTF_8 = email.charset.Charset('utf-8')
UTF_8.body_encoding = None  # type: ignore[assignment]


def write_mail(options: Options, report: Report) -> email.message.Message:
    """Return the mail about a report."""
    subject = EVENTS[report.event].subject.format(one_line(report.namespec))
    rows = [('host', one_line(socket.gethostname())),
            ('time', f'{datetime.datetime.now().astimezone():%Y-%m-%d %H:%M:%S %z}')]
    reading, new_pid = report.reading, report.new_pid
    if reading:
        judged = report.total or reading
        rows += [
            ('uptime', '' if reading.uptime is None else format_duration(reading.uptime)),
            ('pid' if new_pid is None else 'old pid', str(reading.process.pid)),
            ('new pid', '' if new_pid is None else str(new_pid or 'none')),
            ('memory', describe_use(reading)),
            ('total', describe_use(report.total) if report.total else ''),
            ('limit', describe_sizes(judged)),
            ('set by', judged.limit.given),
            ('course', report.course.draw(reading.room) if report.course else ''),
        ]
    rows.append(('reason', report.text))
    lines = [f'{name}:'.ljust(10) + value for name, value in rows if value]
    mail = email.message.Message()
    mail['To'] = ', '.join(options.email)
    mail['Subject'] = encode_header(f'memmon [{printable(options.name)}]: {subject}'
                                    if options.name else f'memmon: {subject}')
    mail.set_payload('\n'.join([f'memmon: {subject}', '', *lines, '']), UTF_8)
    return mail


def encode_header(text: str) -> str:
    """Return a header that says just this text, without surrogates, and is no more than one.

    Not as email.policy does it: an encoded word in a name would be decoded into new headers.
    """
    if text.isascii() and text.isprintable() and '=?' not in text:
        return text
    return email.header.Header(text, 'utf-8', header_name='Subject').encode()


# Restart: one process, from the last look to the new pid.

SIBLINGS_PATIENCE_SECS = 10  # for a member of the pool that is on its way down or up
SLOW_STOP_SECS = 10          # how long a stop may take before the log says so
DYING_SECS = 1               # for what was signalled with its parent: it may end after it
UP_SECS = 1                  # how long a process must run to be up
FIRST_UP_SECS = 10           # likewise the first of a pool: a broken one may run for some seconds
START_TRIES = 3              # before a failure to start is reported; memmon keeps trying
BACKOFF_SECS = 60            # supervisord's three retries take six, and what the starts take
ORPHAN_PATIENCE_SECS = 600   # how long a worker goes on trying when memmon has gone
LISTENER_PATIENCE_SECS = 10  # how long supervisord's events may wait for a restart

# What is to be done next for a process that memmon has stopped.
WAIT, START, COMING, UP, DOWN, NOTHING = 'wait', 'start', 'coming', 'up', 'down', 'nothing'
# The seconds from the stop, or from the last try, to each try to start it.
PAUSES = {START: (0, 1, 2, 4, 8, 16, 32, 60),  # and so on
          DOWN: (10, 50, 120, 420)}            # then memmon gives up, as supervisord has


class Site(NamedTuple):
    """Where a worker works."""

    options: Options
    server: Server
    supervisord_pid: int
    listener_pid: int
    began: float               # when memmon began, by the monotonic clock
    in_listener: bool = False  # there is no worker: `before` is skipped, waiting is kept short

    def has_gone(self) -> bool:
        """Tell whether the listener has ended: then nothing new is begun."""
        return not self.in_listener and os.getppid() != self.listener_pid


UNDER_WAY = 'under way'  # besides the keys of EVENTS
LOST_EVENTS = ('failed to start', 'gave up starting')


class Done(Exception):
    """How a restart ends: an event, a text, and the pid of the process then, if it is known."""


def reason_of(error: Exception) -> str:
    """Return why something failed, on one line."""
    return one_line(getattr(error, 'faultString', '') or getattr(error, 'strerror', '') or error)


class Job:
    """The restart of a process, or the start of one that memmon has stopped already.

    A worker sends it to the listener at each step, so that another worker can go on with it.
    """

    site: Site
    config: Mapping[str, Any]  # what getAllConfigInfo says of the process; {} where it says nothing

    def __init__(self, history: History, reading: Reading, total: Reading | None,
                 siblings: Sequence[str] = ()) -> None:
        self.history = history
        self.reading = reading                  # the last
        self.total = total                      # likewise, where the restart is for its sake
        self.siblings = siblings                # namespecs of the other members of its pool
        self.up_secs = FIRST_UP_SECS if siblings else UP_SECS  # how long it must run to be up
        self.course = history.course            # of the run that is to be stopped
        self.old = reading.process              # likewise
        # Bytes, without what was being stopped when this process was chosen.
        self.total_memory = total.memory or 0 if total else 0
        self.descendants: dict[int, Stat] = {}  # at the last measurement
        self.deaths = 0                         # of the workers that have tried
        self.befores = 0                        # commands of -o before that have ended
        self.was_run = False                    # one of them, with status 0
        self.stop_requested = False             # by memmon; it is to be started
        self.is_reported = False                # that its start fails
        self.is_done = False
        self.stopped: Process | None = None     # the run that was stopped, or that failed since
        self.is_down = False                    # the run that was to be stopped
        self.since = math.inf                   # the stop, its end, or the last try: monotonic
        self.reached = -math.inf                # when supervisord answered last
        self.is_slow = False                    # its stop, as the log says
        self.tries: collections.Counter[str] = collections.Counter()  # by the step
        self.tried = 0                          # when that was last, by supervisord's clock
        self.runs: dict[tuple[int, int], float] = {}  # that are new, and when each was seen first
        self.why = 'it does not stay up'
        self.remarks: list[str] = []

    @property
    def has_begun(self) -> bool:
        """Whether something was done that has to be brought to its end."""
        return self.stop_requested or self.was_run

    def steps(self, site: Site, config: Mapping[str, Any]) -> Iterator[Report]:
        """Do it; yield what is to be told, when it happens. The last says how it ended.

        In the listener it may end without being done: then it is to be called again.
        """
        self.site, self.config = site, config
        try:
            time.sleep(min(self.deaths, 10))  # what ended the worker may end the next one
            if not self.stop_requested:
                self.look_again()
                if 'before' in dict(site.options.on) and not site.in_listener:
                    yield from self.run_before()
                    self.look_again()
                self.stop_requested = True
                yield self.report(UNDER_WAY)
                self.stop()
                yield self.report(UNDER_WAY)  # another worker is to know which run was stopped
            yield from self.bring_back()
        except Done as done:
            yield self.last_report(*done.args)
        except (Fault, SupervisordError, MeasureError, OSError) as error:
            # Before the stop; after it, that supervisord is shutting down.
            yield self.last_report('not restarted', reason_of(error))

    def report(self, event: str, text: str = '', pid: int | None = None, command: str = ''
               ) -> Report:
        """Return a report on how far it has come."""
        line = describe_cause(self.reading, self.total) + f'; {text}' * bool(text)
        return Report(event, line, self.reading, self.total, pid, self.course, command)

    def last_report(self, event: str, text: str, pid: int | None = None) -> Report:
        """Return the report after which it is done, with the commands that follow `before`."""
        self.is_done = True
        command = 'after' if event == 'restarted' else ''
        if self.was_run and event not in ('restarted', *LOST_EVENTS):
            if pid is None:
                with contextlib.suppress(Fault, SupervisordError):
                    seen = self.site.server.process(self.old.namespec)
                    pid = seen.pid if seen.state in UP_STATES else 0
            command = 'after' if pid else 'failed'
        return self.report(event, text, pid, command)

    # Before the stop.

    def await_siblings(self) -> None:
        """Wait until no other member of the pool is on its way down or up. Raises Done."""
        deadline = time.monotonic() + SIBLINGS_PATIENCE_SECS * (not self.site.in_listener)
        while self.siblings:
            now = time.monotonic()
            is_young = now - self.site.began < ORPHAN_PATIENCE_SECS
            moving = [seen for seen in self.site.server.processes()
                      if seen.namespec in self.siblings and is_moving(seen, is_young)]
            if not moving:
                return
            if now >= deadline:
                raise Done('not restarted', f'{moving[0].namespec} is {moving[0].statename}: '
                           'only one process of a pool is restarted at a time')
            time.sleep(1)

    def look_again(self) -> None:
        """Wait for the pool, and measure once more. Raises Done unless a restart is still due."""
        self.await_siblings()
        total = self.total
        seen = self.site.server.process(self.old.namespec)
        processes, children = find_children(self.site.supervisord_pid)
        if seen.run != self.old.run or seen.state not in UP_STATES or seen.pid not in children:
            raise Done('not restarted', f'it is now {seen.statename}'
                       + f' as pid {seen.pid}' * bool(seen.pid))
        reading = take_reading(processes, self.reading._replace(process=seen), True)
        if total:
            total = add_up(total, [
                take_reading(processes, total._replace(process=ALL._replace(pid=pid)), True)
                for pid in children])
        self.history.is_blocked = False  # its pool is busy with this very job
        verdict = judge(reading, self.history, self.site.options, time.monotonic(), total)
        excess = min(self.total_memory, total.memory or 0) - total.soft if total else 0
        if verdict != DUE or (reading.memory or 0) < excess:
            now = f'total {describe_use(total)}, ' if total else ''
            raise Done('not restarted', f'it is now {now}{describe_use(reading)}')
        if self.site.has_gone():  # asked last: the calls above may have taken seconds
            raise Done('not restarted', 'memmon has been stopped')
        self.reading, self.total = reading, total
        self.descendants = {pid: run for pid in reading.descendants
                            for run in [read_stat(pid)] if run}

    def run_before(self) -> Iterator[Report]:
        """Run the commands of -o before that are left. Raises Done if one asks to wait.

        After that no other is run. Over the hard size none is asked.
        """
        level = (self.total or self.reading).level
        for delivery in commands(self.site.options, 'before', self.report(DUE))[self.befores:]:
            status = deliver(delivery)
            if status == os.EX_TEMPFAIL and level != HARD:
                raise Done('postponed', 'a before command asked to wait')
            self.befores += 1
            self.was_run = self.was_run or status == 0
            yield self.report(UNDER_WAY)

    def stop(self) -> None:
        """Have supervisord stop the process. Raises Done if it refuses.

        The process may have ended just now: then its successor was stopped.
        """
        try:
            self.stopped = seen = self.site.server.stop(self.old.namespec)
        except Fault as fault:
            is_down = fault.faultCode in (Faults.NOT_RUNNING, Faults.BAD_NAME)
            raise Done('not restarted' if is_down else 'failed to stop',
                       reason_of(fault)) from None
        except Exception as error:  # whatever it is, the process may have been stopped
            log.debug('%s: the answer to the stop is lost: %s', self.old.namespec, reason_of(error))
            return
        if seen.run != self.old.run:
            self.descendants = {}
            self.remarks.append('it had ended just before' + (
                f'; its successor, pid {seen.pid}, was stopped' if seen.pid else ''))

    # After the stop.

    def bring_back(self) -> Iterator[Report]:
        """Start the process, until it is up, or given up, or somebody else's: raises Done.

        One loop: look what supervisord shows, and do the next step.
        """
        resumed = attended = time.monotonic()
        self.since = min(self.since, resumed)
        while True:
            now = time.monotonic()
            try:
                seen = self.site.server.process(self.old.namespec)
                self.reached = now
                is_failing = self.take_step(seen, now)
            except ShuttingDown:
                raise
            except (Fault, SupervisordError, OSError) as error:
                if isinstance(error, Fault) and error.faultCode == Faults.BAD_NAME:
                    raise Done('not restarted', 'supervisord no longer knows it', 0) from None
                if not is_alive(self.site.supervisord_pid):
                    raise Done('not restarted', 'supervisord has ended', 0) from None
                self.why = reason_of(error)
                is_failing = now - max(self.since, self.reached) >= BACKOFF_SECS
            if is_failing and not self.is_reported:
                self.is_reported = True
                yield self.report('failed to start', f'{self.why}; memmon keeps trying' + (
                    '; until it is up, no other process of its pool is touched'
                    if self.siblings else ''), 0)
            if not self.site.has_gone():
                attended = now
            elif now - attended >= ORPHAN_PATIENCE_SECS:
                raise Done('gave up starting', self.why, 0)
            if self.site.in_listener and now - resumed >= LISTENER_PATIENCE_SECS:
                return
            age = now - resumed
            time.sleep(min(0.1 + age / 10, 1 if age < BACKOFF_SECS else 5))

    def take_step(self, seen: Process, now: float) -> bool:
        """Do what is next for a process; tell whether its start fails. Raises Done."""
        step, text = next_step(seen, None if self.tried else self.old.start, self.stopped,
                               self.config.get('exitcodes', [0]))
        if step != WAIT and not self.is_down:  # whoever starts it
            self.is_down = True
            self.end_descendants(seen)
            self.since = now = time.monotonic()
        age = now - self.since
        if step == NOTHING or step == WAIT and text and age >= RPC_TIMEOUT_SECS:
            raise Done('not restarted', text, seen.pid)
        if step == COMING and not text:
            since = self.runs.setdefault(seen.run, now)
            # A process without memory has ended, though supervisord does not know it yet.
            if (seen.state == ProcessStates.RUNNING and now - since >= self.up_secs
                    and PROC_FILES.rss(seen.pid) != 0):
                step = UP
        if step == UP:
            raise Done('restarted', self.describe_new(seen), seen.pid)
        if step == WAIT:
            if not text and age >= SLOW_STOP_SECS and not self.is_slow:
                self.is_slow = True
                log.warning('%s is not down %d seconds after the stop; see stopwaitsecs in its '
                            'section', self.old.namespec, SLOW_STOP_SECS)
            return False
        self.why = text or self.why
        tries = self.tries[step]
        if step == COMING:
            if text and age >= ORPHAN_PATIENCE_SECS:
                raise Done('gave up starting', text, 0)
        elif step == DOWN and (tries == len(PAUSES[DOWN]) or self.site.has_gone()):
            self.tried = seen.now  # a later start is none of supervisord's tries
            raise Done('gave up starting', text, 0)
        elif age >= PAUSES[step][min(tries, len(PAUSES[step]) - 1)]:
            self.tries[step] += 1
            self.since, self.tried, self.stopped = now, seen.now, seen
            self.site.server.start(self.old.namespec)
        return (step == DOWN or step == START and tries >= START_TRIES
                or text != '' and age >= BACKOFF_SECS or len(self.runs) > START_TRIES)

    def describe_new(self, seen: Process) -> str:
        """Return what is to be said of the run that is up now."""
        old = self.reading
        pid = seen.pid or f'none, which has ended with status {seen.exitstatus}'
        text = f'pid {self.old.pid} -> {pid}'
        with contextlib.suppress(MeasureError, OSError):
            if seen.pid:
                processes, _ = find_children(self.site.supervisord_pid)
                new = take_reading(processes, old._replace(process=seen), True)
                text += f', {describe_use(old)} -> {format_size(new.memory or 0)}'
        recent = len(self.history.restarts_within(3600, time.monotonic()))
        if recent:
            text += f', restart {recent + 1} within the hour'
        return '; '.join([text, *self.remarks])

    def end_descendants(self, seen: Process) -> None:
        """End what was measured below the process and outlived its stop.

        Only what is the same run still, in the process group that the stopped process led: it gets
        what stopasgroup and killasgroup would have given it.
        """
        wait_secs = 1 if self.site.in_listener else self.config.get('stopwaitsecs', 10)
        signals = [int(self.config.get('stopsignal', signal.SIGTERM)), signal.SIGKILL]
        if self.stopped and seen.exitstatus == -1 and 'stopwaitsecs' in self.config and (
                seen.stop - self.stopped.now >= wait_secs):
            self.remarks.append(f'killed after stopwaitsecs={wait_secs}')
            signals = [signal.SIGKILL]
        alive = left_of(self.descendants, DYING_SECS)
        mine = {pid: run for pid, run in alive.items() if run.group == self.old.pid}
        if mine:
            log.warning('%s: %s outlived its stop and %s ended by memmon; %s', self.old.namespec,
                        name_pids(mine), 'is' if len(mine) == 1 else 'are', WHOLE_TREES)
        for signum in signals:
            for pid in mine:
                with contextlib.suppress(OSError):
                    os.kill(pid, signum)
            mine = left_of(mine, wait_secs if signum != signal.SIGKILL else 1)
        alive = left_of(alive, 0)
        if self.reading.measure.with_tree:
            stopped = self.stopped.pid if self.stopped else 0
            alive.update(find_group(stopped or self.old.pid))  # maybe never its descendants
        if alive:
            self.remarks.append(f'still alive after the stop: {name_pids(alive)}')


Step = Tuple[Job, Report]  # how far a job has come, and what is to be told


def left_of(runs: Mapping[int, Stat], secs: float) -> dict[int, Stat]:
    """Wait until some processes have ended, for so long at most; return those that have not."""
    deadline = time.monotonic() + secs
    while True:
        left = {pid: run for pid, run in runs.items() if read_stat(pid) == run}
        if not left or time.monotonic() >= deadline:
            return left
        time.sleep(0.1)


def find_group(group: int) -> dict[int, Stat]:
    """Return the running processes of a process group; {} where there is no /proc."""
    pids: list[int] = []
    with contextlib.suppress(OSError):
        pids = [int(pid) for pid in os.listdir('/proc') if pid.isdigit()]
    return {pid: run for pid in pids for run in [read_stat(pid)] if run and run.group == group}


def name_pids(pids: Iterable[int]) -> str:
    """Return the pids of some processes: the first ten, and how many more."""
    pids = sorted(pids)
    more = f' and {len(pids) - 10} more' if len(pids) > 10 else ''
    return f'pid {", ".join(map(str, pids[:10]))}{more}'


def is_moving(seen: Process, is_young: bool) -> bool:
    """Tell whether a process is on its way down or up, or has just been stopped.

    When memmon is young, the worker of the one before may go on with what has failed to start.
    """
    if seen.state == ProcessStates.STOPPED:
        return seen.has_ended_within(3)
    if seen.state in (ProcessStates.FATAL, ProcessStates.BACKOFF):
        return is_young and seen.has_ended_within(ORPHAN_PATIENCE_SECS)
    return seen.state in (ProcessStates.STARTING, ProcessStates.STOPPING)


def next_step(seen: Process, start: int | None, stopped: Process | None,
              exitcodes: Sequence[int]) -> tuple[str, str]:
    """Return what to do about a process as supervisord shows it, and why.

    start: of the run that was to be stopped; None once memmon has tried to start another, which
    may have been in the same second. stopped: the run that was stopped; None if that is not known,
    and any stopped run is started.
    """
    states = ProcessStates
    if seen.state == states.STOPPING:
        return WAIT, ''
    if seen.start == 0:
        return NOTHING, 'supervisord has been reloaded'
    if seen.state == states.STOPPED:
        return (START, '') if not stopped or stopped.start == seen.start else (
            NOTHING, 'someone else has stopped it')
    if seen.start == start:
        return (WAIT, 'the request to stop it was lost') if seen.state in UP_STATES else (
            NOTHING, 'it has ended by itself')
    if seen.state == states.EXITED and seen.exitstatus in exitcodes:
        return UP, ''  # as a queue worker does after so many jobs
    why = f'it is {seen.statename}: {one_line(seen.spawnerr or f"exit status {seen.exitstatus}")}'
    if not supervisord_goes_on(seen):
        return DOWN, why
    return COMING, '' if seen.state in UP_STATES else why


# Workers: a process for each pool, and one for what is delivered.

MAX_YOUNG_WORKERS = 8  # at once, in their first minute: one that waits longer starves nobody
YOUNG_SECS = 60
MAX_WORKERS = 64
MAX_COMMANDS = 8       # that are delivered at once
MAX_MAILS = 16         # likewise, the commands among them, which may hang for minutes


@contextlib.contextmanager
def sigterm_held() -> Iterator[None]:
    """Have SIGTERM wait until what is in the block is done: it would end the listener midway."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])


def fork(pipes: Sequence[int], work: Callable[..., object], *args: Any) -> int:
    """Have a process of its own do some work; return its pid. Raises OSError.

    What kills the whole process group of memmon, or all that is called memmon, leaves it alone.
    pipes: what the listener reads from. Only it may, so that a write fails when it has gone.
    """
    pid = os.fork()
    if pid:
        return pid
    gc.freeze()  # a collection would write to, and so copy, the memory that both share
    try:
        os.setsid()
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
            # A handler, since the user's commands would inherit SIG_IGN.
            signal.signal(signum, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        for pipe in pipes:
            os.close(pipe)
        work(*args)
        os._exit(0)
    except BaseException as error:
        log.error('a worker failed: %s: %s', type(error).__name__, one_line(error),
                  exc_info=log.isEnabledFor(logging.DEBUG))
    finally:
        os._exit(1)


def work_on_pool(jobs: Sequence[Job], site: Site, writer: int) -> None:
    """Restart the processes of a pool one after the other: the work of a worker."""
    configs = site.server.configs()
    for number, job in enumerate(jobs):
        for report in job.steps(site, configs.get(job.old.namespec, {})):
            send_step(writer, number, job, report)
        deliver(*commands(site.options, report.command, report))
        if report.event in LOST_EVENTS:
            return  # the others of the pool are left alone
        if report.event == 'restarted' and report.new_pid:  # what has ended since proves little
            for other in jobs:
                other.up_secs = UP_SECS


def send_step(writer: int, number: int, job: Job, report: Report) -> None:
    """Write a step of a job to the listener; where that has gone, report it here."""
    if not job.stop_requested:
        report = report._replace(command='')  # the listener logs it, once for each excess
    if report.command:
        log.log(EVENTS[report.event].level, '%s', report.text)  # before what the commands print
    line = binascii.b2a_base64(pickle.dumps((number, job, report)))
    try:
        while line:
            line = line[os.write(writer, line):]  # a signal may end it halfway
    except OSError:
        if report.event in EVENTS:
            deliver(*tell(job.site.options, report))


class Worker:
    """A process that memmon has forked, as the listener sees it."""

    def __init__(self, pid: int, pipe: int, jobs: Sequence[Job]) -> None:
        self.pid = pid
        self.pipe = pipe          # to read from
        self.jobs = list(jobs)    # none: it delivers
        self.began = time.monotonic()
        self.unread = b''

    @property
    def is_failing(self) -> bool:
        """Whether it has reported a failure, and goes on trying."""
        return any(job.is_reported and not job.is_done for job in self.jobs)


class Workers:
    """What is being restarted and delivered, and what waits for it."""

    def __init__(self, said: set[str]) -> None:
        self.said = said                      # see Monitor
        self.workers: list[Worker] = []
        self.queue: list[list[Job]] = []      # a list for each pool
        self.deliveries: list[Delivery] = []  # that wait

    def jobs(self) -> list[Job]:
        """Return all jobs that are under way or wait."""
        return [job for jobs in [*(worker.jobs for worker in self.workers), *self.queue]
                for job in jobs]

    def add(self, jobs: Sequence[Job]) -> None:
        """Have processes restarted, those of a pool one after the other."""
        pools: dict[tuple[str, ...], list[Job]] = {}
        for job in jobs:
            pools.setdefault(job.history.pool, []).append(job)
        self.queue += pools.values()

    def start_some(self, site: Site) -> list[Step]:
        """Start what waits, as many as may work at once; return what the listener did itself."""
        self.deliveries.sort(key=lambda delivery: not delivery.text)
        while self.deliveries and sum(not worker.jobs for worker in self.workers) < (
                MAX_MAILS if self.deliveries[0].text else MAX_COMMANDS) and (
                self.start(self.deliveries, deliver)):
            pass
        while self.queue:
            young = [worker for worker in self.workers if worker.jobs and not worker.is_failing
                     and time.monotonic() - worker.began < YOUNG_SECS]
            if not self.queue[0][0].has_begun and (
                    len(young) >= MAX_YOUNG_WORKERS or len(self.workers) >= MAX_WORKERS):
                break
            if not self.start(self.queue, work_on_pool, site):
                return self.restart_here(site._replace(in_listener=True))
        return []

    @sigterm_held()
    def start(self, queue: list[Any], work: Callable[..., object], *args: Any) -> bool:
        """Fork a process for the first of a queue, and take it off; tell whether it was possible.

        Its end shows at the reader of the pipe; work on jobs is given the writer.
        """
        jobs = queue[0] if queue is self.queue else []
        pipes: tuple[int, ...] = ()
        try:
            reader, writer = pipes = os.pipe()
            readers = [reader, *(worker.pipe for worker in self.workers)]
            pid = fork(readers, work, queue[0], *args, *([writer] if jobs else []))
        except OSError as error:
            say_once(self.said, 'cannot fork', logging.WARNING, f'cannot fork ({one_line(error)}): '
                     'memmon restarts one process at a time by itself')
            for pipe in pipes:
                os.close(pipe)
            return False
        os.close(writer)
        self.said.discard('cannot fork')
        self.workers.append(Worker(pid, reader, jobs))
        queue.pop(0)
        return True

    def restart_here(self, site: Site) -> list[Step]:
        """Go on with the first restart of the queue in the listener itself, for ten seconds."""
        job, *others = self.queue[0]
        found = [(job, report._replace(command='')) for report in job.steps(site, {})]
        if job.is_done:
            left = [] if found[-1][1].event in LOST_EVENTS else others
            self.queue[:1] = [left] if left else []
        elif job.is_reported:  # it lets the others go first
            self.queue.append(self.queue.pop(0))
        return found

    @sigterm_held()
    def collect(self, ready: Iterable[int]) -> list[Step]:
        """Return what the workers whose pipes are ready have written; replace what was killed."""
        found = []
        for worker in [worker for worker in self.workers if worker.pipe in ready]:
            data = os.read(worker.pipe, 65536)
            *lines, worker.unread = (worker.unread + data).split(b'\n')
            for line in lines:
                number, job, report = pickle.loads(binascii.a2b_base64(line))
                job.history = worker.jobs[number].history  # the worker has a copy
                worker.jobs[number] = job
                found.append((job, report))
            if data:
                continue
            self.workers.remove(worker)
            os.close(worker.pipe)
            os.waitpid(worker.pid, 0)
            left = [job for job in worker.jobs if job.has_begun and not job.is_done]
            if left:
                log.warning('the worker for %s ended too early: another one goes on',
                            left[0].old.namespec)
                left[0].deaths += 1
                self.queue.insert(0, left)
        return found


def wait_readable(descriptors: Sequence[int], timeout_secs: float | None) -> list[int]:
    """Wait until one of some descriptors can be read; return those that can."""
    with selectors.PollSelector() as selector:
        for descriptor in descriptors:
            selector.register(descriptor, selectors.EVENT_READ)
        return [key.fd for key, _ in selector.select(timeout_secs)]


# Listen: from an event to what follows.

HIDDEN = ('it is hidden from this user (hidepid), or supervisord is in another PID namespace or '
          'on another machine')


class Monitor:
    """supervisord's processes, each with its History, and one look after the other."""

    def __init__(self, options: Options, server: Server) -> None:
        self.options = options
        # Where workers work; supervisord's pid is 0 before the first look.
        self.site = Site(options, server, 0, os.getpid(), time.monotonic())
        self.itself: set[int] = set()              # the pids of memmon and of what started it
        self.processes: Processes = PROC_FILES     # of this machine, as of the last look
        self.children: frozenset[int] = frozenset()  # of supervisord, as are the next
        self.named: frozenset[int] | None = None   # those whose names are known; None: ask
        self.histories: dict[str, History] = {}    # of all but memmon, by namespec
        self.running: list[History] = []           # those of them that can be measured
        self.unmatched: list[Limit] = []           # the limits that match no process
        self.total = History(ALL)
        self.machine = 0                           # bytes; what percentages refer to
        self.said: set[str] = set()                # of no single process; see History for those
        self.looks = 0                             # between ticks
        self.uses_percent = any(limit.soft.percent or limit.hard.percent
                                for limit in options.all_limits)
        self.counts_always = bool(options.metrics or options.warn or options.check)
        measure = MEASURES[options.kind]
        self.measure = measure if not options.cumulative else measure._replace(
            name=f'{measure.name} with descendants', with_tree=True)

    @property
    def hidden(self) -> list[str]:
        """The namespecs of the processes that run and cannot be measured."""
        return [namespec for namespec, history in self.histories.items() if history.is_hidden]

    def look(self, now: float) -> None:
        """Measure each process that has a limit, for --check and metrics all, and the total.

        supervisord is asked only if its children are not those of the last look. Raises
        MeasureError, Fault, SupervisordError.
        """
        if not self.site.supervisord_pid:
            self.site = self.site._replace(supervisord_pid=self.site.server.pid())
        self.processes, self.children = find_children(self.site.supervisord_pid)
        if self.children != self.named or any(history.lost or history.is_hidden
                                              for history in self.histories.values()):
            self.name_children(now)
        elif self.uses_percent and read_machine_memory() != self.machine:
            self.resolve_limits()
        options, clock = self.options, int(time.time())
        deadline = math.inf if options.check else time.monotonic() + DEAR_SECS
        histories = [history for history in self.running if history.blank.soft != math.inf
                     or options.check or options.metrics]
        readings = [take_reading(self.processes, history.blank, False, clock)
                    for history in histories]
        if self.measure.fields:
            self.read_exactly(readings, [history.reading for history in histories], deadline)
        for history, reading in zip(histories, readings):
            history.note(reading, now)
            if clock >= history.wrapper_due and not (options.cumulative or options.check):
                self.look_for_wrapper(history)
        if options.total:
            self.look_at_total(options.total, now, deadline)

    def read_exactly(self, readings: list[Reading], last: Iterable[Reading | None],
                     deadline: float) -> None:
        """Read what the limits count, where a bound is a reason for that: the largest first.

        What was not read before the deadline keeps the memory of its last reading; what has none
        comes first at the next look. Log once that what counts cannot be read.
        """
        known = {reading.process.pid: reading.memory for reading in last
                 if reading and reading.is_exact and reading.memory is not None}
        for place, reading in sorted(enumerate(readings), key=lambda pair: (
                pair[1].process.pid in known, -(pair[1].bound or 0))):
            is_counted = self.options.check or reading.limit.option == 'total' or (
                self.counts_always and reading.soft != math.inf)
            if reading.bound is None or not is_counted and reading.bound <= reading.soft:
                continue
            if time.monotonic() >= deadline:
                readings[place] = reading._replace(memory=known.get(reading.process.pid),
                                                   is_exact=True)
                continue
            readings[place] = exact = take_reading(self.processes, reading, True)
            if exact.unread:
                say_once(self.said, 'unread', logging.WARNING,
                         f'the {exact.measure.name} of {exact.process.namespec} cannot be read '
                         f'({name_pids(exact.unread)}): the RSS counts there')

    def look_at_total(self, limit: Limit, now: float, deadline: float) -> None:
        """Measure all processes together, and each as it counts for that."""
        total = self.total
        blank = Reading(ALL, limit, *sizes_of(limit, self.machine),
                        TOTAL_MEASURES[self.options.kind])
        by_pid = {history.process.pid: history for history in self.running}
        readings = [take_reading(self.processes, blank._replace(
            process=by_pid[pid].process if pid in by_pid else ALL._replace(pid=pid)), False)
            for pid in self.children]
        whole = add_up(blank, readings)
        if whole.level or self.counts_always:
            self.read_exactly(readings, [history.part for history in self.running], deadline)
            whole = add_up(blank, readings)._replace(is_exact=True)
        secs = now - total.seen_at
        total.note(whole, now)
        total.rate = 0.0  # of all that grow: one that ends makes the others no slower
        for reading in readings:
            history = by_pid.get(reading.process.pid)
            if history:
                total.rate += max(0.0, growth(history.part, reading, secs))
                if not whole.level:
                    history.total_base, history.total_said = reading, {}
                history.total_base = history.total_base or reading
                history.part = reading

    def look_for_wrapper(self, history: History) -> None:
        """Log once if a process is small and its descendants are large.

        They may come late: so it is looked at when it is 10, 100, 1,000 ... seconds old.
        """
        process = history.process
        history.wrapper_due = process.start + 10 * (history.wrapper_due - process.start)
        sentence = look_below(self.processes, process) if history.blank.limit != NO_LIMIT else ''
        if sentence:
            say_once(self.said, process.namespec, logging.WARNING, sentence)

    def name_children(self, now: float) -> None:
        """Ask supervisord which of its children is which process, and find their limits.

        Known by name is what was there before the question and after it.
        """
        hidden: dict[str, tuple[int, int]] = {}
        for is_second in (False, True):  # if a process seems to be hidden: it may just have ended
            before, known = self.children, self.site.server.processes()
            self.processes, self.children = find_children(self.site.supervisord_pid)
            missing = {process.namespec: process.run for process in known
                       if process.state == ProcessStates.RUNNING
                       and (process.pid not in self.children
                            or self.processes.rss(process.pid) is None)}
            # What has ended does not show with the same pid again; what ends now is missing anew.
            hidden = dict(missing.items() & hidden.items()) if is_second else missing
            if not hidden:
                break
        # supervisord's variables in the environment do not tell: a shell may have removed them.
        self.itself = self.itself or {
            pid for pid in self.children if os.getpid() in tree(self.processes, pid)}
        own_groups = {process.group for process in known if process.pid in self.itself}
        others = [process for process in known if process.group not in own_groups]
        is_young = now - self.site.began < ORPHAN_PATIENCE_SECS
        is_first = 'watching' not in self.said
        old, self.histories = self.histories, {}
        news: list[str] = []
        for process in others:
            history = old.get(process.namespec) or History(process)
            self.histories[process.namespec] = history
            history.show(process)
            if process.namespec in hidden and not history.is_hidden:
                news.append(f'{process.namespec} (pid {process.pid})')
            history.is_hidden = process.namespec in hidden
            history.blank = history.blank._replace(limit=find_limit(process, self.options.limits))
            history.lost = find_lost(history, is_first, is_young, now)
        self.resolve_limits()
        if self.histories.keys() != old.keys():
            self.find_pools()
        if is_first:
            watched = sum(is_watched(history, self.options) for history in self.histories.values())
            say_once(self.said, 'watching', logging.INFO, f"watching {watched} of supervisord's "
                     f'{len(known)} processes: {self.options.given}')
        before_that, self.unmatched = self.unmatched, find_unmatched(self.options.limits, others)
        for limit in self.unmatched:
            if limit not in before_that:
                log.warning('%s', explain_unmatched(limit, others))
        if news:
            log.warning('cannot measure %s: %s', ', '.join(news), HIDDEN)
        self.named = before & self.children
        self.running = [history for history in self.histories.values()
                        if history.process.pid in self.named]

    def resolve_limits(self) -> None:
        """Find out what the limits come to: a container can be resized."""
        self.machine = read_machine_memory() if self.uses_percent else 0
        for history in self.histories.values():
            limit = history.blank.limit
            history.blank = Reading(history.process, limit, *sizes_of(limit, self.machine),
                                    self.measure)

    def find_pools(self) -> None:
        """Find out which processes are restarted one at a time."""
        groups = collections.Counter(history.process.group for history in self.histories.values())
        # To ask for the commands takes time, and only names that differ by a number need them.
        stems = {re.sub(r'[-_.]?[0-9]+$', '', group) for group in groups}
        configs = self.site.server.configs() if len(stems) < len(groups) else {}
        for namespec, history in self.histories.items():
            is_alone = groups[history.process.group] == 1
            command = str(configs.get(namespec, {}).get('command', ''))
            history.pool = pool_of(history.process, is_alone, history.blank.limit, command)


def is_watched(history: History, options: Options) -> bool:
    """Tell whether memmon may have to restart a process."""
    limit = history.blank.limit
    return options.total is not None if limit == NO_LIMIT else limit.soft != NO_SIZE


def find_lost(history: History, is_first: bool, is_young: bool, now: float) -> Lost | None:
    """Return what is known of a process that is down because of memmon, or of the one before.

    The worker of the one before may be about to bring it back, or give it up while this is young.
    """
    process, lost = history.process, history.lost if is_lost(history, now) else None
    is_broken = process.state in (ProcessStates.FATAL, ProcessStates.BACKOFF)
    if lost and lost.until == math.inf or not (is_first or is_young and is_broken):
        return lost
    has_ended = process.has_ended_within(ORPHAN_PATIENCE_SECS)
    if process.state == ProcessStates.STOPPING or (
            process.state == ProcessStates.STOPPED and has_ended):
        return Lost(process.start, now + ORPHAN_PATIENCE_SECS)
    return Lost(process.now, math.inf) if is_broken and has_ended else None


class HeaderError(Exception):
    """A header that cannot be read: from here on nobody knows where the next event begins."""


def read_event(stdin: TextIO) -> str | None:
    """Return the name of the next event; None at the end of stdin. Raises HeaderError."""
    # See http://supervisord.org/events.html#event-listener-notification-protocol
    header = stdin.readline()
    if not header.endswith('\n'):
        return None
    # Not childutils.get_headers: it fails at a space or a colon in supervisord's identifier.
    tokens = dict(token.partition(':')[::2] for token in header.split())
    if not ('eventname' in tokens and re.fullmatch('[0-9]{1,15}', tokens.get('len', ''))):
        raise HeaderError(f'this is no header of an event: {one_line(header[:200])}')
    length = int(tokens['len'])  # in characters: supervisord takes it before it encodes the payload
    return tokens['eventname'] if len(stdin.read(length)) == length else None


def explain_verdict(event: str, history: History, reading: Reading, total: Reading | None,
                    options: Options, now: float) -> str:
    """Return the sentences on a verdict that is no restart."""
    cause = describe_cause(reading, total)
    if event == NEAR:
        course = history.course.describe(reading.room)
        return (f'{describe_use_of_limit(reading)}, {reading.share or 0:.0%}'
                + f'; {course}' * bool(course))
    if event == HELD:
        times, secs = options.restarts
        return (f'{cause}; memmon has restarted it {times} time{"s" * (times != 1)} within '
                f'{format_duration(secs)}: it is left running')
    if event == TOO_LOW:
        ago = format_duration(now - history.restarts[-1].at) if history.restarts else 'soon'
        return (f'{cause}; it is over its limit again {ago} after a restart: raise the limit if '
                'the program needs that much; memmon restarts it again when it has grown by half'
                + ', or is over its hard size' * (
                    reading.hard < math.inf and size_when_too_low(HARD, history, now) == 0))
    return cause


# What is said if no event comes, and after how many seconds: with TICK_3600 it takes an hour.
NO_EVENT = (
    (120, logging.INFO, 'no TICK yet: normal with TICK_3600, else check that the section is an '
     '[eventlistener:x]'),
    (3660, logging.WARNING, 'no TICK for an hour: check that the section is an [eventlistener:x] '
     'with events=TICK_60'),
)
# Between two looks there are at least so many seconds, and so many times the CPU time of the last
# look; half of both where the total grows, since at its limit the kernel may kill.
LOOK_SECS = 1
LOOK_SHARE = 100
END_SECS = 0.5  # what was killed as stdin was closed may not have ended yet
HOUR = 3600
DAY = 24 * HOUR


class Listener:
    """The event listener: one event after the other, and looks in between."""

    def __init__(self, options: Options, server: Server) -> None:
        self.options = options
        self.monitor = Monitor(options, server)
        self.workers = Workers(self.monitor.said)
        self.tick_secs = 0.0                  # that the last tick took, with its metrics
        self.blind_ticks = 0                  # in a row
        self.interval = 0                     # seconds between two ticks; 0: none has come
        self.last_tick = time.monotonic()
        self.look_at = math.inf               # when to look before the next tick
        self.no_event = list(NO_EVENT)        # what is left to be said of that
        self.has_blocked = False              # some pool was blocked at the last look

    def serve(self, stdin: TextIO, stdout: TextIO) -> None:
        """Answer supervisord's events until it closes stdin. Raises HeaderError, OSError."""
        while True:
            childutils.listener.ready(stdout)
            self.wait(stdin.fileno())
            event = read_event(stdin)
            if event is None:
                break
            self.no_event = []
            if re.fullmatch('TICK_[0-9]+', event):
                self.interval = int(event[len('TICK_'):])
                self.last_tick = time.monotonic()
                self.look(is_tick=True)
            else:
                say_once(self.monitor.said, 'no TICK', logging.WARNING, f'{one_line(event)} is not '
                         'a TICK event; memmon acts on TICK events only, such as events=TICK_60')
            childutils.listener.ok(stdout)

    def wait(self, stdin: int) -> None:
        """Take in what the workers write, and look when that is due, until there is an event."""
        while True:
            if done_here := self.workers.start_some(self.monitor.site):
                self.take(done_here)
            pipes = [worker.pipe for worker in self.workers.workers]
            ready = wait_readable([stdin, *pipes], self.secs_to_wait())
            if ready and ready != [stdin]:
                self.take(self.workers.collect(ready))
            if stdin in ready:
                return
            now = time.monotonic()
            if now >= self.look_at:
                self.look(is_tick=False)
            if self.no_event and now - self.last_tick >= self.no_event[0][0]:
                _, level, line = self.no_event.pop(0)
                log.log(level, '%s', line)

    def secs_to_wait(self) -> float | None:
        """Return for how long to wait for an event; None: as long as it takes."""
        now = time.monotonic()
        times = [self.look_at]
        if self.workers.queue or self.workers.deliveries:
            times.append(now + 1)  # for a place, or for a fork that succeeds
        if self.no_event:
            times.append(self.last_tick + self.no_event[0][0])
        return None if min(times) == math.inf else max(0, min(times) - now)

    def look(self, is_tick: bool) -> None:
        """Look at the processes, judge, and have restarted what is to be restarted."""
        now, used = time.monotonic(), time.process_time()
        failure: Exception | None = None
        if not is_tick:
            self.monitor.looks += 1
            log.debug('a look between two ticks')
        try:
            self.monitor.look(now)
            if not self.monitor.running and self.monitor.hidden:
                raise MeasureError(f'no process can be measured: {HIDDEN}')
            self.workers.add(self.judge_all(is_tick, now))
        except (MeasureError, SupervisordError, Fault) as error:
            failure = error
        except Exception as error:  # a tick survives anything
            failure = MeasureError(f'{type(error).__name__}: {one_line(error)}')
            log.debug('a look has failed', exc_info=error)
        if is_tick and (failure or self.blind_ticks):
            self.say_blind(failure)
        self.plan_look(time.monotonic(), time.process_time() - used)
        if is_tick and self.options.metrics:
            write_metrics(Tick(self.monitor, self.interval, not failure, self.tick_secs))
            self.tick_secs = time.monotonic() - now

    def judge_all(self, is_tick: bool, now: float) -> list[Job]:
        """Report what follows from all readings; return what is to be restarted."""
        self.find_blocked(now)
        is_verbose = log.isEnabledFor(logging.DEBUG)
        due = []
        for history in self.monitor.running:
            reading = history.reading
            if not reading:
                continue
            if is_verbose:
                log.debug('%s: %s', reading.process.namespec, describe_use_of_limit(reading))
            verdict = judge(reading, history, self.options, now)
            if verdict != WITHIN and self.conclude(history, reading, None, verdict, is_tick, now):
                due.append(Job(history, reading, None, self.siblings(history)))
        # What is restarted may bring the total down; but not what is postponed.
        total = self.monitor.total.reading
        if total and total.level and all(
                'postponed' in job.history.said and job.reading.level == SOFT
                for job in due):
            chosen = self.judge_total(total, due, is_tick, now)
            if chosen:
                due = [job for job in due if job.history is not chosen.history] + [chosen]
        return due

    def siblings(self, history: History) -> list[str]:
        """Return the namespecs of the other members of a process's pool."""
        return [namespec for namespec, other in self.monitor.histories.items()
                if other.pool == history.pool and other is not history]

    def find_blocked(self, now: float) -> None:
        """Find out which pools are being restarted, or have lost a process: report it each day."""
        histories = self.monitor.histories.values()
        lost = [history for history in histories if history.lost]
        busy = {job.history.pool for job in self.workers.jobs()}
        pools = {history.pool for history in lost} | busy
        if pools or self.has_blocked:
            for history in histories:
                history.is_blocked = history.pool in pools
        self.has_blocked = bool(pools)
        for history in lost:
            process, known = history.process, history.lost
            if not known or known.until < math.inf or now - known.said_at < DAY:
                continue
            history.lost = known._replace(said_at=now)
            if known.said_at > -math.inf:
                spawnerr = f': {process.spawnerr}' * bool(process.spawnerr)
                self.report(Report('still down', f'it is {process.statename}{spawnerr}; no other '
                                   'process of its pool is touched', about=process.namespec))
            elif history.pool not in busy and self.siblings(history):
                log.info('%s is %s: until it is up, no other process of its pool is touched',
                         process.namespec, process.statename)

    def conclude(self, history: History, reading: Reading, total: Reading | None, verdict: str,
                 is_tick: bool, now: float) -> bool:
        """Report a verdict, unless that was done; tell whether to restart the process now.

        What was refused before is tried again at ticks, and once when it is over its hard size.
        """
        said = history.total_said if total else history.said
        if verdict in (BRIEF, TOO_LOW, DUE):  # which says that -r no longer holds it
            said.pop(HELD, None)
        event = 'would restart' if verdict == DUE and self.options.dry_run else verdict
        if total and verdict in (NEAR, TOO_LOW) or verdict == TOO_LOW and history.too_low:
            event = ''
        if verdict == TOO_LOW and not total:
            history.too_low.setdefault(reading.level, TooLow(now, reading.memory or 0))
        if event in EVENTS and event not in said:
            said[event] = now
            text = explain_verdict(event, history, reading, total, self.options, now)
            self.report(Report(event, text, reading, total, course=history.course))
        refused = REFUSED + (total or reading).level
        return verdict == DUE and not self.options.dry_run and (
            is_tick or refused not in {*history.said, *history.total_said})

    def judge_total(self, whole: Reading, due: Sequence[Job], is_tick: bool, now: float
                    ) -> Job | None:
        """Return the job for the one process, if any, that is why the total is over its limit.

        The largest; but none that is smaller than the excess, whose restart cannot help enough.
        due: what is restarted for its own limit.
        """
        history, options = self.monitor.total, self.options
        total = self.without_stopping(whole, now)
        if not total or judge(total, history, options, now) == BRIEF:
            return None
        candidates = [(other, other.part) for other in self.monitor.running
                      if other.part and (other.part.memory or 0) >= -total.room
                      and is_watched(other, options)]
        candidates.sort(key=lambda pair: ('postponed' in pair[0].total_said, pair[1].room))
        for other, part in candidates:
            verdict = judge(part, other, options, now, total)
            if self.conclude(other, part, total, verdict, is_tick, now):
                return Job(other, part, total, self.siblings(other))
            if verdict == DUE and options.dry_run:
                return None
            if verdict == TOO_LOW and now - history.over_since < LOOK_SECS:
                return None  # looks may be too close for growth to show: the next one tells
        if is_tick and 'total too low' not in history.said and not (due or self.workers.jobs()):
            history.said['total too low'] = now
            self.report(Report('total too low', f'total {describe_excess(total)}, but there is '
                               'no process whose restart would help'))
        return None

    def without_stopping(self, total: Reading, now: float) -> Reading | None:
        """Return the total as it will be; None if a restart under way may bring it down.

        Over the hard size memmon waits no longer than ten seconds for each stop.
        """
        memory = total.memory or 0
        for worker in self.workers.workers:
            # Of a job that is done, or whose process has ended, only the start is under way.
            jobs = [job for job in worker.jobs if not job.is_done
                    and job.history.process.run == job.reading.process.run]
            if jobs and not worker.is_failing:
                if total.level != HARD or now - worker.began < SLOW_STOP_SECS:
                    return None
                memory -= sum(job.history.part.memory or 0 for job in jobs
                              if job.stop_requested and job.history.part)
        left = total._replace(memory=memory)
        return left if left.level == total.level else None

    def say_blind(self, failure: Exception | None) -> None:
        """Report a tick that could check nothing, or that memmon sees again."""
        if isinstance(failure, ShuttingDown):
            log.info('tick skipped: %s', failure)
        elif failure:
            self.blind_ticks += 1
            self.report(Report('blind' if self.blind_ticks == 2 else 'tick skipped',
                               reason_of(failure)))
        else:
            if self.blind_ticks > 1:
                self.report(Report('seen again', f'after {self.blind_ticks} ticks'))
            self.blind_ticks = 0

    def report(self, report: Report) -> None:
        """Log something, and have the mail and the user's commands for it delivered."""
        self.workers.deliveries += tell(self.options, report)

    def take(self, steps: Sequence[Step]) -> None:
        """Remember what became of restarts, report it, and look in a second."""
        now = time.monotonic()
        # What had to wait for a pool, or for the total, may go on; but not where ticks have ended,
        # and not where each look is a ps.
        if now <= self.last_tick + 2 * self.interval and self.monitor.processes is PROC_FILES:
            self.look_at = min(self.look_at, now + LOOK_SECS)
        for job, report in steps:
            if report.event == UNDER_WAY:
                continue
            self.monitor.named = None  # whatever the pids say: a pid can come back
            history = self.monitor.histories.get(report.namespec, job.history)
            level = (job.total or job.reading).level
            if report.event == 'restarted':
                kept = history.restarts_within(max(HOUR, self.options.restarts[1]), now)
                history.restarts = [*kept, Restart(now, level, job.total is not None)]
                history.restarts_total += 1
                history.lost = None
            elif report.event in LOST_EVENTS:
                history.failures_total += report.event == 'failed to start' or not job.is_reported
                history.lost = Lost(job.tried or job.reading.process.start, math.inf, now)
            else:
                said = history.total_said if job.total else history.said
                said[REFUSED + (level or SOFT)] = now
                history.failures_total += report.event == 'failed to stop'
                if report.event == 'failed to stop' or not job.stop_requested:
                    self.say_postponed(said, report, now)
                    continue
            self.report(report)

    def say_postponed(self, said: dict[str, float], report: Report, now: float) -> None:
        """Report why a process is still to be restarted: once, and once more after an hour."""
        since = said.setdefault('postponed', now)
        if since == now:
            self.report(report)
        elif now - since >= HOUR and 'postponed for an hour' not in said:
            said['postponed for an hour'] = now
            self.report(report._replace(event='postponed for an hour', command=''))

    def plan_look(self, now: float, cpu_secs: float) -> None:
        """Find out when to look before the next tick: if a limit could be reached before that.

        After half of the time that the growth would take, if it goes on.
        """
        self.look_at = math.inf
        if not self.interval or self.options.dry_run or self.monitor.processes is not PROC_FILES:
            return
        left = self.last_tick + self.interval - now
        least = max(LOOK_SECS, LOOK_SHARE * cpu_secs)
        plans: list[tuple[float, float]] = []  # when something may be due, and when to look
        for history in (*self.monitor.running, self.monitor.total):
            for too_low in history.too_low.values() if history.too_low else ():
                secs = too_low.since + PEAK_SECS - now  # its peak is taken for a minute
                if history.seen_at < too_low.since + PEAK_SECS:
                    plans.append((secs, max(least, secs)))
            # No restart is due below the soft size: most do not come that far.
            if history.rate > 0 and history.reading and history.reading.room < history.rate * left:
                waits = 'postponed' in history.said and 'before' in dict(self.options.on)
                size = next_size(history.reading, history, self.options, now, waits)
                secs = (size - (history.reading.memory or 0)) / history.rate
                shortest = least / 2 if history is self.monitor.total else least
                plans.append((secs, max(shortest, secs / 2)))
        history, total = self.monitor.total, self.monitor.total.reading
        if total and history.rate > 0 and DUE == judge(total, history, self.options, now) and any(
                other.part and judge(other.part, other, self.options, now, total) == TOO_LOW
                for other in self.monitor.running):
            secs = 1.5 * TOTAL_GROWTH * total.soft / history.rate  # until growth tells the cause
            plans.append((secs, max(least / 2, secs)))
        if total and total.level == HARD and self.workers.jobs():
            plans.append((0, least))  # a stop under way is waited for for ten seconds at most
        self.look_at = now + min((wait for secs, wait in plans if secs < left), default=math.inf)

    def end(self) -> None:
        """Start what killed workers, or the listener itself, had stopped."""
        while self.workers.workers and (ready := wait_readable(
                [worker.pipe for worker in self.workers.workers], END_SECS)):
            self.take(self.workers.collect(ready))
        self.workers.queue = [jobs for jobs in self.workers.queue if jobs[0].has_begun]
        while self.workers.queue:
            self.take(self.workers.start_some(self.monitor.site))
        left = self.workers.deliveries
        if left and not self.workers.start([left], lambda left: deliver(*left)):
            deliver(*left)


def warn_of_missing_mailer(command: str) -> None:
    """Log it if the program that sends mail is not there: Debian comes without any."""
    match = re.match(r'\s*([\w./+-]+)(\s|$)', command)
    with contextlib.suppress(OSError, CommandError):
        if match and not run(f'command -v {match.group(1)} || echo', PS_TIMEOUT_SECS).strip():
            log.warning('no mail can be sent: there is no %s; install it, or name another command '
                        'with -s', match.group(1))


def listen(options: Options, server: Server) -> None:
    """Serve supervisord's events until it closes stdin. Raises HeaderError."""
    log.info('memmon %s waits for TICK events: %s', __version__, options.given)
    for sentence in tiny_limits(options):
        log.warning('%s', sentence)
    if options.email:
        warn_of_missing_mailer(options.sendmail_program)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, it hides how commands end
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # but see to what has been stopped
    listener = Listener(options, server)
    # As supervisord writes: UTF-8 in any locale, and a newline alone ends a line. The pipe is
    # broken when it has ended.
    try:
        with contextlib.suppress(BrokenPipeError), \
                open(0, encoding='utf-8', errors='replace', newline='\n', closefd=False) as stdin, \
                open(1, 'w', closefd=False) as stdout:
            listener.serve(stdin, stdout)
    except SystemExit:
        log.info('SIGTERM ends memmon')
    finally:
        signal.signal(signal.SIGTERM, lambda *_: None)  # once is enough
        listener.end()


# Metrics: what Prometheus is told.

PROCESS = 'group', 'process'
# Name (that of a counter ends with _total), labels, help, and how to get the value: from a History
# if there are labels, else from a Tick. None: there is none.
METRICS: tuple[tuple[str, Sequence[str], str, Callable[[Any], float | None]], ...] = (
    ('memmon_process_memory_bytes', (*PROCESS, 'kind'),
     'Memory of a process, as it is compared with its limit.',
     lambda history: history.reading.memory
     if history.reading and history.reading.soft != math.inf else None),
    ('memmon_process_rss_bytes', PROCESS, 'Resident set size of a process.',
     lambda history: history.reading.rss if history.reading else None),
    ('memmon_process_limit_bytes', PROCESS, 'Soft memory limit of a process.',
     lambda history: None if history.blank.soft == math.inf else history.blank.soft),
    ('memmon_process_restarts_total', PROCESS, 'Restarts of a process by memmon.',
     lambda history: history.restarts_total),
    ('memmon_process_restart_failures_total', PROCESS, 'Failed stops and starts of a process.',
     lambda history: history.failures_total),
    ('memmon_process_held', PROCESS, 'Whether -r keeps a process from being restarted.',
     lambda history: HELD in history.total_said
     or HELD in history.said and history.over_since < math.inf),
    ('memmon_process_limit_too_low', PROCESS, 'Whether a restart of the process was in vain.',
     lambda history: bool(history.too_low)),
    ('memmon_process_lost', PROCESS, 'Whether memmon took the process down and it is not up '
     'again.', lambda history: history.lost is not None and history.lost.until == math.inf),
    ('memmon_process_unmeasured', PROCESS, 'Whether a process runs that cannot be measured.',
     lambda history: history.is_hidden),
    ('memmon_check_success', (), 'Whether the last tick could check the processes.',
     lambda tick: tick.is_good),
    ('memmon_last_tick_timestamp_seconds', (), 'When the last tick came.', lambda _: time.time()),
    ('memmon_tick_interval_seconds', (), 'How often ticks come.', lambda tick: tick.interval),
    ('memmon_tick_duration_seconds', (), 'How long the tick before this one took, with the '
     'writing of this file.', lambda tick: tick.duration),
    ('memmon_looks_between_ticks_total', (), 'Looks that did not wait for a tick.',
     lambda tick: tick.monitor.looks),
    ('memmon_total_bytes', (), 'Memory that all processes use.',
     lambda tick: getattr(tick.monitor.total.reading, 'memory', None)),
    ('memmon_total_limit_bytes', (), 'Soft memory limit of all processes together.',
     lambda tick: getattr(tick.monitor.total.reading, 'soft', None)),
)


class Tick(NamedTuple):
    """What a tick has come to: a collector, as prometheus_client calls it."""

    monitor: Monitor
    interval: int    # seconds to the next
    is_good: bool    # whether the processes could be checked
    duration: float  # seconds, of the tick before this one, with the writing of the file

    def collect(self) -> Iterator[Any]:
        """Yield the metrics, as far as there are any."""
        from prometheus_client import core
        yield core.InfoMetricFamily('memmon', 'The version of memmon.', {'version': __version__})
        processes: list[tuple[list[str], Any]] = [
            ([one_line(history.process.group), one_line(history.process.name),
              self.monitor.options.kind], history)
            for history in self.monitor.histories.values()]
        for name, labels, text, value_of in METRICS:
            is_counter = name.endswith('_total')
            kind = core.CounterMetricFamily if is_counter else core.GaugeMetricFamily
            family = kind(name, text, labels=labels)
            for texts, of in processes if labels else [([], self)]:
                value = value_of(of)
                if value is not None:
                    family.add_metric(texts[:len(labels)], value)
            if family.samples:
                yield family


def write_metrics(tick: Any) -> None:
    """Write the file for the textfile collector of node_exporter; log it once if that fails."""
    from prometheus_client import generate_latest
    path, said = tick.monitor.options.metrics, tick.monitor.said
    try:
        replace_file(path, generate_latest(tick))
        said.discard('cannot write')
    except Exception as error:  # the ticks go on
        log.debug('no metrics', exc_info=error)
        say_once(said, 'cannot write', logging.ERROR,
                 f'cannot write {one_line(path)}: {reason_of(error)}')


@sigterm_held()
def replace_file(path: str, content: bytes) -> None:
    """Replace a file, which others may read, in one step. Raises OSError."""
    directory, name = os.path.split(path)
    # Not *.prom, which node_exporter would read; created anew, so that nobody can have planted it.
    descriptor, draft = tempfile.mkstemp('.new', f'.{name}.', directory or '.')
    try:
        with open(descriptor, 'wb') as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), 0o644)
        os.replace(draft, path)
    except OSError:
        os.unlink(draft)
        raise


def read_regular(path: str) -> str:
    """Return a text file; a fifo would be waited for without an end. Raises OSError."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError('it is no regular file')
    with open(path, encoding='utf-8', errors='replace') as file:
        return file.read()


def check_ticks(path: str) -> tuple[bool, str]:
    """Return whether the memmon that writes a file of metrics ticks and sees, and a line on it."""
    try:
        from prometheus_client.parser import text_string_to_metric_families
        samples = {sample.name: sample.value for family in
                   text_string_to_metric_families(read_regular(path)) for sample in family.samples}
        last, interval, success = [samples[f'memmon_{name}'] for name in (
            'last_tick_timestamp_seconds', 'tick_interval_seconds', 'check_success')]
        age = time.time() - last
        # All false for NaN; the clock may have been set back a little.
        if not (0 < interval < 1e9 and -interval < age < 1e12 and success in (0, 1)):
            raise ValueError('its last tick is no time in the past')
    except KeyError as error:
        return False, f'last tick: unknown: {path} has no {error.args[0]}'
    except (OSError, ValueError) as error:
        return False, f'last tick: unknown: {path} cannot be read: {reason_of(error)}'
    line = f'last tick: {format_duration(age)} ago, one is due every {format_duration(interval)}'
    if age > 3 * interval:
        return False, f'{line}: memmon is not ticking'
    if not success:
        return False, f'{line}: memmon ticks, but could check nothing: see its log'
    return True, line


# Check: one look, for a person.

def find_any_server(config: str) -> tuple[Server, str]:
    """Return the server that --config, the environment or supervisorctl's configuration names.

    With it comes the file of a configuration. Raises UsageError.
    """
    if os.environ.get('SUPERVISOR_SERVER_URL') and not config:
        return find_server(os.environ), ''
    from supervisor.options import ClientOptions  # Imported here: costs 0.8 MB.
    client = ClientOptions()
    file = config or client.default_configfile()
    if not file:
        raise UsageError('no supervisord.conf where supervisorctl looks for it: set '
                         'SUPERVISOR_SERVER_URL, such as unix:///var/run/supervisor.sock, or '
                         'give --config')
    client.configfile = file
    try:
        read_regular(file)  # supervisor does not tell why it cannot be read
        client.process_config(do_usage=False)
    except OSError as error:
        raise UsageError(f'cannot read {file}: {reason_of(error)}') from None
    except (ValueError, configparser.Error) as error:
        # What is quoted and more than a name may be a line with a password.
        why = re.sub(r'([\'"])((?:\\.|(?!\1).)*)\1', lambda quoted: quoted.group()
                     if re.fullmatch('[\\w./-]*', quoted.group(2)) else '(not shown)',
                     one_line(error))
        raise UsageError(f'{file}: {why[:300]}; fix it, or set SUPERVISOR_SERVER_URL') from None
    return find_server({
        'SUPERVISOR_USERNAME': client.username or '',
        'SUPERVISOR_PASSWORD': client.password or '',
        **os.environ,
        'SUPERVISOR_SERVER_URL': client.serverurl,
    }), file


def check(options: Options) -> tuple[list[str], int]:
    """Return what --check prints, and its status. Raises UsageError."""
    server, file = find_any_server(options.config)
    is_ticking, ticks = check_ticks(options.metrics) if options.metrics else (True, '')
    monitor = Monitor(options, server)
    log.disabled = True  # what there is to say is in the lines
    try:
        monitor.look(time.monotonic())
    except (Fault, SupervisordError, MeasureError, OSError) as error:
        raise UsageError(reason_of(error) + f' (the URL is that of {file})' * bool(file)
                         + f'; {ticks}' * bool(ticks)) from None
    readings = [history.reading or history.blank._replace(at=history.process.now)
                for history in monitor.histories.values()]
    exempt = {reading.process for reading in readings if is_memmon(reading.process)}
    others = [reading for reading in readings if reading.process not in exempt]
    memmons = [reading._replace(limit=NO_LIMIT, soft=math.inf, hard=math.inf)
               for reading in readings if reading.process in exempt]
    peaks = [(reading, read_status(reading.pids, 'VmHWM')) for reading in others + memmons]
    lines = format_table(peaks, options, shutil.get_terminal_size().columns)
    known = [reading.process for reading in others]
    lines += [explain_unmatched(limit, known) for limit in find_unmatched(options.limits, known)]
    lines += tiny_limits(options)
    if monitor.hidden:
        lines.append(one_line(f'cannot measure {", ".join(monitor.hidden)}: {HIDDEN}'))
    measured = [reading for reading in others if reading.memory]
    lines += filter(None, (explain_tree(monitor.processes, reading, options)
                           for reading in measured))
    if file:
        lines.append(f'supervisord: {show_url(server.url)}, from {file}')
    if not options.all_limits:
        lines += propose_limits(monitor.processes, measured, options)
    total = monitor.total.reading
    if total:
        lines.append(f'total: {describe_use_of_limit(total)}, {total.share or 0:.0%}')
    if ticks:
        lines.append(ticks)
    is_over = any(reading.level for reading in [*others, *filter(None, [total])])
    return lines, 2 if monitor.hidden or not is_ticking else int(is_over)


def explain_tree(processes: Processes, reading: Reading, options: Options) -> str:
    """Return a sentence on a process for which -c or another measure tells more; or nothing."""
    if not options.cumulative:
        return look_below(processes, reading.process)
    if options.kind != 'rss' or len(reading.pids) < 3:
        return ''
    private, unread = measure_exactly(processes, reading.pids, MEASURES['private'])
    if unread or not 0 < 1.5 * private < (reading.rss or 0):
        return ''
    return (f'{reading.process.namespec} shares memory among its {len(reading.pids)} processes: '
            f'with -k private, {format_size(private)} counts')


LEAST_PROPOSED = 32 * MB


def propose_limits(processes: Processes, readings: Sequence[Reading], options: Options
                   ) -> list[str]:
    """Return a paragraph with a limit for each program: half as much again as its peak."""
    with_trees = options.cumulative or any(
        look_below(processes, reading.process) for reading in readings)
    kind = options.kind
    if with_trees and kind == 'rss':
        with contextlib.suppress(ValueError):
            kind = parse_measure('private')
    measure = MEASURES[kind]._replace(with_tree=with_trees)
    needs: dict[tuple[str, str], float] = {}  # bytes, by program and group
    for reading in readings:
        measured = take_reading(processes, reading._replace(measure=measure), True)
        rss, memory = measured.rss or 0, measured.memory or 0
        if rss:
            # What is swapped out is in the memory, but not in the RSS.
            peak = max(read_status(measured.pids, 'VmHWM'), rss) * min(1, memory / rss)
            key = program_of(reading.process), reading.process.group
            needs[key] = max(needs.get(key, 0), peak, memory)
    if not needs:
        return []
    programs = [program for program, _ in needs]
    sizes = {program if programs.count(program) == 1 else f'{group}:{program}':
             round_up(max(1.5 * need, LEAST_PROPOSED)) for (program, group), need in needs.items()}
    words = [shlex.quote(os.path.abspath(sys.argv[0])), *['-c'] * with_trees,
             *[f'-k {kind}'] * (kind != 'rss'),
             *(f'-p {shlex.quote(f"{name}={size}")}' for name, size in sorted(sizes.items()))]
    lines = ['    ']  # what is indented goes on: a backslash would not do in supervisord.conf
    for word in words:
        if len(lines[-1]) + len(word) > 96 and lines[-1].strip():
            lines.append('      ')
        lines[-1] += word.replace('%', '%%') + ' '
    ages = [reading.uptime for reading in readings if reading.uptime is not None]
    return ['', 'Limits of half as much again as the peaks, ready to paste behind command=:', '',
            *(line.rstrip() for line in lines), '',
            f'The youngest process has been up for {format_duration(min(ages, default=0))}: peaks '
            'mean little until', 'your programs have been through their busiest hours.']


def is_memmon(process: Process) -> bool:
    """Tell whether a process seems to be a memmon, which needs no limit."""
    try:
        words = read_proc(f'/proc/{process.pid}/cmdline').split(b'\0')
    except OSError:
        return False
    if os.path.basename(words[0]).startswith(b'python'):
        words = [word for word in words[1:] if not word.startswith(b'-')]
    return os.path.basename(b''.join(words[:1])) in (b'memmon', b'memmon.py')


def round_up(size: float) -> str:
    """Return a size with two digits that is no less, such as 280MB."""
    size, unit = in_unit(size, 1000)
    step = 10.0 ** (math.floor(math.log10(size)) - 1)
    return f'{round(math.ceil(round(size / step, 6)) * step, 1):.10g}{unit}'


def format_table(peaks: Sequence[tuple[Reading, int]], options: Options, columns: int
                 ) -> list[str]:
    """Return the lines of a table, what uses most of its limit first, then by memory.

    peaks: each with its highest RSS so far, in bytes; 0: not known. With limits, the last column
    is a bar as long as there is room.
    """
    rows = sorted(peaks, reverse=True, key=lambda row: [
        -1 if value is None else value for value in (row[0].share, row[0].memory)])
    heads = ['PROCESS', 'PID', 'UPTIME', options.kind.upper(), 'PEAK', 'LIMIT', 'SET BY', 'USED']
    table = [heads]
    for reading, peak in rows:
        process, memory = reading.process, reading.memory
        peak = max(peak, reading.rss or 0, memory or 0)
        table.append([one_line(cell) for cell in (
            process.namespec,
            process.pid or '-',
            process.statename if not process.pid
            else 'unknown' if reading.uptime is None else format_duration(reading.uptime),
            format_size(memory) if memory is not None else 'unknown' if process.pid else '-',
            format_size(peak) if peak else '-',
            describe_sizes(reading) if reading.limit.given else '-',
            reading.limit.given or 'no option',
            '-' if reading.share is None else f'{reading.share:.0%}',
        )])
    widths = [max(map(len, cells)) for cells in zip(*table)][:None if options.limits else 5]
    lines = ['  '.join(cell.ljust(width) if head in ('PROCESS', 'SET BY') else cell.rjust(width)
                       for head, cell, width in zip(heads, cells, widths)) for cells in table]
    room = columns - len(lines[0]) - 2
    bars = ['#' * int(min(reading.share or 0, 1) * room) for reading, _ in rows]
    return [f'{line}  {bar}'.rstrip() for line, bar in zip(lines, ['', *bars])]


# Main: arguments to exit status.

class OneLineFormatter(logging.Formatter):
    """A formatter of lines: nothing that a message quotes can begin one, or rule a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return ' | '.join(map(printable, super().format(record).split('\n')))


def set_up_logging(is_verbose: bool) -> None:
    """Log to stderr, which may be closed, full or gone."""
    logging.raiseExceptions = False
    handler = logging.StreamHandler(open(2, 'w', errors='backslashreplace', closefd=False))
    handler.setFormatter(OneLineFormatter('%(asctime)s %(levelname)s memmon: %(message)s'))
    log.addHandler(handler)
    log.setLevel(logging.DEBUG if is_verbose else logging.INFO)


def write_stdout(text: str) -> None:
    """Write a text to stdout, quietly if its reader has gone. Raises UsageError."""
    try:
        with contextlib.suppress(BrokenPipeError), \
                open(1, 'w', errors='backslashreplace', closefd=False) as stdout:
            stdout.write(text)
    except OSError as error:
        raise UsageError(f'cannot write to stdout: {error.strerror}') from None


def main() -> int:
    """Run memmon.

    Returns 0 when supervisord has closed stdin or stopped it, 1 if its events cannot be read, 2 if
    memmon cannot start; see check.
    """
    # In place of a closed stdin, stdout or stderr, so that no other file takes it.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    try:
        options = parse_args(sys.argv[1:])
        if options.help:
            write_stdout(format_help())
        elif options.version:
            write_stdout(f'memmon {__version__}\n')
        elif options.check:
            lines, status = check(options)
            write_stdout('\n'.join(map(printable, lines)) + '\n')
            return status
        else:
            server = find_server(os.environ)
            set_up_logging(options.verbose)
            listen(options, server)
        return 0
    except (UsageError, HeaderError) as error:
        with contextlib.suppress(OSError), \
                open(2, 'w', errors='backslashreplace', closefd=False) as stderr:
            stderr.write(f'memmon: {hide_passwords(one_line(error))}\n')
        return 2 if isinstance(error, UsageError) else 1


if __name__ == '__main__':
    sys.exit(main())
