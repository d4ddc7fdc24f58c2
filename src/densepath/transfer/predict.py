"""``densepath predict``: a trained network on new images and whole slides."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from densepath.core.errors import UserError
from densepath.core.paths import AnyPath, as_path
from densepath.core.result import Result
from densepath.core.single_values import take_single_values
from densepath.training.caller_state import state_of_the_caller
from densepath.training.hardware import Precision, choose_device, choose_hardware
from densepath.transfer.classify.classifier import is_classifier
from densepath.transfer.classify.predict_classes import predict_classes
from densepath.transfer.classify.predict_tiles import OnSlides
from densepath.transfer.detection.predictor import OVERLAP
from densepath.transfer.mil.ensemble import is_mil_run
from densepath.transfer.mil.new_slides import SlideOptions
from densepath.transfer.mil.predict_answers import predict_answers
from densepath.transfer.predict_objects import ObjectOptions, predict_objects
from densepath.transfer.segment.predict_masks import predict_masks
from densepath.transfer.segment.segmenter import is_segmenter
from densepath.transfer.slides.slide_list import refuse_options

_SCORE, _PICTURES = 0.5, 8


@take_single_values
@state_of_the_caller()
def predict(
    run: AnyPath,
    *,
    data: AnyPath,
    out: str | Path,
    score: float = _SCORE,
    window: int | None = None,
    overlap: float | None = None,
    spacing: float | None = None,
    mpp: float | None = None,
    mpp_table: AnyPath | None = None,
    default_mpp: float | None = None,
    exclude: Sequence[str] = (),
    orientation: Literal["stored", "viewed"] | None = None,
    pictures: int | Literal["all"] = _PICTURES,
    weights: AnyPath | None = None,
    slides: AnyPath | None = None,
    shard: str | None = None,
    devices: int | str = "auto",
    precision: Precision = "auto",
) -> Result:
    """Apply a trained detector, classifier, segmenter, or model of slides to new images, volumes or whole slides.

    For each image, under its name: ``labels/*.png`` (16 bits; 0 for background, k for the k-th object, the smallest
    one where objects overlap), ``geojson/*.geojson`` (outlines for QuPath) and ``pictures/*.png``. For all images:
    ``predictions.json`` (COCO results), ``images.json`` (the images and categories that they refer to, in COCO's
    format) and ``objects.csv`` (a line for each object, with the area of the whole object, even where smaller
    ones cover it; in µm, too, where µm per pixel are known). The same command continues after a stop. A damaged image
    is reported and passed over.

    Slides are searched where there is tissue, in windows at the µm per pixel of the training images. They have no
    ``labels``, ``predictions.json`` and ``images.json``; ``geojson``, ``pictures`` and ``objects.csv`` are in pixels of
    level 0 and in µm, ``heat_maps`` has objects per mm², and ``slides.csv`` a line for each slide. Any number of
    processes may share the work on the slides of a folder.

    With a classifier, ``predictions.csv`` has the predicted class or labels of each image, and their probabilities. Of
    slides, ``tiles`` has such a table for each, ``heat_maps`` the probabilities on the slide, and ``slides.csv`` means.

    With a segmenter, ``labels`` has the class of each pixel, as the values of the training's label maps: PNG files for
    images, and for volumes NIfTI files with the affine map, the shape and the orientation of the volume's file.
    ``legend.json`` names the values, ``sizes.csv`` has the pixels or mm³ of each class, ``pictures`` overlays.

    With a run of ``mil``, slides become tiles and features as in its training, and get an answer by the model of each
    fold: ``patient-preds.csv`` and ``slides.csv`` have mean, standard deviation and each of them; ``attention`` has a
    table, GeoJSON and a heat map for each slide.

    Args:
        run: the folder of a run of ``detect``, ``classify`` or ``segment``, or its exported/detector.safetensors,
            classifier.safetensors or segmenter.safetensors; or the folder of a run of ``mil``.
        data: a folder of images, a text list of files, a glob, an image, or a packed store; or slides in the same ways,
            or the folder of ``densepath tile``, whose tiles are searched; for a segmenter of volumes, these in the same
            ways (NIfTI, MetaImage), or a store of them; for a run of ``mil``, also a folder of files of features.
        out: the folder of the results: ``geojson``, ``pictures`` and ``objects.csv``, for images ``labels``,
            ``predictions.json`` and ``images.json``, too, for slides ``heat_maps`` and ``slides.csv``.
        score: the lowest score of an object, from 0 to 1.
        window: side in pixels of the overlapping windows that large images are cut into; 0 for none. By default the
            short side of the training images, for images with more than twice the pixels of a window. For slides, in
            pixels of ``mpp``. For a run of ``mil``, the side of the tiles, if its features do not record it.
        overlap: share of a window that the next one covers; default: 0.25, with a segmenter that of its training.
        spacing: µm per pixel of all images; by default as stored in TIFFs and packed stores. Where they and those of
            the training images are known, windows have the µm of the training images.
        mpp: µm per pixel at which slides are searched; by default those of the training images, where these have them.
            With it, TIFFs are slides. For a run of ``mil``, that of the tiles, if its features do not record it.
        mpp_table: a CSV file with the columns wsi,mpp: µm per pixel that override those of the slides.
        default_mpp: µm per pixel of slides that have none.
        exclude: patterns of files to leave out: ``*`` and ``?`` in a path below ``data``, a folder or a name.
        orientation: how images with an orientation tag (of cameras) are read: as "stored" in the file, or as "viewed",
            turned by the tag. By default as the detector's training images.
        pictures: number of images to draw with the outlines of their objects or their attention, or "all".
        weights: for a run of ``mil``: those that made its features, if these do not record them or they have moved.
        slides: for a run of ``mil`` on files of features: the folder of their slides, for heat maps.
        shard: this process's share of the slides, such as "2/8"; by default that of torchrun or srun. Other processes,
            such as those of job arrays, share by locks.
        devices: "auto" (one GPU, or the CPU), or "cpu".
        precision: "auto", "32" or "bf16-mixed"; on slides "auto" continues with that of the first start.

    Returns:
        ``out``, with the numbers of "images" or "slides", "damaged" ones and "objects", and of slides that are "left"
        to other processes.

    Raises:
        UserError: there is no trained detector or no image, ``out`` holds other predictions, or no image can be read.
    """
    run, data = as_path(run), as_path(data)
    mpp_table, slides = as_path(mpp_table), as_path(slides)
    weights = None if weights is None else os.fspath(weights)
    of_detectors = {
        "score": score if score != _SCORE else None,
        "overlap": overlap,
        "spacing": spacing,
        "orientation": orientation,
    }
    of_slides: dict[str, Any] = {"mpp": mpp, "mpp_table": mpp_table, "default_mpp": default_mpp}
    of_mil = {"weights": weights, "slides": slides}
    how: dict[str, Any] = {"exclude": exclude, "devices": devices, "precision": precision}
    if pictures != "all" and pictures < 0:
        raise UserError(f"pictures is {pictures}; give a number, or all")
    if is_classifier(run):
        refuse_options("detectors, not classifiers", {**of_detectors, "window": window})
        refuse_options("detectors and runs of mil", {"pictures": pictures if pictures != _PICTURES else None})
        refuse_options("runs of densepath mil", of_mil)
        return predict_classes(run, data=data, out=out, slides=OnSlides(**of_slides, shard=shard), **how)
    if is_segmenter(run):
        refuse_options("detectors, not segmenters", {n: v for n, v in of_detectors.items() if n != "overlap"})
        refuse_options("detectors, classifiers and runs of mil, not segmenters", of_slides)
        refuse_options("runs of densepath mil", of_mil)
        of_windows: dict[str, Any] = {"window": window, "overlap": overlap, "shard": shard}
        return predict_masks(run, data=data, out=out, **of_windows, pictures=pictures, **how)
    if is_mil_run(run):
        refuse_options("detectors", of_detectors)
        choose_device(devices)
        hardware = choose_hardware(devices, precision)
        tiles = SlideOptions(weights, mpp, window, mpp_table, default_mpp, exclude, shard, hardware, precision)
        return predict_answers(Path(run), data, Path(out), tiles, slides, pictures)
    refuse_options("runs of densepath mil", of_mil)
    options = ObjectOptions(
        score=score,
        window=window,
        overlap=OVERLAP if overlap is None else overlap,
        spacing=spacing,
        **of_slides,
        orientation=orientation,
        pictures=pictures,
        shard=shard,
        **how,
    )
    return predict_objects(run, data, Path(out), options)
