"""memmon is a supervisor event listener. On each TICK event it looks at the
memory (RSS) of supervisord's child processes and restarts those that use more
than they are allowed. supervisord starts it from a section like this:

    [eventlistener:memmon]
    command=memmon -a 200MB -m bob@example.com
    events=TICK_60

Usage: memmon [options]

  -p, --program NAME=SIZE    limit each process of a program; NAME is a program
                             or a namespec, GROUP:NAME
  -g, --groupname NAME=SIZE  limit each process of a group
  -a, --any SIZE             limit every child of supervisord
  -t, --total SIZE           limit all programs together; restart the largest
  -c, --cumulative           count a process together with all its descendants
  -k, --kind KIND            count rss, or pss, which counts shared memory once
                             (default: rss)
  -f, --for DURATION         restart a process only after it has been over
                             its limit for this long
  -r, --restarts N/DURATION  restart a process at most N times in DURATION: 3/1h
  -o, --on EVENT=COMMAND     run COMMAND at an EVENT: before (a restart; exit
                             status 75 puts it off), after, failed, held, warn
  -w, --warn PERCENT         report once when a process reaches PERCENT of its
                             limit
      --dry-run              report what would be restarted; restart nothing
  -m, --email ADDRESS        mail ADDRESS about restarts and failures; separate
                             several with commas, or repeat the option
  -s, --sendmail_program COMMAND
                             pipe mail to COMMAND
                             (default: /usr/sbin/sendmail -t -i)
  -u, --uptime DURATION      mail about a restart only if the process had been
                             up no longer than this
  -n, --name TEXT            put [TEXT] into the subjects of mails
  -v, --verbose              log the memory and limit of each process at each
                             tick
      --metrics FILE         after each tick, write FILE for the textfile
                             collector of Prometheus' node_exporter
      --check                show a table of processes and limits and exit: 0
                             all within their limits, 1 some over, 2 memmon
                             could not check; without limits, propose some; with
                             --metrics, check that memmon is ticking
      --config FILE          with --check: find supervisord by FILE, as
                             supervisorctl -c does
  -h, --help                 show this help and exit
  -V, --version              show the version and exit

SIZE is a number of bytes, or a number with KB, MB, GB or TB, in powers of 1024:
200MB, 1.5GB; or a percentage of the memory of the machine or container: 25%; or
none, to exempt what a wider option covers; or two sizes, 200MB..300MB: over the
first, -f applies; over the second, memmon acts at once. DURATION is a number of
seconds, or a number with s, m, h or d: 90, 5m, 1.5h, 1d. -p and -g can be
repeated. NAME may be a shell pattern: 'queue:*', 'web-?'.

Exactly one limit applies to a process: -p takes precedence over -g, and -g over
-a; an exact name over a pattern; then the first given. memmon never restarts
itself, nor a process that is over its limit as soon as it has been restarted.
"""

from __future__ import annotations

import array
import collections
import configparser
import contextlib
import datetime
import email.charset
import email.header
import email.message
import email.utils
import fnmatch
import functools
import getopt
import http.client
import itertools
import logging
import os
import re
import select
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.parse
from decimal import ROUND_CEILING, Decimal
from types import FrameType
from typing import (Any, Callable, Iterable, Mapping, NamedTuple, Optional, Protocol,
                    Sequence,
                    TextIO, Tuple, get_type_hints)
from xmlrpc.client import Fault, ProtocolError

from supervisor import childutils
from supervisor.states import ProcessStates
from supervisor.xmlrpc import Faults

__version__ = '1.1.0'

log = logging.getLogger('memmon')

PS_TIMEOUT_SECS = 10
RPC_TIMEOUT_SECS = 10
MAIL_TIMEOUT_SECS = 30
COMMAND_TIMEOUT_SECS = 600
KILL_TIMEOUT_SECS = 1


# Values: a string in, a value or a ValueError out; and back, for people to read.

class Rate(NamedTuple):
    """At most so many times within so many seconds."""

    times: int
    secs: int


SIZE_UNITS = {'': 1, 'KB': 2 ** 10, 'MB': 2 ** 20, 'GB': 2 ** 30, 'TB': 2 ** 40}
DURATION_UNITS = {'': 1, 'S': 1, 'M': 60, 'H': 60 * 60, 'D': 24 * 60 * 60}


def parse_quantity(text: str, units: Mapping[str, int]) -> int:
    """Return NUMBER [UNIT] in whole base units, where NUMBER is 90, 1.5 or .5.

    Raises ValueError unless that is 1 or more.
    """
    match = re.fullmatch(r'\s*\+?([0-9]{0,30})(?:\.([0-9]{1,15}))?\s*([A-Za-z]*)\s*', text)
    whole, fraction, unit = match.groups('') if match else ('', '', '')
    digits = whole + fraction or '0'
    quantity: int = int(digits) * units[unit.upper()] // 10 ** len(fraction)
    if quantity < 1:
        raise ValueError
    return quantity


def parse_size(text: str) -> int:
    """Return the bytes of NUMBER[KB|MB|GB|TB], where the B may be left out. Raises ValueError."""
    short_units = {unit[:1]: size for unit, size in SIZE_UNITS.items()}
    try:
        return parse_quantity(text, {**SIZE_UNITS, **short_units})
    except (KeyError, ValueError):
        raise ValueError(f'{text!r} is not a size: give a number of bytes above 0, '
                         'or a number with KB, MB, GB or TB, such as 200MB') from None


def parse_duration(text: str) -> int:
    """Return the seconds of NUMBER[s|m|h|d]. Raises ValueError."""
    try:
        secs = parse_quantity(text, DURATION_UNITS)
        datetime.timedelta(seconds=secs)
        return secs
    except (KeyError, ValueError, OverflowError):
        raise ValueError(f'{text!r} is not a duration: give a number of seconds above 0, '
                         'or a number with s, m, h or d, such as 5m') from None


class Size(NamedTuple):
    """A number of bytes, or a percentage of the memory of the machine or container."""

    size: int  # bytes; 0 if it is a percentage
    percent: float = 0

    def in_bytes(self, machine: int) -> int:
        """Return the size where there are so many bytes of memory."""
        return int(machine * self.percent / 100) if self.percent else self.size


def parse_percent(text: str) -> float:
    """Return the number of NUMBER[%], or NUMBER%% as in supervisord.conf. Raises ValueError."""
    match = re.fullmatch(r'\s*([0-9]{0,3}\.?[0-9]{1,9})\s*%{0,2}\s*', text)
    percent = float(match.group(1)) if match else 0
    if not 0 < percent <= 100:
        raise ValueError(f'{text!r} is not a percentage: give more than 0% and at most 100%')
    return percent


def parse_share(text: str) -> Size:
    """Return the size of SIZE or PERCENT%. Raises ValueError."""
    return Size(0, parse_percent(text)) if '%' in text else Size(parse_size(text))


def parse_sizes(text: str) -> tuple[Size, Size | None]:
    """Return the one or two sizes of SHARE or SHARE..SHARE. Raises ValueError."""
    first, dots, second = text.partition('..')
    if not dots:
        return parse_share(text), None
    size, urgent = parse_share(first), parse_share(second)
    if bool(size.percent) == bool(urgent.percent) and urgent < size:
        raise ValueError(f'{text!r} has its sizes in the wrong order: the second one, at which '
                         'memmon no longer waits, must not be below the first')
    return size, urgent


Sizes = Optional[Tuple[Size, Optional[Size]]]  # None: exempt


def parse_limit(text: str) -> Sizes:
    """Return the sizes of SHARE or SHARE..SHARE, or None for none. Raises ValueError."""
    return None if text.strip().lower() == 'none' else parse_sizes(text)


def parse_name_and_limit(text: str) -> tuple[str, Sizes]:
    """Return the name and the sizes of NAME=LIMIT. Raises ValueError."""
    name, _, limit = text.rpartition('=')
    if not name.strip():
        raise ValueError(f'{text!r} is not NAME=SIZE, such as web=200MB')
    return name.strip(), parse_limit(limit)


def parse_any(text: str) -> tuple[str, Sizes]:
    """Return the pattern of all names, and the sizes of LIMIT. Raises ValueError."""
    return '*', parse_limit(text)


def parse_total(text: str) -> tuple[str, Sizes]:
    """Return no name, and the sizes of SHARE or SHARE..SHARE. Raises ValueError."""
    if text.strip().lower() == 'none':
        raise ValueError("'none' is not a limit for the total: give a size, such as 85%")
    return '', parse_sizes(text)


def parse_kind(text: str) -> str:
    """Return rss or pss. Raises ValueError."""
    kind = text.strip().lower()
    if kind not in ('rss', 'pss'):
        raise ValueError(f'{text!r} is not a kind of memory: give rss, or pss')
    if kind == 'pss' and not os.path.exists('/proc/self/smaps_rollup'):
        raise ValueError('this system does not report PSS: there is no /proc/self/smaps_rollup')
    return kind


def parse_rate(text: str) -> Rate:
    """Return the count and the seconds of COUNT/DURATION. Raises ValueError."""
    count, _, duration = text.partition('/')
    if not re.fullmatch(r'\s*[0-9]{1,9}\s*', count) or not int(count) or not duration:
        raise ValueError(f'{text!r} is not N/DURATION with an N above 0, such as 3/1h')
    return Rate(int(count), parse_duration(duration))


COMMAND_EVENTS = ('before', 'after', 'failed', 'held', 'warn')


def parse_on(text: str) -> tuple[tuple[str, str]]:
    """Return the event and the shell command of EVENT=COMMAND. Raises ValueError."""
    event, _, command = text.partition('=')
    if event.strip() not in COMMAND_EVENTS or not command.strip():
        raise ValueError(f'{text!r} is not EVENT=COMMAND, where EVENT is one of '
                         f'{", ".join(COMMAND_EVENTS)}')
    return ((event.strip(), command),)


def parse_line(text: str) -> str:
    """Return a text that fits on one line. Raises ValueError."""
    if not text.isprintable():
        raise ValueError(f'{text!r} is not one line of text')
    return text


def parse_command(text: str) -> str:
    """Return a command for the shell. Raises ValueError."""
    if not text.strip():
        raise ValueError('the command is empty')
    return text


def parse_file(text: str) -> str:
    """Return the name of a file. Raises ValueError."""
    if not text or '\0' in text:
        raise ValueError(f'{text!r} is not the name of a file')
    return text


def parse_metrics(text: str) -> str:
    """Return the name of a file for metrics. Raises ValueError."""
    try:
        import prometheus_client  # noqa: F401  Imported here: costs 10 MB and is rarely needed.
    except ImportError:
        raise ValueError("this needs prometheus_client: pip install 'memmon[metrics]'") from None
    return parse_file(text)


ADDRESS = r'[!#-\'*+\-./-9=?A-Z^-~]+(@[!#-\'*+\-./-9=?A-Z^-~]+)?'
# Without quotes, a name holds nothing that means something else in a header: RFC 5322, 3.2.3.
NAME = r'("[^"\\]*"\s*|[^"<>,@()\[\]:;\\]*)'
MAILBOX = rf'\s*({ADDRESS}|{NAME}<{ADDRESS}>)\s*'


def parse_addresses(text: str) -> tuple[str, ...]:
    """Return the addresses of MAILBOX[,MAILBOX]..., each ADDRESS or NAME <ADDRESS>.

    Raises ValueError.
    """
    text = parse_line(text).strip(' ,')
    if not re.fullmatch(rf'{MAILBOX}(,{MAILBOX})*', text):
        raise ValueError(f'{text!r} is not an email address, nor several separated by commas')
    return tuple(email.utils.formataddr(pair) for pair in email.utils.getaddresses([text]))


def format_size(size: float) -> str:
    """Return bytes in the largest unit of which there is one or more, such as 212.4MB."""
    unit = ''
    for larger in list(SIZE_UNITS)[1:]:
        if round(size, 1) < 1024:
            break
        size, unit = size / 1024, larger
    return f'{round(size, 1):.10g}{unit}'


def format_duration(secs: float) -> str:
    """Return seconds as supervisorctl shows an uptime, such as 0:12:05."""
    return str(datetime.timedelta(seconds=max(0, int(secs))))


def first_and_last_line(error: object) -> str:
    """Return what an error says on one line: of several lines the first and the last."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return ' ... '.join(lines[:1] + lines[1:][-1:]) or type(error).__name__


# Options: the arguments in, one immutable Options or a UsageError out.

class UsageError(Exception):
    """What keeps memmon from starting, in one line that says what to do."""


class Limit(NamedTuple):
    """The sizes that processes must not exceed, and the option that set them."""

    option: str   # the option's long name: program, groupname, any or total
    pattern: str  # of the names that it covers
    sizes: Sizes
    given: str    # the option as it was given, such as -p web=200MB


class Options(NamedTuple):
    """The command line as parse_args read it."""

    limits: tuple[Limit, ...]
    total: Limit | None
    cumulative: bool
    kind: str
    patience: int  # seconds
    restarts: Rate | None
    on: tuple[tuple[str, str], ...]  # events and commands
    warn: float                      # percent; 0: never
    dry_run: bool
    email: tuple[str, ...]
    sendmail_program: str
    uptime: float  # seconds
    name: str
    verbose: bool
    metrics: str
    check: bool
    config: str
    help: bool
    version: bool


class Option(NamedTuple):
    """A row of the table of options; without a parser it is a flag."""

    letter: str
    name: str
    parse: Callable[[str], Any] | None = None
    default: Any = False
    repeats: bool = False
    field: str = ''  # of Options; if empty, the name


# getopt accepts any unambiguous prefix of a long option, --group and --sendmail among them.
OPTIONS = (
    Option('p', 'program', parse_name_and_limit, default=(), repeats=True),
    Option('g', 'groupname', parse_name_and_limit, default=(), repeats=True),
    Option('a', 'any', parse_any, default=()),
    Option('t', 'total', parse_total, default=()),
    Option('c', 'cumulative'),
    Option('k', 'kind', parse_kind, default='rss'),
    Option('f', 'for', parse_duration, default=0, field='patience'),
    Option('r', 'restarts', parse_rate, default=None),
    Option('o', 'on', parse_on, default=(), repeats=True),
    Option('w', 'warn', parse_percent, default=0),
    Option('', 'dry-run', field='dry_run'),
    Option('m', 'email', parse_addresses, default=(), repeats=True),
    Option('s', 'sendmail_program', parse_command, default='/usr/sbin/sendmail -t -i'),
    Option('u', 'uptime', parse_duration, default=float('inf')),
    Option('n', 'name', parse_line, default=''),
    Option('v', 'verbose'),
    Option('', 'metrics', parse_metrics, default=''),
    Option('', 'check'),
    Option('', 'config', parse_file, default=''),
    Option('h', 'help'),
    Option('V', 'version'),
)
LIMIT_OPTIONS = ('program', 'groupname', 'any')  # the most specific first


def parse_args(argv: Sequence[str]) -> Options:
    """Return the options that the arguments ask for. Raises UsageError."""
    letters = ''.join(option.letter + ':' * bool(option.parse)
                      for option in OPTIONS if option.letter)
    names = [option.name + '=' * bool(option.parse) for option in OPTIONS]
    try:
        pairs, rest = getopt.getopt(list(argv), letters, names)
    except getopt.GetoptError as error:
        raise UsageError(f'{error}; memmon --help lists the options') from None
    if rest:
        hint = ('each NAME=SIZE needs a -p or -g of its own' if '=' in rest[0]
                else 'memmon --help lists the options')
        raise UsageError(f'{rest[0]!r} belongs to no option: {hint}')
    values = {option.name: option.default for option in OPTIONS}
    for flag, text in pairs:
        option = next(option for option in OPTIONS
                      if flag in (f'-{option.letter}', f'--{option.name}'))
        value = parse_value(option, flag, text)
        values[option.name] = values[option.name] + value if option.repeats else value
    limits = (*values['program'], *values['groupname'], *values['any'])
    total = values['total'][0] if values['total'] else None
    is_watching = total or any(limit.sizes for limit in limits)
    if not (is_watching or values['check'] or values['help'] or values['version']):
        raise UsageError('nothing to watch: give a limit with -p, -g, -a or -t, such as -a 200MB; '
                         'see memmon --help')
    if values['config'] and not values['check']:
        raise UsageError('--config goes with --check: supervisord tells a listener where it is')
    fields: dict[str, Any] = {option.field or option.name: values[option.name]
                              for option in OPTIONS}
    fields.update(limits=limits, total=total)
    return Options(**{name: fields[name] for name in Options._fields})


def parse_value(option: Option, flag: str, text: str) -> Any:
    """Return the value of an option as it was given. Raises UsageError."""
    if not option.parse:
        return True
    try:
        value = option.parse(text)
    except ValueError as error:
        raise UsageError(f'{flag}: {error}') from None
    if option.name in (*LIMIT_OPTIONS, 'total'):
        pattern, sizes = value
        return (Limit(option.name, pattern, sizes, f'{flag} {text}'),)
    return value


# Commands: running one, its input, its time limit, its end.

class CommandError(Exception):
    """How a command failed, and its exit status if it had one."""

    def __init__(self, how: str, status: int = 0) -> None:
        super().__init__(how)
        self.status = status


def run(command: str | list[str], timeout_secs: int, text: bytes = b'',
        output: int = subprocess.PIPE, env: Mapping[str, str] | None = None) -> bytes:
    """Run a command with text on its standard input; return what it printed if output is PIPE.

    A string is for the shell. The command gets a session of its own, of which nothing is left
    when time is up, but for what may not be killed. Raises OSError and CommandError.
    """
    child = subprocess.Popen(command, shell=isinstance(command, str), start_new_session=True,
                             stdin=subprocess.PIPE, stdout=output, env=env,
                             stderr=subprocess.DEVNULL if output == subprocess.PIPE else output)
    try:
        printed, _ = child.communicate(text, timeout_secs)
    except subprocess.TimeoutExpired:
        raise CommandError(f'not done after {timeout_secs} seconds, {kill(child)}') from None
    finally:
        for pipe in (child.stdin, child.stdout):
            if pipe:
                pipe.close()
    if child.returncode < 0:
        raise CommandError(f'killed by signal {-child.returncode}')
    if child.returncode:
        raise CommandError(f'exit status {child.returncode}', child.returncode)
    return printed or b''


def kill(child: subprocess.Popen[bytes]) -> str:
    """Kill a child and its session, without waiting for it for ever; return what became of it.

    What another user runs, through sudo, cannot be killed, nor what hangs in the kernel.
    """
    kill_session(child.pid)
    try:
        child.wait(KILL_TIMEOUT_SECS)
        return 'so killed'
    except subprocess.TimeoutExpired:
        return 'and cannot be killed'


def kill_session(session: int) -> None:
    """Kill all processes of a session; where there is no /proc, of its first process group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(session, signal.SIGKILL)
    with contextlib.suppress(FileNotFoundError):
        for pid in map(int, filter(str.isdigit, os.listdir('/proc'))):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if os.getsid(pid) == session:
                    os.kill(pid, signal.SIGKILL)


def run_for_user(command: str, timeout_secs: int, text: bytes = b'',
                 variables: Mapping[str, str] | None = None) -> None:
    """Run a shell command of the user as run does, and copy what it prints to stderr.

    Variables are added to its environment, from which supervisord's password is taken. The copying
    is ours: a command that printed to a stderr which supervisord has closed would be killed by
    SIGPIPE.
    """
    env = {**os.environ, **(variables or {})}
    env.pop('SUPERVISOR_PASSWORD', None)
    reader, writer = os.pipe()
    relay = threading.Thread(target=copy_to_stderr, args=(reader,), daemon=True)
    try:
        relay.start()
    except RuntimeError:  # no room for a thread: the command matters more than what it prints
        os.close(reader)
        os.close(writer)
        run(command, timeout_secs, text, subprocess.DEVNULL, env)
        return
    try:
        run(command, timeout_secs, text, writer, env)
    finally:
        os.close(writer)
        relay.join(1)  # longer only if something in the background still holds the pipe


def copy_to_stderr(reader: int) -> None:
    """Copy a pipe to stderr until it ends, even where stderr is closed, full or gone."""
    with open(reader, 'rb', buffering=0) as pipe:
        for piece in iter(lambda: pipe.read(65536), b''):
            with contextlib.suppress(OSError):
                os.write(2, piece)


# Measure: what processes use.

class MeasureError(Exception):
    """Why the memory of the processes is not known."""


class Processes(Protocol):
    """The processes of this machine."""

    def children(self, pid: int) -> Sequence[int]:
        """Return the pids of a process's children; OSError if that cannot be found out."""

    def rss(self, pid: int) -> int | None:
        """Return the RSS of a process in bytes; None if it is not known."""


PAGE_BYTES = os.sysconf('SC_PAGE_SIZE')


class ProcFiles:
    """The processes in Linux's /proc, each read when it is asked for; see proc(5)."""

    def children(self, pid: int) -> list[int]:
        pids: list[int] = []
        for task in os.listdir(f'/proc/{pid}/task'):
            try:
                with open(f'/proc/{pid}/task/{task}/children', 'rb') as children:
                    pids += map(int, children.read().split())
            except (FileNotFoundError, ProcessLookupError):
                if task == str(pid):  # else it is a thread that has ended just now
                    raise
        return pids

    def rss(self, pid: int) -> int | None:
        try:
            # A third of what open() costs; and there is one for each process at each tick.
            statm = os.open(f'/proc/{pid}/statm', os.O_RDONLY)
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            return None  # it has ended, or is hidden from this user
        try:
            return int(os.read(statm, 100).split(None, 2)[1]) * PAGE_BYTES
        except ProcessLookupError:
            return None
        finally:
            os.close(statm)


class Row(NamedTuple):
    """What a process table says of one pid."""

    ppid: int
    rss: int  # bytes


class ProcessTable:
    """All processes at one time, from ps or from /proc."""

    def __init__(self, rows: Mapping[int, Row]) -> None:
        self.rows = rows
        self.pids_by_ppid: dict[int, list[int]] = {}
        for pid, row in rows.items():
            self.pids_by_ppid.setdefault(row.ppid, []).append(pid)

    def children(self, pid: int) -> list[int]:
        return self.pids_by_ppid.get(pid, [])

    def rss(self, pid: int) -> int | None:
        return self.rows[pid].rss if pid in self.rows else None


def read_process_table() -> ProcessTable:
    """Return all processes of this machine. Raises MeasureError."""
    try:
        return read_ps()
    except (OSError, CommandError, MeasureError) as error:
        log.debug('no process table from ps (%s): reading /proc', error)
        try:
            return read_proc()
        except (OSError, MeasureError) as proc_error:
            raise MeasureError(f'no process table from ps ({error}), nor from /proc ({proc_error})'
                               ) from None


# A path: without one, Popen lists a candidate for each directory of PATH, which costs 250 KB of
# RSS in 2,000 ticks.
PS = shutil.which('ps')


def read_ps() -> ProcessTable:
    """Return the process table that ps prints. Raises OSError, CommandError, MeasureError."""
    if not PS:
        raise MeasureError('ps is not in PATH')
    # FreeBSD and macOS need each column in an -o of its own.
    command = [PS, '-A', '-o', 'pid=', '-o', 'ppid=', '-o', 'rss=']
    return parse_ps(run(command, PS_TIMEOUT_SECS))


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
        rows[pid] = Row(ppid, kilobytes * 1024)
    if os.getpid() not in rows or not output.endswith(b'\n'):
        raise MeasureError('the output of ps is incomplete')
    return ProcessTable(rows)


def read_proc() -> ProcessTable:
    """Return the process table of Linux's /proc; see proc(5) for the fields of stat.

    Raises OSError, MeasureError.
    """
    rows = {}
    for pid in filter(str.isdigit, os.listdir('/proc')):
        try:
            with open(f'/proc/{pid}/stat', 'rb') as stat:
                # The command's name is in parentheses, and may itself hold spaces and parentheses.
                fields = stat.read().rpartition(b')')[2].split()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # it has ended, or is hidden from this user
        rows[int(pid)] = Row(int(fields[1]), int(fields[21]) * PAGE_BYTES)
    if os.getpid() not in rows:
        raise MeasureError('/proc does not show memmon itself')
    return ProcessTable(rows)


PROC_FILES = ProcFiles()


def tree(processes: Processes, root: int) -> list[int]:
    """Return a process and all its descendants, each once."""
    pids = {root: None}
    waiting = [root]
    while waiting:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            children = [pid for pid in processes.children(waiting.pop()) if pid not in pids]
            pids.update(dict.fromkeys(children))
            waiting += children
    return list(pids)


def measure_rss(processes: Processes, pid: int, cumulative: bool) -> int | None:
    """Return the RSS of a process in bytes, with that of its descendants if cumulative.

    None if it is not known.
    """
    rss = processes.rss(pid)
    if rss is None or not cumulative:
        return rss
    return rss + sum(processes.rss(child) or 0 for child in tree(processes, pid)[1:])


def read_pss(pid: int) -> int:
    """Return the PSS of a process in bytes: 6 ms for each GB. Raises OSError, ValueError."""
    with open(f'/proc/{pid}/smaps_rollup', 'rb') as rollup:
        for line in rollup:
            if line.startswith(b'Pss:'):
                return int(line.split()[1]) * 1024
    raise ValueError('no Pss in smaps_rollup')


def measure_pss(processes: Processes, pids: Iterable[int]) -> tuple[int, list[int]]:
    """Return the PSS of processes in bytes, and the pids of those whose RSS had to do."""
    total, unread = 0, []
    for pid in pids:
        try:
            total += read_pss(pid)
        except (OSError, ValueError):
            rss = processes.rss(pid)
            total += rss or 0
            unread += [pid] if rss else []
    return total, unread


def read_peak(pids: Iterable[int]) -> int | None:
    """Return the sum of the highest RSS that each process ever had, in bytes; None if not known."""
    peak = None
    for pid in pids:
        with contextlib.suppress(OSError):
            with open(f'/proc/{pid}/status', 'rb') as status:
                for line in status:
                    if line.startswith(b'VmHWM:'):
                        peak = (peak or 0) + int(line.split()[1]) * 1024
    return peak


def read_machine_memory() -> int:
    """Return the memory of this machine, or of its container if that is less, in bytes."""
    machine = os.sysconf('SC_PHYS_PAGES') * PAGE_BYTES
    try:
        return min([machine, *read_cgroup_limits()])
    except OSError:
        return machine  # not Linux


def read_cgroup_limits(proc: str = '/proc/self') -> list[int]:
    """Return the limits of memory, in bytes, that the own control groups set.

    In version 2, each group up to the root may set one. In version 1, hierarchical_memory_limit
    takes those above into account. See cgroups(7) and proc(5). Raises OSError.
    """
    with open(f'{proc}/cgroup', encoding='utf-8', errors='surrogateescape') as file:
        groups = [line.rstrip('\n').split(':', 2) for line in file]
    with open(f'{proc}/mountinfo', encoding='utf-8', errors='surrogateescape') as file:
        # Not split(): the field of the source may be empty.
        mounts = [line.rstrip('\n').split(' ') for line in file]
    limits = []
    for mount in mounts:
        root, point = (re.sub(r'\\([0-7]{3})', unescape, field) for field in mount[3:5])
        kind, _, options = mount[mount.index('-') + 1:][:3]
        for _, controllers, path in groups:
            directory = point + (path[len(root.rstrip('/')):] if is_below(path, root) else '')
            if kind == 'cgroup2' and not controllers:
                limits += read_memory_max(directory, point)
            elif kind == 'cgroup' and 'memory' in controllers.split(',') and (
                    'memory' in options.split(',')):
                limits += read_hierarchical_limit(directory)
    return limits


def unescape(match: re.Match[str]) -> str:
    """Return the character of an octal escape such as those in mountinfo."""
    return chr(int(match.group(1), 8))


def is_below(path: str, root: str) -> bool:
    """Tell whether a path is a directory or something in it."""
    return f'{path}/'.startswith(root.rstrip('/') + '/')


def read_memory_max(directory: str, point: str) -> list[int]:
    """Return the limits of a control group of version 2 and of those above it."""
    limits = []
    while directory and is_below(directory, point):
        with contextlib.suppress(OSError, ValueError):  # the root has none; others say max
            with open(f'{directory}/memory.max', encoding='ascii') as file:
                limits.append(int(file.read()))
        directory = os.path.dirname(directory.rstrip('/'))
    return limits


def read_hierarchical_limit(directory: str) -> list[int]:
    """Return the limit of a control group of version 1, and of those above it."""
    with contextlib.suppress(OSError):
        with open(f'{directory}/memory.stat', encoding='ascii') as file:
            return [int(line.split()[1]) for line in file
                    if line.startswith('hierarchical_memory_limit ')]
    return []


def ancestors(table: ProcessTable, pid: int) -> list[int]:
    """Return a process and those above it, as far as the table shows them."""
    pids: list[int] = []
    while pid in table.rows and pid and pid not in pids:  # 0 is the kernel of FreeBSD
        pids.append(pid)
        pid = table.rows[pid].ppid
    return pids


# supervisord: where it listens, what it says of its processes, and what it is asked to do.

class SupervisordError(Exception):
    """Why supervisord could not be asked, in one line that a person can act on."""


class Process(NamedTuple):
    """A process as supervisord shows it. http://supervisord.org/api.html"""

    group: str
    name: str
    pid: int        # 0: it has none
    start: int      # seconds since the epoch, as are the other two
    stop: int
    now: int
    state: int
    statename: str
    spawnerr: str

    @property
    def namespec(self) -> str:
        return f'{self.group}:{self.name}'


PROCESS_FIELDS = get_type_hints(Process)
UP_STATES = (ProcessStates.STARTING, ProcessStates.RUNNING)


def to_process(info: Any) -> Process:
    """Return what supervisord answered about a process. Raises ValueError."""
    if not (isinstance(info, dict) and all(isinstance(info.get(field), kind)
                                           for field, kind in PROCESS_FIELDS.items())):
        raise ValueError(f'it describes a process as {str(info)[:100]!r}')
    return Process(**{field: info[field] for field in PROCESS_FIELDS})


def to_pid(answer: Any) -> int:
    """Return what supervisord answered to a getPID. Raises ValueError."""
    if not isinstance(answer, int):
        raise ValueError(f'its pid is {str(answer)[:100]!r}')
    return answer


class DeadlineSocket(socket.socket):
    """A socket on which all reading together ends in time, however slowly the bytes come."""

    deadline = 0.0  # of time.monotonic()

    def recv_into(self, *args: Any) -> int:
        self.settimeout(max(0.001, self.deadline - time.monotonic()))
        return super().recv_into(*args)


def connect(get_connection: Callable[[], http.client.HTTPConnection]
            ) -> http.client.HTTPConnection:
    """Return an open connection that has 10 seconds for all that is read from it."""
    connection = get_connection()
    deadline = time.monotonic() + RPC_TIMEOUT_SECS
    connection.connect()
    connection.sock = DeadlineSocket(fileno=connection.sock.detach())
    connection.sock.deadline = deadline
    return connection


class Server(NamedTuple):
    """Where supervisord listens, and its RPC interface. http://supervisord.org/api.html

    All methods raise Fault where supervisord refuses, and SupervisordError.
    """

    url: str  # unix://PATH or http://HOST:PORT
    username: str = ''
    password: str = ''

    def call(self, method: str, *args: Any, read: Callable[[Any], Any] | None = None) -> Any:
        """Call a method such as supervisor.getPID, and return its answer, as read reads it.

        Each call has a connection of its own, and 10 seconds.
        """
        environment = {'SUPERVISOR_SERVER_URL': self.url, 'SUPERVISOR_USERNAME': self.username,
                       'SUPERVISOR_PASSWORD': self.password}
        try:
            with childutils.getRPCInterface(environment) as proxy:
                transport = proxy('transport')
                transport._get_connection = functools.partial(connect, transport._get_connection)
                answer = getattr(proxy, method)(*args)
                return read(answer) if read else answer
        except Fault as fault:
            if fault.faultCode in (Faults.SHUTDOWN_STATE, Faults.UNKNOWN_METHOD):
                raise SupervisordError(explain(fault, self.url)) from None
            raise
        except Exception as error:  # anything may listen there, and answer anything
            raise SupervisordError(explain(error, self.url)) from None

    def pid(self) -> int:
        """Return supervisord's pid."""
        pid: int = self.call('supervisor.getPID', read=to_pid)
        return pid

    def processes(self) -> list[Process]:
        """Return all processes that supervisord knows."""
        processes: list[Process] = self.call('supervisor.getAllProcessInfo', read=to_processes)
        return processes

    def process(self, namespec: str) -> Process:
        """Return what supervisord shows of a process now."""
        process: Process = self.call('supervisor.getProcessInfo', namespec, read=to_process)
        return process

    def known(self, namespecs: Sequence[str]) -> list[Process]:
        """Return what supervisord shows of those of some processes that it knows."""
        looks = [{'methodName': 'supervisor.getProcessInfo', 'params': [namespec]}
                 for namespec in namespecs]
        processes: list[Process] = self.call('system.multicall', looks, read=to_known)
        return processes

    def start(self, namespec: str) -> None:
        """Start a process, without waiting until it is up."""
        self.call('supervisor.startProcess', namespec, False)

    def stop(self, namespec: str) -> tuple[Process, Process]:
        """Stop a process, without waiting until it is down; return what it was, and what it is.

        supervisord runs the calls of a system.multicall with nothing in between, as none of
        these waits: so the second look shows just what was stopped.
        """
        look = {'methodName': 'supervisor.getProcessInfo', 'params': [namespec]}
        stop = {'methodName': 'supervisor.stopProcess', 'params': [namespec, False]}
        looks: tuple[Process, Process] = self.call(
            'system.multicall', [look, stop, look], read=to_looks)
        return looks


def to_list(answer: Any) -> list[Any]:
    """Return the list that supervisord answered. Raises ValueError."""
    if not isinstance(answer, list):
        raise ValueError(f'it answers {str(answer)[:100]!r} instead of a list')
    return answer


def to_processes(infos: Any) -> list[Process]:
    """Return what supervisord answered about all processes. Raises ValueError."""
    return [to_process(info) for info in to_list(infos)]


def to_looks(answers: Any) -> tuple[Process, Process]:
    """Return what supervisord answered to a look, a stop and a look. Raises Fault, ValueError."""
    before, stopped, after = answers
    for answer in (before, stopped):
        if isinstance(answer, dict) and 'faultCode' in answer:
            raise Fault(answer['faultCode'], str(answer.get('faultString')))
    return to_process(before), to_process(after)


def to_known(answers: Any) -> list[Process]:
    """Return what supervisord answered to several looks, without faults. Raises ValueError."""
    return [to_process(answer) for answer in to_list(answers)
            if not (isinstance(answer, dict) and 'faultCode' in answer)]


def show_url(url: str) -> str:
    """Return a URL without the password that somebody may have put into it."""
    return re.sub('//[^/]*@', '//', url)


def explain(error: Exception, url: str) -> str:
    """Return why a call to supervisord failed, in one line that says what to do."""
    url = show_url(url)
    if isinstance(error, Fault) and error.faultCode == Faults.SHUTDOWN_STATE:
        return 'supervisord is shutting down'
    if isinstance(error, Fault):
        return f'supervisord at {url} has no [rpcinterface:supervisor] section: add it'
    if isinstance(error, ProtocolError) and error.errcode == http.client.UNAUTHORIZED:
        return (f'supervisord at {url} refused the user name or password: set SUPERVISOR_USERNAME '
                "and SUPERVISOR_PASSWORD in memmon's environment to those of its HTTP server")
    if isinstance(error, ProtocolError):
        return (f'what answers at {url} is no supervisord: '
                f'it says {error.errcode} {first_and_last_line(error.errmsg)}')
    if isinstance(error, FileNotFoundError):
        return (f'no such socket: {url}; is supervisord running, '
                'with a [unix_http_server] section?')
    if isinstance(error, PermissionError):
        return f'no permission to use {url}: see chmod and chown in [unix_http_server]'
    if isinstance(error, ConnectionRefusedError):
        return f'nothing listens at {url}; is supervisord running?'
    if isinstance(error, socket.timeout):
        return f'no answer from supervisord at {url} within {RPC_TIMEOUT_SECS} seconds'
    if isinstance(error, (OSError, MemoryError)):
        return f'no answer from supervisord at {url}: {first_and_last_line(error)}'
    return f'what answers at {url} is no supervisord: {first_and_last_line(error)}'


def parse_server(env: Mapping[str, str]) -> Server:
    """Return the server that an environment names as supervisord's children are told it.

    Raises UsageError.
    """
    server = Server(env['SUPERVISOR_SERVER_URL'], env.get('SUPERVISOR_USERNAME', ''),
                    env.get('SUPERVISOR_PASSWORD', ''))
    try:
        parts = urllib.parse.urlsplit(server.url)
        parts.port  # raises ValueError, as urlsplit does
    except ValueError:
        parts = urllib.parse.urlsplit('')
    if not (server.url.startswith('unix://') and server.url[len('unix://'):]
            or server.url.startswith('http://') and parts.hostname):
        raise UsageError(f'the URL of supervisord is {show_url(server.url)!r}: it must be '
                         'unix://PATH or http://HOST:PORT')
    return server


# Decide: which limit applies to a process, and what follows from a reading.

class Reading(NamedTuple):
    """One measurement of one process, with the limit that applies to it."""

    process: Process
    uptime: int                    # seconds
    with_descendants: bool         # whether the memory is theirs as well
    rss: int | None = None         # bytes, as are all the others; None: not known
    pss: int | None = None         # None: the RSS counts
    limit: Limit | None = None     # None: none applies
    size: int | None = None        # what the limit comes to; None: exempt
    urgent: int | None = None      # the second size of the limit
    total: int | None = None       # what all use, where that is what the limit is for
    peak: int | None = None        # the highest RSS so far

    @property
    def memory(self) -> int | None:
        """What counts, in bytes."""
        return self.rss if self.pss is None else self.pss

    @property
    def judged(self) -> int | None:
        """What the limit is for, in bytes: the memory of the process, or of all."""
        return self.memory if self.total is None else self.total


HIDDEN = ('it is hidden from this user (hidepid), or supervisord is in another PID namespace or '
          'on another machine')


def measure_again(processes: Processes, supervisord_pid: int, reading: Reading, kind: str
                  ) -> Reading:
    """Return a reading as it is now; of memory not known unless supervisord is the parent.

    A supervisord in another PID namespace, or on another machine, has pids that mean others here.
    """
    process = reading.process
    reading = reading._replace(uptime=int(time.time()) - process.start, rss=None, pss=None)
    if process.pid in processes.children(supervisord_pid):
        reading = reading._replace(
            rss=measure_rss(processes, process.pid, reading.with_descendants))
        if reading.total is not None:
            reading = reading._replace(total=measure_total(processes, supervisord_pid, kind))
        if kind == 'pss' and reading.rss is not None:
            reading, _ = count_pss(processes, reading)
    return reading


def measure_total(processes: Processes, supervisord_pid: int, kind: str) -> int:
    """Return the memory of all descendants of supervisord in bytes, each counted once."""
    pids = tree(processes, supervisord_pid)[1:]
    if kind == 'pss':
        return measure_pss(processes, pids)[0]
    return sum(processes.rss(pid) or 0 for pid in pids)


def count_pss(processes: Processes, reading: Reading) -> tuple[Reading, list[int]]:
    """Return a reading in which the PSS counts, and the pids of which it could not be read."""
    pid = reading.process.pid
    pids = tree(processes, pid) if reading.with_descendants else [pid]
    pss, unread = measure_pss(processes, pids)
    return (reading._replace(pss=pss) if len(unread) < len(pids) else reading), unread


def exceeds(memory: int | None, size: int | None) -> bool:
    """Tell whether memory is known to be more than a size."""
    return memory is not None and size is not None and memory > size


def is_over(reading: Reading) -> bool:
    """Tell whether the limit is exceeded."""
    return exceeds(reading.judged, reading.size)


def is_urgent(reading: Reading) -> bool:
    """Tell whether the second size of the limit is exceeded."""
    return exceeds(reading.judged, reading.urgent)


def is_near(reading: Reading, percent: float) -> bool:
    """Tell whether so much of the limit is used; 0 percent means never."""
    if not (percent and reading.size) or reading.judged is None:
        return False
    return reading.judged * 100 >= percent * reading.size


def share_of(reading: Reading) -> float | None:
    """Return how much of the limit is used, 1 being all of it; None if that is not known."""
    if not reading.size or reading.judged is None:
        return None
    return reading.judged / reading.size


NEGLIGIBLE = 4 * 2 ** 20  # bytes; a shell and a sleep


def look_below(processes: Processes, pid: int) -> tuple[int, int] | None:
    """Return what a process and what its descendants use, in bytes, if they use more than it."""
    own, all_together = processes.rss(pid), measure_rss(processes, pid, True)
    if own is None or all_together is None or all_together - own <= max(own, NEGLIGIBLE):
        return None
    return own, all_together - own


def explain_wrapper(process: Process, own: int, descendants: int) -> str:
    """Return a sentence about a process whose descendants use more than itself."""
    return (f'{process.namespec} uses {format_size(own)}, and its descendants use '
            f'{format_size(descendants)}: add -c to count them as well')


def in_bytes(sizes: Sizes, machine: int) -> tuple[int | None, int | None]:
    """Return what the sizes of a limit come to where there are so many bytes of memory."""
    if not sizes:
        return None, None
    size, urgent = sizes[0].in_bytes(machine), sizes[1] and sizes[1].in_bytes(machine)
    # 200MB..25% cannot be refused at the start: the container may become smaller.
    return size if urgent is None else min(size, urgent), urgent


def kind_of(reading: Reading) -> str:
    """Return what the memory of a reading is: RSS or PSS."""
    return 'RSS' if reading.pss is None else 'PSS'


def describe_memory(reading: Reading) -> str:
    """Return what a process uses, such as 70.6MB with its descendants."""
    if reading.memory is None:
        return 'unknown'
    return format_size(reading.memory) + ' with its descendants' * reading.with_descendants


def describe_use(reading: Reading) -> str:
    """Return what a process uses, such as RSS 70.6MB."""
    return f'{kind_of(reading)} {describe_memory(reading)}'


def describe_sizes(reading: Reading) -> str:
    """Return what the limit comes to, such as 200MB, 200MB..300MB or none."""
    if not reading.limit:
        return '-'
    sizes = [format_size(size) for size in (reading.size, reading.urgent) if size is not None]
    return '..'.join(sizes) or 'none'


def describe(reading: Reading) -> str:
    """Return what exceeds which limit, such as RSS 270.6MB is over 200MB (-a 200MB)."""
    exceeded = reading.urgent if is_urgent(reading) else reading.size
    limit = f'{format_size(exceeded or 0)} ({reading.limit.given if reading.limit else ""})'
    if reading.total is None:
        return f'{describe_use(reading)} is over {limit}'
    return f'total {format_size(reading.total)} is over {limit}'


def describe_cause(reading: Reading) -> str:
    """Return why it is this process that is to be restarted."""
    if reading.total is None:
        return describe(reading)
    return (f'{describe(reading)}, and {reading.process.namespec} is the largest with '
            f'{format_size(reading.memory or 0)}')


WITHIN = 'within its limit'
NEAR = 'near its limit'                            # -w
BRIEF = 'over its limit, but not for long enough'  # -f
TOO_LOW = 'over a limit that a restart cannot keep'
HELD = 'held'                                      # -r
DUE = 'to be restarted'

GROWTH_SINCE_FRESH = 1.5  # what a restart has to be able to gain


def judge(reading: Reading, over_secs: float, restarts: int, fresh: int | None,
          options: Options) -> str:
    """Return what follows from a reading.

    over_secs: for how long it has been over the limit at each look. restarts: how often memmon has
    restarted the process within the time of -r. fresh: what it used when memmon had just started
    it, if that is a reason to leave it alone.
    """
    if not is_over(reading):
        return NEAR if is_near(reading, options.warn) else WITHIN
    if fresh is not None and (reading.memory or 0) < GROWTH_SINCE_FRESH * fresh:
        return TOO_LOW
    if over_secs < options.patience and not is_urgent(reading):
        return BRIEF
    if options.restarts and restarts >= options.restarts.times:
        return HELD
    return DUE


def gains_nothing(reading: Reading, fresh: int | None) -> bool:
    """Tell whether a restart was of no use: what it started is where the old one was.

    For a limit of its own: over it again. For the total: nearly as large as before.
    """
    if fresh is None or reading.memory is None:
        return False
    if reading.total is not None:
        return reading.memory < GROWTH_SINCE_FRESH * fresh
    return reading.size is not None and fresh > reading.size


def program_of(process: Process) -> str:
    """Return the name of the program that a process belongs to.

    The processes of a program with numprocs differ by a number, which ends the process name or is
    all of it: queue_00 and queue_01, or 00 and 01 in the group of the program.
    http://supervisord.org/configuration.html
    """
    if process.name == process.group:
        return process.name
    if process.name.isdigit():
        return process.group
    return re.sub(r'[-_.][0-9]+$', '', process.name)


def candidate_names(process: Process, option: str) -> list[list[str]]:
    """Return the names by which an option may mean a process: its own, then its program's."""
    if option == 'any':
        return []
    if option == 'groupname':
        return [[process.group]]
    return [[name, f'{process.group}:{name}'] for name in (process.name, program_of(process))]


class Limits:
    """The limits of the command line, made ready to be looked up."""

    def __init__(self, limits: Sequence[Limit]) -> None:
        self.limits = limits
        self.by_name: dict[tuple[str, str], Limit] = {}
        self.patterns: list[tuple[Limit, Callable[[str], object]]] = []
        for limit in limits:
            self.by_name.setdefault((limit.option, limit.pattern), limit)
            if re.search(r'[*?[]', limit.pattern):
                self.patterns.append((limit, re.compile(fnmatch.translate(limit.pattern)).match))

    def apply_to(self, process: Process) -> Limit | None:
        """Return the limit that applies to a process: the most specific, then the first given."""
        for option in LIMIT_OPTIONS:
            for names in candidate_names(process, option):
                found = [self.by_name[option, name] for name in names
                         if (option, name) in self.by_name]
                if found:
                    return min(found, key=self.limits.index)
            for limit, matches in self.patterns:
                if limit.option == option and self.covers(limit, matches, process):
                    return limit
        return None

    def covers(self, limit: Limit, matches: Callable[[str], object], process: Process) -> bool:
        """Tell whether the pattern of a limit matches a name of a process."""
        return limit.option == 'any' or any(
            matches(name) for names in candidate_names(process, limit.option) for name in names
            if (':' in name) == (':' in limit.pattern))

    def unmatched(self, processes: Sequence[Process]) -> list[Limit]:
        """Return the limits that cover none of the processes."""
        names = {(option, name) for option in LIMIT_OPTIONS for process in processes
                 for names in candidate_names(process, option) for name in names}
        matching = {limit for limit, matches in self.patterns
                    if any(self.covers(limit, matches, process) for process in processes)}
        return [limit for limit in self.limits
                if (limit.option, limit.pattern) not in names and limit not in matching]


def explain_unmatched(unmatched: Sequence[Limit], processes: Sequence[Process]) -> list[str]:
    """Return a sentence for each limit that covers no process, and what was perhaps meant."""
    hint = similar_names if len(unmatched) <= 20 else same_name  # similar names take 1 ms each
    return [f'{limit.given} covers no process{hint(limit, processes)}' for limit in unmatched]


def same_name(limit: Limit, processes: Sequence[Process]) -> str:
    """Return the end of a sentence, for a name that another option would cover."""
    if limit.option == 'program' and any(limit.pattern == process.group for process in processes):
        return f'; {limit.pattern} is a group: use -g'
    if limit.option == 'groupname' and any(
            limit.pattern in names for process in processes
            for names in candidate_names(process, 'program')):
        return f'; {limit.pattern} is a program: use -p'
    return ''


def similar_names(limit: Limit, processes: Sequence[Process]) -> str:
    """Return the end of a sentence: the names that a limit may have meant."""
    hint = same_name(limit, processes)
    if hint:
        return hint
    import difflib  # Imported here: costs 130 KB and is rarely needed.
    names = {name for process in processes for names in candidate_names(process, limit.option)
             for name in names if (':' in name) == (':' in limit.pattern)}
    similar = difflib.get_close_matches(limit.pattern, sorted(names))
    return f'; similar: {", ".join(similar)}' if similar else ''


# Restart: look again, stop, start, wait; told in a result.

STOP_TOLD_SECS = 10         # how long a stop may take before the log says so
BACKOFF_PATIENCE_SECS = 60  # supervisord's three retries take 6 seconds, and what the starts take
START_TRIES = 3             # before a failure to start is reported; memmon keeps trying
LONGEST_PAUSE_SECS = 60     # between two tries
COMPANIONS_PATIENCE_SECS = 10
FRESH_SECS = 1              # after its start, a process is measured
ORPHAN_PATIENCE_SECS = 600  # how long a worker goes on trying when memmon has gone

NOT_OWED, ASKED, OWED = range(3)


class Debt:
    """What memmon owes a process that it stops: a start.

    It is taken on before the stop, since the answer to the stop may be lost; and told to whoever
    pays it should the worker be killed.
    """

    def __init__(self, state: int = NOT_OWED, start: int = 0, is_reported: bool = False) -> None:
        self.state = state
        self.start = start              # of what was stopped, while the state is OWED
        self.is_reported = is_reported  # the user knows that the start fails
        self.number = 0                 # of its job, among those of the worker
        self.tell: Callable[[Debt], None] | None = None

    def become(self, state: int, start: int = 0) -> None:
        self.state, self.start = state, start
        if self.tell:
            self.tell(self)

    def take_on(self) -> None:
        """Note that supervisord is being asked for a stop."""
        self.become(ASKED)

    def confirm(self, stopped: Process) -> None:
        """Note which run of the process was stopped."""
        self.become(OWED, stopped.start)

    def settle(self) -> None:
        """Note that nothing is owed any more."""
        self.become(NOT_OWED)


class Job(NamedTuple):
    """A process to restart, or to start if memmon has stopped it already."""

    reading: Reading
    debt: Debt
    companions: tuple[str, ...] = ()  # namespecs of the other processes of its group
    descendants: tuple[int, ...] = ()  # pids that its reading includes
    recent: int = 0                    # how often memmon has restarted it within the last hour
    course: str = ''                   # of its memory
    is_put_off: bool = False           # its restart has been put off, and that was reported


RESTARTED, LEFT_ALONE, PUT_OFF = 'restarted', 'left alone', 'put off'
STOP_FAILED, START_FAILED = 'failed to stop', 'failed to start'


class Result(NamedTuple):
    """What became of the restart of one process."""

    outcome: str
    why: str
    pid: int = 0              # of the process that supervisord shows in the end
    fresh: int | None = None  # bytes, what that uses
    survivors: tuple[tuple[int, int], ...] = ()  # pids and bytes, of what outlived the stop


class Refusal(Exception):
    """Why a process is not restarted: an outcome, and a reason on one line."""


def is_same_run(measured: Process, seen: Process) -> bool:
    """Tell whether supervisord shows the very process that was measured, and shows it as up."""
    return seen.pid == measured.pid and seen.state in UP_STATES


def is_owed_a_start(debt: Debt, seen: Process) -> bool:
    """Tell whether a process is still as memmon's stop left it: nobody has started it since."""
    return (debt.state == OWED and seen.state == ProcessStates.STOPPED
            and seen.start == debt.start)


def is_in_transit(seen: Process) -> bool:
    """Tell whether a process is on its way down or up, or has just been stopped."""
    if seen.state == ProcessStates.STOPPED:
        return 0 <= seen.now - seen.stop < 3
    return seen.state in (ProcessStates.STARTING, ProcessStates.BACKOFF, ProcessStates.STOPPING)


def outcome_of(measured: Process, was_stopped: bool, seen: Process) -> tuple[str, str]:
    """Return what became of a restart, and a reason.

    From what was measured, whether memmon is known to have stopped it, and what supervisord shows
    in the end.
    """
    state = f'it is {seen.statename}'
    if not was_stopped and is_same_run(measured, seen):
        return LEFT_ALONE, 'the request to stop it was lost'
    if not was_stopped:
        return LEFT_ALONE, f'{state} with pid {seen.pid}'
    if seen.state == ProcessStates.RUNNING:
        return RESTARTED, f'pid {measured.pid} -> {seen.pid}'
    if seen.state in (ProcessStates.STOPPING, ProcessStates.STOPPED):
        return LEFT_ALONE, 'someone else has stopped it'
    return START_FAILED, first_and_last_line(f'{state}: {seen.spawnerr}'.rstrip(': '))


def is_alive(pid: int) -> bool:
    """Tell whether there is a process with this pid."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def run_commands(options: Options, event: str, reading: Reading, reason: str, new_pid: int = 0
                 ) -> bool:
    """Run the user's commands for an event, and log how they fail.

    Returns whether one of those that come before a restart asks to wait, after which no other is
    run. Over the second size of the limit none is heard.
    """
    variables = {
        'MEMMON_EVENT': event,
        'MEMMON_PROCESS': reading.process.namespec,
        'MEMMON_GROUP': reading.process.group,
        'MEMMON_NAME': reading.process.name,
        'MEMMON_PID': str(reading.process.pid),
        'MEMMON_NEW_PID': str(new_pid or ''),
        'MEMMON_MEMORY': '' if reading.memory is None else str(reading.memory),
        'MEMMON_LIMIT': '' if reading.size is None else str(reading.size),
        'MEMMON_UPTIME': str(reading.uptime),
        'MEMMON_REASON': first_and_last_line(reason),
    }
    for command in [command for name, command in options.on if name == event]:
        try:
            run_for_user(command, COMMAND_TIMEOUT_SECS, variables=variables)
        except (OSError, ValueError, CommandError) as error:
            if event != 'before' or getattr(error, 'status', 0) != os.EX_TEMPFAIL:
                log.error('%s: the command %r of -o %s failed: %s', reading.process.namespec,
                          command, event, error)
            elif not is_urgent(reading):
                return True
    return False


class Restarter:
    """What restarts processes: in any number of threads, each process in one."""

    def __init__(self, server: Server, supervisord_pid: int, options: Options,
                 has_gone: Callable[[], bool]) -> None:
        self.server = server
        self.supervisord_pid = supervisord_pid
        self.options = options
        self.has_gone = has_gone  # tells whether the listener has: then nothing new is begun

    def restart(self, job: Job) -> tuple[Job, Result]:
        """Restart a process, or start it if memmon has stopped it already.

        Returns the job with the last reading before the stop. A job whose debt is still OWED is
        to be paid later.
        """
        try:
            if job.debt.state == NOT_OWED:
                job = self.look_again(job)
                self.run_before(job.reading)
                self.stop(job)
        except Refusal as refusal:
            return job, Result(*refusal.args)
        return job, self.pay(job, START_TRIES)

    def look_again(self, job: Job) -> Job:
        """Return the job with a last reading; raise Refusal if that is no reason to restart."""
        process = job.reading.process
        self.check_same_run(process)
        try:
            table = read_process_table()
        except MeasureError as error:
            raise Refusal(LEFT_ALONE, f'it could not be measured again: {error}') from None
        reading = measure_again(table, self.supervisord_pid, job.reading, self.options.kind)
        if reading.memory is None:
            raise Refusal(LEFT_ALONE, 'it could not be measured again')
        if not is_over(reading):
            raise Refusal(LEFT_ALONE, f'now it is {describe_use(reading)}' if reading.total is None
                          else f'now the total is {format_size(reading.total)}')
        pids = tree(table, process.pid)[1:] if reading.with_descendants else []
        return job._replace(reading=reading, descendants=tuple(pids))

    def run_before(self, reading: Reading) -> None:
        """Run the commands that come before a restart; raise Refusal if one asks to wait."""
        if run_commands(self.options, 'before', reading, describe_cause(reading)):
            raise Refusal(PUT_OFF, 'a before command asked to wait')

    def check_same_run(self, process: Process) -> None:
        """Raise Refusal unless supervisord still shows the process that was measured."""
        if self.has_gone():
            raise Refusal(LEFT_ALONE, 'memmon has been stopped')
        try:
            seen = self.server.process(process.namespec)
        except (Fault, SupervisordError) as error:
            raise Refusal(LEFT_ALONE, reason_of(error)) from None
        if not is_same_run(process, seen):
            raise Refusal(LEFT_ALONE, f'it is {seen.statename} with pid {seen.pid}')

    def await_companions(self, job: Job) -> None:
        """Wait until no other process of the group is on its way down or up; or raise Refusal.

        Another memmon, which this one replaces, may be restarting it, or an operator.
        """
        deadline = time.monotonic() + COMPANIONS_PATIENCE_SECS
        while job.companions:
            try:
                moving = list(filter(is_in_transit, self.server.known(job.companions)))
            except (Fault, SupervisordError) as error:
                raise Refusal(LEFT_ALONE, reason_of(error)) from None
            if not moving:
                break
            if time.monotonic() >= deadline:
                raise Refusal(LEFT_ALONE, f'{moving[0].namespec} is {moving[0].statename}, and its '
                              'group loses one process at a time')
            time.sleep(1)

    def stop(self, job: Job) -> None:
        """Have supervisord stop a process; raise Refusal if it does not.

        The process may have ended by itself just now: then its successor is stopped, and owed the
        start.
        """
        self.await_companions(job)
        self.check_same_run(job.reading.process)
        job.debt.take_on()
        try:
            _, stopped = self.server.stop(job.reading.process.namespec)
            job.debt.confirm(stopped)
        except Fault as fault:
            job.debt.settle()
            is_down = fault.faultCode in (Faults.NOT_RUNNING, Faults.BAD_NAME)
            raise Refusal(LEFT_ALONE if is_down else STOP_FAILED, reason_of(fault)) from None
        except Exception as error:  # whatever it is, the process may have been stopped
            log.debug('%s: the answer to the stop is lost: %s', job.reading.process.namespec,
                      reason_of(error))

    def pay(self, job: Job, tries: float) -> Result:
        """Start what memmon has stopped; after so many tries say why not, and still owe it."""
        give_up = float('inf')
        for count in itertools.count(1):
            try:
                return self.start(job)
            except Exception as error:  # whatever it is, the start is owed
                failure = error
            if self.has_gone():
                give_up = min(give_up, time.monotonic() + ORPHAN_PATIENCE_SECS)
            result = self.reason_to_end(failure, time.monotonic() >= give_up)
            if result:
                job.debt.settle()
                return result
            if count >= tries:
                return Result(START_FAILED, f'{reason_of(failure)}; memmon keeps trying')
            self.pause(min(2 ** min(count - 1, 9), LONGEST_PAUSE_SECS))
        raise AssertionError('unreachable')

    def reason_to_end(self, failure: Exception, is_time_up: bool) -> Result | None:
        """Return why memmon need not, or will not, start a process any more; None if it will."""
        if isinstance(failure, Fault) and failure.faultCode == Faults.BAD_NAME:
            return Result(LEFT_ALONE, 'supervisord no longer knows it')
        if not is_alive(self.supervisord_pid):
            return Result(LEFT_ALONE, 'supervisord has ended')
        if is_time_up:
            return Result(START_FAILED, f'{reason_of(failure)}; memmon has given up')
        return None

    def pause(self, secs: float) -> None:
        """Wait, but not for a supervisord that has ended."""
        end = time.monotonic() + secs
        while time.monotonic() < end and is_alive(self.supervisord_pid):
            time.sleep(min(1, secs))

    def start(self, job: Job) -> Result:
        """Start a process once it is down, wait until it is up, and settle the debt.

        Raises Fault, SupervisordError.
        """
        process, debt = job.reading.process, job.debt
        seen = self.wait_until(process, is_not_stopping, STOP_TOLD_SECS)
        if seen.state == ProcessStates.STOPPING:
            log.warning('%s is not down %d seconds after the stop; see stopwaitsecs in its section',
                        process.namespec, STOP_TOLD_SECS)
            seen = self.wait_until(process, is_not_stopping)
        if debt.state == ASKED and seen.state == ProcessStates.STOPPED:
            debt.confirm(seen)  # who else may have stopped it, nobody can know
        started = time.monotonic()
        if is_owed_a_start(debt, seen):
            self.server.start(process.namespec)
        seen = self.wait_until(process, has_come_up, BACKOFF_PATIENCE_SECS)
        if seen.state == ProcessStates.STARTING:
            seen = self.wait_until(process, is_not_starting)
        if is_owed_a_start(debt, seen):
            raise SupervisordError('supervisord did not start it')
        outcome, why = outcome_of(process, debt.state == OWED, seen)
        result = Result(outcome, why, seen.pid)
        if outcome == RESTARTED:
            time.sleep(max(0, started + FRESH_SECS - time.monotonic()))
            result = self.measure_fresh(job, seen, result)
        debt.settle()
        return result

    def wait_until(self, process: Process, is_true: Callable[[Process], bool],
                   secs: float = float('inf')) -> Process:
        """Look at a process until something is true of it, or time is up; return the last look.

        Looks come every 0.1 seconds at first, and every second later. Raises Fault,
        SupervisordError.
        """
        began = time.monotonic()
        while True:
            seen = self.server.process(process.namespec)
            waited = time.monotonic() - began
            if is_true(seen) or waited >= secs:
                return seen
            time.sleep(min(1.0, 0.1 + waited / 10))

    def measure_fresh(self, job: Job, seen: Process, result: Result) -> Result:
        """Return the result with what the new process uses, and what outlived the old one."""
        try:
            table = read_process_table()
        except MeasureError as error:
            log.warning('%s could not be measured after its restart: %s', seen.namespec, error)
            return result
        fresh = measure_again(table, self.supervisord_pid, job.reading._replace(process=seen),
                              self.options.kind)
        survivors = [(pid, rss) for pid in set(job.descendants) - set(tree(table, seen.pid))
                     for rss in [table.rss(pid)] if rss]  # a zombie has none
        return result._replace(fresh=fresh.memory, survivors=tuple(sorted(survivors)))


def is_not_stopping(seen: Process) -> bool:
    return bool(seen.state != ProcessStates.STOPPING)


def is_not_starting(seen: Process) -> bool:
    return bool(seen.state != ProcessStates.STARTING)


def has_come_up(seen: Process) -> bool:
    """Tell whether supervisord is done with starting a process, for better or worse.

    It may be about to start again what has just ended: autorestart does within a second.
    """
    if seen.state == ProcessStates.EXITED:
        return not 0 <= seen.now - seen.stop < 3
    return seen.state not in (ProcessStates.STARTING, ProcessStates.BACKOFF)


def reason_of(error: Exception) -> str:
    """Return why something failed, on one line."""
    return first_and_last_line(error.faultString if isinstance(error, Fault) else error)


# Report: log lines and mail.

def describe_limits(options: Options) -> str:
    """Return the limits as they were given."""
    limits = [*options.limits, *([options.total] if options.total else [])]
    return ', '.join(limit.given for limit in limits)


def describe_restart(job: Job, result: Result) -> str:
    """Return what became of a process and its memory, as the end of a sentence."""
    reading = job.reading
    parts = [result.why]
    if result.fresh is not None and reading.memory is not None:
        parts.append(f', {kind_of(reading)} {format_size(reading.memory)} -> '
                     f'{format_size(result.fresh)}')
    if result.outcome == RESTARTED and job.recent:
        parts.append(f', restart {job.recent + 1} within the hour')
    if result.survivors:
        alive = ', '.join(f'pid {pid} ({format_size(rss)})' for pid, rss in result.survivors)
        parts.append(f'; still alive after the stop: {alive}; to stop them as well, put '
                     'stopasgroup=true and killasgroup=true into the section of the program')
    return ''.join(parts)


def describe_futility(job: Job, result: Result) -> str:
    """Return why a restart was of no use; empty if it was."""
    reading, fresh = job.reading, result.fresh
    if not gains_nothing(reading, fresh) or fresh is None or not reading.limit:
        return ''
    until = f'memmon leaves it alone until it uses {format_size(fresh * GROWTH_SINCE_FRESH)}'
    if reading.total is not None:
        return (f'a restart does not help: the program needs {kind_of(reading)} '
                f'{format_size(fresh)} when it is fresh; {until}')
    return (f'the limit is below what the program needs: {kind_of(reading)} {format_size(fresh)} '
            f'when it is fresh, {format_size(reading.size or 0)} allowed '
            f'({reading.limit.given}); {until}, or has been below its limit')


class News(NamedTuple):
    """Something to report."""

    level: int
    line: str                       # of the log
    subject: str = ''               # of the mail; empty: there is none
    reading: Reading | None = None  # of the process that it is about
    new_pid: int | None = None      # 0: the process does not run
    course: str = ''                # of the memory
    event: str = ''                 # for which the user may have commands


def news_of_restart(options: Options, job: Job, result: Result) -> News:
    """Return what to report of a restart, or of its failure."""
    reading, namespec, outcome = job.reading, job.reading.process.namespec, result.outcome
    line = (f'{outcome} {namespec}: {describe_cause(reading)}, uptime '
            f'{format_duration(reading.uptime)}; {describe_restart(job, result)}')
    if outcome == RESTARTED:
        futility = describe_futility(job, result)
        is_mailed = futility or reading.uptime <= options.uptime
        return News(logging.WARNING if futility else logging.INFO,
                    f'{line}; {futility}' if futility else line,
                    f'process {namespec} restarted' if is_mailed else '',
                    reading, result.pid, job.course, 'after')
    if outcome in (STOP_FAILED, START_FAILED) and not job.debt.is_reported:
        return News(logging.ERROR, line, f'{outcome} process {namespec}', reading, result.pid,
                    job.course, 'failed')
    is_known = outcome == PUT_OFF and job.is_put_off
    return News(logging.DEBUG if is_known else logging.INFO, line)


def news_of_hold(rate: Rate, reading: Reading, course: str) -> News:
    """Return what to report of a process that -r keeps from being restarted."""
    times = 'once' if rate.times == 1 else f'{rate.times} times'
    namespec = reading.process.namespec
    return News(logging.WARNING,
                f'held {namespec}: {describe_cause(reading)}, uptime '
                f'{format_duration(reading.uptime)}; memmon has restarted it {times} within '
                f'{format_duration(rate.secs)}, and leaves it running',
                f'process {namespec} held', reading, course=course, event='held')


def news_of_warning(reading: Reading, course: str, forecast: str) -> News:
    """Return what to report of a process that is near its limit."""
    headline = f'process {reading.process.namespec} uses {share_of(reading) or 0:.0%} of its limit'
    limit = reading.limit.given if reading.limit else ''
    return News(logging.WARNING,
                f'{headline}: {describe_use(reading)} of {describe_sizes(reading)} ({limit}), '
                f'uptime {format_duration(reading.uptime)}{forecast}',
                headline, reading, course=course, event='warn')


def news_of_dry_run(reading: Reading, course: str) -> News:
    """Return what to report of a process that would be restarted but for --dry-run."""
    namespec = reading.process.namespec
    return News(logging.INFO,
                f'would restart {namespec}: {describe_cause(reading)}, uptime '
                f'{format_duration(reading.uptime)}',
                f'would restart process {namespec}', reading, course=course)


def deliver(options: Options, news: News) -> None:
    """Mail news, and run the user's commands for it."""
    if options.email and news.subject:
        send_mail(options, write_mail(options, news))
    if news.event and news.reading:
        run_commands(options, news.event, news.reading, news.line, news.new_pid or 0)


def is_deliverable(options: Options, news: News) -> bool:
    """Tell whether news is to be mailed, or is an event for which the user has commands."""
    return bool(options.email and news.subject or news.event in dict(options.on))


# Neither base64 nor quoted-printable: readable for any command that -s may name.
UTF_8 = email.charset.Charset('utf-8')
UTF_8.body_encoding = None  # type: ignore[assignment]


def write_mail(options: Options, news: News) -> email.message.Message:
    """Return the mail about some news."""
    subject = f'memmon: {news.subject}'
    rows = [
        ('host', socket.gethostname()),
        ('time', f'{datetime.datetime.now().astimezone():%Y-%m-%d %H:%M:%S %z}'),
        *(describe_process(news) if news.reading else []),
        ('course', news.course),
        ('reason', news.line),
    ]
    lines = [f'{name}:'.ljust(10) + value for name, value in rows if value]
    mail = email.message.Message()
    mail['To'] = ', '.join(options.email)
    mail['Subject'] = encode_header(f'memmon [{options.name}]: {news.subject}' if options.name
                                    else subject)
    mail.set_payload('\n'.join([subject, '', *lines]) + '\n', UTF_8)
    return mail


def describe_process(news: News) -> list[tuple[str, str]]:
    """Return the rows of a mail about the process that it is about."""
    reading = news.reading
    assert reading and reading.limit
    pid = str(reading.process.pid)
    return [
        ('uptime', format_duration(reading.uptime)),
        *([('pid', pid)] if news.new_pid is None
          else [('old pid', pid), ('new pid', str(news.new_pid or 'none'))]),
        (kind_of(reading), describe_memory(reading)),
        ('total', '' if reading.total is None else format_size(reading.total)),
        ('limit', describe_sizes(reading)),
        ('set by', reading.limit.given),
    ]


def encode_header(text: str) -> str:
    """Return a header that says just this text, and is no more than one header.

    Not as email.policy does it: an encoded word in a name would be decoded into new headers.
    """
    if text.isascii() and text.isprintable() and '=?' not in text:
        return text
    return email.header.Header(text, 'utf-8', header_name='Subject').encode()


def send_mail(options: Options, mail: email.message.Message) -> None:
    """Pipe a mail into the sendmail command, whose output goes where the log goes."""
    try:
        run_for_user(options.sendmail_program, MAIL_TIMEOUT_SECS, bytes(mail))
    except (OSError, CommandError) as error:
        log.error('no mail to %s: the command %r failed: %s', mail['To'],
                  options.sendmail_program, error)


# Workers: the process that restarts, group by group, and what it owes.

MAX_RESTARTS_AT_ONCE = 16
OUTCOMES = ('', RESTARTED, LEFT_ALONE, PUT_OFF, STOP_FAILED, START_FAILED)


class Note(NamedTuple):
    """What a worker tells the listener of a job, through a pipe, whenever it changes."""

    job: int          # its place among the worker's jobs
    state: int        # of its debt, as are the next two
    start: int
    is_reported: int
    outcome: int      # its place in OUTCOMES; 0 until the job is done
    pid: int
    fresh: int        # bytes; -1 if not known


NOTE = struct.Struct('=iiqiiqq')  # less than PIPE_BUF, so that it is written whole or not at all


def group_jobs(jobs: Iterable[Job], busy: Iterable[str]) -> list[list[Job]]:
    """Return the jobs whose groups are not busy, group by group, in the order given."""
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        groups.setdefault(job.reading.process.group, []).append(job)
    return [jobs for group, jobs in groups.items() if group not in busy]


class Task(NamedTuple):
    """What a worker is to do."""

    groups: Sequence[Sequence[Job]]
    news: Sequence[News]   # to deliver
    supervisord_pid: int


class Work:
    """The jobs of a worker, as the worker does them: a thread for each group."""

    def __init__(self, options: Options, restarter: Restarter, pipe: int) -> None:
        self.options = options
        self.restarter = restarter
        self.pipe = pipe  # to the listener
        self.waiting: collections.deque[Sequence[Job]] = collections.deque()  # groups
        self.threads: list[threading.Thread] = []

    def do(self, groups: Sequence[Sequence[Job]], news: Sequence[News]) -> None:
        """Restart the processes of several groups side by side, those of each group in turn.

        News that has been logged already is delivered.
        """
        for job in itertools.chain.from_iterable(groups):
            job.debt.tell = self.tell
        self.waiting.extend(groups)
        for item in news:
            self.spawn(deliver, self.options, item)
        for _ in groups[1:MAX_RESTARTS_AT_ONCE]:
            self.spawn(self.restart_groups)
        self.restart_groups()
        while self.threads:
            self.threads.pop().join()

    def spawn(self, do: Callable[..., None], *args: Any) -> None:
        """Do something in a thread of its own; in this one where no more can be started.

        Not in a ThreadPoolExecutor, which keeps what it has failed to start a thread for.
        """
        thread = threading.Thread(target=self.attempt, args=(do, *args))
        try:
            thread.start()
        except RuntimeError:  # no memory for a stack; and a limit of processes counts threads
            self.attempt(do, *args)
        else:
            self.threads.append(thread)

    def attempt(self, do: Callable[..., None], *args: Any) -> None:
        """Do something in a thread, and log what goes wrong: nobody else would see it."""
        try:
            do(*args)
        except Exception as error:
            log.error('a worker failed: %s: %s', type(error).__name__, reason_of(error))

    def restart_groups(self) -> None:
        """Restart one group after the other, as long as any waits."""
        with contextlib.suppress(IndexError):
            while True:
                self.attempt(self.restart_group, self.waiting.popleft())

    def restart_group(self, jobs: Sequence[Job]) -> None:
        """Restart the processes of a group, one after the other."""
        has_failed = False
        for job in jobs:
            if has_failed:
                result = Result(LEFT_ALONE, 'another process of its group failed to start; '
                                            'memmon tries again at the next tick')
            else:
                job, result = self.restarter.restart(job)
            has_failed = has_failed or result.outcome == START_FAILED
            if job.debt.state == NOT_OWED:
                self.tell(job.debt, result)
                self.spawn(self.report, job, result)  # mail and commands hold up no restart
            else:
                self.spawn(self.pay_later, job, result)

    def pay_later(self, job: Job, result: Result) -> None:
        """Report that a start fails, go on trying, and report the end of it."""
        self.report(job, result)
        job.debt.is_reported = True
        self.tell(job.debt)
        result = self.restarter.pay(job, tries=float('inf'))
        self.tell(job.debt, result)
        self.report(job, result)

    def report(self, job: Job, result: Result) -> None:
        """Report what became of a restart."""
        news = news_of_restart(self.options, job, result)
        log.log(news.level, '%s', news.line)
        deliver(self.options, news)

    def tell(self, debt: Debt, result: Result | None = None) -> None:
        """Tell the listener how a job stands; with a result, that it is done."""
        note = Note(debt.number, debt.state, debt.start, debt.is_reported,
                    OUTCOMES.index(result.outcome) if result else 0,
                    result.pid if result else 0,
                    -1 if not result or result.fresh is None else result.fresh)
        with contextlib.suppress(OSError):  # the listener may have gone
            os.write(self.pipe, NOTE.pack(*note))


class Worker:
    """A worker, as the listener sees it."""

    def __init__(self, pid: int | None, pipe: int, jobs: Sequence[Job]) -> None:
        self.pid = pid    # None: threads of the listener
        self.pipe = pipe  # to read from
        self.jobs = jobs
        self.notes: dict[int, Note] = {}

    def is_done(self, job: Job) -> bool:
        """Tell whether a job has come to its end."""
        return job.debt.number in self.notes and self.notes[job.debt.number].outcome != 0

    def read_notes(self) -> list[Note]:
        """Read what the worker has told; nothing when it has ended."""
        notes = [Note(*fields) for fields in NOTE.iter_unpack(os.read(self.pipe, NOTE.size * 100))]
        self.notes.update((note.job, note) for note in notes)
        return notes

    def unpaid(self) -> list[Job]:
        """Return what a worker that has been killed owes."""
        # What it has not told of is as it was when the worker began.
        last = [(job, self.notes.get(job.debt.number, job.debt)) for job in self.jobs
                if not self.is_done(job)]
        return [job._replace(debt=Debt(known.state, known.start, bool(known.is_reported)))
                for job, known in last if known.state != NOT_OWED]


class Workers:
    """The workers under way, and what those that were killed still owe."""

    def __init__(self, options: Options, server: Server) -> None:
        self.options = options
        self.server = server
        self.workers: list[Worker] = []
        self.debts: list[Job] = []
        self.threads: list[threading.Thread] = []  # where no worker process could be forked
        self.listener_pid = os.getpid()
        self.is_ending = False

    def under_way(self) -> list[Job]:
        """Return the jobs that are not done yet."""
        return [job for worker in self.workers for job in worker.jobs if not worker.is_done(job)]

    def dispatch(self, jobs: Sequence[Job], news: Sequence[News], supervisord_pid: int) -> None:
        """Have the debts paid, processes restarted unless their group is busy, news delivered.

        Raises OSError, RuntimeError.
        """
        busy = {job.reading.process.group for job in self.under_way()}
        groups = group_jobs([*self.debts, *jobs], busy)
        if groups or news:
            self.start_worker(Task(groups, news, supervisord_pid))
            begun = [id(job) for group in groups for job in group]
            self.debts = [job for job in self.debts if id(job) not in begun]

    def start_worker(self, task: Task) -> None:
        """Fork a worker; where that fails, let threads do its work."""
        jobs = list(itertools.chain.from_iterable(task.groups))
        for number, job in enumerate(jobs):
            job.debt.number = number
        reader, writer = os.pipe()
        pid = self.fork()
        if pid == 0:
            self.work_as_process(task, writer)
        elif pid:
            os.close(writer)
        else:
            try:
                self.work_in_threads(task, writer)
            except (RuntimeError, MemoryError):
                os.close(reader)
                os.close(writer)
                raise
        self.workers.append(Worker(pid, reader, jobs))

    def fork(self) -> int | None:
        """Fork; None if that fails, or if there are threads, which do not survive a fork."""
        if not all(worker.pid for worker in self.workers):
            return None
        try:
            return os.fork()
        except OSError as error:
            log.warning('cannot fork a worker (%s): restarting in threads of the listener', error)
            return None

    def work_as_process(self, task: Task, pipe: int) -> None:
        """Do the work of a worker process, and end it."""
        try:
            # What kills the whole process group of memmon, or all that is called memmon, leaves
            # the worker alone. Handlers, since its commands would inherit SIG_IGN.
            os.setsid()
            for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(signum, do_nothing)
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, 0)
            os.dup2(null, 1)
            has_gone = functools.partial(is_orphan, self.listener_pid)
            self.work(task, pipe, has_gone)
        except BaseException as error:
            log.error('a worker failed: %s: %s', type(error).__name__, error)
        finally:
            os._exit(0)

    def work_in_threads(self, task: Task, pipe: int) -> None:
        """Do the work of a worker in threads of the listener, which outlive a SIGTERM."""
        signal.signal(signal.SIGTERM, end_quietly)
        thread = threading.Thread(target=self.work, args=(task, pipe, self.has_gone))
        thread.start()
        self.threads = [other for other in self.threads if other.is_alive()] + [thread]

    def has_gone(self) -> bool:
        return self.is_ending

    def end(self) -> None:
        """Have nothing new begun, and wait until the threads have paid what they owe.

        An interpreter that ends waits for them, too, but lets them start no other threads.
        """
        self.is_ending = True
        for thread in self.threads:
            thread.join()

    def work(self, task: Task, pipe: int, has_gone: Callable[[], bool]) -> None:
        """Do a task, and close the pipe."""
        try:
            restarter = Restarter(self.server, task.supervisord_pid, self.options, has_gone)
            Work(self.options, restarter, pipe).do(task.groups, task.news)
        finally:
            os.close(pipe)

    def collect(self, stdin: int, timeout_secs: int | None
                ) -> tuple[bool, list[tuple[Job, Note]]]:
        """Wait for an event, or for what the workers tell.

        Returns whether there is an event, and what they have told of which jobs.
        """
        pipes = [worker.pipe for worker in self.workers]
        ready = select.select([stdin, *pipes], [], [], timeout_secs)[0]
        told = []
        for worker in [worker for worker in self.workers if worker.pipe in ready]:
            notes = worker.read_notes()
            told += [(worker.jobs[note.job], note) for note in notes]
            if not notes:
                self.bury(worker)
        return stdin in ready, told

    def bury(self, worker: Worker) -> None:
        """Reap a worker that has ended, and take over what it owes."""
        self.workers.remove(worker)
        os.close(worker.pipe)
        self.debts += worker.unpaid()
        if worker.pid:
            with contextlib.suppress(ChildProcessError):  # SIGCHLD may be ignored
                os.waitpid(worker.pid, 0)


def is_orphan(parent: int) -> bool:
    """Tell whether the parent of this process has gone."""
    return os.getppid() != parent


def do_nothing(signum: int, frame: FrameType | None) -> None:
    """Handle a signal."""


def end_quietly(signum: int, frame: FrameType | None) -> None:
    """Handle a signal by ending, as soon as what is owed is paid."""
    signal.signal(signum, do_nothing)  # another one must not cut that short
    raise SystemExit(0)


# Watch: what is remembered of the processes from tick to tick.

LONGEST_FORECAST_SECS = 365 * 24 * 60 * 60


class Course:
    """The RSS of a process, in points that cover ever more looks the longer it gets."""

    MOST_POINTS = 32

    def __init__(self) -> None:
        self.points = array.array('Q')  # bytes, the most of each point's looks
        self.looks = 0
        self.looks_per_point = 1
        self.first = self.last = 0      # bytes
        self.began = 0.0                # seconds of the monotonic clock

    def add(self, memory: int, now: float) -> None:
        """Add what a look has shown."""
        if not self.looks:
            self.first, self.began = memory, now
        self.last = memory
        if self.looks % self.looks_per_point:
            self.points[-1] = max(self.points[-1], memory)
        else:
            if len(self.points) == self.MOST_POINTS:
                self.halve()
            self.points.append(memory)
        self.looks += 1

    def halve(self) -> None:
        """Make one point of two."""
        self.points = array.array('Q', map(max, self.points[::2], self.points[1::2]))
        self.looks_per_point *= 2

    def picture(self) -> str:
        """Return the points as block characters, from nothing to the peak."""
        peak = max(self.points, default=0) or 1
        return ''.join('▁▂▃▄▅▆▇█'[min(7, 8 * point // peak)] for point in self.points)

    def describe(self, now: float) -> str:
        """Return the course in figures, such as 82MB -> 270.6MB in 3:20:00, peak 271MB."""
        return (f'{format_size(self.first)} -> {format_size(self.last)} in '
                f'{format_duration(now - self.began)}, peak {format_size(max(self.points))}')

    def forecast(self, room: int, now: float) -> str:
        """Return when so many bytes are used up if the growth goes on, as the end of a sentence.

        Nothing if that takes more than a year.
        """
        growth = (self.last - self.first) / (now - self.began) if now > self.began else 0
        if growth <= 0 or room > growth * LONGEST_FORECAST_SECS:
            return ''
        return (f', {format_size(growth * 3600)} an hour; if that goes on, it is at its limit in '
                f'{format_duration(room / growth)}')


class Watched:
    """A process of supervisord, and what memmon remembers of it."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.limit: Limit | None = None
        self.size: int | None = None        # bytes, as is the next; what the limit comes to
        self.urgent: int | None = None
        # Of the present run:
        self.over_since: float | None = None  # seconds of the monotonic clock
        self.told: set[str] = set()           # what has been reported
        self.is_warned = False                # likewise, that it is near its limit
        self.exam_uptime = 10                 # seconds, when its descendants are looked at next
        self.course = Course()
        self.reading: Reading | None = None   # the last
        # Of all runs:
        self.own_pid = 0                      # the last that memmon has started
        self.fresh: int | None = None         # bytes, when memmon had started it, if too many
        self.fresh_total: int | None = None   # likewise, if it was restarted for -t
        self.restarts: list[float] = []       # by memmon, by the monotonic clock
        self.restarts_total = 0
        self.failures_total = 0

    def describe_growth(self, reading: Reading, now: float) -> str:
        """Return the course in figures, which are of the RSS even where the PSS counts."""
        if self.course.looks < 2:
            return ''
        return 'RSS ' * (reading.pss is not None) + self.course.describe(now)

    def describe_course(self, reading: Reading, now: float) -> str:
        """Return a picture of the course, with its ends in figures."""
        growth = self.describe_growth(reading, now)
        return f'{self.course.picture()}  {growth}' if growth else ''

    @property
    def is_exempt(self) -> bool:
        """Whether the process is never to be restarted."""
        return self.limit is not None and self.limit.sizes is None

    @property
    def is_own(self) -> bool:
        """Whether the process was started by memmon."""
        return self.process.pid == self.own_pid

    def begin_run(self, process: Process) -> None:
        """Take over what supervisord shows; forget what was true of another run."""
        is_new = process.pid != self.process.pid
        self.process = process
        if is_new:
            self.over_since = None
            self.is_warned = False
            self.exam_uptime = 10
            self.course = Course()
            self.reading = None
            self.told.clear()

    def note_restart(self, reading: Reading, note: Note, now: float, window_secs: float) -> None:
        """Remember that memmon has restarted the process, and when, for so long."""
        self.restarts = [*self.restarts_within(window_secs, now, reading.process.pid), now]
        self.restarts_total += 1
        if reading.process.pid != self.own_pid:
            self.fresh = self.fresh_total = None
        self.own_pid = note.pid
        fresh = None if note.fresh < 0 else note.fresh
        # What a restart for the one limit has shown stays true after one for the other.
        if reading.total is None:
            self.fresh = fresh if gains_nothing(reading, fresh) else None
        else:
            self.fresh_total = fresh

    def note_reading(self, reading: Reading, now: float) -> float | None:
        """Remember what the process used; return since when it has been over its limit."""
        self.reading = reading
        if reading.rss is not None:
            self.course.add(reading.rss, now)
        if is_over(reading):
            self.over_since = now if self.over_since is None else self.over_since
        elif reading.memory is not None and (self.over_since is not None or self.fresh):
            self.over_since = self.fresh = None
            self.told.clear()
        return self.over_since

    def restarts_within(self, secs: float, now: float, pid: int) -> list[float]:
        """Return the restarts by memmon within some time; none if somebody else started the pid."""
        if pid != self.own_pid:
            return []
        return [restart for restart in self.restarts if restart > now - secs]


class Watch:
    """supervisord's processes by name, with the limits that apply to them."""

    def __init__(self, options: Options, server: Server) -> None:
        self.options = options
        self.limits = Limits(options.limits)
        self.uses_percent = any(size and size.percent for limit in (*options.limits, options.total)
                                if limit for size in limit.sizes or ())
        self.server = server
        self.supervisord_pid = 0                     # 0: not known yet
        self.itself: frozenset[int] = frozenset()    # the pids of memmon and of what started it
        self.children: frozenset[int] | None = None  # whose names are known; None: ask anew
        self.watched: dict[str, Watched] = {}        # all but memmon, by namespec
        self.running: list[Watched] = []             # those of them that can be measured
        self.limited: list[Watched] = []             # those of them that have a limit
        self.machine = 0                             # bytes; what percentages refer to
        self.total: int | None = None                # bytes, if there is a limit of the total
        self.total_since: float | None = None        # over it, by the monotonic clock
        self.has_told_total = False
        self.has_told_unread = False
        self.unmatched: list[Limit] | None = None
        self.hidden: list[tuple[str, int]] = []
        self.wrappers: set[str] = set()              # namespecs that were warned about

    def look(self) -> tuple[Processes, list[tuple[Watched, Reading]]]:
        """Return a reading of each process that has a limit, and what else there is to measure.

        supervisord is asked only if its children are not those of the last tick. Raises
        MeasureError, Fault, SupervisordError.
        """
        self.supervisord_pid = self.supervisord_pid or self.server.pid()
        processes, children = self.find_children()
        if children != self.children:
            processes = self.name_children()
        if self.uses_percent:
            self.resolve_limits()
        now, with_descendants = int(time.time()), self.options.cumulative
        counts_pss = self.options.kind == 'pss'
        readings = []
        for watched in self.limited:
            process = watched.process
            rss = measure_rss(processes, process.pid, with_descendants)
            reading = Reading(process, now - process.start, with_descendants, rss, None,
                              watched.limit, watched.size, watched.urgent)
            if counts_pss:
                reading = self.count(processes, reading)
            if reading.uptime >= watched.exam_uptime and not with_descendants:
                self.examine(processes, watched)
            readings.append((watched, reading))
        return processes, readings

    def look_at_total(self, processes: Processes, now: float
                      ) -> list[tuple[Watched, Reading]] | None:
        """Return readings for the limit of the total: of what may be restarted, the largest first.

        None if there is no such limit, or if it is not exceeded.
        """
        limit = self.options.total
        if not limit:
            return None
        size, urgent = in_bytes(limit.sizes, self.machine)
        trees = {pid: measure_rss(processes, pid, True) for pid in self.children or ()}
        self.total = sum(rss or 0 for rss in trees.values())
        for watched in self.running:
            rss = trees[watched.process.pid]
            if watched.size is None and rss is not None:
                watched.course.add(rss, now)
                watched.reading = Reading(watched.process, 0, True, rss)
        if self.options.kind == 'pss' and exceeds(self.total, size):
            self.total = measure_total(processes, self.supervisord_pid, 'pss')
        if not exceeds(self.total, size):
            for watched in self.running:  # some programs peak while they start
                rss = trees[watched.process.pid]
                if watched.fresh_total is not None and rss is not None:
                    watched.fresh_total = min(watched.fresh_total, rss)
            if self.total_since is not None:
                self.forget_total()
            return None
        self.total_since = now if self.total_since is None else self.total_since
        readings = []
        for watched in self.running:
            if not watched.is_exempt:
                process = watched.process
                reading = Reading(process, int(time.time()) - process.start, True,
                                  trees[process.pid], None, limit, size, urgent, self.total)
                readings.append((watched, self.count(processes, reading)))
        return sorted(readings, key=lambda pair: pair[1].memory or 0, reverse=True)

    def forget_total(self) -> None:
        """Forget what was reported because of the limit of the total, which is not exceeded."""
        self.total_since, self.has_told_total = None, False
        for watched in self.running:
            if watched.over_since is None:
                watched.told.clear()

    def count(self, processes: Processes, reading: Reading) -> Reading:
        """Return a reading with the PSS, if that counts and the RSS is a reason to act."""
        is_reason = is_over(reading) or is_near(reading, self.options.warn)
        if self.options.kind != 'pss' or reading.rss is None or not is_reason:
            return reading
        reading, unread = count_pss(processes, reading)
        if unread and not self.has_told_unread:
            self.has_told_unread = True
            log.warning('the PSS of %s cannot be read (pid %s): its RSS counts',
                        reading.process.namespec, ', '.join(map(str, unread)))
        return reading

    def examine(self, processes: Processes, watched: Watched) -> None:
        """Log once if a process is small and its descendants are large: memmon does not see them.

        They may come late: so it is looked at when it is 10, 100, 1,000 ... seconds old.
        """
        watched.exam_uptime *= 10
        process = watched.process
        memory = look_below(processes, process.pid)
        if memory and process.namespec not in self.wrappers:
            self.wrappers.add(process.namespec)
            log.warning('%s', explain_wrapper(process, *memory))

    def resolve_limits(self) -> None:
        """Find out what the limits come to: a container can be resized."""
        self.machine = read_machine_memory() if self.uses_percent else 0
        for watched in self.running:
            sizes = watched.limit.sizes if watched.limit else None
            watched.size, watched.urgent = in_bytes(sizes, self.machine)
        self.limited = [watched for watched in self.running if watched.size is not None]

    def find_children(self) -> tuple[Processes, frozenset[int]]:
        """Return the processes of this machine, and which are supervisord's children."""
        processes: Processes = PROC_FILES
        try:
            return processes, frozenset(processes.children(self.supervisord_pid))
        except OSError:  # no such files here, hidden, or no descriptor left: ps may know
            processes = read_process_table()
            return processes, frozenset(processes.children(self.supervisord_pid))

    def name_children(self) -> Processes:
        """Ask supervisord which of its children is which process, and find their limits."""
        hidden: list[tuple[str, int]] = []
        for is_second in (False, True):  # if a process seems to be hidden: it may just have ended
            known = self.server.processes()
            processes, children = self.find_children()
            missing = [(process.namespec, process.pid) for process in known
                       if process.state == ProcessStates.RUNNING and process.pid not in children]
            # What has ended is not shown with the same pid again; what ends now is missing anew.
            hidden = [pair for pair in missing if not is_second or pair in hidden]
            if not hidden:
                break
        self.itself = self.itself or find_itself(self.supervisord_pid)
        own_groups = {process.group for process in known if process.pid in self.itself}
        others = [process for process in known if process.group not in own_groups]
        old, self.watched = self.watched, {}
        for process in others:
            watched = old.get(process.namespec) or Watched(process)
            watched.begin_run(process)
            watched.limit = self.limits.apply_to(process)
            self.watched[process.namespec] = watched
        if self.unmatched is None:
            count = sum(bool(watched.limit or self.options.total) and not watched.is_exempt
                        for watched in self.watched.values())
            log.info("watching %d of supervisord's %d processes: %s", count, len(known),
                     describe_limits(self.options))
        self.warn_of_unmatched(others)
        self.warn_of_hidden(hidden)
        self.running = [watched for watched in self.watched.values()
                        if watched.process.pid in children]
        self.resolve_limits()
        self.children = children
        return processes

    def warn_of_unmatched(self, processes: Sequence[Process]) -> None:
        """Log the limits that cover no process, unless they covered none before."""
        unmatched = self.limits.unmatched(processes)
        news = [limit for limit in unmatched if limit not in (self.unmatched or [])]
        for warning in explain_unmatched(news, processes):
            log.warning('%s', warning)
        self.unmatched = unmatched

    def warn_of_hidden(self, hidden: list[tuple[str, int]]) -> None:
        """Log the processes that cannot be measured, unless that was logged before."""
        news = [f'{namespec} (pid {pid})' for namespec, pid in hidden
                if (namespec, pid) not in self.hidden]
        if news:
            log.warning('cannot measure %s: %s', ', '.join(news), HIDDEN)
        self.hidden = hidden

    def companions(self, process: Process) -> tuple[str, ...]:
        """Return the namespecs of the other processes of a group."""
        return tuple(namespec for namespec, watched in self.watched.items()
                     if watched.process.group == process.group and namespec != process.namespec)


def find_itself(supervisord_pid: int) -> frozenset[int]:
    """Return the pids of memmon and of what started it, such as a shell, below supervisord.

    supervisord's variables in the environment do not tell: a shell or env may have removed them.
    """
    if os.getppid() == supervisord_pid:
        return frozenset([os.getpid()])
    pids = ancestors(read_process_table(), os.getpid())
    return frozenset(itertools.takewhile(lambda pid: pid != supervisord_pid, pids))


# Metrics: what Prometheus is told.

class Metrics:
    """The file for the textfile collector of Prometheus' node_exporter."""

    def __init__(self, file: str) -> None:
        from prometheus_client import CollectorRegistry
        self.file = file
        self.has_failed = False
        self.families: list[Any] = []
        self.registry = CollectorRegistry()
        self.registry.register(self)

    def collect(self) -> list[Any]:
        """Return the metrics, as prometheus_client asks for them."""
        return self.families

    def write(self, watch: Watch, interval_secs: int, duration_secs: float) -> None:
        """Replace the file in one step; log it once if that fails."""
        from prometheus_client import generate_latest
        self.families = [*process_metrics(watch), *memmon_metrics(watch, interval_secs,
                                                                  duration_secs)]
        try:
            replace_file(self.file, generate_latest(self.registry))
            self.has_failed = False
        except OSError as error:
            if not self.has_failed:
                log.error('cannot write %s: %s', self.file, error.strerror)
            self.has_failed = True


def process_metrics(watch: Watch) -> list[Any]:
    """Return the metrics of each process."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
    labels = ('group', 'process')
    memory = GaugeMetricFamily('memmon_process_memory_bytes', 'Memory that a process uses.',
                               labels=(*labels, 'kind'))
    limit = GaugeMetricFamily('memmon_process_limit_bytes', 'Memory limit of a process.',
                              labels=labels)
    restarts = CounterMetricFamily('memmon_process_restarts', 'Restarts of a process by memmon.',
                                   labels=labels)
    failures = CounterMetricFamily('memmon_process_restart_failures',
                                   'Failed stops and starts of a process.', labels=labels)
    held = GaugeMetricFamily('memmon_process_held', 'Whether -r keeps a process from being '
                             'restarted.', labels=labels)
    too_low = GaugeMetricFamily('memmon_process_limit_too_low', 'Whether a process used more than '
                                'its limit when it was fresh.', labels=labels)
    unmeasured = GaugeMetricFamily('memmon_process_unmeasured', 'Whether a process runs that '
                                   'cannot be measured.', labels=labels)
    hidden = {namespec for namespec, _ in watch.hidden}
    for watched in watch.watched.values():
        process, reading = watched.process, watched.reading
        names = (process.group, process.name)
        if reading and reading.rss is not None and process.pid:
            memory.add_metric((*names, 'rss'), reading.rss)
        if reading and reading.pss is not None and process.pid:
            memory.add_metric((*names, 'pss'), reading.pss)
        if watched.size is not None:
            limit.add_metric(names, watched.size)
        restarts.add_metric(names, watched.restarts_total)
        failures.add_metric(names, watched.failures_total)
        held.add_metric(names, HELD in watched.told)
        too_low.add_metric(names, watched.is_own and watched.fresh is not None)
        unmeasured.add_metric(names, process.namespec in hidden)
    return [memory, limit, restarts, failures, held, too_low, unmeasured]


def memmon_metrics(watch: Watch, interval_secs: int, duration_secs: float) -> list[Any]:
    """Return the metrics of memmon itself and of all processes together."""
    from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily
    families = [
        InfoMetricFamily('memmon', 'The version of memmon.', {'version': __version__}),
        GaugeMetricFamily('memmon_last_tick_timestamp_seconds',
                          'When memmon last checked the processes.', time.time()),
        GaugeMetricFamily('memmon_tick_interval_seconds', 'How often memmon checks them.',
                          interval_secs),
        GaugeMetricFamily('memmon_tick_duration_seconds', 'How long the last check took.',
                          duration_secs),
    ]
    if watch.options.total and watch.total is not None:
        size, _ = in_bytes(watch.options.total.sizes, watch.machine)
        families += [
            GaugeMetricFamily('memmon_total_bytes', 'Memory that all processes use.', watch.total),
            GaugeMetricFamily('memmon_total_limit_bytes', 'Memory limit of all processes together.',
                              size),
        ]
    return families


def replace_file(file: str, content: bytes) -> None:
    """Replace a file, which others may read, in one step. Raises OSError."""
    draft = f'{file}.new'  # not *.prom, which node_exporter would read
    try:
        with open(draft, 'wb') as new:
            new.write(content)
            os.fchmod(new.fileno(), 0o644)
        os.replace(draft, file)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(draft)
        raise


def read_last_tick(file: str) -> tuple[float, float]:
    """Return when memmon last ticked, in seconds since the epoch, and its interval in seconds.

    Raises OSError, ValueError.
    """
    from prometheus_client.parser import text_string_to_metric_families
    with open(file, encoding='utf-8') as metrics:
        samples = {sample.name: sample.value for family in
                   text_string_to_metric_families(metrics.read()) for sample in family.samples}
    try:
        return (samples['memmon_last_tick_timestamp_seconds'],
                samples['memmon_tick_interval_seconds'])
    except KeyError as error:
        raise ValueError(f'it has no {error.args[0]}') from None


# Listen: the event protocol, and the tick.

class HeaderError(Exception):
    """A header that cannot be read: from here on nobody knows where the next event begins."""


def read_event(stdin: TextIO) -> str | None:
    """Return the name of the next event; None at the end of stdin.

    http://supervisord.org/events.html#event-listener-notification-protocol
    Raises HeaderError.
    """
    header = stdin.readline()
    if not header.endswith('\n'):
        return None
    # Not childutils.get_headers: it fails at a space or a colon in supervisord's identifier.
    tokens = dict(token.partition(':')[::2] for token in header.split())
    if not ('eventname' in tokens and re.fullmatch('[0-9]{1,15}', tokens.get('len', ''))):
        raise HeaderError(f'this is no header of an event: {header[:200]!r}')
    return tokens['eventname'] if discard_payload(stdin, int(tokens['len'])) else None


def discard_payload(stdin: TextIO, length: int) -> bool:
    """Read a payload piece by piece, to keep the heap small; tell whether it was all there.

    The length is in characters: supervisord takes it before it encodes the payload.
    """
    while length:
        piece = stdin.read(min(length, 4096))
        if not piece:
            return False
        length -= len(piece)
    return True


Verdict = Tuple[Watched, Reading, str]


class Listener:
    """The event listener: one tick after the other."""

    def __init__(self, options: Options, server: Server) -> None:
        self.options = options
        self.watch = Watch(options, server)
        self.workers = Workers(options, server)
        self.metrics = Metrics(options.metrics) if options.metrics else None
        self.failures = 0  # ticks in a row at which nothing could be checked
        self.has_warned = False

    def serve(self, stdin: TextIO, stdout: TextIO) -> None:
        """Answer supervisord's events until it closes stdin. Raises HeaderError, OSError."""
        while True:
            childutils.listener.ready(stdout)
            self.tend_workers(stdin.fileno())
            event = read_event(stdin)
            if event is None:
                return
            if re.fullmatch('TICK_[0-9]+', event):
                began = time.monotonic()
                self.tick()
                if self.metrics and not self.failures:
                    self.metrics.write(self.watch, int(event[len('TICK_'):]),
                                       time.monotonic() - began)
            elif not self.has_warned:
                self.has_warned = True
                log.warning('%s is not a TICK event; memmon acts on TICK events only, '
                            'such as events=TICK_60', event)
            childutils.listener.ok(stdout)

    def tend_workers(self, stdin: int) -> None:
        """Take in what the workers tell, until there is an event.

        What a worker owed that was killed is paid a second later, or at the next tick.
        """
        is_event = False
        while (self.workers.workers or self.workers.debts) and not is_event:
            timeout_secs = 1 if self.workers.debts else None
            is_event, told = self.workers.collect(stdin, timeout_secs)
            self.note(told)
            if self.workers.debts and not is_event:
                self.dispatch([], [])

    def note(self, told: Sequence[tuple[Job, Note]]) -> None:
        """Remember what became of restarts."""
        for job, note in told:
            outcome = OUTCOMES[note.outcome]
            if outcome not in ('', PUT_OFF):
                self.watch.children = None  # whatever the pids say: a pid can come back
            watched = self.watch.watched.get(job.reading.process.namespec)
            if not watched:
                continue
            if outcome == RESTARTED:
                window_secs = max(3600, self.options.restarts.secs if self.options.restarts else 0)
                watched.note_restart(job.reading, note, time.monotonic(), window_secs)
            elif outcome == PUT_OFF:
                watched.told.add(PUT_OFF)
            elif outcome == STOP_FAILED or note.is_reported and not outcome:
                watched.failures_total += 1

    def tick(self) -> None:
        """Look at the processes, decide, and have restarted what is to be restarted."""
        due: list[Verdict] = []
        news: list[News] = []
        failure = ''
        try:
            now = time.monotonic()
            processes, readings = self.watch.look()
            if log.isEnabledFor(logging.DEBUG):
                log_readings(readings)
            verdicts = self.judge_each(readings, now)
            verdicts += self.judge_total(processes, verdicts, now)
            due = [verdict for verdict in verdicts if verdict[2] == DUE]
            news = self.news_of(verdicts)
            if self.watch.hidden and not self.watch.running:
                failure = f'no process can be measured: {HIDDEN}'
        except (MeasureError, SupervisordError) as error:
            failure = str(error)
        except Exception as error:  # a tick survives anything
            failure = f'{type(error).__name__}: {reason_of(error)}'
        news = [*self.news_of_failure(failure), *news]
        for item in news:
            log.log(item.level, '%s', item.line)
        self.dispatch(due, news)

    def news_of_failure(self, failure: str) -> list[News]:
        """Return what to report of a tick at which nothing could be checked, or no more."""
        failures, self.failures = self.failures, self.failures + 1 if failure else 0
        if failure:
            subject = 'nothing could be checked at two ticks in a row' if failures == 1 else ''
            is_known = failure.endswith(HIDDEN) and not subject  # the log has named what is hidden
            return [News(logging.DEBUG if is_known else logging.ERROR,
                         f'nothing checked at this tick: {failure}', subject)]
        if failures > 1:
            return [News(logging.INFO, f'processes are checked again, after {failures} ticks',
                         'processes are checked again')]
        return []

    def judge_each(self, readings: Sequence[tuple[Watched, Reading]], now: float) -> list[Verdict]:
        """Return what follows for each process that is over its own limit, or near it."""
        verdicts, warn = [], self.options.warn
        for watched, reading in readings:
            since = watched.note_reading(reading, now)
            if since is not None or warn and is_near(reading, warn):
                verdicts.append(self.judge(watched, reading, since, watched.fresh, now))
        return verdicts

    def judge_total(self, processes: Processes, verdicts: Sequence[Verdict], now: float
                    ) -> list[Verdict]:
        """Return what follows from the limit of the total: at most one process is due.

        And none as long as restarts for other limits may help, as those that are put off do not.
        """
        readings = self.watch.look_at_total(processes, now)
        under_way = [job for job in self.workers.under_way() if job.reading.total is not None]
        due = [watched for watched, _, verdict in verdicts if verdict == DUE]
        may_help = any(PUT_OFF not in watched.told for watched in due)
        if readings is None or under_way or may_help:
            return []
        judged = []
        for watched, reading in readings:
            if watched in due:
                continue
            since, fresh = self.watch.total_since, watched.fresh_total
            judged.append(self.judge(watched, reading, since, fresh, now))
            if judged[-1][2] in (DUE, BRIEF):
                return judged
        if not self.watch.has_told_total:
            self.watch.has_told_total = True
            log.warning('total %s is over the limit (%s), but there is no process left whose '
                        'restart would help', format_size(self.watch.total or 0),
                        self.options.total.given if self.options.total else '')
        return judged

    def judge(self, watched: Watched, reading: Reading, since: float | None, fresh: int | None,
              now: float) -> Verdict:
        """Return what follows from a reading and from what is remembered."""
        window_secs = self.options.restarts.secs if self.options.restarts else 0
        restarts = watched.restarts_within(window_secs, now, reading.process.pid)
        over_secs = now - since if since is not None else 0
        fresh = fresh if watched.is_own else None
        return watched, reading, judge(reading, over_secs, len(restarts), fresh, self.options)

    def news_of(self, verdicts: Sequence[Verdict]) -> list[News]:
        """Return what is to be reported of verdicts that lead to no restart, each once."""
        return [item for watched, reading, verdict in verdicts
                for item in [self.news_of_verdict(watched, reading, verdict)] if item]

    def news_of_verdict(self, watched: Watched, reading: Reading, verdict: str) -> News | None:
        """Return what is to be reported of a verdict; None if there is nothing new."""
        now = time.monotonic()
        news = None
        if verdict == DUE:
            watched.told.discard(HELD)
        if verdict == NEAR and not watched.is_warned:
            watched.is_warned = True
            growth = watched.describe_growth(reading, now)
            forecast = watched.course.forecast((reading.size or 0) - (reading.memory or 0), now)
            news = news_of_warning(reading, watched.describe_course(reading, now),
                                   f'; {growth}{forecast}' if growth else '')
        elif verdict == HELD and HELD not in watched.told and self.options.restarts:
            news = news_of_hold(self.options.restarts, reading,
                                watched.describe_course(reading, now))
        elif verdict == DUE and self.options.dry_run and DUE not in watched.told:
            news = news_of_dry_run(reading, watched.describe_course(reading, now))
        if news:
            watched.told.add(verdict)
        return news

    def dispatch(self, due: Sequence[Verdict], news: Sequence[News]) -> None:
        """Have processes restarted, debts paid and news delivered."""
        now = time.monotonic()
        jobs = [Job(reading, Debt(), self.watch.companions(reading.process),
                    recent=len(watched.restarts_within(3600, now, reading.process.pid)),
                    course=watched.describe_course(reading, now),
                    is_put_off=PUT_OFF in watched.told)
                for watched, reading, _ in due if not self.options.dry_run]
        try:
            self.workers.dispatch(
                jobs, [item for item in news if is_deliverable(self.options, item)],
                self.watch.supervisord_pid)
        except Exception as error:  # no memory, no descriptor, no thread
            log.error('no restarts before the next tick: %s', reason_of(error))


def log_readings(readings: Sequence[tuple[Watched, Reading]]) -> None:
    """Log what each process uses."""
    for _, reading in readings:
        log.debug('%s: %s of %s (%s)', reading.process.namespec, describe_use(reading),
                  describe_sizes(reading), reading.limit.given if reading.limit else '')


def find_server(env: Mapping[str, str]) -> Server:
    """Return the server that supervisord tells its children of. Raises UsageError."""
    if env.get('SUPERVISOR_SERVER_URL'):
        return parse_server(env)
    if 'SUPERVISOR_ENABLED' in env:
        raise UsageError('supervisord has no RPC server for memmon to call: add a '
                         '[unix_http_server] and a [rpcinterface:supervisor] section to '
                         'supervisord.conf')
    raise UsageError('memmon is a supervisor event listener, to be started by supervisord from a '
                     'section like: [eventlistener:memmon] command=memmon -a 200MB '
                     'events=TICK_60; for one look at what runs now: memmon --check -a 200MB')


def warn_of_missing_mailer(command: str) -> None:
    """Log it if the program that sends mail is not there: Debian comes without any."""
    match = re.match(r'\s*([\w./+-]+)(\s|$)', command)
    if match:
        program = match.group(1)
        try:
            run(['sh', '-c', 'command -v "$1"', 'sh', program], PS_TIMEOUT_SECS)
        except CommandError:
            log.warning('no mail can be sent: there is no %s; install it, or name another command '
                        'with -s', program)
        except OSError as error:
            log.debug('cannot look for %s: %s', program, error)


def listen(options: Options, server: Server) -> None:
    """Serve supervisord's events until it closes stdin. Raises HeaderError."""
    log.info('memmon %s waits for TICK events: %s', __version__, describe_limits(options))
    if options.email:
        warn_of_missing_mailer(options.sendmail_program)
    listener = Listener(options, server)
    with contextlib.suppress(Fault, SupervisordError):  # the first tick asks again
        listener.watch.supervisord_pid = server.pid()
    # As supervisord writes: UTF-8 in any locale, and a newline alone ends a line.
    try:
        with open(0, encoding='utf-8', errors='replace', newline='\n', closefd=False) as stdin, \
                open(1, 'w', closefd=False) as stdout:
            listener.serve(stdin, stdout)
    except BrokenPipeError:
        pass  # supervisord has ended
    finally:
        listener.workers.end()


# Check: one look, for a person.

def find_any_server(options: Options, env: Mapping[str, str]) -> tuple[Server, str]:
    """Return the server that --config, the environment or supervisorctl's configuration names.

    With it comes the file of a configuration. Raises UsageError.
    """
    if env.get('SUPERVISOR_SERVER_URL') and not options.config:
        return parse_server(env), ''
    from supervisor.options import ClientOptions  # Imported here: costs 0.8 MB.
    client = ClientOptions()
    file = options.config or client.default_configfile()
    if not file:
        raise UsageError('no supervisord.conf where supervisorctl looks for it: set '
                         'SUPERVISOR_SERVER_URL, such as unix:///var/run/supervisor.sock, or '
                         'give --config')
    client.configfile = file
    try:
        with open(file, 'rb'):
            pass  # supervisor does not tell why it cannot be opened
        client.process_config(do_usage=False)
    except OSError as error:
        raise UsageError(f'cannot read {file}: {error.strerror}') from None
    except (ValueError, configparser.Error) as error:
        raise UsageError(f'{file}: {first_and_last_line(error)}; fix it, or set '
                         'SUPERVISOR_SERVER_URL') from None
    return parse_server({
        'SUPERVISOR_USERNAME': client.username or '',
        'SUPERVISOR_PASSWORD': client.password or '',
        **env,
        'SUPERVISOR_SERVER_URL': client.serverurl,
    }), file


def check(options: Options, columns: int) -> tuple[list[str], int]:
    """Return what --check prints, and its status. Raises UsageError."""
    server, file = find_any_server(options, os.environ)
    try:
        table, readings, total = read_all(server, options)
    except (Fault, SupervisordError, MeasureError) as error:
        raise UsageError(reason_of(error) + f' (the URL is that of {file})' * bool(file)) from None
    processes = [reading.process for reading in readings]
    lines = format_table(sorted(readings, key=rank, reverse=True), options, columns)
    lines += explain_unmatched(Limits(options.limits).unmatched(processes), processes)
    unmeasured = [reading.process.namespec for reading in readings if is_unmeasured(reading)]
    if unmeasured:
        lines.append(f'cannot measure {", ".join(unmeasured)}: {HIDDEN}')
    lines += explain_trees(table, readings, options)
    if file:
        lines.append(f'supervisord: {show_url(server.url)}, from {file}')
    if not (options.limits or options.total):
        lines += propose_limits(table, readings, options)
    if total:
        lines.append(f'total: {options.kind.upper()} {format_size(total.total or 0)} of '
                     f'{describe_sizes(total)} ({total.limit.given if total.limit else ""}), '
                     f'{share_of(total) or 0:.0%}')
    is_ticking, news = check_ticks(options.metrics) if options.metrics else (True, [])
    is_any_over = any(map(is_over, [*readings, *([total] if total else [])]))
    return lines + news, 2 if unmeasured or not is_ticking else int(is_any_over)


def check_ticks(file: str) -> tuple[bool, list[str]]:
    """Return whether the memmon that writes a file of metrics ticks, and a line about it."""
    try:
        last, interval_secs = read_last_tick(file)
    except (OSError, ValueError) as error:
        return False, [f'last tick: unknown, since {file} cannot be read: '
                       f'{getattr(error, "strerror", None) or first_and_last_line(error)}']
    age = time.time() - last
    is_ticking = age <= 3 * interval_secs
    line = (f'last tick: {format_duration(age)} ago, one is due every '
            f'{format_duration(interval_secs)}')
    return is_ticking, [line + ': memmon is not ticking' * (not is_ticking)]


def explain_trees(table: ProcessTable, readings: Sequence[Reading], options: Options) -> list[str]:
    """Return sentences about processes for which -c or -k pss would tell more of the truth."""
    lines = []
    for reading in readings:
        process = reading.process
        if reading.rss is None:
            continue
        if not reading.with_descendants:
            memory = look_below(table, process.pid)
            if memory:
                lines.append(explain_wrapper(process, *memory))
        elif options.kind == 'rss':
            pids = tree(table, process.pid)
            pss, unread = measure_pss(table, pids)
            if len(pids) > 2 and not unread and reading.rss > 1.5 * pss:
                lines.append(f'{process.namespec} shares memory among its {len(pids)} processes: '
                             f'with -k pss, {format_size(pss)} counts')
    return lines


def propose_limits(table: ProcessTable, readings: Sequence[Reading], options: Options
                   ) -> list[str]:
    """Return a paragraph with a limit for each program: half as much again as its peak."""
    measured = [reading for reading in readings if reading.peak and not is_memmon(reading.process)]
    pids = [reading.process.pid for reading in measured]
    with_descendants = options.cumulative or any(look_below(table, pid) for pid in pids)
    groups: dict[str, set[str]] = {}
    for reading in measured:
        groups.setdefault(program_of(reading.process), set()).add(reading.process.group)
    peaks: dict[str, int] = {}
    for reading in measured:
        program = program_of(reading.process)
        name = program if len(groups[program]) == 1 else f'{reading.process.group}:{program}'
        pids = tree(table, reading.process.pid) if with_descendants else []
        peaks[name] = max(peaks.get(name, 0), read_peak(pids) or reading.peak or 0)
    if not peaks:
        return []
    words = [shlex.quote(f'{name}={round_up(1.5 * peak)}') for name, peak in sorted(peaks.items())]
    youngest = format_duration(min(reading.uptime for reading in measured))
    return ['', 'Limits of half as much again as the peaks, ready to paste:', '',
            '    memmon ' + '-c ' * with_descendants + ' '.join(f'-p {word}' for word in words), '',
            f'The youngest process has been up for {youngest}: peaks mean little until '
            'your programs have been through their busiest hours.']


def is_memmon(process: Process) -> bool:
    """Tell whether a process seems to be a memmon, which needs no limit."""
    try:
        with open(f'/proc/{process.pid}/cmdline', 'rb') as file:
            words = file.read().split(b'\0')
    except OSError:
        return False
    return any(os.path.basename(word) in (b'memmon', b'memmon.py') for word in words[:3])


def round_up(size: float) -> str:
    """Return a size with two digits that is no less, such as 280MB."""
    unit = ''
    for larger in list(SIZE_UNITS)[1:]:
        if size < 1000:
            break
        size, unit = size / 1024, larger
    step = Decimal(10) ** (Decimal(size).adjusted() - 1)
    return f'{(Decimal(size) / step).to_integral_value(ROUND_CEILING) * step:f}{unit}'


def read_all(server: Server, options: Options
             ) -> tuple[ProcessTable, list[Reading], Reading | None]:
    """Return a reading of each process of supervisord, and one of the total if that has a limit.

    With them comes the table that they are from. Raises Fault, SupervisordError, MeasureError.
    """
    limits = Limits(options.limits)
    supervisord_pid = server.pid()
    machine = read_machine_memory()
    missing: list[tuple[str, int]] = []
    for _ in range(5):  # until what cannot be measured could not be before: else it has just ended
        processes = server.processes()
        table = read_process_table()
        readings = []
        for process in processes:
            limit = limits.apply_to(process)
            sizes = in_bytes(limit.sizes if limit else None, machine)
            reading = Reading(process, 0, options.cumulative, None, None, limit, *sizes)
            reading = measure_again(table, supervisord_pid, reading, options.kind)
            if reading.rss is not None:
                pids = tree(table, process.pid) if options.cumulative else [process.pid]
                reading = reading._replace(peak=read_peak(pids))
            readings.append(reading)
        before, missing = missing, [(reading.process.namespec, reading.process.pid)
                                    for reading in readings if is_unmeasured(reading)]
        if all(pair in before for pair in missing):
            break
    if not options.total or not readings:
        return table, readings, None
    total = measure_total(table, supervisord_pid, options.kind)
    sizes = in_bytes(options.total.sizes, machine)
    return table, readings, Reading(readings[0].process, 0, True, None, None, options.total,
                                    *sizes, total)


def is_unmeasured(reading: Reading) -> bool:
    """Tell whether the memory of a running process is not known."""
    return reading.process.pid != 0 and reading.memory is None


def rank(reading: Reading) -> tuple[float, int]:
    """Return what to sort by: the share of the limit, and the memory."""
    share = share_of(reading)
    return (-1 if share is None else share, -1 if reading.memory is None else reading.memory)


def format_table(readings: Sequence[Reading], options: Options, columns: int) -> list[str]:
    """Return the lines of a table; its last column is a bar as long as there is room."""
    rows = [format_row(reading) for reading in readings]
    heads = ['PROCESS', 'PID', 'UPTIME', options.kind.upper(), 'PEAK', 'LIMIT', 'SET BY', 'USED']
    align = [str.ljust, str.rjust, str.rjust, str.rjust, str.rjust, str.rjust, str.ljust,
             str.rjust]
    shown = [head not in ('LIMIT', 'SET BY', 'USED') or bool(options.limits) for head in heads]
    shown[heads.index('PEAK')] = any(reading.peak for reading in readings)
    widths = [max(map(len, column)) for column in zip(heads, *rows)]
    lines = ['  '.join(place(cell, width) for place, cell, width, is_shown
                       in zip(align, row, widths, shown) if is_shown) for row in [heads, *rows]]
    if options.limits:
        room = max(0, columns - len(lines[0]) - 2)
        bars = ['#' * int(min(share_of(reading) or 0, 1) * room) for reading in readings]
        lines = [f'{line}  {bar}' for line, bar in zip(lines, ['', *bars])]
    return [line.rstrip() for line in lines]


def format_row(reading: Reading) -> list[str]:
    """Return the cells of a row of the table."""
    process, share = reading.process, share_of(reading)
    unknown = 'unknown' if process.pid else '-'
    return [
        process.namespec,
        str(process.pid or '-'),
        format_duration(reading.uptime) if process.pid else process.statename,
        unknown if reading.memory is None else format_size(reading.memory),
        '-' if reading.peak is None else format_size(reading.peak),
        describe_sizes(reading),
        reading.limit.given if reading.limit else 'no option',
        '-' if share is None else f'{share:.0%}',
    ]


# Main: arguments to exit status.

class OneLineFormatter(logging.Formatter):
    """A formatter of lines: nothing that a message quotes can begin another one."""

    def format(self, record: logging.LogRecord) -> str:
        return ' '.join(super().format(record).splitlines())


def set_up_logging(is_verbose: bool) -> None:
    """Log to stderr, which may be closed, full or gone."""
    logging.raiseExceptions = False
    handler = logging.StreamHandler(open(2, 'w', errors='backslashreplace', closefd=False))
    handler.setFormatter(OneLineFormatter('%(asctime)s %(levelname)s memmon: %(message)s'))
    log.addHandler(handler)
    log.setLevel(logging.DEBUG if is_verbose else logging.INFO)


def open_standard_streams() -> None:
    """Open /dev/null in place of a closed stdin, stdout or stderr: no other file may take it."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest that is free


def write_stdout(text: str) -> None:
    """Write a text to stdout, quietly if its reader has gone. Raises UsageError."""
    try:
        with open(1, 'w', errors='backslashreplace', closefd=False) as stdout:
            stdout.write(text)
    except BrokenPipeError:
        pass
    except OSError as error:
        raise UsageError(f'cannot write to stdout: {error.strerror}') from None


def write_stderr(line: str) -> None:
    """Write a line to stderr, if there is one."""
    with contextlib.suppress(OSError), \
            open(2, 'w', errors='backslashreplace', closefd=False) as stderr:
        stderr.write(f'memmon: {line}\n')


def main() -> int:
    """Run memmon.

    Returns 0 when supervisord has closed stdin, 1 if its events cannot be read, 2 if memmon cannot
    start; see check.
    """
    open_standard_streams()
    try:
        return run_memmon(parse_args(sys.argv[1:]))
    except UsageError as error:
        write_stderr(str(error))
        return 2
    except HeaderError as error:
        write_stderr(str(error))
        return 1


def run_memmon(options: Options) -> int:
    """Do what the options ask for; return the exit status. Raises UsageError, HeaderError."""
    socket.setdefaulttimeout(RPC_TIMEOUT_SECS)
    status = 0
    if options.help:
        write_stdout(__doc__)
    elif options.version:
        write_stdout(f'memmon {__version__}\n')
    elif options.check:
        lines, status = check(options, shutil.get_terminal_size().columns)
        write_stdout('\n'.join(lines) + '\n')
    else:
        server = find_server(os.environ)
        set_up_logging(options.verbose)
        listen(options, server)
    return status


if __name__ == '__main__':
    sys.exit(main())
