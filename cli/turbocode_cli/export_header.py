"""`turbocode export header`: a codec as one self-contained C header."""

from __future__ import annotations

from pathlib import Path

import click

from turbocode.errors import OptionError
from turbocode_cli.options import FILE, force_option, json_option
from turbocode_cli.output import emit

STDOUT = "-"
DEFAULT_HEAD_DIM = 128


@click.command(name="header")
@click.argument("codec", required=False)
@click.option(
    "--head-dim",
    type=click.IntRange(1, 65536),
    metavar="N",
    show_default=str(DEFAULT_HEAD_DIM),
    help="Values in one key or value vector; decides the group size.",
)
@click.option("--codebook", metavar="FILE|NAME", help="Codebook from train-codebook, or the name of a shipped one.")
@click.option("--from", "source", type=FILE, metavar="QUANTIZED", help="Take the codec out of a quantized file.")
@click.option("--layer", type=click.IntRange(0, 999), metavar="N", help="Layer of that file or of a codebook set.")
@click.option("--side", type=click.Choice(["k", "v"]), help="Keys or values.")
@click.option("--head", type=click.IntRange(0), metavar="H", help="KV head, where heads have codebooks of their own.")
@click.option("--prefix", metavar="NAME", help="What names in the header start with; by default codec and group size.")
@click.option("-o", "--output", metavar="FILE", default=STDOUT, help="File to write; - or nothing is stdout.")
@force_option
@json_option
def command(
    codec: str | None,
    head_dim: int | None,
    codebook: str | None,
    source: Path | None,
    layer: int | None,
    side: str | None,
    head: int | None,
    prefix: str | None,
    output: str,
    force: bool,
    as_json: bool,
) -> None:
    """Write a C99 header with everything to encode and decode the blocks of CODEC.

    CODEC is a name such as turbo3, with options where wanted: turbo3:norm=mse. With --from it is what a quantized
    file says.

    \b
    Examples:
      turbocode export header turbo3 -o turbo3.h
      turbocode export header turbo4:norm=mse --head-dim 80 --prefix kv4
    """
    from turbocode.dumps import write_text_atomically
    from turbocode.export import c_header, codec_of_file, codec_of_spec, default_prefix

    if source is not None:
        if codec is not None or codebook is not None or head_dim is not None:
            raise OptionError(f"--from {source} says which codec; CODEC, --head-dim and --codebook do not apply to it")
        found = codec_of_file(source, layer=layer, side=side, head=head)
    elif codec is None:
        raise OptionError("a CODEC or --from is needed", hint="for example: turbocode export header turbo3")
    else:
        width = DEFAULT_HEAD_DIM if head_dim is None else head_dim
        found = codec_of_spec(codec, width, codebook=codebook, layer=layer, side=side, head=head)
    text = c_header(found, prefix=prefix)
    is_file = output != STDOUT
    if is_file:
        write_text_atomically(output, text, force=force, inputs=[] if source is None else [source])
    document = {
        "codec": found.name,
        "format": found.block_format.describe(),
        "prefix": prefix or default_prefix(found),
        "output": output if is_file else None,
        "header": None if is_file else text,
    }
    if as_json or is_file:
        emit(document, as_json, lambda console: console.print(f"wrote {output}: {text.count(chr(10))} lines of C"))
    else:
        click.echo(text, nl=False)
