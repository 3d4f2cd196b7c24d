"""Packaging of memmon."""

import re
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent
MODULE = (HERE / 'memmon.py').read_text(encoding='utf-8')

setup(
    name='memmon',
    version=re.findall(r"^__version__ = '(.+)'$", MODULE, re.M)[0],
    description='A supervisor event listener that restarts programs that use too much memory',
    long_description=(HERE / 'README.rst').read_text(encoding='utf-8'),
    long_description_content_type='text/x-rst',
    author='the memmon developers',
    license='BSD-3-Clause',
    license_files=['LICENSE'],
    py_modules=['memmon'],
    python_requires='>=3.8',
    install_requires=['supervisor>=4.1.0'],
    extras_require={'metrics': ['prometheus_client']},
    entry_points={'console_scripts': ['memmon = memmon:main']},
    keywords='supervisor supervisord memory leak watchdog rss eventlistener superlance memmon',
    data_files=[('share/man/man1', ['docs/memmon.1'])],
    classifiers=[
        'Development Status :: 5 - Production/Stable',
        'Environment :: No Input/Output (Daemon)',
        'Intended Audience :: System Administrators',
        'Operating System :: MacOS',
        'Operating System :: POSIX',
        'Operating System :: POSIX :: Linux',
        'Programming Language :: Python :: 3',
        'Programming Language :: Python :: 3 :: Only',
        'Programming Language :: Python :: 3.8',
        'Programming Language :: Python :: 3.9',
        'Programming Language :: Python :: 3.10',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Programming Language :: Python :: 3.13',
        'Programming Language :: Python :: 3.14',
        'Topic :: System :: Monitoring',
        'Topic :: System :: Systems Administration',
    ],
)
