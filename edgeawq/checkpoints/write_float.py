"""Writing a checkpoint for analysis: a Hugging Face folder in float16 that says what it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgeawq.checkpoints.analysis import Analysis, describe_analysis
from edgeawq.checkpoints.config import ModelConfig
from edgeawq.checkpoints.hf_folder import HfFolder
from edgeawq.checkpoints.model import TokenizerFiles
from edgeawq.checkpoints.new_folder import check_target, make_folder
from edgeawq.checkpoints.write_awq import (
    SHARD_BYTES,
    ShardedWriter,
    check_extra_files,
    is_own_checkpoint,
    write_description,
    write_float_tensors,
)


def write_analysis_checkpoint(
    folder: Path,
    *,
    config: ModelConfig,
    tokenizer: TokenizerFiles,
    generation_defaults: Mapping[str, float | int | bool],
    analysis: Analysis,
    tensors: Iterable[tuple[str, npt.NDArray[np.generic]]],
    source_config: Mapping[str, object],
    extra_files: Mapping[str, bytes],
    shard_bytes: int = SHARD_BYTES,
    overwrite: bool = False,
) -> Path:
    """Write every tensor of a model in float16, and in config.json how they came about; return the folder.

    `tensors` are all by full name, consumed one at a time. The folder appears whole or not at all. Raises UsageError
    where the folder holds something else, CheckpointError for tensors that do not fit `config` or float16.
    """
    check_target(folder, overwrite=overwrite, is_own=is_own_checkpoint)
    check_extra_files(extra_files)
    with make_folder(folder) as partial:
        with ShardedWriter(partial, shard_bytes) as writer:
            write_float_tensors(writer, tensors, {})
            writer.finish()
        write_description(
            partial, config, tokenizer, generation_defaults, source_config, extra_files, describe_analysis(analysis), {}
        )
        # Reading it back checks names, types and shapes of everything against the configuration.
        HfFolder(partial, name=folder.name)
    return folder
