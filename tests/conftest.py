"""What every test shares."""

from __future__ import annotations

import gc
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

# The same examples each time, however slow the machine.
settings.register_profile("densepath", deadline=None, derandomize=True)
settings.load_profile("densepath")

# As many threads everywhere, whatever else the machine does: sums depend on it in their last bits.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

# A shell starts what is to run in the background with Ctrl-C ignored, and tests that press it would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

_PROC = Path("/proc/self")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """What the tests' modules and the packages that they import have made stays: the collector need not look at it."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # what is left at the end is looked at again


@pytest.fixture(scope="session", autouse=True)
def _program() -> Iterator[None]:
    """The tests are run from a file, also by a worker of pytest-xdist, whose main module has none."""
    main = sys.modules["__main__"]
    with pytest.MonkeyPatch.context() as patch:
        if not hasattr(main, "__file__"):
            found = {main: Path(pytest.__file__)}
            patch.setattr("densepath.training.hardware.program", lambda: found.get(sys.modules["__main__"]))
        yield


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Give every test the same random numbers, alone or among others."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_sam(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a Segment Anything whose masks are sure of themselves, and whose predicted IoUs lie around 0.9."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("sam") / "tiny"
    sees = {"image_size": 64, "patch_size": 8}  # pixels
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = transformers.SamConfig(
            vision_config={
                **sees,
                "hidden_size": 32,
                "output_channels": 16,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "window_size": 4,
                "global_attn_indexes": [1],
                "num_pos_feats": 8,
                "mlp_dim": 32,
                "initializer_range": 0.1,
            },
            prompt_encoder_config={**sees, "hidden_size": 16, "mask_input_channels": 4},
            mask_decoder_config={"hidden_size": 16, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16},
        )
        model = transformers.SamModel(config)
        with torch.no_grad():
            for parameter in model.mask_decoder.parameters():
                if parameter.ndim > 1:
                    torch.nn.init.normal_(parameter, std=1.2 / parameter[0].numel() ** 0.5)
            for parameter in model.prompt_encoder.parameters():
                torch.nn.init.normal_(parameter)
            last = model.mask_decoder.iou_prediction_head.proj_out
            last.weight.mul_(0.1)
            last.bias.fill_(0.9)
    model.save_pretrained(folder)
    sizes = {"size": {"longest_edge": 64}, "pad_size": {"height": 64, "width": 64}}
    transformers.SamProcessor(transformers.SamImageProcessor(**sizes)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def bounded_memory() -> Callable[..., AbstractContextManager[None]]:
    """A context that fails if what is done in it takes more memory than some MiB; it works only on Linux.

    Asking for more than ``most`` MiB of addresses raises MemoryError there.
    """

    @contextmanager
    def bounded(mebibytes: int, most: int = 2**14) -> Iterator[None]:
        if not (_PROC / "clear_refs").exists():
            yield
            return
        (_PROC / "clear_refs").write_text("5")  # resets the peak
        before, limits = _status("VmRSS"), resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + most * 2**20, limits[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_AS, limits)
        assert _status("VmHWM") - before < mebibytes * 2**20

    return bounded


def _status(name: str) -> int:
    """Bytes that the system counts for this process under a name."""
    return 1024 * int(re.findall(rf"{name}:\s*(\d+) kB", (_PROC / "status").read_text())[0])


@pytest.fixture(scope="session")
def in_child() -> Callable[[Callable[[], object]], int]:
    """Does some work in a forked process, which exits with 1 if it fails; returns its number."""

    def forked(work: Callable[[], object]) -> int:
        child = os.fork()
        if not child:
            try:
                work()
                os._exit(0)
            finally:
                os._exit(1)
        return child

    return forked


@pytest.fixture(scope="session")
def forked_python() -> Iterator[str]:
    """A Python for ``-m densepath`` and programs of tests, without the seconds of imports: see ``cli_server.py``."""
    with tempfile.TemporaryDirectory() as folder:  # the path of pytest's own may be too long for a socket
        program = [sys.executable, Path(__file__).parent / "cli_server.py", folder]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        pipe = subprocess.PIPE
        with subprocess.Popen(program, stdin=pipe, stdout=pipe, env=environment) as server:  # ends with its stdin
            assert server.stdout is not None and server.stdout.readline() == b"ready\n"
            yield f"{folder}/python"
            end_with_stdin(server)


def end_with_stdin(process: subprocess.Popen[bytes], seconds: float = 10.0) -> None:
    """Close the stdin of a process, which ends it; kill it if a process that a test has forked keeps the pipe open."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@pytest.fixture
def command_line(forked_python: str) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """A function that starts a command in a folder, as on a machine without GPU, and returns its process.

    Processes that are alive at the end of the test are killed.
    """
    with started_commands(forked_python) as start:
        yield start


@contextmanager
def started_commands(python: str) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    processes = ExitStack()

    def start(line: str, where: Path, launcher: Sequence[str | Path] = ()) -> subprocess.Popen[str]:
        words = [*launcher, python, "-m", "densepath", *line.split()]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        pipe = subprocess.PIPE
        process = subprocess.Popen(words, cwd=where, env=environment, stdout=pipe, stderr=pipe, text=True)
        processes.callback(processes.enter_context(process).kill)
        return process

    with processes:
        yield start


Hook = tuple[Any, str, Callable[..., str]]


@pytest.fixture
def four_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_child: Callable[[Callable[[], object]], int]
) -> Callable[[Callable[[], object], Hook, Hook], list[str]]:
    """Runs a command in four processes, of which two are killed in the middle of a slide.

    Given: the command, and the functions that begin and end a slide: owner, name, and what tells the slide's name from
    their arguments. Returns the names of the slides that were ended.
    """

    def run(command: Callable[[], object], begins: Hook, ends: Hook) -> list[str]:
        log, ready = tmp_path / "ended", [tmp_path / f"begun{number}" for number in range(2)]
        begin, end = getattr(*begins[:2]), getattr(*ends[:2])

        def logged(*given: Any, **options: Any) -> Any:
            result = end(*given, **options)
            with log.open("a") as file:
                file.write(f"{ends[2](*given)}\n")
            return result

        monkeypatch.setattr(*ends[:2], logged)
        children = []
        for number in range(4):

            def stops(*given: Any, number: int = number, **options: Any) -> Any:
                part = tmp_path / f"part{number}"
                part.write_text(begins[2](*given))
                part.rename(ready[number])
                time.sleep(60)
                return begin(*given, **options)

            with monkeypatch.context() as patched:
                if number < 2:
                    patched.setattr(*begins[:2], stops)
                children.append(in_child(command))
            while number < 2 and not ready[number].exists():
                assert os.waitpid(children[number], os.WNOHANG) == (0, 0), "it ended before it began a slide"
                time.sleep(0.02)
        assert ready[0].read_text() != ready[1].read_text()
        for child in children[:2]:
            os.kill(child, signal.SIGKILL)
        assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [-9, -9, 0, 0]
        return log.read_text().split()

    return run
