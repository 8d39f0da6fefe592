"""Arrays that a user brings: states of models, or data.

The strict reader itself lies below all layers, since data sets use it as well; this is
its public place.
"""

from dfl_unlearn._arrayfile import read_arrays

__all__ = ["read_arrays"]
