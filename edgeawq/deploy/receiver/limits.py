"""The protocol's names and bounds, the same for host and device."""

from __future__ import annotations

import re

MAGIC = "EDGEAWQ-RECEIVER"
PROTOCOL = 2
MIN_PYTHON = (3, 10)

RELEASE_FORMAT = "edgeawq-release"
RELEASE_FORMAT_VERSION = 2

MAX_LINE_BYTES = 64 << 10
MAX_RELEASE_BYTES = 32 << 20
MAX_FILES = 100_000
MAX_CHUNKS = 500_000  # of all files together
MAX_CHUNK_BYTES = 8 << 20  # a chunk is held in memory until its hash is known
MAX_FILE_BYTES = 1 << 40
MAX_TOTAL_BYTES = 1 << 42
MAX_PATH_BYTES = 1024
MAX_NAME_BYTES = 200
MAX_RELEASES = 1000
MAX_HISTORY = 100
MAX_LOG_BYTES = 1 << 20
MAX_LOG_LINES = 1000
MAX_OUTPUT_BYTES = 256 << 10
MAX_SIGNATURE_BYTES = 16 << 10
MAX_CHANNELS = 8  # that may join a session

BLOCK_BYTES = 1 << 20
PIPE_BYTES = 1 << 20  # what a user may have without being root (/proc/sys/fs/pipe-max-size)
BATCH_FILES = 128  # small files are made durable in batches
BATCH_BYTES = 32 << 20
WRITEBACK_BYTES = 32 << 20
SPARE_BYTES = 16 << 20  # left free on the device's disk
MAX_BAD_STARTS = 3  # that a release may have one after the other before the launcher takes the one before

IDLE_TIMEOUT_S = 180.0
ALIVE_EVERY_S = 5.0

HASH = re.compile(r"[0-9a-f]{64}")
RELEASE_ID = re.compile(r"[0-9a-f]{16}")
