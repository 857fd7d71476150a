"""Ten thousand people explained into a folder: interrupted, resumed, and read back.

A small network says from eight numbers whether someone pays a loan back. The first call is
interrupted in the middle, as by Ctrl-C; the second one explains only what is missing. Then the
folder is read: single people, means over all, and those whose answer owes most to one feature.
"""

import argparse
import os
import shutil
import signal
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import attrfn
import attrfn.data

NAMES = ["age", "income", "debt", "rent", "years", "loans", "late", "children"]
ROWS = 10_000


class People(Dataset):
    """Drawn when they are asked for, so that no one has all of them in memory."""

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        person = attrfn.random.normal(attrfn.random.fold_in(0, i), (len(NAMES),))
        return {"numbers": person, "pays": (person[1] - person[2] + person[1] * person[6] > 0)}


class Interrupted(Dataset):
    """The same, but someone presses Ctrl-C when a certain row is read."""

    def __init__(self, data: Dataset, at: int) -> None:
        self.data = data
        self.at = at

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        if i == self.at:
            os.kill(os.getpid(), signal.SIGINT)
        return self.data[i]


def trained(data: Dataset) -> nn.Module:
    """A network that has seen the first thousand."""
    torch.manual_seed(0)
    rows = [data[i] for i in range(1000)]
    x = torch.stack([r["numbers"] for r in rows])
    y = torch.stack([r["pays"] for r in rows]).long()
    model = nn.Sequential(nn.Linear(len(NAMES), 32), nn.ReLU(), nn.Linear(32, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.eval().requires_grad_(False)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--out", type=Path, default=None, help="keep the folder here")
    args = p.parse_args()
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's "&" takes away
    folder = args.out / "people" if args.out else Path(tempfile.mkdtemp())
    shutil.rmtree(folder, ignore_errors=True)
    data = People()
    print("training")
    model = trained(data)

    def explain(data: Dataset) -> attrfn.data.Attributions:
        return attrfn.data.explain(
            attrfn.integrated_gradients,
            model,
            data,
            columns={"inputs": "numbers"},
            target=1,
            batch_size=100,
            check_completeness=False,
            out=folder,
            progress=False,
        )

    try:
        explain(Interrupted(data, at=4200))
    except KeyboardInterrupt as error:
        print(f"interrupted: {error}")
    print(f"there are: {attrfn.data.read(folder)}")
    found = explain(data)
    print(f"resumed:   {found}")

    print("one person:", dict(zip(NAMES, [round(v, 2) for v in found[7].tolist()], strict=True)))
    sizes = found.reduce("mean_abs")
    for i in sizes.argsort(descending=True):
        print(f"{NAMES[i]:9} {'#' * round(40 * float(sizes[i] / sizes.max()))}")
    late = attrfn.data.top_k(3, score=lambda a: a[:, NAMES.index("late")].abs())
    print("those whose answer owes most to late payments:", found.reduce(late).examples.tolist())
    if args.out is None:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
