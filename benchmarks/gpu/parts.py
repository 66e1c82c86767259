"""The parts that take existing tests and benchmarks to a GPU."""

import os
import sys
from functools import cache, partial

import inference
import masked_step
import one_gpu
import selection
from _common import MB, run_group
from tabulate import tabulate

from .kept_tests import FOLDER, read_outcomes
from .programme import Part, Programme, Values


def table(rows: list, headers: list[str]) -> str:
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


# ---- Correct -----------------------------------------------------------------------------------------------------------


def correct(programme: Programme) -> Part:
    folder = programme.output / "correct"
    outcomes = folder / "tests"

    def measure() -> Values:
        outcomes.mkdir(parents=True, exist_ok=True)
        chosen = programme.choose([], ["-k", "test_masks_do_not_depend_on_the_device"])
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "benchmarks.gpu.kept_tests", "tests/gpu"]
        environment = os.environ | {FOLDER: str(outcomes.resolve())}
        if programme.device == "cpu":
            environment["CUDA_VISIBLE_DEVICES"] = ""
        run_group([*command, *chosen], environment, folder / "log.txt")
        rows = read_outcomes(outcomes)
        failed = [row["test"] for row in rows if row["outcome"] == "failed"]
        if failed or not rows:
            raise RuntimeError(
                f"{len(failed)} of {len(rows)} tests failed: {', '.join(failed)}; see {folder / 'log.txt'}"
            )
        return {name: sum(row["outcome"] == name for row in rows) for name in ("passed", "skipped")}

    def render(rows: dict[str, Values]) -> str:
        found = [[f"`{row['test']}`", row["outcome"], row["reason"]] for row in read_outcomes(outcomes)]
        return table(found, ["test", "outcome", "reason"])

    return Part("correct", "Correct", {"tests": measure}, render)


# ---- Cost --------------------------------------------------------------------------------------------------------------


def cost(programme: Programme) -> Part:
    steps = programme.choose(
        {
            "masked-60M": "--model t5-small --batch_size 64 --length 32 --block 20 --blocks 6 --bf16",
            "masked-220M": "--model t5-base --batch_size 128 --length 64 --block 10 --blocks 6 --bf16",
        },
        {"masked-toy": "--model toy --batch_size 2 --length 4 --block 2 --blocks 1 --bf16"},
    )
    selections = programme.choose(
        {
            "selection-252M": "--matrices 240 --repetitions 4",
            # As many as a weight file of 4 GB holds; torch's way takes 65 GB more.
            "selection-1B": "--matrices 954 --repetitions 3",
        },
        {"selection-toy": "--matrices 2 --size 64 --repetitions 2"},
    )
    on = ["--device", programme.device]
    rows = {n: partial(_masked_step, [*on, *options.split()]) for n, options in steps.items()}
    rows |= {n: partial(_selection, [*on, *options.split()]) for n, options in selections.items()}
    return Part("cost", "What a mask costs, and choosing it", rows, _render_cost)


def _masked_step(options: list[str]) -> Values:
    return masked_step.compare_steps(masked_step.make_parser().parse_args(options)) | {"options": " ".join(options)}


def _selection(options: list[str]) -> Values:
    return selection.compare_methods(selection.make_parser().parse_args(options)) | {"options": " ".join(options)}


def _render_cost(rows: dict[str, Values]) -> str:
    steps, methods = [], []
    for found in rows.values():
        if "masked" in found:
            size, weights = f"{found['parameters'] / 1e6:.1f} M", found["weight_bytes"]
            alone = f"{found['masking_ms']:.1f} ms ({found['masking_ms'] / found['plain_ms']:.1%})"
            memory = [
                f"{found[kind] / MB:.1f} MB ({found[kind] / weights:.0%})" for kind in ("factor_bytes", "mask_bytes")
            ]
            cells = [size, found["plain"], found["masked"], f"{found['ratio']:.3f}", alone, *memory]
            steps.append([*cells, f"`{found['options']}`"])
            continue
        for method, seconds in found["seconds"].items():
            peak = found["memory"][method]["peak"]
            cells = [f"{found['weights'] / 1e6:.0f} M", method, seconds]
            methods.append([*cells, f"{peak / MB:.0f} MB ({peak / found['weight_bytes']:.0%})", found["kept"]])
    headers = ["parameters", "plain step, ms", "masked step, ms", "ratio", "masking alone (of a plain step)"]
    headers += ["masks as factors (of the weights)", "as bools", "options of `benchmarks/masked_step.py`"]
    parts = [table(steps, headers)] if steps else []
    parts += (
        [table(methods, ["weights", "method", "seconds", "extra memory (of the weights)", "kept"])] if methods else []
    )
    ratios = [f"{f['weights'] / 1e6:.0f} M: {f['ratio']:.2f}x" for f in rows.values() if "seconds" in f]
    parts += [f"`prune` over torch in speed, median of paired ratios: {', '.join(ratios)}."] if ratios else []
    return "\n\n".join(parts)


# ---- One GPU, many candidates ------------------------------------------------------------------------------------------


def one_gpu_part(programme: Programme) -> Part:
    sizes = [("tiny", 16), ("tiny", 128), ("t5-small", 16), ("t5-small", 128), ("t5-base", 64)]
    sizes, steps = programme.choose((sizes, 60), ([("toy", 2)], 2))
    of_two = {"1 process": partial(one_gpu.run, 1), "2 processes": partial(one_gpu.run, 2)}
    of_two |= {"2 streams": partial(one_gpu.run_streams, 2)}
    of_four = {"4 processes": partial(one_gpu.run, 4), "4 streams": partial(one_gpu.run_streams, 4)}
    ways = of_two | programme.choose(of_four, {})
    # What the rule needs comes first.
    order = [(*size, way) for some in (of_two, of_four) for size in sizes for way in some if way in ways]
    keys = {f"{model}-{batch}-{way.replace(' ', '-')}": (model, batch, way) for model, batch, way in order}

    def measure(model: str, batch: int, way: str) -> Values:
        return ways[way](model, batch, steps, programme.device)

    def render(rows: dict[str, Values]) -> str:
        found: dict[tuple[str, int], dict[str, Values]] = {}
        for name, values in rows.items():
            model, batch, way = keys[name]
            found.setdefault((model, batch), {})[way] = values
        head = f"{one_gpu.CANDIDATES} candidates of {steps} steps, {one_gpu.LENGTH}+{one_gpu.LENGTH} tokens a row; on streams: "
        head += f"as many training loops, {steps} steps each. How many times faster than in turn:"
        return "\n\n".join([head, table(*one_gpu.tabulated(found)), one_gpu.rule(found)])

    return Part("one_gpu", "One GPU, many candidates", {n: partial(measure, *key) for n, key in keys.items()}, render)


# ---- Inference ---------------------------------------------------------------------------------------------------------


def inference_part(programme: Programme) -> Part:
    shape, length, repetitions = programme.choose(("base", 128, 9), ("tiny", 8, 3))
    models = cache(lambda: inference.make_models(shape, programme.device))

    def operations() -> Values:
        return inference.count_operations(models(), length, programme.device)

    def measure(batch: int) -> Values:
        return inference.measure(models(), batch, length, repetitions, programme.device)

    batches = programme.choose([1, 8, 32, 128, 512, 2048], [1, 2])

    def render(rows: dict[str, Values]) -> str:
        measured = [rows[str(batch)] for batch in batches if str(batch) in rows]
        names = next((list(row["speed"]) for row in measured), [])
        fewer = [f"{rows['operations'][name]:.2f}x fewer" if "operations" in rows else "" for name in names]
        head = (
            f"BERT-{shape}, bf16, {length} tokens a row: speed over dense, below it how many operations are left out."
        )
        body = [*map(inference.cells, measured), ["operations", "", *fewer]]
        return f"{head}\n\n{table(body, ['batch', 'dense, ms', *names])}"

    rows = {"operations": operations} | {str(batch): partial(measure, batch) for batch in batches}
    return Part("inference", "Inference", rows, render)
