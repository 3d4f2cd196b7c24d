"""What the project says of itself."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import memmon

ROOT = Path(__file__).parent.parent


def test_readme_shows_the_help() -> None:
    readme = (ROOT / 'README.rst').read_text(encoding='utf-8')
    assert textwrap.indent(memmon.__doc__ or '', '    ') in readme


def test_changes_begin_with_this_version() -> None:
    changes = (ROOT / 'CHANGES.rst').read_text(encoding='utf-8')
    latest = re.search(r'^(\S+) \(\d{4}-\d\d-\d\d\)$', changes, re.M)
    assert latest and latest.group(1) == memmon.__version__
