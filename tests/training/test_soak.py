"""Memory stays constant during a run: the short form of ``benchmarks/soak.py``."""

from benchmarks.soak import growth, soak


def test_memory_stays_flat_over_a_run():
    samples = soak(160, method="moco_v2", view_size=32)
    assert len(samples) == 40 and all(size > 50 for _, size in samples)
    assert growth(samples) < 40  # MiB per 1,000 steps; batches that are kept would take 187 for their pixels


def test_growth_is_the_slope_of_the_settled_part():
    steep = [(step, 100.0 + step) for step in range(0, 30)]
    flat = [(step, 500.0 + 0.003 * step) for step in range(30, 101)]
    assert abs(growth(steep + flat) - 3.0) < 1e-6
