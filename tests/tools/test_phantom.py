import itertools
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.data import load_decathlon_datalist

from tools.phantom import (
    DEFAULT_SHAPE,
    DEFAULT_SPACING_MM,
    ORGANS,
    main,
    torso_phantom,
    write_cohort,
)
from tools.phantom_cohort import ORIENTATIONS

COARSE = {"shape": (38, 28, 33), "spacing_mm": (8.0, 8.0, 8.0)}
LABELS = {name: number for number, name in enumerate(ORGANS, start=1)}
REAL_CT_LABEL = Path(__file__).parents[3] / "shared" / "data" / "ct_torso" / "label_btcv13.nii.gz"
VOLUME_ML = {
    "spleen": (80, 450),
    "right kidney": (80, 300),
    "left kidney": (80, 300),
    "gallbladder": (10, 80),
    "esophagus": (5, 50),
    "liver": (800, 2200),
    "stomach": (100, 800),
    "aorta": (40, 200),
    "inferior vena cava": (40, 200),
    "portal and splenic veins": (10, 60),
    "pancreas": (25, 150),
    "right adrenal gland": (2, 12),
    "left adrenal gland": (2, 12),
}
TYPICAL_HU = {
    "spleen": 135,
    "right kidney": 190,
    "left kidney": 190,
    "gallbladder": 10,
    "esophagus": 45,
    "liver": 110,
    "stomach": 40,
    "aorta": 170,
    "inferior vena cava": 150,
    "portal and splenic veins": 160,
    "pancreas": 90,
    "right adrenal gland": 75,
    "left adrenal gland": 75,
}


def phantom(seed, shape, spacing_mm):
    return torso_phantom(np.random.default_rng(seed), shape, spacing_mm)


def stored(folder, kind):
    return [nib.load(path) for path in sorted(folder.glob(f"{kind}sT[rs]/*.nii.gz"), key=lambda p: p.name)]


def world_centroids(image):
    """Returns for each organ present its centroid in world mm: right, anterior, superior."""
    labels = np.asarray(image.dataobj)
    present = [name for name, number in LABELS.items() if (labels == number).any()]
    mean_index = {name: np.argwhere(labels == LABELS[name]).mean(0) for name in present}
    return {name: nib.affines.apply_affine(image.affine, index) for name, index in mean_index.items()}


@pytest.fixture
def cohort(tmp_path):
    write_cohort(tmp_path, cases=len(ORIENTATIONS), seed=3, **COARSE)
    return tmp_path


def test_liver_lies_right_of_spleen_in_world_coordinates(cohort):
    # The x of a NIfTI world grows towards the patient's right ("RAS+": nib.aff2axcodes(np.eye(4))[0] == "R").
    for image in stored(cohort, "label"):
        at = world_centroids(image)
        assert at["liver"][0] > at["spleen"][0] + 80
        assert at["right kidney"][0] > at["inferior vena cava"][0] > at["aorta"][0] > at["left kidney"][0]
        assert at["right adrenal gland"][0] > at["left adrenal gland"][0]
        assert at["gallbladder"][0] > at["stomach"][0]


@pytest.mark.skipif(not REAL_CT_LABEL.exists(), reason=f"no real CT at {REAL_CT_LABEL}")
def test_sides_agree_with_a_real_ct(cohort):
    real = world_centroids(nib.load(REAL_CT_LABEL))
    for image in stored(cohort, "label"):
        at = world_centroids(image)
        for one, other in itertools.combinations(real, 2):
            apart_mm = real[one] - real[other]
            clear = np.abs(apart_mm) > 60
            assert (np.sign(at[one] - at[other])[clear] == np.sign(apart_mm)[clear]).all(), (one, other)


def test_front_organs_lie_before_back_organs_in_world_coordinates(cohort):
    for image in stored(cohort, "label"):
        at = world_centroids(image)
        assert at["stomach"][1] > at["pancreas"][1] > at["aorta"][1] > at["left kidney"][1]
        assert at["gallbladder"][1] > at["right kidney"][1]
        assert at["pancreas"][1] > at["portal and splenic veins"][1] > at["spleen"][1]


def test_upper_organs_lie_above_lower_organs_in_world_coordinates(cohort):
    for image in stored(cohort, "label"):
        at = world_centroids(image)
        assert at["right adrenal gland"][2] > at["right kidney"][2] + 30
        assert at["left adrenal gland"][2] > at["left kidney"][2] + 30
        assert at["esophagus"][2] > at["stomach"][2] > at["pancreas"][2] > at["gallbladder"][2]
        assert at["liver"][2] > at["gallbladder"][2]


@pytest.mark.parametrize("pair", [("esophagus", "stomach"), ("portal and splenic veins", "liver")])
def test_hollow_organs_reach_what_they_lead_to(pair):
    _, label = phantom(5, (75, 55, 65), (4.0, 4.0, 4.0))
    first, second = (np.pad(label == LABELS[name], 1) for name in pair)
    assert any((np.roll(first, step, axis) & second).any() for axis in range(3) for step in (-1, 1))


@pytest.mark.parametrize("seed", range(3))
def test_small_organs_keep_30_voxels_at_4_mm(seed):
    _, label = phantom(seed, (75, 55, 65), (4.0, 4.0, 4.0))
    assert min(np.count_nonzero(label == number) for number in LABELS.values()) >= 30


@pytest.mark.parametrize("seed", range(4))
def test_volumes_are_an_adults(seed):
    spacing_mm = (5.0, 5.0, 5.0)
    _, label = phantom(seed, (60, 44, 52), spacing_mm)
    for name, (low, high) in VOLUME_ML.items():
        assert low < np.count_nonzero(label == LABELS[name]) * np.prod(spacing_mm) / 1000 < high, name


def test_every_case_holds_all_13_organs(cohort):
    for image in stored(cohort, "label"):
        assert np.unique(np.asarray(image.dataobj)).tolist() == list(range(14))


def test_organs_have_their_portal_venous_hu():
    image, label = phantom(0, DEFAULT_SHAPE, DEFAULT_SPACING_MM)
    for name, hu in TYPICAL_HU.items():
        # Partial volume pulls thin organs towards the fat around them.
        assert np.median(image[label == LABELS[name]]) == pytest.approx(hu, abs=30), name
    assert np.median(image[0]) == pytest.approx(-1000, abs=5)
    assert image.min() >= -1024
    assert 250 < image.max() <= 3071


def test_anatomy_does_not_depend_on_the_grid():
    volumes = []
    for shape, spacing_mm in (((60, 44, 52), (5.0, 5.0, 5.0)), ((100, 73, 33), (3.0, 3.0, 8.0))):
        _, label = phantom(1, shape, spacing_mm)
        volumes.append(np.count_nonzero(label == LABELS["liver"]) * np.prod(spacing_mm))
    assert volumes[0] == pytest.approx(volumes[1], rel=0.03)


def test_cases_differ_in_anatomy(cohort):
    organs_mm3 = [np.bincount(np.asarray(image.dataobj).ravel())[1:] for image in stored(cohort, "label")]
    assert all((a != b).sum() > 8 for a, b in itertools.combinations(organs_mm3, 2))


def test_image_is_int16_and_label_uint8(cohort):
    assert {image.get_data_dtype() for image in stored(cohort, "image")} == {np.dtype(np.int16)}
    assert {image.get_data_dtype() for image in stored(cohort, "label")} == {np.dtype(np.uint8)}
    assert {image.header.get_slope_inter() for image in stored(cohort, "image")} == {(None, None)}


def test_image_and_label_share_shape_and_affine(cohort):
    for image, label in zip(stored(cohort, "image"), stored(cohort, "label"), strict=True):
        assert image.shape == label.shape
        np.testing.assert_array_equal(image.affine, label.affine)


def test_headers_carry_sform_and_qform_in_mm(cohort):
    for image in stored(cohort, "image") + stored(cohort, "label"):
        sform, sform_code = image.get_sform(coded=True)
        qform, qform_code = image.get_qform(coded=True)
        assert (sform_code, qform_code) == (1, 1)
        np.testing.assert_allclose(sform, qform, atol=1e-3)
        assert image.header.get_xyzt_units()[0] == "mm"


def test_stored_orientations_vary(cohort):
    axcodes = ["".join(nib.aff2axcodes(image.affine)) for image in stored(cohort, "image")]
    assert sorted(axcodes) == sorted(ORIENTATIONS)


def test_every_affine_is_oblique_in_its_own_way(cohort):
    tilts_deg = [np.rad2deg(nib.affines.obliquity(image.affine)).max() for image in stored(cohort, "image")]
    assert min(tilts_deg) > 0.5
    assert max(tilts_deg) < 8.1
    assert len({round(tilt, 3) for tilt in tilts_deg}) == len(tilts_deg)


def test_stored_axes_carry_the_spacing_with_them(tmp_path):
    write_cohort(tmp_path, cases=3, shape=(60, 44, 33), spacing_mm=(5.0, 5.0, 8.0))
    for image in stored(tmp_path, "image"):
        along = ["RASLPI".index(code) % 3 for code in nib.aff2axcodes(image.affine)]
        assert image.shape == tuple((60, 44, 33)[axis] for axis in along)
        assert image.header.get_zooms() == pytest.approx([(5.0, 5.0, 8.0)[axis] for axis in along])


def test_same_seed_gives_the_same_bytes_at_another_time(tmp_path, monkeypatch):
    write_cohort(tmp_path / "now", cases=3, seed=1, **COARSE)
    monkeypatch.setattr("time.time", lambda: 2_000_000_000.0)
    write_cohort(tmp_path / "later", cases=3, seed=1, **COARSE)
    names = [path.relative_to(tmp_path / "now") for path in (tmp_path / "now").rglob("*.*")]
    assert len(names) == 7
    for name in names:
        assert (tmp_path / "now" / name).read_bytes() == (tmp_path / "later" / name).read_bytes()


def test_another_seed_gives_other_patients(tmp_path):
    write_cohort(tmp_path / "a", cases=3, seed=1, **COARSE)
    write_cohort(tmp_path / "b", cases=3, seed=2, **COARSE)
    name = "labelsTr/torso_000.nii.gz"
    assert (tmp_path / "a" / name).read_bytes() != (tmp_path / "b" / name).read_bytes()


def test_adding_cases_keeps_the_earlier_ones(tmp_path):
    write_cohort(tmp_path, cases=3, **COARSE)
    before = {path.name + path.parent.name[:3]: path.read_bytes() for path in tmp_path.rglob("*.nii.gz")}
    write_cohort(tmp_path, cases=5, **COARSE)
    after = {path.name + path.parent.name[:3]: path.read_bytes() for path in tmp_path.rglob("*.nii.gz")}
    assert len(after) == 10
    assert before.items() <= after.items()


def test_a_former_test_case_leaves_no_copy_behind(tmp_path):
    write_cohort(tmp_path, cases=3, **COARSE)
    write_cohort(tmp_path, cases=4, **COARSE)
    assert [path.name for path in (tmp_path / "imagesTs").iterdir()] == ["torso_003.nii.gz"]
    assert [path.name for path in (tmp_path / "labelsTs").iterdir()] == ["torso_003.nii.gz"]


def test_dataset_json_lists_each_file_once(tmp_path):
    path = write_cohort(tmp_path, cases=4, **COARSE)
    dataset = json.loads(path.read_text())
    assert path == tmp_path / "dataset_0.json"
    assert dataset["labels"] == {"0": "background"} | {str(number): name for name, number in LABELS.items()}
    assert dataset["modality"] == {"0": "CT"}
    assert [len(dataset[split]) for split in ("training", "validation", "test")] == [2, 1, 1]
    assert dataset["test"] == [{"image": "imagesTs/torso_003.nii.gz", "label": "labelsTs/torso_003.nii.gz"}]
    listed = [file for split in ("training", "validation", "test") for case in dataset[split] for file in case.values()]
    on_disk = [str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file() and file != path]
    assert sorted(listed) == sorted(on_disk)


@pytest.mark.parametrize("split", ["training", "validation"])
def test_monai_reads_the_datalist(tmp_path, split):
    path = write_cohort(tmp_path, cases=3, **COARSE)
    (case,) = load_decathlon_datalist(path, data_list_key=split)
    assert Path(case["image"]).exists()
    assert Path(case["label"]).exists()


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = write_cohort(tmp_path, cases=3, **COARSE)
    before = path.read_bytes()

    def disk_full(self, target):
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", disk_full)
    with pytest.raises(OSError, match="disk full"):
        write_cohort(tmp_path, cases=4, **COARSE)
    assert path.read_bytes() == before
    assert list(tmp_path.rglob(".*")) == []


def test_command_line_prints_the_datalist(tmp_path, capsys):
    assert main([str(tmp_path), "--cases", "3", "--shape", "38", "28", "33", "--spacing", "8", "8", "8"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "dataset_0.json")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"cases": 2}, "cases=2 is too few for training, validation and test; give at least 3"),
        ({"seed": -1}, "seed=-1 is negative; give 0 or more"),
        ({"shape": (8, 8)}, "shape=(8, 8) is not a grid; give three positive numbers of voxels"),
        ({"shape": (8, 0, 8)}, "shape=(8, 0, 8) is not a grid; give three positive numbers of voxels"),
        ({"spacing_mm": (3, 3, 0)}, "spacing_mm=(3, 3, 0) is not a voxel size; give three positive numbers of mm"),
        ({"spacing_mm": (3, 3)}, "spacing_mm=(3, 3) is not a voxel size; give three positive numbers of mm"),
    ],
)
def test_bad_options_are_named(tmp_path, wrong, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        write_cohort(tmp_path, **wrong)
    assert str(caught.value) == message
    assert list(tmp_path.iterdir()) == []


def test_a_grid_too_coarse_for_an_organ_is_refused():
    with pytest.raises(ValueError, match=r"shape=\(6, 5, 5\) leaves no voxel of .*; give more and smaller voxels"):
        phantom(0, (6, 5, 5), (50.0, 44.0, 52.0))
