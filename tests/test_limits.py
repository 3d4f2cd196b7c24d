"""Which limit applies to which process."""

from __future__ import annotations

import time

import pytest
from samples import options, process

import memmon
from memmon import Limits


def applied(namespec: str, args: str) -> str:
    """Return the option whose limit applies to a process, as it was given."""
    limit = Limits(options(args).limits).apply_to(process(namespec))
    return limit.given if limit else ''


@pytest.mark.parametrize('processes, option, covered', [
    ('web:web web:worker', '-p web', 'web:web'),
    ('queue:queue_00 queue:queue_01', '-p queue', 'queue:queue_00 queue:queue_01'),
    ('pool:queue_00 pool:queue_01', '-p queue', 'pool:queue_00 pool:queue_01'),
    ('q:00 q:01', '-p q', 'q:00 q:01'),
    ('q:00 q:01', '-p q:q', 'q:00 q:01'),
    ('q:00 q:01', '-p 01', 'q:01'),
    ('web:web web2:web2', '-p web', 'web:web'),
    ('web:web web_2:web_2', '-p web', 'web:web'),
    ('node-18:node-18', '-p node', ''),          # a program of one process
    ('g:node-18 g:node.19', '-p node', 'g:node-18 g:node.19'),
    ('web:web web:web2', '-p web', 'web:web'),
    ('tcp:tcp-8001 tcp:tcp-8002 tcp:tcp', '-p tcp', 'tcp:tcp-8001 tcp:tcp-8002 tcp:tcp'),
    ('pool:queue_00 pool:queue_01', '-p queue_00', 'pool:queue_00'),
    ('pool:queue_00 other:queue_00', '-p pool:queue', 'pool:queue_00'),
    ('pool:queue_00 pool:queue_01', '-p pool:queue_01', 'pool:queue_01'),
    ('foo:bar bar:foo', '-p foo:bar', 'foo:bar'),
    ('queue:queue_00 web:queue_00 web:web', '-p queue:*', 'queue:queue_00'),
    ('queue:queue_00 queue:queue_10 q:00', '-p queue_0?', 'queue:queue_00'),
    ('q:00 web:query web:web', '-p q*', 'q:00 web:query'),
    ('web:web Web:Web', '-p [w]eb', 'web:web'),
    ('web:web web.x:web.x', '-p web.*', 'web.x:web.x'),  # no regular expression
    ('[x]:[x] x:x', '-p [x]', '[x]:[x] x:x'),            # a name first, then a pattern
    ('a=b:a=b a:a', '-p a=b', 'a=b:a=b'),
    ('queue:queue_00 q:00 web:queue', '-g q*', 'queue:queue_00 q:00'),
    ('queue:queue_00 Queue:x', '-g Q*', 'Queue:x'),
    ('web:web web:worker web2:web2', '-g web', 'web:web web:worker'),
    ('web:worker worker:web', '-g worker', 'worker:web'),
    ('web:web queue:queue_00', '-a', 'web:web queue:queue_00'),
])
def test_limit_covers(processes: str, option: str, covered: str) -> None:
    flag, _, name = option.partition(' ')
    args = f'{flag} {name}=1MB' if name else f'{flag} 1MB'
    assert [process for process in processes.split() if applied(process, args)] == covered.split()


@pytest.mark.parametrize('namespec, args, given', [
    ('big:big', '-p big=1GB -a 200MB', '-p big=1GB'),
    ('big:big', '-a 200MB -p big=1GB', '-p big=1GB'),
    ('a:x', '-g a=100MB -p a:x=50MB -a 10MB', '-p a:x=50MB'),
    ('a:y', '-g a=100MB -p a:x=50MB -a 10MB', '-g a=100MB'),
    ('b:y', '-g a=100MB -p a:x=50MB -a 10MB', '-a 10MB'),
    ('a:x', '-p *=1MB -p x=2MB', '-p x=2MB'),
    ('a:x', '-p x*=1MB -p *=2MB', '-p x*=1MB'),
    ('a:x', '-p *:*=1MB -p x=2MB', '-p x=2MB'),
    ('a:x', '-p x=1MB -p x=2MB', '-p x=1MB'),
    ('a:x', '-p x=1MB -p a:x=2MB', '-p x=1MB'),
    ('a:x', '-p a:x=1MB -p x=2MB', '-p a:x=1MB'),
    ('a:x', '-g *=1MB -g a=2MB', '-g a=2MB'),
    ('a:x', '-p ?=1MB -g a=2MB', '-p ?=1MB'),
    ('q:q_01', '-p q=1MB -p q_01=2MB', '-p q_01=2MB'),
    ('q:q_01', '-p q_*=1MB -p q=2MB', '-p q=2MB'),
    ('q:q_01', '-p q:*=1MB -p q_0?=2MB', '-p q:*=1MB'),
    ('a:x', '-a 1MB -a 2MB', '-a 2MB'),
    ('a:x', '--program=x=1MB', '--program x=1MB'),
    ('a:x', '-g b=1MB', ''),
    ('a:x', '-p x=none -a 1MB', '-p x=none'),
    ('a:x', '-p x=1MB -g a=none -a none', '-p x=1MB'),
])
def test_most_specific_limit_applies(namespec: str, args: str, given: str) -> None:
    assert applied(namespec, args) == given


@pytest.mark.parametrize('namespec, program', [
    ('web:web', 'web'), ('web-1:web-1', 'web-1'), ('g:web', 'web'), ('g:web_00', 'web'),
    ('g:web-1', 'web'), ('g:web.1', 'web'), ('g:web1', 'web1'), ('g:web_1_2', 'web_1'),
    ('g:00', 'g'), ('7:7', '7'), ('g:_1', ''), ('g:web_', 'web_'),
])
def test_program_of(namespec: str, program: str) -> None:
    assert memmon.program_of(process(namespec)) == program


def test_thousand_patterns_take_no_time() -> None:
    """More than fnmatch would keep compiled."""
    args = [arg for number in range(1000) for arg in ('-p', f'web{number}-*=1MB')]
    limits = Limits(memmon.parse_args(args).limits)
    processes = [process(f'pool:web{number}-1') for number in range(0, 1000, 10)]
    began = time.process_time()
    seen = [limits.apply_to(each) for each in processes]
    assert limits.unmatched(processes) == [
        limit for number, limit in enumerate(limits.limits) if number % 10]
    assert time.process_time() - began < 3
    assert [limit.pattern if limit else '' for limit in seen] == [
        f'web{number}-*' for number in range(0, 1000, 10)]
