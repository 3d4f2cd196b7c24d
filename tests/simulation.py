"""memmon's whole listener over supervisor's own classes, in virtual time.

What runs is the program itself: Listener, workers, restarts; and supervisor's main loop, process
groups, Subprocess, event listener pool, RPC interface and multicall. Only what they ask of the
system is replaced: fork, exec, kill, wait, pipes, /proc and the clock. memmon's listener and
workers, supervisord, operators and the adversary are greenlets; one runs until it waits.

A seed makes a history. A history that went wrong is described with its seed, and is seen again by

    SIMULATED_SEED=123 pytest -n 0 tests/test_simulation.py -k goes_wrong
"""

from __future__ import annotations

import errno
import logging
import math
import os
import pickle
import random
import signal
import time
from contextlib import suppress
from operator import attrgetter
from types import FunctionType, SimpleNamespace
from typing import Any, Callable, Iterable, Mapping, NoReturn, Sequence
from xmlrpc.client import Fault

import greenlet
import pytest
import supervisor.process
import supervisor.rpcinterface
import supervisor.supervisord
from supervisor import events
from supervisor.datatypes import RestartUnconditionally, RestartWhenExitUnexpected
from supervisor.dispatchers import default_handler
from supervisor.http import NOT_DONE_YET
from supervisor.medusa.asyncore_25 import ExitNow
from supervisor.options import (EventListenerConfig, EventListenerPoolConfig, NotFound,
                                ProcessConfig, ProcessGroupConfig)
from supervisor.states import (EventListenerStates, ProcessStates, SupervisorStates,
                               getProcessStateDescription)
from supervisor.xmlrpc import (Faults, RootRPCInterface, RPCError, SystemNamespaceRPCInterface,
                               traverse)

import memmon

NEVER, FOREVER = float('-inf'), float('inf')
EPOCH = 1_700_000_000  # the wall clock at the beginning
MB = memmon.MB
SOFT, HARD = 100 * MB, 200 * MB  # the limits that a history may give
STOPPED, RUNNING, FATAL = ProcessStates.STOPPED, ProcessStates.RUNNING, ProcessStates.FATAL
STARTING, BACKOFF = ProcessStates.STARTING, ProcessStates.BACKOFF
EXITED = ProcessStates.EXITED
DOWN_STATES = (STOPPED, EXITED, FATAL)
MEMMON = 'memmon:memmon'
USUAL = ('supervisor.start', 'supervisor.stop')  # what operators do to a process
HTTP = 10  # supervisord's descriptor for its HTTP server
ACCIDENTS = ('lost', 'lost after', 'killed', 'killed after', 'orphaned', 'act', 'act',
             'ends', 'ends', 'restarts')
NO_PIPES = dict.fromkeys(('stdin', 'stdout', 'stderr', 'child_stdin', 'child_stdout',
                          'child_stderr'))
CONFIG: Mapping[str, Any] = {
    **dict.fromkeys(ProcessConfig.req_param_names), 'priority': 999, 'autostart': True,
    'startretries': 3, 'stopsignal': signal.SIGTERM, 'stopwaitsecs': 10, 'stopasgroup': False,
    'killasgroup': False, 'exitcodes': [0]}


class Killed(BaseException):
    """A process has been killed: nothing of it may run any more."""


# The system: processes, time, pipes.

class Process:
    """A process of the machine."""

    def __init__(self, pid: int, ppid: int, born: float) -> None:
        self.pid, self.ppid, self.born = pid, ppid, born
        self.program: Program | None = None
        self.death, self.status = FOREVER, 0
        self.stop_secs = 0.1
        self.is_doomed = False  # a broken one, which crashes soon
        self.course = (20.0 * MB, 0.0, 20.0 * MB)  # at first, growth a second, at most

    def memory(self, now: float) -> int:
        """Return its RSS; none is left of a zombie."""
        first, growth, most = self.course
        return int(min(first + growth * (now - self.born), most)) if now < self.death else 0

    def over_at(self, size: float) -> float:
        """Return since when it is larger than a size, if it never ends."""
        first, growth, most = self.course
        if most <= size:
            return FOREVER
        return self.born if first > size else self.born + (size - first) / growth


class Task(greenlet.greenlet):
    """What runs: a process of memmon's, supervisord, an operator or the adversary."""

    def __init__(self, world: World, process: Process, run: Callable[[], object]) -> None:
        super().__init__(run, world.hub)
        self.process, self.pid = process, process.pid
        self.life = 0           # which listener it is, or works for; 0: not memmon
        self.wake_at = world.now
        self.is_open = False    # woken by what it waits for
        self.descriptors: set[int] = set()
        self.standard = (0, 0)  # the descriptors of its stdin and stdout
        self.measured: dict[Process, int] = {}  # at the last measurement
        self.measured_at = NEVER
        self.has_slept = False                  # since then


class Request:
    """A call of supervisord."""

    def __init__(self, task: Task, method: str, args: Sequence[Any]) -> None:
        self.task, self.method, self.args = task, method, args
        self.answer: Any = None  # a function: not yet
        self.is_done = False


class Program:
    """A program of the configuration, how it behaves, and what has become of it."""

    def __init__(self, group: str, name: str, pool: str, rng: random.Random) -> None:
        self.group, self.name, self.pool = group, name, pool
        self.namespec = f'{group}:{name}'
        self.kind = rng.choice(('calm', 'leak', 'leak', 'leak', 'fast', 'heavy', 'once', 'job'))
        self.is_missing, self.crash_secs = False, FOREVER
        self.process: Process | None = None
        self.state = STOPPED
        self.up_at = self.failed_at = NEVER
        # What memmon has done to it:
        self.hit: Process | None = None       # what memmon has stopped
        self.hit_by: Task | None = None       # the last of memmon's processes that dealt with it
        self.hits: list[tuple[float, int, float]] = []  # when, by which life, the memory
        self.restarted: list[tuple[float, int]] = []    # as memmon says
        self.is_exempt = False                # from coming up again: nobody is left who knows
        self.is_given_up = False
        self.is_asked = False                 # to stop, by memmon, whatever became of that
        self.is_wanted_down = False           # by an operator


class World(memmon.Processes):
    """One history."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rng = rng = random.Random(seed)
        self.now, self.until, self.jump = 0.0, 0.0, rng.random()
        self.told: list[tuple[Any, ...]] = []
        self.wrongs: list[str] = []
        self.hub = greenlet.getcurrent()
        self.tasks: list[Task] = []
        self.killed: list[Task] = []
        self.processes: dict[int, Process] = {}
        self.pipes: dict[int, tuple[int, bytearray]] = {}  # by descriptor: the other end, the data
        self.last_pid = self.last_descriptor = 1000
        self.lives = 0
        self.can_fork, self.has_jumped = True, False
        self.deaf_until = self.slow_until = NEVER
        self.planned_at = NEVER  # when supervisord was told to end or to reload
        self.trouble_at = NEVER  # until when the adversary does what is a reason for alarm
        self.logged_errors = 0
        self.rate = rng.choice((0.0, 0.01, 0.03, 0.1))  # of what happens in calls
        self.is_over = False     # the adversary
        self.draw()
        self.sup: Any = None     # the Supervisor
        self.root: Any = None    # its RPC interface
        self.requests: list[Request] = []
        self.supervisord = self.start(self.run_supervisord)

    def draw(self) -> None:
        """Choose programs and options."""
        rng = self.rng
        self.tick = rng.choice((5, 5, 5, 60))
        self.end = rng.choice((100, 200, 400)) if self.tick == 5 else 900
        programs = []
        for shape in rng.sample(('web', 'client', 'mix', 'db'), rng.randint(1, 3)):
            if shape == 'web':
                names = [(shape, f'web_0{number}') for number in range(rng.randint(2, 3))]
            elif shape == 'client':
                names = [('client1', 'client1'), ('client2', 'client2')]
            else:
                names = [(shape, 'one'), (shape, 'two')] if shape == 'mix' else [(shape, shape)]
            kind = Program(shape, '', '', rng).kind
            for group, name in names:
                pool = name if shape in ('mix', 'db') else shape
                programs.append(Program(group, name, pool, rng))
                programs[-1].kind = kind
        self.programs = {program.namespec: program for program in programs}
        self.groups = list(dict.fromkeys(program.group for program in programs))
        hard = f'..{HARD}' if rng.random() < 0.5 else ''
        self.hard = HARD if hard else FOREVER
        self.argv = ['-a', f'{SOFT}{hard}']
        self.patience = rng.choice((0, 0, 15))
        self.argv += ['-f', str(self.patience)] if self.patience else []
        self.rate_limit = rng.choice(((9, 0), (9, 0), (2, 300), (1, 3600)))
        self.argv += ['-r', '{}/{}'.format(*self.rate_limit)] if self.rate_limit[1] else []
        self.total = rng.choice((FOREVER, FOREVER, 250 * MB))
        self.argv += ['-t', str(self.total)] if self.total < FOREVER else []
        self.has_before = rng.random() < 0.3
        self.argv += ['-o', 'before=before'] if self.has_before else []
        self.argv += ['-o', 'after=after'] if rng.random() < 0.3 else []
        self.argv += ['-m', 'me@example.com', '-s', 'mail'] if rng.random() < 0.3 else []
        self.is_dry = rng.random() < 0.03
        self.argv += ['--dry-run'] if self.is_dry else []
        self.options = memmon.parse_args(self.argv)
        self.stop_secs = {program.namespec: rng.choice((0.05, 0.5, 3, FOREVER))
                          for program in programs}
        self.configs = {program.namespec: {
            'startsecs': rng.choice((0, 1, 1, 5)), 'startretries': rng.choice((0, 3)),
            'autorestart': rng.choice((RestartUnconditionally, RestartUnconditionally,
                                       RestartWhenExitUnexpected, False))} for program in programs}

    def record(self, text: str, *args: object) -> None:
        self.told.append((self.now, text, args))

    def wrong(self, text: str) -> None:
        self.record('WRONG: %s', text)
        self.wrongs.append(text)

    # Time and tasks.

    def run(self, until: float) -> None:
        """Run what is to be run until then."""
        self.until = until
        while self.tasks:
            task = min(self.tasks, key=attrgetter('wake_at'))
            if task.wake_at > until:
                break
            self.now = max(self.now, task.wake_at)
            task.switch()
            while self.killed:
                with suppress(Killed):
                    self.killed.pop().throw(Killed)
        self.now = max(self.now, until)

    @property
    def task(self) -> Task:
        """The task that runs now."""
        task: Task = greenlet.getcurrent()  # type: ignore[assignment]
        if task.life and task.process.death <= self.now:
            raise Killed
        return task

    def wait(self, secs: float, is_open: bool = False) -> None:
        """Wait for some time; or until woken."""
        task = self.task
        task.wake_at, task.is_open = self.now + secs, is_open
        if (task.wake_at > self.until or self.killed
                or task is not min(self.tasks, key=attrgetter('wake_at'))):
            self.hub.switch()
        self.now = max(self.now, task.wake_at)  # nobody else is to run before
        task.is_open = False
        if task.life and task.process.death <= self.now:
            raise Killed

    def sleep(self, secs: float) -> None:
        """Stand for time.sleep, which memmon calls."""
        self.task.has_slept = True
        self.wait(secs)

    def monotonic(self) -> float:
        return 5000 + self.now

    def wall(self) -> float:
        return EPOCH + self.now + self.jump

    def wait_readable(self, descriptors: Sequence[int], secs: float | None) -> list[int]:
        deadline = FOREVER if secs is None else self.now + secs
        while True:
            ready = [descriptor for descriptor in descriptors if self.is_readable(descriptor)]
            if ready or self.now >= deadline:
                return ready
            self.wait(deadline - self.now, is_open=True)

    def wake(self, task: Task) -> None:
        if task.is_open:
            task.wake_at = self.now

    def start(self, run: Callable[[], object], process: Process | None = None, life: int = 0
              ) -> Task:
        """Start a task."""
        process = process or self.new_process(1)
        task = Task(self, process, lambda: self.run_task(task, run))
        task.life = life
        self.tasks.append(task)
        return task

    def run_task(self, task: Task, run: Callable[[], object]) -> None:
        """Run a task to its end: the program of a process."""
        try:
            run()
        except Killed:
            pass
        except BaseException as error:
            self.wrong(f'a process of memmon ends with {type(error).__name__}: {error}')
            if 'SIMULATED_SEED' in os.environ:
                raise
        if task.process.death > self.now:
            self.finish(task, 0)

    def finish(self, task: Task, status: int) -> None:
        """End a process that is a task: its descriptors are closed, its children are init's."""
        self.end_process(task.process, self.now, status)
        self.tasks.remove(task)
        for process in self.processes.values():
            if process.ppid == task.pid:
                process.ppid = 1
        if task.process.ppid != self.supervisord.pid:
            self.processes.pop(task.pid, None)
        for descriptor in list(task.descriptors):
            self.close(descriptor, task)

    def kill_task(self, task: Task, status: int = signal.SIGKILL) -> None:
        """Kill a process of memmon."""
        self.finish(task, status)
        for program in self.programs.values():
            if (program.hit and program.hit_by is not None and program.hit_by not in self.tasks
                    and self.find_listener(program.hit_by.life) is None):
                program.is_exempt = True
        if task is greenlet.getcurrent():
            raise Killed
        self.killed.append(task)

    def find_listener(self, life: int = 0) -> Task | None:
        """Return the listener, or the one of a life, if it runs."""
        return next((task for task in self.tasks if task.process.ppid == self.supervisord.pid
                     and task.life == (life or self.lives)), None)

    def new_process(self, ppid: int) -> Process:
        """Return a new process; its pid may have been another's."""
        pid = self.last_pid = self.last_pid + 1
        if self.rng.random() < 0.1:
            pid = self.rng.randint(1001, pid)
            pid = self.last_pid if pid in self.processes else pid
        self.processes[pid] = process = Process(pid, ppid, self.now)
        return process

    def end_process(self, process: Process, at: float, status: int) -> None:
        """Have a process end then, unless it ends before."""
        if at < process.death:
            process.death, process.status = at, status
            if self.supervisord.is_open:
                self.supervisord.wake_at = min(self.supervisord.wake_at, max(at, self.now))

    def behave(self, process: Process, program: Program) -> None:
        """Choose what becomes of a new process of a program."""
        rng, kind = self.rng, program.kind
        is_first = program.process is None
        program.process, process.program = process, program
        process.stop_secs = self.stop_secs[program.namespec]
        most = rng.choice((150, 300, 400)) * MB
        if kind == 'leak':
            process.course = 30.0 * MB, rng.choice((0.5, 2, 8)) * MB, most
        elif kind == 'fast':
            process.course = 30.0 * MB, 40.0 * MB, most
        elif kind == 'heavy':
            process.course = 10.0 * MB, 45.0 * MB, 150.0 * MB
        elif kind == 'once' and is_first:
            process.course = 30.0 * MB, 3.0 * MB, most
        elif kind == 'job' or rng.random() < 0.05:
            self.end_process(process, self.now + rng.choice((2, 30, 100)), rng.choice((0, 256)))
        if program.crash_secs < FOREVER:
            process.is_doomed = True
            self.end_process(process, self.now + program.crash_secs, 256)

    # What memmon asks of the system.

    def fork(self, pipes: Sequence[int], work: Callable[..., object], *args: Any) -> int:
        """Stand for memmon.fork: a worker has copies of all that it is given."""
        if not self.can_fork:
            raise BlockingIOError(errno.EAGAIN, 'Resource temporarily unavailable')
        parent = self.task
        work, args = pickle.loads(pickle.dumps((work, args)))
        child = self.start(lambda: work(*args), self.new_process(parent.pid), parent.life)
        child.process.course = 0.0, 0.0, 0.0  # it shares its memory with the listener
        child.descriptors = parent.descriptors - {*pipes, *parent.standard}
        return child.pid

    def children(self, pid: int) -> list[int]:
        if pid not in self.processes:
            raise FileNotFoundError(errno.ENOENT, 'No such file or directory')
        return [process.pid for process in self.processes.values() if process.ppid == pid]

    def rss(self, pid: int) -> int | None:
        process = self.processes.get(pid)
        return process.memory(self.now) if process else None

    def read_fields(self, pid: int, fields: object) -> int:
        if pid not in self.processes:
            raise FileNotFoundError(errno.ENOENT, 'No such file or directory')
        return self.processes[pid].memory(self.now)

    def find_children(self, pid: int) -> tuple[memmon.Processes, frozenset[int]]:
        task = self.task
        self.wait(self.rng.random() * 0.05)
        task.measured = {process: process.memory(self.now) for process in self.processes.values()
                         if process.ppid == self.supervisord.pid}
        task.measured_at, task.has_slept = self.now, False
        if pid not in self.processes:
            raise memmon.MeasureError('it has ended')
        return self, frozenset(self.children(pid))

    def run_for_user(self, command: str, text: bytes, variables: Mapping[str, str]) -> None:
        """Stand for a command of the user's."""
        self.record('memmon %s: command %s', self.task.pid, command)
        self.task.has_slept = True
        self.wait(self.rng.choice((0.01, 0.01, 1, 20)))
        status = self.rng.choice((0, 0, 0, 1, os.EX_TEMPFAIL))
        if command == 'before' and status and not self.is_over:
            raise memmon.CommandError(f'exit status {status}', status)

    def open(self, descriptor: int, *args: object, **kwargs: object) -> Standard:
        return Standard(self, self.task.standard[descriptor])

    # Pipes.

    def pipe(self) -> tuple[int, int]:
        reader, writer = self.last_descriptor + 1, self.last_descriptor + 2
        self.last_descriptor = writer
        data = bytearray()
        self.pipes[reader], self.pipes[writer] = (writer, data), (reader, data)
        self.task.descriptors |= {reader, writer}
        return reader, writer

    def holders(self, descriptor: int) -> list[Task]:
        return [task for task in self.tasks if descriptor in task.descriptors]

    def is_held(self, descriptor: int) -> bool:
        for task in self.tasks:
            if descriptor in task.descriptors:
                return True
        return False

    def close(self, descriptor: int, task: Task | None = None) -> None:
        (self.task if task is None else task).descriptors.discard(descriptor)
        for holder in self.holders(self.pipes[descriptor][0]):
            self.wake(holder)

    def is_readable(self, descriptor: int) -> bool:
        writer, data = self.pipes[descriptor]
        return bool(data) or not self.is_held(writer)

    def read(self, descriptor: int, count: int = 65536) -> bytes:
        assert descriptor in self.task.descriptors
        data = self.pipes[descriptor][1]
        read = bytes(data[:count])
        del data[:count]
        return read

    def write(self, descriptor: int, data: bytes) -> int:
        if descriptor > 2:
            assert descriptor in self.task.descriptors
            reader, buffer = self.pipes[descriptor]
            if not self.is_held(reader):
                raise BrokenPipeError(errno.EPIPE, 'Broken pipe')
            buffer += data
            for holder in self.holders(reader):
                self.wake(holder)
        return len(data)

    # supervisord.

    def run_supervisord(self) -> None:
        """Stand for supervisord's main(): each reload is a new Supervisor."""
        mood = SupervisorStates.RESTARTING
        while mood >= SupervisorStates.RESTARTING:
            self.sup = supervisor.supervisord.Supervisor(ServerOptions(self))
            self.forget(self.programs.values())
            with suppress(ExitNow):
                self.sup.run()
            mood, self.sup.is_closed = self.sup.options.mood, True
            self.record('supervisord has ended; mood %s', mood)
            for request in self.requests:
                self.wake(request.task)
            self.requests = []
            if mood == SupervisorStates.RESTARTING:
                self.wait(self.rng.choice((0, 0.2, 2)))

    def forget(self, programs: Iterable[Program]) -> None:
        """Forget what was true of programs that supervisord now starts anew."""
        for program in programs:
            program.process, program.hit, program.state = None, None, STOPPED
            program.is_wanted_down = False

    def make_configs(self, options: Any) -> list[Any]:
        """Return the configuration of the groups."""
        configs = []
        for group in self.groups:
            members = [ProcessConfig(options, **{
                **CONFIG, 'name': program.name, 'command': f'/srv/{program.pool} {namespec}',
                **self.configs[namespec]})
                for namespec, program in self.programs.items() if program.group == group]
            configs.append(ProcessGroupConfig(options, group, 999, members))
        listener = EventListenerConfig(options, **{
            **CONFIG, 'name': 'memmon', 'command': f'/srv/memmon {MEMMON}', 'priority': -1,
            'autorestart': RestartUnconditionally, 'startsecs': 1})
        tick = {5: events.Tick5Event, 60: events.Tick60Event}[self.tick]
        configs.append(EventListenerPoolConfig(options, 'memmon', -1, [listener], 10, [tick],
                                               default_handler))
        return configs

    def note_state(self, event: Any) -> None:
        """Take in what supervisor's own event tells of a state."""
        subprocess = event.process
        namespec = f'{subprocess.group.config.name}:{subprocess.config.name}'
        self.record('%s is %s, pid %s', namespec, getProcessStateDescription(subprocess.state),
                    subprocess.pid)
        program = self.programs.get(namespec)
        if not program:
            return
        self.is_down(program)
        program.state = subprocess.state
        if program.state == RUNNING:
            program.up_at = self.now
        elif program.state in (BACKOFF, FATAL, EXITED):
            program.failed_at = self.now
        if program.state == EXITED and event.expected and program.process is not program.hit:
            program.hit = None  # it came up, and has done its work

    def is_down(self, program: Program) -> bool:
        """Tell whether a program is down because of memmon, and has not come up again."""
        if (program.state == RUNNING and program.process is not program.hit
                and program.process and self.now - program.process.born >= 0.999
                and not program.process.is_doomed):
            program.hit = None
        return program.hit is not None

    # Calls.

    def is_closed(self) -> bool:
        return self.sup is None or getattr(self.sup, 'is_closed', False)

    def ask(self, method: str, args: Sequence[Any]) -> Any:
        """Call supervisord, without accidents. Raises Fault, OSError."""
        if self.is_closed():
            raise ConnectionRefusedError(errno.ECONNREFUSED, 'refused')
        request = Request(self.task, method, args)
        self.requests.append(request)
        self.wake(self.supervisord)
        deadline = self.now + memmon.RPC_TIMEOUT_SECS
        while not request.is_done:
            if self.is_closed():
                raise ConnectionResetError(errno.ECONNRESET, 'reset')
            if self.now >= deadline:
                raise TimeoutError('timed out')
            self.wait(deadline - self.now, is_open=True)
        if isinstance(request.answer, Exception):
            raise request.answer
        return request.answer

    def serve(self) -> None:
        """Do the calls that have come; this stands for supervisord's HTTP server."""
        for request in self.requests[:]:
            try:
                request.answer = self.effect(request)
            except RPCError as error:
                request.answer = Fault(error.code, error.text)
            if not isinstance(request.answer, FunctionType):
                request.is_done = True
                self.requests.remove(request)
                self.wake(request.task)

    def effect(self, request: Request) -> Any:
        """Do a call, or go on with it; if it is memmon's, see whether memmon may."""
        meant = repr(request.args)
        programs = [program for program in self.programs.values() if program.namespec in meant
                    or 'Group' in request.method and program.group in request.args]
        before = [(program, program.process, program.state) for program in programs]
        answer = request.answer
        try:
            if answer is None:
                answer = traverse(self.root, request.method, request.args)
            if isinstance(answer, FunctionType):
                value = answer()
                answer = answer if value is NOT_DONE_YET else value
        finally:
            for program, process, state in before:
                if state != program.state or process is not program.process:
                    self.note_effect(request, program)
                if program.hit and program.hit_by and request.task.life == program.hit_by.life:
                    program.hit_by = request.task
        return answer

    def note_effect(self, request: Request, program: Program) -> None:
        """Note what a call has done to a program."""
        is_stop = program.state in (ProcessStates.STOPPING, STOPPED)
        self.record('%s: %s %s', 'memmon' if request.task.life else 'operator',
                    'stop' if is_stop else 'start', program.namespec)
        if request.task.life:
            if is_stop:
                self.judge_stop(request.task, program)
        elif request.method.startswith(USUAL):
            program.hit, program.is_wanted_down = None, is_stop
            if is_stop:
                program.failed_at = self.now  # for all that memmon can see

    def call(self, take: Callable[[Any], Any], method: str, *args: Any) -> Any:
        """Stand for memmon.Server.call: latency, and accidents."""
        task = self.task
        accident = ''
        for program in self.programs.values():
            program.is_asked |= method == 'system.multicall' and program.namespec in repr(args)
        if not self.is_over and self.rng.random() < self.rate:
            accident = self.rng.choice(ACCIDENTS)
            self.record('adversary: %s %s %s', task.pid, method, accident)
        self.wait(self.latency())
        try:
            if accident == 'act':
                self.act()
            elif accident == 'orphaned':
                self.kills_listener(self.programs[min(self.programs)])
            elif accident in ('ends', 'restarts'):
                for program in self.programs.values():
                    if program.namespec in repr(args):
                        getattr(self, accident)(program)
                        self.wait(self.rng.choice((0.01, 1.5, 5)))
            if accident == 'orphaned' and task.process.death <= self.now:
                raise Killed
            if accident == 'killed':
                self.kill_task(task)
            elif accident == 'lost' or self.now < self.deaf_until:
                self.trouble_at = self.now
                self.wait(self.rng.choice((0, 0, memmon.RPC_TIMEOUT_SECS)))
                raise ConnectionResetError(errno.ECONNRESET, 'lost')
            answer = self.ask(method, args)
            if accident == 'killed after':
                self.kill_task(task)
            elif accident == 'lost after':
                self.trouble_at = self.now
                raise ConnectionResetError(errno.ECONNRESET, 'lost')
            self.wait(self.latency())
            return take(answer)
        except (Fault, OSError) as error:
            raise memmon.explain(error, 'unix:///sock') from None

    def latency(self) -> float:
        return self.rng.random() * (4 if self.now < self.slow_until else 0.01)

    # What memmon must keep.

    def judge_stop(self, task: Task, program: Program) -> None:
        """See whether memmon may stop a process."""
        process = program.process or Process(0, 0, NEVER)  # none yet: BACKOFF after an update
        memory = task.measured.get(process)
        name = program.namespec
        if self.is_dry:
            self.wrong(f'{name} is stopped in a dry run')
        if memory is None:
            if not any(other.program is program and task.measured_at <= other.death <= self.now
                       for other in task.measured):
                self.wrong(f'{name} is stopped, and this run of it was not measured')
        elif memory <= SOFT and sum(task.measured.values()) <= self.total:
            self.wrong(f'{name} is stopped with {memory / MB:.1f}MB')
        if task.has_slept:
            self.wrong(f'{name} is stopped, and was measured before a wait')
        for other in self.programs.values():
            if (other is not program and other.pool == program.pool and not other.is_exempt
                    and self.is_down(other) and self.is_known(other, task)):
                self.wrong(f'{name} is stopped, and {other.namespec} is down because of memmon')
        times, secs = self.rate_limit
        lately = [at for at, life in program.restarted
                  if life == task.life and at > self.now - secs]
        if len(lately) >= times:
            self.wrong(f'{name} is stopped, and was restarted {len(lately)} times of {times}')
        program.hit, program.hit_by, program.is_exempt = process, task, False
        program.is_given_up = False
        program.hits.append((self.now, task.life, FOREVER if memory is None else memory))

    def is_known(self, program: Program, task: Task) -> bool:
        """Tell whether a listener can know that a program is down because of memmon.

        What the one before it did shows in what is STOPPED, BACKOFF or FATAL, at the next look.
        """
        assert program.hit_by is not None
        return program.hit_by.life == task.life or (
            program.state in (STOPPED, BACKOFF, FATAL) and not self.has_jumped
            and self.now - max(program.failed_at, program.hits[-1][0]) > self.tick + 10)

    def judge_log(self, record: logging.LogRecord) -> None:
        """See whether what memmon says is true."""
        task = self.task
        text = record.getMessage()
        self.record('memmon %s: %s %s', task.pid, record.levelname, text)
        program = next((program for program in self.programs.values()
                        if f'{program.namespec}:' in text), None)
        is_planned = self.is_closed() or self.sup.options.mood < SupervisorStates.RUNNING
        if 'failed:' in text and 'the command' not in text:
            self.wrong(f'memmon has an error: {text}')
        if (record.levelno >= logging.ERROR and is_planned and self.now - self.trouble_at > 100
                # It may be about an answer from before that.
                and self.now - self.planned_at > (10 if self.planned_at < self.slow_until else 0.1)
                and 'the command' not in text):
            self.wrong(f'alarm in a planned shutdown: {text}')
        if program and text.startswith('restarted'):
            program.restarted.append((self.now, task.life))
        elif program and text.startswith('failed to start'):
            mine = [at for at, life, _ in program.hits if life == task.life]
            others = [at for at, life, _ in program.hits if life != task.life]
            if (mine and max([program.failed_at, *others]) < mine[-1]
                    and self.now - self.trouble_at > 100 and not program.is_missing):
                self.wrong(f'it is not true that {text}')
        elif program and text.startswith('gave up starting'):
            program.is_given_up = True

    def judge_end(self) -> None:
        """See whether all came to a good end."""
        pool = None if self.is_closed() else self.sup.process_groups['memmon']
        if not pool or pool.processes['memmon'].state == FATAL:  # killed four times in a row
            return
        if pool.processes['memmon'].state != RUNNING or any(
                event.when < self.wall() - 3 for event in pool.event_buffer):
            self.wrong('memmon does not answer events')
        for program in self.programs.values():
            if program.group in self.sup.process_groups:
                self.judge_end_of(program)

    def judge_end_of(self, program: Program) -> None:
        """See whether a program is up unless somebody wants it down, and kept to its limit."""
        name, process = program.namespec, program.process
        if (self.is_down(program) and not program.is_exempt
                and self.now - program.hits[-1][0] > 60):  # else it is restarted again and again
            is_orphan = (program.hit_by is not None
                         and self.find_listener(program.hit_by.life) is None)
            if program.state not in (FATAL, EXITED) or not (program.is_given_up or is_orphan):
                self.wrong(f'{name} is {getProcessStateDescription(program.state)}, and memmon '
                           'has stopped it')
        if program.is_wanted_down and program.state not in DOWN_STATES and not program.is_asked:
            self.wrong(f'{name} is up, and an operator has stopped it')
        if program.state != RUNNING or not process or self.is_dry:
            return
        slack = self.patience + 3 * self.tick + 40
        hits = [hit for hit in program.hits
                if hit[1] == self.lives and hit[0] > process.over_at(SOFT) - 1300]
        siblings = [other for other in self.programs.values()
                    if other is not program and other.pool == program.pool]
        is_free = not any(other.state != RUNNING or other.process
                          and other.process.over_at(SOFT) < self.now
                          or other.restarted and other.restarted[-1][0] > self.now - slack
                          for other in siblings)
        times, secs = self.rate_limit
        is_held = sum(at > self.now - secs - 60 for at, _, _ in hits) >= times
        said = sum(life == self.lives for _, life in program.restarted)
        # A stop without an answer counts as a restart for memmon, whoever restarts it then.
        is_sure = said <= sum(life == self.lives for _, life, _ in program.hits)
        is_over = process.over_at(SOFT) < self.now - slack and not hits and not said
        is_over_hard = process.over_at(self.hard) < self.now - slack and not any(
            memory > self.hard for _, _, memory in hits)
        if is_free and is_sure and not is_held and (is_over or is_over_hard):
            self.wrong(f'{name} is over its limit since {process.over_at(SOFT):.1f} and is not '
                       'restarted')

    def settle(self) -> None:
        """Let everything come to rest."""
        self.is_over, self.can_fork = True, True
        self.deaf_until = self.slow_until = NEVER
        for program in self.programs.values():
            program.is_missing, program.crash_secs = False, FOREVER
        self.record('the adversary is done')
        self.run(self.now + self.patience + 4 * self.tick + 52.5)
        end = self.now + 1500
        while self.now < end and not self.is_closed() and (
                any(task.life and task.process.ppid != self.supervisord.pid for task in self.tasks)
                or any(self.is_down(program) and not program.is_exempt
                       for program in self.programs.values())):
            self.run(self.now + 10)

    def close_down(self) -> None:
        """End all tasks."""
        for task in self.tasks[:]:
            task.life, task.process.death = 1, NEVER
            with suppress(Killed):
                task.throw(Killed)

    # The adversary.

    def adversary(self) -> None:
        """Do harm at some moments."""
        for _ in range(self.rng.choice((0, 1, 2, 4, 8))):
            self.wait(self.rng.random() * self.end / 4)
            if self.now >= self.end:
                break
            self.act()

    def act(self) -> None:
        """Do some harm."""
        if self.is_closed() or self.is_over:
            return
        act, program = self.rng.choice(ACTS), self.rng.choice(list(self.programs.values()))
        self.record('adversary: %s %s', act.__name__, program.namespec)
        act(self, program)

    def operate(self, *calls: tuple[Any, ...]) -> None:
        """Have an operator do some calls, each until it is not refused for a while any more."""
        self.start(lambda: self.operator(calls))

    def operator(self, calls: Iterable[tuple[Any, ...]]) -> None:
        for method, *args in calls:
            for _ in range(60):
                try:
                    self.ask(f'supervisor.{method}', args)
                except OSError:
                    return
                except Fault as fault:
                    if fault.faultCode not in (Faults.STILL_RUNNING, Faults.ALREADY_STARTED):
                        break
                else:
                    break
                self.wait(0.5)

    def kills_listener(self, program: Program) -> None:
        listener = self.find_listener()
        if listener is not None:
            self.kill_task(listener)

    def kills_worker(self, program: Program) -> None:
        workers = [task for task in self.tasks
                   if task.life and task.process.ppid != self.supervisord.pid]
        if workers:
            self.kill_task(self.rng.choice(workers))

    def kills_all(self, program: Program) -> None:
        mine = greenlet.getcurrent()
        for task in [task for task in self.tasks if task.life and task is not mine]:
            self.kill_task(task)
        if isinstance(mine, Task) and mine.life:
            self.kill_task(mine)

    def restarts_memmon(self, program: Program) -> None:
        self.operate(('stopProcess', MEMMON), ('startProcess', MEMMON, False))

    def ends(self, program: Program) -> None:
        if program.process:
            self.end_process(program.process, self.now, self.rng.choice((0, 256, signal.SIGSEGV)))

    def stops(self, program: Program) -> None:
        self.operate(('stopProcess', program.namespec, False))

    def starts(self, program: Program) -> None:
        self.operate(('startProcess', program.namespec, False))

    def restarts(self, program: Program) -> None:
        self.operate(('stopProcess', program.namespec), ('startProcess', program.namespec, False))

    def deploys_what_is_broken(self, program: Program) -> None:
        """Break all processes of a program, for some time."""
        pool = [other for other in self.programs.values() if other.pool == program.pool]
        is_missing, crash_secs = self.rng.choice(((True, 0.0), (False, 0.0), (False, 0.5),
                                                  (False, 3.0)))
        if len(pool) == 1 or any(self.now - at < 100 for other in pool for at, _, _ in other.hits):
            crash_secs = min(crash_secs, 0.5)  # only the first of a round is on trial for longer
        secs = self.rng.choice((3, 20, 100, 400))
        self.record('%s: missing %s, crashes after %s, for %s s', program.pool, is_missing,
                    crash_secs, secs)
        for other in pool:
            other.is_missing, other.crash_secs = is_missing, crash_secs
        self.trouble_at = max(self.trouble_at, self.now + secs)
        self.start(lambda: self.mend(pool, secs))

    def mend(self, pool: Sequence[Program], secs: float) -> None:
        self.wait(secs)
        for program in pool:
            program.is_missing, program.crash_secs = False, FOREVER
        self.record('%s is mended', pool[0].pool)

    def lets_forks_fail(self, program: Program) -> None:
        secs = self.rng.choice((1, 5, 20, 100))
        self.can_fork = False
        self.trouble_at = max(self.trouble_at, self.now + secs)
        self.record('no forks for %s s', secs)
        self.start(lambda: self.let_fork(secs))

    def let_fork(self, secs: float) -> None:
        self.wait(secs)
        self.can_fork = True

    def lets_calls_fail(self, program: Program) -> None:
        self.deaf_until = self.now + self.rng.choice((1, 5, 20, 70))

    def slows_calls_down(self, program: Program) -> None:
        self.slow_until = self.now + self.rng.choice((10, 60))

    def shrinks(self, program: Program) -> None:
        if program.process:
            program.process.course = (40.0 * MB, 0.0, 40.0 * MB)

    def sets_the_clock(self, program: Program) -> None:
        self.has_jumped = True
        self.jump += self.rng.choice((-3600, -30, -2, 2, 30, 3600))
        self.record('the clock is %.1f s off', self.jump)
        self.wake(self.supervisord)

    def reloads(self, program: Program) -> None:
        self.planned_at = self.now
        self.operate(('restart',))

    def shuts_down(self, program: Program) -> None:
        if self.rng.random() < 0.3:
            self.planned_at = self.now
            self.operate(('shutdown',))

    def updates(self, program: Program) -> None:
        """Take a group away and add it again, as supervisorctl update does with a changed one."""
        self.operate(('stopProcessGroup', program.group), ('removeProcessGroup', program.group),
                     ('addProcessGroup', program.group))


ACTS: Sequence[Callable[[World, Program], None]] = (
    World.kills_listener, World.kills_worker, World.kills_worker, World.kills_all,
    World.restarts_memmon, World.ends, World.ends, World.stops, World.starts, World.restarts,
    World.restarts, World.deploys_what_is_broken, World.deploys_what_is_broken,
    World.lets_forks_fail, World.lets_calls_fail, World.slows_calls_down, World.shrinks,
    World.sets_the_clock, World.reloads, World.shuts_down, World.updates)


def due_at(process: Any) -> float:
    """Return when supervisor's Subprocess.transition() does something, if nothing else happens."""
    config = process.config
    if process.state == EXITED:
        is_due = config.autorestart is RestartUnconditionally or (
            config.autorestart and process.exitstatus not in config.exitcodes)
        return NEVER if is_due else FOREVER
    if process.state == STOPPED:
        return FOREVER if process.laststart else NEVER
    if process.state == STARTING:
        return process.laststart + config.startsecs  # type: ignore[no-any-return]
    if process.state == BACKOFF and process.backoff > config.startretries:
        return NEVER
    return FOREVER if process.state == FATAL else process.delay


class ServerOptions:
    """What supervisord asks of its options, and through them of the system."""

    identifier, strip_ansi, minfds, serverurl, loglevel = 'supervisor', False, 1, None, 100
    first = nodaemon = True
    test = False

    def __init__(self, world: World) -> None:
        self.world = world
        self.mood = SupervisorStates.RUNNING
        self.poller = self.logger = self
        self.pidhistory: dict[int, Any] = {}
        self.registered: set[int] = set()
        self.process_group_configs = world.make_configs(self)

    def ignore(self, *args: object, **kwargs: object) -> None:
        """Do nothing."""

    info = warn = debug = blather = trace = critical = error = ignore
    setsignals = write_pidfile = cleanup = get_signal = stat = close = ignore
    get_autochildlog_name = ignore
    register_writable = unregister_writable = ignore

    def openhttpservers(self, sup: Any) -> None:
        """Make the RPC interface, as supervisor's http.py does."""
        interfaces = [('supervisor', supervisor.rpcinterface.SupervisorNamespaceRPCInterface(sup))]
        interfaces.append(('system', SystemNamespaceRPCInterface(interfaces)))
        self.world.root = RootRPCInterface(interfaces)
        events.subscribe(events.ProcessStateEvent, self.world.note_state)
        events.subscribe(events.ProcessGroupRemovedEvent, self.note_removal)

    def note_removal(self, event: Any) -> None:
        self.world.record('group %s is removed', event.group)
        self.world.forget(program for program in self.world.programs.values()
                          if program.group == event.group)

    def get_socket_map(self) -> dict[int, Any]:
        return {HTTP: SimpleNamespace(readable=lambda: True, writable=lambda: False,
                                      handle_read_event=self.world.serve,
                                      handle_error=self.raise_again)}

    def raise_again(self) -> NoReturn:
        raise  # noqa: PLE0704

    def register_readable(self, descriptor: int) -> None:
        self.registered.add(descriptor)

    def unregister_readable(self, descriptor: int) -> None:
        self.registered.discard(descriptor)

    def poll(self, timeout: float) -> tuple[list[int], list[int]]:
        """Wait until something can be read; what a call still waits for only after a while."""
        world = self.world
        ready = self.ready()
        if not ready and all(request.answer is not None for request in world.requests):
            world.wait(self.idle_secs(timeout), is_open=True)
            ready = self.ready()
        return [HTTP] * bool(world.requests) + ready, []

    def ready(self) -> list[int]:
        pipes = self.world.pipes
        return [descriptor for descriptor in sorted(self.registered)
                if descriptor in pipes and self.world.is_readable(descriptor)]

    def idle_secs(self, timeout: float) -> float:
        """Return for how long nothing happens: many turns of the main loop do nothing."""
        world, pid = self.world, self.get_pid()
        secs = 0.05 if world.requests else self.secs_to_turn(timeout)
        for process in world.processes.values():
            if process.ppid == pid and process.death - world.now < secs:
                secs = process.death - world.now
        return max(0.0, secs)

    def secs_to_turn(self, timeout: float) -> float:
        """Return when the first turn of the main loop does anything by itself."""
        world = self.world
        wall = world.wall()
        due, is_tick_waiting = FOREVER, False
        for group in world.sup.process_groups.values():
            for process in group.processes.values():
                if process.state != RUNNING:
                    due = min(due, due_at(process))
                elif process.listener_state == EventListenerStates.READY:
                    is_tick_waiting = bool(group.event_buffer)
        if self.mood < SupervisorStates.RUNNING or is_tick_waiting or due <= wall:
            return timeout
        to_tick = world.tick - wall % world.tick + 0.001
        return to_tick if due == FOREVER else timeout * math.ceil(min(due - wall, to_tick))

    def check_execv_args(self, filename: str, argv: Sequence[str], st: object) -> None:
        self.spawning = argv[1]
        program = self.world.programs.get(self.spawning)
        if program and program.is_missing:
            raise NotFound(f"can't find command {filename!r}")

    def make_pipes(self, use_stderr: bool) -> dict[str, int | None]:
        pipes: dict[str, int | None] = dict(NO_PIPES)
        if self.spawning == MEMMON:
            pipes['child_stdin'], pipes['stdin'] = self.world.pipe()
            pipes['stdout'], pipes['child_stdout'] = self.world.pipe()
            self.pipes = pipes
        return pipes

    def close_parent_pipes(self, pipes: Mapping[str, int | None]) -> None:
        for name, descriptor in pipes.items():
            if descriptor is not None and not name.startswith('child_'):
                self.world.close(descriptor)

    def close_child_pipes(self, pipes: Mapping[str, int | None]) -> None:
        for name, descriptor in pipes.items():
            if descriptor is not None and name.startswith('child_'):
                self.world.close(descriptor)

    def readfd(self, descriptor: int) -> bytes:
        return self.world.read(descriptor)

    def write(self, descriptor: int, data: bytes) -> int:
        return self.world.write(descriptor, data)

    def get_pid(self) -> int:
        return self.world.supervisord.pid

    def fork(self) -> int:
        world = self.world
        if self.spawning == MEMMON:
            process = world.new_process(self.get_pid())
            world.lives += 1
            task = world.start(lambda: memmon.listen(world.options, memmon.Server('unix:///sock')),
                               process, world.lives)
            task.standard = self.pipes['child_stdin'] or 0, self.pipes['child_stdout'] or 0
            task.descriptors = set(task.standard)
        elif not world.can_fork:
            raise BlockingIOError(errno.EAGAIN, 'too many processes')
        else:
            process = world.new_process(self.get_pid())
            world.behave(process, world.programs[self.spawning])
        return process.pid

    def kill(self, pid: int, signum: int) -> None:
        world, process = self.world, self.world.processes[pid]
        task = next((task for task in world.tasks if task.process is process), None)
        if task is not None:  # one that has not run yet is false
            world.kill_task(task, signum)
        elif signum == signal.SIGKILL:
            world.end_process(process, world.now + 0.01, signum)
        else:
            world.end_process(process, world.now + process.stop_secs, signum)

    def waitpid(self) -> tuple[int | None, int | None]:
        world, mine = self.world, self.get_pid()
        for process in world.processes.values():
            if process.ppid == mine and process.death <= world.now:
                return world.processes.pop(process.pid).pid, process.status
        return None, None


# What memmon finds instead of the system.

class Standard:
    """memmon's stdin and stdout."""

    def __init__(self, world: World, descriptor: int) -> None:
        self.world, self.descriptor = world, descriptor

    def __enter__(self) -> Standard:
        return self

    def __exit__(self, *args: object) -> None:
        """Leave the descriptor open, as closefd=False does."""

    def fileno(self) -> int:
        return self.descriptor

    def readline(self) -> str:
        data = self.world.pipes[self.descriptor][1]
        return self.world.read(self.descriptor, data.find(b'\n') + 1 or len(data)).decode()

    def read(self, count: int) -> str:
        return self.world.read(self.descriptor, count).decode()

    def write(self, text: str) -> None:
        self.world.write(self.descriptor, text.encode())

    def flush(self) -> None:
        """Nothing is held back."""


class Os:
    """What memmon uses of the module os."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.pipe, self.read, self.write, self.close = (
            world.pipe, world.read, world.write, world.close)

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def getpid(self) -> int:
        return self.world.task.pid

    def getppid(self) -> int:
        return self.world.task.process.ppid

    def kill(self, pid: int, signum: int) -> None:
        if pid not in self.world.processes:
            raise ProcessLookupError(errno.ESRCH, 'No such process')

    def waitpid(self, pid: int, options: int) -> tuple[int, int]:
        return pid, 0


# Histories.

def replacements(world: World) -> list[tuple[Any, str, Any]]:
    """Return what is put in the place of what."""
    clock = SimpleNamespace(sleep=world.sleep, monotonic=world.monotonic, time=world.wall,
                            process_time=lambda: 0.0,
                            localtime=time.localtime, gmtime=time.gmtime)
    log = logging.Logger('memmon', logging.INFO)
    handler = logging.Handler()
    handler.emit = world.judge_log  # type: ignore[method-assign]
    log.addHandler(handler)
    mine = {'time': clock, 'os': Os(world), 'log': log, 'PROC_FILES': world,
            'read_swap': lambda *_: 0, 'run': lambda *args, **kwargs: b'a mailer'}
    names = ('fork', 'open', 'wait_readable', 'read_fields', 'find_children', 'run_for_user')
    return [(memmon, name, value) for name, value in mine.items()] + [
        (memmon, name, getattr(world, name)) for name in names] + [
        (memmon, 'read_stat', lambda pid: None), (signal, 'signal', lambda *_: None),
        (memmon.Server, 'call', lambda server, *args: world.call(*args)),
        (supervisor.process, 'time', clock), (supervisor.rpcinterface, 'time', clock),
        (supervisor.supervisord, 'time', clock)]


def play(seed: int) -> World:
    """Play a history, and return the world as it is then."""
    world = World(seed)
    with pytest.MonkeyPatch.context() as patch:
        for place, name, value in replacements(world):
            patch.setattr(place, name, value, raising=False)
        world.start(world.adversary)
        world.run(world.end)
        world.settle()
        world.judge_end()
        world.close_down()
    return world


def describe(world: World) -> str:
    """Return a history for people to read."""
    lines = [f'seed {world.seed}: {"; ".join(world.wrongs)}', ' '.join(world.argv)]
    lines += [f'{namespec}: {program.kind}, stops in {world.stop_secs[namespec]} s, '
              + ', '.join(f'{name} {getattr(value, "__name__", value)}'
                          for name, value in world.configs[namespec].items())
              for namespec, program in world.programs.items()]
    lines += [f'{now:9.3f}  {text % args}' for now, text, args in world.told]
    return '\n'.join(lines)
