"""Tables and files of features become cases; what does not match is named, and what is wrong is refused."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from densepath.core.errors import UserError
from densepath.transfer.mil import feature_files, slide_table
from densepath.transfer.mil.bags import read_bags
from densepath.transfer.mil.cohort import Cohort, read_cohort
from densepath.transfer.mil.feature_files import Names
from densepath.transfer.mil.merged_classes import BRIGHT
from densepath.transfer.mil.slide_table import Columns, patient_of_tcga


def features(folder: Path, *names: str, dim: int = 4, tiles: int = 3) -> Path:
    for name in names:
        path = folder / f"{name}.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(torch.randn(tiles, dim), path)
    return folder


def table(path: Path, *rows: str) -> Path:
    path.write_text("\n".join(rows) + "\n")
    return path


def found(cohort: Cohort) -> dict[str, tuple[str, tuple[str, ...]]]:
    """The class and the slides of each case."""
    return {
        case: (cohort.classes[label], slides)
        for case, label, slides in zip(cohort.cases, cohort.labels, cohort.slides, strict=True)
    }


def test_the_table_of_clam_and_what_does_not_match(tmp_path: Path, capfd: Any) -> None:
    data = features(tmp_path / "f", "pt_files/s1", "pt_files/s2", "pt_files/s3", "pt_files/s9")
    listed = table(tmp_path / "t.csv", "case_id,slide_id,label", "a,s1.svs,x", "a,s2,x", "b,s3,y", "c,s4,y")
    cohort = read_cohort(data, listed, Columns())
    assert found(cohort) == {"a": ("x", ("s1", "s2")), "b": ("y", ("s3",))}
    assert cohort.by_patient == f"case_id in {listed}" and cohort.target == "label"
    err = capfd.readouterr().err
    assert "left out: 1 slide of the table without features: s4" in err
    assert "not in the table: 1 file of features: s9" in err
    single = read_cohort(data, listed, Columns(), grouping="single")
    assert single.cases == ["s1", "s2", "s3"] and single.owners.tolist() == [0, 0, 1]


def test_a_class_that_may_be_a_missing_value_is_reported(tmp_path: Path, capfd: Any) -> None:
    data = features(tmp_path / "f", "s1", "s2", "s3")
    listed = table(tmp_path / "t.csv", "case_id,slide_id,label", "a,s1,x", "b,s2,y", "c,s3,None")
    assert read_cohort(data, listed, Columns()).classes == ("None", "x", "y")
    assert "label None is taken as a class; --classes with the others leaves it out" in capfd.readouterr().err
    assert read_cohort(data, listed, Columns(), classes=["x", "y"]).classes == ("x", "y")
    err = capfd.readouterr().err
    assert "taken as a class" not in err and "--classes leaves out 1 slide: None" in err
    with pytest.raises(UserError, match=r"--classes names low=z,w, of which there is no slide; .* are None, x, y"):
        read_cohort(data, listed, Columns(), classes=["x", "y", "low=z,w"])


def test_the_tables_of_stamp(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = features(tmp_path / "f", "s1", "s2", "s3")
    clini = table(tmp_path / "clini.csv", "PATIENT;MSI", "p1;high", "p2;low", "p3;low")
    slides = table(tmp_path / "slides.csv", "PATIENT,FILENAME", "p1,s1.h5", "p2,s2.h5", "p1,s3.h5")
    cohort = read_cohort(data, clini, Columns("MSI"), slide_table=slides)
    assert found(cohort) == {"p1": ("high", ("s1", "s3")), "p2": ("low", ("s2",))}
    assert f"left out: 1 patient of {clini} without a slide in {slides}: p3" in capfd.readouterr().err
    capitals = table(tmp_path / "capitals.csv", "PATIENT,FILENAME", "p1,s1.h5", "p2,s2.h5", "P3,s3.h5")
    with pytest.raises(UserError, match="patients that differ in capitals, spaces or zeros: P3, p3"):
        read_cohort(data, clini, Columns("MSI"), slide_table=capitals)
    resumed = read_cohort(data, clini, Columns("MSI"), slide_table=capitals, resumed=True)
    assert found(resumed) == {"p1": ("high", ("s1",)), "p2": ("low", ("s2",))}
    assert "count as different ones: P3, p3; spell each one way for other runs" in capfd.readouterr().err
    others = table(
        tmp_path / "o.csv", "PATIENT,FILENAME", "p1,s1.h5", "p2,s2.h5", "p1,s3.h5", "7,s4", "007,s5", "na,s6", ",s7"
    )
    gaps = table(tmp_path / "gaps.csv", "PATIENT;MSI", "p1;high", ";low", "p2;low", "NA;low", "n/a;high", "NA;low")
    assert found(read_cohort(data, gaps, Columns("MSI"), slide_table=others)) == found(cohort)  # 7 is not in the study
    err = capfd.readouterr().err
    assert f"left out: 4 rows without a patient: line 3 of {gaps}, line 5 of" in err and "without a slide" not in err
    twice = table(tmp_path / "twice.csv", "PATIENT,FILENAME", "p1,s1.h5", "p2,s1.h5", "p3,s3.h5")
    with pytest.raises(UserError, match=r"slides with two rows in .*twice\.csv: s1"):
        read_cohort(data, clini, Columns("MSI"), slide_table=twice)
    # A column that is usual for slides may be in the table of patients, and an unusual one in that of slides.
    clini = table(tmp_path / "clini.csv", "PATIENT,name,MSI", "p1,Ann,high", "p2,Bob,low")
    slides = table(tmp_path / "slides.csv", "PATIENT,scan", "p1,s1.h5", "p2,s2.h5", "p1,s3.h5")
    assert found(read_cohort(data, clini, Columns("MSI", slide="scan"), slide_table=slides)) == found(cohort)


def test_barcodes_of_tcga_name_patients_sites_and_slides(tmp_path: Path) -> None:
    uuid = "4B0B1C2D"
    data = features(
        tmp_path / "f", f"TCGA-3X-AAVA-01Z-00-DX1.{uuid}", "TCGA-3X-AAVA-01Z-00-DX2", "TCGA-AD-6964-01Z-00-DX1"
    )
    by_slide = table(
        tmp_path / "s.csv", "slide,label", "TCGA-3X-AAVA-01Z-00-DX1,x", "TCGA-3X-AAVA-01Z-00-DX2.svs,x",
        f"TCGA-AD-6964-01Z-00-DX1.{uuid}.svs,y",
    )  # fmt: skip
    expected = {
        "TCGA-3X-AAVA": ("x", (f"TCGA-3X-AAVA-01Z-00-DX1.{uuid}", "TCGA-3X-AAVA-01Z-00-DX2")),
        "TCGA-AD-6964": ("y", ("TCGA-AD-6964-01Z-00-DX1",)),
    }
    cohort = read_cohort(data, by_slide, Columns(site="tcga"))
    assert found(cohort) == expected and cohort.groups.tolist() == [0, 1]
    by_patient = table(tmp_path / "p.csv", "patient,label", "TCGA-3X-AAVA,x", "TCGA-AD-6964,y")
    assert found(read_cohort(data, by_patient, Columns())) == expected
    assert patient_of_tcga("GTEX-1") == ""
    samples = table(
        tmp_path / "a.csv", "patient,slide,label", "TCGA-3X-AAVA-01A,TCGA-3X-AAVA-01Z-00-DX1,x",
        "TCGA-3X-AAVA-11A,TCGA-3X-AAVA-01Z-00-DX2,x", "TCGA-AD-6964-01A,TCGA-AD-6964-01Z-00-DX1,y",
    )  # fmt: skip
    assert found(read_cohort(data, samples, Columns())) == expected


def test_bright_as_published_has_six_classes_and_three(tmp_path: Path) -> None:
    six = [name for group in BRIGHT.values() for name in group]
    data = features(tmp_path / "f", *(f"{part}/Group/Type_{k}/{part}_{k}" for k in six for part in ("train", "val")))
    features(data, "train/Group/Type_N/normal")
    cohort = read_cohort(data, "folders", Columns(), classes=["bright6"])
    assert set(cohort.classes) == set(six) and len(cohort) == 12
    assert sorted(set(cohort.splits)) == ["train", "val"]
    three = read_cohort(data, "folders", Columns(), classes=["bright3"])
    assert {slides[0].split("Type_")[1][:3].strip("/"): label for label, slides in found(three).values()} == {
        name[:3]: group for group, names in BRIGHT.items() for name in names
    }
    own = read_cohort(data, "folders", Columns(), classes=["low=pb,UDH,N", "IC"])
    assert own.classes == ("IC", "low") and np.bincount(own.labels).tolist() == [2, 5]


def test_survival_and_numbers_are_read(tmp_path: Path) -> None:
    data = features(tmp_path / "f", "a", "b", "c")
    listed = table(tmp_path / "t.csv", "slide,patient,months,died", "a,a,3.5,1", "b,b,10,no", "c,c,4,Dead")
    cohort = read_cohort(data, listed, Columns("months", event="died"), task="survival")
    assert cohort.targets.tolist() == [[3.5, 1], [10, 0], [4, 1]] and cohort.classes == ()
    assert read_cohort(data, listed, Columns("months"), task="regression").targets.tolist() == [[3.5], [10], [4]]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (("slide;age", "a;9,5", "b;10", "c;-1,25"), [[9.5], [10], [-1.25]]),
        (("slide\tage", "a\t9,5", "b\t10", "c\t1"), [[9.5], [10], [1]]),
        (
            ("slide;age", "a;9,5", "b;10.5", "c;1"),
            r"line 2 of .* has the age '9,5', and line 3 of .* has '10.5';",
        ),
        (("slide,age", 'a,"9,5"', "b,10", "c,1"), r"line 2 of .* has the age '9,5'; write all numbers with points"),
        (("slide;age", "a;1,500", "b;567", "c;2,250"), r"line 2 of .* has the age '1,500', whose comma may divide"),
        (("slide;age", "a;0,125", "b;1,250", "c;2"), [[0.125], [1.25], [2]]),
    ],
)
def test_decimal_commas_are_read_where_commas_do_not_divide(tmp_path: Path, rows: Any, expected: Any) -> None:
    data, listed = features(tmp_path / "f", "a", "b", "c"), table(tmp_path / "t.csv", *rows)
    if isinstance(expected, str):
        with pytest.raises(UserError, match=expected):
            read_cohort(data, listed, Columns("age"), task="regression")
    else:
        assert read_cohort(data, listed, Columns("age"), task="regression").targets.tolist() == expected


TWO = ("case_id,slide_id,label", "a,s1,x", "b,s2,y")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ((*TWO, "B,s3,y"), "patients that differ in capitals, spaces or zeros: B, b; spell each one way"),
        ((*TWO, "3,s3,y", "003,s4,y"), "patients that differ in capitals, spaces or zeros: 003, 3; spell"),
        ((TWO[0], "a,s1,1", "b,s2,0", "c,s3,1.0"), "classes that differ in capitals, spaces or zeros: 1, 1.0; merge"),
        ((TWO[0], "a,s1,Low", "b,s2,high", "c,s3,low"), "classes that differ .*: Low, low; merge them: --classes"),
        ((*TWO, "b,s2,y"), "slides with two rows in .*t.csv: s2; keep one row"),
        ((*TWO, "b,s2.svs,y"), "rows of the table that mean the same slide: s2 and s2.svs; keep one"),
        ((*TWO, "c,s3,nan"), r"1 row has no label: line 4 of .*t.csv \(s3\); fill them in"),
        ((*TWO, "c,s3,"), "1 row has no label: line 4"),
        ((*TWO, ",s3,x"), "rows without a patient or a slide: line 4"),
        ((*TWO, "N/A,s3,x"), "rows without a patient or a slide: line 4"),
        ((*TWO, "a,s3,y"), "patients whose slides have several values of label: a; use --grouping single"),
        (TWO[:2], "all cases have the label x; two or more classes are needed"),
        (("case_id,slide_id,label", "a,z1,x", "b,z2,y"), r"no slide of .* \(the table has z1, z2, the folder s1, s2\b"),
        (("case_id,slide_id,label", "a,S1,x", "b,S2,y"), r"no slide of .*; S1 and s1 differ in capitals\); check both"),
        (("case_id,slide_id,grade", "a,s1,x"), "has no usual column of the target; name it with --target .*grade"),
        (("label,other", "x,1"), "names neither slides nor patients"),
        (("case_id,slide_id,label,Label", "a,s1,x,y"), "two columns: label; rename one"),
        (("case_id,slide_id,label",), "has no rows"),
        (("case_id,slide_id,label", "a,s1,x,,", "b,s2,y,,z"), "line 3 of .* has 5 fields, its header 3; quote fields"),
        (("case_id,slide_id,label", 'a,s1,"x'), r"cannot be read \(line 2 has a quote .*\); correct it"),
    ],
)  # fmt: skip
def test_wrong_tables_are_refused(tmp_path: Path, rows: tuple[str, ...], message: str) -> None:
    data = features(tmp_path / "f", "s1", "s2", "s3")
    with pytest.raises(UserError, match=message):
        read_cohort(data, table(tmp_path / "t.csv", *rows), Columns())


def test_numbers_that_are_none_are_refused(tmp_path: Path) -> None:
    data = features(tmp_path / "f", "s1", "s2")
    wrong = [(value, "is not a number") for value in ("inf", "x", "1_0", "٣")]
    for value, message in (*wrong, ("3", "all cases have the same m")):
        listed = table(tmp_path / "t.csv", "case_id,slide_id,m", "a,s1,3", f"b,s2,{value}")
        with pytest.raises(UserError, match=message):
            read_cohort(data, listed, Columns("m"), task="regression")
    listed = table(tmp_path / "t.csv", "case_id,slide_id,m,e", "a,s1,3,1", "b,s2,-4,0")
    with pytest.raises(UserError, match=r"rows with a m before 0: line 3"):
        read_cohort(data, listed, Columns("m", event="e"), task="survival")
    listed = table(tmp_path / "t.csv", "case_id,slide_id,m,e", "a,s1,3,1", "b,s2,4,maybe")
    with pytest.raises(UserError, match=r"line 3 of .* has the event 'maybe'; give 1"):
        read_cohort(data, listed, Columns("m", event="e"), task="survival")


def test_a_slide_with_two_files_and_an_ambiguous_name_are_refused(tmp_path: Path) -> None:
    data = features(tmp_path / "f", "one/s1", "two/s1")
    listed = table(tmp_path / "t.csv", "case_id,slide_id,label", "a,s1,x")
    with pytest.raises(UserError, match=r"line 2 of .* names s1, which may be one/s1, two/s1; give the path"):
        read_cohort(data, listed, Columns())
    (data / "one/s1.h5").write_bytes(b"")
    with pytest.raises(UserError, match="are both features of the slide one/s1"):
        read_cohort(data, listed, Columns())


def test_slides_that_differ_in_their_ending_keep_it(tmp_path: Path) -> None:
    """As ``densepath embed`` names them."""
    data = features(tmp_path / "f", "a.svs", "a.ndpi", "b.svs")
    rows = ("case_id,slide_id,label", "p,a.svs,x", "q,a.ndpi,y", "r,b,y")
    cohort = read_cohort(data, table(tmp_path / "t.csv", *rows), Columns())
    assert cohort.slides == [("a.svs",), ("a.ndpi",), ("b",)]
    assert [files[0].name for files in cohort.files] == ["a.svs.pt", "a.ndpi.pt", "b.svs.pt"]
    with pytest.raises(UserError, match=r"names a, which may be a\.ndpi, a\.svs"):
        read_cohort(data, table(tmp_path / "t.csv", rows[0], "p,a,x"), Columns())
    features(data, "a")
    with pytest.raises(UserError, match="are both features of the slide a; remove one"):
        read_cohort(data, table(tmp_path / "t.csv", *rows), Columns())


def test_a_name_is_that_of_one_slide() -> None:
    names = Names(["s", "a/s", "TCGA-3X-AAVA-01Z-00-DX1.U", "TCGA-3X-AAVA-01Z-00-DX1.V"])
    for asked, found in (
        ("s.svs", "s"),
        ("a/s", "a/s"),
        ("b/s", "s"),  # which cannot be a/s
        ("TCGA-3X-AAVA-01Z-00-DX1.V.svs", "TCGA-3X-AAVA-01Z-00-DX1.V"),
    ):
        assert names.find(asked, "t.csv") == found
    for asked in ("TCGA-3X-AAVA-01Z-00-DX1", "TCGA-3X-AAVA-01Z-00-DX1.W"):
        with pytest.raises(UserError, match=f"names {asked}, which may be"):
            names.find(asked, "t.csv")


def test_a_slide_is_looked_up_without_a_comparison_with_all_its_namesakes(monkeypatch: pytest.MonkeyPatch) -> None:
    slides = ["a/s", "b/c/s", "t", "b/u", "TCGA-3X-AAVA-01Z-00-DX1.U", "x/TCGA-3X-AAVB"]
    asked = ["a/s", "s", "q/s", "c/s.svs", "x/b/c/s", "z/t", "u", "v", "d/tcga-3x-aava-01z-00-dx1.V", "TCGA-3X-AAVC"]
    for slide in slides:
        one = [feature_files._one_slide(feature_files.slide_name(name), slide) for name in asked]
        assert [Names([slide]).hold(name) for name in asked] == one
    names = Names([f"p{number}/s" for number in range(50)])
    monkeypatch.setattr(feature_files, "_one_slide", lambda one, other: pytest.fail("compared"))
    assert not names.hold("q/s") and names.find("q/s", "t.csv") is None and names.hold("s")


def test_slides_of_one_name_in_different_folders_are_different(tmp_path: Path, capfd: Any) -> None:
    data = features(tmp_path / "f", "siteB/1", "siteC/1", "siteA/2", "siteB/3")
    rows = ("slide_id,label", "siteA/1.svs,x", "/slides/siteA/2.svs,y", "3,x")
    cohort = read_cohort(data, table(tmp_path / "t.csv", *rows), Columns())
    assert cohort.slides == [("siteA/2",), ("siteB/3",)]
    said = "without features: siteA/1.svs; siteB/1 has the file name of siteA/1.svs"
    assert said in capfd.readouterr().err
    with pytest.raises(UserError, match=r"siteB/1 has the file name of siteA/1\); check both"):
        read_cohort(data, table(tmp_path / "t.csv", "slide_id,label", "siteA/1,x"), Columns())
    with pytest.raises(UserError, match=r"line 2 of .* names 1, which may be siteB/1, siteC/1; give the path"):
        read_cohort(data, table(tmp_path / "t.csv", "slide_id,label", "1,x"), Columns())
    names = Names(["a/TCGA-3X-AAVA-01Z-00-DX1.U"])
    assert names.find("b/tcga-3x-aava-01z-00-dx1.V.svs", "t.csv") == "a/TCGA-3X-AAVA-01Z-00-DX1.U"


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (torch.zeros(3, 5), "b.pt has 5 features for each tile, .*a.pt has 4; use those of one extractor"),
        (torch.zeros(0, 4), "b.pt has no tiles; remove this slide"),
        (torch.full((3, 4), torch.nan), "b.pt has features of NaN, Inf or beyond 65504"),
        (torch.full((3, 4), 1e6), "b.pt has features of NaN, Inf or beyond 65504"),
        (torch.zeros(3), "b.pt has no features of tiles"),
    ],
)
def test_wrong_features_are_refused(tmp_path: Path, second: torch.Tensor, message: str) -> None:
    files = [(features(tmp_path, "a") / "a.pt",), (tmp_path / "b.pt",)]
    torch.save(second, files[1][0])
    with pytest.raises(UserError, match=message):
        read_bags(["a", "b"], files)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"mpp": 1.0}, r"b.h5 has features of tiles with 1 µm per pixel instead of 0.5 in .*a.h5; use tiles of one"),
        ({"patch_size": 512}, "512 pixels per side instead of 256"),
        ({"overlap": 64}, "64 pixels of overlap instead of 0"),
        ({"size": 224}, "224 pixels after resizing instead of 0"),
        ({"mpp": 0.504}, None),  # as scanners differ
        ({"mpp": None, "patch_size": 512}, None),  # of a slide with another magnification
        ({"mpp": float("nan"), "target_magnification": 0}, None),
        ({"overlap": "None"}, None),
        ({"patch_size": "unknown", "size_um": -1}, None),
    ],
)
def test_features_of_other_tiles_are_refused(
    tmp_path: Path, second: dict[str, Any], message: str | None, capfd: Any
) -> None:
    """The first file does not know the size of its tiles."""
    ours = {"weights": "w", "weights_digest": "0" * 20, "size": 0}
    for name, own in (("0", {"mpp": None}), ("a", {}), ("b", second)):
        notes = {"mpp": 0.5, "patch_size": 256, "overlap": 0, **ours, **own}
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["features"] = np.zeros((1, 4), np.float32)
            file["coords"] = np.zeros((1, 2), np.int64)
            file.attrs["densepath"] = json.dumps({key: notes[key] for key in ours})
            file["coords"].attrs.update({k: v for k, v in notes.items() if k not in ours and v is not None})
    files = [(tmp_path / f"{name}.h5",) for name in "0ab"]
    if message is None:
        assert len(read_bags([*"0ab"], files)) == 3
        return
    with pytest.raises(UserError, match=message):
        read_bags([*"0ab"], files)
    assert len(read_bags([*"0ab"], files, mixed=True)) == 3
    assert re.search(message.split(";")[0], capfd.readouterr().err)


def test_damaged_features_are_refused_in_few_words(tmp_path: Path) -> None:
    path = features(tmp_path, "a") / "a.pt"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError) as refused:
        read_bags(["a"], [(path,)])
    assert str(refused.value) == f"{path} is damaged or not a torch file; copy or export it again"


def test_slides_of_a_patient_are_one_bag_of_float16(tmp_path: Path) -> None:
    features(tmp_path, "a", "b")
    files = (tmp_path / "a.pt", tmp_path / "b.pt")
    (bag,) = read_bags(["p"], [files])
    whole = torch.cat([torch.load(file, weights_only=True) for file in files])
    assert bag.kept is not None and bag.kept.dtype == torch.float16
    torch.testing.assert_close(bag.tiles(), whole.half())


def test_bags_beyond_the_memory_are_read_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    features(tmp_path, "a", "b")
    monkeypatch.setattr("densepath.transfer.mil.bags.available_memory", lambda: 50)  # of 24 bytes each
    one, two = read_bags(["a", "b"], [(tmp_path / "a.pt",), (tmp_path / "b.pt",)])
    assert one.kept is not None and two.kept is None
    torch.testing.assert_close(two.tiles(), torch.load(tmp_path / "b.pt", weights_only=True).half())
    assert "1 of 2 bags do not fit into memory" in capfd.readouterr().err


def test_rows_are_written_as_they_are_read(tmp_path: Path) -> None:
    """A name with a comma, and a table with tabs and a byte order mark."""
    data = features(tmp_path / "f", "a, b", "c")
    with (tmp_path / "t.tsv").open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file, delimiter="\t").writerows(
            [["Case ID", "Slide ID", "Label"], ["1", "a, b", "x"], ["2", "c", "y"]]
        )
    assert found(read_cohort(data, tmp_path / "t.tsv", Columns())) == {"1": ("x", ("a, b",)), "2": ("y", ("c",))}


def test_sites_are_checked_without_comparing_all_patients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For 20,000 patients that took a minute."""
    compared: list[str] = []

    class Name(str):
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            compared.append(self)
            return str.__eq__(self, other)

    names = [f"s{number:02d}" for number in range(40)]
    rows = [
        slide_table.Row(name, Name(f"p{name}"), "xy"[number % 2], f"h{number % 3}") for number, name in enumerate(names)
    ]
    found = slide_table.SlideTable(rows, "label", "patient")
    monkeypatch.setattr("densepath.transfer.mil.cohort.read_slide_table", lambda *_: found)
    for name in names:
        (tmp_path / f"{name}.pt").write_bytes(b"")
    cohort = read_cohort(tmp_path, "t.csv", Columns(site="site"))
    assert cohort.group == "site" and len(cohort.patients) == 40
    assert len(compared) < 20 * len(names)
