"""The arguments and options that several commands share."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from attrfn.cli._names import method_names, metric_names


class EngineName(str, Enum):
    """What runs the batches."""

    local = "local"
    ray = "ray"
    torchrun = "torchrun"


class OnErrorName(str, Enum):
    """What happens to an example that fails."""

    stop = "raise"
    skip = "skip"


Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A .pt2 or .onnx program, a folder of a Hugging Face model, or module:function.",
    ),
]
Data = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="A .parquet, .csv, .tsv, .safetensors, .npy, .npz or .txt file, a folder of images, "
        "or module:function.",
    ),
]
Folder = Annotated[Path, typer.Option("--out", help="The folder that is written to.")]
Method = Annotated[
    str,
    typer.Option(
        "--method",
        help="A method of `attrfn methods`, or module:function.",
        autocompletion=method_names,
    ),
]
Methods = Annotated[
    list[str],
    typer.Option("--method", help="As for explain; repeat it.", autocompletion=method_names),
]
Metrics = Annotated[
    list[str] | None,
    typer.Option("--metric", help="A metric; repeat it.", autocompletion=metric_names),
]
Target = Annotated[
    str | None,
    typer.Option(
        help="An output: 3, or 0,3 of several dimensions; label:COLUMN of each example; predicted; "
        "or module:function from outputs to one number for each example."
    ),
]
Baselines = Annotated[
    str | None,
    typer.Option(help="zeros, mean (of the inputs of DATA) or a FILE; pad or mask for texts."),
]
Columns = Annotated[
    list[str] | None,
    typer.Option(
        "--columns",
        help="age,income (the features of a table), or KEY=NAME with inputs, target, index, "
        "bind.ARGUMENT or an option of the method; repeat it.",
    ),
]
Layer = Annotated[
    str | None, typer.Option(help="Explain this layer: a name of `attrfn layers MODEL`.")
]
Options = Annotated[
    list[str] | None,
    typer.Option("--option", help="NAME=VALUE, an option of the method; repeat it."),
]
BatchSize = Annotated[str, typer.Option(help="auto, or how many examples at once.")]
Key = Annotated[int, typer.Option(help="The key of random numbers.")]
Device = Annotated[str | None, typer.Option(help="Where the model runs, such as cuda.")]
MaxLength = Annotated[
    int | None, typer.Option(min=1, help="Cut texts after so many tokens; else as the model says.")
]
ImageSize = Annotated[
    str | None, typer.Option(help="Resize images to HEIGHT,WIDTH, without a preprocessor's file.")
]
ImageMean = Annotated[str | None, typer.Option(help="Subtract 0.5 or 0.4,0.5,0.6 from images.")]
ImageStd = Annotated[str | None, typer.Option(help="Divide images by it, as --image-mean.")]
Progress = Annotated[
    bool | None,
    typer.Option("--progress/--no-progress", help="A bar; else where stderr is a terminal."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Resume = Annotated[
    bool, typer.Option("--resume/--no-resume", help="Go on in a folder that holds results.")
]
Rows = Annotated[int, typer.Option(min=1, help="How many examples, from the first on.")]
InputShape = Annotated[
    str | None, typer.Option(help="The shape of one example, such as 3,224,224; zeros are given.")
]
InputType = Annotated[str, typer.Option(help="The type of these zeros: float, or int for tokens.")]
Top = Annotated[int, typer.Option(min=1, help="How many features and examples are shown.")]
Html = Annotated[
    Path | None, typer.Option("--html", help="The file to write; else report.html in OUT.")
]
Results = Annotated[Path, typer.Argument(metavar="OUT", help="A folder of `attrfn explain`.")]
Name = Annotated[
    str | None,
    typer.Argument(metavar="NAME", help="A method.", autocompletion=method_names),
]
MaybeData = Annotated[
    str | None, typer.Argument(metavar="DATA", help="As for explain: shows output shapes.")
]
Engine = Annotated[EngineName, typer.Option(help="What runs the batches.")]
OnError = Annotated[
    OnErrorName, typer.Option(help="Stop at an example that fails, or note it and go on.")
]
