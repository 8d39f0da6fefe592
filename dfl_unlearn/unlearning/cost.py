"""What forgetting took, in messages, gradients, bytes and seconds."""

from dataclasses import dataclass, fields
from typing import ClassVar


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What an attempt took; all entries are >= 0.

    Attributes:
        rounds: Gossip rounds of training.
        messages: Messages over edges.
        payload_bytes: Bytes of all messages, headers included.
        max_edge_bytes: Most bytes over any directed edge.
        hops: Hops of a token.
        sample_gradients: Per-sample gradients, preprocessing included.
        hvps: Per-sample Hessian-vector products.
        solver_iterations: Iterations of linear solvers.
        wall_seconds: Elapsed time.
        simulated_seconds: From the request until the last peer is done, on the clock
            of ``engine.clock``: what the network would take, not this program.
        record_bytes: Bytes of the training record that was read.
        steps_forget: Optimizer steps of a local method on forgotten rows.
        steps_retain: Its steps on retained rows.
        optimizer_floats: Most numbers that its optimizers held beside the parameters.
        trainable_parameters: Most parameters that it could change.
    """

    rounds: int = 0
    messages: int = 0
    payload_bytes: int = 0
    max_edge_bytes: int = 0
    hops: int = 0
    sample_gradients: int = 0
    hvps: int = 0
    solver_iterations: int = 0
    wall_seconds: float = 0.0
    simulated_seconds: float = 0.0
    record_bytes: int = 0
    steps_forget: int = 0
    steps_retain: int = 0
    optimizer_floats: int = 0
    trainable_parameters: int = 0

    _PEAKS: ClassVar[frozenset[str]] = frozenset(
        {
            "max_edge_bytes",
            "record_bytes",
            "optimizer_floats",
            "trainable_parameters",
        }
    )

    @property
    def gradient_evaluations(self) -> int:
        """Per-sample gradients, each Hessian-vector product counted as two."""
        return self.sample_gradients + 2 * self.hvps

    def __add__(self, other: "Cost") -> "Cost":
        """Return both costs together: sums, and the larger of two peaks."""
        values = {}
        for f in fields(self):
            a, b = getattr(self, f.name), getattr(other, f.name)
            values[f.name] = max(a, b) if f.name in self._PEAKS else a + b
        return Cost(**values)
