"""A folder as a real checkpoint is one: `StableDiffusion3Pipeline` with tokenizers, text encoders and VAE, all tiny."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer, T5Config, T5EncoderModel

from tests.pipelines import POOLED_DIM, TEXT_DIM, randomize, tiny_sd3_transformer, tiny_vae


def _tokenizer(folder: Path) -> CLIPTokenizer:
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer: Any = CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77
    )
    return tokenizer


def _text_encoder(seed: int) -> Any:
    config = CLIPTextConfig(
        vocab_size=54, hidden_size=TEXT_DIM // 2, intermediate_size=16, projection_dim=POOLED_DIM // 2,
        num_hidden_layers=2, num_attention_heads=2, bos_token_id=52, eos_token_id=53, pad_token_id=53,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return randomize(CLIPTextModelWithProjection(config), seed, 0.3)


def _long_text_encoder(seed: int) -> Any:
    config = T5Config(vocab_size=54, d_model=TEXT_DIM, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    return randomize(T5EncoderModel(config), seed, 0.3)


def save_checkpoint(folder: Path) -> Path:
    """Write the checkpoint; images are as large as latents."""
    transformer = tiny_sd3_transformer(layers=2)
    randomize(transformer, seed=3, scale=0.2)
    pipe = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=tiny_vae(),
        text_encoder=_text_encoder(1),
        tokenizer=_tokenizer(folder / "first"),
        text_encoder_2=_text_encoder(2),
        tokenizer_2=_tokenizer(folder / "second"),
        text_encoder_3=_long_text_encoder(3),
        tokenizer_3=_tokenizer(folder / "third"),
    )
    saved = folder / "checkpoint"
    pipe.save_pretrained(saved)
    return saved
