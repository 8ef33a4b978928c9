"""Segment a DICOM series with operators of the MONAI Deploy App SDK: `deploy_app.py BUNDLE SERIES RESULT.npz`."""

import sys
from pathlib import Path

import numpy as np
from monai.deploy.conditions import CountCondition
from monai.deploy.core import AppContext, Application, Image, IOType, Operator
from monai.deploy.operators.dicom_data_loader_operator import DICOMDataLoaderOperator
from monai.deploy.operators.dicom_series_selector_operator import DICOMSeriesSelectorOperator
from monai.deploy.operators.dicom_series_to_volume_operator import DICOMSeriesToVolumeOperator
from monai.deploy.operators.monai_bundle_inference_operator import IOMapping, MonaiBundleInferenceOperator


class Keep(Operator):
    """Write the label map and its metadata."""

    def setup(self, spec):
        spec.input("pred")

    def compute(self, op_input, op_output, context):
        image = op_input.receive("pred")
        affine = image.metadata()["nifti_affine_transform"]
        np.savez(sys.argv[3], label_map=image.asnumpy(), affine=affine)


class Segment(Application):
    """DICOM loader, series to volume, bundle."""

    def compose(self):
        once = CountCondition(self, 1)
        load = DICOMDataLoaderOperator(self, once, input_folder=Path(sys.argv[2]), name="load")
        select = DICOMSeriesSelectorOperator(self, name="select")
        to_volume = DICOMSeriesToVolumeOperator(self, name="to_volume")
        infer = MonaiBundleInferenceOperator(
            self,
            app_context=AppContext({}),
            input_mapping=[IOMapping("image", Image, IOType.IN_MEMORY)],
            output_mapping=[IOMapping("pred", Image, IOType.IN_MEMORY)],
            bundle_path=sys.argv[1],
            name="infer",
        )
        self.add_flow(load, select, {("dicom_study_list", "dicom_study_list")})
        self.add_flow(select, to_volume, {("study_selected_series_list", "study_selected_series_list")})
        self.add_flow(to_volume, infer, {("image", "image")})
        self.add_flow(infer, Keep(self, name="keep"), {("pred", "pred")})


if __name__ == "__main__":
    sys.argv, arguments = [sys.argv[0]], sys.argv
    app = Segment()
    sys.argv = arguments
    app.run()
