"""Behaviour of MONAI 1.6.1 and ignite 0.5.5 that this repository works around.

A test that fails here says that its workaround can go: search the scripts for the class it names.
"""

import json
from inspect import signature
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.data import DataLoader, Dataset, MetaTensor, NibabelWriter, PersistentDataset
from monai.data.nvimgcodec_pydicom_plugin import is_nvimgcodec_available
from monai.engines import SupervisedTrainer
from monai.fl.client.monai_algo import disable_ckpt_loaders
from monai.handlers import StatsHandler
from monai.losses import DiceCELoss, DiceFocalLoss, DiceLoss
from monai.networks.nets.swin_unetr import MERGING_MODE, PatchMerging, PatchMergingV2
from monai.optimizers import WarmupCosineSchedule
from monai.transforms import Flipd, Invertd, Lambda, LoadImage, LoadImaged, Orientationd, Spacingd
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy


def test_spacingd_takes_a_string_named_after_its_key_for_metadata():
    """MONAI 1.6.1, since Project-MONAI/MONAI#8269; no thread about the failure."""
    image = MetaTensor(torch.ones(1, 4, 4, 4), meta={"filename_or_obj": "a.nii.gz"})
    with pytest.raises(AttributeError, match="'str' object has no attribute 'update'"):
        Spacingd("image", pixdim=[2, 2, 2])({"image": image, "image_path": "a.nii.gz"})


def test_persistent_dataset_never_accepts_the_file_of_an_image_with_metadata(tmp_path):
    """MONAI 1.6.1; Project-MONAI/MONAI#8599, and #8940, which trusts MetaTensor but neither TraceKeys nor NumPy."""
    nib.save(nib.Nifti1Image(np.ones((2, 2, 2), np.uint8), np.eye(4)), tmp_path / "a.nii")
    steps = [LoadImaged("image", ensure_channel_first=True), Flipd("image", 0)]
    dataset = PersistentDataset([{"image": str(tmp_path / "a.nii")}], steps, tmp_path / "cache", track_meta=True)
    dataset[0]
    with pytest.warns(UserWarning, match="Corrupt cache file detected"):
        dataset[0]


def test_persistent_dataset_does_not_notice_a_changed_file(tmp_path):
    """MONAI 1.6.1; no thread, Project-MONAI/MONAI#999 is about changed transforms alone."""
    file = tmp_path / "case.txt"
    dataset = PersistentDataset([str(file)], [Lambda(lambda name: Path(name).read_text())], tmp_path / "cache")
    file.write_text("old")
    assert dataset[0] == "old"
    file.write_text("changed")
    assert dataset[0] == "old"


def test_persistent_dataset_moves_files_in_from_the_temporary_folder(tmp_path, monkeypatch):
    """MONAI 1.6.1; Project-MONAI/MONAI#2146, where shutil.move (#2147), a copy across disks, was the answer."""
    moved = []
    monkeypatch.setattr("monai.data.dataset.shutil.move", lambda source, _: moved.append(Path(source)))
    PersistentDataset(["case"], [Lambda(str)], tmp_path)[0]
    assert moved
    assert tmp_path not in moved[0].parents


def test_persistent_dataset_deletes_its_folder_when_it_gets_other_cases(tmp_path):
    """MONAI 1.6.1; by design since Project-MONAI/MONAI#2436."""
    (tmp_path / "file of another run.pt").touch()
    PersistentDataset([], [], tmp_path).set_data([])
    assert not list(tmp_path.iterdir())


def test_one_case_that_fails_ends_the_run():
    """MONAI 1.6.1; Project-MONAI/MONAI#4961 asks for a warning instead, open since 2022."""
    dataset = Dataset([1, 0, 2], Lambda(lambda case: 1 / case))
    with pytest.raises(RuntimeError, match="applying transform"):
        list(DataLoader(dataset))


def test_dice_ce_loss_with_sigmoid_takes_softmax_cross_entropy():
    """MONAI 1.6.1; Project-MONAI/MONAI#6923 and #6924 brought binary cross entropy for one channel alone."""
    logits, target = torch.linspace(-2, 2, 24).reshape(1, 3, 2, 4), torch.ones(1, 3, 2, 4)
    ours = DiceFocalLoss(sigmoid=True, gamma=0, lambda_dice=0)(logits, target)
    theirs = DiceCELoss(sigmoid=True, lambda_dice=0)(logits, target)
    torch.testing.assert_close(ours, binary_cross_entropy_with_logits(logits, target))
    torch.testing.assert_close(theirs, cross_entropy(logits, target))
    assert not torch.isclose(ours, theirs)


def test_nothing_marks_weights_of_the_old_patch_merging():
    """MONAI 1.6.1; Project-MONAI/MONAI#8285 (1.5.0) corrected the slices, which #5106 had kept for old weights."""
    merging = PatchMerging(dim=1)
    assert set(MERGING_MODE.values()) == {PatchMerging, PatchMergingV2}
    assert list(merging.state_dict()) == ["reduction.weight", "norm.weight", "norm.bias"]
    merging.norm = merging.reduction = torch.nn.Identity()
    slices = merging(torch.arange(8).reshape(1, 2, 2, 2, 1)).flatten().tolist()
    assert slices == [0, 4, 2, 1, 6, 5, 3, 7]  # before 1.5.0: 0, 4, 2, 1, 5, 2, 1, 7


def test_stats_handler_keeps_an_exception_from_later_handlers():
    """MONAI 1.6.1, since Project-MONAI/MONAI#890; pytorch/ignite#1234, open since 2020."""
    engine, seen = Engine(lambda _, batch: 1 / batch), []
    StatsHandler().attach(engine)
    engine.add_event_handler(Events.EXCEPTION_RAISED, lambda _, error: seen.append(error))
    with pytest.raises(ZeroDivisionError):
        engine.run([0])
    assert not seen


def test_ignite_drops_an_exception_whose_handlers_return():
    """Ignite 0.5.5; pytorch/ignite#1234, open since 2020."""
    engine = Engine(lambda _, batch: 1 / batch)
    engine.add_event_handler(Events.EXCEPTION_RAISED, lambda *_: None)
    engine.run([0])
    assert engine.state.iteration == 1


def test_nibabel_writer_drops_last_axes_of_length_1():
    """MONAI 1.6.1; by design since Project-MONAI/MONAI#1680."""
    writer = NibabelWriter()
    writer.set_data_array(torch.ones(1, 3, 4, 1))
    assert writer.data_obj.shape == (3, 4)


def test_nibabel_writer_does_not_take_a_volume_with_permuted_axes():
    """MONAI 1.6.1; Project-MONAI/MONAI#9068, a regression by #8765."""
    writer = NibabelWriter()
    writer.set_data_array(np.ones((1, 3, 4, 5)))
    with pytest.raises(ValueError, match="is not invertible"):
        writer.set_metadata({"affine": np.eye(4)[[2, 0, 1, 3]]}, resample=False)


def test_dice_loss_counts_an_image_without_known_voxels():
    """MONAI 1.6.1; ignore_index came with Project-MONAI/MONAI#8757, no thread about this."""
    loss = DiceLoss(to_onehot_y=True, softmax=True, ignore_index=255, smooth_nr=0.25, smooth_dr=1)
    assert loss(torch.zeros(1, 2, 3, 3), torch.full((1, 1, 3, 3), 255)) == 0.75


def test_dice_ce_loss_takes_no_ignore_index():
    """MONAI 1.6.1; Project-MONAI/MONAI#8734 asks for it, #8757 left it out."""
    assert "ignore_index" not in signature(DiceCELoss).parameters


def test_bundle_error_does_not_tell_its_reason():
    """MONAI 1.6.1; Project-MONAI/MONAI#7451, closed."""
    parser = ConfigParser({"component": {"_target_": "json.loads", "s": "no JSON"}})
    with pytest.raises(RuntimeError, match="Failed to instantiate component") as caught:
        parser.get_parsed_content("component")
    assert isinstance(caught.value.__cause__, json.JSONDecodeError)
    assert str(caught.value.__cause__) not in str(caught.value)


def test_bundle_run_takes_an_unknown_key(tmp_path):
    """MONAI 1.6.1; no thread, Project-MONAI/MONAI#6398 checks the run_id alone."""
    config = tmp_path / "train.json"
    config.write_text('{"max_epochs": 1}')
    workflow = ConfigWorkflow(str(config), logging_file=False, max_epoch=5)
    assert workflow.parser.config == {"max_epochs": 1, "max_epoch": 5, "_meta_": {}}


def test_warmup_starts_at_rate_0():
    """MONAI 1.6.1; Project-MONAI/MONAI#3989, whose answer is warmup_multiplier (#5351)."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    WarmupCosineSchedule(optimizer, warmup_steps=2, t_total=10)
    assert optimizer.param_groups[0]["lr"] == 0


def test_federated_learning_finds_checkpoint_loaders_by_name():
    """MONAI 1.6.1, since Project-MONAI/MONAI#4985; no thread about other names."""
    handlers = [{"_target_": "scripts.StrictCheckpointLoader"}, {"_target_": "scripts.StrictLoader"}]
    parser = ConfigParser({"validate": {"handlers": handlers}})
    disable_ckpt_loaders(parser)
    assert [handler.get("_disabled_") for handler in parser.config["validate"]["handlers"]] == [True, None]


def test_orientationd_without_labels_warns():
    """MONAI 1.6.1; Project-MONAI/MONAI#8473."""
    with pytest.warns(FutureWarning, match="Default value changed to None"):
        Orientationd("image", axcodes="RAS")


def test_trainer_with_amp_takes_a_grad_scaler_that_torch_will_remove():
    """MONAI 1.6.1 with torch 2.13; no thread in MONAI."""
    optimizer = torch.optim.SGD([torch.zeros(1)])
    trainer = SupervisedTrainer("cpu", 1, [], torch.nn.Identity(), optimizer, torch.nn.MSELoss(), amp=True)
    with pytest.warns(FutureWarning, match=r"torch\.cuda\.amp\.GradScaler.* is deprecated"):
        trainer.run()


def test_invertd_inverts_all_channels_at_once(monkeypatch):
    """MONAI 1.6.1; no thread in MONAI, Project-MONAI/model-zoo#417 runs out of memory."""
    shapes, flip, inverse = [], Flipd("image", 0), Flipd.inverse
    monkeypatch.setattr(Flipd, "inverse", lambda self, d: shapes.append(d["image"].shape) or inverse(self, d))
    case = flip({"image": MetaTensor(torch.ones(1, 2, 2, 2))}) | {"logits": MetaTensor(torch.ones(9, 2, 2, 2))}
    Invertd("logits", transform=flip, orig_keys="image")(case)
    assert shapes == [(9, 2, 2, 2)]


@pytest.mark.skipif(is_nvimgcodec_available(), reason="nvImageCodec is there")
def test_every_load_image_logs_that_nvimgcodec_is_missing(caplog):
    """MONAI 1.6.1, since Project-MONAI/MONAI#8954; no thread about the noise."""
    with caplog.at_level("WARNING", "monai.data.nvimgcodec_pydicom_plugin"):
        for _ in range(2):
            LoadImage()
    assert [record.levelname for record in caplog.records if "nvImageCodec" in record.message] == ["WARNING"] * 2


def test_ignite_logs_each_epoch_at_info(caplog):
    """Ignite 0.5.5; pytorch/ignite#433, where the level of the logger is the answer."""
    with caplog.at_level("INFO", "ignite.engine"):
        Engine(lambda *_: None).run([0], max_epochs=2)
    assert [record.levelname for record in caplog.records if record.message.startswith("Epoch[")] == ["INFO"] * 2
