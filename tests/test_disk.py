"""Folders that people name: links, mounts, long names, masks and full disks, told before the work or written
as they expect."""

from __future__ import annotations

import copy
import errno
import os
import stat
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import SafetensorError
from typer.testing import CliRunner

from regraft.cli.main import app
from regraft.core import files as disk
from regraft.core.files import (
    NotKeptError,
    NotWrittenError,
    RunFolderError,
    check_empty,
    check_place,
    keeping,
    place_of,
    whole_file,
    whole_folder,
    writing,
)
from regraft.core.registry import experiments
from regraft.experiments.running import run_experiment
from regraft.export import verified_folder
from regraft.jobs import experiment_job
from small import opened

pytestmark = pytest.mark.usefixtures("quick_linearity")


@pytest.fixture
def mask():
    """Sets the mask of new files, and puts the old one back."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def written(out, name="new"):
    with whole_folder(out) as fresh:
        (fresh / name).write_text(name)
    return sorted(path.name for path in place_of(out).iterdir())


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_a_link_stays_and_what_it_leads_to_is_written(tmp_path):
    (tmp_path / "disk" / "real").mkdir(parents=True)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "disk" / "real")
    check_empty(link, "--save")
    assert written(link) == ["new"]
    assert written(link, "newer") == ["newer"]
    assert link.is_symlink()
    assert names(tmp_path / "disk" / "real") == ["newer"]
    assert names(tmp_path / "disk") == ["real"]
    with pytest.raises(RunFolderError, match="is not empty"):
        check_empty(link, "--save")


def test_a_link_to_nothing_leads_to_the_new_folder(tmp_path):
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "deep" / "real")
    check_empty(link, "--save")
    assert written(link) == ["new"]
    assert link.is_symlink()
    assert names(tmp_path / "deep" / "real") == ["new"]
    assert written(link / "within") == ["new"]
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(RunFolderError, match=r"leads in a circle.*--save"):
        check_empty(tmp_path / "a", "--save")


def test_a_file_behind_a_link_is_refused(tmp_path):
    (tmp_path / "file").write_text("kept")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    for out in (tmp_path / "link", tmp_path / "link" / "below"):
        with pytest.raises(RunFolderError, match="file is a file"):
            check_place(out, "--out")


@pytest.mark.parametrize("reason", [errno.EBUSY, errno.EXDEV])
def test_a_folder_that_cannot_be_moved_is_filled(tmp_path, monkeypatch, reason):
    out = tmp_path / "mount"
    (out / "old").mkdir(parents=True)
    rename = Path.rename

    def held(self, target):
        if self == out:
            raise OSError(reason, os.strerror(reason))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", held)
    kept = out.stat().st_ino
    assert written(out) == ["new"]
    assert out.stat().st_ino == kept
    assert names(tmp_path) == ["mount"]


def test_a_mount_is_written_from_within(tmp_path, monkeypatch):
    out = tmp_path / "mount"
    out.mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == out)
    with whole_folder(out) as fresh:
        assert fresh.parent == out
        (fresh / "new").write_text("new")
    assert names(out) == ["new"]
    assert written(out, "newer") == ["newer"]


def test_a_closed_parent_does_not_close_a_folder(tmp_path, monkeypatch):
    out = tmp_path / "own"
    out.mkdir()
    closed = {tmp_path}
    monkeypatch.setattr(os, "access", lambda path, how: Path(path) not in closed)
    check_empty(out, "--out")
    with whole_folder(out) as fresh:
        assert fresh.parent == out
    closed.add(out)
    for name in ("own", "other", "deep/other"):
        with pytest.raises(RunFolderError, match=r"is closed to you\): choose another with --out"):
            check_empty(tmp_path / name, "--out")


def test_the_folder_that_one_stands_in_stays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kept = tmp_path.stat().st_ino
    check_empty(".", "--out")
    assert written(".") == ["new"]
    assert (tmp_path.stat().st_ino, names(tmp_path)) == (kept, ["new"])


@pytest.mark.parametrize("within", [True, False])
def test_what_was_there_comes_back_where_the_new_cannot_be_put(tmp_path, monkeypatch, within):
    out = tmp_path / "out"
    assert written(out, "old") == ["old"]
    name, owner = ("move", disk.shutil) if within else ("rename", Path)
    real = getattr(owner, name)

    def full(path, target):
        if Path(target) in (out, out / "new") and not Path(path).name.endswith(".old"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(path, target)

    monkeypatch.setattr(disk, "_stays", lambda folder: within)
    monkeypatch.setattr(owner, name, full)
    with pytest.raises(NotWrittenError, match="No space left"):
        written(out)
    assert names(out) == ["old"]
    assert names(tmp_path) == ["out"]


def test_long_names_are_written_or_refused_before(tmp_path):
    assert written(tmp_path / ("n" * 250)) == ["new"]
    with whole_file(tmp_path / ("f" * 250)) as part:
        part.write_text("text")
    for out in (tmp_path / ("n" * 256), tmp_path / "none" / ("é" * 128)):
        with pytest.raises(RunFolderError, match="a name has more than 255 bytes"):
            check_place(out, "--out")


@pytest.mark.parametrize(
    ("masked", "folders", "files"), [(0o002, 0o775, 0o664), (0o027, 0o750, 0o640), (0o077, 0o700, 0o600)]
)
def test_permissions_are_those_of_new_folders_and_files(tmp_path, mask, masked, folders, files):
    mask(masked)
    with whole_folder(tmp_path / "deep" / "out") as fresh:
        (fresh / "within").mkdir()
        for place in (fresh, fresh / "within"):
            (place / "plain").write_text("text")
            os.close(os.open(place / "owner's", os.O_CREAT, 0o600))
    with whole_file(tmp_path / "file") as part:
        part.unlink()
        os.close(os.open(part, os.O_CREAT, 0o600))
    out = tmp_path / "deep" / "out"
    assert {mode(path) for path in (out.parent, out, out / "within")} == {folders}
    assert {mode(place / name) for place in (out, out / "within") for name in ("plain", "owner's")} == {files}
    assert mode(tmp_path / "file") == files


def test_a_folder_that_was_there_keeps_its_permissions(tmp_path, mask):
    out = tmp_path / "shared"
    out.mkdir()
    out.chmod(0o2770)
    written(out)
    assert mode(out) == 0o2770


def test_home_is_written_out(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    check_empty("~/deep/out", "--out")
    assert written("~/deep/out") == ["new"]
    with whole_file("~/file") as part:
        part.write_text("text")
    assert names(tmp_path) == ["deep", "file"]
    with pytest.raises(RunFolderError, match="is not empty"):
        check_empty("~/deep/out", "--out")
    with pytest.raises(RunFolderError, match="home of nobody"):
        check_empty("~nobody-of-this-name/out", "--out")


FULL = "No space left on device (os error 28)"


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (OSError(errno.ENOSPC, "full"), "No space left on device): make room"),
        (OSError(errno.EDQUOT, "quota"), r"quota exceeded\): make room"),
        (OSError(errno.EROFS, "read"), r"Read-only file system\): choose a place that you may write to"),
        (OSError(errno.EACCES, "closed"), r"Permission denied\): choose a place that you may write to"),
        (SafetensorError(f"Error while serializing: I/O error: {FULL}"), "No space left on device"),
        (Exception(FULL), "No space left on device"),
    ],
)
def test_what_the_system_refuses_is_one_sentence_with_the_path(tmp_path, error, why):
    out = tmp_path / "out"
    for place in (whole_folder(out), whole_file(out), writing(out)):
        with pytest.raises(NotWrittenError, match=why.replace("device)", r"device\)")) as told, place:
            raise error
        assert str(out) in str(told.value)
        assert "\n" not in str(told.value)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOENT, "none"), ValueError("wrong"), Exception("other (os error 2)")]
)
def test_other_errors_stay_what_they_are(tmp_path, error):
    with pytest.raises(type(error)) as told, whole_folder(tmp_path / "out"):
        raise error
    assert told.value is error


def test_a_result_travels_with_the_error(tmp_path):
    with pytest.raises(NotWrittenError) as told, keeping("measured"), writing(tmp_path):
        raise OSError(errno.ENOSPC, "full")
    assert told.value.result == "measured"


SAVING = sorted(
    name for name, e in experiments().items() if any(p.annotation == "NewFolder" for p in e.parameters)
)
NEEDED = {"transplant": {"put": ["0:1"]}, "repeat": {"block": 0, "times": 2}, "quantize": {"format": "float"}}


def test_every_experiment_that_writes_says_so():
    assert SAVING == ["prune", "quantize", "reorder", "repeat", "transplant"]
    assert all(
        (p.name == "save") == (p.annotation == "NewFolder")
        for e in experiments().values()
        for p in e.parameters
    )


@pytest.mark.parametrize("name", SAVING)
def test_a_full_target_is_refused_before_anything_is_measured(tmp_path, monkeypatch, name):
    function = experiments()[name].function()
    module = sys.modules[function.__module__]
    reads = next(name for name in ("evaluation_or_texts", "evaluation") if name in vars(module))
    monkeypatch.setattr(module, reads, lambda *given: pytest.fail("it was measured"))
    (tmp_path / "full").write_text("kept")
    monkeypatch.setenv("HOME", str(tmp_path))
    for save in (str(tmp_path), "~", str(tmp_path / "full"), str(tmp_path / "full" / "below")):
        with pytest.raises(RunFolderError, match="choose another with --save"):
            function(opened("gpt2"), save=save, **NEEDED.get(name, {}))


@pytest.mark.parametrize("name", SAVING)
def test_what_was_measured_survives_a_full_disk(tmp_path, monkeypatch, name):
    def full(changed, folder):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(verified_folder, "_save_plainly", full)
    options = {"prompts": ["5,6,7,8"], "tokens": 2, **NEEDED.get(name, {})}
    with pytest.raises(
        NotWrittenError, match=r"new could not be written \(No space left on device\)"
    ) as told:
        run_experiment(experiments()[name], opened("gpt2"), save=str(tmp_path / "new"), **options)
    found = told.value.result
    assert (found.attrs["experiment"], found.attrs["saved"]) == (name, "")
    alone = run_experiment(experiments()[name], opened("gpt2"), **options)
    assert set(found.data_vars) == set(alone.data_vars)
    assert all(
        np.array_equal(found[v].values, alone[v].values)
        for v in found.data_vars
        if found[v].dtype.kind == "f"
    )
    assert names(tmp_path) == []


def test_a_result_is_printed_before_its_run_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(experiment_job, "store", lambda *words: disk_is_full())
    words = ["--model", "specimen:gpt2", "--count", "2", "--tokens", "3"]
    for command, shown in (("knockout", "units: loss"), ("prune", "units: loss")):
        own = ["--out", str(tmp_path / command), *(["--drop", "1"] if command == "prune" else [])]
        result = CliRunner().invoke(app, [command, *words, *own])
        assert result.exit_code == 1
        assert shown in " ".join(result.stdout.split())
        assert result.stderr.count("\n") == 1
        assert (
            f"{tmp_path / command} could not be written (No space left on device): make room" in result.stderr
        )
    assert names(tmp_path) == ["knockout", "prune"], "what was measured is kept"


def test_a_model_that_does_not_fit_the_disk_leaves_its_numbers_printed(tmp_path, monkeypatch):
    monkeypatch.setattr(verified_folder, "_save_plainly", lambda changed, folder: disk_is_full())
    words = [
        "prune",
        "--model",
        "specimen:gpt2",
        "--drop",
        "1",
        "--count",
        "2",
        "--tokens",
        "3",
        "--save",
        str(tmp_path / "new"),
    ]
    result = CliRunner().invoke(app, words)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "agreement" in result.stdout
    assert "could not be written" in result.stderr


@pytest.mark.parametrize("name", SAVING)
def test_what_was_measured_survives_a_folder_that_is_not_kept(tmp_path, monkeypatch, name):
    """One weight by one step, as a disk or a library might: the folder goes, the numbers stay."""
    plainly = verified_folder._save_plainly

    def spoiled(changed, folder):
        other = copy.deepcopy(changed)
        weight = next(other.parameters()).data
        weight[0, 0] = weight[0, 0].nextafter(weight.new_tensor(9.0))
        plainly(other, folder)

    monkeypatch.setattr(verified_folder, "_save_plainly", spoiled)
    options = {"prompts": ["5,6,7,8"], "tokens": 2, **NEEDED.get(name, {})}
    with pytest.raises(
        NotKeptError, match="is not read back as it was written: the folder is not kept"
    ) as told:
        run_experiment(experiments()[name], opened("gpt2"), save=str(tmp_path / "new"), **options)
    assert (told.value.result.attrs["experiment"], told.value.result.attrs["saved"]) == (name, "")
    assert names(tmp_path) == []
    if name == "prune":
        words = ["prune", "--model", "specimen:gpt2", "--drop", "1", "--count", "2", "--tokens", "3"]
        result = CliRunner().invoke(app, [*words, "--save", str(tmp_path / "new")])
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
        assert "agreement" in result.stdout


def disk_is_full():
    raise OSError(errno.ENOSPC, "full")
