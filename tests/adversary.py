"""What stands between memmon and supervisord, or between memmon and the system, and means no good."""

from __future__ import annotations

import http.client
import re
import socket
import socketserver
import subprocess
import sys
import threading
import time
import xmlrpc.client
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

from harness import Memmon, Supervisord, hog, is_running, children_of, wait_until

ACTOR = str(Path(__file__).parent / 'actor.py')

Answer = Callable[['Request'], None]


def actor(name: str, *args: str, **settings: object) -> str:
    """Return a section of supervisord.conf for an actor."""
    return hog(name, command=' '.join([sys.executable, ACTOR, *args]), **settings)


def sleeper(name: str, **settings: object) -> str:
    """Return a section of supervisord.conf for a program that uses 1 to 2 MB: over TINY."""
    return hog(name, command='sleep 1000', **settings)


TINY = '100KB'


class Request:
    """A call on its way to supervisord; a multicall is named after what it stops."""

    def __init__(self, handler: Handler, body: bytes) -> None:
        self.handler = handler
        self.body = body
        (self.params, self.method) = xmlrpc.client.loads(body)  # type: ignore[assignment]
        self.names = [(self.method, str(self.params[0]) if self.params else '')]
        if self.method == 'system.multicall':
            self.names = [(call['methodName'], call['params'][0]) for call in self.params[0]]

    def forward(self) -> bytes:
        """Ask supervisord; return the whole body of its answer."""
        connection = http.client.HTTPConnection('localhost')
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(20)
        connection.sock.connect(self.handler.proxy.target)
        connection.request('POST', '/RPC2', self.body, {'Content-Type': 'text/xml'})
        answer = connection.getresponse().read()
        connection.close()
        return answer

    def send(self, body: bytes) -> None:
        self.handler.send_response(200)
        self.handler.send_header('Content-Type', 'text/xml')
        self.handler.send_header('Content-Length', str(len(body)))
        self.handler.end_headers()
        self.handler.wfile.write(body)

    def answer(self, value: Any) -> None:
        self.send(xmlrpc.client.dumps((value,), methodresponse=True, allow_none=True).encode())


class Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    proxy: Proxy

    def address_string(self) -> str:
        return 'memmon'

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        self.close_connection = True
        request = Request(self, self.rfile.read(int(self.headers['Content-Length'])))
        try:
            self.proxy.serve(request)
        except OSError:
            pass  # memmon has given up


class Proxy:
    """Passes the calls of memmon on to supervisord, and lets a test act at chosen ones."""

    def __init__(self, path: Path) -> None:
        self.target = str(path / 's')
        self.env = {'SUPERVISOR_SERVER_URL': f'unix://{path}/proxy'}
        self.calls: List[Tuple[str, str]] = []
        self.rules: Dict[Tuple[str, str], Answer] = {}
        handler = type('BoundHandler', (Handler,), {'proxy': self})
        self.server = ThreadingServer(str(path / 'proxy'), handler)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def at(self, method: str, name: str, rule: Answer) -> None:
        """Have a rule answer the next call of a method for a process; it is used once."""
        self.rules[f'supervisor.{method}', name] = rule

    def serve(self, request: Request) -> None:
        self.calls += request.names
        for name in request.names:
            rule = self.rules.pop(name, None)
            if rule:
                rule(request)
                return
        request.send(request.forward())

    def count(self, method: str) -> int:
        return [name for name, _ in self.calls].count(f'supervisor.{method}')

    def end(self) -> None:
        self.server.shutdown()
        self.server.server_close()


class ThreadingServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 100


def lose_request(request: Request) -> None:
    """Cut the connection before supervisord hears of the call."""


def lose_answer(request: Request) -> None:
    """Cut the connection when supervisord has done what it was asked."""
    request.forward()


def dribble(request: Request) -> None:
    """Send a byte a second."""
    request.handler.wfile.write(b'HTTP/1.1 200 OK\r\nContent-Type: text/xml\r\n'
                                b'Content-Length: 1000\r\n\r\n')
    for _ in range(60):
        request.handler.wfile.write(b' ')
        time.sleep(1)


def first(act: Callable[[], object]) -> Answer:
    """Return a rule that does something before supervisord hears of the call."""
    def rule(request: Request) -> None:
        act()
        request.send(request.forward())
    return rule


def instead(value: Any) -> Answer:
    """Return a rule that answers with a value, without asking supervisord."""
    return lambda request: request.answer(value)


def down_intervals(supervisord: Supervisord) -> List[Tuple[int, str]]:
    """Return what supervisord's log, written at level debug, tells of who went down and came up.

    Each entry is +1 or -1 and the name of a process, in the order in which it happened.
    """
    pattern = re.compile(r'killing (\S+) \(pid \d+\) with|success: (\S+) entered RUNNING')
    found = [match.groups() for match in pattern.finditer(supervisord.log.read_text())]
    return [(1, killed) if killed else (-1, up) for killed, up in found]


def most_down(supervisord: Supervisord, *names: str) -> int:
    """Return how many of some processes were down at one time, at most, after their first start."""
    down: set[str] = set()
    most = 0
    for change, name in down_intervals(supervisord):
        if name in names:
            (down.add if change > 0 else down.discard)(name)
            most = max(most, len(down))
    return most


def wait_idle(memmon: Memmon, secs: float = 20) -> None:
    """Wait until no worker of memmon is under way."""
    wait_until(lambda: not memmon.is_busy(), secs)


def worker_of(memmon: Memmon) -> int:
    """Return the pid of memmon's only worker."""
    worker, = [pid for pid in children_of(memmon.pid) if is_running(pid)]
    return worker


PRELOADED = r'''
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>

/* Whether the environment variable HIDDEN, a list of words, names what a path is part of. */
static int is_hidden(const char *path)
{
    const char *hidden = getenv("HIDDEN");
    size_t length = strlen(path);
    if (!hidden)
        return 0;
    if (strstr(hidden, "children") && length > 9 && !strcmp(path + length - 9, "/children"))
        return 1;
    return strstr(hidden, "proc") && (!strncmp(path, "/proc/", 6) || !strcmp(path, "/proc"));
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

static int no_fork(void)
{
    const char *hidden = getenv("HIDDEN");
    return hidden && strstr(hidden, "fork");
}

#define FORK(NAME) \
pid_t NAME(void) \
{ \
    pid_t (*real)(void) = dlsym(RTLD_NEXT, #NAME); \
    if (no_fork()) { errno = ENOMEM; return -1; } \
    return real(); \
}
FORK(fork)
'''


def build_preloaded(path: Path) -> str:
    """Compile the library that hides what the environment variable HIDDEN names; return its file."""
    (path / 'preloaded.c').write_text(PRELOADED)
    subprocess.run(['cc', '-shared', '-fPIC', '-o', 'preloaded.so', 'preloaded.c', '-ldl'],
                   cwd=path, check=True)
    return str(path / 'preloaded.so')
