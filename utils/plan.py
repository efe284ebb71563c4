"""Plan a training for a folder of scans: ``python -m utils.plan --data_dir DIR``.

It reads every scan once, chooses all settings by stated rules (docs/planning.md), and writes into the folder
``plan.args``, a recipe with a reason for each flag, ``fingerprint.json``, what the scans are, and ``plan.html``, a page
that shows both. ``python main.py @DIR/plan.args`` then trains.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from networks.registry import NetworkConfig, find_architecture
from utils.config.flags import MOST_WORKERS
from utils.config.messages import name_flags
from utils.config.parser import Parser, names, positive, whole
from utils.config.recipe import write_recipe
from utils.data.data_list import DataList, find_data_list, read_data_list
from utils.data.folders import read_folder, write_data_lists
from utils.distributed.launch import LaunchSettings, launch
from utils.distributed.process import Process
from utils.planning.costs import StepCost, measure_step
from utils.planning.page import write_page
from utils.planning.planner import Budget, Planner
from utils.system.errors import InputError, one_line_errors
from utils.system.hardware import available_memory, machine
