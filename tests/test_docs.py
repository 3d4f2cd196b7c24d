"""The manual page."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import memmon

DOCS = Path(__file__).parent.parent / 'docs'
PAGE = DOCS / 'memmon.1'

sys.path.insert(0, str(DOCS))

import make_manual  # noqa: E402


def test_page_is_made_of_its_source_and_the_options() -> None:
    assert PAGE.read_text(encoding='utf-8') == make_manual.manual(), (
        'run: tox run -e manual')


@pytest.mark.skipif(not shutil.which('man'), reason='needs man')
def test_page_shows_each_option_as_the_help_does() -> None:
    done = subprocess.run(['man', '--warnings', '-l', str(PAGE)], capture_output=True, timeout=60,
                          env={'MANWIDTH': '500', 'LC_ALL': 'C.UTF-8', 'PATH': '/usr/bin:/bin'})
    assert (done.returncode, done.stderr) == (0, b'')
    page = ' '.join(done.stdout.decode().split())
    for option in memmon.OPTIONS:
        flags = option.flags.strip()
        assert f'{flags} {option.help}' in page, option


@pytest.mark.skipif(not shutil.which('mandoc'), reason='needs mandoc')
def test_page_is_clean_for_mandoc() -> None:
    done = subprocess.run(['mandoc', '-Tlint', str(PAGE)], capture_output=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, b'')


def test_page_names_each_variable_of_the_commands() -> None:
    reading = memmon.Reading(memmon.ALL, memmon.NO_LIMIT, 1, 1, memmon.MEASURES['rss'], 1, 1, 1)
    source = (DOCS / 'memmon.rst').read_text(encoding='utf-8')
    names = memmon.variables('after', memmon.Report('restarted', '', reading))
    assert [name for name in names if f'``{name}``' not in source] == []
