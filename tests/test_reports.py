"""The course of the memory, and what the log and the mail say: pure functions of values."""

from __future__ import annotations

import logging
import re
import tracemalloc
from typing import List, Optional, Sequence, Tuple

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import memmon
from memmon import (LEFT_ALONE, PUT_OFF, RESTARTED, START_FAILED, STOP_FAILED, Course, Debt, Job,
                    Limit, News, Process, Reading, Result)

KB, MB, GB, TB = 2 ** 10, 2 ** 20, 2 ** 30, 2 ** 40


# Values.

@pytest.mark.parametrize('text, percent', [
    ('80%', 80), ('80', 80), ('80%%', 80), (' 80 % ', 80), ('0.5%', 0.5), ('.5', 0.5), ('100', 100),
    ('99.999999999%', 99.999999999), ('007', 7),
])
def test_parse_percent(text: str, percent: float) -> None:
    assert memmon.parse_percent(text) == percent


@pytest.mark.parametrize('text', [
    '', ' ', '%', '0', '0%', '0.0', '100.1', '101%', '1000', '-5%', '+5%', '8o%', '80%%%', '80MB',
    '1e1', 'inf', 'nan', '5 0', '5.', '٨٠%', '80\n%\n!',
])
def test_parse_percent_refuses(text: str) -> None:
    with pytest.raises(ValueError) as error:
        memmon.parse_percent(text)
    assert str(error.value) == f'{text!r} is not a percentage: give more than 0% and at most 100%'


@given(st.text())
def test_parse_percent_gives_a_percentage_or_refuses(text: str) -> None:
    try:
        assert 0 < memmon.parse_percent(text) <= 100
    except ValueError as error:
        assert 'is not a percentage' in str(error)


@pytest.mark.parametrize('text, pair', [
    ('before=true', ('before', 'true')),
    ('after=a=b', ('after', 'a=b')),
    (' warn = echo hi', ('warn', ' echo hi')),
    ('held=echo 50%', ('held', 'echo 50%')),
    ('failed=line 1\nline 2', ('failed', 'line 1\nline 2')),
])
def test_parse_on(text: str, pair: Tuple[str, str]) -> None:
    assert memmon.parse_on(text) == (pair,)


@pytest.mark.parametrize('text', ['', '=', 'before', 'before=', 'before= ', '=true', 'Before=true',
                                  'during=true', 'before:true', 'before,after=true'])
def test_parse_on_refuses(text: str) -> None:
    with pytest.raises(ValueError) as error:
        memmon.parse_on(text)
    assert str(error.value) == (f'{text!r} is not EVENT=COMMAND, where EVENT is one of '
                                'before, after, failed, held, warn')


def test_on_is_kept_in_order() -> None:
    options = memmon.parse_args(['-a', '1MB', '-o', 'after=b', '--on', 'before=a', '-o', 'after=c'])
    assert options.on == (('after', 'b'), ('before', 'a'), ('after', 'c'))


# The course.

def course_of(memories: Sequence[int], secs: float = 60) -> Course:
    """Return the course of looks so many seconds apart."""
    course = Course()
    for number, memory in enumerate(memories):
        course.add(memory, 1000 + number * secs)
    return course


@given(st.lists(st.integers(0, 2 ** 63), min_size=1, max_size=600))
@example([0])
@example([1] * 32)
@example([0] * 32 + [1])
@example(list(range(33, 0, -1)))
def test_course_keeps_its_ends_and_its_peak_in_32_points(memories: List[int]) -> None:
    course = course_of(memories)
    assert (course.first, course.last, course.looks) == (memories[0], memories[-1], len(memories))
    assert 1 <= len(course.points) <= 32 and max(course.points) == max(memories)
    step = course.looks_per_point
    assert list(course.points) == [max(memories[start:start + step])
                                   for start in range(0, len(memories), step)]
    assert len(memories) <= 32 or len(course.points) > 16


@given(st.lists(st.integers(0, 2 ** 63), min_size=1, max_size=100))
def test_picture_has_a_block_for_each_point_and_a_full_one_for_the_peak(
        memories: List[int]) -> None:
    course = course_of(memories)
    picture = course.picture()
    assert len(picture) == len(course.points) and set(picture) <= set('▁▂▃▄▅▆▇█')
    assert ('█' in picture) == (max(memories) > 0)
    pairs = sorted(zip(course.points, picture))
    assert [block for _, block in pairs] == sorted(picture)


@pytest.mark.parametrize('memories, picture', [
    ([], ''),
    ([0, 0], '▁▁'),
    ([1], '█'),
    ([0, 1, 2, 3, 4, 5, 6, 7, 8], '▁▂▃▄▅▆▇██'),
    ([100 * MB, 200 * MB, 50 * MB], '▅█▃'),
    ([TB, 1], '█▁'),
    (range(64), '▁▁▁▁▂▂▂▂▃▃▃▃▄▄▄▄▅▅▅▅▆▆▆▆▇▇▇▇████'),
])
def test_picture(memories: Sequence[int], picture: str) -> None:
    assert course_of(memories).picture() == picture


def test_course_in_figures() -> None:
    course = course_of([82 * MB, 271 * MB, 270 * MB], secs=6000)
    assert course.describe(1000 + 12000) == '82MB -> 270MB in 3:20:00, peak 271MB'
    assert course.describe(0) == '82MB -> 270MB in 0:00:00, peak 271MB'  # no clock goes back


def test_courses_of_500_programs_cost_less_than_3_mb() -> None:
    tracemalloc.start()
    try:
        courses = [Course() for _ in range(500)]
        for number in range(40):
            for course in courses:
                course.add(number * GB, number)
        assert tracemalloc.get_traced_memory()[0] < 3 * MB
    finally:
        tracemalloc.stop()


# Readings.

LIMIT = Limit('any', '*', None, '-a 200MB')
WEB = Process('shop', 'web', 17, 1000, 0, 5000, 20, 'RUNNING', '')


def reading_of(memory: Optional[int], **fields: object) -> Reading:
    """Return a reading of a process with a limit of 200 MB."""
    reading = Reading(WEB, 3725, False, memory, None, LIMIT, 200 * MB)
    return reading._replace(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize('memory, size, percent, is_near', [
    (80, 100, 80, True), (79, 100, 80, False), (100, 100, 100, True), (99, 100, 100, False),
    (57, 100, 57, True), (29, 100, 29, True), (1, 100, 0.5, True), (150, 100, 80, True),
    (80, 100, 0, False), (None, 100, 80, False), (80, None, 80, False), (80, 0, 80, False),
])
def test_is_near(memory: Optional[int], size: Optional[int], percent: float, is_near: bool) -> None:
    assert memmon.is_near(reading_of(memory, size=size), percent) == is_near


@given(st.integers(0, 2 ** 50), st.integers(1, 2 ** 50), st.integers(1, 100))
def test_is_near_is_exact(memory: int, size: int, percent: int) -> None:
    is_near = memory * 100 >= percent * size
    assert memmon.is_near(reading_of(memory, size=size), percent) == is_near


@pytest.mark.parametrize('memories, secs, room, forecast', [
    ([10 * MB, 20 * MB], 3600, 30 * MB,
     ', 10MB an hour; if that goes on, it is at its limit in 3:00:00'),
    ([10 * MB, 90 * MB, 20 * MB], 1800, 5 * MB,
     ', 10MB an hour; if that goes on, it is at its limit in 0:30:00'),
    ([10 * MB, 20 * MB], 3600, 0, ', 10MB an hour; if that goes on, it is at its limit in 0:00:00'),
    ([10 * MB, 20 * MB], 3600, 10 * MB * 24 * 30,
     ', 10MB an hour; if that goes on, it is at its limit in 30 days, 0:00:00'),
    ([10 * MB, 20 * MB], 3600, 10 * MB * 24 * 366, ''),
    ([0, 4096], 365 * 24 * 3600, 200 * GB, ''),  # in more days than a timedelta has room for
    ([20 * MB, 20 * MB], 3600, MB, ''),
    ([20 * MB, 10 * MB], 3600, MB, ''),
    ([20 * MB, 20 * MB], 3600, 0, ''),
    ([20 * MB], 3600, MB, ''),
    ([10 * MB, 20 * MB], 0, MB, ''),
])
def test_forecast(memories: List[int], secs: float, room: int, forecast: str) -> None:
    assert course_of(memories, secs).forecast(room, 1000 + secs * (len(memories) - 1)) == forecast


@given(st.lists(st.integers(0, 2 ** 50), min_size=1, max_size=40), st.floats(1e-3, 1e9),
       st.integers(-2 ** 50, 2 ** 50))
def test_forecast_is_there_for_all_numbers(memories: List[int], secs: float, room: int) -> None:
    forecast = course_of(memories, secs).forecast(room, 1000 + secs * len(memories))
    assert forecast == '' or re.fullmatch(
        r', [\d.e+]+(|KB|MB|GB|TB) an hour; if that goes on, it is at its limit in '
        r'(\d+ days?, )?[\d:]+', forecast)


# News: what the log says.

COURSE = '▃█  100MB -> 270.6MB in 1:00:00, peak 271MB'
BIG = reading_of(270 * MB)
TREE = BIG._replace(with_descendants=True)
SHARED = BIG._replace(with_descendants=True, rss=900 * MB, pss=270 * MB)
URGENT = BIG._replace(urgent=250 * MB, limit=Limit('any', '*', None, '-a 200MB..250MB'))
TOTAL = BIG._replace(with_descendants=True, size=GB, total=2 * GB,
                     limit=Limit('total', '', None, '-t 1GB'))


def options_of(*args: str) -> memmon.Options:
    return memmon.parse_args(['-a', '200MB', *args])


@pytest.mark.parametrize('reading, use', [
    (BIG, 'RSS 270MB is over 200MB (-a 200MB)'),
    (TREE, 'RSS 270MB with its descendants is over 200MB (-a 200MB)'),
    (SHARED, 'PSS 270MB with its descendants is over 200MB (-a 200MB)'),
    (URGENT, 'RSS 270MB is over 250MB (-a 200MB..250MB)'),
    (TOTAL, 'total 2GB is over 1GB (-t 1GB), and shop:web is the largest with 270MB'),
])
def test_news_of_restart_tells_what_is_over(reading: Reading, use: str) -> None:
    job = Job(reading, Debt(), course=COURSE)
    result = Result(RESTARTED, 'pid 17 -> 18', 18, 12 * MB)
    kind = 'PSS' if reading.pss else 'RSS'
    assert memmon.news_of_restart(options_of(), job, result) == News(
        logging.INFO,
        f'restarted shop:web: {use}, uptime 1:02:05; pid 17 -> 18, {kind} 270MB -> 12MB',
        'process shop:web restarted', reading, 18, COURSE, 'after')


FUTILE = ('; the limit is below what the program needs: RSS 250MB when it is fresh, 200MB allowed '
          '(-a 200MB); memmon leaves it alone until it uses 375MB, or has been below its limit')
SURVIVORS = ('; still alive after the stop: pid 21 (160MB), pid 22 (1MB); to stop them as well, '
             'put stopasgroup=true and killasgroup=true into the section of the program')


@pytest.mark.parametrize('args, recent, result, level, end, is_mailed', [
    ([], 0, Result(RESTARTED, 'pid 17 -> 18', 18), logging.INFO, '', True),
    (['-u', '1h'], 0, Result(RESTARTED, 'pid 17 -> 18', 18), logging.INFO, '', False),
    ([], 2, Result(RESTARTED, 'pid 17 -> 18', 18, 12 * MB), logging.INFO,
     ', RSS 270MB -> 12MB, restart 3 within the hour', True),
    (['-u', '1h'], 0, Result(RESTARTED, 'pid 17 -> 18', 18, 250 * MB), logging.WARNING,
     f', RSS 270MB -> 250MB{FUTILE}', True),
    ([], 0, Result(RESTARTED, 'pid 17 -> 18', 18, 12 * MB, ((21, 160 * MB), (22, MB))),
     logging.INFO, f', RSS 270MB -> 12MB{SURVIVORS}', True),
])
def test_news_of_restart(args: List[str], recent: int, result: Result, level: int, end: str,
                         is_mailed: bool) -> None:
    job = Job(BIG, Debt(), recent=recent, course=COURSE)
    assert memmon.news_of_restart(options_of(*args), job, result) == News(
        level, 'restarted shop:web: RSS 270MB is over 200MB (-a 200MB), uptime 1:02:05; '
               f'pid 17 -> 18{end}',
        'process shop:web restarted' * is_mailed, BIG, 18, COURSE, 'after')


@pytest.mark.parametrize('outcome, is_put_off, is_reported, level, is_failure', [
    (STOP_FAILED, False, False, logging.ERROR, True),
    (START_FAILED, False, False, logging.ERROR, True),
    (START_FAILED, False, True, logging.INFO, False),
    (LEFT_ALONE, False, False, logging.INFO, False),
    (PUT_OFF, False, False, logging.INFO, False),
    (PUT_OFF, True, False, logging.DEBUG, False),
    (LEFT_ALONE, True, False, logging.INFO, False),
])
def test_news_of_no_restart(outcome: str, is_put_off: bool, is_reported: bool, level: int,
                            is_failure: bool) -> None:
    job = Job(BIG, Debt(is_reported=is_reported), course=COURSE, is_put_off=is_put_off)
    line = f'{outcome} shop:web: RSS 270MB is over 200MB (-a 200MB), uptime 1:02:05; why'
    failure = News(level, line, f'{outcome} process shop:web', BIG, 0, COURSE, 'failed')
    assert memmon.news_of_restart(options_of(), job, Result(outcome, 'why')) == (
        failure if is_failure else News(level, line))


@pytest.mark.parametrize('rate, times', [
    ('1/1h', 'once within 1:00:00'), ('3/90', '3 times within 0:01:30'),
])
def test_news_of_hold(rate: str, times: str) -> None:
    assert memmon.news_of_hold(memmon.parse_rate(rate), BIG, COURSE) == News(
        logging.WARNING,
        'held shop:web: RSS 270MB is over 200MB (-a 200MB), uptime 1:02:05; memmon has restarted '
        f'it {times}, and leaves it running',
        'process shop:web held', BIG, course=COURSE, event='held')


@pytest.mark.parametrize('reading, use, share', [
    (reading_of(164 * MB), 'RSS 164MB of 200MB (-a 200MB)', '82%'),
    (reading_of(160 * MB, with_descendants=True),
     'RSS 160MB with its descendants of 200MB (-a 200MB)', '80%'),
    (reading_of(900 * MB, pss=164 * MB, with_descendants=True),
     'PSS 164MB with its descendants of 200MB (-a 200MB)', '82%'),
    (URGENT._replace(rss=200 * MB), 'RSS 200MB of 200MB..250MB (-a 200MB..250MB)', '100%'),
])
def test_news_of_warning(reading: Reading, use: str, share: str) -> None:
    headline = f'process shop:web uses {share} of its limit'
    assert memmon.news_of_warning(reading, COURSE, '; forecast') == News(
        logging.WARNING, f'{headline}: {use}, uptime 1:02:05; forecast', headline, reading,
        course=COURSE, event='warn')


def test_news_of_dry_run() -> None:
    assert memmon.news_of_dry_run(BIG, COURSE) == News(
        logging.INFO,
        'would restart shop:web: RSS 270MB is over 200MB (-a 200MB), uptime 1:02:05',
        'would restart process shop:web', BIG, course=COURSE)


@pytest.mark.parametrize('pss, kind', [(None, ''), (170 * MB, 'RSS ')])
def test_warning_says_of_what_its_course_is(pss: Optional[int], kind: str,
                                            monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('memmon.time.monotonic', lambda: 1000 + 3600)
    listener = memmon.Listener(options_of('-w', '80'), memmon.Server('unix:///none'))
    watched = memmon.Watched(WEB)
    watched.course = course_of([70 * MB, 170 * MB], 3600)
    reading = reading_of(170 * MB, pss=pss)
    news = listener.news_of_verdict(watched, reading, memmon.NEAR)
    figures = f'{kind}70MB -> 170MB in 1:00:00, peak 170MB'
    assert news and news.course == f'▄█  {figures}'
    assert news.line.endswith(f', uptime 1:02:05; {figures}, 100MB an hour; if that goes on, it is '
                              'at its limit in 0:18:00')
    assert listener.news_of_verdict(watched, reading, memmon.NEAR) is None


def test_warning_at_the_first_look_has_no_course() -> None:
    listener = memmon.Listener(options_of('-w', '80'), memmon.Server('unix:///none'))
    watched = memmon.Watched(WEB)
    watched.course = course_of([170 * MB])
    news = listener.news_of_verdict(watched, reading_of(170 * MB), memmon.NEAR)
    assert news and news.course == '' and news.line.endswith(', uptime 1:02:05')


# Mail.

HEAD = '''To: bob@example.com, ann@example.com
Subject: memmon{name}: {subject}
MIME-Version: 1.0
Content-Type: text/plain; charset="utf-8"
Content-Transfer-Encoding: {encoding}

memmon: {subject}

host:     db1
time:     TIME
'''


@pytest.mark.parametrize('args, news, name, rows', [
    ([], News(0, 'a line', 'processes are checked again'), '', 'reason:   a line\n'),
    ([], News(0, 'a line', 'process shop:web restarted', BIG, 18, COURSE, 'after'), '', f'''\
uptime:   1:02:05
old pid:  17
new pid:  18
RSS:      270MB
limit:    200MB
set by:   -a 200MB
course:   {COURSE}
reason:   a line
'''),
    (['-n', 'my shop'], News(0, 'a line', 'failed to start process shop:web', SHARED, 0),
     ' [my shop]', '''\
uptime:   1:02:05
old pid:  17
new pid:  none
PSS:      270MB with its descendants
limit:    200MB
set by:   -a 200MB
reason:   a line
'''),
    ([], News(0, 'a line', 'process shop:web held', URGENT, course=COURSE, event='held'), '', f'''\
uptime:   1:02:05
pid:      17
RSS:      270MB
limit:    200MB..250MB
set by:   -a 200MB..250MB
course:   {COURSE}
reason:   a line
'''),
    ([], News(0, 'a line', 'process shop:web restarted', TOTAL, 18), '', '''\
uptime:   1:02:05
old pid:  17
new pid:  18
RSS:      270MB with its descendants
total:    2GB
limit:    1GB
set by:   -t 1GB
reason:   a line
'''),
])
def test_write_mail(args: List[str], news: News, name: str, rows: str,
                    monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('memmon.socket.gethostname', lambda: 'db1')
    options = options_of('-m', 'bob@example.com,ann@example.com', *args)
    mail = bytes(memmon.write_mail(options, news)).decode()
    mail = re.sub(r'\d{4}-\d\d-\d\d \d\d:\d\d:\d\d [-+]\d{4}', 'TIME', mail)
    encoding = '7bit' if rows.isascii() else '8bit'
    assert mail == HEAD.format(name=name, subject=news.subject, encoding=encoding) + rows
