"""What the Rust core refuses, as our own errors."""

import contextlib
from collections.abc import Iterator

from postmill import _native
from postmill.io.errors import ArtifactError, ConfigError, one_line


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """What the Rust core refuses, as our own errors; also where it was built from other sources than these."""
    try:
        yield
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        raise ConfigError(f"the native part is older than this source tree ({error}); run make setup") from error
    except _native.NativeError as error:
        refusal = ConfigError if error.code == 2 else ArtifactError
        raise refusal(one_line(str(error)), error.code) from error
