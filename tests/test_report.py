"""Reports: the table of events, and what the log, the mail and the user's commands get of one."""

from __future__ import annotations

import email
import email.policy
import logging
import math
import os
import re
import sys
from typing import Any, Dict, NoReturn, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import FATAL, GB, MB, options, process, reading

import memmon
from memmon import EVENTS, Delivery, History, Reading, Report

PROCESS = process('shop:web', pid=17)
AGELESS = PROCESS._replace(start=memmon.LAST_SECOND)
BIG = reading(270.6 * MB, process=PROCESS, at=1000 + 3725)
PAIR = reading(350 * MB, '-a 200MB..300MB', process=PROCESS)
TREE = BIG._replace(measure=memmon.Monitor(options('-c -a 1MB'), memmon.Server('')).measure)
PART = reading(700 * MB, '-t 1GB..2GB', process=PROCESS, measure=memmon.MEASURES['pss'])
TOTAL = reading(1.5 * GB, '-t 1GB..2GB', process=memmon.ALL, measure=memmon.MEASURES['pss'])
COURSE = memmon.Course()
COURSE.add(0, 100 * MB)
COURSE.add(3600, int(270.6 * MB))


# The table.

def test_table_of_events_is_complete() -> None:
    assert {name: tuple(event) for name, event in EVENTS.items()} == {
        'restarted': (logging.INFO, 'process {} restarted', 'after'),
        'not restarted': (logging.INFO, '', ''),
        'postponed': (logging.INFO, '', ''),
        'postponed for an hour': (logging.WARNING, 'restart of process {} postponed', 'held'),
        'failed to stop': (logging.ERROR, 'failed to stop process {}', 'failed'),
        'failed to start': (logging.ERROR, 'failed to start process {}', 'failed'),
        'gave up starting': (logging.ERROR, 'gave up starting process {}', 'failed'),
        'still down': (logging.ERROR, 'process {} is still down', ''),
        'would restart': (logging.INFO, 'would restart process {}', ''),
        'limit too low': (logging.WARNING, 'limit of process {} is too low', ''),
        'total too low': (logging.WARNING, 'no restart brings the total below its limit', ''),
        'held': (logging.WARNING, 'process {} held', 'held'),
        'near limit': (logging.WARNING, 'process {} is near its limit', 'warn'),
        'tick skipped': (logging.ERROR, '', ''),
        'blind': (logging.ERROR, 'nothing could be checked at two ticks in a row', ''),
        'seen again': (logging.INFO, 'processes are checked again', ''),
    }


def test_events_that_memmon_names_are_in_the_table() -> None:
    assert set(memmon.LOST_EVENTS) <= set(EVENTS)
    assert {event.command for event in EVENTS.values()} - {''} == (
        set(memmon.COMMAND_EVENTS) - {'before'})
    with open(memmon.__file__, encoding='utf-8') as source:
        named = re.findall(r"(?:Report|Done|line)\(\s*'([a-z ]+)'", source.read())
    assert len(named) > 10 and set(named) <= set(EVENTS)


# The line of the log.

@pytest.mark.parametrize('report, level, line', [
    (Report('restarted', 'a line', BIG), 'INFO', 'restarted shop:web: a line'),
    (Report('seen again', 'after 3 ticks'), 'INFO', 'seen again: after 3 ticks'),
    (Report('failed to start', 'a\nb', BIG), 'ERROR', 'failed to start shop:web: a ... b'),
    (Report('held', '\x1b[2Ja', BIG), 'WARNING', r'held shop:web: \x1b[2Ja'),
])
def test_log_says_event_process_and_reason(report: Report, level: str, line: str,
                                           caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        memmon.tell(options('-a 1'), report)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        (level, line)]


@pytest.mark.parametrize('of, total, text', [
    (BIG, None, 'RSS 270.6MB is over 200MB (-a 200MB), uptime 1:02:05'),
    (BIG._replace(process=AGELESS), None, 'RSS 270.6MB is over 200MB (-a 200MB), uptime unknown'),
    (reading(3000 * MB, '-a 25%'), None, 'RSS 2.9GB is over 2GB (-a 25%), uptime 0:12:05'),
    (reading(250 * MB, '-a 200MB..300MB'), None,
     'RSS 250MB is over 200MB (-a 200MB..300MB), uptime 0:12:05'),
    (PAIR, None, 'RSS 350MB is over 300MB (-a 200MB..300MB), uptime 0:12:05'),
    (TREE, None,
     'RSS with descendants: 270.6MB is over 200MB (-a 200MB), uptime 1:02:05'),
    (PART, TOTAL, 'total PSS 1.5GB is over 1GB (-t 1GB..2GB), and shop:web has 700MB, uptime '
                  '0:12:05'),
    (PART, TOTAL._replace(memory=3 * GB),
     'total PSS 3GB is over 2GB (-t 1GB..2GB), and shop:web has 700MB, uptime 0:12:05'),
])
def test_cause_of_a_restart(of: Reading, total: Reading | None, text: str) -> None:
    assert memmon.describe_cause(of, total) == text


@pytest.mark.parametrize('of, text', [
    (BIG, '200MB'), (PAIR, '200MB..300MB'), (reading(1, ''), 'none'),
    (reading(1, '-a none'), 'none'), (reading(1, '-a 25%..50%'), '2GB..4GB'),
])
def test_sizes_of_a_limit(of: Reading, text: str) -> None:
    assert memmon.describe_sizes(of) == text


@pytest.mark.parametrize('of, text', [
    (BIG, 'RSS 270.6MB'), (TREE, 'RSS with descendants: 270.6MB'), (PART, 'PSS 700MB'),
    (reading(None), 'RSS unknown'), (BIG._replace(measure=memmon.MEASURES['private']),
                                     'private memory 270.6MB'),
])
def test_use(of: Reading, text: str) -> None:
    assert memmon.describe_use(of) == text


def conclude(args: str, verdict: str, of: Reading, total: Reading | None = None, **fields: Any
             ) -> list[Report]:
    """Return what a listener reports of a verdict at the first and at the second look."""
    listener = memmon.Listener(options(args), memmon.Server('unix:///none'))
    history = History(of.process)
    for name, value in fields.items():
        setattr(history, name, value)
    reports: list[Report] = []
    setattr(listener, 'report', reports.append)
    for now in (1000, 1060):
        listener.conclude(history, of, total, verdict, True, now)
    return reports


RESTARTED = {'restarts': [memmon.Restart(940, memmon.SOFT, False)]}
CAUSE = 'RSS 270.6MB is over 200MB (-a 200MB), uptime 1:02:05'
TOO_LOW = (': it is over its limit again 0:01:00 after a restart: raise the limit if the program '
           'needs that much; memmon restarts it again when it has grown by half')


@pytest.mark.parametrize('args, verdict, of, total, texts', [
    ('-a 200MB', memmon.WITHIN, BIG, None, []),
    ('-a 200MB', memmon.BLOCKED, BIG, None, []),
    ('-a 200MB', memmon.BRIEF, BIG, None, []),
    ('-a 200MB', memmon.DUE, BIG, None, []),
    ('-a 200MB --dry-run', memmon.DUE, BIG, None, [f'would restart shop:web: {CAUSE}']),
    ('-a 200MB -r 3/1h', memmon.HELD, BIG, None, [
        f'held shop:web: {CAUSE}; memmon has restarted it 3 times within 1:00:00: it is left '
        'running']),
    ('-a 200MB -r 1/90', memmon.HELD, BIG, None, [
        f'held shop:web: {CAUSE}; memmon has restarted it 1 time within 0:01:30: it is left '
        'running']),
    ('-a 200MB', memmon.TOO_LOW, BIG, None, [
        f'limit too low shop:web: {CAUSE}{TOO_LOW}'.replace(': it is', '; it is')]),
    ('-a 200MB..300MB', memmon.TOO_LOW, PAIR._replace(memory=250 * MB), None, [
        'limit too low shop:web: RSS 250MB is over 200MB (-a 200MB..300MB), uptime 0:12:05'
        f'{TOO_LOW}, or is over its hard size'.replace(': it is', '; it is')]),
    ('-a 200MB..300MB', memmon.TOO_LOW, PAIR, None, [
        'limit too low shop:web: RSS 350MB is over 300MB (-a 200MB..300MB), uptime 0:12:05'
        f'{TOO_LOW}'.replace(': it is', '; it is')]),
    ('-a 200MB -w 80', memmon.NEAR, reading(164 * MB), None, [
        'near limit web:web: RSS 164MB of 200MB (-a 200MB), 82%']),
    ('-t 1GB..2GB', memmon.TOO_LOW, PART, TOTAL, []),
    ('-t 1GB..2GB -w 1', memmon.NEAR, PART, TOTAL, []),
    ('-t 1GB..2GB --dry-run', memmon.DUE, PART, TOTAL, [
        'would restart shop:web: total PSS 1.5GB is over 1GB (-t 1GB..2GB), and shop:web has '
        '700MB, uptime 0:12:05']),
])
def test_verdict_is_reported_once(args: str, verdict: str, of: Reading, total: Reading | None,
                                  texts: Sequence[str]) -> None:
    assert [report.text for report in conclude(args, verdict, of, total, **RESTARTED)] == texts


def test_no_restart_at_the_hard_size_is_promised_where_that_was_in_vain_too() -> None:
    [report] = conclude('-a 200MB..300MB', memmon.TOO_LOW, PAIR._replace(memory=250 * MB), None,
                        restarts=[memmon.Restart(940, memmon.HARD, False)])
    assert report.text.endswith('memmon restarts it again when it has grown by half')


def test_growth_is_said_with_what_is_near() -> None:
    history = History(process())
    for at, mb in ((0, 100), (3600, 160)):
        history.note(reading(mb * MB), at)
    [report] = conclude('-a 200MB -w 80', memmon.NEAR, reading(160 * MB), course=history.course)
    assert report.line == ('RSS 160MB of 200MB (-a 200MB), 80%; 100MB -> 160MB in 1:00:00, peak '
                           '160MB, growing 60MB/h, reaches its limit in 0:40:00')
    assert report.reading and report.course and report.course.draw(report.reading.room) == (
        '▆█  100MB -> 160MB in 1:00:00, peak 160MB, growing 60MB/h, reaches its limit in 0:40:00')


def test_pool_that_the_memmon_before_left_blocked_is_named_once(
        caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level('INFO')
    listener = memmon.Listener(options('-a 1'), memmon.Server('unix:///none'))
    for name, pool in (('web_0', 'web'), ('web_1', 'web'), ('db', 'db')):
        history = listener.monitor.histories[name] = History(process(f'shop:{name}', FATAL))
        history.pool = 'shop', pool
        history.lost = memmon.Lost(1725, math.inf if name != 'web_1' else 99)
    own = History(process('own:web_0', FATAL))  # what this memmon restarts is reported by that
    own.lost, own.pool = memmon.Lost(1725, math.inf), ('own', 'web')
    other = History(process('own:web_1'))
    other.pool = own.pool
    listener.monitor.histories.update({'own:web_0': own, 'own:web_1': other})
    listener.workers.queue = [[memmon.Job(own, BIG, None)]]
    for now in (0, 1):
        listener.find_blocked(now)
    assert caplog.messages == [
        'shop:web_0 is FATAL: until it is up, no other process of its pool is touched']
    caplog.clear()
    listener.workers.queue = []
    listener.take([(memmon.Job(own, BIG, None), Report('gave up starting', 'so', BIG, new_pid=0))])
    listener.find_blocked(2)  # what has failed to start is not named once more
    assert caplog.messages == ['gave up starting shop:web: so']


def test_process_that_is_still_down_is_named_each_day() -> None:
    listener = memmon.Listener(options('-a 1 -m bob'), memmon.Server('unix:///none'))
    down = process('shop:web', FATAL, spawnerr='no such file')
    history = listener.monitor.histories['shop:web'] = History(down)
    history.lost = memmon.Lost(1725, math.inf)
    for now in (0, memmon.DAY - 1, memmon.DAY):
        assert not listener.workers.deliveries
        listener.find_blocked(now)
    [mail] = listener.workers.deliveries
    assert b'\nSubject: memmon: process shop:web is still down\n' in mail.text
    assert (b'still down shop:web: it is FATAL: no such file; no other process of its pool is '
            b'touched\n') in mail.text


# Who gets what.

@pytest.mark.parametrize('args, report, commands', [
    ('', Report('restarted', '', BIG), []),
    ('-m bob', Report('restarted', '', BIG), ['mail']),
    ('-m bob -s mutt', Report('restarted', '', BIG), ['mutt']),
    ('-m bob -u 3725', Report('restarted', '', BIG), ['mail']),
    ('-m bob -u 3724', Report('restarted', '', BIG), []),
    ('-m bob -u 1', Report('restarted', '', BIG._replace(process=AGELESS)), ['mail']),
    ('-m bob -u 1', Report('failed to start', '', BIG), ['mail']),  # -u is for restarts
    ('-m bob -u 1', Report('held', '', BIG), ['mail']),
    ('-m bob -u 1', Report('blind', ''), ['mail']),
    ('-m bob -u 1', Report('would restart', '', BIG), ['mail']),
    ('-m bob', Report('not restarted', '', BIG), []),
    ('-m bob', Report('postponed', '', BIG), []),
    ('-m bob', Report('tick skipped', ''), []),
    ('-o after=a -o failed=f -o after=b -o held=h -o warn=w', Report('restarted', '', BIG),
     ['a', 'b']),
    ('-o after=a', Report('restarted', '', BIG, command='after'), []),
    ('-o after=a -m bob', Report('restarted', '', BIG, command='after'), ['mail']),
    ('-o after=a -u 1', Report('restarted', '', BIG), ['a']),
    ('-o failed=f -o held=h -o warn=w', Report('failed to stop', '', BIG), ['f']),
    ('-o failed=f -o held=h', Report('gave up starting', '', BIG), ['f']),
    ('-o failed=f -o held=h', Report('postponed for an hour', '', BIG), ['h']),
    ('-o failed=f -o held=h', Report('postponed', '', BIG), []),
    ('-o failed=f -o held=h', Report('held', '', BIG), ['h']),
    ('-o warn=w -o held=h', Report('near limit', '', BIG), ['w']),
    ('-o failed=f -o before=b', Report('not restarted', '', BIG), []),
    ('-m bob -o failed=f', Report('failed to start', '', BIG), ['mail', 'f']),
])
def test_report_is_delivered(args: str, report: Report, commands: Sequence[str]) -> None:
    found = memmon.tell(options(f'-a 1 {args}'), report)
    mailers = {'/usr/sbin/sendmail -t -i': 'mail'}
    assert [mailers.get(delivery.command, delivery.command) for delivery in found] == commands
    for delivery in found:
        is_mail = delivery.command in (*mailers, 'mutt')
        assert bool(delivery.text) == is_mail and bool(delivery.variables) != is_mail


WEB_VARIABLES = {
    'MEMMON_EVENT': 'after', 'MEMMON_PROCESS': 'shop:web', 'MEMMON_GROUP': 'shop',
    'MEMMON_NAME': 'web', 'MEMMON_PID': '17', 'MEMMON_NEW_PID': '18',
    'MEMMON_MEMORY': str(int(270.6 * MB)), 'MEMMON_LIMIT': str(200 * MB), 'MEMMON_TOTAL': '',
    'MEMMON_TOTAL_LIMIT': '', 'MEMMON_UPTIME': '3725', 'MEMMON_REASON': 'restarted shop:web: why',
}


@pytest.mark.parametrize('event, report, changes', [
    ('after', Report('restarted', 'why', BIG, new_pid=18), {}),
    ('failed', Report('restarted', 'why', BIG, new_pid=0),
     {'MEMMON_EVENT': 'failed', 'MEMMON_NEW_PID': ''}),
    ('after', Report('restarted', 'why', PAIR, new_pid=18),
     {'MEMMON_MEMORY': str(350 * MB), 'MEMMON_UPTIME': '725'}),
    ('after', Report('restarted', 'why', PART, TOTAL, 18), {
        'MEMMON_MEMORY': str(700 * MB), 'MEMMON_LIMIT': '', 'MEMMON_UPTIME': '725',
        'MEMMON_TOTAL': str(int(1.5 * GB)), 'MEMMON_TOTAL_LIMIT': str(GB)}),
    ('after', Report('restarted', 'why', BIG._replace(memory=None, process=AGELESS), new_pid=18),
     {'MEMMON_MEMORY': '', 'MEMMON_UPTIME': ''}),
    ('after', Report('restarted', 'why', BIG._replace(memory=0, at=900), new_pid=18),
     {'MEMMON_MEMORY': '0', 'MEMMON_UPTIME': '0'}),
    ('after', Report('restarted', 'why', reading(1, '', process=PROCESS), new_pid=18),
     {'MEMMON_MEMORY': '1', 'MEMMON_LIMIT': '', 'MEMMON_UPTIME': '725'}),
    ('after', Report('restarted', 'a\0b\nc\x1b', BIG, new_pid=18),
     {'MEMMON_REASON': r'restarted shop:web: a\x00b ... c\x1b'}),
    ('after', Report('restarted', 'why', BIG._replace(process=PROCESS._replace(name='w\0b')),
                     new_pid=18),
     {'MEMMON_PROCESS': 'shop:wb', 'MEMMON_NAME': 'wb',
      'MEMMON_REASON': r'restarted shop:w\x00b: why'}),
])
def test_command_finds_its_event_in_its_environment(event: str, report: Report,
                                                    changes: Dict[str, str]) -> None:
    assert memmon.variables(event, report) == {**WEB_VARIABLES, **changes}


# Mail.

HEAD = '''To: bob@example.com, ann@example.com
Subject: memmon{name}: {subject}
MIME-Version: 1.0
Content-Type: text/plain; charset="utf-8"
Content-Transfer-Encoding: {encoding}

memmon: {subject}

host:     {host}
time:     TIME
'''


@pytest.mark.parametrize('args, host, report, name, subject, rows', [
    ('', 'db1', Report('seen again', 'after 3 ticks'), '', 'processes are checked again',
     'reason:   seen again: after 3 ticks\n'),
    ('', 'd\udce4b\x1b', Report('seen again', 'x'), '', 'processes are checked again',
     'reason:   seen again: x\n'),
    ('', 'db1', Report('restarted', 'a line', BIG, None, 18, COURSE), '',
     'process shop:web restarted', '''\
uptime:   1:02:05
old pid:  17
new pid:  18
memory:   RSS 270.6MB
limit:    200MB
set by:   -a 200MB
course:   ▃█  100MB -> 270.6MB in 1:00:00, peak 270.6MB
reason:   restarted shop:web: a line
'''),
    ('-n shop', 'db1', Report('failed to start', 'a line', TREE, None, 0), ' [shop]',
     'failed to start process shop:web', '''\
uptime:   1:02:05
old pid:  17
new pid:  none
memory:   RSS with descendants: 270.6MB
limit:    200MB
set by:   -a 200MB
reason:   failed to start shop:web: a line
'''),
    ('-n x\u202ey', 'db1', Report('blind', 'a line'), r' [x\u202ey]',
     'nothing could be checked at two ticks in a row', 'reason:   blind: a line\n'),
    ('', 'db1', Report('limit too low', 'a line', PAIR._replace(process=AGELESS)), '',
     'limit of process shop:web is too low', '''\
pid:      17
memory:   RSS 350MB
limit:    200MB..300MB
set by:   -a 200MB..300MB
reason:   limit too low shop:web: a line
'''),
    ('', 'db1', Report('restarted', 'a line', PART, TOTAL, 18), '', 'process shop:web restarted',
     '''\
uptime:   0:12:05
old pid:  17
new pid:  18
memory:   PSS 700MB
total:    PSS 1.5GB
limit:    1GB..2GB
set by:   -t 1GB..2GB
reason:   restarted shop:web: a line
'''),
])
def test_mail(args: str, host: str, report: Report, name: str, subject: str, rows: str,
              monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('socket.gethostname', lambda: host)
    parsed = options(f'-a 1 -m bob@example.com,ann@example.com {args}')
    mail = bytes(memmon.write_mail(parsed, report)).decode()
    mail = re.sub(r'\d{4}-\d\d-\d\d \d\d:\d\d:\d\d [-+]\d{4}', 'TIME', mail)
    assert mail == HEAD.format(name=name, subject=subject, host=memmon.one_line(host), encoding=(
        '7bit' if rows.isascii() else '8bit')) + rows


LONG = 'a-long-name-in-ascii-' * 10 + 'end'
ENCODED = '=?utf-8?q?x=0ABcc=3A_evil=40example.com?='


@pytest.mark.parametrize('text', [
    'memmon: process web:web restarted', '', ' ', LONG, ' '.join([LONG] * 3), '?='])
def test_plain_header_is_left_as_it_is(text: str) -> None:
    assert memmon.encode_header(text) == text


@pytest.mark.parametrize('text', [
    'Läden', 'ほげ' * 40, ENCODED, f'a {ENCODED} b', '=?', 'a\nBcc: evil@example.com',
    'a\r\nBcc: evil@example.com', 'a\r\rb', 'a\n\nbody', 'a\tb', 'a\0b', '\x7f', 'a\x85b\u2028c',
    f'{LONG}ä',
])
def test_hostile_header_is_encoded(text: str) -> None:
    encoded = memmon.encode_header(text)
    assert encoded.isascii() and 'Bcc:' not in encoded
    first, *more = encoded.split('\n')
    for line in [first, *more]:
        assert len(line) <= 78 and line.isprintable()
    assert all(line.startswith(' ') for line in more)


TEXT = st.one_of(st.text(min_size=1), st.text('\n\r\x1b\x85\u2028\u202e\udce4ä=?: ', min_size=1))


@given(TEXT, TEXT, TEXT, TEXT)
def test_no_name_becomes_a_header_nor_a_row_of_a_mail(option: str, group: str, name: str, line: str
                                                      ) -> None:
    hostile = BIG._replace(process=PROCESS._replace(group=group, name=name))
    report = Report('restarted', line, hostile)
    parsed_args = options('-a 1 -m bob@example.com')._replace(name=option)
    mail = bytes(memmon.write_mail(parsed_args, report))
    parsed = email.message_from_bytes(mail)
    assert sorted(map(str.lower, parsed.keys())) == [
        'content-transfer-encoding', 'content-type', 'mime-version', 'subject', 'to']
    assert parsed['To'] == 'bob@example.com'
    rows = mail.decode().partition('\n\n')[2].splitlines()
    assert all(row.isprintable() for row in rows)
    assert [row.partition(':')[0] for row in rows[2:]] == [
        'host', 'time', 'uptime', 'pid', 'memory', 'limit', 'set by', 'reason']


@pytest.mark.parametrize('name', ['Läden', ENCODED, LONG, 'a b', "$(touch x)'\"", '%s {}', '{0}'])
def test_subject_is_read_as_it_was_written(name: str) -> None:
    report = Report('restarted', 'x', BIG._replace(process=process(f'{name}:{name}')))
    mail = memmon.write_mail(options('-a 1 -m bob'), report)
    seen = email.message_from_bytes(bytes(mail), policy=email.policy.default)['Subject']
    assert seen == f'memmon: process {name}:{name} restarted'


# Nothing reaches a terminal raw.

RAW = ['\x1b[2J', '\x9b2J', '\u202e', '\u2066', 'a\u2028b', 'a\u2029b', 'a\nb', 'a\rb', '\x7f',
       '\0', '\udce4']


@pytest.mark.parametrize('raw', RAW, ids=ascii)
def test_log_has_no_raw_character(raw: str) -> None:
    """Whatever a line is about: the names of processes, a command line, what a server answers."""
    formatter = memmon.OneLineFormatter('%(message)s')
    text = formatter.format(logging.LogRecord('x', 20, '', 0, 'say %s', (f'x{raw}y',), None))
    assert text.isprintable() and text.startswith('say x') and text.endswith('y')


@pytest.mark.parametrize('raw', RAW, ids=ascii)
def test_traceback_in_the_log_is_one_line(raw: str) -> None:
    try:
        raise ValueError(raw)
    except ValueError as error:
        info = (type(error), error, error.__traceback__)
    record = logging.LogRecord('x', 20, '', 0, 'failed', (), info)
    text = memmon.OneLineFormatter('%(message)s').format(record)
    assert text.isprintable() and text.startswith('failed | Traceback')


@pytest.mark.parametrize('raw', RAW, ids=ascii)
def test_stderr_and_stdout_have_no_raw_character(raw: str, monkeypatch: pytest.MonkeyPatch,
                                                 capfd: pytest.CaptureFixture[str]) -> None:
    def fail(arguments: object) -> NoReturn:
        raise memmon.UsageError(f'x{raw}y')
    monkeypatch.setattr(sys, 'argv', ['memmon', '--check'])
    monkeypatch.setattr(memmon, 'check', lambda *args: ([f'x{raw}y', 'z'], 1))
    assert memmon.main() == 1
    monkeypatch.setattr(memmon, 'parse_args', fail)
    assert memmon.main() == 2
    out, err = capfd.readouterr()
    assert out.endswith('y\nz\n') and err.endswith('y\n') and err.startswith('memmon: x')
    for text in (out[:-3], err[:-1]):
        assert text.isprintable()


@pytest.mark.parametrize('raw', RAW, ids=ascii)
def test_table_has_no_raw_character(raw: str) -> None:
    limit = memmon.Limit('program', 'x', memmon.Size(1), memmon.NO_SIZE, f'-p {raw}')
    one = process(state=FATAL, name=f'x{raw}y', statename=f'F{raw}')
    rows = [(BIG, 0), (reading(None, process=one, limit=limit), 0)]
    lines = memmon.format_table(rows, options(), 120)
    assert len(lines) == 3 and all(line.isprintable() for line in lines)


@pytest.mark.parametrize('delivery, line', [
    (Delivery('exit 3', b'', {'MEMMON_EVENT': 'after'}),
     "the command 'exit 3' of -o after failed: exit status 3"),
    (Delivery('exit 75', b'', {'MEMMON_EVENT': 'after'}),
     "the command 'exit 75' of -o after failed: exit status 75"),
    (Delivery('exit 75', b'', {'MEMMON_EVENT': 'before'}), ''),
    (Delivery('exit 1', b'', {'MEMMON_EVENT': 'before'}),
     "the command 'exit 1' of -o before failed: exit status 1"),
    (Delivery('cat >&-; exit 5', b'mail', {}),
     "the command 'cat >&-; exit 5' of -s failed, and no mail was sent: exit status 5"),
    (Delivery('kill -9 $$', b'', {'MEMMON_EVENT': 'held'}),
     "the command 'kill -9 $$' of -o held failed: killed by signal 9"),
    (Delivery('exit 3 # \x1b\u202e', b'', {'MEMMON_EVENT': 'after'}),
     r"the command 'exit 3 # \x1b\u202e' of -o after failed: exit status 3"),
    (Delivery('exit 3 # bob@x http://bob:s/ecret@x/y', b'', {'MEMMON_EVENT': 'after'}),
     "the command 'exit 3 # bob@x http://x/y' of -o after failed: exit status 3"),
    (Delivery('exit 3 # http://bob:s@cret@x/y', b'', {'MEMMON_EVENT': 'after'}),
     "the command 'exit 3 # http://x/y' of -o after failed: exit status 3"),
    (Delivery('exit 3 # smtp://bob:top secret@x/y', b'mail', {}),
     "the command 'exit 3 # smtp://x/y' of -s failed, and no mail was sent: exit status 3"),
    (Delivery('exit 3 # https://example.com/x -d @- unix:///a@b', b'', {'MEMMON_EVENT': 'after'}),
     "the command 'exit 3 # https://example.com/x -d @- unix:///a@b' of -o after failed: exit "
     'status 3'),
    (Delivery('true', b'', {'MEMMON_EVENT': 'after'}), ''),
])
def test_command_that_fails_is_named(delivery: Delivery, line: str,
                                     caplog: pytest.LogCaptureFixture) -> None:
    status = memmon.deliver(delivery)
    assert [record.getMessage() for record in caplog.records] == ([line] if line else [])
    assert (status == 0) == (delivery.command == 'true')


@pytest.mark.parametrize('text', [b'', b'mail'])
def test_output_of_a_command_ends_before_the_next_line_of_the_log(
        text: bytes, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(memmon.log, 'error', lambda *_: os.write(2, b'failed\n'))
    memmon.deliver(Delivery('printf x >&2; exit 1', text, {}))
    assert capfd.readouterr().err == 'x\nfailed\n'


# The table of --check.

ROWS = [
    (reading(50 * MB, '-p b=100MB', process=process('b:b'), at=1000 + 90061), 61 * MB),
    (reading(250 * MB, '-p a=100MB', process=process('a:a', pid=1234)), 0),
    (reading(None, '-p e=100MB', process=process('e:e', FATAL)), 0),
    (reading(1, '', process=process('d:d', start=memmon.LAST_SECOND)), 2),
    (reading(None, '-p f=100MB', process=process('f:f')), 0),
    (reading(5 * MB, '-p c=none', process=process('c:c')), MB),
]


@pytest.mark.parametrize('columns, bar', [(100, 28), (87, 15), (73, 1), (72, 0), (5, 0)])
def test_bar_is_as_long_as_there_is_room(columns: int, bar: int) -> None:
    assert memmon.format_table(ROWS, options(), columns) == [line.rstrip() for line in [
        'PROCESS   PID          UPTIME      RSS   PEAK  LIMIT  SET BY      USED',
        'a:a      1234         0:12:05    250MB  250MB  100MB  -p a=100MB  250%  ' + '#' * bar,
        'b:b         7  1 day, 1:01:01     50MB   61MB  100MB  -p b=100MB   50%  '
        + '#' * (bar // 2),
        'c:c         7         0:12:05      5MB    5MB   none  -p c=none      -',
        'd:d         7         unknown        1      2      -  no option      -',
        'e:e         -           FATAL        -      -  100MB  -p e=100MB     -',
        'f:f         7         0:12:05  unknown      -  100MB  -p f=100MB     -',
    ]]


def test_table_without_limits_has_no_columns_of_them() -> None:
    rows = [(reading(50 * MB, '', process=process('b:b'), at=1000 + 90061), 61 * MB),
            (reading(None, '', process=process('e:e', FATAL)), 0)]
    assert memmon.format_table(rows, options('--check -k rss -t 1GB'), 80) == [
        'PROCESS  PID          UPTIME   RSS  PEAK',
        'b:b        7  1 day, 1:01:01  50MB  61MB',
        'e:e        -           FATAL     -     -']


def test_table_is_sorted_by_what_is_used_of_the_limit_then_by_memory() -> None:
    rows = [(reading(memory, args, process=process(f'{name}:{name}')), 0)
            for name, memory, args in [
                ('a', 50 * MB, '-a 100MB'), ('b', 3, ''), ('c', None, '-a 1'), ('d', 0, ''),
                ('e', 20, '-a 10'), ('f', 50, '-a 100'), ('g', 900 * MB, ''), ('h', 0, '-a 1')]]
    lines = memmon.format_table(rows, options(), 80)
    assert [line[0] for line in lines[1:]] == ['e', 'a', 'f', 'h', 'g', 'b', 'd', 'c']


@pytest.mark.parametrize('size, text', [
    (32 * MB, '32MB'), (280 * MB, '280MB'), (281 * MB, '290MB'), (1000 * MB, '1GB'),
    (1.1 * GB, '1.1GB'), (1, '1'), (999, '1000'), (5000 * GB, '4.9TB'),
])
def test_proposed_size_has_two_digits_and_is_no_less(size: float, text: str) -> None:
    assert memmon.round_up(size) == text
    assert memmon.parse_size(text) >= size * 0.999
