"""Property tests are the same on every run, and slow machines do not fail them."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "postmill", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], database=None
)
settings.load_profile("postmill")
