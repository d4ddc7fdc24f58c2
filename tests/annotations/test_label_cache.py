"""Label maps are computed once, found again, and recomputed when anything about them has changed."""

import errno
import os
import resource
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from densepath.annotations import label_cache
from densepath.annotations.label_cache import cache_folder, label_images
from densepath.core import digests as contents
from densepath.core.errors import UserError
from densepath.sources import corrupt
from densepath.sources.corrupt import CorruptImage
from densepath.sources.open import open_images
from densepath.sources.packing import pack


class Brightness:
    """Labels an image by its brightness in steps; writes down what it was asked for."""

    parallel, needs_color = False, False  # without classes, an attribute that may be left out

    def __init__(self, log: Path, step: int = 1) -> None:
        self.log = log
        self.step = step

    def identity(self):
        return {"brightness": self.step}

    def begin(self, names):
        pass

    def files(self):
        return ()

    def label(self, image, name):
        with open(self.log, "a") as log:
            log.write(f"{Path(name).stem}\n")
        return np.pad(image[..., 0] // self.step, ((0, 0), (1, 0)))

    def asked(self):
        found = self.log.read_text().split() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return found


@pytest.fixture
def labeller(tmp_path):
    return Brightness(tmp_path / "log")


@pytest.fixture
def tiles(tmp_path):
    folder = tmp_path / "tiles"
    folder.mkdir()
    for i in range(6):
        Image.fromarray(np.full((20, 30 + i, 3), 40 * i + 1, np.uint8)).save(folder / f"{i}.png")
    return folder


def files(folder: Path) -> list[str]:
    """Those of maps; not the locks, and not what is known of the images' contents."""
    found = [p for p in folder.rglob("*") if p.is_file() and p.name != "lock" and p.parent.name != "contents"]
    return sorted(p.name for p in found)


def test_maps_are_made_once_however_the_images_are_read(tmp_path, tiles, labeller):
    first = label_images(open_images(tiles, cache="none"), labeller, tmp_path / "cache")
    assert labeller.asked() == list("012345")
    assert first.maps.shape == (6, 80, 80) and first.maps[3, :, 0].max() == 0 and (first.maps[3, :, 5:] == 1).all()
    again = label_images(open_images(tiles, cache="ram"), labeller, tmp_path / "cache")
    assert labeller.asked() == []
    assert np.array_equal(first.maps, again.maps)


def test_maps_of_a_store_are_those_of_its_images(tmp_path, tiles, labeller):
    loose = label_images(open_images(tiles, cache="none"), labeller, tmp_path / "cache")
    store = pack(tiles, tmp_path / "tiles.safetensors")
    labeller.asked()
    packed = label_images(open_images(store), labeller, tmp_path / "cache")
    assert labeller.asked() == list("012345")
    assert np.array_equal(packed.maps, loose.maps)
    label_images(open_images(store, cache="ram"), labeller, tmp_path / "cache")
    assert labeller.asked() == []
    store.unlink()
    Image.new("RGB", (30, 20)).save(tiles / "5.png")
    label_images(open_images(pack(tiles, store)), labeller, tmp_path / "cache")
    assert labeller.asked() == list("012345")


def test_what_has_changed_is_made_again(tmp_path, tiles, labeller, monkeypatch):
    def made() -> bool:
        label_images(open_images(tiles, cache="none"), labeller, tmp_path / "cache")
        return bool(labeller.asked())

    assert made() and not made()
    labeller.step = 2
    assert made() and not made()
    Image.new("RGB", (40, 40)).save(tiles / "1.png")
    assert made() and not made()
    (tiles / "5.png").unlink()
    assert made() and not made()
    (tiles / "0.png").rename(tiles / "9.png")  # their order counts, and nothing else of their names
    assert made() and not made()
    content = bytearray((tiles / "4.png").read_bytes())
    content[-1] ^= 1
    (tiles / "4.png").write_bytes(content)
    assert made() and not made()
    monkeypatch.setattr(label_cache, "_VERSION", 0)
    assert made() and not made()


@pytest.mark.parametrize("kind", ["files", "store"])
def test_a_copy_of_the_images_finds_their_maps(tmp_path, tiles, labeller, kind):
    source = tiles if kind == "files" else pack(tiles, tmp_path / "tiles.safetensors")
    maps = label_images(open_images(source, cache="none"), labeller, tmp_path / "cache").maps.copy()
    assert labeller.asked() == list("012345")
    (tmp_path / "elsewhere").mkdir()
    copy = tmp_path / "elsewhere" / source.name
    if kind == "files":
        shutil.copytree(source, copy, copy_function=shutil.copyfile)  # other times of change, too
        (copy / "5.png").rename(copy / "6.png")
    else:
        pack(tiles, copy)
    found = label_images(open_images(copy, cache="none"), labeller, tmp_path / "cache").maps
    assert labeller.asked() == [] and np.array_equal(found, maps)
    assert files(tmp_path / "cache") == ["labels.npy"]


def test_the_images_are_read_for_their_digest_once(tmp_path, tiles, labeller, monkeypatch):
    def maps(cache="cache"):
        return label_images(open_images(tiles, cache="none"), labeller, tmp_path / cache).maps

    first, read = maps(), contents._content
    with monkeypatch.context() as patch:
        patch.setattr(contents, "_content", None)
        assert np.array_equal(maps(), first)
        content = (tiles / "3.png").read_bytes()
        times = (tiles / "3.png").stat().st_mtime_ns
        (tiles / "3.png").write_bytes(content[:-1] + b"x")  # a write that keeps size and time is not noticed
        os.utime(tiles / "3.png", ns=(times, times))
        assert np.array_equal(maps(), first)
    asked = []
    monkeypatch.setattr(contents, "_content", lambda file: asked.append(Path(file).name) or read(file))
    os.utime(tiles / "3.png", ns=(0, 12345))
    maps()
    assert sorted(asked) == [f"{number}.png" for number in range(6)]
    for damage in ("", "nonsense" * 8):
        asked.clear()
        for known in (tmp_path / "cache" / "contents").iterdir():
            known.write_text(damage)
        maps()
        assert len(asked) == 6
        maps()
        assert len(asked) == 6


@pytest.mark.parametrize("content", [b"", b"half", "cut", "other", "header"])
def test_a_damaged_file_of_maps_is_computed_again(tmp_path, tiles, labeller, content):
    whole = label_images(open_images(tiles), labeller, tmp_path / "cache").maps.copy()
    labeller.asked()
    (path,) = (tmp_path / "cache").rglob("labels.npy")
    if content == "cut":
        os.truncate(path, path.stat().st_size - 1)
    elif content == "other":
        np.save(path, np.zeros((6, 3, 3), np.int16))
    elif content == "header":
        path.write_bytes(path.read_bytes().replace(b"}", b"(", 1))
    else:
        path.write_bytes(content)
    assert np.array_equal(label_images(open_images(tiles), labeller, tmp_path / "cache").maps, whole)
    assert labeller.asked() == list("012345")


def fork(action) -> int:
    child = os.fork()
    if not child:
        try:
            action()
        finally:
            os._exit(0)
    return child


def test_a_killed_computation_leaves_nothing_that_is_taken_for_whole(tmp_path, tiles, labeller, monkeypatch):
    images, label = open_images(tiles), Brightness.label

    def dying(self, image, name):
        if name.endswith("4.png"):
            os.kill(os.getpid(), signal.SIGKILL)
        return label(self, image, name)

    monkeypatch.setattr(Brightness, "label", dying)
    _, status = os.waitpid(fork(lambda: label_images(images, labeller, tmp_path / "cache")), 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert labeller.asked() == list("0123")
    monkeypatch.undo()
    label_images(images, labeller, tmp_path / "cache")
    assert labeller.asked() == list("012345")
    assert files(tmp_path / "cache") == ["labels.npy"]


@pytest.mark.parametrize("stop", ["killed", "interrupted"])
def test_what_was_cut_off_continues_after_its_last_whole_shard(tmp_path, tiles, labeller, monkeypatch, stop):
    """Shards of two maps: two are whole, of which the second is damaged afterwards."""
    images, label = open_images(tiles), Brightness.label
    expected = label_images(images, labeller, tmp_path / "whole").maps
    labeller.asked()
    monkeypatch.setattr(label_cache, "_SHARD", 2)

    def dying(self, image, name):
        if name.endswith("5.png"):
            if stop == "interrupted":
                raise KeyboardInterrupt
            os.kill(os.getpid(), signal.SIGKILL)
        return label(self, image, name)

    with monkeypatch.context() as patch:
        patch.setattr(Brightness, "label", dying)
        if stop == "interrupted":
            with pytest.raises(KeyboardInterrupt):
                label_images(images, labeller, tmp_path / "cache")
        else:
            os.waitpid(fork(lambda: label_images(images, labeller, tmp_path / "cache")), 0)
    assert labeller.asked() == list("01234")
    first, second = sorted((tmp_path / "cache").rglob("shards/*.npy"))
    assert len(np.load(first)) == len(np.load(second)) == 2
    os.truncate(second, second.stat().st_size - 1)
    found = label_images(images, labeller, tmp_path / "cache").maps
    assert labeller.asked() == list("2345")
    assert np.array_equal(found, expected)
    assert files(tmp_path / "cache") == ["labels.npy"]


def test_an_interrupted_computation_leaves_nothing(tmp_path, tiles, labeller, monkeypatch):
    def interrupted(self, image, name):
        raise KeyboardInterrupt

    monkeypatch.setattr(Brightness, "label", interrupted)
    with pytest.raises(KeyboardInterrupt):
        label_images(open_images(tiles), labeller, tmp_path / "cache")
    assert files(tmp_path / "cache") == []


def test_of_several_processes_one_makes_the_maps_and_the_others_wait(tmp_path, tiles, labeller):
    images, label = open_images(tiles), labeller.label

    def when_all_are_here(image, name):
        while len(list(tmp_path.glob("*.here"))) < 4:
            os.sched_yield()
        return label(image, name)

    labeller.label = when_all_are_here

    def check():
        (tmp_path / f"{os.getpid()}.here").touch()
        found = label_images(images, labeller, tmp_path / "cache")
        (tmp_path / f"{os.getpid()}.whole").write_text(str(found.maps.sum()))

    children = [fork(check) for _ in range(4)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    assert labeller.asked() == list("012345")
    assert len({path.read_text() for path in tmp_path.glob("*.whole")}) == 1
    assert len(list(tmp_path.glob("*.whole"))) == 4


def test_all_cores_give_the_same_maps_in_the_same_order(tmp_path, tiles, labeller, monkeypatch):
    alone = label_images(open_images(tiles), labeller, tmp_path / "alone").maps
    labeller.asked()
    labeller.parallel = True
    monkeypatch.setattr(label_cache, "cores", lambda: 2)
    together = label_images(open_images(tiles), labeller, tmp_path / "together").maps
    assert np.array_equal(together, alone)
    assert sorted(labeller.asked()) == list("012345")


class Refusing(Brightness):
    def label(self, image, name):
        raise UserError(f"no map for {Path(name).name}; draw one")


@pytest.mark.parametrize("workers", [1, 2])
def test_what_a_labeller_refuses_arrives_in_one_line(tmp_path, tiles, monkeypatch, workers):
    labeller = Refusing(tmp_path / "log")
    monkeypatch.setattr(label_cache, "cores", lambda: workers)
    labeller.parallel = True
    with pytest.raises(UserError, match=r"^no map for 0\.png; draw one$"):
        label_images(open_images(tiles), labeller, tmp_path / "cache")
    assert files(tmp_path / "cache") == []


class Returning(Brightness):
    """Returns a label map as it is given."""

    labels: object = None

    def label(self, image, name):
        return self.labels


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            np.zeros((4, 4, 1), np.uint8),
            r"by Returning of .*0\.png is uint8 \[4, 4, 1\]; give whole numbers",
        ),
        (np.full((4, 4), np.nan), r"is float64 \[4, 4\]"),
        (np.full((4, 4), np.inf), r"is float64 \[4, 4\]; give whole numbers"),
        (np.full((4, 4), 0.5), r"is float64 \[4, 4\]; give whole numbers"),
        (np.full((4, 4), -1.0), r"has the label -1\.0; number the labels from 0"),
        (np.zeros((0, 4), int), r"is int64 \[0, 4\]"),
        (None, r"is object \[\]"),
        (np.full((4, 4), -1), r"has the label -1; number the labels from 0"),
    ],
)
def test_what_is_not_a_label_map_is_refused(tmp_path, tiles, labels, message):
    labeller = Returning(tmp_path / "log")
    labeller.labels, labeller.classes = labels, True
    with pytest.raises(UserError, match=message):
        label_images(open_images(tiles), labeller, tmp_path / "cache")


def test_maps_whose_numbers_are_kept_are_not_those_whose_numbers_are_not(tmp_path, tiles):
    labeller = Returning(tmp_path / "log")
    labeller.labels = np.full((4, 4), -7)
    assert label_images(open_images(tiles), labeller, tmp_path / "cache").largest() == 0
    labeller.labels, labeller.classes = np.full((4, 4), 7), True
    assert label_images(open_images(tiles), labeller, tmp_path / "cache").largest() == 7


@pytest.mark.parametrize("classes", [True, False])
def test_whole_numbers_as_floats_are_labels(tmp_path, tiles, classes):
    maps = []
    for number, dtype in enumerate((np.int64, np.float32)):
        labeller = Returning(tmp_path / "log")
        labeller.labels, labeller.classes = np.array([[0, 3], [7, 40_000]], dtype), classes
        maps.append(label_images(open_images(tiles), labeller, tmp_path / f"cache{number}").maps[0])
    assert np.array_equal(*maps) and len(np.unique(maps[0])) == 4


def test_a_damaged_image_does_not_end_the_work(tmp_path, tiles, labeller):
    for i in range(6, 120):
        Image.new("RGB", (20, 20)).save(tiles / f"{i}.png")
    (tiles / "3.png").write_bytes(b"nothing")
    maps = label_images(open_images(tiles, cache="none"), labeller, tmp_path / "cache").maps
    assert len(maps) == 120 and not maps[sorted(map(str, range(120))).index("3")].any()
    assert len(labeller.asked()) == 119


@pytest.mark.parametrize("stopped", [False, True])
def test_an_image_that_can_be_read_again_gets_its_map(tmp_path, tiles, labeller, monkeypatch, stopped):
    monkeypatch.setattr(label_cache, "_SHARD", 2)
    monkeypatch.setattr(corrupt, "LARGEST_SHARE", {2: 0.5})
    images = open_images(tiles, cache="none")
    whole = label_images(images, labeller, tmp_path / "whole").maps.copy()
    labeller.asked()
    read, broken = images.read, {1, 4}

    def failing(position):
        if position in broken:
            raise CorruptImage(images.names(position), "the disk has failed") from OSError(errno.EIO, "disk")
        return read(position)

    monkeypatch.setattr(images, "read", failing)
    if stopped:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(label_cache, "note_unread", interrupt)
            label_images(images, labeller, tmp_path / "cache")
    for readable in ([], [1], [4]):
        broken.difference_update(readable)
        maps = label_images(images, labeller, tmp_path / "cache").maps
        assert labeller.asked() == [str(k) for k in readable] or not readable
        assert not any(maps[k].any() for k in broken)
        assert all(np.array_equal(maps[k], whole[k]) for k in range(6) if k not in broken)
    assert files(tmp_path / "cache") == ["labels.npy"]


def interrupt(*arguments):
    raise KeyboardInterrupt


class Failing:
    """Reads the images of a source except for one; counts how often it was asked for that one."""

    def __init__(self, images, monkeypatch, position=2):
        monkeypatch.setattr(corrupt, "LARGEST_SHARE", {2: 0.5})
        monkeypatch.setattr(images, "read", self)
        self.read, self.images, self.position = type(images).read, images, position
        self.cause = OSError(errno.EIO, "disk")
        self.fails, self.asked = True, 0

    def __call__(self, position):
        if position != self.position:
            return self.read(self.images, position)
        self.asked += 1
        if self.fails:
            raise CorruptImage(self.images.names(position), "cannot be decoded") from self.cause
        return self.read(self.images, position)


@pytest.mark.parametrize("later", [False, True])
def test_a_damaged_image_is_not_read_again_at_each_start(tmp_path, tiles, labeller, monkeypatch, later):
    images = open_images(tiles, cache="none")
    failing = Failing(images, monkeypatch)
    if later:  # the disk fails first, so that the damage is found at the second start
        label_images(images, labeller, tmp_path / "cache")
        failing.asked = 0
    failing.cause = ValueError("not a PNG")
    for _ in range(3):
        assert not label_images(images, labeller, tmp_path / "cache").maps[2].any()
    assert failing.asked == 1
    assert files(tmp_path / "cache") == ["labels.npy"]


@pytest.mark.parametrize("content", ["[999]", "[-1]", "5", "null", "[[1]]", "[null]", "[Infinity]", "{}", "no JSON"])
def test_a_damaged_list_of_unread_images_is_as_none(tmp_path, tiles, labeller, content):
    maps = label_images(open_images(tiles), labeller, tmp_path / "cache").maps.copy()
    labeller.asked()
    (path,) = (tmp_path / "cache").rglob("labels.npy")
    path.with_name("unread.json").write_text(content)
    assert np.array_equal(label_images(open_images(tiles), labeller, tmp_path / "cache").maps, maps)
    assert labeller.asked() == []


@pytest.mark.parametrize("full", [False, True])
def test_a_cache_that_cannot_be_written_is_used_without_the_images_that_failed(
    tmp_path, tiles, labeller, monkeypatch, capsys, full
):
    def read_only(path, what):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    images = open_images(tiles, cache="none")
    failing = Failing(images, monkeypatch)
    maps = label_images(images, labeller, tmp_path / "cache").maps.copy()
    failing.fails = False
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with monkeypatch.context() as patch:
        if full:
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
        else:
            patch.setattr(label_cache, "shared_work", read_only)
        try:
            used = label_images(images, labeller, tmp_path / "cache").maps
            with pytest.raises(UserError, match=r"cannot be written .*; .*give another folder with --cache_dir$"):
                label_images(images, Brightness(labeller.log, 3), tmp_path / "cache")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert np.array_equal(used, maps)
    assert "not tried again: " in capsys.readouterr().err
    assert label_images(images, labeller, tmp_path / "cache").maps[2].any()  # still in the list


def test_a_full_disk_is_named_and_nothing_stays(tmp_path, tiles, labeller):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    images = open_images(tiles)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(
            UserError, match=r"000\.npy cannot be written \(File too large\); free disk space or give .*dir$"
        ):
            label_images(images, labeller, tmp_path / "cache")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert files(tmp_path / "cache") == []


def test_a_cache_that_cannot_be_made_is_named(tmp_path, tiles, labeller):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"for label maps cannot be created .* give another with --cache_dir"):
        label_images(open_images(tiles), labeller, tmp_path / "file" / "cache")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_cache_that_may_only_be_read_is_used_and_else_named(tmp_path, tiles, labeller):
    cache = tmp_path / "cache"
    label_images(open_images(tiles), labeller, cache)
    for folder in (cache, *cache.iterdir()):
        folder.chmod(0o500)
    labeller.asked()
    label_images(open_images(tiles), labeller, cache)
    assert labeller.asked() == []
    labeller.step = 3
    with pytest.raises(UserError, match="cannot be created"):
        label_images(open_images(tiles), labeller, cache)
    for folder in (cache, *cache.iterdir()):
        folder.chmod(0o700)


def test_the_cache_lies_where_the_system_wants_it(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/densepath/labels")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert cache_folder() == Path("/home/me/.cache/densepath/labels")
