"""The command line: `python main.py <command>`."""

import sys

import typer

from apps import bench, demo, evaluate, export, pacs, segment, serve, simulate, trajectories, weights
from lib.errors import EngineError, InputError

app = typer.Typer(
    name="main.py",
    help="IBIS Label: an agent that segments medical volumes by language, click by click.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
for module in (serve, pacs, segment, demo, evaluate, bench, simulate, export):
    app.command()(getattr(module, module.__name__.rpartition(".")[2]))
app.add_typer(weights.weights, name="weights")
app.add_typer(trajectories.trajectories, name="trajectories")


def main(arguments: list[str] | None = None) -> None:
    """Run a command. Exit code 0, or 2 with one line on standard error when the input cannot be used."""
    try:
        code = app(_paired(sys.argv[1:] if arguments is None else arguments), standalone_mode=False)
    except InputError as error:
        _fail(f"{_option(error.field)}: {error.message}" if error.field else error.message)
    except typer.TyperException as error:
        _fail(" ".join(getattr(error, "format_message", error.__str__)().split()))
    except EngineError as error:
        _fail(str(error), code=1)
    except OSError as error:
        _fail(str(error), code=1)
    except (KeyboardInterrupt, typer.Abort):
        _fail("stopped", code=130)
    else:
        sys.exit(code)


def _paired(arguments: list[str]) -> list[str]:
    """`--conf KEY VALUE`, as MONAI Label writes it, as the one word KEY=VALUE that the parser can repeat."""
    paired: list[str] = []
    rest = iter(arguments)
    for word in rest:
        paired.append(word)
        if word in ("--conf", "-c"):
            key, value = next(rest, ""), ""
            if "=" not in key:
                value = "=" + next(rest, "")
            paired.append(key + value)
    return paired


def _option(field: str) -> str:
    return "--" + field.replace("_", "-")


def _fail(message: str, code: int = 2) -> None:
    if message:
        print(f"error: {message}", file=sys.stderr)
    sys.exit(code)
