"""A real supervisord, a memmon that gets its events from a test, and waits that have an end."""

from __future__ import annotations

import inspect
import json
import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from functools import lru_cache
from pathlib import Path
from typing import Any, Callable, Mapping, NamedTuple, Sequence, TypeVar

import fake_server

BIN = Path(sys.executable).parent
MEMMON = str(BIN / 'memmon')
PROGRAM = str(Path(__file__).parent / 'program.py')

# Python itself takes 10 to 20 MB, in some versions more.
LIMIT = '40MB'   # a program at rest is far below it, one that has taken its 60 MB far above
BIG_MB = 55
TINY = '100KB'   # what any process exceeds, also sleep

WAIT_SECS = 30  # for what takes a second on a machine that has nothing else to do
RUN_SECS = 60   # for a command that ends by itself

# An app of celery: each job leaves a file when it begins, and one when it is done.
CELERY = """
import pathlib, time
from celery import Celery
app = Celery('tasks', broker='filesystem://')
for name in ('queue', 'control'):
    pathlib.Path(name).mkdir(exist_ok=True)
app.conf.broker_transport_options = {
    'data_folder_in': 'queue', 'data_folder_out': 'queue', 'control_folder': 'control'}
@app.task
def job(number, secs):
    pathlib.Path(f'begun-{number}').touch()
    time.sleep(secs)
    pathlib.Path(f'done-{number}').touch()
"""

T = TypeVar('T')


# Waits and commands.

def wait_until(attempt: Callable[[], T], secs: float = WAIT_SECS) -> T:
    """Call a function until its assertions hold and it returns neither False nor anything empty.

    Return what it returned; None counts as done. When time is up, the assertion that failed last
    is raised, which says what was seen last.
    """
    deadline = time.monotonic() + secs
    while True:
        try:
            value = attempt()
            assert value is None or value, f'{describe(attempt)} returns {value!r}'
            return value
        except AssertionError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(0.1)


def describe(function: Callable[[], object]) -> str:
    """Return the text of a function, so that a failure says what it was about."""
    try:
        return inspect.getsource(function).strip()
    except (OSError, TypeError):
        return repr(function)


def assert_equal(seen: object, expected: object) -> None:
    """Assert that two values are equal; for the lambdas of wait_until."""
    assert seen == expected, f'{seen!r} instead of {expected!r}'


def assert_in(text: str, log: str) -> None:
    """Assert that a text is in a log; for the lambdas of wait_until."""
    assert text in log, f'{text!r} is not in: {log}'


class Done(NamedTuple):
    """A command that has ended."""

    status: int
    stdout: str
    stderr: str


def run(*command: str | Path, stdin: bytes = b'', env: Mapping[str, str] | None = None,
        cwd: Path | None = None) -> Done:
    """Run a command to its end; env is added to the environment."""
    done = subprocess.run(command, input=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          env={**os.environ, **(env or {})}, cwd=cwd, check=False,
                          timeout=RUN_SECS)
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())


def in_pid_namespace(*command: str) -> list[str]:
    """Return a command that runs another one where it sees no process but its own."""
    return ['unshare', '--pid', '--fork', '--kill-child', '--mount-proc', *command]


UID = str(100000 + os.getpid())  # of nobody else: a user's processes are counted together
# A command that runs another one as a user who may open what root can, and no more than that.
ANOTHER_USER = ['setpriv', '--reuid', UID, '--regid', UID, '--clear-groups',
                '--inh-caps', '+dac_override', '--ambient-caps', '+dac_override',
                '--bounding-set', '-all,+dac_override']


@lru_cache(maxsize=None)
def has_pid_namespaces() -> bool:
    """Tell whether in_pid_namespace works here: it needs root, Linux, and no sandbox."""
    return bool(shutil.which('unshare')) and run(*in_pid_namespace('true')).status == 0


# Processes.

HAS_PROC = Path('/proc/self/stat').exists()
PAGE_KB = os.sysconf('SC_PAGE_SIZE') // 1024


class ProcessStat(NamedTuple):
    """What the system says of a process."""

    state: str  # R, S, Z, and so on
    ppid: int
    rss_kb: int


def stat(pid: int) -> ProcessStat | None:
    """Return what the system says of a process; None if there is none.

    From Linux's /proc where there is one: each ps takes 10 ms and more.
    """
    if HAS_PROC:
        try:
            fields = Path(f'/proc/{pid}/stat').read_bytes().rpartition(b')')[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        return ProcessStat(fields[0].decode(), int(fields[1]), int(fields[21]) * PAGE_KB)
    row = run('ps', '-o', 'stat=', '-o', 'ppid=', '-o', 'rss=', '-p', str(pid)).stdout.split()
    return ProcessStat(row[0][0], int(row[1]), int(row[2])) if row else None


def rss_kb(pid: int) -> int:
    """Return the RSS of a process; 0 if there is none."""
    process = stat(pid)
    return process.rss_kb if process else 0


def rss_mb(pid: int) -> float:
    return rss_kb(pid) / 1024


def is_running(pid: int) -> bool:
    """Tell whether a process is there, and no zombie."""
    process = stat(pid)
    return bool(process and process.state != 'Z')


def parents() -> dict[int, int]:
    """Return the pid of the parent of each process, zombies among them."""
    if not HAS_PROC:
        rows = run('ps', '-A', '-o', 'pid=', '-o', 'ppid=').stdout.split()
        return dict(zip(map(int, rows[::2]), map(int, rows[1::2])))
    processes = {int(name): stat(int(name)) for name in os.listdir('/proc') if name.isdigit()}
    return {pid: process.ppid for pid, process in processes.items() if process}


def children_of(pid: int) -> list[int]:
    """Return the pids of the children of a process, zombies among them."""
    return [child for child, parent in parents().items() if parent == pid]


def descendants_of(pid: int) -> list[int]:
    """Return the pids of all processes below a process."""
    pids, table = [pid], parents()
    for pid in pids:  # which grows
        pids += [child for child, parent in table.items() if parent == pid]
    return pids[1:]


def processes_in(path: Path) -> dict[int, str]:
    """Return the running processes that work in a directory, with their command lines.

    Without the /proc of Linux, none.
    """
    found = {}
    for entry in Path('/proc').glob('[0-9]*'):
        try:
            if os.readlink(entry / 'cwd') == str(path):
                command = (entry / 'cmdline').read_bytes().decode(errors='replace')
                found[int(entry.name)] = command.replace('\0', ' ').strip()
        except OSError:
            pass  # it has ended
    return found


def open_files(pid: int) -> dict[int, str]:
    """Return what the file descriptors of a process refer to, by number; needs Linux's /proc."""
    files = {}
    for entry in Path(f'/proc/{pid}/fd').iterdir():
        try:
            files[int(entry.name)] = os.readlink(entry)
        except FileNotFoundError:
            pass  # it was closed just now
    return files


def kill(*pids: int) -> None:
    """Kill processes, some of which may have ended already."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def end_process(process: subprocess.Popen[bytes]) -> None:
    """Kill a child of this process, and reap it."""
    process.kill()
    process.wait(RUN_SECS)


# supervisord and its configuration.

def program(*args: str) -> str:
    """Return the command of the program that eats memory; see program.py."""
    return ' '.join(map(shlex.quote, [sys.executable, '-S', PROGRAM, *args]))


def section(name: str, *args: str, kind: str = 'program', command: str = '',
            **settings: Any) -> str:
    """Return a section of supervisord.conf, by default for a program that is large at once."""
    command = command or program(*args).replace('%', '%%')
    settings = {'command': command, 'startsecs': 0, 'stopwaitsecs': 60, **settings}
    lines = [f'{key}={value}\n' for key, value in settings.items()]
    return f'[{kind}:{name}]\n' + ''.join(lines)


def sleeper(name: str, **settings: Any) -> str:
    """Return a section for a program of 1 to 2 MB, which is over TINY."""
    # A SIGTERM between supervisord's fork and its exec is lost: so it has not long to stop.
    return section(name, command='sleep 1000', **{'stopwaitsecs': 2, **settings})


def pool_section(name: str, count: int, *args: str, **settings: Any) -> str:
    """Return the section of a program with processes NAME:NAME_00, NAME:NAME_01, and so on."""
    return section(name, *args, numprocs=count,
                   process_name='%(program_name)s_%(process_num)02d', **settings)


def group_section(name: str, *programs: str) -> str:
    return f'[group:{name}]\nprograms={",".join(programs)}\n'


def memmon_section(*args: str, **settings: Any) -> str:
    """Return the section of memmon, to be started when the programs have taken their memory."""
    command = ' '.join(map(shlex.quote, [MEMMON, *args])).replace('%', '%%')
    settings = {'command': command, 'events': 'TICK_5', 'autostart': 'false',
                'stderr_logfile': '%(here)s/memmon.log', **settings}
    return section('memmon', kind='eventlistener', **settings)


UNIX_SERVER = '[unix_http_server]\nfile=%(here)s/s\n'
PASSWORD = 'username=bob\npassword=secret\n'
CLIENT = '[supervisorctl]\nserverurl=unix://%(here)s/s\n'
RPC_INTERFACE = ('[rpcinterface:supervisor]\nsupervisor.rpcinterface_factory='
                 'supervisor.rpcinterface:make_main_rpcinterface\n')


class Supervisord:
    """A real supervisord in a directory of its own."""

    def __init__(self, path: Path, sections: str = '', *, server: str = UNIX_SERVER + CLIENT,
                 interface: str = RPC_INTERFACE, settings: str = '',
                 wrapper: Sequence[str] = ()) -> None:
        """Start it: settings are for the section [supervisord], wrapper is a command before it."""
        self.path = path
        self.conf = path / 'supervisord.conf'
        self.log = path / 'supervisord.log'
        self.errors = path / 'supervisord.err'
        self.env = {'SUPERVISOR_SERVER_URL': f'unix://{path}/s'}
        self.conf.write_text(
            f'[supervisord]\nnodaemon=true\nlogfile={self.log}\npidfile={path}/pid\n'
            f'childlogdir={path}\n{settings}\n{server}\n{interface}\n{sections}')
        with self.errors.open('wb') as errors:
            self.process = subprocess.Popen(
                [*wrapper, str(BIN / 'supervisord'), '-n', '-c', str(self.conf)], cwd=path,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors)

    def wait_ready(self) -> None:
        """Wait until it answers calls."""
        wait_until(self.assert_ready)

    def assert_ready(self) -> None:
        if self.process.poll() is not None:
            raise RuntimeError(f'supervisord has ended: {self.errors.read_text()}')
        assert_in('supervisord started with pid', self.log.read_text() if self.log.exists() else '')

    def call(self, method: str, *args: object) -> Any:
        """Call a method of the supervisor namespace. Raises xmlrpc.client.Fault."""
        return fake_server.call(self.env, f'supervisor.{method}', *args)

    def info(self, name: str) -> dict[str, Any]:
        info: dict[str, Any] = self.call('getProcessInfo', name)
        return info

    def pid(self, name: str) -> int:
        return int(self.info(name)['pid'])

    def state(self, name: str) -> str:
        return str(self.info(name)['statename'])

    def states(self, group: str = '') -> dict[str, str]:
        """Return the states of the members of a group by process name; of all without a group."""
        return {info['name']: info['statename'] for info in self.call('getAllProcessInfo')
                if group in ('', info['group'])}

    def wait_state(self, name: str, state: str, secs: float = WAIT_SECS) -> None:
        wait_until(lambda: self.assert_state(name, state), secs)

    def assert_state(self, name: str, state: str) -> None:
        seen = self.state(name)
        assert seen == state, f'{name} is {seen}, not {state}'

    def wait_up(self, *names: str) -> list[int]:
        """Wait until processes are RUNNING; return their pids."""
        return [self.wait_new_pid(name, 0) for name in names]

    def wait_big(self, *names: str, mb: float = BIG_MB) -> list[int]:
        """Wait until programs are RUNNING and have taken their memory; return their pids."""
        return [wait_until(lambda: self.assert_big(name, mb)) for name in names]

    def assert_big(self, name: str, mb: float = BIG_MB) -> int:
        pid = self.assert_new_pid(name, 0)
        seen = rss_mb(pid)
        assert seen > mb, f'{name} has {seen} MB, not more than {mb} MB'
        return pid

    def wait_new_pid(self, name: str, old_pid: int, secs: float = WAIT_SECS) -> int:
        """Wait until a process is RUNNING with another pid than before; return it."""
        return wait_until(lambda: self.assert_new_pid(name, old_pid), secs)

    def assert_new_pid(self, name: str, old_pid: int) -> int:
        info = self.info(name)
        assert info['statename'] == 'RUNNING' and info['pid'] not in (0, old_pid), (
            f"{name} is {info['statename']} with pid {info['pid']}, not RUNNING with another "
            f'than {old_pid}')
        return int(info['pid'])

    def spawned(self, name: str) -> int:
        """Return how often a process was started."""
        return self.log.read_text().count(f"spawned: '{name}'")

    def start_memmon(self) -> int:
        """Start the memmon of memmon_section; return its pid."""
        self.call('startProcess', 'memmon')
        return self.pid('memmon')

    def memmon_log(self) -> str:
        """Return what the memmon of memmon_section has logged."""
        return (self.path / 'memmon.log').read_text()

    def ctl(self, *args: str) -> str:
        """Return what supervisorctl prints."""
        done = run(BIN / 'supervisorctl', '-c', self.conf, *args)
        return done.stdout + done.stderr

    def configure(self, sections: str) -> None:
        """Put other sections in the place of those given at the start, as supervisorctl update."""
        text = self.conf.read_text()
        end = text.index(RPC_INTERFACE) + len(RPC_INTERFACE)
        self.conf.write_text(text[:end] + sections)
        self.ctl('update')

    @property
    def socket(self) -> Path:
        return self.path / 's'

    def hide_socket(self) -> None:
        """Make supervisord unreachable, as if it was down."""
        self.socket.rename(self.path / 'away')

    def show_socket(self) -> None:
        (self.path / 'away').rename(self.socket)

    def end(self) -> None:
        """End it and everything below it, at once."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGSTOP)  # so that it starts nothing again
            kill(*descendants_of(self.process.pid))
        end_process(self.process)


class GroupWatch:
    """Looks at a group all the time, in a thread, and fails if two members are ever down at once.

    To be used in a with statement. Down is what is not RUNNING.
    """

    def __init__(self, supervisord: Supervisord, group: str) -> None:
        self.supervisord = supervisord
        self.group = group
        self.looks = 0
        self.most_down: dict[str, str] = {}  # with their states
        self.error: Exception | None = None
        self.is_ending = threading.Event()
        self.thread = threading.Thread(target=self.watch)

    def watch(self) -> None:
        try:
            while not self.is_ending.wait(0.1):
                self.look()
        except Exception as error:
            self.error = error

    def look(self) -> None:
        states = self.supervisord.states(self.group)
        down = {name: state for name, state in states.items() if state != 'RUNNING'}
        if len(down) > len(self.most_down):
            self.most_down = down
        self.looks += 1

    def __enter__(self) -> GroupWatch:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.is_ending.set()
        self.thread.join(RUN_SECS)
        assert not self.thread.is_alive() and not self.error, f'watching ended with {self.error!r}'
        assert self.looks, f'nobody has looked at the group {self.group}'
        assert len(self.most_down) <= 1, f'down at once: {self.most_down}'


# memmon.

def messages(log: str) -> list[str]:
    """Return the lines of memmon's log without their times."""
    return re.sub(r'^[-\d]{10} [:\d]{8},\d{3} ', '', log, flags=re.M).splitlines()


HASTY = """
import json, sys, memmon
for name, value in json.loads(sys.argv.pop(1)).items():
    assert hasattr(memmon, name), name
    setattr(memmon, name, value)
sys.exit(memmon.main())
"""


class Listener:
    """A memmon that gets its events from a test, as it would from supervisord."""

    def __init__(self, path: Path, *args: str, env: Mapping[str, str],
                 constants: Mapping[str, object] | None = None,
                 wrapper: Sequence[str] = ()) -> None:
        """Start it; env is added to the environment, wrapper is a command before memmon's own.

        constants: those of the module that are to differ, such as how long it waits for ps.
        """
        command = [MEMMON] if not constants else [sys.executable, '-c', HASTY,
                                                  json.dumps(constants)]
        self.stderr = path / f'memmon-{time.monotonic_ns()}.log'
        with self.stderr.open('w') as stderr:
            self.process = subprocess.Popen(
                [*wrapper, *command, *args], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=stderr, env={**os.environ, **env}, cwd=path, bufsize=0)
        self.pid = self.process.pid
        assert self.process.stdin and self.process.stdout
        self.stdin, self.stdout = self.process.stdin, self.process.stdout
        os.set_blocking(self.stdin.fileno(), False)
        self.serial = 0
        self.is_ready = False
        self.unread = b''

    def write(self, data: bytes) -> None:
        """Write to memmon's stdin, as long as memmon reads."""
        while data:
            assert select.select([], [self.stdin], [], WAIT_SECS)[1], (
                f'memmon does not read its stdin; its log: {self.log()}')
            data = data[os.write(self.stdin.fileno(), data):]

    def expect(self, answer: bytes) -> None:
        """Read an answer from memmon's stdout, and assert that it is the expected one."""
        deadline = time.monotonic() + WAIT_SECS
        while len(self.unread) < len(answer):
            left = max(0, deadline - time.monotonic())
            assert select.select([self.stdout], [], [], left)[0], (
                f'no {answer!r} from memmon, but {self.unread!r}; its log: {self.log()}')
            piece = os.read(self.stdout.fileno(), 4096)
            assert piece, f'memmon has ended instead of saying {answer!r}; its log: {self.log()}'
            self.unread += piece
        seen, self.unread = self.unread[:len(answer)], self.unread[len(answer):]
        assert_equal(seen, answer)

    def wait_ready(self) -> None:
        if not self.is_ready:
            self.expect(b'READY\n')
            self.is_ready = True

    def begin(self, event: str = 'TICK_5', payload: str = 'when:1201063880') -> None:
        """Send an event."""
        self.wait_ready()
        self.is_ready = False
        self.serial += 1
        header = (f'ver:3.0 server:supervisor serial:{self.serial} pool:memmon '
                  f'poolserial:{self.serial} eventname:{event} len:{len(payload)}\n')
        self.write((header + payload).encode())

    def send(self, event: str = 'TICK_5', payload: str = 'when:1201063880') -> float:
        """Send an event and take the answer; return the seconds that it took."""
        self.wait_ready()
        began = time.monotonic()
        self.begin(event, payload)
        self.expect(b'RESULT 2\nOK')
        return time.monotonic() - began

    def log(self) -> str:
        return self.stderr.read_text()

    def messages(self) -> list[str]:
        """Return the lines of the log without their times."""
        return messages(self.log())

    def wait_log(self, text: str, count: int = 1, secs: float = WAIT_SECS) -> None:
        """Wait until a text is in the log so many times."""
        wait_until(lambda: self.assert_log(text, count), secs)

    def assert_log(self, text: str, count: int = 1) -> None:
        log = self.log()
        assert log.count(text) >= count, f'{text!r} is not there {count} times: {log}'

    def workers(self) -> list[int]:
        """Return the pids of the children that run."""
        return [child for child in children_of(self.pid) if is_running(child)]

    def wait_idle(self, secs: float = WAIT_SECS) -> None:
        """Wait until memmon waits for the next event, and nothing is under way."""
        self.wait_ready()
        wait_until(self.assert_idle, secs)

    def assert_idle(self) -> None:
        # In this order: what sleeps, and has no child, starts none. With a child it may.
        process = stat(self.pid)
        assert process and process.state == 'S', f'memmon is {process}'
        workers = children_of(self.pid)
        assert not workers, f'workers under way: {workers}; log: {self.log()}'

    def wait_end(self) -> int:
        """Wait until memmon itself has ended; return its status."""
        return self.process.wait(WAIT_SECS)

    def end(self) -> None:
        """End it and everything below it, at once."""
        below = [] if self.process.poll() is not None else descendants_of(self.pid)
        for stream in (self.stdin, self.stdout):
            stream.close()
        end_process(self.process)
        kill(*below)


class Mailbox:
    """Where memmon's mail goes to, if memmon gets the arguments of the mailbox."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.path.mkdir()
        # Renamed when it is whole.
        self.mailer = f'cat > {path}/new.$$ && mv {path}/new.$$ {path}/mail.$$'
        self.args = ['-m', 'bob@example.com', '-s', self.mailer]

    def mails(self) -> list[str]:
        """Return the mails, the oldest first."""
        paths = sorted(self.path.glob('mail.*'), key=lambda path: path.stat().st_mtime_ns)
        return [path.read_text(encoding='utf-8') for path in paths]

    def wait(self, count: int = 1) -> list[str]:
        """Wait until there are so many mails; return them."""
        return wait_until(lambda: self.assert_mails(count))

    def wait_subject(self, subject: str) -> str:
        """Wait until there is a mail with a subject; return it."""
        return wait_until(lambda: self.assert_subject(subject))

    def assert_subject(self, subject: str) -> str:
        mails = self.mails()
        found = [mail for mail in mails if f'\nSubject: {subject}\n' in mail]
        assert found, f'no mail has the subject {subject!r}: {mails}'
        return found[-1]

    def assert_mails(self, count: int) -> list[str]:
        mails = self.mails()
        assert len(mails) == count, f'{len(mails)} mails instead of {count}: {mails}'
        return mails


StartSupervisord = Callable[..., Supervisord]
StartListener = Callable[..., Listener]
BuildPreload = Callable[[str], 'dict[str, str]']
