"""Who does what, which groups wait, and what a worker that was killed owes."""

from __future__ import annotations

import logging
import os
from typing import Any, Iterator

import pytest
from samples import MB, SERVER, job, options, reading

import memmon
from memmon import (ASKED, LEFT_ALONE, NOT_OWED, OUTCOMES, OWED, PUT_OFF, RESTARTED, START_FAILED,
                    Debt, Job, News, Note, Result, Work, Worker, Workers)

NAMESPECS = ('a:1', 'b:1', 'a:2', 'c:1', 'a:3')


@pytest.mark.parametrize('namespecs, busy, groups', [
    ((), [], []),
    (NAMESPECS, [], [['a:1', 'a:2', 'a:3'], ['b:1'], ['c:1']]),
    (NAMESPECS, ['a'], [['b:1'], ['c:1']]),
    (NAMESPECS, ['b', 'c'], [['a:1', 'a:2', 'a:3']]),
    (NAMESPECS, ['a', 'b', 'c', 'd'], []),
    (('b:1', 'a:1', 'b:1'), ['d'], [['b:1', 'b:1'], ['a:1']]),
])
def test_group_jobs(namespecs: tuple[str, ...], busy: list[str], groups: list[list[str]]) -> None:
    seen = memmon.group_jobs(map(job, namespecs), busy)
    assert [[each.reading.process.namespec for each in group] for group in seen] == groups


# What a worker tells.

def test_note_is_written_whole_or_not_at_all() -> None:
    assert memmon.NOTE.size <= 512  # the least PIPE_BUF that POSIX allows
    note = Note(2 ** 31 - 1, OWED, 2 ** 40, True, 5, 2 ** 31 - 1, 2 ** 50)
    assert Note(*memmon.NOTE.unpack(memmon.NOTE.pack(*note))) == note


def note(number: int, state: int = NOT_OWED, start: int = 0, is_reported: int = 0,
         outcome: str = '', pid: int = 0, fresh: int = -1) -> Note:
    return Note(number, state, start, is_reported, OUTCOMES.index(outcome), pid, fresh)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)
    try:
        os.close(writer)
    except OSError:
        pass  # a test has closed it


def numbered(*debts: Debt) -> list[Job]:
    """Return jobs a:0, a:1 ... with debts that know their numbers."""
    for number, debt in enumerate(debts):
        debt.number = number
    return [job(f'a:{number}', debt) for number, debt in enumerate(debts)]


@pytest.mark.parametrize('result, told', [
    (None, note(3, OWED, 1000)),
    (Result(RESTARTED, 'why', 8, 12 * MB), note(3, OWED, 1000, 0, RESTARTED, 8, 12 * MB)),
    (Result(RESTARTED, 'why', 8, 0), note(3, OWED, 1000, 0, RESTARTED, 8, 0)),
    (Result(RESTARTED, 'why', 8), note(3, OWED, 1000, 0, RESTARTED, 8, -1)),
    (Result(LEFT_ALONE, 'why'), note(3, OWED, 1000, 0, LEFT_ALONE)),
])
def test_work_tells_how_a_job_stands(result: Result | None, told: Note, pipe: tuple[int, int]
                                     ) -> None:
    reader, writer = pipe
    debt = Debt(OWED, 1000)
    debt.number = 3
    Work(options(), restarter=None, pipe=writer).tell(debt, result)  # type: ignore[arg-type]
    assert Worker(5, reader, []).read_notes() == [told]


def test_work_survives_a_listener_that_has_gone(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    os.close(writer)
    Work(options(), restarter=None, pipe=writer).tell(Debt())  # type: ignore[arg-type]


def worker_of(jobs: list[Job], notes: list[Note], pipe: tuple[int, int]) -> Worker:
    """Return a worker that has told something and ended, and of which all was read."""
    reader, writer = pipe
    for each in notes:
        os.write(writer, memmon.NOTE.pack(*each))
    os.close(writer)
    worker = Worker(5, reader, jobs)
    read: list[Note] = []
    while True:
        some = worker.read_notes()
        if not some:
            break
        read += some
    assert read == notes
    return worker


@pytest.mark.parametrize('debt, notes, is_done, owed', [
    # It was killed before it told anything.
    (Debt(), [], False, None),
    (Debt(OWED, 1000, True), [], False, (OWED, 1000, True)),
    (Debt(ASKED), [], False, (ASKED, 0, False)),
    # On its way.
    (Debt(), [note(1, ASKED)], False, (ASKED, 0, False)),
    (Debt(), [note(1, ASKED), note(1, OWED, 1000)], False, (OWED, 1000, False)),
    (Debt(), [note(1, ASKED), note(1, OWED, 1000, 1)], False, (OWED, 1000, True)),
    (Debt(), [note(1, ASKED), note(1, NOT_OWED)], False, None),
    (Debt(OWED, 1000, True), [note(1, NOT_OWED)], False, None),
    # At its end.
    *[(Debt(), [note(1, ASKED), note(1, OWED, 1000), note(1, NOT_OWED, outcome=outcome)],
       True, None) for outcome in OUTCOMES[1:]],
    (Debt(OWED, 1000), [note(1, OWED, 1000, outcome=START_FAILED)], True, None),
    # What others have told does not matter.
    (Debt(), [note(0, OWED, 1000), note(2, outcome=RESTARTED)], False, None),
])
def test_killed_worker_owes_what_it_told_last(
        debt: Debt, notes: list[Note], is_done: bool, owed: tuple[int, int, bool] | None,
        pipe: tuple[int, int]) -> None:
    jobs = numbered(Debt(), debt, Debt())
    worker = worker_of(jobs, notes, pipe)
    assert worker.is_done(jobs[1]) == is_done
    seen = [(each.debt.state, each.debt.start, each.debt.is_reported)
            for each in worker.unpaid() if each.reading == jobs[1].reading]
    assert seen == ([owed] if owed else [])


def test_more_notes_than_a_read_takes_are_read_whole(pipe: tuple[int, int]) -> None:
    jobs = numbered(*(Debt() for _ in range(250)))
    worker = worker_of(jobs, [note(number, ASKED) for number in range(250)], pipe)
    assert len(worker.unpaid()) == 250


# What the listener does with it.

class Recorder(Workers):
    """Workers whose tasks a test looks at."""

    def __init__(self) -> None:
        super().__init__(options(), SERVER)
        self.tasks: list[memmon.Task] = []

    def start_worker(self, task: memmon.Task) -> None:
        self.tasks.append(task)

    def begun(self) -> list[list[Job]]:
        return [list(group) for task in self.tasks for group in task.groups]


def news(line: str = 'line') -> News:
    return News(logging.INFO, line)


def test_dispatch_pays_debts_first_and_only_once() -> None:
    workers = Recorder()
    owed, due, other = job('a:1', Debt(OWED, 1000)), job('a:2'), job('b:1')
    workers.debts = [owed]
    workers.dispatch([other, due], [news()], 40)
    assert workers.tasks == [([[owed, due], [other]], [news()], 40)]
    assert workers.debts == []


def test_dispatch_keeps_debts_whose_group_is_busy(pipe: tuple[int, int]) -> None:
    workers = Recorder()
    jobs = numbered(Debt(), Debt())
    worker = Worker(5, pipe[0], jobs)
    worker.notes[0] = note(0, outcome=RESTARTED)
    workers.workers = [worker]
    assert workers.under_way() == [jobs[1]]
    owed, due, other = job('a:7', Debt(OWED, 1000)), job('a:8'), job('b:1', Debt(OWED, 1))
    workers.debts = [owed, other]
    workers.dispatch([due], [], 40)
    assert workers.begun() == [[other]]
    assert workers.debts == [owed]
    worker.notes[1] = note(1, outcome=PUT_OFF)
    workers.dispatch([due], [], 40)
    assert workers.begun() == [[other], [owed, due]]
    assert workers.debts == []


def test_dispatch_keeps_debts_if_no_worker_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    workers = Recorder()

    def fail(task: memmon.Task) -> None:
        raise OSError(24, 'Too many open files')

    monkeypatch.setattr(workers, 'start_worker', fail)
    workers.debts = [job('a:1', Debt(OWED, 1000))]
    with pytest.raises(OSError):
        workers.dispatch([], [], 40)
    assert len(workers.debts) == 1


@pytest.mark.parametrize('items, count', [([], 0), ([news()], 1)])
def test_dispatch_starts_no_worker_for_nothing(items: list[News], count: int) -> None:
    workers = Recorder()
    workers.dispatch([], items, 40)
    assert len(workers.tasks) == count


def test_collect_takes_over_what_a_killed_worker_owes(pipe: tuple[int, int]) -> None:
    reader, writer = os.pipe()
    stdin, _ = pipe
    workers = Recorder()
    jobs = numbered(Debt(), Debt())
    workers.workers = [Worker(None, reader, jobs)]
    os.write(writer, memmon.NOTE.pack(*note(0, outcome=RESTARTED)))
    os.write(writer, memmon.NOTE.pack(*note(1, OWED, 1000)))
    os.close(writer)
    assert workers.collect(stdin, 0) == (
        False, [(jobs[0], note(0, outcome=RESTARTED)), (jobs[1], note(1, OWED, 1000))])
    assert (len(workers.workers), workers.debts) == (1, [])
    os.write(pipe[1], b'x')
    assert workers.collect(stdin, 0) == (True, [])
    assert workers.workers == []
    assert [(each.reading, each.debt.state, each.debt.start) for each in workers.debts] == [
        (jobs[1].reading, OWED, 1000)]
    with pytest.raises(OSError):
        os.fstat(reader)


# How a worker does its jobs.

class Restarts:
    """Says what a test wants to become of each restart."""

    def __init__(self, **results: tuple[str, int]) -> None:
        self.results = results  # outcomes and states of the debt, by name
        self.calls: list[str] = []

    def restart(self, one: Job) -> tuple[Job, Result]:
        name = one.reading.process.name
        self.calls.append(name)
        outcome, one.debt.state = self.results.get(name, (RESTARTED, NOT_OWED))
        if outcome == 'raise':
            raise ValueError('a mistake')
        return one, Result(outcome, 'why', 8)

    def pay(self, one: Job, tries: float) -> Result:
        self.calls.append(f'pay {one.reading.process.name} {tries}')
        one.debt.state = NOT_OWED
        return Result(RESTARTED, 'pid 7 -> 9', 9)


def do(restarts: Any, groups: list[list[str]], pipe: tuple[int, int]) -> list[Note]:
    """Have a worker do the jobs of some groups; return what it has told."""
    reader, writer = pipe
    jobs = numbered(*(Debt() for group in groups for _ in group))
    names = [name for group in groups for name in group]
    by_name = {name: one._replace(reading=reading(name)) for name, one in zip(names, jobs)}
    Work(options(), restarts, writer).do([[by_name[name] for name in group] for group in groups],
                                         [])
    os.close(writer)
    return Worker(None, reader, []).read_notes()


def test_work_restarts_the_members_of_a_group_in_turn(pipe: tuple[int, int]) -> None:
    restarts = Restarts()
    told = do(restarts, [['a:1', 'a:2', 'a:3']], pipe)
    assert restarts.calls == ['1', '2', '3']
    assert told == [note(number, outcome=RESTARTED, pid=8) for number in range(3)]


def test_work_keeps_the_rest_of_a_group_up_after_a_failure(
        pipe: tuple[int, int], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    restarts = Restarts(x=(START_FAILED, NOT_OWED))
    told = do(restarts, [['a:w', 'a:x', 'a:y', 'a:z'], ['b:z']], pipe)
    assert sorted(restarts.calls) == ['w', 'x', 'z']  # the z of b
    assert sorted((each.job, OUTCOMES[each.outcome]) for each in told) == [
        (0, RESTARTED), (1, START_FAILED), (2, LEFT_ALONE), (3, LEFT_ALONE), (4, RESTARTED)]
    waits = 'another process of its group failed to start; memmon tries again at the next tick'
    assert sum(message.endswith(waits) for message in caplog.messages) == 2


@pytest.mark.parametrize('outcome', [LEFT_ALONE, PUT_OFF, memmon.STOP_FAILED])
def test_work_goes_on_after_what_harms_nobody(outcome: str, pipe: tuple[int, int]) -> None:
    restarts = Restarts(**{'1': (outcome, NOT_OWED)})
    do(restarts, [['a:1', 'a:2']], pipe)
    assert restarts.calls == ['1', '2']


def test_work_goes_on_trying_and_reports_both(pipe: tuple[int, int],
                                              caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    restarts = Restarts(x=(START_FAILED, OWED))
    told = do(restarts, [['a:x']], pipe)
    assert restarts.calls == ['x', 'pay x inf']
    assert told == [note(0, OWED, is_reported=1),
                    note(0, is_reported=1, outcome=RESTARTED, pid=9)]
    assert [(record.levelname, record.getMessage().split()[0]) for record in caplog.records] == [
        ('ERROR', 'failed'), ('INFO', 'restarted')]


def test_mistake_of_memmon_ends_one_group_alone(pipe: tuple[int, int],
                                                caplog: pytest.LogCaptureFixture) -> None:
    restarts = Restarts(x=('raise', NOT_OWED))
    told = do(restarts, [['a:x', 'a:y'], ['b:z']], pipe)
    assert [(each.job, OUTCOMES[each.outcome]) for each in told] == [(2, RESTARTED)]
    assert caplog.messages == ['a worker failed: ValueError: a mistake']


def test_work_without_threads_is_done_all_the_same(
        pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(thread: object) -> None:
        raise RuntimeError("can't start new thread")
    monkeypatch.setattr('threading.Thread.start', fail)
    told = do(Restarts(), [['a:1'], ['b:2'], ['c:3']], pipe)
    assert sorted(each.job for each in told) == [0, 1, 2]
