"""Rows of cells.csv whose files were moved."""

import pytest

from densepath.annotations.cells import matching
from densepath.core.path_ends import PathEnds


class Counted(str):
    """A part of a path that counts how often one is compared or looked up."""

    times = 0

    def __eq__(self, other):
        Counted.times += 1
        return str.__eq__(self, other)

    def __ne__(self, other):
        return not self == other

    def __hash__(self):
        Counted.times += 1
        return str.__hash__(self)


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("above", ["", "img/", "img/20x/"])
def test_files_of_one_name_in_many_folders_are_not_compared_one_by_one(monkeypatch, above, named):
    split = matching._parts
    monkeypatch.setattr(matching, "_parts", lambda path: tuple(map(Counted, split(path))))
    work = []
    for count in (50, 100):
        Counted.times = 0
        names = [f"slide_{number}/{above}tile.png" for number in range(count)]
        rows = [{"slide": Counted(number), "path": f"/old/{name}"} for number, name in enumerate(names)]
        wanted = [(row["slide"] if named else "", f"/new/{name}") for row, name in zip(rows, names, strict=True)]
        assert matching.matching(rows, wanted, lambda *_: True) == rows
        work.append(Counted.times)
    assert work[1] < 3 * work[0]


def test_the_paths_that_share_most_last_parts_are_the_closest():
    paths = [("a", "b", "c"), ("x", "b", "c"), ("b", "c"), ("c",), ("a", "b", "c"), ("b", "d")]
    ends = PathEnds((path, number) for number, path in enumerate(paths))
    assert ends.closest(("y", "a", "b", "c")) == [0, 4]
    assert ends.closest(("y", "b", "c")) == [0, 1, 2, 4]
    assert ends.closest(("y", "c")) == ends.closest(("c",)) == [0, 1, 2, 3, 4]
    assert ends.closest(("y", "d")) == [5]
    assert ends.closest(("e",)) == []
