"""Spectra as codes and back: what is kept, what is refused, and that a row's code depends on no other row."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from pipeline.codes import FOOTER, CodesHeader, codes_schema, coding_detector, decode_codes, encode_data_set
from pipeline.detectors import Fitting, TrainingRows, fit_baselines, make_detector
from pipeline.ensemble import TailTables
from pipeline.epochs import EpochStarts
from pipeline.errors import ContractError, ReleaseError, UserError
from pipeline.params import Params
from pipeline.release import Release, load_release
from pipeline.rows import RowKeys
from pipeline.schema import (
    FleetSpec,
    codes_and_names,
    dictionary_column,
    spectra_column,
    spectra_schema,
    spectra_view,
    time_column,
)
from pipeline.store import day_files, read_json, read_table, write_fleet_spec, write_json, write_table

BINS, LATENT, LOADS, ROWS = 128, 16, 6, 600


def wide_spectra(rows: int, seed: int) -> np.ndarray:
    """Magnitudes (N, 128) that six hidden loads move, and a little noise."""
    random = np.random.default_rng(seed)
    mixing = np.random.default_rng(1).normal(size=(LOADS, BINS)) / np.sqrt(LOADS)
    logs = random.normal(size=(rows, LOADS)) @ mixing + 0.1 * random.normal(size=(rows, BINS))
    return np.exp(logs - 2).astype(np.float32)


@pytest.fixture(scope="module")
def wide() -> Release:
    """A release of one autoencoder, 128 bins to 16 numbers."""
    spectra, keys = wide_spectra(ROWS, 0), RowKeys.of(["pump"], np.zeros(ROWS, int), np.zeros(ROWS, int))
    table = fit_baselines(spectra, keys)
    params = Params().train.autoencoder.model_copy(update={"latent": LATENT})
    params = params.model_copy(
        update={"optimiser": params.optimiser.model_copy(update={"max_epochs": 12, "batch_rows": 64, "patience": 12})}
    )
    train = Params().train.model_copy(update={"autoencoder": params, "score_batch_rows": 256})
    detector = make_detector("autoencoder", table, train, torch.device("cpu"))
    code = table.codes(keys)
    torch.set_num_threads(1)
    detector.fit(TrainingRows(spectra, code, spectra[:100], code[:100]), Fitting(7, torch.device("cpu")))
    return Release(
        folder=Path("no-such-release"),
        id="0123456789abcdef",
        manifest={"threads": 1},
        detectors=MappingProxyType({"autoencoder": detector}),
        tails=TailTables({}),
        calibration={},
        epochs=EpochStarts({}),
        fleet=FleetSpec(bins=BINS),
    )


def written(folder: Path, days: list[np.ndarray], bins: int = BINS) -> Path:
    """A data set with a day file for each array of spectra."""
    write_fleet_spec(folder / "fleet.yaml", FleetSpec(bins=bins))
    for day, spectra in enumerate(days):
        start = np.datetime64(f"2025-01-{day + 1:02}", "us").astype(np.int64)
        times = time_column(start + np.arange(len(spectra)) * 60_000_000)
        machine = dictionary_column(np.zeros(len(spectra), np.int32), ["pump"], pa.dictionary(pa.int32(), pa.string()))
        table = pa.table([machine, times, spectra_column(spectra)], schema=spectra_schema(bins))
        write_table(folder / f"spectra/2025-01-{day + 1:02}.parquet", table)
    return folder


def spectra_of(data_set: Path, bins: int = BINS) -> np.ndarray:
    return np.concatenate([spectra_view(read_table(path)["spectrum"], bins) for path in day_files(data_set)])


class TestRoundTrip:
    def test_128_bins_become_16_numbers_and_come_back_alike(self, wide: Release, tmp_path: Path) -> None:
        days = [wide_spectra(400, 1), wide_spectra(301, 2)]
        source = written(tmp_path / "source", days)
        summary = encode_data_set(wide, source, tmp_path / "codes.parquet")
        assert (summary.header.bins, summary.header.latent, summary.header.rows) == (BINS, LATENT, 701)
        assert 4 < summary.source_bytes / summary.written_bytes < 10
        told = decode_codes(wide, tmp_path / "codes.parquet", tmp_path / "back")
        assert told == summary.header
        before, after = np.concatenate(days), spectra_of(tmp_path / "back")
        error = np.sqrt(np.square(20 * np.log10(after / before)).mean(axis=1))
        figures = summary.header.fidelity
        assert figures.unit == "dB"
        assert figures.median_error == pytest.approx(np.median(error), abs=0.011)
        assert figures.error_95 == pytest.approx(np.percentile(error, 95), abs=0.05)
        assert figures.largest_error == pytest.approx(error.max(), rel=1e-3)
        # the loads move a bin by 8.7 dB (one neper), the noise by .9
        assert figures.explained is not None
        assert figures.explained > 0.8
        assert np.median(error) < 4
        for path in day_files(source):
            keys = ["machine_id", "timestamp"]
            assert read_table(tmp_path / "back/spectra" / path.name, keys).equals(read_table(path, keys))

    def test_a_code_is_the_same_wherever_its_row_stands(self, wide: Release) -> None:
        network, spectra = coding_detector(wide, None), wide_spectra(300, 3)
        code = np.ones(300, np.int32)
        whole, alone = network.encode(spectra, code), network.encode(spectra[257:258], code[:1])
        assert whole.shape == (300, LATENT)
        assert np.array_equal(whole[257:258], alone)
        back = network.decode_to_spectra(whole, code)
        assert np.array_equal(network.decode_to_spectra(alone, code[:1]), back[257:258])

    def test_codes_far_beyond_any_row_stay_magnitudes(self, wide: Release) -> None:
        made = coding_detector(wide, None).decode_to_spectra(np.full((1, LATENT), 1e4, np.float32), np.ones(1, int))
        assert np.isfinite(np.square(made).sum())

    def test_rows_that_no_code_can_hold_are_left_out_and_counted(self, wide: Release, tmp_path: Path) -> None:
        spectra = wide_spectra(50, 4)
        spectra[3, 5], spectra[7, 0], spectra[49, 1] = np.nan, -1.0, np.inf
        header = encode_data_set(wide, written(tmp_path / "s", [spectra]), tmp_path / "codes.parquet").header
        assert (header.rows, header.unusable) == (47, 3)
        kept = read_table(tmp_path / "codes.parquet")["row"].to_pylist()
        assert kept == [row for row in range(50) if row not in (3, 7, 49)]

    def test_the_footer_tells_whose_codes_they_are(self, wide: Release, tmp_path: Path) -> None:
        source = written(tmp_path / "s", [wide_spectra(20, 5)])
        header = encode_data_set(wide, source, tmp_path / "codes.parquet").header
        values = json.loads(pq.read_metadata(tmp_path / "codes.parquet").metadata[FOOTER.encode()])
        assert (values["release"], values["detector"], values["format"]) == (wide.id, "autoencoder", 1)
        assert CodesHeader.of(tmp_path / "codes.parquet") == header


class TestRefused:
    def test_another_number_of_bins(self, wide: Release, tmp_path: Path) -> None:
        source = written(tmp_path / "s", [wide_spectra(20, 5)[:, :64]], 64)
        with pytest.raises(ContractError, match=r"bins: got 64, expected 128, in .*fleet\.yaml"):
            encode_data_set(wide, source, tmp_path / "codes.parquet")
        (source / "fleet.yaml").unlink()
        with pytest.raises(ContractError, match="type of spectrum"):
            encode_data_set(wide, source, tmp_path / "codes.parquet")
        assert not (tmp_path / "codes.parquet").exists()
        assert not list(tmp_path.glob(".codes*"))

    def test_a_place_among_the_spectra(self, wide: Release, tmp_path: Path) -> None:
        source = written(tmp_path / "s", [wide_spectra(20, 5)])
        with pytest.raises(UserError, match="not below"):
            encode_data_set(wide, source, source / "spectra/codes.parquet")
        with pytest.raises(UserError, match="not below"):
            encode_data_set(wide, source, source / "maintenance.parquet")

    @pytest.mark.parametrize(("name", "value"), [("rows", "x"), ("condition_column", 5), ("fidelity", {"unit": 3})])
    def test_a_footer_that_was_changed(self, wide: Release, tmp_path: Path, name: str, value: Any) -> None:
        codes = tmp_path / "codes.parquet"
        header = encode_data_set(wide, written(tmp_path / "s", [wide_spectra(20, 5)]), codes).header
        text = json.dumps(json.loads(header.to_text()) | {name: value})
        pq.write_table(read_table(codes).replace_schema_metadata({FOOTER: text}), codes)
        with pytest.raises(ContractError, match="footer"):
            CodesHeader.of(codes)

    def test_codes_by_another_condition(self, wide: Release, tmp_path: Path) -> None:
        codes = tmp_path / "codes.parquet"
        header = encode_data_set(wide, written(tmp_path / "s", [wide_spectra(20, 5)]), codes).header
        text = json.dumps(json.loads(header.to_text()) | {"condition_column": "spectrum"})
        pq.write_table(read_table(codes).replace_schema_metadata({FOOTER: text}), codes)
        with pytest.raises(ContractError, match="condition_column: got spectrum"):
            decode_codes(wide, codes, tmp_path / "back")

    def test_the_current_folder(self, wide: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        encode_data_set(wide, written(tmp_path / "s", [wide_spectra(20, 5)]), tmp_path / "codes.parquet")
        (tmp_path / "empty").mkdir()
        monkeypatch.chdir(tmp_path / "empty")
        with pytest.raises(UserError, match="the current folder"):
            decode_codes(wide, tmp_path / "codes.parquet", Path())

    def test_codes_of_another_release_and_files_that_are_none(self, wide: Release, tmp_path: Path) -> None:
        source = written(tmp_path / "s", [wide_spectra(20, 5)])
        encode_data_set(wide, source, tmp_path / "codes.parquet")
        other = Release(**{**vars(wide), "id": "f" * 16})
        with pytest.raises(ReleaseError, match=f"got {'f' * 16}, expected {wide.id}"):
            decode_codes(other, tmp_path / "codes.parquet", tmp_path / "back")
        with pytest.raises(ContractError, match="footer"):
            decode_codes(wide, next(iter(day_files(source))), tmp_path / "back")
        (tmp_path / "taken").mkdir()
        (tmp_path / "taken/file").touch()
        with pytest.raises(UserError, match="where something is already"):
            decode_codes(wide, tmp_path / "codes.parquet", tmp_path / "taken")
        assert not (tmp_path / "back").exists()

    @pytest.mark.parametrize(
        ("column", "value", "said"),
        [
            ("baseline", 99, "baselines beyond"),
            ("baseline", -1, "baselines beyond"),
            ("code", float("nan"), "not finite"),
            ("file", "../../outside.parquet", "names of day files"),
        ],
    )
    def test_a_file_that_was_changed(self, wide: Release, tmp_path: Path, column: str, value: Any, said: str) -> None:
        codes = tmp_path / "codes.parquet"
        header = encode_data_set(wide, written(tmp_path / "s", [wide_spectra(20, 5)]), codes).header
        table, schema = read_table(codes), codes_schema(LATENT)
        values: Any = [value] * 20
        if column == "code":
            values = spectra_column(np.full((20, LATENT), value, np.float32))
        elif column == "file":
            values = dictionary_column(np.zeros(20, np.int16), [value])
        table = table.set_column(table.column_names.index(column), column, pa.array(values)).cast(schema)
        pq.write_table(table.replace_schema_metadata({FOOTER: header.to_text()}), codes)
        with pytest.raises(ContractError, match=said):
            decode_codes(wide, codes, tmp_path / "back")
        assert not (tmp_path / "back").exists()


class TestCommands:
    """On a build of a small fleet: ten machines in several conditions, some in epochs after a repair."""

    def test_spectra_go_there_and_back(self, built: Path, hearken: Any, tmp_path: Path) -> None:
        codes, release = tmp_path / "codes.parquet", built / "data/release"
        code, said, _ = hearken(
            "encode", tmp_path, built / "data/raw", "--out", codes, "--release", release, "--detector", "vae"
        )
        assert code == 0, said
        assert "32 numbers of a spectrum became 4 (8 to 1)" in said
        assert "median" in said
        table, loaded = read_table(codes), load_release(release, device="cpu")
        names = codes_and_names(table["condition"])[1]
        assert len(names) > 1
        assert table["epoch"].to_numpy().max() > 0
        assert len(np.unique(table["baseline"].to_numpy())) > len(names)
        code, said, _ = hearken("decode", tmp_path, codes, "--out", tmp_path / "back", "--release", release)
        assert code == 0, said
        first = day_files(tmp_path / "back")[0]
        original = read_table(built / "data/raw/spectra" / first.name)
        rows = table.filter(pc.equal(table["file"].cast(pa.string()), first.name))["row"]
        assert read_table(first)["condition"].to_pylist() == original["condition"].take(rows).to_pylist()
        # the decoded data set is scored as any other
        code, said, _ = hearken(
            "score", tmp_path, "--input", tmp_path / "back", "--release", release, "--output", tmp_path / "log"
        )
        assert code == 0, said
        assert f"{table.num_rows:,} spectra of 10 machines" in said
        assert loaded.id in said

    def test_mistakes_are_one_line_and_exit_code_2(self, built: Path, hearken: Any, tmp_path: Path) -> None:
        codes, release = tmp_path / "codes.parquet", built / "data/release"
        given = (built / "data/raw", "--out", codes, "--release", release)
        for name, said in (("pca", "got pca, which has no codes"), ("transformer", "got transformer")):
            code, _, errors = hearken("encode", tmp_path, *given, "--detector", name)
            assert (code, errors.count("\n")) == (2, 1)
            assert f"error: --detector: {said}, expected autoencoder, vae, in release" in errors
        assert hearken("encode", tmp_path, *given)[0] == 0
        other = tmp_path / "other"
        self._another_release(release, other)
        code, _, errors = hearken("decode", tmp_path, codes, "--out", tmp_path / "back", "--release", other)
        assert (code, errors.count("\n")) == (2, 1)
        assert errors.startswith("error: release: got ")
        assert hearken("decode", tmp_path, tmp_path / "none.parquet", "--out", tmp_path / "back")[0] == 2

    def test_a_place_at_the_source_or_below_a_file_is_one_line(self, built: Path, hearken: Any, tmp_path: Path) -> None:
        day, release = tmp_path / "day.parquet", built / "data/release"
        shutil.copyfile(next(iter(day_files(built / "data/raw"))), day)
        before = day.read_bytes()
        code, _, errors = hearken("encode", tmp_path, day, "--out", day, "--release", release)
        assert (code, len(errors.splitlines())) == (2, 1)
        assert "not the source, nor below it" in errors
        assert day.read_bytes() == before
        below = tmp_path / "day.parquet/codes.parquet"
        code, _, errors = hearken("encode", tmp_path, built / "data/raw", "--out", below, "--release", release)
        assert (code, len(errors.splitlines())) == (2, 1)

    @staticmethod
    def _another_release(release: Path, folder: Path) -> None:
        shutil.copytree(release, folder)
        manifest = read_json(folder / "manifest.json")
        write_json(folder / "manifest.json", manifest | {"seed": 99})


def test_memory_is_that_of_a_batch(wide: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A day file is read in batches, and none of them is larger than asked for."""
    from pipeline import codes

    sizes: list[int] = []
    plain = codes.read_batches

    def small(path: Path, columns: Any = None) -> Any:
        for table in plain(path, columns, 64):
            sizes.append(table.num_rows)
            yield table

    source = written(tmp_path / "s", [wide_spectra(300, 6)])
    encode_data_set(wide, source, tmp_path / "whole.parquet")
    monkeypatch.setattr(codes, "read_batches", small)
    encode_data_set(wide, source, tmp_path / "parts.parquet")
    assert max(sizes) == 64
    whole, parts = (read_table(tmp_path / f"{name}.parquet") for name in ("whole", "parts"))
    assert whole.to_pylist() == parts.to_pylist()
