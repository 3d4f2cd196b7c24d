"""Restarts in virtual time: the program's own code, a model of supervisord, and an adversary.

A history is one run of a worker over some members of a group, and of those workers that take over
what it owes. The adversary acts at any call and any wait. A seed makes a history; to see one again:

    MEMMON_SEED=123 pytest -n 0 tests/test_simulation.py -k goes_wrong
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import re
from typing import Any, Callable, Iterator, Sequence, TypeVar
from xmlrpc.client import Fault

import pytest
from supervisor.states import (RUNNING_STATES, STOPPED_STATES, ProcessStates,
                               getProcessStateDescription)
from supervisor.xmlrpc import Faults

import memmon

HISTORIES = 20_000
PARTS = 4  # the histories, for as many cores

T = TypeVar('T')

STOPPED, STARTING, RUNNING = ProcessStates.STOPPED, ProcessStates.STARTING, ProcessStates.RUNNING
BACKOFF, STOPPING = ProcessStates.BACKOFF, ProcessStates.STOPPING
EXITED, FATAL = ProcessStates.EXITED, ProcessStates.FATAL

NEVER = float('-inf')
NOT_YET = float('inf')
BEGIN = 1_000_000
SUPERVISORD_PID = 1000
SMALL, BIG = 50, 200
LIMIT = 100
OPTIONS = memmon.parse_args(['-a', str(LIMIT)])


# The model: what supervisor 4's process.py, rpcinterface.py and supervisord.py do, in their order.

class Program:
    """A program's process, as a Subprocess of supervisor/process.py keeps it."""

    def __init__(self, world: World, name: str, rng: random.Random) -> None:
        self.world = world
        self.name = name
        self.startsecs = rng.choice((0, 1, 5))
        self.startretries = rng.choice((0, 3))
        self.autorestart = rng.random() < 0.8
        self.stop_secs = rng.choice((0.0, 0.3, 3.0, 12.0))
        self.state: int = RUNNING
        self.pid = world.next_pid()
        self.memory = BIG
        self.start = world.now - self.startsecs - rng.choice((0.2, 1.2, 100.0))
        self.stop = 0.0
        self.death = NOT_YET  # when the process ends
        self.backoff = 0
        self.delay = 0.0
        self.spawnerr = ''
        self.is_killing = False
        self.outage = ''      # why a start fails, until then
        self.outage_end = NEVER
        self.fate = Fate()

    def failure(self) -> str:
        """Return why a start fails now."""
        return self.outage if self.world.now < self.outage_end else ''

    def spawn(self) -> None:
        if self.pid:
            return  # "already running"
        self.is_killing = False
        self.spawnerr = ''
        self.start = self.world.now
        self.become(STARTING)
        if self.failure() in (NO_FILE, NO_FORK):
            self.spawnerr = self.failure()
            self.back_off()
            return
        self.pid = self.world.next_pid()
        self.memory = self.world.rng.choice((SMALL, SMALL, BIG))
        if self.failure() == CRASH:
            self.death = self.world.now + self.world.rng.random() * (self.startsecs or 0.01)

    def back_off(self) -> None:
        self.become(BACKOFF)
        self.backoff += 1
        self.delay = self.world.now + self.backoff

    def become(self, state: int) -> None:
        self.state = state
        self.world.record('%s is %s', self.name, getProcessStateDescription(state))
        if state == RUNNING:
            self.backoff = 0
            self.fate.up_at = self.world.now
            self.fate.runs[self.pid] = self.start

    def kill(self) -> None:
        if self.state == BACKOFF:
            self.become(STOPPED)  # which leaves the start and the stop as they are
            return
        self.is_killing = True
        self.become(STOPPING)
        self.death = min(self.death, self.world.now + self.stop_secs)

    def finish(self) -> None:
        """Note the end of the process."""
        now = self.world.now
        self.stop, self.pid, self.death = now, 0, NOT_YET
        if self.is_killing:
            self.is_killing = False
            self.become(STOPPED)
        elif now - self.start < self.startsecs:
            self.spawnerr = 'Exited too quickly'
            self.back_off()
        else:
            self.backoff = 0
            self.spawnerr = 'Bad exit code 1'
            self.become(EXITED)

    def transition(self) -> None:
        now, state = self.world.now, self.state
        if state == EXITED and self.autorestart:
            self.spawn()
        elif state == STARTING and now - self.start > self.startsecs:
            self.become(RUNNING)
        elif state == BACKOFF:
            if self.backoff <= self.startretries and now > self.delay:
                self.spawn()
            if self.state == BACKOFF and self.backoff > self.startretries:
                self.backoff = 0
                self.become(FATAL)

    def is_at_rest(self) -> bool:
        """Tell whether supervisord will leave the process as it is."""
        return (self.state in (STOPPED, RUNNING, FATAL)
                or self.state == EXITED and not self.autorestart)

    def show(self) -> memmon.Process:
        """Return what getProcessInfo says."""
        return memmon.Process(
            group='pool', name=self.name, pid=self.pid, start=int(self.start), stop=int(self.stop),
            now=int(self.world.now), state=self.state,
            statename=getProcessStateDescription(self.state), spawnerr=self.spawnerr)


NO_FILE = 'no such file'            # refused, before anything changes
NO_FORK = 'too many processes'      # the spawn fails
CRASH = 'exits too quickly'         # what is spawned does not live


class Fate:
    """What was done to a program, and when: what the judgement needs."""

    def __init__(self) -> None:
        self.hit_at = NEVER         # memmon's stop took effect
        self.hit_start = 0          # on the run with this start, as supervisord shows it
        self.other_hit_at = NEVER   # another memmon's stop did
        self.up_at = NEVER          # it entered RUNNING
        self.operator_at = NEVER    # an operator's stop or start took effect
        self.failed_at = NEVER      # memmon said that it failed to start
        self.is_wanted_down = False
        self.is_unknowable = False  # whose stop it was: memmon's was cut off
        self.is_lost = False        # who owed it a start has ended, and nobody else knew
        self.runs: dict[int, float] = {}  # those that were RUNNING: pid, start
        self.outcome = ''           # the last that was reported


class Killed(BaseException):
    """The worker has been killed, or does not come to an end."""


class Supervisord:
    """The calls and the main loop of supervisord."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.programs: dict[str, Program] = {}
        self.turn_at = world.now  # select() waits a second at most

    def turn(self) -> None:
        """Go once around the main loop."""
        self.turn_at = self.world.now + 1
        for program in self.programs.values():
            program.transition()
        self.reap()

    def reap(self) -> None:
        for program in self.programs.values():
            if program.death <= self.world.now:
                program.finish()

    def next_event(self) -> float:
        """Return when the main loop goes around next: a child's end wakes it."""
        wake = self.turn_at
        for program in self.programs.values():
            if program.death < wake:
                wake = program.death
        return wake

    def start_process(self, name: str) -> None:
        program = self.programs[name]
        if program.failure() == NO_FILE:
            raise Fault(Faults.NO_FILE, NO_FILE)
        if program.state in RUNNING_STATES:
            raise Fault(Faults.ALREADY_STARTED, name)
        program.spawn()
        self.world.now += 0.0001
        self.reap()
        if program.spawnerr:
            raise Fault(Faults.SPAWN_ERROR, name)
        program.transition()

    def stop_process(self, name: str) -> None:
        program = self.programs[name]
        if program.state not in RUNNING_STATES:
            raise Fault(Faults.NOT_RUNNING, name)
        program.kill()
        self.reap()


# The world: virtual time, the adversary, and what memmon finds instead of its surroundings.

LOST_BEFORE, LOST_AFTER = 'the call is lost', 'the answer is lost'
KILLED_BEFORE, KILLED_AFTER = 'the worker is killed', 'the worker is killed before the answer'


class World:
    """One history. It is also memmon's time module."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.seed = seed
        self.now = BEGIN + self.rng.random()
        self.pid = SUPERVISORD_PID
        self.told: list[tuple[Any, ...]] = []
        self.wrongs: list[str] = []
        self.rate = self.rng.choice((0.03, 0.1, 0.3))
        self.acts = self.rng.randint(1, 8)
        self.gone_at = NOT_YET      # the listener
        self.calls_since_gone = 0
        self.deaf_until = NEVER     # supervisord
        self.has_ended = False      # supervisord
        self.restarting: set[str] = set()  # the names that an operator starts once they are down
        self.supervisord = Supervisord(self)
        for number in range(self.rng.randint(1, 3)):
            name = 'abc'[number]
            self.supervisord.programs[name] = Program(self, name, self.rng)
        self.programs = list(self.supervisord.programs.values())

    def next_pid(self) -> int:
        self.pid += 1
        return self.pid

    def record(self, text: str, *args: object) -> None:
        self.told.append((self.now, text, args))

    def wrong(self, text: str) -> None:
        self.record('WRONG: ' + text)
        self.wrongs.append(text)

    def time(self) -> float:
        return self.now

    monotonic = time

    def sleep(self, secs: float) -> None:
        if self.now > BEGIN + 20_000:
            self.wrong('memmon comes to no end')
            raise Killed
        end = self.now + secs
        if self.rng.random() < self.rate:
            self.advance(self.now + secs * self.rng.random())
            self.suffer(self.act())
        self.advance(end)

    def advance(self, until: float) -> None:
        """Let time pass."""
        supervisord = self.supervisord
        wake = supervisord.next_event()
        while wake <= until:
            self.now = max(self.now, wake)
            supervisord.turn()
            if self.restarting:
                self.start_what_is_down()
            wake = supervisord.next_event()
        self.now = max(self.now, until)

    def call(self, effect: Callable[[str], T], name: str, what: str) -> T:
        """Call supervisord, on behalf of memmon."""
        self.calls_since_gone += self.has_gone()
        blow = self.act() if self.rng.random() < self.rate else ''
        self.advance(self.now + 0.001)
        if what != 'look':
            self.record('memmon: %s %s', what, name)
        if blow or self.now < self.deaf_until or self.has_ended:
            self.cut_off(blow, effect, name, what)
        answer = effect(name)
        self.supervisord.turn()
        return answer

    def cut_off(self, blow: str, effect: Callable[[str], object], name: str, what: str) -> None:
        """Lose a call, or its answer, or the worker."""
        if what == 'stop':
            self.supervisord.programs[name].fate.is_unknowable = True
        is_deaf = self.now < self.deaf_until or self.has_ended
        if blow in (LOST_AFTER, KILLED_AFTER) and not is_deaf:
            with contextlib.suppress(Fault):
                effect(name)
        self.suffer(blow)
        self.advance(self.now + self.rng.choice((0, 10)))
        raise memmon.SupervisordError(blow or 'no answer')

    def suffer(self, blow: str) -> None:
        if blow in (KILLED_BEFORE, KILLED_AFTER):
            raise Killed

    def act(self) -> str:
        """Let the adversary act; return what becomes of the call under way."""
        if not self.acts or self.has_ended:
            return ''
        self.acts -= 1
        program = self.rng.choice(self.programs)
        action = self.rng.choice(ACTIONS)
        if isinstance(action, str):
            self.record('adversary: %s', action)
            return action
        self.record('adversary: %s %s', action.__name__, program.name)
        action(self, program)
        self.advance(self.now + self.rng.choice((0, 0.01, 1.5)))
        return ''

    def dies(self, program: Program) -> None:
        if program.pid:
            program.death = self.now

    def operator_stops(self, program: Program) -> None:
        with contextlib.suppress(Fault):
            start = int(program.start)
            self.supervisord.stop_process(program.name)
            fate = program.fate
            fate.operator_at = self.now
            fate.is_wanted_down = True
            # supervisord shows whole seconds: what was started within the same second looks the
            # same as what memmon has stopped.
            fate.is_unknowable = fate.is_unknowable or start == fate.hit_start

    def operator_starts(self, program: Program) -> None:
        had_pid = program.pid
        try:
            self.supervisord.start_process(program.name)
        except Fault as fault:
            if fault.faultCode != Faults.SPAWN_ERROR:
                return
        if not had_pid:  # what is still STOPPING is not started, nor refused
            program.fate.operator_at = self.now
            program.fate.is_wanted_down = False

    def operator_restarts(self, program: Program) -> None:
        self.operator_stops(program)
        self.restarting.add(program.name)

    def start_what_is_down(self) -> None:
        """Start what an operator, or another memmon, is restarting; try until it is not refused."""
        for program in self.programs:
            if program.name in self.restarting and program.state in STOPPED_STATES:
                program.fate.operator_at = self.now
                if program.failure() != NO_FILE:
                    self.restarting.remove(program.name)
                    self.record('%s is started again', program.name)
                    self.operator_starts(program)

    def another_memmon_restarts(self, program: Program) -> None:
        """Stop a program on behalf of a memmon that has been replaced, whose worker goes on."""
        self.record('another memmon restarts %s', program.name)
        self.supervisord.stop_process(program.name)
        self.restarting.add(program.name)
        program.fate.other_hit_at = self.now

    def starts_fail(self, program: Program) -> None:
        program.outage = self.rng.choice((NO_FILE, NO_FORK, CRASH))
        program.outage_end = self.now + self.rng.choice((0.5, 3, 20, 100, 100, 800))
        self.record('because %s, until %.1f', program.outage, program.outage_end - BEGIN)

    def shrinks(self, program: Program) -> None:
        program.memory = SMALL

    def calls_fail(self, program: Program) -> None:
        self.deaf_until = self.now + self.rng.choice((0.5, 3, 20, 100))

    def time_passes(self, program: Program) -> None:
        self.advance(self.now + self.rng.choice((0.3, 3, 30)))

    def listener_goes(self, program: Program) -> None:
        self.gone_at = min(self.gone_at, self.now)

    def supervisord_ends(self, program: Program) -> None:
        self.has_ended = True

    def has_gone(self) -> bool:
        return self.gone_at <= self.now

    def is_alive(self, pid: int) -> bool:
        return not self.has_ended

    def read_process_table(self) -> memmon.ProcessTable:
        blow = self.act() if self.rng.random() < self.rate else ''
        self.suffer(blow)
        if blow:
            raise memmon.MeasureError(blow)
        return memmon.ProcessTable({program.pid: memmon.Row(SUPERVISORD_PID, program.memory)
                                    for program in self.programs if program.pid})

    def settle(self) -> None:
        """Let everything come to rest."""
        self.acts = 0
        for program in self.programs:
            program.outage_end = NEVER
        end = self.now + 300
        while self.now < end and (self.restarting or not all(
                program.is_at_rest() for program in self.programs)):
            self.advance(self.now + 1)


ACTIONS: Sequence[str | Callable[[World, Program], None]] = (
    LOST_BEFORE, LOST_AFTER, KILLED_BEFORE, KILLED_AFTER,
    World.dies, World.dies, World.dies, World.operator_stops, World.operator_stops,
    World.operator_starts, World.operator_starts, World.operator_restarts, World.starts_fail,
    World.starts_fail, World.shrinks, World.calls_fail, World.time_passes, World.listener_goes,
    World.supervisord_ends)


class Server:
    """What a restart asks of memmon.Server, answered by the model."""

    def __init__(self, world: World) -> None:
        self.world = world

    def process(self, namespec: str) -> memmon.Process:
        return self.world.call(self.look, namespec[len('pool:'):], 'look')

    def known(self, namespecs: Sequence[str]) -> list[memmon.Process]:
        names = [namespec[len('pool:'):] for namespec in namespecs]
        return self.world.call(lambda _: [self.look(name) for name in names], names[0], 'look')

    def start(self, namespec: str) -> None:
        self.world.call(self.world.supervisord.start_process, namespec[len('pool:'):], 'start')

    def stop(self, namespec: str) -> tuple[memmon.Process, memmon.Process]:
        return self.world.call(self.look_stop_look, namespec[len('pool:'):], 'stop')

    def look(self, name: str) -> memmon.Process:
        return self.world.supervisord.programs[name].show()

    def look_stop_look(self, name: str) -> tuple[memmon.Process, memmon.Process]:
        before = self.look(name)
        self.hit(name)
        return before, self.look(name)

    def hit(self, name: str) -> None:
        """Stop a process on behalf of memmon, and see whether memmon may."""
        self.world.supervisord.stop_process(name)
        if self.world.calls_since_gone > 1:  # the last look was begun before
            self.world.wrong(f'{name} is stopped, and memmon had been stopped before')
        for program in self.world.programs:
            if program.name == name:
                program.fate.hit_at = self.world.now
                program.fate.hit_start = int(program.start)
            elif is_down_by_memmon(program):
                self.world.wrong(f'{program.name} and {name} are down, both by memmon')


def is_down_by_memmon(program: Program) -> bool:
    """Tell whether a program is down because memmon has stopped it, and for no other reason."""
    fate = program.fate
    return (max(fate.hit_at, fate.other_hit_at) > max(fate.up_at, fate.operator_at, fate.failed_at)
            and program.state != FATAL)


def at_once(do: Callable[..., object], *args: object) -> None:
    """Do something at once, rather than in a thread."""
    do(*args)


# The history: the workers, and the judgement of what they did.

def make_jobs(world: World, programs: Sequence[Program]) -> list[memmon.Job]:
    """Return the jobs that a tick makes of the programs that are over the limit."""
    limits = memmon.Limits(OPTIONS.limits)
    jobs = []
    for program in programs:
        if program.state == RUNNING and program.memory == BIG:
            process = program.show()
            reading = memmon.Reading(process, 100, False, program.memory,
                                     limit=limits.apply_to(process), size=LIMIT)
            companions = [f'pool:{other.name}' for other in world.programs if other != program]
            program.fate.hit_at = NEVER
            jobs.append(memmon.Job(reading, memmon.Debt(), tuple(companions)))
    return jobs


def run_worker(world: World, server: Server, jobs: Sequence[memmon.Job]) -> list[memmon.Job]:
    """Do some jobs as a worker does; return what it owes when it is killed."""
    for number, job in enumerate(jobs):
        job.debt.number = number
    reader, writer = os.pipe()
    worker = memmon.Worker(None, reader, jobs)
    stand_in: Any = server
    restarter = memmon.Restarter(stand_in, SUPERVISORD_PID, OPTIONS, world.has_gone)
    work: Any = memmon.Work(OPTIONS, restarter, writer)
    work.spawn = at_once
    work.report = functools.partial(judge, world)
    is_killed = False
    try:
        work.do([jobs], [])
    except Killed:
        is_killed = True
    os.close(writer)
    while worker.read_notes():
        pass
    os.close(reader)
    check_notes(world, worker, is_killed)
    return worker.unpaid()


def check_notes(world: World, worker: memmon.Worker, is_killed: bool) -> None:
    """See whether a worker has told of each job what it has reported."""
    for job in worker.jobs:
        name = job.reading.process.name
        note = worker.notes.get(job.debt.number)
        if not is_killed and (note is None or not note.outcome or note.state != memmon.NOT_OWED):
            world.wrong(f'the debt to {name} is not settled: {note}')
        outcome = world.supervisord.programs[name].fate.outcome
        if not is_killed and note and memmon.OUTCOMES[note.outcome] != outcome:
            world.wrong(f'the outcome told for {name} is not the one reported')


def play(world: World, server: Server) -> None:
    """Play a history."""
    programs = [program for program in world.programs if world.rng.random() < 0.8]
    jobs = make_jobs(world, programs or world.programs)
    if world.rng.random() < 0.1:
        world.another_memmon_restarts(world.rng.choice(world.programs))
    while jobs:
        owed = run_worker(world, server, jobs)
        with contextlib.suppress(Killed):
            world.sleep(1)
        if world.has_gone():
            for job in owed:
                world.supervisord.programs[job.reading.process.name].fate.is_lost = True
            break
        indebted = {job.reading.process.name for job in owed}
        is_tick = owed and world.rng.random() < 0.3
        jobs = owed + make_jobs(world, [program for program in world.programs
                                        if is_tick and program.name not in indebted])
    world.settle()
    if not world.has_ended:
        for program in world.programs:
            check_end(world, program)


def check_end(world: World, program: Program) -> None:
    """See whether a program ended up where it should."""
    fate = program.fate
    if fate.is_wanted_down:
        if program.state != STOPPED and not fate.is_unknowable:
            world.wrong(f'{program.name} is up, and an operator had stopped it')
    elif not (program.state in (RUNNING, FATAL)
              or program.state == EXITED and not program.autorestart
              or fate.is_lost):
        world.wrong(f'{program.name} is down, and nobody wanted that')


def judge(world: World, job: memmon.Job, result: memmon.Result) -> None:
    """See whether what memmon reports is what has happened. Stands for Work.report."""
    program = world.supervisord.programs[job.reading.process.name]
    fate, outcome = program.fate, result.outcome
    fate.outcome = outcome
    world.record('memmon: %s %s: %s', outcome, program.name, result.why)
    is_hit = fate.hit_at > NEVER
    if outcome == memmon.RESTARTED:
        is_true = ((is_hit or fate.is_unknowable)
                   and fate.runs.get(result.pid, NEVER) >= fate.hit_at)
    elif outcome == memmon.LEFT_ALONE:
        is_true = not is_hit or fate.operator_at >= fate.hit_at or world.has_ended
    else:
        is_true = is_hit or fate.is_unknowable
    if not is_true:
        world.wrong(f'what memmon says of {program.name} is not what has happened')
    if outcome == memmon.START_FAILED and job.debt.state == memmon.NOT_OWED:
        fate.failed_at = world.now
        check_failure(world, program, result)


def check_failure(world: World, program: Program, result: memmon.Result) -> None:
    """See whether a program that memmon has given up has failed to start."""
    if result.why.endswith('memmon has given up'):
        program.fate.is_lost = True
        is_true = world.now - world.gone_at >= memmon.ORPHAN_PATIENCE_SECS
    else:
        is_true = (program.state in (BACKOFF, FATAL)
                   or program.state == EXITED and not program.autorestart
                   or program.failure() == CRASH)
    if not is_true:
        world.wrong(f'{program.name} has not failed to start: {result.why}')


def run_history(seed: int, make_server: Callable[[World], Server], patch: pytest.MonkeyPatch
                ) -> World:
    """Return the world at the end of a history."""
    world = World(seed)
    patch.setattr(memmon, 'time', world)
    patch.setattr(memmon, 'read_process_table', world.read_process_table)
    patch.setattr(memmon, 'is_alive', world.is_alive)
    patch.setattr(memmon.log, 'disabled', True)
    play(world, make_server(world))
    return world


def describe(world: World) -> str:
    """Return a history for people to read."""
    lines = [f'seed {world.seed}: {"; ".join(world.wrongs)}']
    lines += [f'{program.name}: startsecs {program.startsecs}, startretries '
              f'{program.startretries}, autorestart {program.autorestart}, stops in '
              f'{program.stop_secs} s' for program in world.programs]
    lines += [f'{now - BEGIN:9.3f}  {text % args}' for now, text, args in world.told]
    return '\n'.join(lines)


def wrong_histories(seeds: Sequence[int], make_server: Callable[[World], Server]) -> Iterator[str]:
    """Play histories, and return those in which something went wrong."""
    for seed in seeds:
        with pytest.MonkeyPatch.context() as patch:
            world = run_history(seed, make_server, patch)
        if world.wrongs:
            yield describe(world)


@pytest.mark.parametrize('part', range(PARTS))
def test_nothing_goes_wrong_in_a_history(part: int) -> None:
    count = HISTORIES // PARTS
    first = random.randrange(2 ** 40)
    if 'MEMMON_SEED' in os.environ:
        first, count = int(os.environ['MEMMON_SEED']), 1
    for history in wrong_histories(range(first, first + count), Server):
        pytest.fail(history, pytrace=False)


class ServerOfThreeCalls(Server):
    """Stops in three calls, and has the debt remember the start of what was measured."""

    def stop(self, namespec: str) -> tuple[memmon.Process, memmon.Process]:
        before = self.process(namespec)
        self.world.call(self.hit, before.name, 'stop')
        self.process(namespec)
        return before, before


def test_stop_in_three_calls_loses_the_successor() -> None:
    """The process dies between the look and the stop, autorestart starts it, the stop hits that."""
    assert any('someone else has stopped it' in history and 'nobody wanted that' in history
               and set(re.findall('adversary: (\\w+)', history)) == {'dies'}
               for history in wrong_histories(range(HISTORIES), ServerOfThreeCalls))
