#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes the golden files of packages/engine/fixtures/families: tiny models with random weights and their logits.

For development only; needs torch, transformers and safetensors (CPU builds do). Usage:

    python scripts/golden-families.py [FAMILY ...]

Each folder holds config.json, model.safetensors (bf16, whose values fp32 holds exactly) and golden.json: the ids of a text and, base64 of
little-endian fp32, the logits of every token as transformers computes them with eager attention.
"""

import base64
import json
import pathlib
import sys

import torch
import transformers
from safetensors.torch import load_file, save_file

ROOT = pathlib.Path(__file__).resolve().parent.parent / "packages/engine/fixtures/families"
TOKENS = 44
VOCABULARY = 160

BASE = dict(
    vocab_size=VOCABULARY,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)
GEMMA = dict(BASE, head_dim=32, query_pre_attn_scalar=32, num_hidden_layers=3)

# Folder: class and settings. Windows are shorter than the text; heads of several widths.
MODELS = {
    "llama": ("Llama", dict(BASE, tie_word_embeddings=False)),
    "llama-bias": ("Llama", dict(BASE, attention_bias=True, mlp_bias=True, tie_word_embeddings=True)),
    "llama-llama3": (
        "Llama",
        dict(
            BASE,
            rope_parameters=dict(
                rope_type="llama3",
                rope_theta=10000.0,
                factor=4.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=32,
            ),
        ),
    ),
    "llama-linear": ("Llama", dict(BASE, rope_parameters=dict(rope_type="linear", rope_theta=10000.0, factor=3.0))),
    "llama-dynamic": (
        "Llama",
        dict(
            BASE,
            max_position_embeddings=32,
            rope_parameters=dict(rope_type="dynamic", rope_theta=10000.0, factor=2.0),
        ),
    ),
    "mistral": ("Mistral", dict(BASE, sliding_window=10, tie_word_embeddings=False)),
    "qwen2": ("Qwen2", dict(BASE, tie_word_embeddings=True)),
    "qwen2-window-yarn": (
        "Qwen2",
        dict(
            BASE,
            use_sliding_window=True,
            sliding_window=9,
            max_window_layers=1,
            rope_parameters=dict(
                rope_type="yarn", rope_theta=10000.0, factor=4.0, original_max_position_embeddings=32
            ),
        ),
    ),
    "qwen3": ("Qwen3", dict(BASE, head_dim=32, tie_word_embeddings=True)),
    "gemma2": (
        "Gemma2",
        dict(GEMMA, sliding_window=8, attn_logit_softcapping=4.0, final_logit_softcapping=6.0),
    ),
    "gemma3": (
        "Gemma3Text",
        dict(
            GEMMA,
            num_hidden_layers=7,
            sliding_window=8,
            rope_parameters=dict(
                full_attention=dict(rope_type="linear", rope_theta=1e6, factor=8.0),
                sliding_attention=dict(rope_type="default", rope_theta=1e4),
            ),
        ),
    ),
    "gemma3-scaled": (
        "Gemma3Text",
        dict(
            GEMMA,
            query_pre_attn_scalar=24,
            sliding_window=6,
            layer_types=["full_attention", "sliding_attention", "full_attention"],
        ),
    ),
    "phi3": ("Phi3", dict(BASE, hidden_size=96, num_attention_heads=2, num_key_value_heads=1, sliding_window=12)),
    "phi3-longrope": (
        "Phi3",
        dict(
            BASE,
            hidden_size=128,
            num_attention_heads=2,
            num_key_value_heads=1,
            tie_word_embeddings=True,
            original_max_position_embeddings=16,
            rope_parameters=dict(
                rope_type="longrope",
                rope_theta=10000.0,
                partial_rotary_factor=0.75,
                short_factor=[1.0 + 0.05 * i for i in range(24)],
                long_factor=[1.0 + 0.4 * i for i in range(24)],
            ),
        ),
    ),
    "smollm3": ("SmolLM3", dict(BASE, num_hidden_layers=4, tie_word_embeddings=True)),
    "olmo3": (
        "Olmo3",
        dict(
            BASE,
            num_hidden_layers=5,
            sliding_window=9,
            tie_word_embeddings=False,
            rope_parameters=dict(
                full_attention=dict(
                    rope_type="yarn", rope_theta=10000.0, factor=4.0, original_max_position_embeddings=16
                ),
                sliding_attention=dict(rope_type="default", rope_theta=10000.0),
            ),
        ),
    ),
    "olmo2": ("Olmo2", dict(BASE, tie_word_embeddings=False)),
}


def fill(model, seed):
    """Random weights large enough that every part of a layer matters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                center = 0.0 if "gemma" in model.config.model_type else 1.0
                parameter.copy_(center + 0.2 * noise)
            elif name.endswith(".bias"):
                parameter.copy_(0.3 * noise)
            else:
                parameter.copy_(1.6 * noise / parameter.shape[-1] ** 0.5)
            parameter.copy_(parameter.bfloat16().float())


def make(name):
    class_name, settings = MODELS[name]
    config = getattr(transformers, f"{class_name}Config")(**settings)
    config._attn_implementation = "eager"
    model = getattr(transformers, f"{class_name.removesuffix('Text')}ForCausalLM")(config)
    model = model.float().eval()
    fill(model, sum(map(ord, name)))
    model.tie_weights()
    ids = torch.randint(3, VOCABULARY, (1, TOKENS), generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits[0].float()
    folder = ROOT / name
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    model.save_pretrained(folder)
    weights = folder / "model.safetensors"
    tensors = {key: tensor.bfloat16() for key, tensor in load_file(weights).items()}
    save_file(tensors, weights, metadata={"format": "pt"})
    config_path = folder / "config.json"
    settings = json.loads(config_path.read_text())
    settings.pop("transformers_version", None)
    settings["dtype"] = "bfloat16"
    config_path.write_text(json.dumps(settings, indent="\t") + "\n")
    for extra in folder.iterdir():
        if extra.name not in ("config.json", "model.safetensors"):
            extra.unlink()
    golden = dict(
        ids=ids[0].tolist(),
        vocabSize=VOCABULARY,
        logits=base64.b64encode(logits.contiguous().numpy().astype("<f4").tobytes()).decode(),
    )
    (folder / "golden.json").write_text(json.dumps(golden) + "\n")
    print(name, f"logits {logits.std():.3f} deviation, largest {logits.abs().max():.2f}")


for wanted in sys.argv[1:] or MODELS:
    make(wanted)
