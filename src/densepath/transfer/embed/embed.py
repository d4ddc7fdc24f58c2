"""``densepath embed``: a vector for each image, by a frozen network."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from torch import nn

from densepath.core.digests import digest_of
from densepath.core.errors import UserError, counted, first_few
from densepath.core.files import require_new_file
from densepath.core.locks import sole_writer
from densepath.core.paths import AnyPath, as_path
from densepath.core.random import check_seed
from densepath.core.records import CONFIG
from densepath.core.result import Result
from densepath.core.single_values import take_single_values
from densepath.core.streams import say
from densepath.core.system import with_progress
from densepath.core.waiting import wait_for
from densepath.runs.folder import read_config
from densepath.runs.watchdog import PARENT
from densepath.sources.corrupt import refuse_passing
from densepath.sources.image_files import passed_over
from densepath.sources.slides.find import holds_slides
from densepath.sources.volumes.store import VolumeStore
from densepath.training.caller_state import state_of_the_caller
from densepath.training.hardware import Hardware, Precision, choose_hardware, keep_freed_memory
from densepath.training.processes import other_processes
from densepath.transfer.embed.begun_features import await_record, begin_record, finished, kept_if_begun
from densepath.transfer.embed.blocks import Block, Blocks
from densepath.transfer.embed.embed_slides import EmbedOptions, embed_slides
from densepath.transfer.embed.encode import Encoded, batches_of, collect, encode
from densepath.transfer.embed.encoder import Encoder, Pool, input_size, load_encoder
from densepath.transfer.embed.feature_file import (
    VOLUMES,
    Features,
    Shape,
    check_format,
    encoded,
    read_features,
    write_features,
)
from densepath.transfer.embed.inputs import Inputs, open_source
from densepath.transfer.slides.slide_list import refuse_options
from densepath.version import __version__

_SHOWN = 1000  # damaged images in the notes


@dataclass(frozen=True, eq=False, repr=False)
class Embeddings(Result):
    """The file that :func:`embed` has written: a path, with the numbers ``images``, ``dim`` and ``damaged``.

    Args:
        damaged: file name and reason of the images that were passed over.
    """

    damaged: tuple[str, ...] = ()

    def load(self) -> Features:
        """Read the file: ``names``, ``values`` (N, D) and ``notes``.

        Raises:
            UserError: it is a folder of slides.
        """
        if Path(self).is_dir():
            raise UserError(f"{self} has a file for each slide; read them with densepath.read_slide_features")
        return read_features(Path(self))


@take_single_values
@state_of_the_caller()
def embed(
    *,
    data: AnyPath,
    weights: AnyPath,
    out: str | Path,
    backbone: str | nn.Module | None = None,
    stage: int | None = None,
    pool: Pool = "auto",
    size: int | None = None,
    dtype: Literal["float32", "float16"] = "float32",
    batch_size: int = 64,
    mpp: float | None = None,
    tile_size: int | None = None,
    mpp_table: AnyPath | None = None,
    default_mpp: float | None = None,
    shard: str | None = None,
    exclude: Sequence[str] = (),
    seed: int = 0,
    devices: int | str = "auto",
    precision: Precision = "auto",
) -> Embeddings:
    """Write a vector of features for each image, or for each tile of slides, by a frozen network.

    The file holds the features, the images' names (paths below ``data``) and what made them: the digest of the
    weights, backbone, pooling, pixels, date. Its ending chooses the format: .h5 (HDF5), .parquet or .safetensors. It
    appears when all images are done; the same command continues after a stop. A damaged image is reported and passed
    over.

    Slides, or a folder of ``densepath tile``, give a folder with a file for each slide, ``features_NAME/SLIDE.h5`` with
    the features and the places of its tiles in TRIDENT's layout, and ``heat_maps/SLIDE``, the first three principal
    components of the features as colors. Any number of processes and machines may share the work.

    Args:
        data: a folder of images, a text list of files, a glob, an image, or a packed store; or slides in the same ways,
            or the folder of ``densepath tile``.
        weights: a file, a run folder, "random", a timm name, "hf-hub:OWNER/NAME" or the folder of such a model.
        out: the file of the features: .h5, .hdf5, .parquet or .safetensors; for slides, a folder.
        backbone: a timm name, or in Python a network; default: that of the weights, resnet18 for random ones.
        stage: the stage whose map is pooled; by default the deepest.
        pool: "mean" over all positions of the map, which are the patch tokens of a vision transformer; "cls", its class
            token; "cls_mean", both one after the other; "attention", the attention pool of CONCH; "auto" is "attention"
            where the weights have one, else "cls" where there is a class token, else "mean".
        size: side in pixels: short sides are resized to it, and the center is cut out. By default a ConvNet sees images
            as they are, and a vision transformer the size of its positions; 0 for images as they are.
        dtype: of the numbers in the file.
        batch_size: images in a pass of the network.
        mpp: µm per pixel of the tiles of slides that are not tiled yet; default: 0.5. With it, TIFFs are slides.
        tile_size: side of such tiles in pixels; by default what a vision transformer was trained for, or 256.
        mpp_table: a CSV file with the columns wsi,mpp: µm per pixel that override those of the slides.
        default_mpp: µm per pixel of slides that have none.
        shard: this process's share of the slides, such as "2/8"; by default that of torchrun or srun. Other processes,
            such as those of job arrays, share by locks.
        exclude: patterns of image files to leave out: ``*`` and ``?`` in a path below ``data``, a folder or a name.
        seed: seed of random weights.
        devices: "auto" (one GPU, or the CPU), N (processes on as many GPUs, or on the CPU), "cpu" or "cpu:N".
        precision: "auto", "32" or "bf16-mixed"; on slides "auto" continues with that of the first start.

    Returns:
        The file; ``.load()`` reads it. With several processes, that of the first is complete.

    Raises:
        UserError: there are no such weights or images, ``out`` exists, no image can be read, or, when the others are
            done, one cannot be read now, but perhaps later.
    """
    data, weights, mpp_table = as_path(data), as_path(weights), as_path(mpp_table)
    out = Path(out)
    check_seed(seed)
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; give 1 or more")
    tiles: dict[str, Any] = {
        "mpp": mpp,
        "tile_size": tile_size,
        "mpp_table": mpp_table,
        "default_mpp": default_mpp,
        "shard": shard,
    }
    if mpp is not None or holds_slides(data, exclude):
        network = {"backbone": backbone, "stage": stage, "pool": pool, "seed": seed, "size": size}
        how = EmbedOptions(weights, network, dtype, batch_size, choose_hardware(devices, precision), precision)
        return Embeddings(out, embed_slides(data, out, how, exclude=exclude, **tiles))
    refuse_options("slides", tiles)
    check_format(out)
    folder = out.with_name(f".{out.name}.parts")
    hardware = choose_hardware(devices, precision)
    if hardware.rank == 0 and not (folder / CONFIG).exists():
        require_new_file(out)
    source = open_source(data, exclude)
    encoder, line = load_encoder(weights, backbone, source, stage=stage, pool=pool, seed=seed)
    inputs = Inputs(source, data, encoder.spec, input_size(encoder, size))
    notes: dict[str, Any] = {
        "data": str(data),
        "weights": str(weights),
        **encoder.notes(),
        "size": inputs.size,
        "dtype": dtype,
        "batch_size": batch_size,
        "precision": hardware.precision,
        "devices": str(devices),
        "densepath_version": __version__,
    }
    record = notes | {"names": digest_of(map(encoded, inputs.names))}
    blocks = Blocks(folder, inputs, batch_size, dtype, (read_config(folder) or {}).get("batch_size"))
    with ExitStack() as stack:
        if hardware.rank == 0:
            stack.enter_context(sole_writer(folder))
            if written := finished(out, folder, record):
                return _close(out, blocks, encoder.dim, written, written["damaged_images"])
            require_new_file(out)  # another command may have written it meanwhile
            stack.enter_context(kept_if_begun(folder))
            begin_record(folder, record)
            what = f"{counted(len(inputs), 'image')}, {counted(encoder.dim, 'number')} each"
            say(f"densepath: {line}; {what}{passed_over(source)}")
            children = stack.enter_context(other_processes(hardware))
        else:
            if written := await_record(out, folder, record):
                return _embeddings(out, encoder.dim, written, written["damaged_images"])
            children = []
        _encode(encoder, inputs, blocks, hardware)
        if hardware.rank > 0:
            return Embeddings(out, {"dim": encoder.dim})
        _await_blocks(blocks, children)
        return _gather(out, blocks, inputs, encoder.dim, dtype, notes)


def _encode(encoder: Encoder, inputs: Inputs, blocks: Blocks, hardware: Hardware) -> None:
    """Encode this process's share of the blocks that are not done."""
    left = [b for b in range(hardware.rank, len(blocks), hardware.world_size) if not blocks.is_done(b)]
    if not left:
        return
    keep_freed_memory(hardware)
    hardware.lay_out(encoder)
    encoder.to(hardware.device)
    half = hardware.precision == "bf16-mixed"
    jobs = [(block, batch) for block in left for batch in batches_of(blocks.positions(block), blocks.batch_size)]
    parts = encode(encoder, inputs, [batch for _, batch in jobs], hardware.device, half)
    with closing(parts):
        own: list[Encoded] = []
        failed: list[str] = []
        for part in with_progress(parts, len(jobs), "embedding batches"):
            own.append(part)
            block = jobs[part.batch][0]
            if part.batch + 1 < len(jobs) and jobs[part.batch + 1][0] == block:
                continue
            positions, features, damaged, passing = collect(own)
            failed += passing
            if not passing:  # otherwise the next start does the block
                blocks.write(block, Block(positions, features, damaged))
            own.clear()
            if PARENT in os.environ and hardware.rank > 0 and os.getppid() != int(os.environ[PARENT]):
                raise UserError("the first process has ended; see its message, then start again")
    refuse_passing(failed)


def _await_blocks(blocks: Blocks, children: Sequence[subprocess.Popen[bytes]]) -> None:
    """Wait for the blocks of the other processes."""
    left = set(range(len(blocks)))

    def attempt(seconds: float) -> None:
        left.difference_update([block for block in left if blocks.is_done(block)])
        if left and any(child.poll() for child in children):
            raise UserError("another process has failed; see its message, then start again: what is done is kept")
        if left:
            time.sleep(seconds)
            raise TimeoutError

    remedy = "another process hangs or has ended; see its message, then start again: what is done is kept"
    wait_for(attempt, "the features of other processes", remedy, sign=lambda: len(left))


def _gather(out: Path, blocks: Blocks, inputs: Inputs, dim: int, dtype: str, notes: dict[str, Any]) -> Embeddings:
    """Write the blocks as one file, and remove them."""
    count, name_bytes, damaged = 0, 0, []
    for block in blocks.read():
        count += len(block.positions)
        name_bytes += sum(len(encoded(inputs.names[position])) for position in block.positions)
        damaged += block.damaged
    if not count:
        blocks.remove()
        raise UserError(f"none of {counted(len(inputs), 'image')} can be read; check the files ({damaged[0]})")
    if isinstance(inputs.images, VolumeStore):
        known = inputs.images.rows
        notes = notes | {VOLUMES: {row["name"]: {key: row[key] for key in ("patient", "split")} for row in known}}
    notes = notes | {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "images": count,
        "damaged": len(damaged),
        "damaged_images": damaged[:_SHOWN],
    }
    parts = (([inputs.names[position] for position in block.positions], block.features) for block in blocks.read())
    write_features(out, parts, Shape(count, dim, dtype, name_bytes), notes)
    return _close(out, blocks, dim, notes, damaged)


def _close(out: Path, blocks: Blocks, dim: int, notes: Mapping[str, Any], damaged: Sequence[str]) -> Embeddings:
    """Remove the blocks, and report what the file holds."""
    blocks.remove()
    count, failed = notes["images"], notes["damaged"]
    without = f"; {counted(failed, 'damaged image')} passed over: {first_few(damaged)}" if failed else ""
    say(f"densepath: features of {counted(count, 'image')}, {counted(dim, 'number')} each, are in {out}{without}")
    return _embeddings(out, dim, notes, damaged)


def _embeddings(out: Path, dim: int, notes: Mapping[str, Any], damaged: Sequence[str]) -> Embeddings:
    scores = {"images": notes["images"], "dim": dim, "damaged": notes["damaged"]}
    return Embeddings(out, scores, damaged=tuple(damaged))
