"""Can the strongest attack here tell that rows were unlearned, method by method?

    python experiments/attack_methods.py                  # digits, about 8 minutes
    python experiments/attack_methods.py --preset quick   # seconds
    python experiments/attack_methods.py 'settings=["random-10"]' 'methods=["salun"]'

U-LiRA knows the method: shadow models are trained with half of the targets and forget
them by that very method; every shadow is then attacked by the others, row by row, on
forgotten rows against rows that it never had. 0.5 is what retraining has by right; its
row, and that of the model that forgets nothing, say how far the numbers reach.

Fields of methods are those of ``compare_methods.py``. Prints a table, and writes it to
``runs/attack_methods/table.csv``. After Hayes et al. (2024), Inexact unlearning needs
more careful evaluations to avoid a false sense of privacy.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import method_recipes
import pandas as pd
from forget_sets import SETTINGS
from method_cases import TRAININGS, Case, prepare, tried
from method_recipes import Method
from settings import check_names, choose, folder_of

from dfl_unlearn.errors import DflUnlearnError, UnsupportedRequestError
from dfl_unlearn.evaluation.lira import LiraResult, attack_method
from dfl_unlearn.evaluation.view import EvaluationView
from dfl_unlearn.unlearning.contracts import Outcome
from dfl_unlearn.unlearning.local import methods
from dfl_unlearn.unlearning.methods.original import Original


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is attacked.

    Attributes:
        data: A data set of ``TRAININGS``.
        settings: Forget sets, of ``SETTINGS``.
        methods: Names in tables; () is all, and retraining.
        seed: Of the training and the forget set.
        shadows: Models per attack, an even number.
        pairs: Most forgotten rows that are judged.
    """

    data: str = "digits"
    settings: tuple[str, ...] = ("random-10", "mislabel")
    methods: tuple[str, ...] = ()
    seed: int = 0
    shadows: int = 16
    pairs: int = 100

    def __post_init__(self) -> None:
        """Refuse names that nothing has.

        Raises:
            InvalidArgumentError: Naming the setting and the nearest known name.
        """
        check_names(TRAININGS, data=self.data)
        check_names(SETTINGS, settings=self.settings)
        recipes = method_recipes.of(self.data, tuple(SETTINGS))
        every = (name for setting in self.settings for name in recipes.methods(setting))
        if self.methods:
            check_names(every, methods=self.methods)


FULL = Settings()
QUICK = Settings(settings=("random-10",), methods=("fine-tune",), shadows=6, pairs=20)


def main(arguments: list[str] | None = None) -> None:
    """Run the script."""
    settings = choose(QUICK, FULL, __doc__, arguments)
    rows = []
    for row in attacked(settings):
        rows.append(row)
        print(
            f"{row['setting']:10} {row['method']:24} "
            + "  ".join(
                f"{key} {value:.3f}"
                for key, value in row.items()
                if isinstance(value, float)
            ),
            flush=True,
        )
    path = folder_of(__file__) / "table.csv"
    table = pd.DataFrame(rows)
    table.to_csv(path, index=False, float_format="%.4g", lineterminator="\n")
    print(f"table: {path}")


def attacked(settings: Settings) -> Iterator[dict[str, str | float | int]]:
    """Yield what the attack finds, the controls first; say which methods it skips."""
    recipes = method_recipes.of(settings.data, tuple(SETTINGS))
    for setting in settings.settings:
        every = recipes.methods(setting, network=False)
        chosen: dict[str, Method] = {
            "original": Original(),
            "retrain": methods.build("retrain"),
        }
        chosen |= {
            name: method
            for name, method in every.items()
            if name not in chosen and name in (settings.methods or every)
        }
        case = Case(
            training=TRAININGS[settings.data],
            setting=setting,
            network=False,
            seed=settings.seed,
        )
        prepared = prepare(case, chosen)
        for name, method in chosen.items():
            found = tried(prepared, method)
            result = (
                found if isinstance(found, DflUnlearnError) else attack(found, settings)
            )
            if isinstance(result, DflUnlearnError):
                print(f"{setting:10} {name:24} skipped: {result}", flush=True)
                continue
            row: dict[str, str | float | int] = {"setting": setting, "method": name}
            row["AUC"] = float(result.auc[0])
            row["TPR@0.1%"] = float(result.tpr_at_01[0])
            row["TPR@1%"] = float(result.tpr_at_1[0])
            row["decisions"] = result.positives + result.negatives
            yield row


def attack(
    outcome: Outcome, settings: Settings
) -> LiraResult | UnsupportedRequestError:
    """Return what the attack finds, or why the method cannot be attacked."""
    view = EvaluationView.of(outcome)
    try:
        return attack_method(view, shadows=settings.shadows, pairs=settings.pairs)
    except UnsupportedRequestError as error:
        return error  # shadows forget rows, which methods for classes do not


if __name__ == "__main__":
    main()
