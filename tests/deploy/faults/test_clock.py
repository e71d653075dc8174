"""The device's clock is years off."""

from __future__ import annotations

import json

import pytest

from edgeawq.deploy.receiver_client import ReceiverClient
from edgeawq.errors import DeviceLockedError
from tests.deploy.faults.harness import HarnessTransport, Stage, case, shift_clock
from tests.deploy.invariants import answer

YEAR_S = 365.25 * 86400
CHECKED = "the push completes; the order of releases does not come from the clock; the lock's age is never negative"


@pytest.mark.parametrize("years", [-56, -10, -1, 1, 10, 12, 100])
def test_pushes_with_a_wrong_clock(stage: Stage, years: float) -> None:
    with case("clock off by years", CHECKED):
        root = stage.fresh()
        new = stage.push(root, prelude=shift_clock(years * YEAR_S))
        assert answer(root) == "new"
        again = stage.push(root, stage.old)  # with the right clock again, and the other way round
        assert again.previous == new.release and answer(root) == "old"
        sequences = [entry["sequence"] for entry in json.loads((root / "state.json").read_text())["releases"].values()]
        assert len(set(sequences)) == len(sequences) == 2
        stage.check_and_complete(root, ("old",))


@pytest.mark.parametrize("years", [-10, 10])
def test_a_lock_is_judged_by_its_process_not_by_its_age(stage: Stage, years: float) -> None:
    with case("clock off by years: the lock", "alive means alive, whatever its age; a dead one is replaced"):
        root = stage.fresh()
        python = stage.facts.pythons[0].path
        transport = HarnessTransport(shift_clock(years * YEAR_S))
        holder = ReceiverClient(transport, python=python, root=str(root))
        holder.call("lock", owner="someone@else")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("edgeawq.deploy.push.LOCK_WAIT_S", 0.1)
            with pytest.raises(DeviceLockedError, match=r"someone@else for [0-9]+ (s|days)"):
                stage.push(root)
        transport.processes[-1]._child.kill()
        transport.processes[-1]._child.wait()
        stage.push(root)
        stage.check_and_complete(root, ("new",))
        holder.link.process.terminate()


def test_the_clock_jumps_during_a_push(stage: Stage) -> None:
    with case("clock jumps during a push", CHECKED):
        jumping = (
            "import itertools, time\n_jumps = itertools.count()\n_real = time.time\n"
            "time.time = lambda: _real() + (-1) ** next(_jumps) * 3e8\n"
        )
        root = stage.fresh()
        stage.push(root, prelude=jumping)
        stage.check_and_complete(root, ("new",))
