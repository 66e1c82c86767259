"""
Sparse model soups: train them, and what can be done with their folders, on disk and on the Hub.

    sms-hf train wmt16_t5 --demo --num_processes 2

Every command tells its options with --help.
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from itertools import takewhile
from pathlib import Path
from typing import NoReturn

from . import launching
from .choices import nearest

# Everything else is imported where it is needed: `sms-hf --help` is to answer at once.
PLAN = "Tell what a run will cost before it starts: trainings, time, disk, memory."
TRAIN = "Train a soup: prune a model, retrain copies, average them, by the recipe of a task."
GREEDY = "Average model folders that share one mask, as long as the score on a task's validation data gets no worse."
REPORT = "Make a page to look at from a run, finished or going on, or compare several: one HTML file."
RECIPE = "Copy the script and the settings of a task, to start one's own from."


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        found = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)
        super().error(message + (nearest(found[1], re.findall(r"[\w-]+", found[2])) if found else ""))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 where it succeeded, 1 with one line on stderr where it did not."""
    parser = _Parser("sms-hf", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", action="version", version=f"sms-hf {sys.modules['sms_hf'].__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run, what: str, output: str = "") -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=what, description=what)
        added.add_argument("model", help="A model folder, or the name of a repository of the Hub.")
        if output:
            added.add_argument("--output", type=Path, help=output)
        added.set_defaults(run=run)
        return added

    def passing_on(name: str, run, what: str) -> None:
        # The script parses the options, some 150: no character but this one begins an option here.
        added = commands.add_parser(name, help=what, description=what, add_help=False, prefix_chars="\0")
        added.add_argument("options", nargs="*")
        added.set_defaults(run=run)

    passing_on("train", _train, TRAIN)
    passing_on("greedy", _greedy, GREEDY)
    passing_on("compare", _compare, "Compare methods side by side, as a YAML file asks: recipes/compare.py.")
    added = commands.add_parser("recipe", help=RECIPE, description=RECIPE)
    added.add_argument("task", help="As for train.")
    added.add_argument("folder", type=Path, help="Where to put the script and its YAML files.")
    added.set_defaults(run=_recipe)
    passing_on("plan", _plan, PLAN)
    what = "Average model folders that share one mask: the uniform soup."
    added = commands.add_parser("average", help=what, description=what)
    added.add_argument("models", nargs="+", type=Path, help="Model folders.")
    added.add_argument("--output", type=Path, required=True, help="The folder to write.")
    added.set_defaults(run=_average)
    here = "A new folder for the result. Default: in place."
    added = command("pack", _pack, "Store the weights of a sparse model compactly: kept values and masks.", here)
    added.add_argument("--only", action="store_true", help="Remove the dense form: smaller, but only sms_hf loads it.")
    added.add_argument(
        "--entropy", action="store_true", help="Code masks and exponents near their entropy: smaller, slower to read."
    )
    command("unpack", _unpack, "Turn a compact model into an ordinary one.", here)
    what = "Show shape, sparsity, pattern and bytes of every tensor, and where the model comes from."
    added = command("inspect", _inspect, what)
    added.add_argument("--json", action="store_true", help="For programs.")
    added = commands.add_parser("report", help=REPORT, description=REPORT)
    added.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="The output_dir of a run; several are compared."
    )
    added.add_argument(
        "--output", type=Path, help="The file to write. Default: report.html in RUN, comparison.html here for several."
    )
    added.add_argument(
        "--watch", action="store_true", help="Serve the page of a run that goes on, on this machine alone."
    )
    added.add_argument("--port", type=int, default=8765, help="For --watch; 0 takes one that is free. Default: 8765.")
    added.set_defaults(run=_report)
    what = "Turn an orphaned sparse checkpoint of compressed-tensors into an ordinary one."
    command("rescue", _rescue, what, "The folder to write. Default: MODEL-dense.")
    what = "Convert a model for CTranslate2, and see whether it says the same there."
    added = command("export", _export, what, "The folder to write. Default: MODEL-ctranslate2.")
    added.add_argument("--quantization", help="Of the weights: int8, float16, ... Default: as they are.")
    added.add_argument("--sentences", type=Path, help="A file with a text a line, to compare outputs and time on.")
    what = "Remove the tokens that do not occur in texts from a model and its tokenizer."
    added = command("trim", _trim, what, "The folder to write. Default: MODEL-trimmed.")
    texts = "Files with a text a line: what the model is to "
    added.add_argument("--texts", nargs="+", type=Path, required=True, help=f"{texts}read.")
    added.add_argument("--target-texts", nargs="+", type=Path, default=[], help=f"{texts}write, where it translates.")
    added = command("push", _push, "Upload a finished run, or another model folder, with its model card.")
    added.add_argument("repo_id", help="USER/NAME on the Hub; made where it does not exist.")
    added.add_argument("--private", action="store_true", default=None, help="Make a new repository private.")
    added.add_argument("--revision", help="Branch. Default: main.")
    added.add_argument("--language", help="For the card, such as de, or en,de.", type=lambda text: text.split(","))
    added.add_argument("--license", help="For the card, such as apache-2.0.")
    added.add_argument(
        "--dry-run", action="store_true", help="Show bytes and names of what would go, and send nothing."
    )
    args = parser.parse_args(argv)
    try:
        code = args.run(args)
        sys.stdout.flush()
    except BrokenPipeError:
        # `sms-hf inspect X | head`: nobody reads on. Python would complain once more when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if not isinstance(error, (ValueError, OSError, ImportError)) and not _is_from_the_network(error):
            raise
        print(f"sms-hf: {error}", file=sys.stderr)
        return 1
    return code or 0


def _is_from_the_network(error: Exception) -> bool:
    errors = sys.modules.get("huggingface_hub.errors")
    return errors is not None and isinstance(error, errors.HTTPError)


def _quiet() -> None:
    """No progress bars and warnings of transformers between the lines of a command."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _train(args: argparse.Namespace) -> int:
    own = argparse.ArgumentParser("sms-hf train", description=TRAIN, allow_abbrev=False, add_help=False)
    own.add_argument("--num_processes", type=int, default=1)
    mine, options = own.parse_known_args(args.options)
    if not options or options[0] in ("-h", "--help"):
        print(f"usage: sms-hf train TASK [--num_processes N] [SETTINGS.yaml] [options]\n\n{TRAIN}\n")
        print(f"TASK is one of {', '.join(launching.tasks())}; sms-hf train TASK --help tells its options.")
        return 0
    return launching.run_script(launching.recipe(options[0]), options[1:], mine.num_processes)


def _greedy(args: argparse.Namespace) -> int:
    task, *rest = args.options or ["--help"]
    folders = list(takewhile(lambda text: not text.startswith("-"), rest))
    if task in ("-h", "--help"):
        print(f"usage: sms-hf greedy TASK FOLDER FOLDER ... --output_dir NEW [options]\n\n{GREEDY}\n")
        print("The options are those of sms-hf train TASK: data, metric, how to evaluate.")
        return 0
    if len(folders) < 2:
        raise ValueError(f"Expected two or more model folders after the task, got {folders}. See sms-hf greedy --help.")
    options = ["--model_name_or_path", folders[0], *rest[len(folders) :], "--soup_of", *folders]
    return launching.run_script(launching.recipe(task), options, 1)


def _compare(args: argparse.Namespace) -> int:
    return launching.run_script(launching.recipe_folder() / f"{launching.COMPARISON}.py", args.options, 1)


def _recipe(args: argparse.Namespace) -> None:
    for path in launching.copy_recipe(args.task, args.folder):
        print(path)


def _average(args: argparse.Namespace) -> None:
    from .files.writing import check_unused
    from .soup import uniform_soup

    check_unused(args.output)
    print(uniform_soup(args.models, args.output))


def _folder(name: str) -> Path:
    """The folder of a model, downloaded where the name is not one here."""
    if Path(name).exists():
        return Path(name)
    if name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise ValueError(f"Expected a model folder or a repository USER/NAME, found no folder {name}.")
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.md"])
    )


def _source(args: argparse.Namespace) -> Path:
    folder = _folder(args.model)
    if args.output is None and not Path(args.model).exists():
        raise ValueError(f"{args.model} is a repository: name a folder for the result with --output.")
    return folder


def _pack(args: argparse.Namespace) -> None:
    from .compact import pack
    from .compact.folders import weight_paths
    from .hub.push import weight_sizes

    _quiet()
    source = _source(args)
    before = sum(path.stat().st_size for path in weight_paths(source) if path.is_file())
    target = pack(source, args.output, keep_dense=not args.only, entropy_coded=args.entropy)
    after = sum(size for name, size in weight_sizes(target).items() if ".sparse" in name)
    print(
        f"{target}: {before:,} bytes of dense weights, {after:,} compact ({after / before:.1%})" if before else target
    )


def _unpack(args: argparse.Namespace) -> None:
    from .compact import unpack
    from .hub.push import weight_sizes

    _quiet()
    target = unpack(_source(args), args.output)
    print(f"{target}: {sum(weight_sizes(target).values()):,} bytes of dense weights")


def _inspect(args: argparse.Namespace) -> None:
    from .hub.inspection import describe_folder, folder_facts

    _quiet()
    folder = _folder(args.model)
    print(json.dumps(folder_facts(folder), indent=1) if args.json else describe_folder(folder))


def _report(args: argparse.Namespace) -> None:
    from .watching import watch, write_page

    if args.watch:
        if len(args.runs) > 1 or args.output:
            raise ValueError("Expected one run and no --output with --watch. Leave out the others.")
        server = watch(args.runs[0], args.port)
        with server, suppress(KeyboardInterrupt):
            print(f"http://127.0.0.1:{server.server_port}/ shows {args.runs[0]}; Ctrl-C ends it", flush=True)
            server.serve_forever()
        return
    print(write_page(args.runs, args.output))


def _rescue(args: argparse.Namespace) -> None:
    from .compact.rescue import rescue

    _quiet()
    source = _folder(args.model)
    print(rescue(source, args.output or Path(f"{Path(args.model).name}-dense")))


def _export(args: argparse.Namespace) -> None:
    from .inference import export

    _quiet()
    source, output = _folder(args.model), args.output or Path(f"{Path(args.model).name}-ctranslate2")
    sentences = args.sentences.read_text(encoding="utf-8").splitlines() if args.sentences else []
    print(export(source, output, quantization=args.quantization, sentences=sentences))


def _trim(args: argparse.Namespace) -> None:
    from transformers import AutoTokenizer

    from .compact import load
    from .files.folder import MASKS
    from .files.writing import check_unused, new_folder
    from .inference import trim_vocabulary
    from .sparsity.masks import Masks

    _quiet()
    source, output = _folder(args.model), args.output or Path(f"{Path(args.model).name}-trimmed")
    check_unused(output)
    texts, targets = (
        [line for path in paths for line in path.read_text(encoding="utf-8").splitlines()]
        for paths in (args.texts, args.target_texts)
    )
    model, tokenizer = load(source), AutoTokenizer.from_pretrained(source)
    small, smaller = trim_vocabulary(model, tokenizer, texts, targets or None)
    with new_folder(output) as folder:
        small.save_pretrained(folder)
        smaller.save_pretrained(folder)
        if (source / MASKS).is_file():
            masks = Masks.of(source)
            masks.check(small)
            masks.save(folder / MASKS)
    sizes = (len(tokenizer), len(smaller), model.num_parameters(), small.num_parameters())
    print("{}: {:,} -> {:,} tokens, {:,} -> {:,} parameters".format(output, *sizes))


def _push(args: argparse.Namespace) -> None:
    from .hub import push_to_hub
    from .hub.push import check_folder, files_to_push

    _quiet()
    folder = _folder(args.model)
    if args.dry_run:
        check_folder(folder)
        for path in files_to_push(folder):
            print(f"{path.stat().st_size:>15,} {path.name}")
        return
    metadata = {key: value for key in ("language", "license") if (value := getattr(args, key))}
    print(push_to_hub(folder, args.repo_id, private=args.private, revision=args.revision, **metadata).commit_url)


def _plan(args: argparse.Namespace) -> None:
    from transformers import HfArgumentParser

    from .compact import load
    from .training import SparseSoupTrainer, SparseSoupTrainingArguments
    from .training.cost.advice import advice_line
    from .training.cost.lines import forecast_lines
    from .training.cost.measure import forecast_model
    from .training.masked.checkpoints import no_progress_bars

    _quiet()

    class Parser(HfArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise ValueError(f"{message.rstrip('.')}. See sms-hf plan --help.")

    parser = Parser(SparseSoupTrainingArguments, prog="sms-hf plan", description=PLAN, allow_abbrev=False)  # pyright: ignore
    parser.add_argument("model", help="A model folder, or the name of a repository of the Hub.")
    parser.add_argument(
        "--processes", type=int, help="That train candidates, for example one a GPU. Default: candidate_processes."
    )
    parser.add_argument("--num_examples", type=int, help="Rows of the training data.")
    parser.add_argument("--sequence_length", type=int, default=128, help="Tokens of a row, to measure a step with.")
    parser.add_argument("--json", action="store_true", help="For programs: the fields of sms_hf's Forecast.")
    parser.set_defaults(output_dir=".")
    try:
        training, options, unknown = parser.parse_args_into_dataclasses(
            args.options, return_remaining_strings=True, look_for_args_file=False
        )
    except ImportError as error:  # An optional package that an option needs.
        raise ValueError(error) from None
    if unknown:
        parser.error(f"Expected one model and training arguments, got also {' '.join(unknown)}")
    folder = _folder(options.model)
    weights = {path.name for path in folder.glob("*.safetensors*")}
    others = sum(path.stat().st_size for path in folder.iterdir() if path.is_file() and path.name not in weights)
    with no_progress_bars():
        cost = forecast_model(
            load(folder),
            training,
            SparseSoupTrainer,
            options.processes,
            options.num_examples,
            options.sequence_length,
            others,
        )
    if options.json:
        print(json.dumps(asdict(cost), indent=1))
        return
    for line in (*forecast_lines(cost), advice_line(training, cost)):
        if line is not None:
            print(line)


if __name__ == "__main__":
    sys.exit(main())
