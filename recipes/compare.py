"""
Compare methods as the papers do: models x methods x sparsities x numbers of candidates x seeds, one table in the end.

    accelerate launch --config_file recipes/accelerate/cpu_2.yaml recipes/compare.py recipes/compare_digits.yaml
    ... recipes/compare.py recipes/compare_digits.yaml --methods IMP "SMS (uniform)" --seeds 0     a part of it
    ... recipes/compare.py recipes/compare_digits.yaml --num_train_epochs 1 --output_dir runs/try  any setting of the recipe
    python recipes/compare.py recipes/compare_digits.yaml --report                                 tables of what is done

Every cell is an ordinary run of the recipe, on one process: whoever is free takes the next, the longest first. What is
done stays done: interrupt at any time, start again with the same command. Results: `comparison.md`, `.csv`, `.json` and
`.png` in output_dir, and for each cell a folder with `result.json`, `report.json` and `log.txt` (or `error.txt`).
"""

import sys

from sms_hf.compare import main

if __name__ == "__main__":
    main(sys.argv[1:], __doc__)
