"""A forked Python ends as a new one does, and with its caller."""

import os
import select
import signal
import socket
import subprocess
import sys
import time

import pytest

from . import cli_server
from .conftest import end_with_stdin, started_commands

# A run of two processes, of which the first also forks; each holds stdout open as long as it lives.
RUN = """
import os, subprocess, sys, time
print(os.getpid(), os.environ.get("DENSEPATH_PARENT") == str(os.getppid()), flush=True)
if "DENSEPATH_PARENT" not in os.environ:
    subprocess.Popen([sys.executable, *sys.argv], env={**os.environ, "DENSEPATH_PARENT": str(os.getpid())})
    os.fork()
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("given", "code", "text"), [("", 0, ""), ("True", 1, ""), ("7", 7, ""), ("'no disk'", 1, "no disk\n")]
)
def test_a_program_has_its_folder_and_exit_code(forked_python, tmp_path, given, code, text):
    program = tmp_path / "program.py"
    program.write_text(f"import sys\nprint(sys.path[0])\nsys.exit({given})")
    done = subprocess.run([forked_python, program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (code, f"{tmp_path}\n", text)


@pytest.mark.parametrize("killed", ["caller", "first process"])
def test_all_processes_of_a_run_end_with_its_caller_or_the_first_of_them(forked_python, tmp_path, killed):
    program = tmp_path / "program.py"
    # What a process has forked outlives it in any Python.
    program.write_text(RUN if killed == "caller" else RUN.replace("os.fork()", ""))
    with subprocess.Popen([forked_python, program], stdout=subprocess.PIPE, text=True) as caller:
        first, second = caller.stdout.readline().split(), caller.stdout.readline().split()
        assert (first[1], second[1]) == ("False", "True")
        os.kill(caller.pid if killed == "caller" else int(first[0]), signal.SIGKILL)
        assert select.select([caller.stdout], [], [], 30)[0] and caller.stdout.read() == ""
    assert caller.returncode == -signal.SIGKILL


def test_a_job_ends_with_the_tests(in_child, tmp_path):
    """Whose end closes the stdin of the server."""
    ours, theirs = socket.socketpair()
    stdin, of_tests = os.pipe()

    def serve():
        os.dup2(stdin, 0)
        os.close(of_tests)
        cli_server.keep(theirs, lambda words: time.sleep(60), sys.executable)

    with ours, theirs, ours.makefile() as lines, os.fdopen(stdin), os.fdopen(of_tests, "w") as end:
        keeper = in_child(serve)
        socket.send_fds(ours, [b"."], [0, 1, 2])
        ours.sendall(b'[["-m", "densepath"], "%s", {}]\n' % os.fsencode(tmp_path))
        assert int(lines.readline()) > 0
        end.close()
        assert os.waitstatus_to_exitcode(os.waitpid(keeper, 0)[1]) == -signal.SIGKILL


def test_a_caller_ends_as_killed_if_nobody_waits_for_its_job(forked_python, tmp_path):
    program = tmp_path / "program.py"
    program.write_text("import os, signal\nos.kill(os.getppid(), signal.SIGKILL)")
    done = subprocess.run([forked_python, program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (-signal.SIGKILL, "")


@pytest.mark.parametrize("held", [False, True])
def test_the_server_is_killed_if_its_stdin_stays_open(held):
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as server, os.fdopen(os.dup(server.stdin.fileno())) as copy:
        if not held:
            copy.close()
        end_with_stdin(server, seconds=0.5 if held else 10)
    assert server.returncode == (-signal.SIGKILL if held else 0)


def test_commands_that_are_alive_at_the_end_of_a_test_are_killed(forked_python, tmp_path):
    with started_commands(forked_python) as start:
        process = start("", tmp_path, ["sh", "-c", "exec sleep 60"])
    assert process.returncode == -signal.SIGKILL
