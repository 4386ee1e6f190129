from __future__ import annotations

import os
import re
import subprocess
import time
from pathlib import Path

import pytest

from tokinfo.io.errors import InvalidError
from tokinfo.study.sites import Site
from tokinfo.workflow.jobs import check_times, device, job


def test_all_output_goes_to_the_log(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "logs" / "a.log"
    with job(log, "a"):
        print("from Python")
        os.write(2, b"from below\n")
    assert sorted(log.read_text(encoding="utf-8").splitlines()) == ["from Python", "from below"]
    assert capfd.readouterr() == ("", "")
    print("afterwards")
    assert capfd.readouterr().out == "afterwards\n"


def test_a_check_of_our_own_ends_in_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "a.log"
    with pytest.raises(SystemExit) as stopped, job(log, "cell x"):
        Site.parse("nowhere")
    assert stopped.value.code == 1
    text = log.read_text(encoding="utf-8")
    assert text.startswith("tokinfo: cell x: site 'nowhere': allowed")
    assert len(text.splitlines()) == 1
    assert capfd.readouterr().err == text


def test_a_missing_file_ends_in_one_line(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    with pytest.raises(SystemExit), job(log, "a"):
        (tmp_path / "gone").read_text(encoding="utf-8")
    text = log.read_text(encoding="utf-8")
    assert "gone" in text
    assert "Traceback" not in text


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate"),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    ],
    ids=["Python", "torch on the CPU", "torch on a GPU"],
)
def test_running_out_of_memory_is_one_line_that_says_what_to_do(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], error: Exception
) -> None:
    with pytest.raises(SystemExit), job(tmp_path / "a.log", "cell x"):
        raise error
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("tokinfo: cell x: out of memory (")
    assert line.endswith("(--cores), then the same command again")


def test_a_defect_keeps_its_traceback_in_the_log(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "a.log"
    with pytest.raises(SystemExit), job(log, "cell x"):
        {}["no such key"]
    text = log.read_text(encoding="utf-8")
    assert "Traceback" in text
    last = text.splitlines()[-1]
    assert last == f"tokinfo: cell x: KeyError: 'no such key' (traceback in {log})"
    assert capfd.readouterr().err.splitlines() == [last]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("no such mask"), "Traceback"),
        (InvalidError("no such mask"), "tokinfo: a: no such mask"),
    ],
    ids=["of a library", "of this package"],
)
def test_only_a_foreseen_error_goes_without_a_traceback(
    tmp_path: Path, error: Exception, message: str
) -> None:
    with pytest.raises(SystemExit), job(tmp_path / "a.log", "a"):
        raise error
    assert (tmp_path / "a.log").read_text(encoding="utf-8").startswith(message)


def test_the_device_follows_the_study_and_what_was_granted() -> None:
    import torch

    present = torch.cuda.is_available()
    assert device("cpu", 1) == "cpu"
    assert device("auto", 0) == "cpu"
    assert device("auto", 1) == ("cuda" if present else "cpu")
    if not present:
        with pytest.raises(InvalidError, match="no GPU here"):
            device("cuda", 1)


@pytest.mark.parametrize("count", [1, 5])
def test_files_of_a_time_in_the_future_are_named_with_the_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.chdir(tmp_path)
    files = [Path("my texts") / f"{number}.txt" for number in range(count + 1)]
    model = Path("results/model")
    for path in (*files, model / ".snakemake_timestamp"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    inputs = [*map(str, files), str(model), "no such file"]
    check_times(inputs, [])
    future = time.time() + 3600
    for path in files[1:]:
        os.utime(path, (future, future))
    # What a run makes again gets another time.
    check_times(inputs, [str(path) for path in files[1:]])
    with pytest.raises(InvalidError, match=re.escape(str(files[1]))) as raised:
        check_times(inputs, [])
    line = str(raised.value)
    assert str(files[0]) not in line
    (command,) = re.findall("`([^`]*)`", line)
    subprocess.run(command, shell=True, check=True)
    check_times(inputs, [])
    os.utime(model / ".snakemake_timestamp", (future, future))
    with pytest.raises(InvalidError, match=r"model/\.snakemake_timestamp"):
        check_times(inputs, [])
