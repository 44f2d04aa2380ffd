"""Taking leave: after SIGTERM a service says that it is not ready, and answers for a while all the same."""

import time


class Drain:
    """The time between SIGTERM and the end, in which ``/ready`` says no and all is answered as before."""

    def __init__(self, seconds: float = 0.0) -> None:
        self._seconds = seconds
        self._over_at: float | None = None

    @property
    def has_begun(self) -> bool:
        """Whether the service is about to stop."""
        return self._over_at is not None

    def begins(self) -> bool:
        """Begin; False if there is no such time, or it has begun."""
        if self.has_begun or not self._seconds:
            return False
        self._over_at = time.monotonic() + self._seconds
        return True

    def is_over(self) -> bool:
        """Whether it is time to stop."""
        return self._over_at is not None and time.monotonic() >= self._over_at
