from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdtm_fx.errors import SdtmFxError
from sdtm_fx.toy.batches import shorten
from sdtm_fx.toy.captions import MAX_WORDS, VOCABULARY, CaptionEncoder, parse_caption, split_words, tokenize
from sdtm_fx.toy.scenes import sample_scene


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(-(2**60), 2**60))
def test_captions_parse_back(seed: int) -> None:
    scene = sample_scene(seed)
    assert parse_caption(scene.caption, seed=seed) == scene
    assert parse_caption(scene.caption.upper() + ".", seed=seed) == scene


def test_a_caption_reads_as_the_grammar_says() -> None:
    scene = parse_caption("a large striped red circle at the upper left on a blue-to-green gradient")
    assert (scene.size, scene.texture, scene.colour, scene.shape) == ("large", "striped", "red", "circle")
    assert (scene.position, scene.background_colours) == ("upper left", ("blue", "green"))


def test_tokens_are_padded_words() -> None:
    ids = tokenize(["a red circle", "", "A blue-to-green gradient"])
    assert ids.shape == (3, MAX_WORDS)
    assert ids.dtype == torch.int64
    assert [VOCABULARY[i] for i in ids[0, :3]] == ["a", "red", "circle"]
    assert ids[0, 3:].eq(0).all()
    assert ids[1].eq(0).all()
    assert [VOCABULARY[i] for i in ids[2, :5]] == ["a", "blue", "to", "green", "gradient"]
    assert tokenize([]).shape == (0, MAX_WORDS)


def test_no_caption_of_the_grammar_is_too_long() -> None:
    assert max(len(split_words(sample_scene(seed).caption)) for seed in range(500)) == MAX_WORDS


def test_short_captions_stay_in_the_vocabulary() -> None:
    rng = random.Random(0)
    drawn = [(sample_scene(seed), shorten(sample_scene(seed), rng)) for seed in range(60)]
    assert all(
        scene.shape in split_words(text) and scene.colour in split_words(text) for scene, text in drawn
    )
    assert len({len(split_words(text)) for _, text in drawn}) > 5


def test_wrong_captions_say_what_is_accepted() -> None:
    with pytest.raises(
        SdtmFxError, match=r"word 2, 'rad', is not in the toy's vocabulary \(did you mean 'red'\?\)"
    ):
        tokenize(["a rad circle"])
    with pytest.raises(SdtmFxError, match="17 words, at most 16 are accepted"):
        tokenize(["red " * 17])
    with pytest.raises(SdtmFxError, match="'a red circle' is incomplete; accepted: 'a SIZE"):
        parse_caption("a red circle")
    with pytest.raises(SdtmFxError, match="unknown size 'red'"):
        parse_caption("a red plain red circle at the centre on a plain blue background")


def test_the_encoder_gives_rows_per_word_and_per_caption() -> None:
    encoder = CaptionEncoder(width=16, pooled_width=24)
    words, pooled = encoder.encode(["a red circle", ""], 32, 32)
    assert words.shape == (2, MAX_WORDS, 16)
    assert pooled.shape == (2, 24)
    assert not torch.allclose(pooled[0], pooled[1])


def test_the_order_of_words_matters() -> None:
    encoder = CaptionEncoder(width=16, pooled_width=16)
    _, pooled = encoder.encode(["a blue-to-green gradient", "a green-to-blue gradient"], 32, 32)
    assert not torch.allclose(pooled[0], pooled[1], atol=1e-4)


def test_the_pooled_row_knows_the_size_and_the_words_do_not() -> None:
    encoder = CaptionEncoder(width=16, pooled_width=16)
    words, pooled = encoder.encode(["a red star"], 32, 64)
    other_words, other_pooled = encoder.encode(["a red star"], 64, 32)
    assert torch.equal(words, other_words)
    assert not torch.allclose(pooled, other_pooled, atol=1e-4)


def test_the_encoder_saves_and_loads(tmp_path: Path) -> None:
    encoder = CaptionEncoder(width=16, pooled_width=8, num_heads=4).eval()
    encoder.save_pretrained(tmp_path)
    again = CaptionEncoder.from_pretrained(tmp_path)
    assert again.config.pooled_width == 8
    assert again.config.num_heads == 4
    expected = encoder.encode(["a red star"], 32, 48)
    assert torch.allclose(expected.pooled, again.encode(["a red star"], 32, 48).pooled, atol=1e-6)
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
