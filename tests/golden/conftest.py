"""Collects what the golden tests measure and prints it as one table."""

import dataclasses

import pytest

COLUMNS = "{:<20} {:<9} {:<11} {:>9} {:>11} {:>8} {:>12}"


@dataclasses.dataclass
class Measurement:
    variant: str
    dtype: str
    path: str  # "model, DEVICE": logits of the model itself; "http": logprobs through the server
    num_positions: int = 0
    max_error: float = 0.0
    num_skipped: int = 0  # positions whose routing is too close to call
    num_greedy: int = 0  # positions whose most likely token is beyond doubt
    num_greedy_equal: int = 0

    def __str__(self):
        return COLUMNS.format(
            self.variant, self.dtype, self.path, self.num_positions, f"{self.max_error:.2e}",
            self.num_skipped, f"{self.num_greedy_equal}/{self.num_greedy}")


def pytest_configure(config):
    config.measurements = []


@pytest.fixture
def measure(request):
    """measure(variant, dtype, path): a Measurement that the table will show."""
    def make(*names):
        request.config.measurements.append(Measurement(*names))
        return request.config.measurements[-1]
    return make


def pytest_terminal_summary(terminalreporter, config):
    if not config.measurements:
        return
    terminalreporter.section("numerics against the reference")
    terminalreporter.write_line(COLUMNS.format(
        "variant", "dtype", "path", "positions", "max error", "skipped", "greedy equal"))
    for measurement in config.measurements:
        terminalreporter.write_line(str(measurement))
