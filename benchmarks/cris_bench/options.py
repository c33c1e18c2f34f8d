"""What `cris-bench` is asked to measure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cris_bench.place import Place
from cris_bench.record.rows import Scope
from cris_deploy.errors import InputError
from cris_deploy.execution.backends import AUTO, BackendName, Compute

DEFAULT_SCOPES = (Scope.NETWORK, Scope.END_TO_END)
# What a new process does once: timed in children, each contestant by itself.
ALONE = (Scope.LOAD, Scope.FIRST_CALL)
ONLY_CUDA = (Scope.DEVICE,)
# On a GPU the stages are queued: what the engine does around them goes on beside their runs.
ONLY_CPU = (Scope.OVERHEAD,)
WARMUP = 2
MOST_ROUNDS = 30
MINUTES = 10.0
QUICK_MINUTES = 3.0


def parse_size(flag: str, text: str) -> tuple[int, int]:
    """Read (height, width) from "1920x1080"; InputError for anything else."""
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise InputError(f"{flag} {text}: give width x height in pixels, such as 1920x1080")
    return int(height), int(width)


@dataclass(frozen=True)
class BenchOptions:
    """How to run the benchmark.

    Attributes:
        scopes: What to time.
        checkpoint: Model to time; None for the full-size RN50 with random weights.
        bundle: Bundle to time as it is; alone it leaves PyTorch and plain exports out, beside
            `checkpoint` it must be that checkpoint's.
        device: As `Engine` takes it; "auto" is a GPU where PyTorch and a backend can use one.
        backends: Which must take part; empty for all that are installed.
        computes: Arithmetic to time; empty for all that the bundles allow.
        batches: Images of a pass, scope NETWORK.
        expressions: Expressions for one image, scopes NETWORK and END_TO_END.
        image_height: Of the image in the scopes that start from one, pixels.
        image_width: Likewise.
        warmup: Untimed rounds, 2 at least (the reference has 100, on a GPU).
        iterations: Timed rounds (the reference has 400); None for as many as the intervals want,
            30 at most.
        minutes: That the whole run may take; 0 for as long as it takes.
        seed: Of the order in each round.
        threads: CPU threads of each contestant; None for all cores.
        clients: Numbers of threads that call one engine at once, for throughput; none for none.
        thread_counts: CPU threads of a call under clients; empty for `threads`.
        peers: Also time torch.compile and plain exports.
        quick: Leave out what takes long: torch.compile, int8, the ceilings; three minutes.
        evaluate: Folder of a data set to measure each bundle's accuracy on.
        eval_limit: Pictures of it, from the first; 0 for all.
        command: Arguments as they were given, for the record.
    """

    scopes: tuple[Scope, ...] = DEFAULT_SCOPES
    checkpoint: Path | None = None
    bundle: Path | None = None
    device: str = AUTO
    backends: tuple[BackendName, ...] = ()
    computes: tuple[Compute, ...] = ()
    batches: tuple[int, ...] = (1,)
    expressions: tuple[int, ...] = (1,)
    image_height: int = 1080
    image_width: int = 1920
    warmup: int = WARMUP
    iterations: int | None = None
    minutes: float = MINUTES
    seed: int = 0
    threads: int | None = None
    clients: tuple[int, ...] = ()
    thread_counts: tuple[int, ...] = ()
    peers: bool = True
    quick: bool = False
    evaluate: Path | None = None
    eval_limit: int = 0
    command: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.scopes:
            raise InputError(f"--scopes is empty: give all, or some of {', '.join(Scope)}")
        try:
            Place.parse(self.device)
        except InputError as error:
            raise InputError(f"--{error}") from None
        least = (
            ("--warmup", self.warmup, 0),
            ("--iterations", self.most_rounds, 1),
            ("--minutes", self.minutes, 0),
            ("--seed", self.seed, 0),
            ("--clients", min(self.clients, default=1), 1),
            ("--client-threads", min(self.thread_counts, default=1), 1),
            ("--eval-limit", self.eval_limit, 0),
            ("--image-size", min(self.image_height, self.image_width), 1),
            ("--batch", min(self.batches, default=0), 1),
            ("--expressions", min(self.expressions, default=0), 1),
            ("--threads", 1 if self.threads is None else self.threads, 1),
        )
        for flag, value, limit in least:
            if value < limit:
                raise InputError(f"{flag} must be {limit} or more, not {value}")
        if self.evaluate is not None and self.bundle is None and self.checkpoint is None:
            raise InputError(
                "--eval needs --bundle DIR or --ckpt FILE: random weights segment nothing"
            )

    @property
    def most_rounds(self) -> int:
        """Timed rounds that no race exceeds."""
        return MOST_ROUNDS if self.iterations is None else self.iterations

    def check_for(self, place: Place) -> None:
        """Refuse scopes that a device does not have; "all" leaves them out by itself.

        Raises:
            InputError: names the scope.
        """
        lacking, other = (ONLY_CPU, "cpu") if place.on_gpu else (ONLY_CUDA, "cuda")
        for scope in self.scopes:
            if scope in lacking and set(self.scopes) != set(Scope):
                raise InputError(f"--scopes {scope} is measured on {other} only, not on {place}")
