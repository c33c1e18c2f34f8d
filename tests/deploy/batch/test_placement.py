import pytest

from cris_deploy.batch.placement import Share, share
from cris_deploy.errors import InputError

HERE = {"on_cpu": False, "may_grow": False}


def test_a_worker_s_share() -> None:
    assert share(2, None, None, {"CPU": 9.0}, **HERE) == Share(4, 0)
    assert share(2, 3, None, {"CPU": 9.0}, **HERE) == Share(3, 0)
    assert share(2, None, None, {"CPU": 8.0, "GPU": 2.0}, **HERE) == Share(4, 1)
    assert share(4, None, 0.5, {"CPU": 8.0, "GPU": 2.0}, **HERE) == Share(2, 0.5)
    on_cpu = {**HERE, "on_cpu": True}
    assert share(2, None, None, {"CPU": 8.0, "GPU": 1.0}, **on_cpu) == Share(4, 0)


def test_what_will_never_be_there_is_not_waited_for() -> None:
    with pytest.raises(InputError, match="3 workers with 1 CPU each do not fit into the 2"):
        share(3, None, None, {"CPU": 2.0}, **HERE)
    with pytest.raises(InputError, match=r"2 workers with 1 GPU .* --gpus"):
        share(2, None, None, {"CPU": 2.0, "GPU": 1.0}, **HERE)
    growing = {**HERE, "may_grow": True}
    assert share(3, 2, 1, {"CPU": 2.0}, **growing) == Share(2, 1)
