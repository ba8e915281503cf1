"""Tiny random diffusers pipelines for tests that must see what a pipeline really does.

They are part of the package, because `sdtm-fx demo` runs them too.
"""

from __future__ import annotations

from sdtm_fx.toy.random_pipelines import POOLED_DIM as POOLED_DIM
from sdtm_fx.toy.random_pipelines import TEXT_DIM as TEXT_DIM
from sdtm_fx.toy.random_pipelines import TEXT_TOKENS as TEXT_TOKENS
from sdtm_fx.toy.random_pipelines import flux_prompt_kwargs as flux_prompt_kwargs
from sdtm_fx.toy.random_pipelines import randomize as randomize
from sdtm_fx.toy.random_pipelines import sd3_prompt_kwargs as sd3_prompt_kwargs
from sdtm_fx.toy.random_pipelines import tiny_flux_pipeline as tiny_flux_pipeline
from sdtm_fx.toy.random_pipelines import tiny_flux_transformer as tiny_flux_transformer
from sdtm_fx.toy.random_pipelines import tiny_sd3_pipeline as tiny_sd3_pipeline
from sdtm_fx.toy.random_pipelines import tiny_sd3_transformer as tiny_sd3_transformer
from sdtm_fx.toy.random_pipelines import tiny_vae as tiny_vae
