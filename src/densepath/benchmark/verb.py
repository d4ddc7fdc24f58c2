"""``densepath benchmark``: computes a paper's table."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

from densepath.benchmark.checks import checked_seeds
from densepath.benchmark.config import TableConfig, load_table
from densepath.benchmark.cost import describe, estimate
from densepath.benchmark.curves import draw_budgets
from densepath.benchmark.devices import job_slots, parse_devices
from densepath.benchmark.executors import make_submit
from densepath.benchmark.grid import make_grid
from densepath.benchmark.identity import ImageSet, read_tiles
from densepath.benchmark.labelled_sets import LabelledSet
from densepath.benchmark.overlap import check_overlap
from densepath.benchmark.results import collect
from densepath.benchmark.run_folder import RunFolder
from densepath.benchmark.runner import Runner
from densepath.benchmark.steps import STEPS
from densepath.benchmark.sweeps import draw_sweeps
from densepath.benchmark.table_runs import Grid
from densepath.benchmark.tables import to_csv, to_markdown, to_record
from densepath.core.errors import UserError, counted
from densepath.core.files import atomic_write, require_new_folder
from densepath.core.paths import AnyPath, as_path, as_texts
from densepath.core.single_values import take_single_values
from densepath.core.streams import open_console
from densepath.sources.run_folders import refuse_among_images

TABLE, PICTURE, SWEEPS = "table", "curves.png", "sweeps.png"
_RUNS, _DIGESTS, _NAME = "runs", "contents", "name.txt"
_JOBS = "jobs"  # submitit's own files
_OWN = (_RUNS, _DIGESTS, f"{TABLE}.md")


@take_single_values
def benchmark_table(
    *,
    config: str | Path,
    out: str | Path,
    data: Sequence[str] = (),
    tiles: AnyPath | Sequence[AnyPath] | None = None,
    exclude: Sequence[str] = (),
    orientation: Literal["stored", "viewed"] | None = None,
    given: Sequence[str] = (),
    seeds: Sequence[int] = (),
    pretrain_seeds: Literal["table", "own"] = "table",
    rows: Sequence[str] = (),
    baseline: str | None = None,
    runs: str | Path | None = None,
    devices: int | str = "auto",
    executor: Literal["local", "slurm", "debug"] | None = None,
    executor_options: Sequence[str] = (),
    allow_overlap: bool = False,
    dry_run: bool = False,
) -> Path | None:
    """Compute a paper's table: pre-train every row and evaluate it on every task, with several seeds.

    Each run has its own folder, named by a digest of its options, its data and the code. A finished run is not
    repeated, a run that was stopped or killed is resumed, and a change of options, data or code makes new runs:
    nothing is mixed. ``table.md``, ``table.csv``, ``table.json`` and its plots, ``curves.png`` and ``sweeps.png``, are
    written whenever a run is done; ``densepath report`` makes a page of them.
    Runs that another process executes are waited for as long as it writes to their folders, at most 30 minutes without
    a change (DENSEPATH_WAIT_LIMIT).

    Args:
        config: "table1" to "table3", "table4_weight", "table4_clusters", "table4_stage", "table4_backbone" and
            "figure1" of ConCL; "conv_mim_table1" to "conv_mim_table6", "conv_mim_figure4" and "conv_mim_figure5" of
            Conv-MIM; "dirl_table1" to "dirl_table10" and "dirl_figure6" of DiRL; "pcrl_table1" to "pcrl_table3",
            "pcrl_figure4a" and "pcrl_figure4b" of PCRL; the small "glas_small" (a GPU), "glas_probe", "why_concl",
            "budgets", "few_labels", "dirl_small", "dirl_tokens_small", "pcrl_small" and "volumes_small" (a CPU); or a
            YAML file.
        out: the folder of the table; one folder per table. An edited YAML file of the same name can reuse it.
        data: the labelled sets as NAME=FOLDER, with the table's names; only FOLDER if the table has one set. Tasks on
            sets that are not given are left out. A folder is that of ``densepath data`` for outlined objects, holds
            images with classes, or is that of ``densepath tile`` with ``labels.csv`` in it or beside the slides.
        tiles: the unlabelled images: a folder, a text list, a glob, a packed store, or the folder of densepath tile; or
            NAME=FOLDER for each labelled set, where a table pre-trains on several.
        exclude: patterns of image files among the tiles to leave out: ``*`` and ``?`` in a path, a folder or a name.
        orientation: for labelled images with an orientation tag (of cameras), the pixels that the outlines describe: as
            "stored" in the file, or as "viewed", turned by the tag. Without it such images are refused.
        given: other inputs that rows need, as NAME=VALUE, or SET.NAME=VALUE where they differ between sets; rows whose
            inputs are missing are left out.
        seeds: override the table's seeds.
        pretrain_seeds: "own" gives each seed its own pre-training, where the table has one that all seeds share.
        rows: run only these rows and the baseline.
        baseline: overrides the table's baseline.
        runs: the folder of the runs; ``out/runs`` by default. Tables with the same folder share their pre-trainings.
        devices: "auto" (one GPU, or the CPU if there is none), a number of GPUs, "cuda:0,1", "cpu", or "cpu:2" for two
            parallel runs. With an executor: the number of jobs at a time, 4 by default.
        executor: start each run as a job through submitit: "slurm" on the machines of a cluster, "local" on this one,
            "debug" in this process. This command stays and submits the runs as others are done.
        executor_options: parameters of submitit's jobs as NAME=VALUE, e.g. gpus_per_node=1 timeout_min=600
            slurm_partition=gpu.
        allow_overlap: continue if test images, or their patients, are among the tiles; the table reports it.
        dry_run: only print which runs there are, which are done, and what the others cost.

    Returns:
        ``out/table.md``; None for a dry run.

    Raises:
        UserError: the table or the data are invalid, the folder holds another table, test images are among those for
            pre-training, or runs have failed; all other runs are done then.
        Interrupted: by Ctrl-C or SIGTERM; the runs have saved their state.
    """
    table = _chosen(load_table(config), seeds, rows, baseline)
    if pretrain_seeds == "own":
        table = replace(table, pretrain_seed=None)
    if executor is None and executor_options:
        raise UserError("--executor_options are those of an executor; give --executor too, or leave them out")
    available = parse_devices(devices) if executor is None else job_slots(devices, executor)
    out = Path(out)
    sources = _tile_sources(tiles, table)
    for source in sources.values():
        refuse_among_images(out, source)
    if not any((out / name).exists() for name in _OWN):
        require_new_folder(out, "the table")
    _check_same_table(out, table.name)
    root = Path(runs) if runs is not None else out / _RUNS
    folders = _folders(data, table)
    of_tasks = read_tasks(table, folders, out, orientation)
    labelled = {task.data: of_tasks[task.name] for task in table.tasks if task.name in of_tasks}
    sets = list({id(data): data for data in of_tasks.values()}.values())
    shares = any(task.pretrain.get("fraction", 1.0) < 1 for task in table.tasks)
    trains = shares or any(row.recipe for row in table.rows)
    found = {name: read_tiles(source, out, exclude) for name, source in sources.items() if trains}
    unlabelled: ImageSet | dict[str, ImageSet] | None = found.get("") or found or None
    notes = list(dict.fromkeys(f"{data.name}: {data}." for data in sets))
    notes += [f"tiles {name} for pre-training: {images}.".replace("  ", " ") for name, images in found.items()]
    notes += dict.fromkeys(check_overlap(list(found.values()), sets, allow=allow_overlap))
    grid = make_grid(table, labelled, unlabelled, _pairs(given, "given"), out, of_tasks, dry_run)
    notes += [f"Left out: {line}." for line in grid.skipped]

    console = open_console(sys.stderr, highlight=False, soft_wrap=True)
    console.print(f"{table.title}: {counted(len(table.seeds), 'seed')}", markup=False)
    for line in [*notes, *describe(estimate(list(grid.runs.values()), root), table, len(available))]:
        console.print(line, markup=False)
    if dry_run:
        for name, run in grid.runs.items():
            console.print(f"{'done' if RunFolder(root, run).result() is not None else 'to do'}  {name}", markup=False)
        return None
    with atomic_write(out / _NAME) as part:
        part.write_text(f"{table.name}\n", encoding="utf-8")
    submit = None if executor is None else make_submit(executor, out.absolute() / _JOBS, executor_options)
    changed = partial(_write, out, table, grid, root, notes)
    runner = Runner(root, list(grid.runs.values()), available, changed, submit)
    runner.run()
    failures = [f"Failed: {name}: {why}." for name, why in runner.failed.items()]
    written = _write(out, table, grid, root, [*notes, *failures])
    if runner.failed:
        name, why = next(iter(runner.failed.items()))
        raise UserError(
            f"{len(runner.failed)} of {len(grid.runs)} runs failed, first {name}: {why}; fix the cause and give the "
            f"same command again ({written} has the other results)"
        )
    return written


def read_tasks(
    table: TableConfig, folders: Mapping[str, str], cache: Path, orientation: Literal["stored", "viewed"] | None
) -> dict[str, LabelledSet]:
    """Name of a task -> its labelled set, which tasks share if they read the same data in the same way.

    Args:
        table: the table.
        folders: name of a labelled set -> its folder; tasks on other sets are left out.
        cache: the folder in which digests of files are kept.
        orientation: the pixels that outlines describe.

    Raises:
        UserError: a set is invalid.
    """
    known: dict[str, LabelledSet] = {}
    found = {}
    for task in table.tasks:
        step = STEPS[task.verb]
        if task.data not in folders or step.read is None:
            continue
        options = {name: task.options[name] for name in sorted(step.read_options) if name in task.options}
        key = f"{task.data} {step.read.__qualname__} {options}"
        if key not in known:
            known[key] = step.read(task.data, folders[task.data], cache, orientation, options)
        found[task.name] = known[key]
    return found


def _check_same_table(out: Path, name: str) -> None:
    """Check that the folder does not hold a table with another name."""
    try:
        held = (out / _NAME).read_text(encoding="utf-8").strip()
    except (FileNotFoundError, UnicodeDecodeError):
        return
    if held != name:
        raise UserError(f"{out} holds the table {held}; use another folder for {name} (both may share --runs)")


def _chosen(table: TableConfig, seeds: Sequence[int], rows: Sequence[str], baseline: str | None) -> TableConfig:
    """The table with the user's seeds, rows and baseline."""
    names = [row.name for row in table.rows]
    for name in [*rows, *([baseline] if baseline is not None else [])]:
        if name not in names:
            raise UserError(f"{table.name} has no row {name!r}; there are: {', '.join(names)}")
    table = replace(table, baseline=baseline or table.baseline, seeds=checked_seeds(seeds) if seeds else table.seeds)
    kept = [row for row in table.rows if not rows or row.name in (*rows, table.baseline)]
    tasks = [replace(task, seeds=None) if seeds else task for task in table.tasks]
    return replace(table, rows=tuple(kept), tasks=tuple(tasks))


def _folders(data: Sequence[str], table: TableConfig) -> dict[str, str]:
    """Name of a labelled set -> its folder."""
    known = list(dict.fromkeys(task.data for task in table.tasks))
    if len(data) == 1 and len(known) == 1 and "=" not in data[0]:
        return {known[0]: data[0]}
    folders = _pairs(data, "data")
    if not folders:
        raise UserError(f"{table.name} needs labelled images: --data {known[0]}=FOLDER")
    for name in folders:
        if name not in known:
            raise UserError(f"{table.name} has no labelled set {name!r}; there are: {', '.join(known)}")
    return folders


def _tile_sources(tiles: AnyPath | Sequence[AnyPath] | None, table: TableConfig) -> dict[str, str | Path]:
    """Name of the tiles -> where they are; "" for those of all tasks."""
    if tiles is None or isinstance(tiles, str | os.PathLike):
        return {} if tiles is None else {"": as_path(tiles)}
    tiles = as_texts(tiles)
    known = list(dict.fromkeys(task.tiles for task in table.tasks))
    if len(tiles) == 1 and tiles[0].partition("=")[0] not in known:
        return {"": tiles[0]}
    named = _pairs(tiles, "tiles")
    for name in named:
        if name not in known:
            raise UserError(f"{table.name} has no tiles {name!r}; there are: {', '.join(known)}")
    return dict(named)


def _pairs(words: Sequence[str], option: str) -> dict[str, str]:
    pairs = {}
    for word in words:
        name, sign, value = word.partition("=")
        if not (name and sign and value):
            raise UserError(f"{option} is {word!r}; write NAME=VALUE")
        pairs[name] = value
    return pairs


def _write(out: Path, table: TableConfig, grid: Grid, root: Path, notes: Sequence[str]) -> Path:
    """Write the table with the results so far."""
    results = collect(table, grid, root)
    picture = draw_budgets(results, grid.budgets, out / PICTURE)
    swept = draw_sweeps(results, out / SWEEPS)
    for drawn, file in ((picture, PICTURE), (swept, SWEEPS)):
        if drawn is None:
            (out / file).unlink(missing_ok=True)  # a plot of an earlier configuration
    name = picture.name if picture else None
    texts = {
        "md": to_markdown(results, notes, name, swept.name if swept else None),
        "json": to_record(results, notes),
        "csv": to_csv(results),
    }
    for suffix, text in texts.items():
        with atomic_write(out / f"{TABLE}.{suffix}") as part:
            part.write_text(text, encoding="utf-8")
    return out / f"{TABLE}.md"
