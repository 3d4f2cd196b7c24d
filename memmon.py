"""memmon is a supervisor event listener. On each TICK event it looks at the
memory (RSS) of supervisord's child processes, and restarts those that use
more than they were allowed. supervisord starts it, from a section like this:

    [eventlistener:memmon]
    command=memmon -a 200MB -m bob@example.com
    events=TICK_60

Usage: memmon [options]

  -p, --program NAME=SIZE    the limit of a program, for each of its processes;
                             NAME is a program or a namespec, GROUP:NAME
  -g, --groupname NAME=SIZE  the limit of each process of a group
  -a, --any SIZE             the limit of every child of supervisord
  -c, --cumulative           judge a process by its own RSS and that of all its
                             descendants, added up
  -m, --email ADDRESS        mail ADDRESS about restarts; for several, use
                             commas or repeat the option
  -s, --sendmail_program COMMAND
                             the command that sends the mail on its standard
                             input (default: /usr/sbin/sendmail -t -i)
  -u, --uptime DURATION      mail about a restart only if the process had been
                             up no longer than this
  -n, --name TEXT            put [TEXT] into the subjects of mails
  -v, --verbose              log the RSS and limit of each process at each tick
      --check                show what uses how much of its limit, once, and end:
                             with 0 if all are within their limits, 1 if some
                             are over, 2 if that could not be found out
  -h, --help                 show this help
  -V, --version              show the version

SIZE is a number of bytes, or one with KB, MB, GB or TB, in powers of 1024:
200MB, 1.5GB. DURATION is a number of seconds, or one with s, m, h or d: 90,
5m, 2h, 1d. -p and -g can be repeated, and their NAME may be a shell pattern:
'queue:*', 'web-?'.

One limit counts for a process: -p comes before -g, and -g before -a. Within
these, an exact name comes before a pattern, then the first given. memmon never
restarts itself.
"""

from __future__ import annotations

import configparser
import contextlib
import datetime
import email.utils
import fnmatch
import getopt
import http.client
import logging
import mmap
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from decimal import Decimal
from email.message import EmailMessage
from typing import Any, Callable, Dict, Iterable, Iterator, Mapping, NamedTuple, Sequence, TextIO
from xml.parsers.expat import ExpatError
from xmlrpc.client import Fault, ProtocolError, ResponseError

from supervisor import childutils
from supervisor.datatypes import SuffixMultiplier, byte_size
from supervisor.states import ProcessStates
from supervisor.xmlrpc import Faults

__version__ = '1.0.0'

log = logging.getLogger('memmon')

PS_TIMEOUT_SECS = 10
RPC_TIMEOUT_SECS = 10
MAIL_TIMEOUT_SECS = 30

MAX_WORKERS = 8
TRIES = 3                   # to reach supervisord in the middle of a restart, and to start a program
SECS_BETWEEN_TRIES = 1
BACKOFF_PATIENCE_SECS = 60  # supervisord's three retries take 6 seconds and what the starts themselves take


# Values: a string in, a value or a ValueError out.

SIZE_UNITS = {'K': 2 ** 10, 'M': 2 ** 20, 'G': 2 ** 30, 'T': 2 ** 40}
DURATION_UNITS = {'s': 1, 'm': 60, 'h': 60 * 60, 'd': 24 * 60 * 60}


def parse_size(text: str) -> int:
    """Return the bytes that a size such as 1048576, 200MB or 1.5GB stands for.

    What supervisor's byte_size takes means the same here. Raises ValueError.
    """
    try:
        size = byte_size(text)
    except ValueError:
        match = re.fullmatch(r'([0-9]*\.?[0-9]+)([KMGT])B?', text.strip().upper())
        size = int(Decimal(match.group(1)) * SIZE_UNITS[match.group(2)]) if match else 0
    if size <= 0:
        raise ValueError(
            f'{text!r} is not a size: give a number of bytes above 0, or one with KB, MB, GB or TB, such as 200MB')
    return int(size)


def parse_duration(text: str) -> int:
    """Return the seconds that a duration such as 90, 90s, 5m, 2h or 1d stands for. Raises ValueError."""
    try:
        secs = SuffixMultiplier(DURATION_UNITS)(text)
    except ValueError:
        secs = 0
    if secs <= 0:
        raise ValueError(
            f'{text!r} is not a duration: give a number of seconds above 0, or one with s, m, h or d, such as 5m')
    return int(secs)


def parse_name_and_size(text: str) -> tuple[str, int]:
    """Return the name and the bytes of a pair such as web=200MB. Raises ValueError."""
    name, _, size = text.rpartition('=')
    if not name.strip():
        raise ValueError(f'{text!r} is not NAME=SIZE, such as web=200MB')
    return name.strip(), parse_size(size)


def parse_any(text: str) -> tuple[str, int]:
    """Return the pattern that stands for every name, and the bytes of a size. Raises ValueError."""
    return '*', parse_size(text)


def parse_line(text: str) -> str:
    """Return a text that fits on one line and into a mail's subject. Raises ValueError."""
    if not text.isprintable():
        raise ValueError(f'{text!r} is not one line of text')
    return text


def parse_command(text: str) -> str:
    """Return a shell command. Raises ValueError."""
    if not text.strip():
        raise ValueError('the command is empty: give one that sends the mail on its standard input')
    return text


def parse_addresses(text: str) -> list[str]:
    """Return the addresses of a comma-separated list. Raises ValueError."""
    pairs = email.utils.getaddresses([parse_line(text).strip(' ,')])
    if not pairs or not all(re.fullmatch(r'[!-?A-~]+(@[!-?A-~]+)?', address) for _, address in pairs):
        raise ValueError(f'{text!r} is not an email address, nor several with commas between them')
    return [email.utils.formataddr(pair) for pair in pairs]


def format_size(size: int) -> str:
    """Return bytes in the largest unit of which there is at least one, such as 212.4MB."""
    for unit in reversed(SIZE_UNITS):
        if size >= SIZE_UNITS[unit]:
            return f'{round(size / SIZE_UNITS[unit], 1):g}{unit}B'
    return str(size)


def format_duration(secs: float) -> str:
    """Return seconds as supervisorctl shows an uptime, such as 0:12:05."""
    return str(datetime.timedelta(seconds=max(0, int(secs))))


def one_line(error: object) -> str:
    """Return what an error says as one line: of several the first and the last."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return ' ... '.join(lines[:1] + lines[1:][-1:]) or type(error).__name__


# Options: the arguments in, one immutable Options or a StartError out.

class StartError(Exception):
    """What keeps memmon from starting, in one line that says what to do."""


class Limit(NamedTuple):
    """The size that processes must not exceed, and the option that set it."""

    option: str   # the option's long name: program, groupname or any
    pattern: str  # of the names that it covers
    size: int     # bytes
    given: str    # the option as it was given, such as -p web=200MB


class Options(NamedTuple):
    """The command line, as parse_args read it."""

    limits: tuple[Limit, ...]
    cumulative: bool
    email: tuple[str, ...]
    sendmail_program: str
    uptime: float  # seconds; mail about a restart only if the process had been up no longer
    name: str
    verbose: bool
    check: bool
    help: bool
    version: bool


class Option(NamedTuple):
    """A row of the table of options; without a parser it takes no argument."""

    letter: str
    name: str
    parse: Callable[[str], Any] | None = None


# getopt takes any prefix of a long option that fits no other: --group and --sendmail are among them.
OPTIONS = (
    Option('p', 'program', parse_name_and_size),
    Option('g', 'groupname', parse_name_and_size),
    Option('a', 'any', parse_any),
    Option('c', 'cumulative'),
    Option('m', 'email', parse_addresses),
    Option('s', 'sendmail_program', parse_command),
    Option('u', 'uptime', parse_duration),
    Option('n', 'name', parse_line),
    Option('v', 'verbose'),
    Option('', 'check'),
    Option('h', 'help'),
    Option('V', 'version'),
)
LIMIT_OPTIONS = ('program', 'groupname', 'any')  # the most specific first


def parse_args(argv: Sequence[str]) -> Options:
    """Return the options that the arguments ask for. Raises StartError."""
    letters = ''.join(option.letter + ':' * bool(option.parse) for option in OPTIONS)
    names = [option.name + '=' * bool(option.parse) for option in OPTIONS]
    try:
        pairs, words = getopt.getopt(argv, letters, names)
    except getopt.GetoptError as error:
        raise StartError(f'{error}; memmon --help lists the options') from None
    values: dict[str, list[Any]] = {option.name: [] for option in OPTIONS}
    for flag, text in pairs:
        option = next(option for option in OPTIONS if flag in ('-' + option.letter, '--' + option.name))
        values[option.name].append(parse_value(option, flag, text))
    if words:
        hint = 'each NAME=SIZE wants a -p or -g of its own' if '=' in words[0] else 'memmon --help lists the options'
        raise StartError(f'{words[0]!r} belongs to no option: {hint}')
    limits = tuple(values['program'] + values['groupname'] + values['any'][-1:])
    if not (limits or values['check'] or values['help'] or values['version']):
        raise StartError('nothing to watch: give a limit with -p, -g or -a, such as -a 200MB; see memmon --help')
    return Options(
        limits=limits,
        cumulative=bool(values['cumulative']),
        email=tuple(address for addresses in values['email'] for address in addresses),
        sendmail_program=(values['sendmail_program'] or ['/usr/sbin/sendmail -t -i'])[-1],
        uptime=(values['uptime'] or [float('inf')])[-1],
        name=(values['name'] or [''])[-1],
        verbose=bool(values['verbose']),
        check=bool(values['check']),
        help=bool(values['help']),
        version=bool(values['version']),
    )


def parse_value(option: Option, flag: str, text: str) -> Any:
    """Return the value of an option as it was given. Raises StartError."""
    if not option.parse:
        return True
    try:
        value = option.parse(text)
    except ValueError as error:
        raise StartError(f'{flag}: {error}') from None
    if option.name in LIMIT_OPTIONS:
        pattern, size = value
        return Limit(option.name, pattern, size, f'{flag} {text}')
    return value


# Measure: the process table, from ps or from /proc.

class CommandError(Exception):
    """How a command failed."""


def run(command: str | list[str], timeout_secs: int, text: bytes, stdout: int, stderr: int) -> bytes:
    """Run a command with text on its standard input, and return what it printed, if stdout is a pipe.

    A string is for the shell. Raises OSError, and CommandError for an exit status or when time is up; then all of the
    command's process group is killed.
    """
    with subprocess.Popen(command, shell=isinstance(command, str), start_new_session=True, stdin=subprocess.PIPE,
                          stdout=stdout, stderr=stderr) as process:
        try:
            output, _ = process.communicate(text, timeout_secs)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise CommandError(f'not done after {timeout_secs} seconds, so killed') from None
    if process.returncode < 0:
        raise CommandError(f'killed by signal {-process.returncode}')
    if process.returncode:
        raise CommandError(f'exit status {process.returncode}')
    return output or b''


class MeasureError(Exception):
    """Why the memory of the processes is not known."""


class Row(NamedTuple):
    """What the process table says of one pid."""

    parent: int  # pid
    rss: int     # bytes


ProcessTable = Mapping[int, Row]


def read_process_table() -> ProcessTable:
    """Return the parent and the RSS of every process of this machine. Raises MeasureError."""
    try:
        return read_ps()
    except (OSError, CommandError, MeasureError) as error:
        log.debug('no process table from ps (%s): reading /proc', error)
        try:
            return read_proc()
        except (OSError, MeasureError) as proc_error:
            raise MeasureError(f'no process table from ps ({error}), nor from /proc ({proc_error})') from None


# A path, for without one Popen lists a candidate for each directory of PATH, which costs 250 KB of RSS in 2,000 ticks.
PS = shutil.which('ps')


def read_ps() -> ProcessTable:
    """Return the process table that ps prints. Raises OSError, CommandError, MeasureError."""
    if not PS:
        raise MeasureError('there is none')
    # FreeBSD and macOS take each column in an -o of its own only.
    command = [PS, '-A', '-o', 'pid=', '-o', 'ppid=', '-o', 'rss=']
    return parse_ps(run(command, PS_TIMEOUT_SECS, text=b'', stdout=subprocess.PIPE, stderr=subprocess.DEVNULL))


def parse_ps(output: bytes) -> ProcessTable:
    """Return the process table that ps printed: lines of a pid, its parent's pid and its RSS in KB.

    Raises MeasureError unless it is whole: each line a triple of numbers, the last one ended, this process in it.
    """
    table = {}
    for line in output.splitlines():
        fields = line.split()
        if len(fields) != 3 or not all(field.isdigit() and len(field) < 20 for field in fields):
            raise MeasureError(f'it printed {line[:60]!r}')
        pid, parent, kilobytes = map(int, fields)
        table[pid] = Row(parent, kilobytes * 1024)
    if os.getpid() not in table or not output.endswith(b'\n'):
        raise MeasureError('its table is not whole')
    return table


def read_proc() -> ProcessTable:
    """Return the process table of Linux's /proc; see proc(5) for the fields of stat. Raises OSError, MeasureError."""
    page_bytes = os.sysconf('SC_PAGE_SIZE')
    table = {}
    for pid in filter(str.isdigit, os.listdir('/proc')):
        try:
            with open(f'/proc/{pid}/stat', 'rb') as stat:
                # The command's name is in parentheses, and may hold blanks and parentheses itself.
                fields = stat.read().rpartition(b')')[2].split()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # it has ended, or is hidden from this user
        table[int(pid)] = Row(int(fields[1]), int(fields[21]) * page_bytes)
    if os.getpid() not in table:
        raise MeasureError('it does not show memmon itself')
    return table


def children_by_parent(table: ProcessTable) -> dict[int, list[int]]:
    """Return the pids of each process's children."""
    children: dict[int, list[int]] = {}
    for pid, row in table.items():
        children.setdefault(row.parent, []).append(pid)
    return children


def tree_rss(table: ProcessTable, children: Mapping[int, Sequence[int]], root: int) -> int:
    """Return the RSS of a process and all its descendants in bytes, each counted once."""
    counted: set[int] = set()
    waiting = [root]
    while waiting:
        pid = waiting.pop()
        if pid not in counted:
            counted.add(pid)
            waiting += children.get(pid, ())
    return sum(table[pid].rss for pid in counted)


def rss_of(table: ProcessTable, pids: Iterable[int], cumulative: bool) -> dict[int, int]:
    """Return the RSS in bytes of those processes that are in the table, with their descendants' if cumulative."""
    children = children_by_parent(table) if cumulative else {}
    return {pid: tree_rss(table, children, pid) for pid in pids if pid in table}


# Decide: which limit applies to a process, and who is over it.

class Process(NamedTuple):
    """A process as supervisord knows it."""

    group: str
    name: str
    pid: int        # 0: it has none
    start: int      # seconds since the epoch
    statename: str

    @property
    def namespec(self) -> str:
        return f'{self.group}:{self.name}'


class Offender(NamedTuple):
    """A process over its limit, as it was measured."""

    process: Process
    limit: Limit
    rss: int     # bytes
    uptime: int  # seconds


def program_of(process: Process) -> str:
    """Return the name of the program that a process belongs to.

    The processes of a program with numprocs are told apart by their number, which ends the process name or is all of
    it: queue_00 and queue_01, or 00 and 01 in the group of the program. http://supervisord.org/configuration.html
    """
    if process.name == process.group:
        return process.name
    if process.name.isdigit():
        return process.group
    return re.sub(r'[-_.][0-9]+$', '', process.name)


def names_of(process: Process, limit: Limit) -> list[str]:
    """Return the names by which a limit may mean a process, its own name first."""
    if limit.option == 'groupname':
        return [process.group]
    names = [process.name, program_of(process)]
    return [f'{process.group}:{name}' for name in names] if ':' in limit.pattern else names


def distance(limit: Limit, process: Process) -> int | None:
    """Return how far a limit's name is from a process: 0 its own name, 1 its program's, 2 a pattern, None not its."""
    if limit.option == 'any':
        return 2
    names = names_of(process, limit)
    if limit.pattern in names:
        return names.index(limit.pattern)
    return 2 if any(fnmatch.fnmatchcase(name, limit.pattern) for name in names) else None


def limit_of(process: Process, limits: Sequence[Limit]) -> Limit | None:
    """Return the limit that applies to a process: the most specific, of equals the first given."""
    ranked = [(LIMIT_OPTIONS.index(limit.option), distance(limit, process), limit) for limit in limits]
    covering = [(option, far, limit) for option, far, limit in ranked if far is not None]
    return min(covering, key=lambda rank: rank[:2])[2] if covering else None


def limits_of(processes: Sequence[Process], limits: Sequence[Limit]) -> dict[Process, Limit]:
    """Return the processes that have a limit, each with the one that applies to it."""
    pairs = [(process, limit_of(process, limits)) for process in processes]
    return {process: limit for process, limit in pairs if limit}


def idle_limits(processes: Sequence[Process], limits: Sequence[Limit]) -> dict[Limit, str]:
    """Return the limits that cover no process, each with a sentence that says so and which names are near."""
    idle = [limit for limit in limits if all(distance(limit, process) is None for process in processes)]
    return {limit: f'{limit.given} covers no process{near_names(limit, processes)}' for limit in idle}


def near_names(limit: Limit, processes: Sequence[Process]) -> str:
    """Return the names that a limit may have meant, as the end of a sentence; empty where none is near."""
    import difflib  # here, for the listener need not hold its 130 KB as long as all names are right
    names = {name for process in processes for name in names_of(process, limit)}
    near = difflib.get_close_matches(limit.pattern, sorted(names))
    return f'; near it: {", ".join(near)}' if near else ''


# Act: ask supervisord, and restart one process.

class NoAnswer(Exception):
    """Why supervisord could not be asked, in words that a person can act on."""


def ask(env: Mapping[str, str], method: str, *args: Any) -> Any:
    """Call a method of supervisord's RPC interface on a connection of its own, and return what it answers.

    env holds SUPERVISOR_SERVER_URL and, if need be, SUPERVISOR_USERNAME and SUPERVISOR_PASSWORD. Raises Fault where
    supervisord refuses, and NoAnswer. http://supervisord.org/api.html
    """
    url = env['SUPERVISOR_SERVER_URL']
    if not url.startswith(('unix://', 'http://')):
        raise NoAnswer(f'the URL of supervisord is {url!r}: it has to begin with unix:// or http://')
    try:
        with childutils.getRPCInterface(env) as server:
            return getattr(server.supervisor, method)(*args)
    except Fault as fault:
        if fault.faultCode == Faults.SHUTDOWN_STATE:
            raise NoAnswer('supervisord is shutting down') from None
        if fault.faultCode == Faults.UNKNOWN_METHOD:
            raise NoAnswer(f'supervisord at {url} has no [rpcinterface:supervisor] section: add it') from None
        raise
    except ProtocolError as error:
        if error.errcode == http.client.UNAUTHORIZED:
            raise NoAnswer(f'supervisord at {url} refused the user name or password: set SUPERVISOR_USERNAME and '
                           "SUPERVISOR_PASSWORD in memmon's environment to those of its HTTP server") from None
        raise NoAnswer(f'what listens at {url} is no supervisord: it says {error.errcode} {error.errmsg}') from None
    except FileNotFoundError:
        raise NoAnswer(f'no such socket: {url}; does supervisord run, with a [unix_http_server] section?') from None
    except PermissionError:
        raise NoAnswer(f'no permission to use {url}: see chmod and chown in [unix_http_server]') from None
    except ConnectionRefusedError:
        raise NoAnswer(f'nobody listens at {url}; does supervisord run?') from None
    except (OSError, http.client.HTTPException, ResponseError, ExpatError, ValueError) as error:
        raise NoAnswer(f'no answer from a supervisord at {url}: {one_line(error)}') from None


Info = Dict[str, Any]  # what getProcessInfo answers


def look(env: Mapping[str, str], process: Process) -> Info:
    """Return what supervisord says of a process now, after a few tries if need be. Raises Fault, NoAnswer."""
    for tries_left in reversed(range(TRIES)):
        try:
            info: Info = ask(env, 'getProcessInfo', process.namespec)
            break
        except NoAnswer:
            if not tries_left:
                raise
            time.sleep(SECS_BETWEEN_TRIES)
    return info


def looks(env: Mapping[str, str], process: Process) -> Iterator[Info]:
    """Yield looks at a process without end: every 0.1 seconds at first, every second later. Raises Fault, NoAnswer."""
    began = time.monotonic()
    while True:
        yield look(env, process)
        time.sleep(min(1.0, 0.1 + (time.monotonic() - began) / 10))


NOTHING, OWED, OWED_AND_MAILED = range(3)


class Job(NamedTuple):
    """An offender to restart, and a byte of memory that the listener and its workers share."""

    offender: Offender
    debt: mmap.mmap  # its byte 0 says whether memmon owes the process a start


RESTARTED, LEFT_ALONE = 'restarted', 'left alone'
STOP_FAILED, START_FAILED = 'failed to stop', 'failed to start'


class Result(NamedTuple):
    """What became of the restart of one process."""

    verdict: str
    why: str
    pid: int = 0


def restart(env: Mapping[str, str], job: Job) -> Result:
    """Stop and start a process; only start it if memmon owes it that. Raises NoAnswer."""
    try:
        refusal = None if job.debt[0] else stop(env, job)
        return refusal or start(env, job)
    except Fault as fault:
        job.debt[0] = NOTHING
        gone = fault.faultCode in (Faults.NOT_RUNNING, Faults.BAD_NAME)
        return Result(LEFT_ALONE if gone else STOP_FAILED, one_line(fault.faultString))


def is_as_measured(process: Process, info: Info) -> bool:
    """Tell whether a process is the one that was measured, and up."""
    return bool(info['pid'] == process.pid and info['state'] in (ProcessStates.STARTING, ProcessStates.RUNNING))


def is_down(process: Process, info: Info) -> bool:
    """Tell whether a process has been stopped, and not been started since it was measured.

    supervisord sets a start time back when the clock is; it never sets it forward.
    """
    return bool(info['state'] == ProcessStates.STOPPED and info['start'] <= process.start)


def stop(env: Mapping[str, str], job: Job) -> Result | None:
    """Have supervisord stop a process, without waiting for it; return why not, if not. Raises Fault, NoAnswer."""
    process = job.offender.process
    info = look(env, process)
    if not is_as_measured(process, info):
        return Result(LEFT_ALONE, f'it is {info["statename"]} with pid {info["pid"]}')
    job.debt[0] = OWED
    try:
        ask(env, 'stopProcess', process.namespec, False)
    except NoAnswer:
        # Only the answer may be lost: then the process is on its way down.
        if is_as_measured(process, look(env, process)):
            job.debt[0] = NOTHING
            raise
    return None


def start(env: Mapping[str, str], job: Job) -> Result:
    """Have supervisord start a process once it is stopped, and wait until it is up. Raises Fault, NoAnswer."""
    process = job.offender.process
    why = ''
    for _ in range(TRIES):
        info = next(info for info in looks(env, process) if info['state'] != ProcessStates.STOPPING)
        if not is_down(process, info):
            break
        try:
            ask(env, 'startProcess', process.namespec, False)
        except (Fault, NoAnswer) as error:
            why = one_line(error.faultString if isinstance(error, Fault) else error)
            time.sleep(SECS_BETWEEN_TRIES)
    backoff_end = time.monotonic() + BACKOFF_PATIENCE_SECS
    for info in looks(env, process):
        backs_off = info['state'] == ProcessStates.BACKOFF and time.monotonic() < backoff_end
        if info['state'] != ProcessStates.STARTING and not backs_off:
            break
    if is_down(process, info):
        return Result(START_FAILED, f'{why}; memmon tries again at each tick')
    job.debt[0] = NOTHING
    if is_as_measured(process, info):
        return Result(LEFT_ALONE, 'the request to stop it was lost')
    if info['state'] == ProcessStates.RUNNING:
        return Result(RESTARTED, f'pid {process.pid} -> {info["pid"]}', info['pid'])
    if info['state'] in (ProcessStates.STOPPING, ProcessStates.STOPPED):
        return Result(LEFT_ALONE, 'somebody else has stopped it')
    return Result(START_FAILED, f'it is {info["statename"]}: {info["spawnerr"]}')


# Tell: log lines and mail.

def tell(options: Options, job: Job, result: Result) -> None:
    """Log what became of a restart, and mail it if it is to be mailed."""
    offender = job.offender
    level = logging.ERROR if result.verdict in (STOP_FAILED, START_FAILED) else logging.INFO
    log.log(level, '%s %s: RSS %s is over %s (%s), uptime %s; %s', result.verdict, offender.process.namespec,
            format_size(offender.rss), format_size(offender.limit.size), offender.limit.given,
            format_duration(offender.uptime), result.why)
    if options.email and is_news(options, job, result):
        send_mail(options, write_mail(options, offender, result))
    if job.debt[0]:
        job.debt[0] = OWED_AND_MAILED


def is_news(options: Options, job: Job, result: Result) -> bool:
    """Tell whether a result is one to mail: a failure the first time, a restart after a short enough uptime."""
    if result.verdict == RESTARTED:
        return job.offender.uptime <= options.uptime
    return result.verdict != LEFT_ALONE and job.debt[0] != OWED_AND_MAILED


def write_mail(options: Options, offender: Offender, result: Result) -> EmailMessage:
    """Return the mail that tells of a restart, or of its failure."""
    namespec = offender.process.namespec
    restarted = result.verdict == RESTARTED
    news = f'process {namespec} restarted' if restarted else f'{result.verdict} process {namespec}'
    mail = EmailMessage()
    mail['To'] = ', '.join(options.email)
    mail['Subject'] = f'memmon [{options.name}]: {news}' if options.name else f'memmon: {news}'
    lines = [
        f'memmon: {news}',
        '',
        f'host:     {socket.gethostname()}',
        f'time:     {datetime.datetime.now().astimezone():%Y-%m-%d %H:%M:%S %z}',
        f'uptime:   {format_duration(offender.uptime)}',
        f'old pid:  {offender.process.pid}',
        f'new pid:  {result.pid or "none"}',
        f'RSS:      {format_size(offender.rss)}{" with its descendants" if options.cumulative else ""}',
        f'limit:    {format_size(offender.limit.size)}',
        f'set by:   {offender.limit.given}',
    ]
    if not restarted:
        lines.append(f'reason:   {result.why}')
    mail.set_content('\n'.join(lines) + '\n', cte='8bit')  # readable for any command that -s may name
    return mail


def send_mail(options: Options, mail: EmailMessage) -> None:
    """Hand a mail to the sendmail command, whose output goes where the log goes."""
    stderr = sys.stderr.fileno()
    try:
        run(options.sendmail_program, MAIL_TIMEOUT_SECS, text=bytes(mail), stdout=stderr, stderr=stderr)
    except (OSError, CommandError) as error:
        log.error('no mail to %s: the command %r failed: %s', mail['To'], options.sendmail_program, error)


# Listen: the event protocol, the tick, the workers under way.

class ProtocolBroken(Exception):
    """A header that cannot be read: from here on nobody knows where the next event begins."""


def events(stdin: TextIO, stdout: TextIO) -> Iterator[str]:
    """Yield the name of each event until stdin ends, and answer OK when the next one is asked for.

    Nothing else writes to stdout: http://supervisord.org/events.html#event-listener-notification-protocol
    Raises ProtocolBroken.
    """
    while True:
        childutils.listener.ready(stdout)
        header = stdin.readline()
        if not header.endswith('\n'):
            return
        # Not childutils.get_headers: a blank or a colon in supervisord's identifier would be the end of it.
        tokens = dict(token.partition(':')[::2] for token in header.split())
        if not ('eventname' in tokens and tokens.get('len', '').isdigit()):
            raise ProtocolBroken(f'this is no header of an event: {header[:200]!r}')
        if not skip(stdin, int(tokens['len'])):
            return
        yield tokens['eventname']
        childutils.listener.ok(stdout)


def skip(stdin: TextIO, length: int) -> bool:
    """Read a payload and drop it, piece by piece to keep the heap small; tell whether it was all there.

    The length is in characters: supervisord takes it before it encodes the payload.
    """
    while length:
        piece = stdin.read(min(length, 4096))
        if not piece:
            return False
        length -= len(piece)
    return True


class Worker(NamedTuple):
    """A process that restarts programs."""

    pid: int  # 0: the listener did the work itself
    jobs: Sequence[Job]


def work(options: Options, env: Mapping[str, str], jobs: Sequence[Job]) -> None:
    """Restart processes one after the other, which is the whole life of a worker."""
    failed_groups = set()
    for job in jobs:
        group = job.offender.process.group
        if group in failed_groups:
            result = Result(LEFT_ALONE, 'another process of its group failed to start, so it waits for the next tick')
        else:
            try:
                result = restart(env, job)
            except NoAnswer as error:
                log.error('no restart of %s before the next tick: %s', job.offender.process.namespec, error)
                return
        if result.verdict == START_FAILED:
            failed_groups.add(group)
        tell(options, job, result)


def start_worker(options: Options, env: Mapping[str, str], jobs: Sequence[Job]) -> Worker:
    """Fork a worker; where there is no fork to be had, do its work."""
    try:
        pid = os.fork()
    except OSError as error:
        log.warning('no worker process (%s): the listener does its work', error)
        work(options, env, jobs)
        return Worker(0, jobs)
    if not pid:
        try:
            os.setsid()  # what kills memmon, and all of its process group, leaves the worker alone
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, 0)
            os.dup2(null, 1)
            work(options, env, jobs)
        except Exception:
            log.exception('a worker failed')
        finally:
            os._exit(0)
    return Worker(pid, jobs)


def has_ended(worker: Worker) -> bool:
    """Tell whether a worker is done, and reap it."""
    try:
        return not worker.pid or os.waitpid(worker.pid, os.WNOHANG)[0] == worker.pid
    except ChildProcessError:
        return True  # somebody who started memmon had SIGCHLD ignored


class Listener:
    """What memmon remembers from one event to the next."""

    def __init__(self, options: Options, env: Mapping[str, str]) -> None:
        self.options = options
        self.env = env
        self.supervisord_pid = 0
        self.children: frozenset[int] | None = None  # pids
        self.watched: list[tuple[Process, Limit]] = []
        self.idle_limits: dict[Limit, str] = {}
        self.workers: list[Worker] = []
        self.debts: list[Job] = []

    def collect(self) -> None:
        """Reap the workers that have ended, and take over what they still owe."""
        for worker in list(self.workers):
            if has_ended(worker):
                self.workers.remove(worker)
                self.debts += [job for job in worker.jobs if job.debt[0]]

    def tick(self) -> None:
        """Measure the processes, and have those that are over their limits restarted."""
        try:
            offenders = self.measure()
        except (MeasureError, NoAnswer) as error:
            log.error('nothing checked at this tick: %s', error)
            offenders = []
        self.hand_out(offenders)

    def measure(self) -> list[Offender]:
        """Return the processes that are over their limits. Raises MeasureError, NoAnswer."""
        table = read_process_table()
        self.name_children(table)
        rss_by_pid = rss_of(table, [process.pid for process, _ in self.watched], self.options.cumulative)
        offenders = []
        for process, limit in self.watched:
            rss = rss_by_pid[process.pid]
            log.debug('%s: RSS %s of %s (%s)', process.namespec, format_size(rss), format_size(limit.size), limit.given)
            if rss > limit.size:
                offenders.append(Offender(process, limit, rss, int(time.time()) - process.start))
        return offenders

    def name_children(self, table: ProcessTable) -> None:
        """Ask supervisord which of its children is which process, if they are not those of the last tick."""
        self.supervisord_pid = self.supervisord_pid or ask(self.env, 'getPID')
        children = frozenset(pid for pid, row in table.items() if row.parent == self.supervisord_pid)
        if children == self.children:
            return
        processes = list_processes(self.env)
        itself = (self.env.get('SUPERVISOR_GROUP_NAME'), self.env.get('SUPERVISOR_PROCESS_NAME'))
        others = [process for process in processes if (process.group, process.name) != itself]
        limits = limits_of(others, self.options.limits)
        if self.children is None:
            log.info("watching %d of supervisord's %d processes: %s", len(limits), len(processes),
                     ', '.join(limit.given for limit in self.options.limits))
        self.warn_of_idle_limits(others)
        self.watched = [(process, limit) for process, limit in limits.items() if process.pid in children]
        self.children = children

    def warn_of_idle_limits(self, processes: Sequence[Process]) -> None:
        """Log the limits that cover no process, unless they covered none before."""
        idle = idle_limits(processes, self.options.limits)
        for limit, warning in idle.items():
            if limit not in self.idle_limits:
                log.warning('%s', warning)
        self.idle_limits = idle

    def hand_out(self, offenders: Sequence[Offender]) -> None:
        """Deal the debts and the offenders to idle workers, group by group; those of one group go to one worker."""
        busy = {job.offender.process.group for worker in self.workers for job in worker.jobs}
        groups: dict[str, list[Job]] = {}
        for job in self.debts + [Job(offender, mmap.mmap(-1, 1)) for offender in offenders]:
            if job.offender.process.group not in busy:
                groups.setdefault(job.offender.process.group, []).append(job)
        idle = min(MAX_WORKERS - len(self.workers), len(groups))
        if groups and not idle:
            log.warning('%d groups wait for a restart: all %d workers are busy', len(groups), MAX_WORKERS)
            return
        self.debts = []
        queues = list(groups.values())
        for i in range(idle):
            jobs = [job for queue in queues[i::idle] for job in queue]
            self.workers.append(start_worker(self.options, self.env, jobs))


def list_processes(env: Mapping[str, str]) -> list[Process]:
    """Return all of supervisord's processes. Raises NoAnswer."""
    infos = ask(env, 'getAllProcessInfo')
    return [Process(info['group'], info['name'], info['pid'], info['start'], info['statename']) for info in infos]


def listen(options: Options, env: Mapping[str, str]) -> None:
    """Serve supervisord's events until it closes stdin. Raises StartError, ProtocolBroken."""
    if not env.get('SUPERVISOR_SERVER_URL'):
        if 'SUPERVISOR_ENABLED' in env:
            raise StartError('supervisord has no RPC server for memmon to call: add a [unix_http_server] and a '
                             '[rpcinterface:supervisor] section to supervisord.conf')
        raise StartError('this is a supervisor event listener, to be started by supervisord from a section like: '
                         '[eventlistener:memmon] command=memmon -a 200MB events=TICK_60; '
                         'for one look at what runs now: memmon --check -a 200MB')
    listener = Listener(options, env)
    with contextlib.suppress(NoAnswer):  # the first tick asks again, and says why not
        listener.supervisord_pid = ask(env, 'getPID')
    told = False
    # As supervisord writes it: UTF-8 in any locale, and a line ends with a newline alone.
    with open(sys.stdin.fileno(), encoding='utf-8', errors='replace', newline='\n', closefd=False) as stdin:
        for event in events(stdin, sys.stdout):
            listener.collect()
            if event.startswith('TICK_'):
                listener.tick()
            elif not told:
                told = True
                log.warning('%s is no TICK event; memmon acts on TICK events alone, such as events=TICK_60', event)


# Check: one look at all processes.

class Reading(NamedTuple):
    """What one look shows of a process."""

    process: Process
    limit: Limit | None
    rss: int | None  # bytes; None: not running, or not to be measured

    @property
    def share(self) -> float:
        """How much of its limit the process uses: 1 is all of it; -1 if that is not known."""
        return self.rss / self.limit.size if self.limit and self.rss is not None else -1


def check(options: Options, columns: int) -> int:
    """Print a table of all processes, and return 1 if some are over their limits, else 0. Raises StartError."""
    try:
        processes = list_processes(find_supervisord(os.environ))
        table = read_process_table()
    except (NoAnswer, MeasureError) as error:
        raise StartError(str(error)) from None
    limits = limits_of(processes, options.limits)
    running = [process.pid for process in processes if process.pid]  # 0 is the kernel in the table of FreeBSD
    rss_by_pid = rss_of(table, running, options.cumulative)
    readings = [Reading(process, limits.get(process), rss_by_pid.get(process.pid)) for process in processes]
    readings.sort(key=lambda reading: (reading.share, reading.rss or -1), reverse=True)
    print('\n'.join(format_readings(readings, bool(options.limits), columns)))
    for warning in idle_limits(processes, options.limits).values():
        print(warning)
    return int(any(reading.share > 1 for reading in readings))


def find_supervisord(env: Mapping[str, str]) -> Mapping[str, str]:
    """Return an environment by which to ask supervisord: the one given, or what supervisorctl's configuration says.

    Raises StartError.
    """
    if env.get('SUPERVISOR_SERVER_URL'):
        return env
    from supervisor.options import ClientOptions  # here, for the listener need not hold its 0.8 MB
    client = ClientOptions()
    client.configfile = client.default_configfile()
    if not client.configfile:
        raise StartError('no supervisord.conf where supervisorctl looks for it: set SUPERVISOR_SERVER_URL, '
                         'such as unix:///var/run/supervisor.sock')
    try:
        client.process_config(do_usage=False)
    except (ValueError, configparser.Error) as error:
        raise StartError(f'{client.configfile}: {one_line(error)}; mend it, or set SUPERVISOR_SERVER_URL') from None
    return {
        'SUPERVISOR_USERNAME': client.username or '',
        'SUPERVISOR_PASSWORD': client.password or '',
        **env,
        'SUPERVISOR_SERVER_URL': client.serverurl,
    }


def format_readings(readings: Sequence[Reading], with_limits: bool, columns: int) -> list[str]:
    """Return the lines of a table, whose last column is a bar as long as there is room."""
    rows = [['PROCESS', 'PID', 'UPTIME', 'RSS', 'LIMIT', 'SET BY', 'USED']]
    rows += [format_reading(reading) for reading in readings]
    if not with_limits:
        rows = [row[:4] for row in rows]
    align = [str.ljust, str.rjust, str.rjust, str.rjust, str.rjust, str.ljust, str.rjust]
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ['  '.join(place(cell, width) for place, cell, width in zip(align, row, widths)) for row in rows]
    if with_limits:
        room = max(0, columns - len(lines[0]) - 2)
        bars = ['', *('#' * int(max(0, min(reading.share, 1)) * room) for reading in readings)]
        lines = [f'{line}  {bar}' for line, bar in zip(lines, bars)]
    return [line.rstrip() for line in lines]


def format_reading(reading: Reading) -> list[str]:
    """Return the cells of a row of the table."""
    process, limit, rss = reading
    return [
        process.namespec,
        str(process.pid or '-'),
        format_duration(time.time() - process.start) if process.pid else process.statename,
        '-' if rss is None else format_size(rss),
        format_size(limit.size) if limit else '-',
        limit.given if limit else 'no option',
        f'{reading.share:.0%}' if reading.share >= 0 else '-',
    ]


# Main: arguments to exit status.

def main() -> int:
    """Run memmon; return 0 at the end of the events, 1 if they cannot be read, 2 if it cannot start; see check."""
    try:
        options = parse_args(sys.argv[1:])
        if options.help:
            print(__doc__, end='')
            return 0
        if options.version:
            print(f'memmon {__version__}')
            return 0
        logging.basicConfig(format='%(asctime)s %(levelname)s memmon: %(message)s',
                            level=logging.DEBUG if options.verbose else logging.INFO)
        socket.setdefaulttimeout(RPC_TIMEOUT_SECS)
        if options.check:
            return check(options, shutil.get_terminal_size().columns)
        listen(options, os.environ)
    except (StartError, ProtocolBroken) as error:
        print(f'memmon: {error}', file=sys.stderr)
        return 2 if isinstance(error, StartError) else 1
    return 0
