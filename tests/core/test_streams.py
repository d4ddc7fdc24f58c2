"""Lines for a stream that may be dead."""

import contextlib
import io
import os
import subprocess
import sys

import pytest

from densepath.core.streams import open_console, open_streams, write_line, write_result


def test_a_line_is_written_at_once_and_a_closed_or_missing_stream_stops_nobody(tmp_path):
    stream = io.StringIO()
    assert write_line("one", stream) and stream.getvalue() == "one\n"
    stream.close()
    assert not write_line("two", stream)
    assert not write_line("three", None)


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_characters_that_a_stream_cannot_encode_are_escaped(encoding, monkeypatch):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    assert write_line("line \udcfd", stream)
    write_result("result \udcfd")
    open_console(stream).print("console \udcfd")
    open_streams()
    print("print \udcfd", flush=True)
    write_result("last")
    assert (
        raw.getvalue().decode()
        == "".join(f"{what} \\udcfd\n" for what in ("line", "result", "console", "print")) + "last\n"
    )


def test_stdout_of_the_locale_c_escapes_characters_and_keeps_bytes(monkeypatch):
    for encoding, written in (("ascii", b"\\xb5m"), ("utf-8", "µm".encode())):
        raw = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding, "surrogateescape"))
        open_streams()
        print("µm", end="", flush=True)
        assert raw.getvalue() == written
        print("\udcfdµ\udcfd", end="", flush=True)
        assert raw.getvalue() == written + b"\xfd" + written.removesuffix(b"m") + b"\xfd"


def test_a_stream_needs_no_more_than_write_and_flush():
    """As those that copy what is printed into a file."""

    class Copy:
        def __init__(self):
            self.text = ""

        def write(self, text):
            self.text += text
            return len(text)

        def flush(self):
            pass

    copy = Copy()
    assert write_line("a line", copy) and copy.text == "a line\n"
    open_console(copy).print("shown")
    assert copy.text.endswith("shown\n")


def test_a_stream_without_an_encoding_or_a_descriptor_gets_escaped_characters(monkeypatch):
    class Ascii:
        text = ""

        def write(self, text):
            text.encode("ascii")
            self.text += text
            return len(text)

        def flush(self):
            pass

        def fileno(self):
            return None

    stream = Ascii()
    monkeypatch.setattr(sys, "stdout", stream)
    assert write_line("a µ", stream)
    write_result("b µ")
    open_console(stream).print("c µ")
    assert stream.text == "a \\xb5\nb \\xb5\nc \\xb5\n"


def test_a_full_stream_gets_nothing_more():
    with open("/dev/full", "w") as stream:
        assert not write_line("one", stream)
        assert write_line("two", stream)  # which now leads into nothing
        assert os.fstat(stream.fileno()).st_rdev == os.stat(os.devnull).st_rdev


def test_a_reader_that_does_not_read_makes_nobody_wait():
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writing, bytes(4096))
    os.set_blocking(writing, True)
    with open(reading, "rb") as reader, open(writing, "w") as stream:
        assert not write_line("dropped", stream)
        reader.read(2**14)
        assert write_line("written", stream)


def test_what_dead_streams_hold_does_not_change_an_exit_code():
    code = "import sys; from densepath.core import streams; print('held', end=''); streams.flush_streams(); sys.exit(3)"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    for redirection in (">/dev/full 2>&1", ">&- 2>&-", "| true"):
        script = f'set -o pipefail; "$0" -c "$1" {redirection}'
        command = ["bash", "-c", script, sys.executable, code]
        done = subprocess.run(command, env=environment, capture_output=True, check=False)
        assert done.returncode == 3, redirection


def test_files_do_not_get_what_is_written_to_streams_that_were_closed(tmp_path):
    code = (
        "import os; from densepath.core.streams import open_streams; open_streams();"
        f"file = open({str(tmp_path / 'file')!r}, 'w'); assert file.fileno() > 2; os.write(2, b'noise')"
    )
    subprocess.run(["bash", "-c", '"$0" -c "$1" >&- 2>&-', sys.executable, code], check=True)
    assert (tmp_path / "file").read_text() == ""


def test_a_console_survives_its_stream():
    with open("/dev/full", "w") as stream:
        console = open_console(stream)
        console.print("lost")
        console.print("lost")
    open_console(None).print("nothing")
    told = io.StringIO()
    open_console(told).print("told")
    assert told.getvalue() == "told\n"
