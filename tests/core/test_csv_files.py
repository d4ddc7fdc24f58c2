"""Tables of users, opened in one way."""

import csv
import os

import pytest

from densepath.core.columns import plain_head
from densepath.core.csv_files import open_lines, open_table, read_rows, table_writer, write_rows
from densepath.core.errors import UserError
from densepath.core.geojson import ENDINGS as GEOJSON
from densepath.sources.listing import SUFFIXES as IMAGES
from densepath.sources.slides.find import SUFFIXES as SLIDES
from densepath.sources.volumes.read import SUFFIXES as VOLUMES
from densepath.transfer.mil.feature_files import SUFFIXES as FEATURES


@pytest.mark.parametrize(
    ("text", "encoding", "delimiter"),
    [("\ufeffname;x\nä;1,5\n", "utf-8", ";"), ("name\tx\nä\t1\n", "utf-16", "\t"), ("name,x\nä,1\n", "utf-8", ",")],
)
def test_what_spreadsheets_write(tmp_path, text, encoding, delimiter):
    (tmp_path / "table").write_bytes(text.encode(encoding))
    with open_lines(tmp_path / "table") as reader:
        assert reader.delimiter == delimiter
        assert next(reader) == ["name", "x"]
        assert [(reader.line_num, fields[0]) for fields in reader] == [(2, "ä")]
    assert [row["name"] for row in read_rows(tmp_path / "table", "", ["name", "x"])] == ["ä"]


@pytest.mark.parametrize("start", [b"PK\x03\x04", b"\xd0\xcf\x11\xe0"])
def test_a_workbook_is_named(tmp_path, start):
    (tmp_path / "table.xlsx").write_bytes(start + bytes(60))
    with (
        pytest.raises(UserError, match=r"table\.xlsx is a workbook .*; save it as CSV"),
        open_lines(tmp_path / "table.xlsx"),
    ):
        pass


def test_a_named_delimiter_and_comments_come_before_the_header(tmp_path):
    (tmp_path / "table").write_text('sep=,\r\n\r\n# exported\r\nname, a;b;c\r\n"x\ny", 1\r\n\r\nz\r\n', newline="")
    with open_table(tmp_path / "table") as table:
        assert list(table.rows()) == [(6, {"name": "x\ny", "a;b;c": "1"}), (8, {"name": "z", "a;b;c": ""})]


@pytest.mark.parametrize("separator", [",", "\t", ";"])
def test_a_comment_may_be_the_header(separator, tmp_path):
    """It names a column of files, and the row after it none; in tables of cBioPortal the header follows comments."""
    path = tmp_path / "a.csv"
    rows = [["#id", "file", "note"], ["1", "a.png", '"big" one']]
    path.write_text("# made by A\n" + "\n".join(separator.join(row) for row in rows))
    expected = {"id": "1", "file": "a.png", "note": "big one"}
    with open_table(path) as table:
        assert list(table.rows()) == [(3, expected)]
    assert read_rows(path, "write it again", ["file"]) == [expected]
    rows = [["#Slide", "Image"], ["#STRING", "STRING"], ["#1", "1"], ["SLIDE_ID", "IMAGE"], ["7", "a.png"]]
    path.write_text("\n".join(separator.join(row) for row in rows))
    with open_table(path) as table:
        assert list(table.rows()) == [(5, {"slide_id": "7", "image": "a.png"})]


@pytest.mark.parametrize(
    ("comment", "row"),
    [
        ("#id,file name,label", "1,a.png,cat"),
        ("# ID, File, Label", '1,a.png,"x, y"'),
        ("#id,file,label", '1,a,"x; y; z"'),
        ("#slide,label", "P1/S1,cat"),
        ("#slide,score", "S1,0.5"),
        ("#file,x,y", "S1,-3,0.5"),
        *(("#slide,label", f"S1{end},cat") for end in (*IMAGES, *SLIDES, *VOLUMES, *FEATURES, *GEOJSON)),
    ],
)
def test_a_comment_is_the_header_of_a_row_that_is_none(comment, row, tmp_path):
    (tmp_path / "a.csv").write_text(f"{comment}\n{row}\n")
    with open_table(tmp_path / "a.csv") as table:
        heads = [plain_head(head) for head in comment[1:].split(",")]
        assert list(table.rows()) == [(2, dict(zip(heads, next(csv.reader([row])), strict=True)))]


@pytest.mark.parametrize(
    ("comment", "heads"),
    [
        ("# file, tissue class", "File Name,Class"),
        ("#slide,label", "Slide ID,Label"),
        ("# image, version 2", "Image ID,Label"),
        ("# name, 2024", "x,y"),
        ("# image, tissue", "Sample.ID,Tissue.Type"),
        ("# path, class", "Slide,Class 1"),
        ("# slide, comment", "Case ID,HER2/neu"),
        ("# slide, 10", "case,10"),
    ],
)
def test_a_comment_before_a_header_is_none(comment, heads, tmp_path):
    (tmp_path / "a.csv").write_text(f"{comment}\n{heads}\na.png,1\n")
    with open_table(tmp_path / "a.csv") as table:
        first, second = map(plain_head, heads.split(","))
        assert list(table.rows()) == [(3, {first: "a.png", second: "1"})]


@pytest.mark.parametrize("row", ['a.png,"cat\n', '"a.png,cat\n', 'a.png,"cat\nb.png,cat\nc.png,"cat\n'])
def test_a_quote_that_is_not_closed_hides_no_rows(tmp_path, row):
    """The rest of the table, or the lines up to another such quote, would be one field."""
    (tmp_path / "table").write_text(f"file,label\nd.png,dog\n{row}e.png,dog\n")
    with open_table(tmp_path / "table") as table, pytest.raises(csv.Error, match="line 3 has a quote that is not clos"):
        list(table.rows())
    with pytest.raises(UserError, match=r"table cannot be read \(line 3 has a quote"):
        read_rows(tmp_path / "table", "", ["file"])


def test_a_text_may_follow_a_closing_quote_in_its_line(tmp_path):
    (tmp_path / "table").write_text('file,note\n"a.png" ,"x" y\n"b.png","1\n2"\n')
    with open_table(tmp_path / "table") as table:
        assert [row for _, row in table.rows()] == [
            {"file": "a.png", "note": "x y"},
            {"file": "b.png", "note": "1\n2"},
        ]


def test_fields_of_several_lines_may_stand_beside_other_quotes(tmp_path):
    """A row ends where it does for a lenient reader, if no field hides the lines after it."""
    text = 'file,note,patient\n"a.png" ,"1\n,2",p1\n"b.png","5" x, "1\r\n2" \n"c.png" x,"1\n2" ,"y" z\nd.png,,p4\n'
    (tmp_path / "table").write_text(text, newline="")
    with open_table(tmp_path / "table") as table:
        found = [(line, list(row.values())) for line, row in table.rows()]
    rows = [["a.png", "1\n,2", "p1"], ["b.png", "5 x", "1\r\n2"], ["c.png x", "1\n2", "y z"], ["d.png", "", "p4"]]
    assert found == list(zip([3, 5, 7, 8], rows, strict=True))


def test_a_row_with_a_field_that_is_too_long_is_not_left_out(tmp_path):
    (tmp_path / "table").write_text(f'file,note\na.png,"1\n2" ,{"x" * 200}\nb.png,y\n')
    limit = csv.field_size_limit(100)
    try:
        with pytest.raises(csv.Error, match="larger than field limit"), open_table(tmp_path / "table") as table:
            list(table.rows())
    finally:
        csv.field_size_limit(limit)


def test_a_blank_may_stand_before_a_quote(tmp_path):
    (tmp_path / "table").write_text('file,note\na.png, "x, y"\n')
    assert read_rows(tmp_path / "table", "", ["file"]) == [{"file": "a.png", "note": "x, y"}]


@pytest.mark.parametrize(
    "row", ['"a.png" x,"cat\nb.png,cat\nc.png,"cat\n', '"a.png",1,"cat\n', '"1\n2" ,a,"cat\n\n"b\n']
)
def test_a_quote_that_is_not_closed_after_other_quotes_is_named_by_its_line(tmp_path, row):
    (tmp_path / "table").write_text(f"file,label,x\n{row}")
    line = 2 + row[: row.index('"cat')].count("\n")
    with (
        open_table(tmp_path / "table") as table,
        pytest.raises(csv.Error, match=f"line {line} has a quote that is not"),
    ):
        list(table.rows())


@pytest.mark.parametrize("columns", [(), ("file", "note")])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("text", ['"file";"note"\n"a.png";"x, ""y"""\n', 'sep=\t\nfile\tnote\n"a.png"\t"x, ""y"""\n'])
def test_tables_that_spreadsheets_saved_with_quotes_are_read(tmp_path, text, encoding, columns):
    """Read with commas, the first field of a row is text after a closing quote."""
    (tmp_path / "table").write_text(text, encoding)
    assert read_rows(tmp_path / "table", "", columns) == [{"file": "a.png", "note": 'x, "y"'}]


def test_a_row_with_more_fields_than_the_header_is_refused(tmp_path):
    """A comma in the name of a file would make the rest of the name the patient."""
    (tmp_path / "table").write_text("file,patient\nb.png,p1,,\n\na,1.png,p2\n")
    message = (
        r"line 4 of .*table has 3 fields, its header 2; quote fields that contain the delimiter, double the quotes"
    )
    with open_table(tmp_path / "table") as table, pytest.raises(UserError, match=message):
        list(table.rows())
    with pytest.raises(UserError, match=message):
        read_rows(tmp_path / "table", "", ["file"])


def test_pipes_are_refused_and_an_empty_file_has_no_lines(tmp_path):
    """A table may be read again: the second reader of a pipe would find nothing."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="it is a pipe or a device; give a file"), open_lines(tmp_path / "pipe"):
        pass
    (tmp_path / "empty").touch()
    with open_lines(tmp_path / "empty") as reader:
        assert list(reader) == []


def test_what_is_written_is_read_again_and_lines_end_with_a_line_feed(tmp_path):
    rows = [{"slide": name, "label": "a"} for name in ("one\rtwo", "one\ntwo", "one\r\ntwo", 'a "b", c', "\udcfd")]
    write_rows(tmp_path / "table", ["slide", "label"], [*rows, {"slide": "last"}])
    assert read_rows(tmp_path / "table", "") == [*rows, {"slide": "last", "label": ""}]
    content = (tmp_path / "table").read_bytes()
    assert content.startswith(b"slide,label\n") and content.endswith(b",a\nlast,\n")
    with table_writer(tmp_path / "same") as writer:
        writer.writerows([["slide", "label"], *(row.values() for row in rows), ["last", ""]])
    assert (tmp_path / "same").read_bytes() == content
