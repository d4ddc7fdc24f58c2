"""Test images among those for pre-training are found in any file format and orientation."""

import errno
import json
import shutil

import nibabel
import numpy as np
import pytest
from PIL import Image

from densepath.annotations.patients import patients_of
from densepath.benchmark import identity
from densepath.benchmark.identity import pixel_digest, read_tiles
from densepath.benchmark.labelled_sets import LabelledSet
from densepath.benchmark.labelled_sets import read_outlined as read_labelled
from densepath.benchmark.overlap import check_overlap, shared_patients
from densepath.core.errors import UserError
from densepath.datasets.volumes.conversion import FolderConversion
from densepath.datasets.volumes.folder import convert_folder
from densepath.sources.corrupt import CorruptImage
from densepath.sources.packed import PackedTiles
from densepath.sources.packing import pack


@pytest.fixture
def data(tissue, tmp_path):
    """A labelled set with its tiles next to it."""
    shutil.copytree(tissue, tmp_path / "data")
    (tmp_path / "data" / "tiles").rename(tmp_path / "tiles")
    return tmp_path / "data"


def check(tmp_path, tiles="tiles", **options):
    seen, labelled = read_tiles(tmp_path / tiles, tmp_path), read_labelled("tissue", tmp_path / "data", tmp_path)
    return check_overlap([seen], [labelled], **options)


def test_different_images_do_not_overlap(data, tmp_path):
    assert check(tmp_path) == []


@pytest.mark.parametrize("change", ["same", "bmp", "mirrored", "turned", "packed"])
def test_a_test_image_is_found_among_the_tiles(data, tmp_path, change):
    image = Image.open(sorted((data / "test").iterdir())[0])
    turns = {"mirrored": Image.Transpose.FLIP_LEFT_RIGHT, "turned": Image.Transpose.ROTATE_90}
    image = image.transpose(turns[change]) if change in turns else image
    image.save(tmp_path / "tiles" / ("x.bmp" if change == "bmp" else "x.png"))
    tiles = "tiles"
    if change == "packed":
        pack(tmp_path / "tiles", tmp_path / "tiles.safetensors")
        tiles = "tiles.safetensors"
    with pytest.raises(UserError, match=r"1 of 2 test images are among the tiles for pre-training \(.*x\.(png|bmp)\)"):
        check(tmp_path, tiles)
    (note,) = check(tmp_path, tiles, allow=True)
    assert note.startswith("OVERLAP, which was allowed. tissue: 1 of 2 test images")


@pytest.mark.parametrize("packed", [False, True])
def test_a_tile_that_could_not_be_read_for_a_while_is_found_later(data, tmp_path, monkeypatch, packed):
    shutil.copy(sorted((data / "test").iterdir())[0], tmp_path / "tiles" / "x.png")
    tiles = pack(tmp_path / "tiles", tmp_path / "tiles.safetensors").name if packed else "tiles"

    def fail(*arguments):
        raise CorruptImage("x.png", "the disk fails") from OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(*(PackedTiles, "read") if packed else (identity, "read_image"), fail)
        read_tiles(tmp_path / tiles, tmp_path)
    with pytest.raises(UserError, match="1 of 2 test images are among the tiles"):
        check(tmp_path, tiles)


def test_digests_of_pixels_are_kept_if_all_may_be():
    assert identity._joined(iter([("a", True), ("", False), ("b", True)])) == ("a\n\nb", False)
    assert identity._joined(iter([("a", True), ("", True)])) == ("a\n", True)
    assert identity._joined(iter([])) == ("", True)


def test_one_changed_pixel_makes_a_different_image(data, tmp_path):
    pixels = np.array(Image.open(sorted((data / "test").iterdir())[0]))
    pixels[0, 0, 0] ^= 1
    Image.fromarray(pixels).save(tmp_path / "tiles" / "x.png")
    assert check(tmp_path) == []


def test_a_digest_is_equal_for_eight_orientations_only():
    image = np.random.default_rng(0).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    sides = [np.rot90(side, quarter) for side in (image, np.flip(image, 1), np.flip(image, 0)) for quarter in range(4)]
    assert len({pixel_digest(side) for side in sides}) == 1
    others = [image[:, :, ::-1], image.reshape(4, 3, 3), image[:, ::-1, :][[1, 0, 2]]]
    assert pixel_digest(image) not in {pixel_digest(np.ascontiguousarray(other)) for other in others}


def test_patients_are_compared_if_both_sets_have_a_manifest(data, tmp_path):
    test = sorted(f"test/{path.name}" for path in (data / "test").iterdir())
    (tmp_path / "source").mkdir()
    (tmp_path / "tiles").rename(tmp_path / "source" / "tiles")
    tiles = sorted(path.name for path in (tmp_path / "source" / "tiles").iterdir())
    lines = "".join(f"{name},patient {number}\n" for number, name in enumerate(test))
    (data / "manifest.csv").write_text("name,patient_id\n" + lines)
    assert check(tmp_path, "source/tiles") == []  # the patients of the tiles are unknown
    patients = ["patient 1", "patient 1", *["patient 7"] * (len(tiles) - 2)]
    lines = "".join(f"tiles/{name},{patient}\n" for name, patient in zip(tiles, patients, strict=True))
    (tmp_path / "source" / "manifest.csv").write_text("file,Patient\n" + lines)
    with pytest.raises(UserError, match=r"1 patient \(patient 1\), with 1 of 2 test images, is also among the tiles"):
        check(tmp_path, "source/tiles")
    assert len(check(tmp_path, "source/tiles", allow=True)) == 1


def test_manifests_of_several_studies_are_found_below_a_folder_or_pattern(tmp_path):
    """Each applies to its own folder: both studies have a tile a.png and their own patients."""
    names = []
    for study in ("first", "second"):
        (tmp_path / study / "tiles").mkdir(parents=True)
        (tmp_path / study / "manifest.csv").write_text(f"file,patient\na.png,{study} 1\nb.png,{study} 2\n")
        names += [str(tmp_path / study / "tiles" / name) for name in ("a.png", "b.png")]
    expected = dict(zip(names, ["first 1", "first 2", "second 1", "second 2"], strict=True))
    assert patients_of(tmp_path / "*" / "tiles" / "*.png", names) == expected
    assert patients_of(tmp_path, names) == expected
    (tmp_path / "manifest.csv").write_text("file,patient\nfirst/tiles/a.png,other\n")
    assert patients_of(tmp_path, names) == expected  # the nearest manifest counts
    (tmp_path / "manifest.csv").write_text("file,patient\nthird\\tiles\\a.png,third 1\n")
    windows = patients_of(tmp_path, [*names, str(tmp_path / "third" / "tiles" / "a.png")])
    assert windows == expected | {str(tmp_path / "third" / "tiles" / "a.png"): "third 1"}


def test_an_overlap_between_the_splits_of_a_labelled_set_is_reported(data, tmp_path):
    train, test = (sorted((data / split).iterdir()) for split in ("train", "test"))
    Image.open(train[0]).save(test[0])
    lines = "".join(
        f"{split}/{p.name},{n}\n" for split, ps in (("train", train), ("test", test)) for n, p in enumerate(ps)
    )
    (data / "manifest.csv").write_text("file,patient\n" + lines)
    images, patients = check(tmp_path)
    assert images.startswith("tissue: 1 of 2 test images are among its training images")
    assert patients == "tissue: 2 patients (0, 1), with 2 of 2 test images, are also among its training images."


def test_digests_are_remembered_until_a_file_changes(data, tmp_path, monkeypatch):
    before = read_labelled("tissue", data, tmp_path / "kept").digest
    with monkeypatch.context() as patch:
        patch.setattr("densepath.core.digests.digest_of_file", lambda name: pytest.fail(f"{name} was read again"))
        assert read_labelled("tissue", data, tmp_path / "kept").digest == before
    outlines = data / "annotations" / "test.json"
    truth = json.loads(outlines.read_text())
    truth["annotations"][0]["bbox"][0] += 1
    outlines.write_text(json.dumps(truth))
    assert read_labelled("tissue", data, tmp_path / "kept").digest != before


def test_a_corrupt_file_of_digests_is_replaced(data, tmp_path):
    before = read_labelled("tissue", data, tmp_path / "kept").digest
    for known in (tmp_path / "kept" / "contents").iterdir():
        known.write_text("half")
    assert read_labelled("tissue", data, tmp_path / "kept").digest == before


def test_the_digest_of_tiles_depends_on_names_and_contents_not_on_the_folder(data, tmp_path):
    def digest(folder):
        return read_tiles(folder, tmp_path / "kept").digest

    before = digest(tmp_path / "tiles")
    shutil.copytree(tmp_path / "tiles", tmp_path / "elsewhere")
    assert digest(tmp_path / "elsewhere") == before
    file = sorted((tmp_path / "elsewhere").iterdir())[0]
    file.rename(file.with_name("0_renamed.png"))
    assert digest(tmp_path / "elsewhere") != before


def test_volumes_are_compared_by_voxels_and_patients(tmp_path):
    def store(name, number, case):
        folder = tmp_path / name / "images"
        folder.mkdir(parents=True)
        values = np.random.default_rng(number).integers(0, 900, (33, 34, 35), np.int16)
        nibabel.Nifti1Image(values, np.diag([-1.0, -1.0, 1.0, 1.0])).to_filename(folder / f"{case}.nii.gz")
        converted = FolderConversion(tmp_path / name, tmp_path / f"{name}_store", window=(0, 800), images="images")
        return read_tiles(convert_folder(converted), tmp_path)

    seen = store("seen", 0, "a")
    assert str(seen).startswith("1 volume")
    for name, number, case, found in (("x", 0, "b", True), ("y", 1, "a", True), ("z", 2, "c", False)):
        test = store(name, number, case)
        labelled = LabelledSet(name, store(f"{name}_train", 9, "d"), test, "")
        if found:
            with pytest.raises(UserError, match="among the tiles for pre-training"):
                check_overlap([seen], [labelled])
        else:
            assert check_overlap([seen], [labelled]) == []


def test_patients_in_names_are_compared(data, tmp_path):
    names = [tmp_path / "tiles" / "00001280_004.png", tmp_path / "other" / "00001280_009.png"]
    names[1].parent.mkdir()
    for shade, name in enumerate(names):
        Image.fromarray(np.full((9, 9, 3), shade, np.uint8)).save(name)
    seen, test = (read_tiles(tmp_path / folder, tmp_path) for folder in ("tiles", "other"))
    assert shared_patients(seen, test) == {"00001280": [str(names[1])]}
