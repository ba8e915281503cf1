"""Token reduction for diffusion transformers, as passes over torch.fx graphs, driven by YAML recipes."""

from sdtm_fx.compiling.compile import compile as compile
from sdtm_fx.compiling.warmup import Size as Size
from sdtm_fx.errors import CaptureError as CaptureError
from sdtm_fx.errors import ClockError as ClockError
from sdtm_fx.errors import NothingMatched as NothingMatched
from sdtm_fx.errors import PassError as PassError
from sdtm_fx.errors import PlanError as PlanError
from sdtm_fx.errors import RecipeError as RecipeError
from sdtm_fx.errors import RewriteError as RewriteError
from sdtm_fx.errors import ScheduleError as ScheduleError
from sdtm_fx.errors import SdtmFxError as SdtmFxError
from sdtm_fx.errors import SiteError as SiteError
from sdtm_fx.explaining.explain import explain as explain
from sdtm_fx.explaining.report import Explanation as Explanation
from sdtm_fx.methods import plan_merge as plan_merge
from sdtm_fx.plan import MergePlan as MergePlan
from sdtm_fx.recipe.load import list_recipes as list_recipes
from sdtm_fx.recipe.load import load_recipe as load_recipe
from sdtm_fx.recipe.schema import Recipe as Recipe
from sdtm_fx.rewrite import restore as restore
from sdtm_fx.rewrite import rewrite as rewrite
from sdtm_fx.rewrite import rewritten as rewritten
from sdtm_fx.rewrite import steps as steps
