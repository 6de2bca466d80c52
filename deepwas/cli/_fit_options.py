"""The flags of `deepwas fit` that are options of the fit: one for each field of `FitOptions`, of the same name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from deepwas.config import choices, parse
from deepwas.files import require_file
from deepwas.options import FitOptions

__all__ = [
    "INPUTS",
    "SECTIONS",
    "AnnotationFiles",
    "Resume",
    "SequenceFile",
    "TracksFile",
    "given_options",
    "require_inputs",
    "with_option_flags",
]

INPUTS = "Inputs and outputs"

AnnotationFiles = Annotated[
    list[Path] | None,
    typer.Option(help="Annotations: of `deepwas annotate`, or a table. Repeat for more.", rich_help_panel=INPUTS),
]
TracksFile = Annotated[
    Path | None, typer.Option(help="Tracks around each variant, of `deepwas tracks`.", rich_help_panel=INPUTS)
]
SequenceFile = Annotated[
    Path | None, typer.Option(help="Sequence around each variant, of `deepwas sequence`.", rich_help_panel=INPUTS)
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume", help="Go on with an interrupted run in --out, same inputs and options.", rich_help_panel=INPUTS
    ),
]


def require_inputs(annotations: Sequence[Path] | None, tracks: Path | None, sequence: Path | None) -> None:
    """InputError unless these files are there."""
    for windows, what in ((tracks, "tracks"), (sequence, "sequence")):
        if windows:
            require_file(windows, f"a file of `deepwas {what}`")
    for path in annotations or []:
        if "@" not in path.name:
            require_file(path, "a table of annotations")


HELP: dict[str, dict[str, str]] = {
    "Network": {
        "network": (
            "constant; of annotations: linear (log-linear), softplus (additive, as S-LDSC), mlp, residual; of "
            "tracks or sequence: cnn, enformer."
        ),
        "hidden": "Widths of the MLP's layers.",
        "width": "Channels of residual (128), cnn (32), enformer (64).",
        "depth": "Blocks of residual, cnn, enformer.",
        "heads": "Attention heads of enformer.",
        "kernel": "Bins or bases that the first convolution spans, odd.",
        "maf_alpha": "f grows with [2q(1-q)]^(1 + alpha): a number, or 'learned'. By default it does not.",
        "bound": "Most nats by which inputs move log f; 0 for no bound. By default 7; linear, softplus: none.",
        "compute_dtype": "Of the layers before the last: float32 or bfloat16.",
        "variants_at_once": (
            "Variants whose activations are in memory at a time, 0 for all. By default cnn: 4,096, enformer: 512."
        ),
        "monotone": "NAME:+ for annotations that may only raise f, NAME:- for those that may only lower it.",
        "sparse": "Strength of a group lasso on annotations.",
    },
    "Likelihood": {
        "objective": "likelihood (full), or ld-score (the baseline).",
        "noise": "Noise inflation sigma2: 'learned', or a number to hold it at.",
        "solver": "cholesky (exact), cg, or auto.",
        "probes": "Random probes of CG.",
        "rtol": "Relative residual asked of CG in training.",
        "mismatch": "LD blocks whose z-scores do not fit their LD: report, down-weight, or exclude from training.",
        "mismatch_threshold": "Observed over expected energy that flags a block.",
        "factor_dtype": "LD in memory: float32, float16 or int8.",
        "memory": "GB that the LD may take, beyond which it streams. By default half of what is free.",
    },
    "Held out": {
        "cross_fit": (
            "One network per section of the genome, so that no variant's prior comes from a network that saw it."
        ),
        "folds": "Sections: all but two train, one stops early, one is held out; 'loco' for one a chromosome.",
        "test_chromosomes": "Instead: one network, scored on these chromosomes, such as 21,22.",
        "validation_chromosomes": "It stops early by these.",
    },
    "Training": {
        "steps": "Most optimiser steps.",
        "batch_blocks": "LD blocks a batch.",
        "accumulate": "Batches whose gradients make a step.",
        "learning_rate": (
            "Peak learning rate, or 'auto' to find it. By default linear, softplus: 0.02, mlp: 0.005, residual, "
            "cnn: 0.002, enformer: 0.001."
        ),
        "weight_decay": "AdamW's shrinkage of weights.",
        "warmup": "Share of the steps in which the learning rate rises.",
        "clip_norm": "Largest gradient norm.",
        "ema": "Decay of a moving average of the parameters that is used in their place, such as 0.98.",
        "ensemble": "Networks from different seeds, whose mean f is the prior.",
        "evaluate_every": "Steps between evaluations; a checkpoint every fifth.",
        "patience": "Evaluations without improvement before training stops.",
        "seed": "Seed of everything random.",
    },
}
SECTIONS = {panel: tuple(texts) for panel, texts in HELP.items()}
_PANEL = {name: panel for panel, names in SECTIONS.items() for name in names}


def with_option_flags(function: Callable[..., None]) -> Callable[..., None]:
    """A command whose parameter `flags` (the last) is a dictionary: what the option flags were given, None if not.

    A flag that takes words or lists is a text, parsed by `given_options`; each says its default in its help.
    """

    def command(**values: Any) -> None:
        flags = {name: values.pop(name) for name in _PANEL}
        function(**values, flags=flags)

    signature = inspect.signature(function, eval_str=True)
    parameters = [p for p in signature.parameters.values() if p.name != "flags"]
    hints, defaults = get_type_hints(FitOptions), FitOptions()
    assert set(_PANEL) == {field.name for field in fields(FitOptions)}, "a field of FitOptions has no flag"
    for name, panel in _PANEL.items():
        plain = hints[name] if hints[name] in (int, float, bool) else str
        flag = "--" + name.replace("_", "-")
        option = typer.Option(
            f"{flag}/--no-{flag[2:]}" if plain is bool else flag,
            help=HELP[panel][name] + _default(name, getattr(defaults, name)),
            rich_help_panel=panel,
            show_default=False,
            metavar=None if plain is bool else _metavar(hints[name]),
        )
        parameters.append(
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[plain | None, option]
            )
        )
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    command.__doc__, command.__name__ = function.__doc__, function.__name__
    return command


def _metavar(hint: Any) -> str:
    """The kind of value: the names of the types, and the words that stand for something."""
    kinds = []
    for choice in choices(hint):
        if get_origin(choice) is tuple:
            kinds.append("list")
        elif get_origin(choice) is Literal:
            kinds += get_args(choice) if len(get_args(choice)) == 1 else ["word"]
        elif choice is not type(None):
            kinds.append(choice.__name__)
    return f"<{'|'.join(kinds)}>"


def _default(name: str, value: Any) -> str:
    """What follows in the help; where None stands for a default, the help has said which."""
    if name == "noise":
        value = "learned"
    if value is None or value == () or isinstance(value, bool):
        return ""
    return f" Default: {','.join(map(str, value)) if isinstance(value, tuple) else value}."


def given_options(flags: Mapping[str, Any]) -> dict[str, Any]:
    """The options whose flags were given, parsed."""
    return {name: parse(name, x) if isinstance(x, str) else x for name, x in flags.items() if x is not None}
