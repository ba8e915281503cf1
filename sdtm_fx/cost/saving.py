"""What merging saves, at any size, from one small measurement.

Removing R of N image tokens saves linear work in proportion to R, and attention over a sequence of L = N + T tokens
(T text tokens, and registers of the model's own) in proportion to L^2 - (L - R)^2; attention of image tokens to text
alone, in proportion to R T; where keys alone are merged, nothing linear, and attention in proportion to L R; linear
attention, which never compares two tokens, in proportion to R. The factors are counted once per block structure, by
running its graphs on fake tensors for two values of R; sizes enter afterwards.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass, replace

from sdtm_fx.cost.counter import Attended, MacCounter, Macs

_ROUNDING = 1e-9  # what the quotients of two whole numbers of MACs may differ by


@dataclass(frozen=True)
class Saving:
    """What removing image tokens saves in a block or at a site.

    Attributes:
        linear: MACs of linear layers per removed token and sample.
        attention: MACs per sample and pair of tokens that attention no longer compares.
        text_share: Part of the text that stands in the attended sequence; between 0 and 1 where a block has
            attention with and without text.
        text_linear: MACs of linear layers per text token and sample that are saved however many image tokens
            remain, where a skipped site computes no text either.
        skips_text: Whether attention among the text tokens is saved as well.
        fixed: MACs of linear layers per sample that are saved whatever the size: modulations of what is skipped.
        cross: MACs per removed token and text token, where image tokens attend to text alone; per removed token where
            the call has no text.
        keys: MACs per sample, query and removed key, where keys alone are merged, or where image tokens among
            themselves are skipped.
        keys_text: Part of the text that stands among those queries.
        skips: Whether sites are left out whole: tokens that are never merged go there too.
        products: MACs per removed token of products that are no linear layers and compare no tokens: linear attention.
        always: Tokens beside image and text that stand in every attended sequence: registers of the model.
    """

    linear: float
    attention: float
    text_share: float
    text_linear: float = 0.0
    skips_text: bool = False
    fixed: float = 0.0
    cross: float = 0.0
    keys: float = 0.0
    keys_text: float = 0.0
    skips: bool = False
    products: float = 0.0
    always: float = 0.0

    def at(self, tokens: int, text: int, remove: int, beside: int = 0) -> Macs:
        """MACs saved per sample by removing some image tokens.

        Args:
            tokens: Image tokens that may be merged.
            text: Text tokens.
            remove: How many image tokens go.
            beside: Tokens of the image stream that are never merged: of protected frames, and of references.
        """
        tokens, remove = tokens + beside, remove + (beside if self.skips else 0)
        sequence = tokens + self.always + self.text_share * text
        left = 0.0 if self.skips_text else sequence - remove
        linear = self.linear * remove + self.text_linear * text + self.fixed
        attention = self.attention * (sequence**2 - left**2) + self.cross * remove * (text or 1)
        keys = self.keys * (tokens + self.always + self.keys_text * text) * remove
        return Macs(linear, linear + self.products * remove + attention + keys)


def saving_of_merging(
    dense: MacCounter,
    merged: dict[int, MacCounter],
    keyed: dict[str, Saving],
    besides: dict[int, Macs],
    batch: int,
    tokens: int,
    text: int,
) -> tuple[Saving, dict[str, Saving]]:
    """What merging saves in the block, and at each site, what was counted `besides` taken out.

    `keyed` are the sites where keys alone are merged; `tokens` are all those of the image stream.
    """
    saved = {remove: dense.macs - counter.macs + besides[remove] for remove, counter in merged.items()}
    if keyed:  # counted call by call, so that what is left for the fit has no rounding in it
        saved = {
            remove: macs - Macs(0.0, sum(b.macs - a.macs for b, a in _fewer_keys(dense, merged[remove])))
            for remove, macs in saved.items()
        }
    sites = {
        name: {remove: inside - counter.inside[name] for remove, counter in merged.items()}
        for name, inside in dense.inside.items()
        # An instrumented attention runs as a graph, not as a module call, and cannot be told apart.
        if all(counter.inside[name].total for counter in merged.values())
    }
    fit = functools.partial(_fit_site, dense, merged, batch, tokens, text)
    whole = fit(saved, {remove: macs.attention for remove, macs in besides.items()}, None)
    keys = _sum_keys(keyed.values())
    always = max(whole.always, keys.always)
    return replace(whole, keys=keys.keys, keys_text=keys.keys_text, always=always), {
        **{name: fit(site, {}, name) for name, site in sites.items()},
        **keyed,
    }


def _fit_site(
    dense: MacCounter,
    merged: dict[int, MacCounter],
    batch: int,
    tokens: int,
    text: int,
    saved: dict[int, Macs],
    besides: dict[int, float],
    name: str | None,
) -> Saving:
    """What merging saves in the block (None) or at one site: products that compare tokens by one law, others by
    another."""
    before = comparing_nothing(dense, name)
    other = {r: before - comparing_nothing(m, name) + besides.get(r, 0.0) for r, m in merged.items()}
    comparing = {remove: macs - Macs(0.0, other[remove]) for remove, macs in saved.items()}
    most = max(other)
    always = registers(dense, tokens, text, name)
    fitted = _fit(comparing, batch, tokens + always, text)
    return replace(fitted, products=other[most] / batch / most, always=always if fitted.attention else 0.0)


def comparing_nothing(counter: MacCounter, name: str | None) -> float:
    """MACs of products that are neither linear layers nor attention."""
    macs = counter.macs if name is None else counter.inside[name]
    return macs.attention - sum(call.macs for call in attended(counter, name))


def attended(counter: MacCounter, name: str | None) -> list[Attended]:
    """The calls of attention in the block (None) or at one site."""
    return [call for call in counter.attended if name is None or name in call.inside]


def registers(dense: MacCounter, tokens: int, text: int, name: str | None) -> float:
    """Tokens that stand beside image and text where a sequence attends to itself."""
    lengths = [call.queries for call in attended(dense, name) if call.queries == call.keys]
    return float(max(0, max(lengths, default=0) - tokens - text))


def key_savings(
    dense: MacCounter, merged: dict[int, MacCounter], batch: int, tokens: int, text: int
) -> dict[str, Saving]:
    """What is saved at each site where attention looks at fewer keys with as many queries."""
    found: dict[str, list[Saving]] = {}
    for before, _ in _fewer_keys(dense, merged[max(merged)]):
        keys = before.macs / batch / before.queries / before.keys
        always = float(max(0, before.queries - tokens - text))
        among = (before.queries - tokens - always) / text if text else 0.0
        one = Saving(0.0, 0.0, 0.0, keys=keys, keys_text=among, always=always)
        found.setdefault(before.inside[-1], []).append(one)
    return {name: _sum_keys(calls) for name, calls in found.items()}


def _fewer_keys(dense: MacCounter, merged: MacCounter) -> list[tuple[Attended, Attended]]:
    """The calls of attention, before and after, that have as many queries and fewer keys."""
    calls = zip(dense.attended, merged.attended, strict=True)
    return [(b, a) for b, a in calls if a.keys < b.keys and a.queries == b.queries]


def _sum_keys(savings: Iterable[Saving]) -> Saving:
    """Several sites as one; text counts by the keys that it stands beside."""
    each = list(savings)
    keys = sum(one.keys for one in each)
    among = sum(one.keys * one.keys_text for one in each) / keys if keys else 0.0
    always = max((one.always for one in each), default=0.0)
    return Saving(0.0, 0.0, 0.0, keys=keys, keys_text=among, always=always)


def _fit(saved: dict[int, Macs], batch: int, tokens: float, text: int) -> Saving:
    """Solve ``attention(R) = a (2 L R - R^2)`` for a and L from two counts; of one count, L is all tokens."""
    (few, less), (many, more) = min(saved.items()), max(saved.items())
    linear = more.linear / batch / many
    if not more.attention:
        return Saving(linear, 0.0, 0.0)
    if few == many:
        sequence = float(tokens + text)
        return Saving(linear, more.attention / batch / (2 * sequence * many - many**2), 1.0)
    steep, flat = less.attention / few, more.attention / many
    if steep - flat <= _ROUNDING * flat:  # in proportion: the removed tokens were queries only
        return Saving(linear, 0.0, 0.0, cross=flat / batch / (text or 1))
    attention = (steep - flat) / (many - few)
    sequence = (flat / attention + many) / 2
    return Saving(linear, attention / batch, (sequence - tokens) / text if text else 0.0)
