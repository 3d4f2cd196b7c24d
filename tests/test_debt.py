"""What a restart makes of a debt, called as a worker calls it, with a real supervisord."""

import mmap

from harness import StartSupervisord, hog

import memmon


def test_debt_that_turns_out_to_be_none(start_supervisord: StartSupervisord) -> None:
    """A worker may be killed between the note of the debt and the stop: then the process runs on."""
    supervisord = start_supervisord(hog('big'))
    pid, = supervisord.wait_big('big')
    process = memmon.Process('big', 'big', pid, supervisord.info('big')['start'], 'RUNNING')
    limit = memmon.Limit('any', '*', 1, '-a 1')
    job = memmon.Job(memmon.Offender(process, limit, 2, 3), mmap.mmap(-1, 1))
    job.debt[0] = memmon.OWED
    assert memmon.restart(supervisord.env, job) == memmon.Result(
        memmon.LEFT_ALONE, 'the request to stop it was lost')
    assert job.debt[0] == memmon.NOTHING
    assert supervisord.pid('big') == pid
