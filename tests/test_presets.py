"""Is every named model one that can be built, of the size its name says, beside a rival of its size?"""

import re

import pytest
import torch

from moeut.config import dump_yaml
from moeut.model.cost import cost
from moeut.model.language_model import LanguageModel
from moeut.presets import PRESETS

PAPER = [name for name in PRESETS if re.fullmatch(r"(moeut|dense)-\d+(m|b)", name)]


def test_dummy():
    assert dump_yaml
