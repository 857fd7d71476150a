"""The rule of ``chunk_size="auto"``: a table from bytes to sizes, and pages that stay."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from attrfn._copies.sizes import Took, equal, fitting, fitting_on_cpu

KB, MB, GB = 2**10, 2**20, 2**30
ROOM = 32 * MB

# bytes of a copy, of its largest result, rows of the batch, bytes that are free, copies at once
TABLE = [
    # The caches hold what they hold.
    (1 * MB, 64 * KB, 1, GB, 32),
    (3 * MB, 64 * KB, 1, GB, 10),
    (1 * MB, 64 * KB, 100, GB, 32),
    (4 * MB, 4 * MB, 1, GB, 8),
    # Eight rows, however few of them the caches hold.
    (5 * MB, 1 * MB, 1, GB, 8),
    (64 * MB, 2 * MB, 1, GB, 8),
    (64 * MB, 2 * MB, 2, GB, 4),
    (64 * MB, 2 * MB, 3, GB, 2),
    (64 * MB, 2 * MB, 4, GB, 2),
    (64 * MB, 2 * MB, 5, GB, 1),
    (64 * MB, 2 * MB, 16, GB, 1),
    # No result of more than 16 MB, unless the caches hold it.
    (64 * MB, 3 * MB, 1, GB, 5),
    (145 * MB, 4.6 * MB, 1, 8 * GB, 3),
    (64 * MB, 16 * MB, 1, GB, 1),
    (64 * MB, 17 * MB, 1, GB, 1),
    (10 * MB, 10 * MB, 1, GB, 3),
    # No more than is free.
    (64 * MB, 1 * MB, 1, 256 * MB, 4),
    (64 * MB, 1 * MB, 1, 64 * MB, 1),
    (64 * MB, 1 * MB, 1, 1 * MB, 1),
    (1 * MB, 64 * KB, 1, 4 * MB, 4),
    # The rows of a copy are not known.
    (64 * MB, 1 * MB, 0, GB, 1),
    (1 * MB, 1 * MB, 0, GB, 32),
    # Nothing was counted.
    (0, 0, 1, GB, 32 * MB),
]


@pytest.mark.parametrize(("took", "largest", "rows", "free", "expected"), TABLE)
def test_sizes_follow_from_bytes(
    took: float, largest: float, rows: int, free: int, expected: int
) -> None:
    assert fitting_on_cpu(Took(int(took), int(largest)), ROOM, rows, free) == expected


@pytest.mark.parametrize(("took", "expected"), [(MB, 32), (33 * MB, 1), (64 * MB, 1), (0, ROOM)])
def test_on_an_accelerator_the_room_is_all_that_counts(took: int, expected: int) -> None:
    assert fitting(Took(took, 1), ROOM) == expected


@pytest.mark.parametrize(
    ("n", "size", "expected"),
    [
        (20, 6, [5, 5, 5, 5]),
        (20, 20, [20]),
        (20, 100, [20]),
        (7, 4, [4, 3]),
        (64, 7, [7, 7, 7, 7, 6, 6, 6, 6, 6, 6]),
        (3, 1, [1, 1, 1]),
    ],
)
def test_chunks_are_about_equal(n: int, size: int, expected: list[int]) -> None:
    """As few as with ``size``, and no rest at the end."""
    found: list[int] = []
    while sum(found) < n:
        found.append(equal(n - sum(found), size))
    assert found == expected


FAULTS = """
import resource, torch, attrfn
torch.set_num_threads(1)
x = torch.ones(1, 3)
def run():
    attrfn.feature_ablation(lambda x: torch.cat([x.sum(1, True) * w for w in wide], 1).sum(1), x)
wide = [torch.ones(2**18) for _ in range(6)]
found = []
for _ in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    run()
    found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(found[1:]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="how glibc gives memory back")
def test_a_process_keeps_the_pages_of_freed_results() -> None:
    """Six results of 3 MB live at once: 4,608 pages, with few faults for them in later calls."""
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    out = subprocess.run(
        [sys.executable, "-c", FAULTS], check=True, capture_output=True, text=True, env=plain
    )
    assert int(out.stdout) < 1200  # where the heap is in pieces, a block of 768 pages is new
