from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lana_ray.config import DataConfig
from lana_ray.data import parquet
from lana_ray.data.open import class_names, open_sources
from lana_ray.data.pixels import decode
from lana_ray.data.sources import MissingDataError, Source

from ..errors import refuses
from .samples import NAMES, picture, pictures, write_parquet


def sources(**settings: Any) -> tuple[Source, Source | None]:
    return open_sources(DataConfig(**settings))


def classes_of(**settings: Any) -> tuple[str, ...]:
    return class_names(*sources(**settings))


@pytest.mark.parametrize("column", ["image", "img"])
@pytest.mark.parametrize("as_struct", [True, False])
def test_parquet_file(tmp_path: Path, column: str, as_struct: bool) -> None:
    path = write_parquet(tmp_path / "a.parquet", pictures(9), column=column, as_struct=as_struct)
    train, test = sources(parquet=str(path))
    assert test is None
    assert train.labels.tolist() == [0, 1, 2] * 3
    np.testing.assert_array_equal(train.pixels(7), np.asarray(picture(7)))
    assert class_names(train, None) == ("0", "1", "2")


def test_parquet_class_names(tmp_path: Path) -> None:
    hub = {"info": {"features": {"label": {"names": NAMES, "_type": "ClassLabel"}}}}
    for metadata in ({"classes": NAMES}, {"huggingface": hub}):
        path = write_parquet(tmp_path / "a.parquet", pictures(9), metadata=metadata)
        assert classes_of(parquet=str(path)) == NAMES


def test_parquet_folder_and_glob_join_their_files(tmp_path: Path) -> None:
    for number in range(3):
        write_parquet(tmp_path / f"part-{number}.parquet", pictures(5, start=5 * number))
    for location in (tmp_path, tmp_path / "part-*.parquet"):
        train, _ = sources(parquet=str(location))
        assert len(train) == 15
        for index in (0, 4, 5, 14):
            np.testing.assert_array_equal(train.pixels(index), np.asarray(picture(index)))
        assert train.where(6).endswith("part-1.parquet row 1")


def test_parquet_test_images_by_setting_or_by_name(tmp_path: Path) -> None:
    train_file = write_parquet(tmp_path / "train-0.parquet", pictures(9))
    test_file = write_parquet(tmp_path / "test-0.parquet", pictures(6, start=50))
    write_parquet(tmp_path / "validation-0.parquet", pictures(3, start=80))
    for settings in ({"parquet": train_file, "test": test_file}, {"parquet": tmp_path}):
        train, test = sources(**{key: str(value) for key, value in settings.items()})
        assert test is not None
        assert (len(train), len(test)) == (9, 6)


def test_parquet_over_a_url(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", pictures(9))
    train, _ = sources(parquet=path.as_uri())
    np.testing.assert_array_equal(train.pixels(3), np.asarray(picture(3)))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where copies go; everything is large enough for one."""
    monkeypatch.setattr(parquet, "IN_MEMORY", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "lana_ray"


@pytest.mark.parametrize("as_struct", [False, True])
def test_large_parquet_is_mapped_from_one_local_copy(tmp_path: Path, cache: Path, as_struct: bool) -> None:
    for name, start, count in (("a", 0, 40), ("b", 40, 2)):
        write_parquet(tmp_path / f"{name}.parquet", pictures(count, start), as_struct=as_struct)
    source, _ = sources(parquet=str(tmp_path / "*.parquet"))
    assert not cache.exists()  # until an image is asked for
    expected = [decode(image) for image in pictures(42)]
    for index in (41, 0, 17, 40, 39):
        assert np.array_equal(source.pixels(index), expected[index])
    copies = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert {path.suffix for path in copies} == {".arrow"}
    again, _ = sources(parquet=str(tmp_path / "*.parquet"))
    assert np.array_equal(again.pixels(40), expected[40])
    assert {path: path.stat().st_mtime_ns for path in cache.iterdir()} == copies


@pytest.mark.parametrize("left", [0, 100, -100])
def test_a_damaged_copy_is_named_and_made_again(
    tmp_path: Path, cache: Path, left: int, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_parquet(tmp_path / "a.parquet", pictures(40))
    source, _ = sources(parquet=str(path))
    source.pixels(0)
    (copy,) = cache.iterdir()
    copy.write_bytes(copy.read_bytes()[:left])
    again, _ = sources(parquet=str(path))
    assert np.array_equal(again.pixels(3), decode(pictures(40)[3]))
    assert f"{copy}: damaged" in capsys.readouterr().out


def test_a_copy_that_fails_leaves_nothing_behind(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "a.parquet"
    write_parquet(path, pictures(40))
    source, _ = sources(parquet=str(path))
    content = bytearray(path.read_bytes())
    content[100:2000] = bytes(1900)
    path.write_bytes(content)
    with refuses("invalid_file", "a.parquet"):
        source.pixels(0)
    assert list(cache.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, cache: Path) -> None:
    write_parquet(tmp_path / "a.parquet", pictures(2))
    source, _ = sources(parquet=str(tmp_path / "a.parquet"))
    cache.parent.write_text("a file where the folder should be")
    with refuses("not_writable", str(cache), "XDG_CACHE_HOME"):
        source.pixels(0)


def test_identity_follows_content_not_place(tmp_path: Path) -> None:
    first = write_parquet(tmp_path / "a.parquet", pictures(9))
    (tmp_path / "elsewhere").mkdir()
    copy = Path(shutil.copy(first, tmp_path / "elsewhere" / "b.parquet"))
    other = write_parquet(tmp_path / "c.parquet", pictures(9, start=1))
    assert sources(parquet=str(first))[0].identity == sources(parquet=str(copy))[0].identity
    assert sources(parquet=str(first))[0].identity != sources(parquet=str(other))[0].identity


def test_missing_and_empty_locations(tmp_path: Path) -> None:
    with refuses("missing_file", f"data.parquet {tmp_path / 'gone'}") as error:
        sources(parquet=str(tmp_path / "gone"))
    assert isinstance(error.value, MissingDataError)
    for location in (tmp_path, tmp_path / "*.parquet"):
        with refuses("missing_file", f"data.parquet {location}", "no Parquet files") as error:
            sources(parquet=str(location))
        assert not isinstance(error.value, MissingDataError)
    with refuses("missing_file", f"data.test {tmp_path / 'gone'}"):
        sources(parquet=str(write_parquet(tmp_path / "a.parquet", pictures(3))), test=str(tmp_path / "gone"))
    with refuses("unreachable", "data.parquet nowhere://a") as error:
        sources(parquet="nowhere://a")
    assert isinstance(error.value, MissingDataError)


def test_a_file_system_that_fails_without_a_word_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(location: str) -> None:
        raise TimeoutError

    monkeypatch.setattr(fsspec.core, "url_to_fs", fails)
    with refuses("unreachable", "data.parquet s3://bucket/images", "(TimeoutError)"):
        sources(parquet="s3://bucket/images")


@pytest.mark.parametrize("keep", [0, 4, 200, -1])
def test_truncated_parquet_names_the_file(tmp_path: Path, keep: int) -> None:
    path = write_parquet(tmp_path / "a.parquet", pictures(9))
    path.write_bytes(path.read_bytes()[:keep])
    with refuses("invalid_file", "a.parquet"):
        sources(parquet=str(path))


def test_parquet_damaged_inside_names_the_file(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", pictures(40))
    data = bytearray(path.read_bytes())
    data[4:2000] = bytes(1996)
    path.write_bytes(data)
    with refuses("invalid_file", "a.parquet"):
        sources(parquet=str(path))[0].pixels(0)


@pytest.mark.parametrize(
    ("table", "named"),
    [
        ({"photo": [b"x"], "label": [0]}, ("image or img", "data.image_column", "photo, label")),
        ({"image": [b"x"], "fine_label": [0]}, (" label;", "data.label_column", "image, fine_label")),
        ({"image": ["x"], "label": [0]}, ("column image", "string", "binary")),
        ({"image": [{"path": "x"}], "label": [0]}, ("column image", "binary or struct")),
        ({"image": [b"x"], "label": [0.5]}, ("column label", "double")),
        ({"image": [b"x"], "label": pa.array([2**64 - 1], pa.uint64())}, ("column label", "uint64")),
        ({"image": [b"x"], "label": [[0, 1]]}, ("column label", "list")),
        ({"image": [b"x"] * 2, "label": [0, None]}, ("row 1:", "label")),
        ({"image": [b"x"] * 2, "label": [0.0, float("nan")]}, ("row 1:", "label")),
        ({"image": [b"x"] * 3, "label": ["cat", "dog", " "]}, ("row 2:", "label")),
        ({"image": [b"x"] * 3, "label": ["cat", None, "dog"]}, ("row 1:", "label")),
    ],
)
def test_parquet_columns_are_checked(tmp_path: Path, table: dict[str, Any], named: tuple[str, ...]) -> None:
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    with refuses("invalid_data", "a.parquet", *named):
        sources(parquet=str(tmp_path / "a.parquet"))


@pytest.mark.parametrize(
    "labels",
    [
        pa.array([0, 1, 2, 0], pa.int8()),
        pa.array([0, 1, 2, 0], pa.uint64()),
        pa.array([0.0, 1.0, 2.0, 0.0]),
        pa.array([0, 1, 2, 0]).dictionary_encode(),
    ],
)
def test_whole_numbers_of_any_type_are_labels(tmp_path: Path, labels: Any) -> None:
    train, _ = sources(parquet=str(write_parquet(tmp_path / "a.parquet", pictures(4), labels)))
    assert train.labels.tolist() == [0, 1, 2, 0]
    assert class_names(train, None) == ("0", "1", "2")


def test_truth_values_are_labels(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", pictures(3), [True, False, True])
    assert sources(parquet=str(path))[0].labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_names_are_labels_and_join_over_files(tmp_path: Path, kind: Any) -> None:
    write_parquet(tmp_path / "0.parquet", pictures(3), pa.array(["dog", "cat", "dog "], kind))
    write_parquet(tmp_path / "1.parquet", pictures(3, 3), pa.array(["eel", "ant", "dog"], kind))
    train, _ = sources(parquet=str(tmp_path))
    assert train.classes == ("ant", "cat", "dog", "eel")
    assert [train.classes[label] for label in train.labels] == ["dog", "cat", "dog", "eel", "ant", "dog"]
    write_parquet(tmp_path / "2.parquet", pictures(3, 6))
    with refuses("invalid_data", "2.parquet: its labels are numbers", "0.parquet"):
        sources(parquet=str(tmp_path))


def test_columns_by_setting(tmp_path: Path) -> None:
    table = pa.table({"photo": pictures(6), "coarse": [0, 1] * 3, "fine": [0, 1, 2] * 2})
    pq.write_table(table, tmp_path / "a.parquet")
    settings = {"parquet": str(tmp_path / "a.parquet"), "image_column": "photo"}
    fine, _ = sources(**settings, label_column="fine")
    assert fine.labels.tolist() == [0, 1, 2, 0, 1, 2]
    np.testing.assert_array_equal(fine.pixels(4), np.asarray(picture(4)))
    coarse, _ = sources(**settings, label_column="coarse")
    assert coarse.labels.tolist() == [0, 1] * 3
    assert coarse.identity != fine.identity
    with refuses("invalid_data", "column kind", "data.label_column", "photo, coarse, fine"):
        sources(**settings, label_column="kind")


def test_images_that_are_only_named_are_refused(tmp_path: Path) -> None:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = pa.array([{"bytes": None, "path": f"{number}.png"} for number in range(3)], kind)
    pq.write_table(pa.table({"image": images, "label": [0, 1, 2]}), tmp_path / "a.parquet")
    with refuses("invalid_data", "a.parquet", "column image.bytes"):
        sources(parquet=str(tmp_path / "a.parquet"))


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train-00000-of-00001", "test-00000-of-00001"),
        ("data/train-0", "data/valid-0"),
        ("Train", "Dev"),
        ("trainset", "testset"),
        ("cifar10_train", "cifar10_test"),
        ("default/train/0000", "default/test/0000"),
        ("train.parquet/part-0", "test.parquet/part-0"),
        ("en/train-0", "en/eval-0"),
    ],
)
def test_splits_by_the_names_of_files_and_folders(tmp_path: Path, train: str, test: str) -> None:
    for name, count, start in ((train, 9, 0), (test, 6, 20), (".cache/x", 3, 40), ("_delta_log/y", 3, 40)):
        path = tmp_path / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_parquet(path, pictures(count, start))
    (tmp_path / "labels.csv").write_text("")
    first, second = sources(parquet=str(tmp_path))
    assert second is not None
    assert (len(first), len(second)) == (9, 6)
    assert [note.split(" are ")[0] for note in first.notes] == ["training images", "test images"]


def test_files_that_are_not_used_are_named(tmp_path: Path) -> None:
    for number, name in enumerate(("train", "test", "validation", "extra")):
        write_parquet(tmp_path / f"{name}.parquet", pictures(6, 10 * number))
    notes = sources(parquet=str(tmp_path))[0].notes
    assert "validation.parquet is not used" in notes
    assert "extra.parquet: not used, as named after no split" in notes


def test_several_data_sets_in_one_folder_are_refused(tmp_path: Path) -> None:
    for number, name in enumerate(("en/train", "en/test", "de/train", "de/test")):
        path = tmp_path / f"{name}.parquet"
        path.parent.mkdir(exist_ok=True)
        write_parquet(path, pictures(6, 10 * number))
    with refuses("invalid_data", "de, en", "data.parquet"):
        sources(parquet=str(tmp_path))
    assert len(sources(parquet=str(tmp_path / "de"))[0]) == 6


def test_a_preview_reads_a_few_rows_and_makes_no_copy(tmp_path: Path, cache: Path) -> None:
    images = pictures(40)
    source, _ = sources(parquet=str(write_parquet(tmp_path / "a.parquet", images)))
    assert [data for _, data in source.preview()] == images[:8]
    assert not cache.exists()
