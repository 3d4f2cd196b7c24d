"""Write docs/memmon.1 from docs/memmon.rst and from the rows of memmon's options."""

from __future__ import annotations

import re
import sys
import textwrap
from pathlib import Path

from docutils.core import publish_string

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import memmon  # noqa: E402


def option_list() -> str:
    """Return the options, as a definition list, under the headings of the help."""
    lines: list[str] = []
    heading = ''
    for option in memmon.OPTIONS:
        if option.heading != heading:
            heading = option.heading
            lines += ['', f'{heading}:', '']
        letter = f'**-{option.letter}**, ' if option.letter else ''
        argument = f' *{option.argument}*' if option.argument else ''
        lines += [f'{letter}**--{option.name}**{argument}', f'    {option.help}']
    return '\n'.join(lines)


def manual() -> str:
    """Return the manual page in the language of man."""
    source = (HERE / 'memmon.rst').read_text(encoding='utf-8')
    source = source.replace('@OPTIONS@', option_list())
    page: bytes = publish_string(source, writer_name='manpage', settings_overrides={
        'report_level': 2, 'halt_level': 2, 'output_encoding': 'utf-8'})
    # The date of the day would make each page another.
    changes = (HERE.parent / 'CHANGES.rst').read_text(encoding='utf-8')
    date = re.findall(r'^\S+ \((.*)\)$', changes, re.M)[0]
    text = re.sub(r'^(\.TH \S+ \S+ )"[^"]*" "[^"]*"', rf'\1"{date}" "memmon {memmon.__version__}"',
                  page.decode(), flags=re.M)
    # What mandoc -Tlint finds: a paragraph after a heading, an unknown font, and long lines.
    text = re.sub(r'^(\.SH .*\n)\.sp\n', r'\1', text, flags=re.M)
    text = text.replace('.nf\n.ft C\n', '.EX\n').replace('.ft P\n.fi\n', '.EE\n')
    return '\n'.join(map(wrap, text.split('\n')))


def wrap(line: str) -> str:
    """Return a line as several ones, unless it is a request or fits into 80 columns."""
    if line.startswith('.') or len(line) <= 80:
        return line
    return textwrap.fill(line, 80, break_long_words=False, break_on_hyphens=False)


if __name__ == '__main__':
    (HERE / 'memmon.1').write_text(manual(), encoding='utf-8')
