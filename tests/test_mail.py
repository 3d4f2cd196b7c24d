"""Headers of mails, which say what they are given and are no more than one."""

from __future__ import annotations

import email
import email.policy
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import options, reading

import memmon
from memmon import News

LONG = 'a-long-name-in-ascii-' * 10 + 'end'
ENCODED = '=?utf-8?q?x=0ABcc=3A_evil=40example.com?='


@pytest.mark.parametrize('text', [
    'memmon: process web:web restarted', '', ' ', LONG, ' '.join([LONG] * 3), '?=',
])
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
    for line in encoded.splitlines():
        assert len(line) <= 78 and line.isprintable()
    for line in encoded.split('\n')[1:]:
        assert line.startswith(' ')


TEXT = st.text(st.characters(blacklist_categories=['Cs']), min_size=1)


@given(TEXT, TEXT)
def test_no_name_becomes_a_header(name: str, subject: str) -> None:
    parsed = options('-a 1 -m bob@example.com')._replace(name=name)
    news = News(logging.INFO, 'line', subject)
    mail = email.message_from_bytes(bytes(memmon.write_mail(parsed, news)))
    assert sorted(map(str.lower, mail.keys())) == [
        'content-transfer-encoding', 'content-type', 'mime-version', 'subject', 'to']
    assert mail['To'] == 'bob@example.com'


@pytest.mark.parametrize('name', ['Läden', ENCODED, LONG, 'a b', "$(touch x)'\"", '%s {}'])
def test_subject_is_read_as_it_was_written(name: str) -> None:
    news = News(logging.INFO, 'line', f'process {name}:{name} restarted', reading())
    mail = memmon.write_mail(options('-a 1 -m bob'), news)
    seen = email.message_from_bytes(bytes(mail), policy=email.policy.default)['Subject']
    assert seen == f'memmon: process {name}:{name} restarted'
