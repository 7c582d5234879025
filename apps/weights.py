"""`weights`: which there are and under which licence, fetching them, and whether a folder or a file is what it should be."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from apps.console import console

weights = typer.Typer(no_args_is_help=False, invoke_without_command=True)


@weights.callback()
def overview(context: typer.Context) -> None:
    """Weights: what there is, their licences, fetching and checking them."""
    if context.invoked_subcommand:
        return
    from lib.engines.weights import ROOT, catalogue, presence

    entries = catalogue()
    table = Table("name", "for", "GB", "licence", show_lines=True)
    table.add_column("place", no_wrap=True)
    table.add_column("state")
    for name, entry in entries.items():
        licence = entry.licence if entry.clean else f"[yellow]{entry.licence}: not for clinical or commercial use[/yellow]"
        state = presence(name, entry, ROOT / entry.target)
        table.add_row(name, entry.use, f"{entry.gigabytes:.1f}", licence, str(entry.place), state)
    console.print(table)
    console.print("Fetch one, with its terms shown first:  [bold]python main.py weights fetch NAME[/bold]", highlight=False)
    console.print("On another machine, to be copied here (pip install huggingface_hub; read the terms first):", highlight=False)
    for entry in entries.values():
        console.print(f"  {entry.download}", highlight=False, soft_wrap=True, markup=False)


@weights.command()
def fetch(
    names: Annotated[list[str], typer.Argument(help="as `weights` lists them", metavar="NAME")],
    accept_licence: Annotated[
        bool, typer.Option("--accept-licence", help="you have read and accept terms that rule out clinical use")
    ] = False,
    to: Annotated[Path | None, typer.Option(help="another folder than the listed one, for one NAME")] = None,
) -> None:
    """Fetch weights from the Hugging Face hub, go on where it broke off, verify checksums and content."""
    from lib.engines.weights import ROOT, find, require_licence
    from lib.engines.weights import fetch as fetch_weights
    from lib.errors import InputError

    if to is not None and len(names) > 1:
        raise InputError("one folder is for one NAME", "to")
    entries = {name: find(name) for name in names}
    for name, entry in entries.items():
        console.print(f"[bold]{name}[/bold] ({entry.repo}, about {entry.gigabytes:.1f} GB): {entry.licence}", highlight=False)
        console.print(entry.terms, highlight=False)
    for name, entry in entries.items():
        require_licence(name, entry, accept_licence)
    for name, entry in entries.items():
        _show(fetch_weights(name, entry, to or ROOT / entry.target))


@weights.command()
def check(
    path: Annotated[str, typer.Argument(help="Qwen2.5-VL folder or hub id in the local cache, LoRA adapter, SAM2 checkpoint")],
    model: Annotated[str, typer.Option(help="for an adapter: the language model it is for")] = "",
) -> None:
    """Verify weights, whole and of the right architecture, and say what they are."""
    from lib.engines.describe import describe
    from lib.errors import InputError

    try:
        _show(describe(path, model))
    except InputError as error:
        raise InputError(error.message) from error


def _show(facts: dict[str, str]) -> None:
    table = Table(show_header=False, box=None)
    for term, value in facts.items():
        table.add_row(term, value)
    console.print(table, markup=False)
