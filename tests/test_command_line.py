"""The command line: text to value and back, options, and what is said of the rest."""

from __future__ import annotations

import email.utils
import math
import os
import re
import subprocess
import sys
import time
from fractions import Fraction
from typing import Any, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import GB, KB, MB, TB, options

import memmon
from memmon import NO_SIZE, Limit, Options, Size

# Sizes.

NOT_A_SIZE = ('is not a size: give a number of bytes above 0, or a number with KB, MB, GB or TB, '
              'such as 200MB')


@pytest.mark.parametrize('text, size', [
    ('1', 1), ('1048576', MB), ('10kB', 10 * KB), ('200MB', 200 * MB), ('200mb', 200 * MB),
    ('3072Mb', 3 * GB), ('2GB', 2 * GB), ('2TB', 2 * TB), ('1.5GB', 1536 * MB), ('0.5k', 512),
    ('.5M', 512 * KB), ('1.5', 1), ('3K', 3 * KB), ('3m', 3 * MB), ('3G', 3 * GB), ('3T', 3 * TB),
    (' 3 MB', 3 * MB), ('+3MB ', 3 * MB), ('0.001K', 1),
    ('512Ki', 512 * KB), ('512Mi', 512 * MB), ('512MiB', 512 * MB), ('2gib', 2 * GB),
    ('2 Ti', 2 * TB), ('512M ', 512 * MB),
    ('900719925474099', 900719925474099),
    ('999999999999999TB', 999999999999999 * TB),
    ('123456789012345.123456789TB', 123456789012345123456789 * TB // 10 ** 9),
])
def test_size_is_read(text: str, size: int) -> None:
    assert memmon.parse_size(text) == size


@pytest.mark.parametrize('text', [
    '', ' ', '0', '0MB', '0.0', '-1', '-5MB', '0.0001K', '0.9', 'MB', 'Mi', '20XB', '1e3', 'inf',
    'nan', '1,5GB', '5B', '5i', '5iB', '5MBi', '5MM', '1.GB', '5 5', '1_0MB', '5%', 'none', '٣MB',
    '5Mi B', '9' * 16, '9' * 5000, '0x10', '1MB2',
])
def test_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError) as error:
        memmon.parse_size(text)
    assert str(error.value) == f'{text!r} {NOT_A_SIZE}'


NUMBERS = st.from_regex('([0-9]{1,15}|[0-9]{0,15}[.][0-9]{1,9})', fullmatch=True).filter(
    lambda text: text.isascii() and Fraction(f'0{text}') >= 1)


@given(NUMBERS, st.sampled_from('KMGT'), st.sampled_from(['', 'B', 'b', 'i', 'iB']))
def test_size_is_exact(number: str, unit: str, suffix: str) -> None:
    whole = Fraction(f'0{number}') * KB ** ('KMGT'.index(unit) + 1)
    assert memmon.parse_size(number + unit + suffix) == math.floor(whole)


@pytest.mark.parametrize('size, text', [
    (0, '0'), (1, '1'), (1000, '1000'), (1023, '1023'), (KB, '1KB'), (1536, '1.5KB'),
    (MB - 1, '1MB'),  # not 1024KB
    (int(1023.94 * KB), '1023.9KB'), (int(1023.96 * KB), '1MB'), (200 * MB, '200MB'),
    (1023 * MB, '1023MB'), (int(212.44 * MB), '212.4MB'), (3 * GB // 2, '1.5GB'), (5 * TB, '5TB'),
    (5000 * TB, '5000TB'), (0.25, '0.2'),
])
def test_size_is_shown(size: float, text: str) -> None:
    assert memmon.format_size(size) == text


@given(st.integers(1, 2 ** 72))
def test_size_that_is_shown_can_be_given(size: int) -> None:
    assert memmon.parse_size(memmon.format_size(size)) == pytest.approx(size, rel=0.05)


@pytest.mark.parametrize('text, percent', [
    ('80%', 80), ('80', 80), ('80%%', 80), (' 80 % ', 80), ('0.5%', 0.5), ('.5', 0.5),
    ('100', 100), ('100.0%', 100), ('99.999999999%', 99.999999999), ('007', 7),
])
def test_percentage_is_read(text: str, percent: float) -> None:
    assert memmon.parse_percent(text) == percent


@pytest.mark.parametrize('text', [
    '', ' ', '%', '0', '0%', '0.0', '100.1', '101%', '1000', '-5%', '+5%', '8o%', '80%%%', '80MB',
    '1e1', 'inf', 'nan', '5 0', '5.', '٨٠%', '80\n%\n!', '%80',
])
def test_no_percentage_is_refused(text: str) -> None:
    with pytest.raises(ValueError) as error:
        memmon.parse_percent(text)
    assert str(error.value) == f'{text!r} is not a percentage: give more than 0% and at most 100%'


# Durations.

@pytest.mark.parametrize('text, secs', [
    ('90', 90), ('90s', 90), ('5m', 300), ('2h', 7200), ('1d', 86400), ('2D', 172800),
    ('1.5h', 5400), ('.5m', 30), (' 5 m ', 300), ('+5', 5), ('1.9', 1), ('2.05m', 123),
    ('999999999999999d', 999999999999999 * 86400),
])
def test_duration_is_read(text: str, secs: int) -> None:
    assert memmon.parse_duration(text) == secs


@pytest.mark.parametrize('text', [
    '', '0', '-1', 's', '5w', '1h30m', 'soon', '0.5', '9' * 16, '5M B', '5Mi',
])
def test_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError) as error:
        memmon.parse_duration(text)
    assert str(error.value) == (f'{text!r} is not a duration: give a number of seconds above 0, '
                                'or a number with s, m, h or d, such as 5m')


@given(st.integers(1, 10 ** 15 - 1), st.sampled_from('smhd'))
def test_duration_that_is_accepted_can_be_shown(number: int, unit: str) -> None:
    assert memmon.format_duration(memmon.parse_duration(f'{number}{unit}'))


@pytest.mark.parametrize('secs, text', [
    (0, '0:00:00'), (-3, '0:00:00'), (59.9, '0:00:59'), (725, '0:12:05'), (3600, '1:00:00'),
    (90061, '1 day, 1:01:01'), (10 ** 15, '999999999 days, 23:59:59'),
])
def test_duration_is_shown(secs: float, text: str) -> None:
    assert memmon.format_duration(secs) == text


@pytest.mark.parametrize('text, rate', [
    ('3/1h', (3, 3600)), ('1/1', (1, 1)), ('10/7d', (10, 604800)), (' 3 / 1.5h ', (3, 5400)),
    ('999999999/1', (999999999, 1)),
])
def test_rate_is_read(text: str, rate: tuple[int, int]) -> None:
    assert memmon.parse_rate(text) == rate


NOT_A_RATE = 'is not N/DURATION with an N above 0, such as 3/1h'


@pytest.mark.parametrize('text, why', [
    ('3', f"'3' {NOT_A_RATE}"), ('', f"'' {NOT_A_RATE}"), ('/1h', f"'/1h' {NOT_A_RATE}"),
    ('0/1h', f"'0/1h' {NOT_A_RATE}"), ('-1/1h', f"'-1/1h' {NOT_A_RATE}"),
    ('1.5/1h', f"'1.5/1h' {NOT_A_RATE}"), ('3/', f"'3/' {NOT_A_RATE}"),
    ('٣/1h', f"'٣/1h' {NOT_A_RATE}"), ('3/0', "'0' is not a duration"),
    ('3/soon', "'soon' is not a duration"), ('3/1h/2', "'1h/2' is not a duration"),
])
def test_no_rate_is_refused(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=f'^{re.escape(why)}'):
        memmon.parse_rate(text)


# Limits.

SIZE_200, SIZE_300 = Size(200 * MB), Size(300 * MB)
QUARTER, HALF = Size(0, 25), Size(0, 50)


@pytest.mark.parametrize('text, sizes', [
    ('200MB', (SIZE_200, NO_SIZE)), ('25%', (QUARTER, NO_SIZE)),
    ('200MB..300MB', (SIZE_200, SIZE_300)), ('200MB .. 300MB', (SIZE_200, SIZE_300)),
    ('200MB..200MB', (SIZE_200, SIZE_200)), ('25%..50%', (QUARTER, HALF)),
    ('25%%..50%%', (QUARTER, HALF)), ('50%..50%', (HALF, HALF)), ('200MB..50%', (SIZE_200, HALF)),
    ('25%..300MB', (QUARTER, SIZE_300)), ('300MB..0.1%', (SIZE_300, Size(0, 0.1))),
    ('none', (NO_SIZE, NO_SIZE)), (' None ', (NO_SIZE, NO_SIZE)),
])
def test_limit_is_read(text: str, sizes: tuple[Size, Size]) -> None:
    assert memmon.parse_limit('any', text) == Limit('any', '*', *sizes)


WRONG_ORDER = ('has its sizes in the wrong order: the hard one, at which memmon no longer waits, '
               'must not be below the soft one')


@pytest.mark.parametrize('text, why', [
    ('300MB..200MB', f"'300MB..200MB' {WRONG_ORDER}"), ('50%..25%', f"'50%..25%' {WRONG_ORDER}"),
    ('2..1', f"'2..1' {WRONG_ORDER}"), ('..300MB', "'' is not a size"),
    ('200MB..', "'' is not a size"), ('200MB..none', "'none' is not a size"),
    ('none..200MB', "'none' is not a size"), ('1..2..3', "'2..3' is not a size"),
    ('0..1', "'0' is not a size"), ('150%', "'150%' is not a percentage"),
    ('0%..5%', "'0%' is not a percentage"), ('much', "'much' is not a size"),
])
def test_no_limit_is_refused(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=f'^{re.escape(why)}'):
        memmon.parse_limit('any', text)


@pytest.mark.parametrize('option', ['program', 'groupname'])
@pytest.mark.parametrize('text, limit', [
    ('web=200MB', ('web', SIZE_200, NO_SIZE)), ('web:w=200MB', ('web:w', SIZE_200, NO_SIZE)),
    ('q:*=10kB', ('q:*', Size(10 * KB), NO_SIZE)), ('a=b=5', ('a=b', Size(5), NO_SIZE)),
    (' web = 5 ', ('web', Size(5), NO_SIZE)), ('web=5..6', ('web', Size(5), Size(6))),
    ('web=25%', ('web', QUARTER, NO_SIZE)), ('web=none', ('web', NO_SIZE, NO_SIZE)),
])
def test_name_and_limit_are_read(option: str, text: str, limit: tuple[str, Size, Size]) -> None:
    assert memmon.parse_limit(option, text) == Limit(option, *limit)


@pytest.mark.parametrize('text, why', [
    ('web', "'web' is not NAME=SIZE, such as web=200MB"),
    ('', "'' is not NAME=SIZE, such as web=200MB"),
    ('=200MB', "'=200MB' is not NAME=SIZE, such as web=200MB"),
    (' =200MB', "' =200MB' is not NAME=SIZE, such as web=200MB"),
    ('web=', "'' is not a size"), ('web=much', "'much' is not a size"),
    ('web=0', "'0' is not a size"),
])
def test_no_name_and_limit_are_refused(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=f'^{re.escape(why)}'):
        memmon.parse_limit('program', text)


def test_any_and_total_are_for_all_names() -> None:
    assert memmon.parse_limit('any', '5..6') == Limit('any', '*', Size(5), Size(6))
    assert memmon.parse_limit('any', 'none') == Limit('any', '*', NO_SIZE, NO_SIZE)
    assert memmon.parse_limit('total', '85%..90%') == Limit(
        'total', '*', Size(0, 85), Size(0, 90))
    with pytest.raises(ValueError, match="^'none' is not a limit for the total: give a size, "
                                         'such as 85%$'):
        memmon.parse_limit('total', ' None ')


@pytest.mark.parametrize('args, hints', [
    ('-a 200', ['-a 200 is 200 bytes; did you mean 200MB?']),
    ('-p web=200KB', ['-p web=200KB is 204800 bytes; did you mean 200MB?']),
    ('-a 1048575', ['-a 1048575 is 1048575 bytes; did you mean 1048575MB?']),
    ('-t 1', ['-t 1 is 1 bytes; did you mean 1MB?']),
    ('-a 200..1GB', ['-a 200..1GB is 200 bytes; did you mean 200MB?']),
    ('-a 1..2', ['-a 1..2 is 1 bytes; did you mean 1MB?', '-a 1..2 is 2 bytes; did you mean 2MB?']),
    ('-g a=5 -a 7', ['-g a=5 is 5 bytes; did you mean 5MB?', '-a 7 is 7 bytes; did you mean 7MB?']),
    ('-a 1MB', []), ('-a 0.1%', []), ('-a 5%..6%', []), ('-p web=none -t 1GB', []), ('--check', []),
])
def test_tiny_limit_is_taken_with_a_hint(args: str, hints: list[str]) -> None:
    assert memmon.tiny_limits(options(args)) == hints


# Addresses, commands, texts.

@pytest.mark.parametrize('text, addresses', [
    ('bob@example.com', ('bob@example.com',)),
    ('sysops+supervisord@example.com', ('sysops+supervisord@example.com',)),
    ("o'brien_{2}@host-1.example.com", ("o'brien_{2}@host-1.example.com",)),
    ('root', ('root',)),
    ('a@example.com,b@example.com', ('a@example.com', 'b@example.com')),
    ('a@example.com,,b@example.com', ('a@example.com', 'b@example.com')),
    (' a@example.com , b@example.com, ', ('a@example.com', 'b@example.com')),
    ('<bob@example.com>', ('bob@example.com',)),
    ('Bob <bob@example.com>', ('Bob <bob@example.com>',)),
    ('"Smith, Bob" <bob@example.com>, root', ('"Smith, Bob" <bob@example.com>', 'root')),
    ('"Bob"<bob@example.com>', ('Bob <bob@example.com>',)),
    ('Jürgen <j@example.com>', ('=?utf-8?q?J=C3=BCrgen?= <j@example.com>',)),
    ('J\udcfcrgen <j@example.com>', (r'"J\\udcfcrgen" <j@example.com>',)),  # Latin-1
    (','.join(f'some.one.{n}@mail.example.com' for n in range(28)),
     tuple(f'some.one.{n}@mail.example.com' for n in range(28))),
])
def test_addresses_are_read(text: str, addresses: tuple[str, ...]) -> None:
    assert memmon.parse_addresses(text) == addresses


@pytest.mark.parametrize('text', [
    ' ,', ',', 'bob@', '@example.com', 'bob@exämple.com', 'bö@example.com', 'a@b@c',
    'bob example.com', 'a;b', 'a: b@c;', 'a <b> c', 'a b>', 'a@b <c@d>', '<>', '<a, b>',
    '"x', 'bob@example.com"',
    '(c)', r'a\b@example.com', 'a[1]@example.com', 'a@b c@d', pytest.param('(' * 3000, id='deep'),
])
def test_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError) as error:
        memmon.parse_addresses(text)
    assert str(error.value) == (
        f'{text!r} is not an email address, nor several separated by commas')


@pytest.mark.parametrize('typo', ['example@@com', 'a b', 'x@', '<', '(', 'x@y>'])
@pytest.mark.parametrize('one', ['some.one@mail.example.com', 'Some One <a@b>', '"a, b" <a@b>'])
def test_typo_after_28_addresses_is_found_at_once(one: str, typo: str) -> None:
    began = time.process_time()
    with pytest.raises(ValueError, match='is not an email address'):
        memmon.parse_addresses(', '.join([one] * 28 + [typo]))
    assert time.process_time() - began < 1


@given(st.text('ab@<>"\\,;:()[] .ä'))
def test_addresses_are_of_the_text(text: str) -> None:
    try:
        addresses = memmon.parse_addresses(text)
    except ValueError:
        return
    assert addresses
    for _, address in email.utils.getaddresses(addresses):
        assert re.fullmatch('[^@]+(@[^@]+)?', address) and address in text


@pytest.mark.parametrize('text, pair', [
    ('before=true', ('before', 'true')), ('after=a=b', ('after', 'a=b')),
    (' warn = echo hi', ('warn', ' echo hi')), ('held=echo 50%', ('held', 'echo 50%')),
    ('failed=line 1\nline 2', ('failed', 'line 1\nline 2')),
])
def test_command_for_an_event_is_read(text: str, pair: tuple[str, str]) -> None:
    assert memmon.parse_on(text) == pair


@pytest.mark.parametrize('text', ['', '=', 'before', 'before=', 'before= ', '=true', 'Before=true',
                                  'during=true', 'before:true', 'before,after=true'])
def test_no_command_for_an_event_is_refused(text: str) -> None:
    with pytest.raises(ValueError) as error:
        memmon.parse_on(text)
    assert str(error.value) == (f'{text!r} is not EVENT=COMMAND, where EVENT is one of before, '
                                'after, failed, held, warn')


@pytest.mark.parametrize('parse', [memmon.parse_text, memmon.parse_addresses])
@pytest.mark.parametrize('text', ['', ' ', 'a\nb@c', 'a@b\r', 'a,\tb', 'a\0', 'a\x1b[1m', 'a\x7f'])
def test_more_or_less_than_a_line_is_refused(parse: Callable[[str], object], text: str) -> None:
    with pytest.raises(ValueError) as error:
        parse(text)
    assert str(error.value) == f'{text!r} is not one line of text'


@pytest.mark.parametrize('text', ['shop', 'Läden №1', 'a [b]: =?utf-8?q?x?='])
def test_line_is_taken_as_it_is(text: str) -> None:
    assert memmon.parse_text(text) == text


@pytest.mark.parametrize('rollup, text, result', [
    (OSError(), ' RSS', 'rss'),
    (5, 'PSS', 'pss'), (5, 'private', 'private'),
    (OSError(), 'pss', 'this system does not report Pss in /proc/PID/smaps_rollup: use -k rss'),
    (PermissionError(), 'private', 'this system does not report Pss_Anon and Pss_Shmem and SwapPss '
                                   'in /proc/PID/smaps_rollup: use -k rss or pss'),
    (FileNotFoundError(), 'pss',
     'this system does not report Pss in /proc/PID/smaps_rollup: use -k rss'),
    (5, 'uss', "'uss' is not a measure of memory: give rss, pss or private"),
    (5, '', "'' is not a measure of memory: give rss, pss or private"),
])
def test_measure_is_one_that_the_system_has(rollup: Any, text: str, result: str,
                                            monkeypatch: pytest.MonkeyPatch) -> None:
    def read_fields(pid: int, names: tuple[str, ...]) -> int:
        if isinstance(rollup, OSError):
            raise rollup
        return rollup  # type: ignore[no-any-return]
    monkeypatch.setattr(memmon, 'read_fields', read_fields)
    try:
        assert memmon.parse_measure(text) == result
    except ValueError as error:
        assert str(error) == result


@pytest.mark.parametrize('option', [option for option in memmon.OPTIONS if option.parse],
                         ids=lambda option: str(option.name))
@given(text=st.one_of(st.text(), st.text('0123456789.%/=msKMGBi none,@"<> \x1b\u202e')))
def test_parser_returns_a_value_or_raises_a_printable_line(option: memmon.Option, text: str
                                                           ) -> None:
    assert option.parse
    try:
        option.parse(text)
    except ValueError as error:
        assert str(error) and str(error).isprintable()


@pytest.mark.parametrize('value, line', [
    (OSError('timed out'), 'timed out'), (OSError(), 'OSError'), (OSError(' \n'), 'OSError'),
    ('', ''), ('220 mail ESMTP\r\n', '220 mail ESMTP'), ('first\nlast', 'first ... last'),
    ('same\nsame', 'same ... same'), ('a\x85b\u2028c', r'a\x85b\u2028c'),
    ('c\x0cd', r'c\x0cd'), ('  a  b ', 'a  b'),
    ('FAILED: Traceback:\n  File "x"\nPermissionError: no\n\n',
     'FAILED: Traceback: ... PermissionError: no'),
    ('\x1b[2J', '\\x1b[2J'), ('a\x9bb', 'a\\x9bb'), ('a\u202eb', 'a\\u202eb'),
    ('a\udce4', 'a\\udce4'), ('Läden ▃█', 'Läden ▃█'), (b'x', "b'x'"),
])
def test_one_line(value: object, line: str) -> None:
    assert memmon.one_line(value) == line


# Options.

def test_options_have_names_of_their_own() -> None:
    for names in ([option.letter for option in memmon.OPTIONS if option.letter],
                  [option.name for option in memmon.OPTIONS],
                  [option.field or option.name for option in memmon.OPTIONS]):
        assert len(set(names)) == len(names)


def test_help_fits_a_screen() -> None:
    lines = memmon.format_help().splitlines()
    assert len(lines) <= 60 and max(map(len, lines)) <= 80
    assert all(line == line.rstrip() and line.isprintable() for line in lines)


def test_help_shows_each_option_under_its_heading() -> None:
    shown, heading = [], ''
    for line in memmon.format_help().splitlines():
        if re.fullmatch('[A-Z][a-z ]+:', line):
            heading = line[:-1]
        match = re.match('  (?:-(.), |    )--([a-z_-]+)(?: ([A-Z/=]+))?(?:  |$)', line)
        if match:
            shown.append((heading, *[group or '' for group in match.groups()]))
    assert shown == [(option.heading, option.letter, option.name, option.argument)
                     for option in memmon.OPTIONS]
    assert list(dict.fromkeys(heading for heading, *_ in shown)) == [
        'Limits', 'When to restart', 'Telling', 'Looking']


def test_help_has_all_the_words_of_the_rows() -> None:
    words = ' '.join(memmon.format_help().split())
    for option in memmon.OPTIONS:
        assert f'{option.flags.strip()} {option.help}' in words


def test_option_with_an_argument_is_one_with_a_parser() -> None:
    for option in memmon.OPTIONS:
        assert bool(option.argument) == bool(option.parse)
        assert option.parse or option.default is False


@pytest.mark.parametrize('name, default', [('kind', 'rss'),
                                           ('sendmail_program', '/usr/sbin/sendmail -t -i')])
def test_help_shows_the_defaults(name: str, default: str) -> None:
    assert [option.default for option in memmon.OPTIONS if option.name == name] == [default]
    assert default in ' '.join(memmon.format_help().split())


DEFAULTS = Options(
    limits=(Limit('any', '*', Size(1), NO_SIZE, '-a 1'),), total=None, cumulative=False,
    kind='rss', patience=0, restarts=(math.inf, 0), on=(), warn=0, dry_run=False, email=(),
    sendmail_program='/usr/sbin/sendmail -t -i', uptime=math.inf, name='', verbose=False,
    metrics='', check=False, config='', help=False, version=False)
LIMITS = (
    Limit('program', 'foo', Size(2048), NO_SIZE, '-p foo=2KB'),
    Limit('program', 'x:y', NO_SIZE, NO_SIZE, '--program x:y=none'),
    Limit('groupname', 'bar', QUARTER, HALF, '-g bar=25%..50%'),
    Limit('any', '*', Size(1024), NO_SIZE, '--any 1KB'),
)


@pytest.mark.parametrize('args, expected', [
    ('-a 1', DEFAULTS),
    # Limits are in the order of their options, whatever the order they are given in.
    ('--any 1KB -g bar=25%..50% -p foo=2KB --program x:y=none', DEFAULTS._replace(limits=LIMITS)),
    ('-a 1 -a 1KB --any=1KB', DEFAULTS._replace(limits=LIMITS[3:])),
    ('-t 80%%', DEFAULTS._replace(
        limits=(), total=Limit('total', '*', Size(0, 80), NO_SIZE, '-t 80%%'))),
    ('-t5 -t1..2', DEFAULTS._replace(
        limits=(), total=Limit('total', '*', Size(1), Size(2), '-t 1..2'))),
    ('-a 1 -c -v', DEFAULTS._replace(cumulative=True, verbose=True)),
    ('-cva1', DEFAULTS._replace(cumulative=True, verbose=True)),
    ('-a 1 -k RSS -f 5m -r 3/1h -w 80 --dry-run', DEFAULTS._replace(
        patience=300, restarts=(3, 3600), warn=80, dry_run=True)),
    ('-a 1 -o warn=a -o after=b --on warn=c', DEFAULTS._replace(
        on=(('warn', 'a'), ('after', 'b'), ('warn', 'c')))),
    ('-a 1 -m a@b,c@d -m e --email=f', DEFAULTS._replace(email=('a@b', 'c@d', 'e', 'f'))),
    ('-a 1 -s mutt -u 1d -n shop', DEFAULTS._replace(
        sendmail_program='mutt', uptime=86400, name='shop')),
    ('-u 1d -u 2d -a 1', DEFAULTS._replace(uptime=172800)),
    ('--check', DEFAULTS._replace(limits=(), check=True)),
    ('--check --config /etc/x.conf', DEFAULTS._replace(
        limits=(), check=True, config='/etc/x.conf')),
    ('-h', DEFAULTS._replace(limits=(), help=True)),
    ('-V', DEFAULTS._replace(limits=(), version=True)),
    # What configurations that are in use say.
    ('--any 1 --cumulative --sendmail=mutt --uptime=5m --group=bar=25%..50%', DEFAULTS._replace(
        limits=(LIMITS[2]._replace(given='--groupname bar=25%..50%'),
                DEFAULTS.limits[0]._replace(given='--any 1')),
        cumulative=True, sendmail_program='mutt', uptime=300)),
])
def test_options_are_read(args: str, expected: Options) -> None:
    assert options(args)._replace(given='') == expected


@pytest.mark.parametrize('args, given', [
    ('-a 1', '-a 1'),
    ('-m bob -a 1 --dry-run -v -c -w 80 -o after=true -k rss -u 1d', '-a 1 --dry-run -c -k rss'),
    ('-r 3/1h --any=1KB --for 5m -p x=2KB -t 80%%',
     '-r 3/1h --any 1KB --for 5m -p x=2KB -t 80%%'),
])
def test_options_that_say_what_is_restarted_when_are_shown_as_given(args: str, given: str) -> None:
    assert options(args).given == given


@pytest.mark.parametrize('args', [
    '-g environment=3072MB -m sysops+supervisord@example.com',
    '--program=bosun=150MB --email=a@example.com',
    '-c -p foo=50MB -g bar=10kB --any 250 -s mutt -m me@example.com -u 1d -n myproject',
])
def test_command_line_in_use_is_accepted(args: str) -> None:
    assert options(args).limits


SEE_HELP = 'memmon --help lists the options'
NO_LIMIT = ('nothing to watch: give a limit with -p, -g, -a or -t, such as -a 200MB; see memmon '
            '--help')
OF_ITS_OWN = 'each NAME=SIZE needs a -p or -g of its own'


def run_main(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *args: str
             ) -> tuple[int, str, str]:
    """Run memmon in this process where supervisord has not started it."""
    monkeypatch.setattr(sys, 'argv', ['memmon', *args])
    for name in [name for name in os.environ if name.startswith('SUPERVISOR_')]:
        monkeypatch.delenv(name)
    return (memmon.main(), *capfd.readouterr())


@pytest.mark.parametrize('args, error', [
    ([], NO_LIMIT),
    (['-m', 'bob@example.com'], NO_LIMIT),
    (['-a', 'none'], NO_LIMIT),
    (['-p', 'web=none', '-g', 'web=none', '-a', 'none', '--dry-run', '-v'], NO_LIMIT),
    (['-x'], f'option -x not recognized; {SEE_HELP}'),
    (['--nonsense'], f'option --nonsense not recognized; {SEE_HELP}'),
    (['-p'], f'option -p requires argument; {SEE_HELP}'),
    (['--verbose=yes', '-a', '1MB'], f'option --verbose must not have an argument; {SEE_HELP}'),
    (['-p', 'web'], "-p: 'web' is not NAME=SIZE, such as web=200MB"),
    (['--program==1MB'], "--program: '=1MB' is not NAME=SIZE, such as web=200MB"),
    (['-g', 'web=much'], f"-g: 'much' {NOT_A_SIZE}"),
    (['-a', '0'], f"-a: '0' {NOT_A_SIZE}"),
    (['-a', ''], f"-a: '' {NOT_A_SIZE}"),
    (['-a', '-5MB'], f"-a: '-5MB' {NOT_A_SIZE}"),
    (['-a', '1MB', '-k', 'uss'],
     "-k: 'uss' is not a measure of memory: give rss, pss or private"),
    (['-a', '1MB', '-s', ' '], "-s: ' ' is not one line of text"),
    (['-a', '1MB', '-n', 'a\nb'], r"-n: 'a\nb' is not one line of text"),
    (['-p', 'web', '200MB'], 'unexpected argument \'200MB\': write -p web=200MB'),
    (['--program', 'web', '200MB', '-v'],
     'unexpected argument \'200MB\': write --program web=200MB'),
    (['-g', 'web', '1GB'], "unexpected argument '1GB': write -g web=1GB"),
    (['-p', 'a=500MB', 'b=300MB'], f"unexpected argument 'b=300MB': {OF_ITS_OWN}"),
    (['-p', 'a=500MB', 'b=300MB', '-v'], f"unexpected argument 'b=300MB': {OF_ITS_OWN}"),
    (['-p', 'a=500MB', '300MB'], f"unexpected argument '300MB': {SEE_HELP}"),
    (['-n', 'a', 'b'], f"unexpected argument 'b': {SEE_HELP}"),
    (['please'], f"unexpected argument 'please': {SEE_HELP}"),
    (['-a', '1MB', '--config', 'x'],
     '--config goes with --check: supervisord tells a listener where it is'),
    (['-a', '1MB'], (
        'memmon is a supervisor event listener, to be started by supervisord from a section like: '
        '[eventlistener:memmon] command=memmon -a 200MB events=TICK_60; for one look at what runs '
        'now: memmon --check -a 200MB')),
    # No password is shown.
    (['-a', '1MB', '-o', 'after=curl', 'https://bob:s3/cret@hook'],
     f"unexpected argument 'https://hook': {SEE_HELP}"),
    (['-a', '1MB', '-o', 'aftr=curl https://bob:s3cret@hook'],
     "-o: 'aftr=curl https://hook' is not EVENT=COMMAND, where EVENT is one of before, after, "
     'failed, held, warn'),
    # Nothing reaches the terminal raw.
    (['-p', 'w\x1b[2J', '2\u202eMB'],
     r"unexpected argument '2\u202eMB': write -p w\x1b[2J=2\u202eMB"),
    (['--\x1b[2J\u2028x'], rf'option --\x1b[2J\u2028x not recognized; {SEE_HELP}'),
    (['-p', 'a\x9b=\u2028'], f"-p: '\\u2028' {NOT_A_SIZE}"),
])
def test_usage_error_is_one_line_and_status_2(args: list[str], error: str,
                                              monkeypatch: pytest.MonkeyPatch,
                                              capfd: pytest.CaptureFixture[str]) -> None:
    assert run_main(monkeypatch, capfd, *args) == (2, '', f'memmon: {error}\n')


@pytest.mark.parametrize('args, out', [
    (['-h'], memmon.format_help()), (['--help'], memmon.format_help()),
    (['-a', '200MB', '--he'], memmon.format_help()), (['-hV'], memmon.format_help()),
    (['-V'], f'memmon {memmon.__version__}\n'), (['--version'], f'memmon {memmon.__version__}\n'),
])
def test_help_and_version_go_to_stdout(args: list[str], out: str, monkeypatch: pytest.MonkeyPatch,
                                       capfd: pytest.CaptureFixture[str]) -> None:
    assert run_main(monkeypatch, capfd, *args) == (0, out, '')


@pytest.mark.parametrize('env, error', [
    ({'SUPERVISOR_ENABLED': '1'}, (
        'supervisord has no RPC server for memmon to call: add a [unix_http_server] and a '
        '[rpcinterface:supervisor] section to supervisord.conf')),
    *(({'SUPERVISOR_SERVER_URL': url}, (
        f"the URL of supervisord is '{shown}': it must be unix://PATH or http://HOST:PORT"))
      for url, shown in [
          ('tcp://bob:secret@localhost', 'tcp://localhost'),
          ('http://bob:sec/ret@', 'http://'), ('tcp://bob:se@c/ret@h/x', 'tcp://h/x'),
          ('http://bob:secret@h:port', 'http://h:port'), ('unix://', 'unix://'),
          ('http://', 'http://'), ('http://[::1', 'http://[::1'), ('x\x1b', 'x\\\\x1b')]),
])
def test_server_that_cannot_be_is_told_without_its_password(env: dict[str, str], error: str
                                                            ) -> None:
    with pytest.raises(memmon.UsageError) as raised:
        memmon.find_server(env)
    assert str(raised.value) == error


@pytest.mark.parametrize('command', [['-m', 'memmon'], [memmon.__file__],
                                     ['-OO', memmon.__file__]], ids=' '.join)
def test_memmon_is_the_same_however_it_is_run(command: list[str]) -> None:
    env = {**os.environ, 'PYTHONPATH': os.path.dirname(memmon.__file__), 'PYTHONUTF8': '1'}
    done = subprocess.run([sys.executable, *command, '--help'], env=env, stdout=subprocess.PIPE,
                          check=True)
    assert done.stdout.decode() == memmon.format_help()
