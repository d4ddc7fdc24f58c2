"""Which batch statistics a run gives its method."""

import pytest
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from densepath.core.errors import UserError
from densepath.methods import BYOL, IBOT, METHODS, MoCoV2, SimCLR, SparK
from densepath.nets.backbones import build_backbone
from densepath.nets.batch_norms import (
    GhostBatchNorm1d,
    GhostBatchNorm2d,
    SynchronizedBatchNorm1d,
    SynchronizedBatchNorm2d,
)
from densepath.training.batch_norm import share_statistics


def small(method):
    return method(build_backbone("test_resnet"), **({"queue_size": 16} if method is MoCoV2 else {}))


def norms(method):
    return [module for module in method.modules() if isinstance(module, _BatchNorm)]


def test_auto_is_what_the_papers_have():
    over = {name: method.batch_norm for name, method in METHODS.items()}
    synchronized = {"simclr", "byol", "supervised", "spark", "conv_mim", "dino", "dino_imix", "cellback", "dirl"}
    synchronized |= {"esvit", "selfpatch", "ibot", "hipt_region"}
    synchronized |= {"dino_sup", "dirl_byol", "swav", "model_genesis"}
    synchronized |= {"semantic_genesis", "cube", "cpc"}
    assert {name for name, value in over.items() if value == "synchronized"} == synchronized
    assert {value for name, value in over.items() if name not in synchronized} == {"per_process"}
    method = small(BYOL)
    assert share_statistics(method, "auto", 0, 8, 2) == "synchronized"
    assert {type(norm) for norm in norms(method)} == {SynchronizedBatchNorm1d, SynchronizedBatchNorm2d}
    plain = small(MoCoV2)
    assert share_statistics(plain, "auto", 0, 8, 2) == "per_process"
    assert {type(norm) for norm in norms(plain)} == {nn.BatchNorm2d}


@pytest.mark.parametrize(("method", "images"), [(MoCoV2, 0), (BYOL, 0), (SimCLR, 4), (SparK, 0)])
def test_a_group_counts_images_in_every_network_of_a_method(method, images):
    """Also in heads, decoders and momentum copies; two views of an image that are one batch are in one group."""
    built = small(method)
    assert share_statistics(built, "per_process", 2, 8, 2) == "per_process"
    assert {type(norm) for norm in norms(built)} <= {GhostBatchNorm1d, GhostBatchNorm2d}
    assert {(norm.group, norm.images) for norm in norms(built)} == {(2, images)}


def test_groups_and_batches_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="groups of 8 images do not divide the 20 that a process holds in a batch"):
        share_statistics(small(MoCoV2), "auto", 8, 40, processes=2)
    share_statistics(small(MoCoV2), "auto", 10, 40, processes=2)
    with pytest.raises(UserError, match="synchronized batch norms have no groups; give --batch_norm_group 0, or --b"):
        share_statistics(small(SimCLR), "auto", 2, 8, 1)
    with pytest.raises(UserError, match="need at least two images each"):
        share_statistics(small(BYOL), "per_process", 0, 2, processes=2)
    patches = IBOT(build_backbone("test_vit"), prototypes=8, head_batch_norm=True)
    with pytest.raises(UserError, match="positions of views have no groups of images; give --batch_norm_group 0 or"):
        share_statistics(patches, "per_process", 2, 8, 1)
    share_statistics(small(BYOL), "auto", 0, 2, processes=2)  # synchronized: the two are one batch
    share_statistics(small(SimCLR), "per_process", 0, 2, processes=2)  # two views of one image are
    share_statistics(small(MoCoV2), "per_process", 0, 2, processes=2)  # its head has none
