"""What the project says of itself."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import memmon

ROOT = Path(__file__).parent.parent


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding='utf-8')


def test_changes_begin_with_this_version() -> None:
    headings = re.findall(r'^(\S+) \(\d{4}-\d\d-\d\d\)\n(-+)$', read('CHANGES.rst'), re.M)
    assert headings[0][0] == memmon.__version__
    versions = [tuple(map(int, version.split('.'))) for version, _ in headings]
    assert versions == sorted(set(versions), reverse=True)


def test_setup_has_this_version() -> None:
    pytest.importorskip('setuptools')
    done = subprocess.run([sys.executable, 'setup.py', '--version'], cwd=ROOT, check=True,
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert done.stdout.decode().split()[-1] == memmon.__version__


def test_readme_shows_the_help() -> None:
    assert textwrap.indent(memmon.format_help(), '    ') in read('README.rst')


def test_python_versions_agree() -> None:
    classifiers = re.findall(r'Python :: (3\.\d+)', read('setup.py'))
    assert classifiers == [f'3.{minor}' for minor in range(8, 8 + len(classifiers))]
    environments = read('tox.ini').partition('env_list = ')[2].partition('\n')[0]
    assert [f'3.{minor}' for minor in re.findall(r'py3(\d+)', environments)] == classifiers
    assert f'>={classifiers[0]}' in read('setup.py')


NOT_IN_SDIST = {'.gitignore', '.ci', '.github'}


@pytest.mark.skipif(not (ROOT / '.git').exists(), reason='needs the repository')
def test_sdist_has_all_that_the_repository_has(tmp_path: Path) -> None:
    pytest.importorskip('setuptools')
    # In a copy: an egg-info that is there already would decide what goes in.
    files = subprocess.run(['git', 'ls-files', '-z'], cwd=ROOT, check=True,
                           stdout=subprocess.PIPE).stdout.decode().split('\0')[:-1]
    files = [name for name in files if (ROOT / name).is_file()]
    for name in files:
        copy = tmp_path / 'copy' / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes((ROOT / name).read_bytes())
    subprocess.run([sys.executable, 'setup.py', '-q', 'sdist', '--formats=tar', '-d', tmp_path],
                   cwd=tmp_path / 'copy', check=True, stderr=subprocess.DEVNULL)
    listed = subprocess.run(['tar', '-tf', *tmp_path.glob('*.tar')], check=True,
                            stdout=subprocess.PIPE).stdout.decode().splitlines()
    packed = {name.partition('/')[2] for name in listed}
    missing = {name for name in files if name not in packed}
    assert {name.partition('/')[0] for name in missing} <= NOT_IN_SDIST, missing
