"""As for the other tests with real processes, whose helpers lie in tests/e2e."""

from watching import (  # noqa: F401
    inner_layer_keys,
    no_process_left,
    pytest_runtest_makereport,
    pytest_runtest_setup,
)
