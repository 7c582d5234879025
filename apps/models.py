"""The options that say which weights to use, for every command that builds an engine."""

from typing import Annotated

import typer

Engine = Annotated[
    str,
    typer.Option(help="an engine of configs/engines.yaml, or a YAML file with one; default: its default, or ibis with weights"),
]
MllmPath = Annotated[
    str,
    typer.Option("--mllm-path", "--mllm_path", help="folder or hub id of the language model; behind a server: its name there"),
]
Adapter = Annotated[str, typer.Option(help="folder of a LoRA adapter of the language model")]
Sam2Ckpt = Annotated[str, typer.Option("--sam2-ckpt", "--sam2_ckpt", help="SAM2 or MedSAM2 checkpoint")]
Sam2Cfg = Annotated[
    str,
    typer.Option("--sam2-cfg", "--sam2_cfg", help="its configuration, name or YAML file; default: told from the checkpoint"),
]
Endpoints = Annotated[str, typer.Option(help="base URLs of OpenAI-compatible servers, separated by commas")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N, all (a copy on each GPU) or balanced (one over all)")]
Protocol = Annotated[str, typer.Option(help='"corrected", or "released": step for step as the released code')]
UseHistory = Annotated[
    str, typer.Option("--use-history", "--use_history", help="1: earlier turns stay in the conversation; 0: they do not")
]
