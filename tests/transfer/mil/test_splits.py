"""Folds by patient: no leak, validation within training, written and reused, official ones."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from densepath.core.errors import UserError
from densepath.nets.weights.trained_on import slide_notes
from densepath.transfer.mil import leaks
from densepath.transfer.mil.cohort import Cohort
from densepath.transfer.mil.feature_files import slide_name
from densepath.transfer.mil.leaks import PretrainingSlides, check_pretraining
from densepath.transfer.mil.split_files import column_of, read_splits, write_splits
from densepath.transfer.mil.splits import Split, check_splits, make_splits, warn_of_validation, with_validation
from densepath.transfer.probe.folds import Fold, hold_out


def cohort_of(labels: list[int], owners: list[int] | None = None, groups: list[int] | None = None) -> Cohort:
    """Cases s0, s1, ... of the classes x, y, ...; by default each is of a patient of its own."""
    count = len(labels)
    own = np.arange(count) if owners is None else np.array(owners)
    return Cohort(
        [f"s{n}" for n in range(count)],
        own,
        [f"P{n}" for n in range(own.max() + 1)],
        own if groups is None else np.array(groups),
        np.array(labels, float)[:, None],
        tuple("xyz"[: max(labels) + 1]),
        [(f"s{n}",) for n in range(count)],
        [],
        [""] * count,
        "label",
        "case_id",
    )


@settings(max_examples=25)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(1, 3)), min_size=12, max_size=20),
    st.integers(2, 3),
    st.integers(0, 9),
)
def test_groups_are_never_divided(sizes: list[tuple[int, int]], folds: int, seed: int) -> None:
    labels, groups = [], []
    for group, (_, cases) in enumerate(sizes):
        labels += [group % 2] * cases
        groups += [group] * cases
    cohort = cohort_of(labels, groups=groups)
    splits = make_splits(cohort, folds, 0.25, seed)
    check_splits(cohort, splits, "here")
    tested = np.concatenate([split.test for split in splits])
    assert sorted(tested) == list(range(len(labels)))
    for split in splits:
        parts = [set(cohort.groups[part]) for part in split.parts()]
        assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]
        assert all(set(cohort.labels[part]) == {0, 1} for part in (split.train, split.test))
        assert len(split.validation)


def test_folds_are_stratified_and_a_function_of_the_seed() -> None:
    cohort = cohort_of([0] * 40 + [1] * 20)
    splits = make_splits(cohort, 5, 0.25, 0)
    for split in splits:
        assert [np.bincount(cohort.labels[part]).tolist() for part in split.parts()] == [[24, 12], [8, 4], [8, 4]]
    again, other = make_splits(cohort, 5, 0.25, 0), make_splits(cohort, 5, 0.25, 1)
    assert all((a.validation == b.validation).all() for a, b in zip(splits, again, strict=True))
    assert any((a.test != b.test).any() for a, b in zip(splits, other, strict=True))


def test_the_order_of_the_table_does_not_matter() -> None:
    cohort, order = cohort_of([0] * 12 + [1] * 8), np.random.default_rng(0).permutation(20)
    cohort.splits[:] = ["val" if case % 5 == 4 else "test" if case % 4 == 3 else "train" for case in range(20)]
    turned = replace(
        cohort,
        cases=[cohort.cases[case] for case in order],
        owners=cohort.owners[order],
        groups=cohort.groups[order],
        targets=cohort.targets[order],
        splits=[cohort.splits[case] for case in order],
    )

    def named(own: Cohort, official: bool) -> list[list[list[str]]]:
        splits = read_splits("split", own, 0.25, 0) if official else make_splits(own, 4, 0.25, 0)
        return [[[own.cases[case] for case in part] for part in split.parts()] for split in splits]

    for official in (False, True):
        assert named(cohort, official) == named(turned, official)


def test_splits_are_written_and_reused(tmp_path: Path, capfd: Any) -> None:
    cohort = cohort_of([0, 1] * 8)
    splits = make_splits(cohort, 2, 0.3, 0)
    write_splits(tmp_path / "splits.json", cohort, splits, {"seed": 0})
    for one, other in zip(splits, read_splits(tmp_path / "splits.json", cohort, 0.3, 5), strict=True):
        assert all((a == b).all() for a, b in zip(other.parts(), one.parts(), strict=True))
    record = json.loads((tmp_path / "splits.json").read_text())
    assert record["seed"] == 0 and set(record["folds"][0]) == {"train", "validation", "test"}
    record["folds"][0]["train"].append("stranger")
    (tmp_path / "splits.json").write_text(json.dumps(record))
    read_splits(tmp_path / "splits.json", cohort, 0.3, 0)
    assert "not in this study: 1 name in" in capfd.readouterr().err


def test_the_official_splits_of_clam(tmp_path: Path) -> None:
    """Lists of slides, here without validation cases in the second fold: they are drawn from its training cases."""
    cohort = cohort_of([0, 1] * 4, owners=[0, 1, 0, 1, 2, 3, 4, 5])
    (tmp_path / "splits_0.csv").write_text(",train,val,test\n0,s0,s4,s6.svs\n1,s1,s5,s7\n2,s2,,\n3,s3,,\n")
    (tmp_path / "splits_1.csv").write_text(",train,val,test\n0,s0,,s6\n1,s1,,s7\n2,s4,,\n3,s5,,\n")
    first, second = read_splits(tmp_path, cohort, 0.5, 0)
    assert [part.tolist() for part in first.parts()] == [[0, 1, 2, 3], [4, 5], [6, 7]]
    assert sorted([*second.train, *second.validation]) == [0, 1, 4, 5] and len(second.validation)
    for file in (tmp_path / "splits_0.csv", tmp_path / "splits_1.csv"):  # as a spreadsheet saves them again
        file.write_text(file.read_text().replace(",", ";"), encoding="utf-16")
    for one, other in zip(read_splits(tmp_path, cohort, 0.5, 0), (first, second), strict=True):
        assert [part.tolist() for part in one.parts()] == [part.tolist() for part in other.parts()]
    (tmp_path / "splits_1.csv").write_bytes(b",train,val,test\n0,s\xe4,s4,s2\n")
    with pytest.raises(UserError, match=r"splits_1\.csv is not UTF-8"):
        read_splits(tmp_path, cohort, 0.5, 0)
    (tmp_path / "splits_1.csv").write_text(",train,val,test\n0,s0,s4,s2\n1,s1,s5,s7\n")
    with pytest.raises(UserError, match=r"leak: patients that are train and test cases of fold 1 in .*: P0; put all"):
        read_splits(tmp_path, cohort, 0.5, 0)


def test_a_folder_without_splits_does_not_hide_a_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "part").mkdir()
    cohort = cohort_of([0, 1] * 4)
    cohort.splits[:] = ["train"] * 4 + ["test"] * 4
    assert column_of("part") == "part"
    (split,) = read_splits("part", cohort, 0.5, 0)
    assert sorted(split.test) == [4, 5, 6, 7]
    for path in ("./part", tmp_path / "part"):  # a path is not a column
        with pytest.raises(UserError, match=r"has no splits_0\.csv"):
            read_splits(path, cohort, 0.5, 0)
    (tmp_path / "part" / "splits_0.csv").write_text(",train,val,test\n0,s0,s4,s6\n1,s1,s5,s7\n")
    assert column_of("part") is None
    (split,) = read_splits("part", cohort, 0.5, 0)
    assert sorted(split.test) == [6, 7]


def test_a_column_of_parts_or_of_folds(capsys: pytest.CaptureFixture[str]) -> None:
    cohort = cohort_of([0, 1] * 6)
    cohort.splits[:] = ["train"] * 6 + ["val"] * 2 + ["TEST"] * 4
    (split,) = read_splits("part", cohort, 0.2, 0)
    assert [len(part) for part in split.parts()] == [6, 2, 4] and not capsys.readouterr().err
    cohort.splits[:] = ["train"] * 8 + ["val"] * 4  # BRIGHT: the official validation slides are the test slides
    (split,) = read_splits("part", cohort, 0.3, 0)
    assert sorted(split.test) == [8, 9, 10, 11] and len(split.validation)
    assert "no cases are of the split test: the 4 validation cases are the test" in capsys.readouterr().err
    cohort.splits[:] = [str(number // 2 % 3) for number in range(12)]
    assert [sorted(split.test) for split in read_splits("fold", cohort, 0.3, 0)] == [
        [0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11],
    ]  # fmt: skip
    cohort.splits[:] = ["9", "9.0", "09", "10", "10.", "10.0"] * 2
    assert [sorted(split.test) for split in read_splits("fold", cohort, 0.3, 0)] == [
        [0, 1, 2, 6, 7, 8], [3, 4, 5, 9, 10, 11],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("values", "wrong"),
    [
        (["a"], "a"),
        (["0", "", "1"], ""),
        (["train", "", "0"], ""),
        (["train", "test", "2.5"], "2.5"),
        (["0", "Train", "1"], "Train"),
    ],
)
def test_the_wrong_value_of_a_column_is_named(values: list[str], wrong: str) -> None:
    cohort = cohort_of([0, 1] * 6)
    cohort.splits[:] = (values * 12)[:12]
    with pytest.raises(UserError, match=f"the column part has the value '{wrong}'; give train, val and test, or num"):
        read_splits("part", cohort, 0.3, 0)


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (([0, 1, 2, 3], [4, 5], [6, 7, 1]), "leak: patients that are train and test cases of fold 0 in here: P1"),
        (([0, 1, 2, 3], [4, 5], [5, 6]), "leak: patients that are validation and test cases of fold 0 in here: P5"),
        (([0, 1, 2, 3], [3, 5], [6, 7]), "leak: patients that are train and validation cases of fold 0 in here: P3"),
        (([0, 1], [2, 3], []), "fold 0 of here has no test case"),
        (([0, 2], [3, 5], [6, 7]), "classes that the training cases of fold 0 of here lack: y; add cases of them"),
    ],
)
def test_leaks_and_folds_that_cannot_be_used_are_refused(split: tuple[list[int], ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_splits(cohort_of([0, 1] * 4), [Split(*(np.array(part, np.int64) for part in split))], "here")


def test_a_case_in_two_parts_of_a_file_is_refused(tmp_path: Path) -> None:
    cohort = cohort_of([0, 1] * 4)
    fold = {"train": ["s0", "s1", "s2"], "validation": ["s4"], "test": ["s2", "s6"]}
    (tmp_path / "splits.json").write_text(json.dumps({"folds": [fold]}))
    with pytest.raises(UserError, match=r"leak: .* train and test .*(s2|P2)"):
        read_splits(tmp_path / "splits.json", cohort, 0.3, 0)


def test_too_few_patients_are_refused() -> None:
    with pytest.raises(UserError, match="y has cases of 3 patients, fewer than the 5 folds; use --folds 3"):
        make_splits(cohort_of([0] * 5 + [1] * 3), 5, 0.2, 0)
    for folds in (2, 3, 5):  # of which none has all parts
        with pytest.raises(UserError, match=r"y has cases of 2 patients, and .* need those of 3; add cases, merge"):
            make_splits(cohort_of([0, 0, 0, 0, 1, 1]), folds, 0.2, 0)


def test_too_few_sites_are_not_called_patients() -> None:
    labels, sites = [0] * 12 + [1] * 12, [0, 1] * 6 + [0, 1, 2, 3] * 3
    for folds in (2, 5):
        with pytest.raises(UserError, match=r"x has cases of 2 sites, and .* need those of 3; leave --site out, merge"):
            make_splits(cohort_of(labels, groups=sites), folds, 0.2, 0)
        with pytest.raises(UserError, match=r"the study has cases of 2 sites, .*; leave --site out$"):
            make_splits(numbers_of([(float(n),) for n in range(8)], [0, 1] * 4), folds, 0.2, 0)
    with pytest.raises(UserError, match="x has cases of 3 sites, fewer than the 4 folds; use --folds 3"):
        make_splits(cohort_of(labels, groups=[0, 1, 2] * 4 + [0, 1, 2, 3] * 3), 4, 0.2, 0)
    one = Fold(np.arange(24), np.array([], np.int64))
    with pytest.raises(
        UserError, match=r"x has one site among the .*; use more --folds .up to the number of its sites"
    ):
        with_validation(cohort_of(labels, groups=[0] * 12 + [1, 2, 3] * 4), one, 0.2, 0)


def test_validation_that_a_file_names_is_not_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cohort, file = cohort_of([0, 1] * 6), tmp_path / "splits.json"
    write_splits(file, cohort, make_splits(cohort, 2, 0.2, 0), {})
    read_splits(file, cohort, 0.2, 0)
    assert "no effect" not in capsys.readouterr().err
    read_splits(file, cohort, 0.4, 0)
    assert "splits.json names validation cases, so --validation 0.4 has no effect" in capsys.readouterr().err


def seen_in(*notes: dict[str, Any]) -> PretrainingSlides:
    seen = PretrainingSlides()
    for each in notes:
        seen.add(each)
    return seen


def test_slides_of_pretraining_are_those_of_all_files(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"weight": torch.ones(2)}, path, {**slide_notes(["a/s1.svs", "s2"])})
    both = seen_in({"weights": str(path)}, {"pretraining_slides": ["s3"]}, {"weights": "random"})
    assert both.names == {"a/s1", "s2", "s3"} and not both.unknown
    assert seen_in({"weights": str(path)}, {}).unknown and seen_in({"weights": "resnet18"}).unknown
    save_file({"weight": torch.ones(2)}, path)
    assert seen_in({"weights": str(path)}).unknown


@pytest.mark.parametrize(
    ("tested", "seen", "message"),
    [
        ("s1", "/slides/s1.svs", "leak: 1 test slide is a slide that .* pre-trained on: s1; pre-train"),
        ("A/1", "B/1", None),
        ("A/1", "1.svs", "leak: 1 test slide is a slide"),
        ("TCGA-3X-AAVA-01Z-00-DX1", "x/TCGA-3X-AAVA-01Z-00-DX1.4B0B.svs", "leak: 1 test slide is a slide"),
        ("TCGA-3X-AAVA-01Z-00-DX1", "TCGA-3X-AAVA-01Z-00-DX2.svs", "leak: 1 test patient has other slides .*: P0;"),
        ("s1", "other_slide_of_P0", "leak: 1 test patient has other slides .*: P0;"),
        ("s1", "s10", None),
    ],
)
def test_test_slides_and_patients_of_pretraining_are_refused(tested: str, seen: str, message: str | None) -> None:
    cohort = cohort_of([0, 1, 0, 1], owners=[0, 1, 2, 0])
    cohort.slides[:] = [(tested,), ("t",), ("u",), ("other_slide_of_P0",)]
    split = Split(np.array([1]), np.array([2]), np.array([0]))
    if message is None:
        check_pretraining(cohort, [split], {seen})
    else:
        with pytest.raises(UserError, match=message):
            check_pretraining(cohort, [split], {seen})


def test_slides_that_many_files_list_are_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of files of features list the same thousands of slides."""
    calls: list[str] = []
    monkeypatch.setattr(leaks, "slide_name", lambda name: calls.append(name) or slide_name(name))
    seen = seen_in(*[{"pretraining_slides": ["a.svs", "b/c.tif"]}] * 50, {"pretraining_slides": ["a.svs", "d"]})
    assert seen.names == {"a", "b/c", "d"} and sorted(calls) == ["a.svs", "b/c.tif", "d"]


def numbers_of(targets: list[tuple[float, ...]], groups: list[int] | None = None) -> Cohort:
    return replace(cohort_of([0] * len(targets), groups=groups), targets=np.array(targets), classes=())


@pytest.mark.parametrize("survival", [False, True])
def test_targets_of_test_cases_do_not_choose_validation_cases(survival: bool) -> None:
    """Drawn by quartiles of the training cases; also where every event was observed."""
    targets = [(float(n), 1.0)[: 1 + survival] for n in range(40)]
    cohort = numbers_of(targets)
    (split, *_) = make_splits(cohort, 4, 0.25, 0)
    assert sorted(np.bincount(split.test // 10, minlength=4)) == [2, 2, 3, 3]
    changed = cohort.targets.copy()
    changed[split.test, 0] = np.linspace(-900, 900, len(split.test))
    again = with_validation(replace(cohort, targets=changed), Fold(np.arange(40)[~np.isin(np.arange(40), split.test)],
                                                                   split.test), 0.25, 0)  # fmt: skip
    assert set(again.validation) == set(split.validation)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.9])
def test_validation_is_the_share_that_is_asked_for(share: float, capfd: Any) -> None:
    cohort = cohort_of([0] * 60 + [1] * 38 + [2] * 2)  # the rare class has one case for each
    split = with_validation(cohort, Fold(np.arange(100), np.array([], np.int64)), share, 1)
    expected = [round(60 * share), round(38 * share), 1]
    assert np.bincount(cohort.labels[split.validation]).tolist() == expected
    assert "are held out" not in capfd.readouterr().err
    sites = cohort_of([0, 1] * 20, groups=[0] * 36 + [1] * 2 + [2] * 2)
    split = with_validation(sites, Fold(np.arange(40), np.array([], np.int64)), 0.4, 1)
    assert "10% of the training cases of a fold are held out for validation instead of 40%" in capfd.readouterr().err


def test_few_cases_without_an_event_are_no_stratum() -> None:
    cohort = numbers_of([(float(n), float(n != 3)) for n in range(15)])
    splits = make_splits(cohort, 5, 0.2, 0)
    check_splits(cohort, splits, "here")
    assert sorted(np.concatenate([split.test for split in splits])) == list(range(15))
    with pytest.raises(UserError, match=r"^the event has cases of 3 patients, fewer than the 5 folds; use --folds 3$"):
        make_splits(numbers_of([(float(n), float(n < 3)) for n in range(15)]), 5, 0.2, 0)
    assert len(make_splits(numbers_of([(float(n), float(n < 3)) for n in range(15)]), 3, 0.2, 0)) == 3
    with pytest.raises(UserError, match=r"^the study has cases of 4 patients, fewer than the 5 folds; use --folds 4$"):
        make_splits(numbers_of([(float(n),) for n in range(4)]), 5, 0.2, 0)
    few = numbers_of([(0.0, 1.0), (1.0, 1.0), (2.0, 0.0)])
    for seed in range(9):  # whatever the share, an event is trained on
        split = with_validation(few, Fold(np.arange(3), np.array([], np.int64)), 0.9, seed)
        assert few.targets[split.train, 1].any()


@pytest.mark.parametrize(("events", "folds"), [(1, 2), (1, 5), (2, 2), (2, 3), (2, 14)])
def test_too_few_patients_with_an_event_are_refused_whatever_the_folds(events: int, folds: int) -> None:
    cohort = numbers_of([(float(n), float(n < events)) for n in range(15)])
    number = "1 patient" if events == 1 else "2 patients"
    with pytest.raises(UserError, match=rf"^the event has cases of {number}, and .* need those of 3; add cases$"):
        make_splits(cohort, folds, 0.2, 0)


@pytest.mark.parametrize(
    ("targets", "why"),
    [([(float(n), float(n > 3)) for n in range(8)], "have no event"), ([(1.0,)] * 4 + [(2.0,)] * 4, "the same label")],
)
def test_training_cases_that_nothing_is_learned_from_are_refused(
    targets: Any, why: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    split, cohort = Split(np.arange(4), np.array([4]), np.arange(5, 8)), numbers_of(targets)
    write_splits(tmp_path / "splits.json", cohort, [split], {})  # a resumed run cannot change them
    assert len(read_splits(tmp_path / "splits.json", cohort, 0.2, 0, resumed=True)) == 1
    assert why in capfd.readouterr().err
    with pytest.raises(UserError, match=why):
        read_splits(tmp_path / "splits.json", cohort, 0.2, 0)
    with pytest.raises(UserError, match=rf"training cases of fold 0 of here .*{why}.*; use other --folds or --splits"):
        check_splits(cohort, [split], "here")


def test_validation_cases_that_cannot_be_compared_are_reported(capfd: Any) -> None:
    cohort = numbers_of([(float(n), float(n % 2)) for n in range(9)])
    warn_of_validation(cohort, [Split(np.arange(4), np.array([6, 7]), np.array([8])),
                                Split(np.arange(4), np.array([5, 6]), np.array([8]))])  # fmt: skip
    err = capfd.readouterr().err
    assert "no two validation cases of fold 0 can be compared" in err and "concordance cannot choose an epoch;" in err
    warn_of_validation(cohort_of([0, 1, 0]), [Split(np.arange(2), np.array([2]), np.array([2]))])
    assert not capfd.readouterr().err


def test_a_class_with_too_few_patients_for_validation_needs_more_folds() -> None:
    with pytest.raises(UserError, match=r"[xy] has one patient .*; use more --folds \(up to"):
        make_splits(cohort_of([0, 1] * 3), 2, 0.3, 0)
    assert len(make_splits(cohort_of([0, 1] * 3), 3, 0.3, 0)) == 3


def test_names_in_lists_are_cases_first_and_must_be_clear(tmp_path: Path) -> None:
    cohort = cohort_of([0, 1] * 4)
    cohort.slides[:] = [(f"s{(n + 1) % 8}",) for n in range(8)]  # the slide of each case is called as another case
    splits = make_splits(cohort, 2, 0.3, 2**32)  # a seed of more than 32 bits
    write_splits(tmp_path / "splits.json", cohort, splits, {})
    again = read_splits(tmp_path / "splits.json", cohort, 0.3, 0)
    assert [part.tolist() for part in again[0].parts()] == [sorted(part) for part in splits[0].parts()]
    (tmp_path / "splits_0.csv").write_text(",train,val,test\n0,s0,,s6\n1,s1,,s7\n")
    with pytest.raises(UserError, match=r"names in .* that may mean several cases: s0"):
        read_splits(tmp_path, cohort, 0.3, 0)
    (tmp_path / "splits.json").write_text('{"folds": []}')
    with pytest.raises(UserError, match="has no folds"):
        read_splits(tmp_path / "splits.json", cohort, 0.3, 0)


def test_given_splits_do_not_divide_sites() -> None:
    cohort = cohort_of([0, 1] * 4, groups=[0, 0, 1, 1, 2, 2, 3, 0])
    split = Split(np.arange(4), np.array([4, 5]), np.array([6, 7]))
    with pytest.raises(UserError, match=r"leak: patients of sites with train and test cases of fold 0 in here: P7;"):
        check_splits(cohort, [split], "here")


def test_patients_are_held_out_without_counting_all_held_ones_each_time() -> None:
    """With 65,000 patients, as in CheXpert, this took minutes."""

    class Watched(np.ndarray):
        def __getitem__(self, key: Any) -> Any:
            assert not isinstance(key, np.ndarray) or key.ndim == 0
            return super().__getitem__(key)

    counts = np.random.default_rng(0).poisson(1.0, (200, 3)).astype(float)
    held = hold_out(counts.view(Watched), 0.25, seed=0)
    assert counts[held].sum(0) == pytest.approx(0.25 * counts.sum(0), abs=15)
