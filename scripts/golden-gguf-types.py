#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes packages/engine/fixtures/gguf-types.json: raw blocks of GGUF tensor types and what they mean.

For development only; needs numpy and gguf, whose decoders are independent of ours. Blocks are random bytes, their
half-precision scales moderate numbers of both signs.
"""

import base64
import json
import pathlib

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

OUT = pathlib.Path(__file__).resolve().parent.parent / "packages/engine/fixtures/gguf-types.json"
# Byte offsets of the half-precision numbers of a block.
HALVES = {
    "Q4_0": [0],
    "Q4_1": [0, 2],
    "Q5_0": [0],
    "Q5_1": [0, 2],
    "Q8_0": [0],
    "Q2_K": [80, 82],
    "Q3_K": [108],
    "Q4_K": [0, 2],
    "Q5_K": [0, 2],
    "Q6_K": [208],
    "IQ4_NL": [0],
    "IQ4_XS": [0],
}
random = np.random.default_rng(1)
golden = {}
for name, halves in HALVES.items():
    kind = GGMLQuantizationType[name]
    weights, size = GGML_QUANT_SIZES[kind]
    count = 512 // weights
    raw = random.integers(0, 256, (count, size), dtype=np.uint8)
    for at in halves:
        scale = random.uniform(-0.02, 0.02, count).astype("<f2")
        raw[:, at : at + 2] = scale.view(np.uint8).reshape(count, 2)
    values = quants.dequantize(raw.reshape(1, -1), kind).astype("<f4")
    encode = lambda array: base64.b64encode(array.tobytes()).decode()
    golden[name] = dict(raw=encode(raw), values=encode(values))
OUT.write_text(json.dumps(golden, indent="\t") + "\n")
