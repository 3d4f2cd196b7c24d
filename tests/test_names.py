"""What memmon says of the names that it was given."""

from typing import List

import pytest
from harness import StartMemmon, StartSupervisord, hog, memmon_section, wait_until

import memmon
from memmon import Process

QUEUE = hog('queue', '--mb', '1', numprocs=2, process_name='%(program_name)s_%(process_num)02d')


def messages(log: str) -> List[str]:
    """Return the lines of a log without their times."""
    return [line.split(' ', 2)[2] for line in log.splitlines()]


def test_first_tick_tells_what_is_watched(start_supervisord: StartSupervisord, start_memmon: StartMemmon) -> None:
    supervisord = start_supervisord(QUEUE + hog('other', '--mb', '1') + hog('off', autostart='false'))
    supervisord.wait_state('other', 'RUNNING')
    memmon = start_memmon(supervisord, '-p', 'queue=1GB', '-g', 'off=1.5GB')
    memmon.send()
    supervisord.call('stopProcess', 'other')
    memmon.send()
    assert messages(memmon.log()) == [
        "INFO memmon: watching 3 of supervisord's 4 processes: -p queue=1GB, -g off=1.5GB"]


def test_memmon_does_not_watch_itself(start_supervisord: StartSupervisord) -> None:
    supervisord = start_supervisord(hog('small', '--mb', '1') + memmon_section('-a', '1GB', '-p', 'memmon=1GB'))
    supervisord.start_memmon()
    wait_until(lambda: 'watching' in supervisord.call('readProcessStderrLog', 'memmon', 0, 0))
    assert messages(supervisord.call('readProcessStderrLog', 'memmon', 0, 0)) == [
        "INFO memmon: watching 1 of supervisord's 2 processes: -p memmon=1GB, -a 1GB",
        'WARNING memmon: -p memmon=1GB covers no process']


def test_name_that_covers_nothing_is_told_when_that_changes(start_supervisord: StartSupervisord,
                                                            start_memmon: StartMemmon) -> None:
    supervisord = start_supervisord(QUEUE)
    supervisord.wait_state('queue:queue_01', 'RUNNING')
    memmon = start_memmon(supervisord, '-p', 'queeu=1GB', '-g', 'late=1GB')
    for _ in range(3):
        memmon.send()
    assert messages(memmon.log()) == [
        "INFO memmon: watching 0 of supervisord's 2 processes: -p queeu=1GB, -g late=1GB",
        'WARNING memmon: -p queeu=1GB covers no process; near it: queue, queue_01, queue_00',
        'WARNING memmon: -g late=1GB covers no process']
    text = supervisord.conf.read_text()
    supervisord.conf.write_text(text + hog('late', '--mb', '1'))
    supervisord.ctl('update')
    supervisord.wait_state('late', 'RUNNING')
    memmon.send()
    supervisord.conf.write_text(text)
    supervisord.ctl('update')
    memmon.send()
    assert messages(memmon.log())[3:] == ['WARNING memmon: -g late=1GB covers no process']


PROCESSES = [Process('web', 'web', 1, 0, 'RUNNING'), Process('web', 'worker', 2, 0, 'RUNNING'),
             Process('queue', 'queue_00', 3, 0, 'RUNNING')]


@pytest.mark.parametrize('option, warning', [
    ('-p wrker=1MB', '-p wrker=1MB covers no process; near it: worker'),
    ('-p web:workers=1MB', '-p web:workers=1MB covers no process; near it: web:worker, web:web'),
    ('-p queues=1MB', '-p queues=1MB covers no process; near it: queue, queue_00'),
    ('-p Web=1MB', '-p Web=1MB covers no process; near it: web'),
    ('-p xyz*=1MB', '-p xyz*=1MB covers no process'),
    ('-g webs=1MB', '-g webs=1MB covers no process; near it: web'),
    ('-g worker=1MB', '-g worker=1MB covers no process'),
    ('-g web=1MB', ''),
    ('-p que*=1MB', ''),
    ('-a 1MB', ''),
])
def test_idle_limits(option: str, warning: str) -> None:
    limits = memmon.parse_args(option.split()).limits
    assert list(memmon.idle_limits(PROCESSES, limits).values()) == [warning] * bool(warning)


def test_limit_that_another_one_overrules_is_not_idle() -> None:
    limits = memmon.parse_args(['-p', 'web=1MB', '-g', 'web=2MB', '-a', '3MB']).limits
    assert memmon.idle_limits(PROCESSES, limits) == {}
