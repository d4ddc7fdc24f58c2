"""Pictures that densepath writes do not become images that it reads."""

import pytest
from PIL import Image

from densepath.core.errors import UserError
from densepath.runs.folder import open_run
from densepath.sources.listing import find_images
from densepath.sources.open import find_source
from densepath.sources.run_folders import refuse_among_images


def draw(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (32, 32)).save(path)


def test_run_folders_among_the_images_are_passed_over(tmp_path, monkeypatch):
    for name in ("a.png", "sub/b.png", "sub/run/pictures/step_1.png"):
        draw(tmp_path / name)
    assert len(find_images(tmp_path)) == 3
    (tmp_path / "sub" / "run" / "config.yaml").write_text("# settings of another program\n")
    assert len(find_source(tmp_path)) == 3
    (tmp_path / "sub" / "run" / "config.yaml").unlink()
    (tmp_path / "sub" / "run" / "pictures").rename(tmp_path / "pictures")
    with open_run(tmp_path / "sub" / "run", {"data": "x"}, resume=False, note="densepath 1"):
        pass
    (tmp_path / "pictures").rename(tmp_path / "sub" / "run" / "pictures")
    opened, usual = [], open
    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", lambda name, *how: opened.append(name) or usual(name, *how))
        found = find_source(tmp_path)
    assert opened == [f"{tmp_path}/sub/run/config.yaml"]  # and no such file in folders that have none
    assert found.passed.kinds == {"folders of results": 1}
    assert [found.names(k).removeprefix(f"{tmp_path}/") for k in range(len(found))] == ["a.png", "sub/b.png"]
    with pytest.raises(UserError, match="holds a run of densepath"):
        find_source(tmp_path / "sub" / "run")
    monkeypatch.chdir(tmp_path)
    for pattern in (f"{tmp_path}/**/*.png", "./**/*.png", "**/*.png", "*/../**/*.png"):
        found = find_source(pattern)
        assert {name.rpartition("/")[2] for name in map(str, found.paths)} == {"a.png", "b.png"}
    assert found.passed.kinds == {"folders of results": 1}
    draw(tmp_path / "sub" / "run" / "pictures" / "step_2.png")
    assert len(find_source("sub/run/pictures/*.png")) == 2  # as asked for


@pytest.mark.parametrize(
    ("out", "source", "refused"),
    [
        ("tiles/x.png", "tiles", True),
        ("tiles/deep/x.png", "tiles", True),
        ("link/x.png", "tiles", True),
        ("tiles/x.png", "tiles/*.png", True),
        ("tiles/a.png", "tiles/a.png", False),
        ("other/x.png", "tiles", False),
        ("tiles2/x.png", "tiles", False),
        ("tiles/x.png", "list.txt", False),
    ],
)
def test_a_picture_is_not_written_among_the_images(tmp_path, monkeypatch, out, source, refused):
    draw(tmp_path / "tiles" / "a.png")
    (tmp_path / "link").symlink_to(tmp_path / "tiles")
    (tmp_path / "list.txt").write_text("tiles/a.png\n")
    monkeypatch.chdir(tmp_path)
    if refused:
        with pytest.raises(UserError, match="would lie among the images"):
            refuse_among_images(out, source)
    else:
        refuse_among_images(out, source)
