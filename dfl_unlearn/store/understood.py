"""What a stored file says must make sense; where it does not, the file is named."""

from collections.abc import Iterator
from contextlib import contextmanager

from dfl_unlearn import _validate
from dfl_unlearn.errors import DflUnlearnError, StoreCorruptError

_SENSELESS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)


@contextmanager
def understood(where: object) -> Iterator[None]:
    """Turn what a reader stumbles over into ``StoreCorruptError``.

    Errors of the package pass as they are. For blocks that make objects of a file's
    values: a missing key, a text in place of a number, a list too short.

    Args:
        where: The file or folder, for the message.

    Yields:
        Nothing.

    Raises:
        StoreCorruptError: If the block raised what values of the wrong kind raise.
        DflUnlearnError: What else the block raised.
    """
    try:
        yield
    except DflUnlearnError:
        raise
    except _SENSELESS as error:
        missing = isinstance(error, KeyError)
        got = "none for" if missing else f"{type(error).__name__}:"
        raise StoreCorruptError(
            f"{where}: must have every value of its format, got {got} "
            f"{_validate.clean(str(error))[:200]}; the file was changed or damaged, "
            "make the run again"
        ) from error
