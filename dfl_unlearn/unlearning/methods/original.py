"""Original: the model as it is; the control that every comparison needs."""

from dataclasses import dataclass

from dfl_unlearn.data.batch import TensorBatch
from dfl_unlearn.rng import RngTree
from dfl_unlearn.unlearning.local import LocalOutcome, LocalTask, methods, unchanged
from dfl_unlearn.unlearning.local_work import LocalWork


@methods.register("original")
@dataclass(frozen=True, kw_only=True)
class Original:
    """Do nothing: the control in every table, so that a small gap says something.

    Where this already has a small gap to retraining, the setting cannot tell methods
    apart.
    """

    def unlearn(self, task: LocalTask[TensorBatch], rng: RngTree) -> LocalOutcome:
        """Return the parameters as they are, without a claim."""
        same = unchanged(self, task)
        if same is not None:
            return same
        return LocalWork(task, rng).outcome()
