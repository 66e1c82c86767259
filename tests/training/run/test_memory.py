"""Memory and disk do not grow with phases and candidates."""

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import sms_hf
from conftest import *

from sms_hf.training.run.soup_run import SoupRun

class Watched(SoupRun):
    def _finish_phase(self, *args):
        record = super()._finish_phase(*args)
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        models = len(list(self.directory.root.rglob("model.safetensors")))
        print("PHASE", resident, models, flush=True)
        return record

sms_hf.training.trainer.SoupRun = Watched
args = SparseSoupTrainingArguments({out!r}, target_sparsity=0.9, num_phases=6, num_candidates=5, max_steps=2, **QUICK)
model = T5ForConditionalGeneration(T5Config(vocab_size=64, d_model=256, d_kv=64, d_ff=1024, num_layers=1, num_heads=4,
    decoder_start_token_id=0))
SparseSoupTrainer(model, args, collate, reversal(16), reversal(8, seed=1)).train()
"""


def test_six_phases_of_five_candidates(tmp_path):
    # Without this glibc keeps what is free between blocks in use, which is noise of some percents.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    code = SCRIPT.format(tests=str(Path(__file__).parents[2]), out=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("PHASE")]
    resident, models = [int(line[1]) for line in lines], [int(line[2]) for line in lines]
    assert len(resident) == 6
    # A leak of one model (7 MB) a candidate would be 148 MB here, one a phase 30 MB.
    assert max(resident[2:]) < 1.05 * resident[1], resident
    assert models == [1, 2, 3, 4, 5, 6], "a soup for each phase, and nothing else"
