"""Names of columns in users' tables, as ``plain_head`` spells them, and the names of splits in them and of folders."""

from __future__ import annotations

# Of each kind the first that a table has counts. Readers differ in the order, which they keep: another one would read
# other columns of tables that have several.
PATH_COLUMNS = ("file", "path", "image", "filename", "file_name", "filepath", "file_path", "image_path", "image_file")
FILE_COLUMNS = (
    *("file", "file_name", "filename", "path", "image", "name", "filepath", "file_path", "image_path", "image_file"),
    *("image_name", "image_index"),
)
LABELLED_COLUMNS = tuple(dict.fromkeys((*FILE_COLUMNS[:6], "image_name", "image_index", *FILE_COLUMNS)))
SLIDE_COLUMNS = ("slide_id", "slide", "filename", "file_name", "file", "wsi", "image", "path", "name")
LISTED_SLIDE_COLUMNS = ("slide", "slide_id", "wsi", "filename", "file", "path", "name", "file_name", "image")
PATIENT_COLUMNS = (
    *("patient", "patient_id", "patientid", "case", "case_id", "caseid", "subject", "subject_id", "subjectid"),
)
SPLIT = "split"

SPLITS = ("train", "val", "test")
SPLIT_OF = {
    **{"train": "train", "training": "train"},
    **{"val": "val", "valid": "val", "validation": "val"},
    **{"test": "test", "testing": "test"},
}


def plain_head(head: str) -> str:
    """The name of a column as it is compared: ``Patient ID`` is ``patient_id``."""
    return head.strip().lower().replace(" ", "_")
