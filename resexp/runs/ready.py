"""What of a job is checked without torch: its directory, its loggers, the files of its images."""

from __future__ import annotations

from resexp import data
from resexp.runs import records
from resexp.runs.loggers import check_loggers
from resexp.runs.records import Claim
from resexp.settings import Job


def ready(job: Job) -> Claim:
    """What the run directory says; if it is to be trained, UsageError for what is not there."""
    claim = records.look(job)
    if claim is not Claim.done:
        check_loggers(job.settings.loggers)
        records.check_writable(job)
        data.check_present(job.settings.data)
    return claim
