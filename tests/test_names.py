"""What memmon says of the names that it was given."""

from __future__ import annotations

from harness import (StartListener, StartSupervisord, assert_in, memmon_section, messages,
                     pool_section, section, wait_until)

QUEUE = pool_section('queue', 2, '--mb', '1')


def test_first_tick_tells_what_is_watched(start_supervisord: StartSupervisord,
                                          start_listener: StartListener) -> None:
    supervisord = start_supervisord(QUEUE + section('other', '--mb', '1')
                                    + section('off', autostart='false'))
    supervisord.wait_up('other')
    listener = start_listener(supervisord, '-p', 'queue=1GB', '-g', 'off=1.5GB')
    listener.send()
    supervisord.call('stopProcess', 'other')
    listener.send()
    assert listener.messages()[1:] == [
        "INFO memmon: watching 3 of supervisord's 4 processes: -p queue=1GB, -g off=1.5GB"]


def test_memmon_does_not_watch_itself(start_supervisord: StartSupervisord) -> None:
    supervisord = start_supervisord(section('small', '--mb', '1')
                                    + memmon_section('-a', '1GB', '-p', 'memmon=1GB'))
    supervisord.start_memmon()
    wait_until(lambda: assert_in('covers no process', supervisord.memmon_log()))
    assert messages(supervisord.memmon_log())[1:] == [
        "INFO memmon: watching 1 of supervisord's 2 processes: -p memmon=1GB, -a 1GB",
        'WARNING memmon: -p memmon=1GB covers no process']


def test_name_that_covers_nothing_is_reported_once_and_when_that_changes(
        start_supervisord: StartSupervisord, start_listener: StartListener) -> None:
    supervisord = start_supervisord(QUEUE)
    supervisord.wait_up('queue:queue_00', 'queue:queue_01')
    listener = start_listener(supervisord, '-p', 'queeu=1GB', '-g', 'late=1GB')
    for _ in range(3):
        listener.send()
    assert listener.messages()[1:] == [
        "INFO memmon: watching 0 of supervisord's 2 processes: -p queeu=1GB, -g late=1GB",
        'WARNING memmon: -p queeu=1GB covers no process; similar: queue, queue_01, queue_00',
        'WARNING memmon: -g late=1GB covers no process']
    supervisord.configure(QUEUE + section('late', '--mb', '1'))
    supervisord.wait_up('late')
    listener.send()
    assert len(listener.messages()) == 4
    supervisord.configure(QUEUE)
    listener.send()
    assert listener.messages()[4:] == ['WARNING memmon: -g late=1GB covers no process']
