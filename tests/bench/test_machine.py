from benchmarks.machine import measure_peaks


def test_peaks_are_rates(small_peaks):
    peaks = measure_peaks()
    assert set(peaks.flop_per_s) == {"fp32", "bf16", "int8"}
    assert min(peaks.flop_per_s.values()) > 0
    assert peaks.best(peaks) == peaks
    assert peaks.bytes_per_s > 0
