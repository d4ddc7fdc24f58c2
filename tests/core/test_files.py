"""A failure leaves no partial files."""

import pytest

from densepath.core.errors import UserError
from densepath.core.files import atomic_write, require_new_folder


def test_a_finished_file_replaces_the_old_one(tmp_path):
    target = tmp_path / "deep" / "file.txt"
    for text in ("first", "second"):
        with atomic_write(target) as temporary:
            temporary.write_text(text)
        assert target.read_text() == text
    assert [p.name for p in target.parent.iterdir()] == ["file.txt"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_failure_leaves_the_old_file_and_no_temporary_files(tmp_path, kind):
    old = tmp_path / "old"
    old.write_text("kept")
    with pytest.raises(KeyboardInterrupt), atomic_write(old) as temporary:
        if kind == "file":
            temporary.write_text("half")
        else:
            temporary.mkdir()
            (temporary / "half").write_text("half")
        raise KeyboardInterrupt
    assert old.read_text() == "kept"
    assert [p.name for p in tmp_path.iterdir()] == ["old"]


def test_a_folder_appears_when_it_is_complete(tmp_path):
    with atomic_write(tmp_path / "folder") as temporary:
        temporary.mkdir()
        (temporary / "file").write_text("text")
        assert not (tmp_path / "folder").exists()
    assert (tmp_path / "folder" / "file").read_text() == "text"


def test_a_folder_that_is_not_empty_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="not empty"):
        require_new_folder(tmp_path, "a run")
    with pytest.raises(UserError, match="is not a folder"):
        require_new_folder(tmp_path / "file", "a run")
    assert require_new_folder(tmp_path / "new", "a run") == tmp_path / "new"
