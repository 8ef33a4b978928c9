from itertools import product

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch

from scripts.common.grids import GridArray, scanned_slices
from scripts.inference.organ_table import OrgansSaver, cut_faces
from tests.scripts.inference.test_volumes import pair, run

NAMES = {"0": "background", "1": "spleen", "2": "right kidney", "3": "aorta"}


def body():
    """A spleen inside, a kidney at the right, and an aorta through all slices; axes in RAS."""
    volume = np.zeros((9, 8, 7), np.uint8)
    volume[3:5, 3:5, 3:5] = 1
    volume[7:, 2:4, 2:4] = 2
    volume[4, 6, :] = 3
    return volume


@pytest.mark.parametrize("axcodes", ["".join(c) for c in product("RL", "AP", "SI")] + ["SLP", "AIR"])
def test_faces_are_the_patients_in_every_orientation(axcodes):
    image = nib.Nifti1Image(body(), np.diag([1.0, 2.0, 3.0, 1.0]))
    turn = nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(axcodes))
    image = image.as_reoriented(turn)
    cut = cut_faces(GridArray(np.asarray(image.dataobj), image.affine))
    assert {k: sorted(faces) for k, faces in cut.items() if k} == {2: ["right"], 3: ["inferior", "superior"]}


def test_slices_that_were_not_scanned_are_no_edge():
    image = np.random.default_rng(0).normal(size=(9, 8, 7))
    image[..., :2] = image[..., 6:] = -1024
    assert scanned_slices(GridArray(image, np.eye(4))) == (2, 6)
    volume = np.zeros((9, 8, 7), np.uint8)
    volume[3, 3, 2:5] = 1
    volume[3, 4, 3:5] = 2
    cut = cut_faces(GridArray(volume, np.eye(4)), (2, 6))
    assert (cut[1], cut.get(2)) == (["inferior"], None)


def test_a_row_per_organ_says_whether_it_is_whole(tmp_path):
    run([pair("b", volume=body()), pair("a", volume=0 * body())], OrgansSaver(tmp_path, NAMES))
    assert (tmp_path / "organs.csv").read_text() == (
        "case,organ,volume_ml,absent,cut\n"
        "a,spleen,0.000,True,\na,right kidney,0.000,True,\na,aorta,0.000,True,\n"
        "b,spleen,0.008,False,\nb,right kidney,0.008,False,right\nb,aorta,0.007,False,inferior superior\n"
    )


def test_metadata_of_the_image_tell_the_scanned_slices(tmp_path):
    batch, output = pair("a", volume=np.pad(body(), ((0, 0), (0, 0), (2, 1))))
    batch["image"].meta["scanned_slices"] = [2, 9]
    run([(batch, output)], OrgansSaver(tmp_path, NAMES))
    assert pd.read_csv(tmp_path / "organs.csv").loc[2, "cut"] == "inferior superior"


def test_percentiles_of_a_cohort_are_added_and_empty_where_there_are_none(tmp_path):
    def cohort(label_map):
        return {1: {"volume_percentile": 12.5}}

    cohort.columns = ("volume_percentile",)
    run([pair("a", volume=body())], OrgansSaver(tmp_path, NAMES, cohort=cohort))
    table = pd.read_csv(tmp_path / "organs.csv", index_col="organ")
    assert table["volume_percentile"].dropna().to_dict() == {"spleen": 12.5}


def test_failed_case_has_no_rows_and_the_others_have(tmp_path):
    run([None, pair("a", volume=body())], OrgansSaver(tmp_path, {"1": "spleen"}))
    assert pd.read_csv(tmp_path / "organs.csv")["case"].tolist() == ["a"]


def test_oblique_image_has_the_nearest_faces():
    turn = np.eye(4)
    turn[:3, :3] = torch.linalg.matrix_exp(torch.tensor([[0, -0.4, 0.1], [0.4, 0, 0], [-0.1, 0, 0]])).numpy()
    assert cut_faces(GridArray(body(), turn))[2] == ["right"]
