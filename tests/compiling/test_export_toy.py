"""The exported toy, in a process without diffusers' model code: the images of the eager pipeline."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sdtm_fx
from sdtm_fx.toy import load_toy

pytestmark = [pytest.mark.compile, pytest.mark.slow]

STEPS, GUIDANCE, PIXELS = 4, 3.0, 32
PROMPTS = ["a large plain red circle at the centre", "a small striped green star at the upper left"]
# Pixels in [0, 1]; ahead-of-time kernels add in another order.
TOLERANCE = 1e-3

SAMPLER = """
import sys
import torch
import sdtm_fx

folder, data, guidance = sys.argv[1], sys.argv[2], float(sys.argv[3])
call = torch.load(data)
model = sdtm_fx.load(folder)
image, sigmas = call["noise"], call["sigmas"]
with torch.no_grad(), model.steps(len(sigmas) - 1) as clock:
    for step, (now, then) in enumerate(zip(sigmas[:-1], sigmas[1:])):
        empty, told = model(
            hidden_states=image.repeat(2, 1, 1, 1),
            encoder_hidden_states=call["words"],
            pooled_projections=call["pooled"],
            timestep=(now * 1000).expand(2 * len(image)),
        ).sample.chunk(2)
        image = image + (then - now) * (empty + guidance * (told - empty))
        clock.advance()
assert not any("transformer_sd3" in name for name in sys.modules), "the model's own Python was imported"
torch.save((image / 2 + 0.5).clamp(0, 1), data)
"""


def test_the_exported_toy_draws_the_images_of_the_eager_one(tmp_path: Path) -> None:
    # Fewer phases: each takes a while to compile ahead of time.
    recipe = sdtm_fx.load_recipe("toy-sd3-merge").override({"reuse": None, "keep_dense.last_steps": 0})
    pipe = sdtm_fx.rewrite(load_toy(), recipe)
    noise = torch.randn(2, 3, PIXELS, PIXELS, generator=torch.Generator().manual_seed(0))
    eager = pipe(
        PROMPTS,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        height=PIXELS,
        width=PIXELS,
        latents=noise,
        output_type="pt",
    ).images
    words, pooled = pipe.text_encoder.encode(["", "", *PROMPTS], PIXELS, PIXELS)
    call = {"noise": noise, "sigmas": pipe.scheduler.sigmas, "words": words, "pooled": pooled}
    torch.save({name: value.detach() for name, value in call.items()}, tmp_path / "call.pt")
    size = sdtm_fx.Size(grid=(16, 16), batch=4, text=words.shape[1], steps=STEPS)
    folder = sdtm_fx.export(pipe, tmp_path / "exported", size)
    assert len(list(folder.glob("*.pt2"))) > 1
    command = [sys.executable, "-c", SAMPLER, str(folder), str(tmp_path / "call.pt"), str(GUIDANCE)]
    subprocess.run(command, check=True, timeout=600)
    exported = torch.load(tmp_path / "call.pt")
    assert eager.std() > 0.1
    torch.testing.assert_close(exported, eager, rtol=0, atol=TOLERANCE)
