"""`hearken encode` and `hearken decode`: spectra as a few numbers each, by a release's autoencoder or VAE, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.arrived import as_data_set
from flows.checkout import chosen_params
from flows.terminal import say
from pipeline.errors import UserError


def encode(
    source: Annotated[Path, typer.Argument(help="A data set, or anything that ingest takes.")],
    out: Annotated[Path, typer.Option(help="The codes file to write (Parquet).")],
    release: Annotated[
        str | None,
        typer.Option(
            help="A release folder (a build has data/release), or an id, v3 or 3; default: the one in service."
        ),
    ] = None,
    detector: Annotated[
        str | None, typer.Option(help="autoencoder or vae; default: the first that the release has.")
    ] = None,
) -> None:
    """Compress spectra: each becomes a code of a few numbers. Says how much smaller, and what is lost."""
    from flows.chosen_release import chosen_release
    from pipeline.codes import coding_detector, encode_data_set, fidelity_words, ratio

    loaded = chosen_release(release)
    coding_detector(loaded, detector)  # before anything is read
    if out.resolve().is_relative_to(source.resolve()):
        raise UserError(f"--out: got {out}, expected a file that is not the source, nor below it.")
    with as_data_set(source, chosen_params().ingest) as data_set:
        summary = encode_data_set(loaded, data_set, out, detector)
    header = summary.header
    left_out = f", {header.unusable:,} unusable left out" if header.unusable else ""
    say(f"{header.rows:,} spectra{left_out}, coded by {header.detector} of release {header.release}: {out}")
    say(
        f"{header.bins} numbers of a spectrum became {header.latent} ({ratio(header):.3g} to 1); "
        f"{_megabytes(summary.source_bytes)} of day files became {_megabytes(summary.written_bytes)}"
    )
    say(fidelity_words(header))


def decode(
    codes: Annotated[Path, typer.Argument(help="A file that `hearken encode` wrote.")],
    out: Annotated[Path, typer.Option(help="A new or empty folder: a data set of the decoded spectra.")],
    release: Annotated[
        str | None, typer.Option(help="The release that made the codes; default: the one whose id they carry.")
    ] = None,
) -> None:
    """Make spectra of codes again: day files with the same keys, as a data set."""
    from flows.chosen_release import chosen_release
    from pipeline.codes import CodesHeader, decode_codes, fidelity_words

    loaded = chosen_release(release or CodesHeader.of(codes).release)
    header = decode_codes(loaded, codes, out)
    say(f"{header.rows:,} spectra of {header.bins} bins, decoded by {header.detector} of release {loaded.id}: {out}")
    say(f"when they were coded: {fidelity_words(header)}")


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
