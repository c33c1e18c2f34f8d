"""Arguments of the Ray Serve app; Ray itself is not needed for them."""

from pathlib import Path
from typing import Any

import pytest

from cris_deploy.errors import InputError
from cris_deploy.serving.ray_options import deployment_options, read_options


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({}, "bundle is missing"),
        ({"bundle": "x", "thread": "2"}, "did you mean threads?"),
        ({"bundle": "x", "threads": "many"}, 'threads is "many", expected an integer'),
        ({"bundle": "x", "replicas": 0}, "replicas is 0"),
        ({"bundle": "x", "replicas": 3, "most_replicas": 2}, "most_replicas is 2"),
        ({"bundle": "x", "gpus": -1}, "gpus is -1"),
        ({"bundle": "x", "queue": 0}, "queue is 0"),
        ({"bundle": "x", "timeout": "0"}, "timeout is 0"),
    ],
)
def test_arguments_that_cannot_be(args: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match="arguments of") as error:
        read_options(args)
    assert message in str(error.value)


def test_arguments_of_a_command_line_are_text() -> None:
    texts = {"bundle": "b", "threads": "2", "gpus": "0.5", "self_test": "false", "device": "cpu"}
    options = read_options(texts)
    assert (options.threads, options.gpus, options.self_test) == (2, 0.5, False)
    assert options.bundle == str(Path("b").absolute())
    assert read_options({"bundle": "7"}).bundle.endswith("/7")


def test_threads_are_the_cpus_of_a_replica() -> None:
    assert read_options({"bundle": "b"}).threads == 1
    assert read_options({"bundle": "b", "cpus": 4}).threads == 4
    assert read_options({"bundle": "b", "cpus": 0.5}).threads == 1


def test_ray_is_told_how_many_and_how_large() -> None:
    fixed = deployment_options(read_options({"bundle": "b", "replicas": 3, "gpus": 0.5}))
    assert fixed["num_replicas"] == 3
    assert fixed["ray_actor_options"] == {"num_cpus": 1.0, "num_gpus": 0.5}
    growing = deployment_options(
        read_options({"bundle": "b", "replicas": 0, "most_replicas": 8, "queue": 2})
    )
    assert "num_replicas" not in growing
    assert growing["autoscaling_config"] == {
        "min_replicas": 0,
        "max_replicas": 8,
        "target_ongoing_requests": 2,
    }
