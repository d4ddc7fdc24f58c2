"""``python -m densepath`` and programs without the seconds of imports: each is forked from a process that made them.

Usage: python cli_server.py FOLDER. It puts an executable ``python`` into FOLDER, which takes ``-m densepath WORDS`` or
``PROGRAM WORDS``.
Each call is a process with its own exit code, output, signals, working folder and environment.
"""

import contextlib
import importlib.util
import json
import os
import runpy
import signal
import socket
import sys
import threading
import traceback
from pathlib import Path

from densepath.runs.watchdog import PARENT

_CLIENT = """#!{python} -S
import json, os, signal, socket, sys
link = socket.socket(socket.AF_UNIX)
link.connect({address!r})
socket.send_fds(link, [b"."], [1, 2])
link.sendall(json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode() + b"\\n")
lines = link.makefile()
pid = int(lines.readline())
for signum in (signal.SIGINT, signal.SIGTERM):
    signal.signal(signum, lambda signum, frame: os.kill(pid, signum))
code = int(lines.readline())
if code < 0:
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
    while True:
        link, _ = server.accept()
        keeper = os.fork()
        if keeper == 0:
            server.close()
            keep(link, cli.main, str(client))
        link.close()
        keepers = {pid for pid in {*keepers, keeper} if os.waitpid(pid, os.WNOHANG)[0] == 0}


def keep(link, main, client):
    """Execute one call and exit."""
    _, descriptors, *_ = socket.recv_fds(link, 1, 2)
    lines = link.makefile("rw")
    words, where, environment = json.loads(lines.readline())
    job = os.fork()
    if job == 0:
        link.detach()
        play(main, words, descriptors, where, environment, client)
    lines.write(f"{job}\n")
    lines.flush()
    # The caller never writes again, so the end of its stream means that it was killed by a signal it cannot forward.
    threading.Thread(target=lambda: lines.readline() == "" and end(job), daemon=True).start()
    code = os.waitstatus_to_exitcode(os.waitpid(job, 0)[1])
    link.sendall(f"{code}\n".encode())
    os._exit(0)


def end(job):
    with contextlib.suppress(ProcessLookupError):
        os.kill(job, signal.SIGKILL)


def play(main, words, descriptors, where, environment, client):
    code = 1
    try:
        os.setsid()
        for number, descriptor in enumerate(descriptors, 1):
            os.dup2(descriptor, number)
        os.chdir(where)
        os.environ.clear()
        os.environ.update(environment)
        os.environ.pop(PARENT, None)  # the parent of a second process of a run is keep(), not the first
        sys.executable, sys.argv = client, words
        if words[:2] == ["-m", "densepath"]:
            # A run of several processes starts the others by its own command line.
            sys.argv = words[1:]
            sys.modules["__main__"].__spec__ = importlib.util.find_spec("densepath.__main__")
            code = main(words[2:])
        else:
            runpy.run_path(words[0], run_name="__main__")
            code = 0
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
