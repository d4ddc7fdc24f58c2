"""``python -m densepath`` and programs without the seconds of imports: each is forked from a process that made them.

Usage: python cli_server.py FOLDER. It puts an executable ``python`` into FOLDER, which takes ``-m densepath WORDS`` or
``PROGRAM WORDS``.
Each call is a process with its own exit code, streams, signals, working folder and environment. It is killed, with the
processes that it has forked, when its caller dies, or when the stdin of this program ends, which ends this one too.
"""

import importlib.util
import json
import os
import runpy
import select
import signal
import socket
import sys
import threading
import traceback
from pathlib import Path

from densepath.runs.watchdog import PARENT

_CLIENT = """#!{python} -S
import json, os, select, signal, socket, sys
parent = os.getppid()
link = socket.socket(socket.AF_UNIX)
link.connect({address!r})
socket.send_fds(link, [b"."], [0, 1, 2])
link.sendall(json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode() + b"\\n")
lines = link.makefile()

def answer():
    try:
        return int(lines.readline())
    except (ConnectionError, ValueError):  # the process that starts the job, and waits for it, was killed
        os.kill(os.getpid(), signal.SIGKILL)

pid = answer()
for signum in (signal.SIGINT, signal.SIGTERM):
    signal.signal(signum, lambda signum, frame: os.kill(pid, signum))
while not select.select([link], [], [], 0.5)[0]:
    if os.getppid() != parent:  # a job that started this one, and was killed
        os._exit(1)
code = answer()
if code < 0:
    if code != -signal.SIGKILL:  # which has no handler
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
os._exit(code)
"""


def serve(folder):
    import lightning.fabric.strategies  # noqa: F401 (these three are imported when a run needs them)
    import timm  # noqa: F401
    import torchvision  # noqa: F401

    from densepath import cli
    from densepath.benchmark import verb  # noqa: F401 (imported once for all calls)

    address = str(folder / "socket")
    client = folder / "python"
    client.write_text(_CLIENT.format(python=sys.executable, address=address))
    client.chmod(0o755)
    server = socket.socket(socket.AF_UNIX)
    server.bind(address)
    server.listen()
    print("ready", flush=True)
    keepers = set()
    while select.select([server, 0], [], [])[0] == [server]:
        link, _ = server.accept()
        keeper = os.fork()
        if keeper == 0:
            server.close()
            keep(link, cli.main, str(client))
        link.close()
        keepers = {pid for pid in {*keepers, keeper} if os.waitpid(pid, os.WNOHANG)[0] == 0}
    os._exit(0)  # at once: otherwise Python would free everything that was imported


def keep(link, main, client):
    """Execute one call and exit."""
    os.setsid()
    _, descriptors, *_ = socket.recv_fds(link, 1, 3)
    lines = link.makefile("rw")
    words, where, environment = json.loads(lines.readline())
    job = os.fork()
    if job == 0:
        link.detach()
        play(main, words, descriptors, where, environment, client)
    lines.write(f"{job}\n")
    lines.flush()
    done = threading.Event()
    threading.Thread(target=watch, args=(link, done), daemon=True).start()
    code = os.waitstatus_to_exitcode(os.waitpid(job, 0)[1])
    done.set()
    link.sendall(f"{code}\n".encode())
    os._exit(0)


def watch(link, done):
    """Kill this process and its group, with the job, once nobody waits for it."""
    # Neither is written to again: the caller's stream ends when it is killed, stdin when the tests have ended.
    select.select([link, 0], [], [])
    if not done.is_set():
        os.killpg(0, signal.SIGKILL)


def play(main, words, descriptors, where, environment, client):
    code = 1
    try:
        for number, descriptor in enumerate(descriptors):
            os.dup2(descriptor, number)
        os.chdir(where)
        os.environ.clear()
        os.environ.update(environment)
        if PARENT in environment:  # the parent of a second process of a run is keep(), not the first
            os.environ[PARENT] = str(os.getppid())
        sys.executable, sys.argv = client, words
        if words[:2] == ["-m", "densepath"]:
            # A run of several processes starts the others by its own command line.
            sys.argv = words[1:]
            sys.path[0] = where
            sys.modules["__main__"].__spec__ = importlib.util.find_spec("densepath.__main__")
            code = main(words[2:])
        else:
            sys.path[0] = str(Path(words[0]).resolve().parent)
            runpy.run_path(words[0], run_name="__main__")
            code = 0
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            code = end.code or 0
        else:
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
