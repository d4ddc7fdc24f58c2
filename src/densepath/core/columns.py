"""Names of columns in users' tables, as ``plain_head`` spells them, and the names of splits in them and of folders."""

from __future__ import annotations

# Of each kind the first that a table has counts.
PATH_COLUMNS = ("file", "path", "image", "filename", "file_name", "filepath", "file_path", "image_path", "image_file")
FILE_COLUMNS = tuple(
    dict.fromkeys(("file", "file_name", "filename", *PATH_COLUMNS, "image_name", "image_index", "name"))
)
SLIDE_COLUMNS = ("slide_id", "slide", "filename", "file_name", "file", "wsi", "image", "path", "name")
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
