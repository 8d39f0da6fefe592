"""What was spent and what is guaranteed: mechanisms, curves, ledger, certificate.

This package knows neither peers' models nor the engine: it takes numbers, plain arrays
and mechanisms, so that it can be read, tested and trusted alone.
"""
