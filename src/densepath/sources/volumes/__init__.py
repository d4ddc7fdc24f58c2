"""Volumes: reading NIfTI, DICOM series and MetaImage files, and the store that training reads boxes from."""
