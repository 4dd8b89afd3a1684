"""Jobs: journal, resume, lock, budget, cancel, atomic publication, and what is refused."""

import json
import subprocess
import sys

import pytest

from consilience.core.jobs import MANIFEST, Budget, Job, check_output, clear_published
from consilience.errors import BudgetError, CancelledError, OutputError, RequestError


def test_publishes_once_and_leaves_nothing_behind(tmp_path):
    out = tmp_path / "deep" / "out"
    with Job(out, kind="t", request={"a": 1}) as job:
        (job.work / "x").write_text("1")
        job.publish()
    assert (out / "x").read_text() == "1" and (out / MANIFEST).is_file()
    assert not job.partial.exists()


def test_the_same_request_resumes_and_another_is_refused(tmp_path):
    out = tmp_path / "out"
    with Job(out, kind="t", request={"a": 1}) as job:
        job.record("one", value=3)
        (job.work / "x").write_text("1")
    assert not out.exists()
    with Job(out, kind="t", request={"a": 1}) as job:
        assert job.resumed and job.done["one"]["value"] == 3 and (job.work / "x").is_file()
    with pytest.raises(OutputError, match="another request"), Job(out, kind="t", request={"a": 2}):
        pass


def test_a_line_cut_by_a_kill_is_not_done(tmp_path):
    with Job(tmp_path / "out", kind="t", request={}) as job:
        job.record("one")
        job.record("two")
    journal = job.partial / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-4])
    with Job(tmp_path / "out", kind="t", request={}) as job:
        assert set(job.done) == {"one"}
        job.record("three")
    lines = [json.loads(line)["key"] for line in journal.read_text().splitlines()]
    assert lines == ["one", "three"]


def test_a_damaged_journal_is_named(tmp_path):
    with Job(tmp_path / "out", kind="t", request={}) as job:
        job.record("one")
    (job.partial / "journal.jsonl").write_text("garbage\n")
    with pytest.raises(RequestError, match="damaged line"), Job(tmp_path / "out", kind="t", request={}):
        pass


def test_two_processes_do_not_work_on_one_output(tmp_path):
    code = (
        "import sys; from pathlib import Path; from consilience.core.jobs import Job\n"
        f"with Job(Path({str(tmp_path / 'out')!r}), kind='t', request={{}}):\n"
        "    print('ready', flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"ready\n"
        with pytest.raises(OutputError, match="another process"), Job(tmp_path / "out", kind="t", request={}):
            pass
        other.stdin.close()
        assert other.wait(20) == 0
    with Job(tmp_path / "out", kind="t", request={}) as job:
        assert job.resumed


def test_budget_and_cancel_say_how_to_go_on(tmp_path):
    spent = Job(tmp_path / "a", kind="t", request={}, budget=Budget(wall_seconds=0))
    with spent as job, pytest.raises(BudgetError, match="run the same command again"):
        job.check()
    with Job(tmp_path / "b", kind="t", request={}) as job:
        job.check()
        job.cancel()
        with pytest.raises(CancelledError, match="run the same command again"):
            job.check()


def test_a_folder_that_is_not_ours_is_never_touched(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match="was not made by consilience"), Job(out, kind="t", request={}):
        pass
    assert (out / "thesis.txt").read_text() == "mine"
    (tmp_path / "file").write_text("x")
    assert "not a folder" in check_output(tmp_path / "file")[0]
    assert "is not a folder" in check_output(tmp_path / "file" / "below")[0]


def test_an_earlier_result_is_replaced_in_one_step(tmp_path):
    for value in ("1", "2"):
        with Job(tmp_path / "out", kind="t", request={"v": value}) as job:
            (job.work / "x").write_text(value)
            job.publish()
    assert (tmp_path / "out" / "x").read_text() == "2" and not job.partial.exists()


def test_a_kill_right_after_publishing_does_not_block_the_next_request(tmp_path):
    with Job(tmp_path / "out", kind="t", request={"v": 1}) as job:
        left = (job.partial / "job.json").read_bytes()
        job.publish()
    job.partial.mkdir()
    (job.partial / "job.json").write_bytes(left)
    with Job(tmp_path / "out", kind="t", request={"v": 2}) as job:
        assert not job.resumed
        job.publish()
    job.partial.mkdir()
    clear_published(tmp_path / "out")
    assert not job.partial.exists()
