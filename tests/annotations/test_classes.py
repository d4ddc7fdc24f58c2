"""Which class each image is of: by folders and by tables."""

import os
import unicodedata

import pytest
import torch

from densepath.annotations.classes import match_columns, read_classes
from densepath.core.errors import UserError
from densepath.sources.image_files import ImageFiles
from densepath.sources.open import open_images
from densepath.sources.packing import pack
from densepath.sources.path_table import PathTable
from densepath.synthetic.tissue import write_tiles

NAMES = ["tiles/TUM/1.png", "tiles/ADI/1.png", "tiles/TUM/2.png", "tiles/ADI/deep/3.png"]
FILES = ImageFiles(NAMES)


def by(tmp_path, text, files=FILES, name="labels.csv"):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_classes(files, str(tmp_path / name))


def test_a_top_folder_is_a_class():
    classes = read_classes(FILES, "folders")
    assert classes.names == ("ADI", "TUM")
    assert classes.labels.tolist() == [1, 0, 1, 0] and classes.labels.dtype == torch.int32
    assert classes.describe() == "2 classes: ADI (2), TUM (2)"


def test_the_folder_that_was_given_counts_and_not_the_one_that_the_images_share():
    patients = ImageFiles(["data/tumor/P1/1.png", "data/tumor/P2/1.png"])
    assert read_classes(patients, "folders").names == ("P1", "P2")
    with pytest.raises(UserError, match="one class, tumor; give the folder that contains a folder for each class"):
        read_classes(patients, "folders", "data")
    packed = ImageFiles(["normal/P1/1.png", "tumor/P1/1.png", "2.png"])
    assert read_classes(packed, "folders", "").names == (".", "normal", "tumor")


def test_a_list_may_mix_absolute_and_relative_paths():
    mixed = ImageFiles([*NAMES[:2], *map(os.path.abspath, NAMES[2:])])
    assert read_classes(mixed, "folders").labels.tolist() == [1, 0, 1, 0]


def test_a_packed_store_keeps_the_folders(tmp_path):
    for name in ("b", "a"):
        write_tiles(tmp_path / "tiles" / name, 2, size=32)
    store = open_images(pack(tmp_path / "tiles", tmp_path / "tiles.safetensors"))
    loose = read_classes(open_images(tmp_path / "tiles", cache="none"), "folders")
    packed = read_classes(store, "folders")
    assert packed.names == loose.names == ("a", "b")
    assert packed.labels.tolist() == loose.labels.tolist() == [0, 0, 1, 1]
    names = [store.names(position) for position in range(4)]
    assert all(os.path.dirname(name) in "ab" for name in names)
    table = "".join(f"{name},{label}\n" for name, label in zip(names, "zyzz", strict=True))
    assert by(tmp_path, table, store).labels.tolist() == [1, 0, 1, 1]


TABLES = {
    "plain": "TUM/1.png,t\nADI/1.png,a\nTUM/2.png,t\nADI/deep/3.png,a\n",
    "tabs": "TUM/1.png\tt\nADI/1.png\ta\nTUM/2.png\tt\nADI/deep/3.png\ta",
    "header": "file,label\nTUM/1.png,t\nADI/1.png,a\nTUM/2.png,t\nADI/deep/3.png,a\n",
    "header among others": "id,Label,File\n7,t,TUM/1.png\n8,a,ADI/1.png\n9,t,TUM/2.png\n1,a,ADI/deep/3.png\n",
    "any order, quotes, blank lines": '\n"ADI/deep/3.png" , a\r\n"TUM/2.png","t"\n\nADI/1.png,a\nTUM/1.png,t\n',
    "bare and longer paths": "tiles/TUM/1.png,t\n./ADI/1.png,a\n2.png,t\n3.png,a\n",
    "a path before a bare name": "TUM/1.png,t\n1.png,a\n2.png,t\ndeep/3.png,a\n",
    "lines for other files": "file,what\nTUM/1.png,t\nADI/1.png,a\nVAL/9.png,v\nTUM/2.png,t\nADI/deep/3.png,a\n",
    "names without suffix": "file,label\nTUM/1,t\nADI/1,a\nTUM/2,t\n3,a\n",
    "a line twice": "TUM/1.png,t\nTUM/1.png,t\nADI/1.png,a\nTUM/2.png,t\nADI/deep/3.png,a\n",
    "a name and the number of an image": "image_name,image_index,name,label\nTUM/1.png,1,TUM/1.png,t\n"
    "ADI/1.png,1,ADI/1.png,a\nx,2,TUM/2.png,t\nx,3,ADI/deep/3.png,a\n",
    "a path that is not of the image": "file_path,image_name,label\n1.svs,TUM/1.png,t\n1.svs,ADI/1.png,a\n"
    "2.svs,TUM/2.png,t\n2.svs,ADI/deep/3.png,a\n",
    "cases of a disease": "image,case\nTUM/1.png,t\nADI/1.png,a\nTUM/2.png,t\nADI/deep/3.png,a\n",
    "byte order mark": "\ufefffile,label\nTUM/1.png,t\nADI/1.png,a\nTUM/2.png,t\nADI/deep/3.png,a\n",
}


@pytest.mark.parametrize("text", TABLES.values(), ids=TABLES)
def test_a_table_gives_each_image_its_label(tmp_path, text):
    classes = by(tmp_path, text)
    assert classes.names == ("a", "t")
    assert classes.labels.tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize(("on_disk", "in_table"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_match_across_unicode_normalizations(tmp_path, on_disk, in_table):
    names = [unicodedata.normalize(on_disk, name) for name in ("drüse.png", "gewölbe.png")]
    table = "".join(f"{unicodedata.normalize(in_table, name)},{name[0]}\n" for name in names)
    assert by(tmp_path, table, ImageFiles(names)).labels.tolist() == [0, 1]


def test_a_table_of_absolute_paths_fits_images_that_are_named_from_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table = "".join(f"{tmp_path / name},{label}\n" for name, label in zip(NAMES, "abab", strict=True))
    assert by(tmp_path, table).labels.tolist() == [0, 1, 0, 1]


WRONG = {
    "2 of 4 images have no label in .*, the first is tiles/ADI/1.png": "TUM/1.png,t\nTUM/2.png,t\n",
    "lines 2 and 4 of .* give one file two labels": "3.png,a\nTUM/1.png,t\nTUM/2.png,t\nTUM/1.png,a\n",
    "line 2 of .* may mean tiles/TUM/1.png or tiles/ADI/1.png": "2.png,a\n1.png,t\n3.png,a\n",
    "line 3 of .* is not a file and its label": "TUM/1.png,t\nADI/1.png,a\nTUM/2.png\n",
    "line 2 of .* has no label; fill it in": "file,label\nTUM/1.png,\n",
    "line 1 of .* is not a file and its label": "TUM/1.png|t\n",
    "line 2 of .* is not a file and its label": "TUM/1.png,t,\nADI/1.png,a,b\n",
    "line 3 of .* has 3 fields, its header 2; quote": "file,label\nTUM/1.png,t,,\nADI/1.png,a,b\n",
    "is empty": "",
    r"line 3 of .* is not UTF-8 \(b\\udcf6se\); .*CSV UTF-8": b"file,label\nTUM/1.png,t\n3.png,b\xf6se\n",
    "all images are of one class, t": "TUM/1.png,t\nADI/1.png,t\nTUM/2.png,t\nADI/deep/3.png,t\n",
    "line 1 of": b"\x89PNG\r\n\x1a\n\x00\x00",
    "labels.csv has two columns: label; rename one": "file,label,Label\nTUM/1.png,t,a\n",
    "is not a table of labels": "TUM/1.png," + "t" * (2**24 + 1),
}


@pytest.mark.parametrize(("message", "text"), WRONG.items())
def test_a_table_that_is_wrong_is_refused(tmp_path, message, text):
    with pytest.raises(UserError, match=message) as caught:
        by(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_a_column_in_another_encoding_and_names_without_their_zeros_are_explained(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"file,Gr\xf6\xdfe\n000,a\n")
    with pytest.raises(UserError, match=r"the header of .* is not UTF-8"):
        match_columns(FILES, str(tmp_path / "t.csv"), ["Größe"])
    (tmp_path / "t.csv").write_text("file,label\n0,a\n7.png,b\n12,a\n")
    files = ImageFiles(["000.png", "007.png", "012.png"])
    with pytest.raises(UserError, match=r"3 of 3 images have no label in .*, whose names lack their leading zeros"):
        read_classes(files, str(tmp_path / "t.csv"))
    assert match_columns(ImageFiles(["x.png"]), str(tmp_path / "t.csv"), ["label"]).hint == ""


@pytest.mark.parametrize("path", ["nowhere.csv", ".", "", "a\0b"])
def test_a_table_that_cannot_be_read_is_named(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"table of labels .* cannot be read"):
        read_classes(FILES, path)


def test_one_folder_is_no_classification():
    with pytest.raises(UserError, match=r"one class, TUM; .*--labels"):
        read_classes(ImageFiles(["TUM/1.png", "TUM/2.png"]), "folders")


def test_many_classes_are_cut_short():
    classes = read_classes(ImageFiles([f"{number:02d}/1.png" for number in range(20)]), "folders")
    assert classes.describe().endswith("11 (1) and 8 more")


def test_many_images_take_little_memory(tmp_path, bounded_memory):
    count = 100_000
    files = ImageFiles(PathTable.of(f"/some/where/tiles/{number % 9}/{number:07d}.png" for number in range(count)))
    lines = (f"{number % 9}/{number:07d}.png,class {number % 7}\n" for number in range(count))
    (tmp_path / "labels.csv").write_text("".join(lines))
    with bounded_memory(16):  # as strings, the names would take 13 MiB, the paths of the table 7
        folders, table = read_classes(files, "folders"), read_classes(files, str(tmp_path / "labels.csv"))
    positions = torch.arange(count)
    assert torch.equal(folders.labels, (positions % 9).int()) and torch.equal(table.labels, (positions % 7).int())


def test_classes_that_only_their_spelling_tells_apart_and_empty_fields_are_refused(tmp_path):
    table = "1.png,a\n2.png,b\n3.png,{}\n"
    files = ImageFiles(["1.png", "2.png", "3.png"])
    for other in ("A", "B"):
        with pytest.raises(UserError, match="differ in capitals, spaces or zeros"):
            by(tmp_path, table.format(other), files)
    for empty in ("nan", "NA", "null"):
        with pytest.raises(UserError, match=f"that mean an empty field: {empty}; fill it in"):
            by(tmp_path, table.format(empty), files)
    with pytest.raises(UserError, match="the folders that differ in capitals"):
        read_classes(ImageFiles(["d/TUM/1.png", "d/tum/2.png", "d/ADI/3.png"]), "folders")
    assert read_classes(ImageFiles(["d/TUM/1.png", "d/NA/2.png"]), "folders").names == ("NA", "TUM")


@pytest.mark.parametrize("table", ["{}\\{},{}", "tiles\\{}\\{},{}", "C:\\all\\{}\\{},{}"])
def test_backslashes_of_windows_separate_folders_where_images_are_found_so(tmp_path, table):
    names = [f"all/tiles/{folder}/{number}.png" for folder in ("TUM", "ADI") for number in (1, 2)]
    names = [name.replace("tiles/", "") if "C:" in table else name for name in names]
    names = [f"/C:/{name}" if "C:" in table else name for name in names]
    lines = [table.format(*name.split("/")[-2:], "ta"[number // 2]) for number, name in enumerate(names)]
    assert by(tmp_path, "\n".join(lines), ImageFiles(names)).labels.tolist() == [1, 1, 0, 0]
    matched = match_columns(ImageFiles(names), str(tmp_path / "labels.csv"), ["label"])
    assert matched.values == [("t",), ("t",), ("a",), ("a",)] and not matched.lines


def test_a_backslash_in_the_name_of_a_file_is_a_part_of_it(tmp_path):
    files = ImageFiles(["d/x\\1.png", "d/x\\2.png"])
    assert by(tmp_path, "x\\1.png,a\nx\\2.png,b\n", files).labels.tolist() == [0, 1]


def test_a_header_without_a_column_of_files_is_refused_by_every_reader(tmp_path):
    lines = "".join(f"{name},{label}\n" for name, label in zip(NAMES, "abab", strict=True))
    for head, column in (("foo,label", None), ("foo,Class", None), ("foo,grade", "grade")):
        (tmp_path / "labels.csv").write_text(f"{head}\n{lines}")
        message = f"labels.csv has no column of files; its header names {head.lower().replace(',', ', ')}: call that of"
        with pytest.raises(UserError, match=message):
            read_classes(FILES, str(tmp_path / "labels.csv"), column=column)
        with pytest.raises(UserError, match=message):
            match_columns(FILES, str(tmp_path / "labels.csv"), [column or "label"])
    (tmp_path / "labels.csv").write_text(lines)
    with pytest.raises(UserError, match="has no header; give one that names the columns file and grade"):
        read_classes(FILES, str(tmp_path / "labels.csv"), column="grade")


def test_the_other_of_two_columns_is_the_label_for_every_reader(tmp_path):
    table = "file,what\n" + "".join(f"{name},{label}\n" for name, label in zip(NAMES, "abab", strict=True))
    assert by(tmp_path, table.replace("file", "image_path")).labels.tolist() == [0, 1, 0, 1]
    assert by(tmp_path, table).labels.tolist() == [0, 1, 0, 1]
    assert not match_columns(FILES, str(tmp_path / "labels.csv"), ["label"]).lines
    for head in ("file,Patient ID", "file,split"):
        with pytest.raises(UserError, match="has no column label; its header names"):
            by(tmp_path, table.replace("file,what", head))
