"""
Claim: importing sms_hf costs nothing beyond torch, and the command line answers at once.

Measured in fresh processes, in turn: `import torch` alone and with sms_hf after it; `sms-hf --help`. Peers: `import torch, peft`
and `import torch, transformers`, and `hf --help`. Targets: 0.3 s beyond `import torch`; `sms-hf --help` under a second.

    python benchmarks/start_up.py
"""

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

from _common import describe_machine, paired_times, print_table, spread

IMPORTS = ("torch", "torch, sms_hf", "torch, transformers", "torch, peft")
COMMANDS = {
    "sms-hf --help": ["-m", "sms_hf", "--help"],
    "hf --help": [str(Path(sys.executable).with_name("hf")), "--help"],
}
TARGET_IMPORT, TARGET_HELP = 0.3, 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=7)
    options = parser.parse_args()
    print(describe_machine("transformers", "peft", "huggingface_hub"))
    commands = {f"import {names}": ["-c", f"import {names}"] for names in IMPORTS} | COMMANDS
    calls = {
        name: (lambda command=command: subprocess.run([sys.executable, *command], check=True, capture_output=True))
        for name, command in commands.items()
    }
    times = paired_times(calls, options.repetitions)
    print_table([[name, spread(seconds)] for name, seconds in times.items()], ["", "seconds: median (range)"])
    pairs = zip(times["import torch, sms_hf"], times["import torch"], strict=True)
    more = statistics.median(both - alone for both, alone in pairs)
    print(f"sms_hf beyond torch: {more:.2f} s (target at most {TARGET_IMPORT})")
    print(f"sms-hf --help: {statistics.median(times['sms-hf --help']):.2f} s (target at most {TARGET_HELP})")


if __name__ == "__main__":
    main()
