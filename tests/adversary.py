"""What stands between memmon and supervisord, or memmon and the system, and means no good."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any, Callable

from harness import section
from rpc import Answer, Exchange, forward

ACTOR = str(Path(__file__).parent / 'actor.py')
TINY = '100KB'  # what any process exceeds


def actor(name: str, *args: str, **settings: Any) -> str:
    """Return a section of supervisord.conf for a program that does what files tell it."""
    return section(name, command=shlex.join([sys.executable, '-S', ACTOR, *args]), **settings)


def sleeper(name: str, **settings: Any) -> str:
    """Return a section of supervisord.conf for a program of 1 to 2 MB, which is over TINY."""
    return section(name, command='sleep 1000', **settings)


class Rules:
    """The default answer of a FakeServer: forward, with exceptions for a process and a method.

    The calls in a system.multicall count as those that they are.
    """

    def __init__(self) -> None:
        self.rules: dict[tuple[str, str], Answer] = {}
        self.calls: list[str] = []

    def at(self, method: str, name: str, rule: Answer) -> None:
        """Have a rule answer the next call of a method for a process; it is used once."""
        self.rules[f'supervisor.{method}', name] = rule

    def __call__(self, exchange: Exchange) -> None:
        calls = [(exchange.method, exchange.params)]
        if exchange.method == 'system.multicall':
            calls = [(call['methodName'], call['params']) for call in exchange.params[0]]
        self.calls += [method for method, _ in calls]
        for method, params in calls:
            rule = self.rules.pop((method, str(params[0]) if params else ''), None)
            if rule:
                rule(exchange)
                return
        forward(exchange)

    def count(self, method: str) -> int:
        """Return how often a method was called."""
        return self.calls.count(f'supervisor.{method}')


def first(act: Callable[[], object]) -> Answer:
    """Do something before supervisord hears of the call."""
    def answer(exchange: Exchange) -> None:
        act()
        forward(exchange)
    return answer


def outdated_by(act: Callable[[], object]) -> Answer:
    """Do something between supervisord's answer and its arrival."""
    def answer(exchange: Exchange) -> None:
        response = exchange.server.ask_behind(exchange.request)
        act()
        exchange.send(response)
    return answer


# What hides all files whose paths end in the value of HIDE_END, or begin with that of HIDE_BEGIN.
HIDE = r'''
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>

static int is_hidden(const char *path)
{
    const char *end = getenv("HIDE_END"), *begin = getenv("HIDE_BEGIN");
    if (begin && !strncmp(path, begin, strlen(begin)))
        return 1;
    return end && strlen(path) > strlen(end) && !strcmp(path + strlen(path) - strlen(end), end);
}

#define OPEN(NAME) \
int NAME(const char *path, int flags, ...) \
{ \
    int (*real)(const char *, int, ...) = dlsym(RTLD_NEXT, #NAME); \
    va_list list; \
    va_start(list, flags); \
    mode_t mode = va_arg(list, int); \
    va_end(list); \
    if (is_hidden(path)) { errno = ENOENT; return -1; } \
    return real(path, flags, mode); \
}
OPEN(open)
OPEN(open64)

DIR *opendir(const char *path)
{
    DIR *(*real)(const char *) = dlsym(RTLD_NEXT, "opendir");
    if (is_hidden(path)) { errno = ENOENT; return NULL; }
    return real(path);
}
'''
