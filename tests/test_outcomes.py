"""What becomes of a restart: from what was measured, what memmon did, and what is to be seen."""

from __future__ import annotations

from typing import Any, Callable
from xmlrpc.client import Fault

import pytest
from samples import (BACKOFF, EXITED, FATAL, MB, RUNNING, SERVER, STARTING, STATES, STOPPED,
                     STOPPING, UNKNOWN, job, options, process, reading)
from supervisor.xmlrpc import Faults

import memmon
from memmon import (ASKED, LEFT_ALONE, NOT_OWED, OWED, RESTARTED, START_FAILED, STOP_FAILED, Debt,
                    MeasureError, Process, ProcessTable, Refusal, Restarter, Result, Row,
                    SupervisordError)

OLD = process(pid=7)


@pytest.mark.parametrize('seen, is_same', [
    (process(state=RUNNING, pid=7), True),
    (process(state=STARTING, pid=7), True),
    (process(state=STOPPING, pid=7), False),
    (process(state=UNKNOWN, pid=7), False),
    (process(state=RUNNING, pid=8), False),
    (process(state=STARTING, pid=0), False),
    (process(state=BACKOFF), False),
    (process(state=STOPPED), False),
    (process(state=EXITED), False),
    (process(state=FATAL), False),
])
def test_is_same_run(seen: Process, is_same: bool) -> None:
    assert memmon.is_same_run(OLD, seen) == is_same


@pytest.mark.parametrize('debt, seen, is_owed', [
    (Debt(OWED, 1000), process(state=STOPPED, start=1000), True),
    (Debt(OWED, 1000), process(state=STOPPED, start=1001), False),  # started and stopped since
    (Debt(ASKED, 1000), process(state=STOPPED, start=1000), False),
    (Debt(NOT_OWED, 1000), process(state=STOPPED, start=1000), False),
    (Debt(), process(state=STOPPED, start=0), False),
    *[(Debt(OWED, 1000), process(state=state, start=1000), False)
      for state in STATES if state != STOPPED],
])
def test_is_owed_a_start(debt: Debt, seen: Process, is_owed: bool) -> None:
    assert memmon.is_owed_a_start(debt, seen) == is_owed


@pytest.mark.parametrize('seen, is_in_transit', [
    (process(state=STARTING), True),
    (process(state=BACKOFF), True),
    (process(state=STOPPING), True),
    (process(state=RUNNING), False),
    (process(state=EXITED, stop=1725), False),
    (process(state=FATAL), False),
    (process(state=UNKNOWN), False),
    (process(state=STOPPED, now=1725, stop=1725), True),
    (process(state=STOPPED, now=1725, stop=1723), True),
    (process(state=STOPPED, now=1725, stop=1722), False),
    (process(state=STOPPED, now=1725, stop=1726), False),  # the clock was set back
    (process(state=STOPPED, now=1725, stop=0), False),
])
def test_is_in_transit(seen: Process, is_in_transit: bool) -> None:
    assert memmon.is_in_transit(seen) == is_in_transit


@pytest.mark.parametrize('seen, has_come_up', [
    (process(state=STARTING), False),
    (process(state=BACKOFF), False),
    (process(state=RUNNING), True),
    (process(state=STOPPING), True),
    (process(state=STOPPED, stop=1725), True),
    (process(state=FATAL, stop=1725), True),
    (process(state=UNKNOWN), True),
    (process(state=EXITED, now=1725, stop=1725), False),  # autorestart may start it again
    (process(state=EXITED, now=1725, stop=1723), False),
    (process(state=EXITED, now=1725, stop=1722), True),
    (process(state=EXITED, now=1725, stop=1726), True),
])
def test_has_come_up(seen: Process, has_come_up: bool) -> None:
    assert memmon.has_come_up(seen) == has_come_up


@pytest.mark.parametrize('is_done, state', [
    (memmon.is_not_stopping, STOPPING), (memmon.is_not_starting, STARTING),
])
def test_wait_is_for_one_state(is_done: Callable[[Process], bool], state: int) -> None:
    assert [other for other in STATES if not is_done(process(state=other))] == [state]


@pytest.mark.parametrize('was_stopped, seen, outcome, why', [
    (True, process(state=RUNNING, pid=8), RESTARTED, 'pid 7 -> 8'),
    (True, process(state=STOPPING, pid=8), LEFT_ALONE, 'someone else has stopped it'),
    (True, process(state=STOPPED), LEFT_ALONE, 'someone else has stopped it'),
    (True, process(state=FATAL, spawnerr="can't find command 'x'"), START_FAILED,
     "it is FATAL: can't find command 'x'"),
    (True, process(state=FATAL), START_FAILED, 'it is FATAL'),
    (True, process(state=BACKOFF, spawnerr='Exited too quickly (process log may have details)'),
     START_FAILED, 'it is BACKOFF: Exited too quickly (process log may have details)'),
    (True, process(state=EXITED, spawnerr='unknown error\nmore\nlast: '), START_FAILED,
     'it is EXITED: unknown error ... last'),
    (True, process(state=STARTING, pid=8), START_FAILED, 'it is STARTING'),
    (True, process(state=UNKNOWN), START_FAILED, 'it is UNKNOWN'),
    (False, process(state=RUNNING, pid=7), LEFT_ALONE, 'the request to stop it was lost'),
    (False, process(state=RUNNING, pid=8), LEFT_ALONE, 'it is RUNNING with pid 8'),
    (False, process(state=STOPPING, pid=7), LEFT_ALONE, 'it is STOPPING with pid 7'),
    (False, process(state=FATAL, spawnerr='x'), LEFT_ALONE, 'it is FATAL with pid 0'),
])
def test_outcome_of(was_stopped: bool, seen: Process, outcome: str, why: str) -> None:
    assert memmon.outcome_of(OLD, was_stopped, seen) == (outcome, why)


@pytest.mark.parametrize('error, why', [
    (Fault(70, 'NOT_RUNNING: web:web'), 'NOT_RUNNING: web:web'),
    (Fault(1, 'first\nsecond\nthird'), 'first ... third'),
    (OSError(28, 'No space'), '[Errno 28] No space'),
    (KeyError(), 'KeyError'),
])
def test_reason_of(error: Exception, why: str) -> None:
    assert memmon.reason_of(error) == why


# Debts.

def test_debt_tells_of_each_change_until_it_is_settled() -> None:
    told: list[tuple[int, int]] = []
    debt = Debt()
    debt.take_on()  # with nobody to tell
    debt.tell = lambda debt: told.append((debt.state, debt.start))
    debt.take_on()
    debt.confirm(process(start=1000))
    debt.settle()
    assert told == [(ASKED, 0), (OWED, 1000), (NOT_OWED, 0)]


# Reasons to end, and looks before a stop: with a supervisord that answers as a test says.

ALIVE, ENDED = 40, 41


@pytest.fixture(autouse=True)
def alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memmon, 'is_alive', lambda pid: pid == ALIVE)


def restarter(server: Any = SERVER, supervisord_pid: int = ALIVE, has_gone: bool = False
              ) -> Restarter:
    return Restarter(server, supervisord_pid, options(), lambda: has_gone)


BAD_NAME = Fault(Faults.BAD_NAME, 'BAD_NAME: web:web')
SPAWN_ERROR = Fault(Faults.SPAWN_ERROR, 'SPAWN_ERROR: web:web')
UNREACHABLE = SupervisordError('no such socket: s')


@pytest.mark.parametrize('failure, supervisord_pid, is_time_up, result', [
    (BAD_NAME, ALIVE, False, Result(LEFT_ALONE, 'supervisord no longer knows it')),
    (BAD_NAME, ENDED, True, Result(LEFT_ALONE, 'supervisord no longer knows it')),
    (SPAWN_ERROR, ALIVE, False, None),
    (UNREACHABLE, ALIVE, False, None),
    (MemoryError(), ALIVE, False, None),
    (SPAWN_ERROR, ENDED, False, Result(LEFT_ALONE, 'supervisord has ended')),
    (UNREACHABLE, ENDED, True, Result(LEFT_ALONE, 'supervisord has ended')),
    (SPAWN_ERROR, ALIVE, True,
     Result(START_FAILED, 'SPAWN_ERROR: web:web; memmon has given up')),
    (UNREACHABLE, ALIVE, True, Result(START_FAILED, 'no such socket: s; memmon has given up')),
])
def test_reason_to_end(failure: Exception, supervisord_pid: int, is_time_up: bool,
                       result: Result | None) -> None:
    pays = restarter(supervisord_pid=supervisord_pid)
    assert pays.reason_to_end(failure, is_time_up) == result


class Supervisord:
    """Shows one process, and answers a stop and a start as it is told; notes what it is asked."""

    def __init__(self, *seen: Process | Exception, stop: Exception | None = None,
                 start: Exception | None = None) -> None:
        self.seen = list(seen)  # the last one again and again
        self.errors = {'stop': stop, 'start': start}
        self.calls: list[str] = []

    def answer(self, call: str) -> None:
        self.calls.append(call)
        error = self.errors[call]
        if error:
            raise error

    def process(self, namespec: str) -> Process:
        seen = self.seen.pop(0) if len(self.seen) > 1 else self.seen[0]
        if isinstance(seen, Exception):
            raise seen
        return seen

    def stop(self, namespec: str) -> tuple[Process, Process]:
        self.answer('stop')
        return OLD, process(state=STOPPING)

    def start(self, namespec: str) -> None:
        self.answer('start')


def table(rss: int) -> ProcessTable:
    return ProcessTable({ALIVE: Row(1, MB), 7: Row(ALIVE, rss), 8: Row(7, MB)})


GONE = 'it is RUNNING with pid 9'


@pytest.mark.parametrize('server, has_gone, rss, why', [
    (Supervisord(OLD), True, 270 * MB, 'memmon has been stopped'),
    (Supervisord(UNREACHABLE), False, 270 * MB, 'no such socket: s'),
    (Supervisord(BAD_NAME), False, 270 * MB, 'BAD_NAME: web:web'),
    (Supervisord(process(pid=9)), False, 270 * MB, GONE),
    (Supervisord(process(state=STOPPING)), False, 270 * MB, 'it is STOPPING with pid 7'),
    (Supervisord(OLD), False, 200 * MB, 'now it is RSS 200MB'),
    (Supervisord(OLD), False, None, 'it could not be measured again: no ps'),
    (Supervisord(OLD, process(pid=9)), False, 270 * MB, GONE),
])
def test_process_that_is_not_to_be_restarted_is_not_stopped(
        server: Supervisord, has_gone: bool, rss: int | None, why: str,
        monkeypatch: pytest.MonkeyPatch) -> None:
    def read_process_table() -> ProcessTable:
        if rss is None:
            raise MeasureError('no ps')
        return table(rss)
    monkeypatch.setattr(memmon, 'read_process_table', read_process_table)
    one = job()
    _, result = restarter(server, has_gone=has_gone).restart(one)
    assert (result, server.calls, one.debt.state) == (Result(LEFT_ALONE, why), [], NOT_OWED)


def test_process_that_is_no_child_of_supervisord_is_not_stopped(monkeypatch: pytest.MonkeyPatch
                                                                ) -> None:
    monkeypatch.setattr(memmon, 'read_process_table', lambda: ProcessTable({7: Row(1, 270 * MB)}))
    server = Supervisord(OLD)
    _, result = restarter(server).restart(job())
    assert result == Result(LEFT_ALONE, 'it could not be measured again')
    assert server.calls == []


@pytest.mark.parametrize('with_descendants, descendants', [(False, ()), (True, (8,))])
def test_last_look_takes_down_the_descendants_that_count(
        with_descendants: bool, descendants: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
        ) -> None:
    monkeypatch.setattr(memmon, 'read_process_table', lambda: table(300 * MB))
    one = job(reading=reading(with_descendants=with_descendants))
    seen = restarter(Supervisord(OLD)).look_again(one)
    assert seen.descendants == descendants
    assert seen.reading.rss == (301 if with_descendants else 300) * MB


@pytest.mark.parametrize('error, outcome, why', [
    (Fault(Faults.NOT_RUNNING, 'NOT_RUNNING: web:web'), LEFT_ALONE, 'NOT_RUNNING: web:web'),
    (BAD_NAME, LEFT_ALONE, 'BAD_NAME: web:web'),
    (Fault(Faults.FAILED, 'FAILED: attempted to kill web\nno\n'), STOP_FAILED,
     'FAILED: attempted to kill web ... no'),
])
def test_refused_stop_is_no_debt(error: Fault, outcome: str, why: str) -> None:
    one = job()
    with pytest.raises(Refusal) as refusal:
        restarter(Supervisord(OLD, stop=error)).stop(one)
    assert refusal.value.args == (outcome, why)
    assert one.debt.state == NOT_OWED


@pytest.mark.parametrize('error, state, start', [
    (None, OWED, 1000), (UNREACHABLE, ASKED, 0), (MemoryError(), ASKED, 0),
])
def test_stop_is_a_debt_even_if_its_answer_is_lost(error: Exception | None, state: int, start: int
                                                   ) -> None:
    one = job()
    restarter(Supervisord(OLD, stop=error)).stop(one)
    assert (one.debt.state, one.debt.start) == (state, start)


@pytest.mark.parametrize('state, seen, calls, outcome, why', [
    (OWED, [process(state=STOPPED), process(state=RUNNING, pid=8)], ['start'],
     RESTARTED, 'pid 7 -> 8'),
    # Somebody else has started it: nothing is owed.
    (OWED, [process(state=RUNNING, pid=8, start=1700)], [], RESTARTED, 'pid 7 -> 8'),
    (OWED, [process(state=STOPPED, start=1700)], [], LEFT_ALONE, 'someone else has stopped it'),
    # The answer to the stop was lost, but it has been stopped.
    (ASKED, [process(state=STOPPED), process(state=RUNNING, pid=8)], ['start'],
     RESTARTED, 'pid 7 -> 8'),
    (ASKED, [process(state=STOPPING), process(state=STOPPED), process(state=RUNNING, pid=8)],
     ['start'], RESTARTED, 'pid 7 -> 8'),
    # The request was lost.
    (ASKED, [OLD], [], LEFT_ALONE, 'the request to stop it was lost'),
    (ASKED, [process(pid=8)], [], LEFT_ALONE, 'it is RUNNING with pid 8'),
    (OWED, [process(state=STOPPED), process(state=FATAL, spawnerr='no file')], ['start'],
     START_FAILED, 'it is FATAL: no file'),
    (OWED, [BAD_NAME], [], LEFT_ALONE, 'supervisord no longer knows it'),
])
def test_debt_is_paid(state: int, seen: list[Process | Exception], calls: list[str], outcome: str,
                      why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memmon, 'read_process_table', lambda: table(MB))
    monkeypatch.setattr('time.sleep', lambda secs: None)
    server = Supervisord(*seen)
    one = job(debt=Debt(state, 1000 if state == OWED else 0))
    result = restarter(server).pay(one, 3)
    assert (result.outcome, result.why) == (outcome, why)
    assert (server.calls, one.debt.state) == (calls, NOT_OWED)


@pytest.mark.parametrize('tries', [1, 3])
def test_start_that_fails_is_tried_as_often_as_told_and_owed_on(
        tries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    server = Supervisord(process(state=STOPPED), start=SPAWN_ERROR)
    one = job(debt=Debt(OWED, 1000))
    pays = restarter(server)
    monkeypatch.setattr(pays, 'pause', pauses.append)
    assert pays.pay(one, tries) == Result(
        START_FAILED, 'SPAWN_ERROR: web:web; memmon keeps trying')
    assert (server.calls, pauses) == (['start'] * tries, [1, 2][:tries - 1])
    assert (one.debt.state, one.debt.start) == (OWED, 1000)


def test_start_is_tried_ever_more_rarely_and_given_up_when_memmon_has_gone(
        monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    pauses: list[float] = []

    def pause(secs: float) -> None:
        pauses.append(secs)
        now[0] += secs

    pays = restarter(Supervisord(UNREACHABLE), has_gone=True)
    monkeypatch.setattr(pays, 'pause', pause)
    monkeypatch.setattr('time.monotonic', lambda: now[0])
    one = job(debt=Debt(OWED, 1000))
    assert pays.pay(one, float('inf')) == Result(
        START_FAILED, 'no such socket: s; memmon has given up')
    assert pauses == [1, 2, 4, 8, 16, 32, *[60] * 9]
    assert one.debt.state == NOT_OWED


def test_survivors_and_the_fresh_size_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {ALIVE: Row(1, 1), 9: Row(ALIVE, 12 * MB), 10: Row(9, MB),
            21: Row(1, 5 * MB), 22: Row(1, 0), 23: Row(9, MB)}
    monkeypatch.setattr(memmon, 'read_process_table', lambda: ProcessTable(rows))
    # 22 is a zombie, 23 is a new process with an old pid, 24 has ended.
    one = job(reading=reading(with_descendants=True), descendants=(24, 23, 22, 21))
    result = restarter().measure_fresh(one, process(pid=9), Result(RESTARTED, 'why', 9))
    assert result == Result(RESTARTED, 'why', 9, 14 * MB, ((21, 5 * MB),))


def test_restart_that_cannot_be_measured_is_a_restart(monkeypatch: pytest.MonkeyPatch,
                                                      caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> ProcessTable:
        raise MeasureError('no ps')
    monkeypatch.setattr(memmon, 'read_process_table', fail)
    result = Result(RESTARTED, 'why', 9)
    assert restarter().measure_fresh(job(), process(pid=9), result) == result
    assert caplog.messages == ['web:web could not be measured after its restart: no ps']
