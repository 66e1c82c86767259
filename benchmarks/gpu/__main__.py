"""
All that needs a GPU, piece by piece.

    python -m benchmarks.gpu check                                    what is missing on this machine, in one sentence
    python -m benchmarks.gpu cost                                     one part; the same command goes on where it was cut off
    python -m benchmarks.gpu translation --device cpu --tiny          the same code in seconds, on any machine

Results: PART.md in the output folder, and a folder PART with each row as JSON.
"""

import argparse
import importlib
from pathlib import Path

from .bundle import restore_results
from .check import check, provide

PARTS = {
    "correct": ("parts", "correct"),
    "cost": ("parts", "cost"),
    "one_gpu": ("parts", "one_gpu_part"),
    "inference": ("parts", "inference_part"),
    "translation": ("translation", "translation"),
}
"""Name -> module and function that makes it, in order of worth. Imported when the packages that travelled are in place."""


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=["check", *PARTS])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="the smallest sizes")
    parser.add_argument("--output", type=Path, help="default: runs/gpu/DEVICE")
    parser.add_argument("--minutes", type=float, default=8.5, help="after so many, the part ends with what it has")
    options = parser.parse_args(argv)
    output = options.output or Path("runs/gpu") / f"{options.device}{'-tiny' * options.tiny}"

    provide()
    machine = check(options.device, options.part in ("check", "translation") and not options.tiny)
    if options.part == "check":
        print(machine)
        return
    restore_results(output.resolve())
    from .programme import Programme, carry_out

    module, function = PARTS[options.part]
    make = getattr(importlib.import_module(f".{module}", __package__), function)
    programme = Programme(options.device, options.tiny, output)
    carry_out(make(programme), programme, 60 * options.minutes)


if __name__ == "__main__":
    main()
