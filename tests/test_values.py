import pytest
from hypothesis import given
from hypothesis import strategies as st
from supervisor.datatypes import byte_size

import memmon

KB, MB, GB, TB = 2 ** 10, 2 ** 20, 2 ** 30, 2 ** 40


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
    ('3K', 3 * KB),
    ('3m', 3 * MB),
    ('3G', 3 * GB),
    ('3T', 3 * TB),
    (' 3 MB', 3 * MB),
])
def test_parse_size(text: str, size: int) -> None:
    assert memmon.parse_size(text) == size


@pytest.mark.parametrize('text', [
    '', ' ', '0', '0MB', '-1', '-5MB', '0.0001K', 'MB', '20XB', '1.5', '1e3', 'inf', 'nan', '1,5GB', '5B', '1.GB',
    '5 5', '9' * 5000,
])
def test_parse_size_refuses(text: str) -> None:
    with pytest.raises(ValueError, match='is not a size'):
        memmon.parse_size(text)


@given(st.one_of(st.text(), st.from_regex(r'\s?[-+]?[0-9_]+\s?([kKmMgG][bB])?', fullmatch=True)))
def test_parse_size_reads_what_byte_size_reads(text: str) -> None:
    try:
        size = byte_size(text)
    except ValueError:
        return
    if size > 0:
        assert memmon.parse_size(text) == size
    else:
        with pytest.raises(ValueError):
            memmon.parse_size(text)


@given(st.text())
def test_parse_size_gives_a_positive_size_or_refuses(text: str) -> None:
    try:
        assert memmon.parse_size(text) > 0
    except ValueError as error:
        assert 'is not a size' in str(error)


@pytest.mark.parametrize('text, secs', [
    ('90', 90), ('90s', 90), ('5m', 300), ('2h', 7200), ('1d', 86400), ('2D', 172800),
])
def test_parse_duration(text: str, secs: int) -> None:
    assert memmon.parse_duration(text) == secs


@pytest.mark.parametrize('text', ['', '0', '-1', 's', '5w', '1.5h', 'soon', '1h30m'])
def test_parse_duration_refuses(text: str) -> None:
    with pytest.raises(ValueError, match='is not a duration'):
        memmon.parse_duration(text)


@pytest.mark.parametrize('text, name, size', [
    ('web=200MB', 'web', 200 * MB),
    ('web:worker=1GB', 'web:worker', GB),
    ('queue:*=10kB', 'queue:*', 10 * KB),
    ('a=b=5', 'a=b', 5),
    (' web = 5 ', 'web', 5),
])
def test_parse_name_and_size(text: str, name: str, size: int) -> None:
    assert memmon.parse_name_and_size(text) == (name, size)


@pytest.mark.parametrize('text, why', [
    ('web', 'is not NAME=SIZE'),
    ('', 'is not NAME=SIZE'),
    ('=200MB', 'is not NAME=SIZE'),
    (' =200MB', 'is not NAME=SIZE'),
    ('web=', "'' is not a size"),
    ('web=much', "'much' is not a size"),
    ('web=0', "'0' is not a size"),
])
def test_parse_name_and_size_refuses(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        memmon.parse_name_and_size(text)


@pytest.mark.parametrize('text, addresses', [
    ('bob@example.com', ['bob@example.com']),
    ('sysops+supervisord@example.com', ['sysops+supervisord@example.com']),
    ('root', ['root']),
    ('a@example.com,b@example.com', ['a@example.com', 'b@example.com']),
    (' a@example.com , b@example.com, ', ['a@example.com', 'b@example.com']),
    ('"Smith, Bob" <bob@example.com>', ['"Smith, Bob" <bob@example.com>']),
])
def test_parse_addresses(text: str, addresses: 'list[str]') -> None:
    assert memmon.parse_addresses(text) == addresses


@pytest.mark.parametrize('text', ['', ' ', ',', 'bob@', '@example.com', 'bob@exämple.com', 'a@b@c', 'a@b\nBcc: c@d'])
def test_parse_addresses_refuses(text: str) -> None:
    with pytest.raises(ValueError):
        memmon.parse_addresses(text)


@pytest.mark.parametrize('size, text', [
    (0, '0'), (1000, '1000'), (KB, '1KB'), (1536, '1.5KB'), (200 * MB, '200MB'), (1023 * MB, '1023MB'),
    (int(212.44 * MB), '212.4MB'), (3 * GB // 2, '1.5GB'), (5 * TB, '5TB'),
])
def test_format_size(size: int, text: str) -> None:
    assert memmon.format_size(size) == text


@pytest.mark.parametrize('secs, text', [(0, '0:00:00'), (-3, '0:00:00'), (725, '0:12:05'), (90061, '1 day, 1:01:01')])
def test_format_duration(secs: int, text: str) -> None:
    assert memmon.format_duration(secs) == text


@pytest.mark.parametrize('error, text', [
    (OSError('timed out'), 'timed out'),
    (OSError(), 'OSError'),
    ('220 mail ESMTP\r\n', '220 mail ESMTP'),
    ('FAILED: Traceback:\n  File "x"\nPermissionError: no\n\n', 'FAILED: Traceback: ... PermissionError: no'),
])
def test_one_line(error: object, text: str) -> None:
    assert memmon.one_line(error) == text
