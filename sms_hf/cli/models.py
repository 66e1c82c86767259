"""What can be done with model folders and runs that are there."""

from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from .app import Json, Model, command, find_folder, quiet, show


def _to(default: str) -> Any:
    return typer.Option(help=f"The folder to write. Default: {default}.")


InPlace = Annotated[Path | None, typer.Option(help="A new folder for the result. Default: in place.")]


@command("average run-1 run-2 run-3 --output soup")
def average(
    models: Annotated[list[Path], typer.Argument(metavar="FOLDER", help="Two or more model folders.")],
    output: Annotated[Path, typer.Option(help="The folder to write.")],
    as_json: Json = False,
) -> None:
    """Average model folders that share one mask: the uniform soup."""
    from ..files.folder import weight_files
    from ..files.writing import check_unused
    from ..soup import uniform_soup

    if len(models) < 2:
        raise ValueError(f"Expected two or more model folders, got {models[0]} alone. See sms-hf average --help.")
    check_unused(output)
    target = uniform_soup(models, output)
    size = sum(path.stat().st_size for path in weight_files(target))
    show({"folder": target, "ingredients": models, "num_bytes": size} if as_json else str(target))


def _source(model: str, output: Path | None) -> Path:
    folder = find_folder(model)
    if output is None and not Path(model).exists():
        raise ValueError(f"{model} is a repository: name a folder for the result with --output.")
    return folder


@command("pack soup --output soup-compact")
def pack(
    model: Model,
    output: InPlace = None,
    only: Annotated[
        bool, typer.Option("--only", help="Remove the dense form: smaller, but only sms_hf loads it.")
    ] = False,
    entropy: Annotated[
        bool, typer.Option("--entropy", help="Code masks and exponents near their entropy: smaller, slower to read.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Store the weights of a sparse model compactly: kept values and masks."""
    from ..compact import pack
    from ..files.forms import weight_paths, weight_sizes

    quiet()
    source = _source(model, output)
    before = sum(path.stat().st_size for path in weight_paths(source) if path.is_file())
    target = pack(source, output, keep_dense=not only, entropy_coded=entropy)
    after = sum(size for name, size in weight_sizes(target).items() if ".sparse" in name)
    sizes = f"{target}: {before:,} bytes of dense weights, {after:,} compact ({after / before:.1%})" if before else ""
    show({"folder": target, "dense_bytes": before, "compact_bytes": after} if as_json else sizes or str(target))


@command("unpack soup-compact --output soup")
def unpack(model: Model, output: InPlace = None, as_json: Json = False) -> None:
    """Turn a compact model into an ordinary one."""
    from ..compact import unpack
    from ..files.forms import weight_sizes

    quiet()
    target = unpack(_source(model, output), output)
    size = sum(weight_sizes(target).values())
    show({"folder": target, "dense_bytes": size} if as_json else f"{target}: {size:,} bytes of dense weights")


@command("inspect soup")
def inspect(model: Model, as_json: Json = False) -> None:
    """Show shape, sparsity, pattern and bytes of every tensor, and where the model comes from."""
    from ..hub.inspection import describe_folder, folder_facts

    quiet()
    folder = find_folder(model)
    show(folder_facts(folder) if as_json else describe_folder(folder))


@command("report soup --watch")
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="The output_dir of a run; several are compared.")],
    output: Annotated[
        Path | None,
        typer.Option(
            help="The file to write. Default: report.html in RUN, comparison.html here for several.",
        ),
    ] = None,
    watching: Annotated[
        bool, typer.Option("--watch", help="Serve the page of a run that goes on, on this machine alone.")
    ] = False,
    port: Annotated[int, typer.Option(help="For --watch; 0 takes one that is free.")] = 8765,
) -> None:
    """Make a page to look at from a run, finished or going on, or compare several: one HTML file."""
    from ..watching import watch, write_page

    if not watching:
        print(write_page(runs, output))
        return
    if len(runs) > 1 or output:
        raise ValueError("Expected one run and no --output with --watch. Leave out the others.")
    server = watch(runs[0], port)
    with server, suppress(KeyboardInterrupt):
        print(f"http://127.0.0.1:{server.server_port}/ shows {runs[0]}; Ctrl-C ends it", flush=True)
        server.serve_forever()


@command("rescue old-checkpoint --output rescued")
def rescue(model: Model, output: Annotated[Path | None, _to("MODEL-dense")] = None, as_json: Json = False) -> None:
    """Turn an orphaned sparse checkpoint of compressed-tensors into an ordinary one."""
    from ..compact.rescue import rescue

    quiet()
    done = rescue(find_folder(model), output or Path(f"{Path(model).name}-dense"))
    show(asdict(done) if as_json else str(done))


@command("export soup --quantization int8 --sentences val.en")
def export(
    model: Model,
    output: Annotated[Path | None, _to("MODEL-ctranslate2")] = None,
    quantization: Annotated[
        str | None, typer.Option(help="Of the weights: int8, float16, ... Default: as they are.")
    ] = None,
    sentences: Annotated[
        Path | None,
        typer.Option(help="A file with a text a line, to compare outputs and time on."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Convert a model for CTranslate2, and see whether it says the same there."""
    from ..inference import export

    quiet()
    source, target = find_folder(model), output or Path(f"{Path(model).name}-ctranslate2")
    texts = sentences.read_text(encoding="utf-8").splitlines() if sentences else []
    done = export(source, target, quantization=quantization, sentences=texts)
    show(asdict(done) if as_json else str(done))


@command("trim soup --texts train.en --target-texts train.de --output soup-trimmed")
def trim(
    model: Model,
    texts: Annotated[
        list[Path], typer.Option(help="A file with a text a line, what the model is to read; repeat it for more.")
    ],
    target_texts: Annotated[
        list[Path] | None, typer.Option(help="The same for what it is to write, where it translates.")
    ] = None,
    output: Annotated[Path | None, _to("MODEL-trimmed")] = None,
    as_json: Json = False,
) -> None:
    """Remove the tokens that do not occur in texts from a model and its tokenizer."""
    from transformers import AutoTokenizer

    from ..compact import load
    from ..files.folder import MASKS
    from ..files.writing import check_unused, new_folder
    from ..inference import trim_vocabulary
    from ..sparsity.masks import Masks

    quiet()
    source, target = find_folder(model), output or Path(f"{Path(model).name}-trimmed")
    check_unused(target)
    to_read, to_write = (
        [line for path in paths for line in path.read_text(encoding="utf-8").splitlines()]
        for paths in (texts, target_texts or [])
    )
    large, tokenizer = load(source), AutoTokenizer.from_pretrained(source)
    small, smaller = trim_vocabulary(large, tokenizer, to_read, to_write or None)
    with new_folder(target) as folder:
        small.save_pretrained(folder)
        smaller.save_pretrained(folder)
        if (source / MASKS).is_file():
            masks = Masks.of(source)
            masks.check(small)
            masks.save(folder / MASKS)
    tokens, parameters = (len(tokenizer), len(smaller)), (large.num_parameters(), small.num_parameters())
    line = "{}: {:,} -> {:,} tokens, {:,} -> {:,} parameters".format(target, *tokens, *parameters)
    show({"folder": target, "tokens": tokens, "parameters": parameters} if as_json else line)


@command("push soup user/pruned-soup --dry-run")
def push(
    model: Model,
    repo_id: Annotated[
        str, typer.Argument(metavar="REPO_ID", help="USER/NAME on the Hub; made where it does not exist.")
    ],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch. Default: main.")] = None,
    language: Annotated[str | None, typer.Option(help="For the card, such as de, or en,de.")] = None,
    license: Annotated[str | None, typer.Option(help="For the card, such as apache-2.0.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show bytes and names of what would go, and send nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Upload a finished run, or another model folder, with its model card."""
    from ..hub import push_to_hub
    from ..hub.push import check_folder, files_to_push

    quiet()
    folder = find_folder(model)
    if dry_run:
        check_folder(folder)
        files = [{"name": path.name, "num_bytes": path.stat().st_size} for path in files_to_push(folder)]
        lines = [f"{file['num_bytes']:>15,} {file['name']}" for file in files]
        show({"files": files} if as_json else "\n".join(lines))
        return
    metadata = {"language": language.split(",") if language else None, "license": license}
    metadata = {key: value for key, value in metadata.items() if value}
    done = push_to_hub(folder, repo_id, private=private or None, revision=revision, **metadata)
    show({"repo_id": repo_id, "commit": done.oid, "url": done.commit_url} if as_json else done.commit_url)
