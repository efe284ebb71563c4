"""Run an exported bundle on DICOM series with MONAI Deploy (docs/deploy.md).

BUNDLE=runs/NAME/model_bundle python docs/monai_deploy_app.py -i DICOM_FOLDER -o OUTPUT_FOLDER
"""

import json
import os
import sys
from pathlib import Path

from monai.deploy.conditions import CountCondition
from monai.deploy.core import AppContext, Application
from monai.deploy.core.domain import Image
from monai.deploy.core.io_type import IOType
from monai.deploy.operators.dicom_data_loader_operator import DICOMDataLoaderOperator
from monai.deploy.operators.dicom_seg_writer_operator import DICOMSegmentationWriterOperator, SegmentDescription
from monai.deploy.operators.dicom_series_selector_operator import DICOMSeriesSelectorOperator
from monai.deploy.operators.dicom_series_to_volume_operator import DICOMSeriesToVolumeOperator
from monai.deploy.operators.monai_bundle_inference_operator import (
    BundleConfigNames,
    IOMapping,
    MonaiBundleInferenceOperator,
)
from pydicom.sr.codedict import codes

RULES = '{"selections": [{"name": "CT", "conditions": {"Modality": "CT"}}]}'


class App(Application):
    """From a DICOM series to a DICOM SEG."""

    def compose(self) -> None:
        """Connect the operators."""
        context: AppContext = Application.init_app_context(self.argv)
        bundle = Path(os.environ["BUNDLE"])
        metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
        organs = [
            SegmentDescription(
                segment_label=name,
                segmented_property_category=codes.SCT.Organ,
                segmented_property_type=codes.SCT.Organ,
                algorithm_name="UNETR",
                algorithm_version=metadata["version"],
            )
            for value, name in metadata["labels"].items()
            if value != "0"
        ]
        once = CountCondition(self, 1)
        loader = DICOMDataLoaderOperator(self, once, input_folder=Path(context.input_path), name="loader")
        selector = DICOMSeriesSelectorOperator(self, rules=RULES, name="selector")
        volume = DICOMSeriesToVolumeOperator(self, name="volume")
        network = MonaiBundleInferenceOperator(
            self,
            input_mapping=[IOMapping("image", Image, IOType.IN_MEMORY)],
            output_mapping=[IOMapping("pred", Image, IOType.IN_MEMORY)],
            app_context=context,
            bundle_config_names=BundleConfigNames(config_names=["inference"]),
            bundle_path=str(bundle),
            name="network",
        )
        writer = DICOMSegmentationWriterOperator(
            self, segment_descriptions=organs, output_folder=Path(context.output_path), name="writer"
        )
        self.add_flow(loader, selector, {("dicom_study_list", "dicom_study_list")})
        self.add_flow(selector, volume, {("study_selected_series_list", "study_selected_series_list")})
        self.add_flow(volume, network, {("image", "image")})
        self.add_flow(selector, writer, {("study_selected_series_list", "study_selected_series_list")})
        self.add_flow(network, writer, {("pred", "seg_image")})


if __name__ == "__main__":
    if not Path(os.environ.get("BUNDLE", ""), "configs", "metadata.json").is_file():
        sys.exit("error: BUNDLE names no bundle. Set it to a folder that utils.export --format bundle wrote.")
    App().run()
