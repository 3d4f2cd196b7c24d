from typing import List

import pytest

import memmon

MB = 2 ** 20


def limits(*argv: str) -> List[memmon.Limit]:
    return list(memmon.parse_args(argv).limits)


def limit_of(namespec: str, *argv: str) -> str:
    """Return the option whose limit applies to a process, as it was given."""
    group, name = namespec.split(':')
    limit = memmon.limit_of(memmon.Process(group, name, 1, 0, 'RUNNING'), limits(*argv))
    return limit.given if limit else ''


@pytest.mark.parametrize('processes, option, covered', [
    ('web:web web:worker', '-p web', 'web:web'),
    ('queue:queue_00 queue:queue_01', '-p queue', 'queue:queue_00 queue:queue_01'),
    ('pool:queue_00 pool:queue_01', '-p queue', 'pool:queue_00 pool:queue_01'),
    ('q:00 q:01', '-p q', 'q:00 q:01'),
    ('web:web web2:web2', '-p web', 'web:web'),
    ('web:web web_2:web_2', '-p web', 'web:web'),
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
    ('a=b:a=b a:a', '-p a=b', 'a=b:a=b'),
    ('queue:queue_00 q:00 web:queue', '-g q*', 'queue:queue_00 q:00'),
    ('queue:queue_00 Queue:x', '-g Q*', 'Queue:x'),
    ('web:web web:worker web2:web2', '-g web', 'web:web web:worker'),
    ('web:web queue:queue_00', '-a', 'web:web queue:queue_00'),
])
def test_limit_of_covers(processes: str, option: str, covered: str) -> None:
    flag, _, name = option.partition(' ')
    argv = [flag, f'{name}=1MB' if name else '1MB']
    assert [process for process in processes.split() if limit_of(process, *argv)] == covered.split()


@pytest.mark.parametrize('namespec, argv, given', [
    ('big:big', '-p big=1GB -a 200MB', '-p big=1GB'),
    ('big:big', '-a 200MB -p big=1GB', '-p big=1GB'),
    ('a:x', '-g a=100MB -p a:x=50MB -a 10MB', '-p a:x=50MB'),
    ('a:y', '-g a=100MB -p a:x=50MB -a 10MB', '-g a=100MB'),
    ('b:y', '-g a=100MB -p a:x=50MB -a 10MB', '-a 10MB'),
    ('a:x', '-p *=1MB -p x=2MB', '-p x=2MB'),
    ('a:x', '-p x*=1MB -p *=2MB', '-p x*=1MB'),
    ('a:x', '-p x=1MB -p x=2MB', '-p x=1MB'),
    ('a:x', '-p a:x=1MB -p x=2MB', '-p a:x=1MB'),
    ('a:x', '-g *=1MB -g a=2MB', '-g a=2MB'),
    ('a:x', '-p ?=1MB -g a=2MB', '-p ?=1MB'),
    ('q:q_01', '-p q=1MB -p q_01=2MB', '-p q_01=2MB'),
    ('q:q_01', '-p q_*=1MB -p q=2MB', '-p q=2MB'),
    ('a:x', '-a 1MB -a 2MB', '-a 2MB'),
    ('a:x', '--program=x=1MB', '--program x=1MB'),
    ('a:x', '-g b=1MB', ''),
])
def test_limit_of_takes_the_most_specific(namespec: str, argv: str, given: str) -> None:
    assert limit_of(namespec, *argv.split()) == given
