"""The toy's language: a closed vocabulary, a parser that turns captions into scenes, and the text encoder."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from sdtm_fx.errors import SdtmFxError, nearest
from sdtm_fx.toy.scenes import BACKGROUNDS, COLOURS, POSITIONS, SHAPES, SIZES, TEXTURES, Scene

PAD = "<pad>"
"""Fills a caption up to the encoder's length; the empty caption is nothing but this."""

MAX_WORDS = 16
"""Words of the longest caption of the grammar."""


def _vocabulary() -> tuple[str, ...]:
    positions = (word for position in POSITIONS for word in position.split())
    grammar = ("a", "at", "the", "on", "to", "and", "background")
    words = [*grammar, *SHAPES, *COLOURS, *SIZES, *positions, *TEXTURES, *BACKGROUNDS]
    return (PAD, *dict.fromkeys(words))


VOCABULARY: tuple[str, ...] = _vocabulary()
"""Every word of the grammar, `PAD` first; a word's place is its id."""

_IDS = {word: index for index, word in enumerate(VOCABULARY)}


def split_words(caption: str) -> list[str]:
    """Split a caption into lower-case words; hyphens and punctuation separate words.

    Args:
        caption: Free text; may be empty.

    Raises:
        SdtmFxError: If a word is not in the vocabulary, or the caption is longer than `MAX_WORDS`.
    """
    words = re.findall(r"[^\W_]+", caption.lower())
    for place, word in enumerate(words, start=1):
        if word not in _IDS:
            raise SdtmFxError(
                f"caption {caption!r}: word {place}, {word!r}, is not in the toy's vocabulary"
                f"{nearest(word, VOCABULARY[1:])}; accepted: {', '.join(VOCABULARY[1:])}"
            )
    if len(words) > MAX_WORDS:
        raise SdtmFxError(f"caption {caption!r}: {len(words)} words, at most {MAX_WORDS} are accepted")
    return words


def tokenize(captions: Sequence[str]) -> Tensor:
    """Turn captions into word ids.

    Args:
        captions: B captions; `""` is the unconditional one.

    Returns:
        [B, MAX_WORDS] int64, padded with the id of `PAD`.

    Raises:
        SdtmFxError: As `split_words`.
    """
    ids = torch.zeros(len(captions), MAX_WORDS, dtype=torch.long)
    for row, caption in zip(ids, captions, strict=True):
        words = split_words(caption)
        row[: len(words)] = torch.tensor([_IDS[word] for word in words], dtype=torch.long)
    return ids


_SUBJECT = (
    r"^a (?P<size>\w+) (?P<texture>\w+) (?P<colour>\w+) (?P<shape>\w+) "
    r"at the (?P<position>\w+(?: \w+)?) on a "
)
_GROUNDS = {
    "plain": re.compile(_SUBJECT + r"plain (?P<first>\w+) background$"),
    "gradient": re.compile(_SUBJECT + r"(?P<first>\w+) to (?P<last>\w+) gradient$"),
    "mottled": re.compile(_SUBJECT + r"mottled (?P<first>\w+) and (?P<last>\w+) background$"),
}


def parse_caption(caption: str, seed: int = 0) -> Scene:
    """Read a full caption back into the scene it describes.

    Args:
        caption: A caption of the grammar that `Scene.caption` writes.
        seed: The seed of the scene, which a caption does not tell.

    Raises:
        SdtmFxError: If a word is unknown, or the words do not make a full caption.
    """
    text = " ".join(split_words(caption))
    for background, pattern in _GROUNDS.items():
        found = pattern.match(text)
        if found is None:
            continue
        words = found.groupdict()
        return Scene(
            shape=words["shape"],
            colour=words["colour"],
            size=words["size"],
            position=words["position"],
            texture=words["texture"],
            background=background,
            background_colours=tuple(words[key] for key in ("first", "last") if key in words),
            seed=seed,
        )
    raise SdtmFxError(
        f"caption {caption!r} is incomplete; accepted: 'a SIZE TEXTURE COLOUR SHAPE at the POSITION on a' "
        "and 'plain COLOUR background', 'COLOUR-to-COLOUR gradient' or 'mottled COLOUR-and-COLOUR background'"
    )


class EncodedCaptions(NamedTuple):
    """What the transformer reads.

    Attributes:
        encoder_hidden_states: [B, L, D], one row per word.
        pooled: [B, P], one row per caption.
    """

    encoder_hidden_states: Tensor
    pooled: Tensor


class CaptionEncoder(ModelMixin, ConfigMixin):
    """Word and place embeddings, one self-attention layer, and a pooled row that also knows the image size.

    Tokens lie one unit apart at every size, so "at the upper left" means other positions in other images:
    the model is told the size, as SDXL is (Podell et al. 2023, section 2.2).

    Args:
        vocabulary_size: Rows of the word embedding.
        max_words: Length L of the output.
        width: D, the width of every word's row.
        pooled_width: P, the width of a caption's row.
        num_heads: Heads of the self-attention; divides `width`.
    """

    config_name = "config.json"

    @register_to_config  # type: ignore[untyped-decorator]  # diffusers has no annotations
    def __init__(
        self,
        vocabulary_size: int = len(VOCABULARY),
        max_words: int = MAX_WORDS,
        width: int = 128,
        pooled_width: int = 128,
        num_heads: int = 4,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.words = nn.Embedding(vocabulary_size, width)
        self.places = nn.Parameter(torch.randn(max_words, width) * 0.5)
        self.norm_in = nn.LayerNorm(width)
        self.to_qkv = nn.Linear(width, 3 * width)
        self.to_out = nn.Linear(width, width)
        self.norm_ff = nn.LayerNorm(width)
        self.ff = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.norm_out = nn.LayerNorm(width)
        self.to_pooled = nn.Linear(max_words * width, pooled_width)
        self.size = nn.Sequential(
            nn.Linear(4, pooled_width), nn.SiLU(), nn.Linear(pooled_width, pooled_width)
        )

    def forward(self, input_ids: Tensor, height: int, width: int) -> EncodedCaptions:
        """Encode word ids.

        Args:
            input_ids: [B, L] int64, from `tokenize`.
            height: Pixels of the image.
            width: Pixels of the image.
        """
        hidden = self.words(input_ids) + self.places
        query, key, value = self.to_qkv(self.norm_in(hidden)).unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        mixed = nn.functional.scaled_dot_product_attention(
            query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        )
        hidden = hidden + self.to_out(mixed.transpose(1, 2).flatten(2))
        hidden = hidden + self.ff(self.norm_ff(hidden))
        hidden = self.norm_out(hidden)
        size = hidden.new_tensor([height / 64, width / 64, math.log(height / 64), math.log(width / 64)])
        return EncodedCaptions(hidden, self.to_pooled(hidden.flatten(1)) + self.size(size))

    def encode(self, captions: Sequence[str], height: int, width: int) -> EncodedCaptions:
        """Tokenize and encode captions on the encoder's device.

        Args:
            captions: B captions.
            height: Pixels of the image.
            width: Pixels of the image.

        Raises:
            SdtmFxError: As `tokenize`.
        """
        ids = tokenize(captions).to(self.words.weight.device)
        encoded: EncodedCaptions = self(ids, height, width)
        return encoded
