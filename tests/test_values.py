"""Strings that become values, and values that become strings."""

from __future__ import annotations

import email.utils
import re
import sys
from typing import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import GB, KB, MB, TB
from supervisor.datatypes import byte_size

import memmon
from memmon import Size


@pytest.mark.parametrize('text, size', [
    ('1', 1),
    ('1048576', MB),
    ('10kB', 10 * KB),
    ('200MB', 200 * MB),
    ('200mb', 200 * MB),
    ('3072Mb', 3 * GB),
    ('2GB', 2 * GB),
    ('2TB', 2 * TB),
    ('1.5GB', 1536 * MB),
    ('0.5k', 512),
    ('.5M', 512 * KB),
    ('1.5', 1),
    ('3K', 3 * KB),
    ('3m', 3 * MB),
    ('3G', 3 * GB),
    ('3T', 3 * TB),
    (' 3 MB', 3 * MB),
    ('+3MB ', 3 * MB),
    ('9007199254740993', 9007199254740993),  # 2**53 + 1, which no float can be
    ('0.001K', 1),
])
def test_parse_size(text: str, size: int) -> None:
    assert memmon.parse_size(text) == size


@pytest.mark.parametrize('text', [
    '', ' ', '0', '0MB', '-1', '-5MB', '0.0001K', '0.9', 'MB', '20XB', '1e3', 'inf', 'nan',
    '1,5GB', '5B', '1.GB', '5 5', '1_0MB', '5%', 'none', '٣MB', '9' * 31, '9' * 5000,
])
def test_parse_size_refuses(text: str) -> None:
    with pytest.raises(ValueError) as error:
        memmon.parse_size(text)
    assert str(error.value) == (
        f'{text!r} is not a size: give a number of bytes above 0, or a number with KB, MB, GB or '
        'TB, such as 200MB')


@given(st.one_of(
    st.text(), st.from_regex(r'\s?[-+]?[0-9]{1,25}\s?([kKmMgG][bB])?', fullmatch=True)))
def test_parse_size_reads_what_supervisor_reads(text: str) -> None:
    """In ASCII, and but for underscores."""
    try:
        size = byte_size(text)
    except ValueError:
        return
    if not text.isascii():
        return
    if size > 0 and '_' not in text:
        assert memmon.parse_size(text) == size
    else:
        with pytest.raises(ValueError):
            memmon.parse_size(text)


@pytest.mark.parametrize('parse', [
    memmon.parse_addresses, memmon.parse_any, memmon.parse_command, memmon.parse_duration,
    memmon.parse_file, memmon.parse_kind, memmon.parse_line, memmon.parse_name_and_limit,
    memmon.parse_on, memmon.parse_percent, memmon.parse_rate, memmon.parse_total,
])
@given(text=st.one_of(st.text(), st.text('0123456789.%/=msKMGB none,@"<> ')))
def test_parser_returns_a_value_or_raises_one_line(parse: Callable[[str], object],
                                                   text: str) -> None:
    try:
        parse(text)
    except ValueError as error:
        assert str(error).isprintable()


@pytest.mark.parametrize('text, secs', [
    ('90', 90), ('90s', 90), ('5m', 300), ('2h', 7200), ('1d', 86400), ('2D', 172800),
    ('1.5h', 5400), ('.5m', 30), (' 5 m ', 300), ('+5', 5), ('1.9', 1),
    ('999999999d', 999999999 * 86400),
])
def test_parse_duration(text: str, secs: int) -> None:
    assert memmon.parse_duration(text) == secs


@pytest.mark.parametrize('text', [
    '', '0', '-1', 's', '5w', '1h30m', 'soon', '0.5', '1000000000d', '9' * 16 + 'd',
])
def test_parse_duration_refuses(text: str) -> None:
    with pytest.raises(ValueError) as error:
        memmon.parse_duration(text)
    assert str(error.value) == (
        f'{text!r} is not a duration: give a number of seconds above 0, or a number with s, m, h '
        'or d, such as 5m')


@given(st.integers(1, 999999999), st.sampled_from('smhd'))
def test_duration_that_is_accepted_can_be_shown(number: int, unit: str) -> None:
    memmon.format_duration(memmon.parse_duration(f'{number}{unit}'))


@pytest.mark.parametrize('size, machine, in_bytes', [
    (Size(5), GB, 5), (Size(0, 25), GB, GB // 4), (Size(0, 100), GB, GB), (Size(0, 33.3), 10, 3),
])
def test_size_in_bytes(size: Size, machine: int, in_bytes: int) -> None:
    assert size.in_bytes(machine) == in_bytes


@pytest.mark.parametrize('text, name, sizes', [
    ('web=200MB', 'web', (Size(200 * MB), None)),
    ('web:worker=1GB', 'web:worker', (Size(GB), None)),
    ('queue:*=10kB', 'queue:*', (Size(10 * KB), None)),
    ('a=b=5', 'a=b', (Size(5), None)),
    (' web = 5 ', 'web', (Size(5), None)),
    ('web=5..6', 'web', (Size(5), Size(6))),
    ('web=25%', 'web', (Size(0, 25), None)),
    ('web=none', 'web', None),
])
def test_parse_name_and_limit(text: str, name: str, sizes: memmon.Sizes) -> None:
    assert memmon.parse_name_and_limit(text) == (name, sizes)


@pytest.mark.parametrize('text, why', [
    ('web', "'web' is not NAME=SIZE, such as web=200MB"),
    ('', "'' is not NAME=SIZE, such as web=200MB"),
    ('=200MB', "'=200MB' is not NAME=SIZE, such as web=200MB"),
    (' =200MB', "' =200MB' is not NAME=SIZE, such as web=200MB"),
    ('web=', "'' is not a size"),
    ('web=much', "'much' is not a size"),
    ('web=0', "'0' is not a size"),
])
def test_parse_name_and_limit_refuses(text: str, why: str) -> None:
    with pytest.raises(ValueError) as error:
        memmon.parse_name_and_limit(text)
    assert str(error.value).startswith(why)


def test_limit_of_any_is_for_all_names() -> None:
    assert memmon.parse_any('5..6') == ('*', (Size(5), Size(6)))
    assert memmon.parse_any('none') == ('*', None)


def test_limit_of_the_total_is_for_no_name() -> None:
    assert memmon.parse_total('85%..90%') == ('', (Size(0, 85), Size(0, 90)))
    with pytest.raises(ValueError, match="^'none' is not a limit for the total"):
        memmon.parse_total(' None ')


def test_parse_kind_knows_rss() -> None:
    assert memmon.parse_kind(' RSS') == 'rss'
    with pytest.raises(ValueError, match="^'uss' is not a kind of memory: give rss, or pss$"):
        memmon.parse_kind('uss')


@pytest.mark.parametrize('has_pss', [True, False])
def test_parse_kind_knows_pss_where_the_system_does(
        has_pss: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('os.path.exists', lambda path: has_pss)
    if has_pss:
        assert memmon.parse_kind('PSS') == 'pss'
    else:
        with pytest.raises(ValueError, match='^this system does not report PSS: '):
            memmon.parse_kind('PSS')


@pytest.mark.parametrize('text, addresses', [
    ('bob@example.com', ('bob@example.com',)),
    ('sysops+supervisord@example.com', ('sysops+supervisord@example.com',)),
    ("o'brien_{2}@host-1.example.com", ("o'brien_{2}@host-1.example.com",)),
    ('root', ('root',)),
    ('a@example.com,b@example.com', ('a@example.com', 'b@example.com')),
    (' a@example.com , b@example.com, ', ('a@example.com', 'b@example.com')),
    ('<bob@example.com>', ('bob@example.com',)),
    ('Bob <bob@example.com>', ('Bob <bob@example.com>',)),
    ('"Smith, Bob" <bob@example.com>, root', ('"Smith, Bob" <bob@example.com>', 'root')),
    ('"Bob"<bob@example.com>', ('Bob <bob@example.com>',)),
    ('Bob B. Smith <bob@example.com>', ('"Bob B. Smith" <bob@example.com>',)),
    ('Jürgen <j@example.com>', ('=?utf-8?q?J=C3=BCrgen?= <j@example.com>',)),
])
def test_parse_addresses(text: str, addresses: tuple[str, ...]) -> None:
    assert memmon.parse_addresses(text) == addresses


@pytest.mark.parametrize('text', [
    '', ' ', ',', 'bob@', '@example.com', 'bob@exämple.com', 'a@b@c', 'bob example.com', 'a;b',
    'a,,b', 'a <b> c', 'a <b', 'a b>', '"a <b@c>', 'a@b <c@d>', 'a: b@c;', '<>', '<a, b>',
    'x(y <a@b>', 'x) <a@b>', 'x [y] <a@b>', 'x; <a@b>', 'x: <a@b>', 'x\\ <a@b>', '"x\\" <a@b>',
    'bob(x)@example.com', r'a\b@example.com', 'a[1]@example.com',
])
def test_parse_addresses_refuses(text: str) -> None:
    with pytest.raises(ValueError) as error:
        memmon.parse_addresses(text)
    assert str(error.value).endswith(' is not an email address, nor several separated by commas')


@given(st.text('ab@<>"\\,;:()[] .ä'))
def test_parse_addresses_gives_addresses_of_the_text(text: str) -> None:
    try:
        addresses = memmon.parse_addresses(text)
    except ValueError:
        return
    assert addresses
    for _, address in email.utils.getaddresses(addresses):
        assert address in text and re.fullmatch('[^@]+(@[^@]+)?', address)


@pytest.mark.parametrize('text', ['a@b\nBcc: c@d', 'a@b\r', 'a@b,\tc@d', 'a@b\x85', 'a@b\0'])
def test_parse_addresses_refuses_more_than_a_line(text: str) -> None:
    with pytest.raises(ValueError) as error:
        memmon.parse_addresses(text)
    assert str(error.value) == f'{text!r} is not one line of text'


@pytest.mark.parametrize('text', ['', 'shop', 'Läden №1', 'a [b]: =?utf-8?q?x?='])
def test_parse_line(text: str) -> None:
    assert memmon.parse_line(text) == text


@pytest.mark.parametrize('size, text', [
    (0, '0'), (1, '1'), (1000, '1000'), (1023, '1023'), (KB, '1KB'), (1536, '1.5KB'),
    (MB - 1, '1MB'),                     # not 1024KB
    (int(1023.94 * KB), '1023.9KB'), (int(1023.96 * KB), '1MB'),
    (200 * MB, '200MB'), (1023 * MB, '1023MB'), (int(212.44 * MB), '212.4MB'),
    (3 * GB // 2, '1.5GB'), (5 * TB, '5TB'), (5000 * TB, '5000TB'), (0.25, '0.2'),
])
def test_format_size(size: float, text: str) -> None:
    assert memmon.format_size(size) == text


@given(st.integers(1, sys.maxsize))
def test_size_that_is_shown_can_be_given(size: int) -> None:
    assert memmon.parse_size(memmon.format_size(size)) == pytest.approx(size, rel=0.05)


@pytest.mark.parametrize('secs, text', [
    (0, '0:00:00'), (-3, '0:00:00'), (59.9, '0:00:59'), (725, '0:12:05'),
    (90061, '1 day, 1:01:01'),
])
def test_format_duration(secs: float, text: str) -> None:
    assert memmon.format_duration(secs) == text


@pytest.mark.parametrize('error, text', [
    (OSError('timed out'), 'timed out'),
    (OSError(), 'OSError'),
    (OSError(' \n'), 'OSError'),
    ('220 mail ESMTP\r\n', '220 mail ESMTP'),
    ('first\nlast', 'first ... last'),
    ('same\nsame', 'same ... same'),
    ('FAILED: Traceback:\n  File "x"\nPermissionError: no\n\n',
     'FAILED: Traceback: ... PermissionError: no'),
    ('a\x85b\u2028c\x0cd', 'a ... d'),
])
def test_first_and_last_line(error: object, text: str) -> None:
    assert memmon.first_and_last_line(error) == text
