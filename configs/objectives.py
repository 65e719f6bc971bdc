"""What the learner optimises: the `grpo` group. Formulas and papers: learner/losses.py, docs/learner.md."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from configs.base import Settings

Normalizer = Literal["token", "sequence", "constant"]


class StreamSettings(Settings):
    """One stream's share of the loss; what is empty is as in `grpo`."""

    weight: float = Field(1.0, ge=0, description="of the stream's loss")
    clip_low: PositiveFloat | None = Field(None, description="as grpo.clip_low")
    clip_high: PositiveFloat | None = Field(None, description="as grpo.clip_high")
    normalizer: Normalizer | None = Field(None, description="as grpo.normalizer")


class StreamsSettings(Settings):
    solution: StreamSettings = StreamSettings()
    sketch: StreamSettings = StreamSettings()
    branch: StreamSettings = StreamSettings()


class ImportanceSettings(Settings):
    """Correction for tokens sampled by an engine whose policy is not quite the learner's: numerics, stale weights."""

    level: Literal["token", "sequence"] = Field("token", description="ratio of a token, or of its whole sequence")
    mode: Literal["truncate", "mask"] = Field(
        "truncate", description="beyond the cap: count with the cap, or not at all"
    )
    cap: PositiveFloat | None = Field(2.0, description="cap of the ratio learner / engine; empty: no correction")
    of: Literal["all", "negative"] = Field(
        "all", description="what is corrected: all tokens, or those of negative advantage (TOPR, arXiv 2503.14286)"
    )
    max_divergence: PositiveFloat | None = Field(
        None,
        description="leave out sequences of negative advantage with mean log(engine / learner) above this, nats; "
        "empty: none",
    )


class KlSettings(Settings):
    """Distance kept from a reference policy; the reference is loaded only when the coefficient is not zero."""

    coefficient: float = Field(0.0, ge=0, description="of the distance in the loss; 0: none is taken")
    estimator: Literal["k1", "k2", "k3"] = Field(
        "k3", description="k1 is taken off each token's advantage; k2 and k3 are terms of the loss"
    )
    reference: str | None = Field(None, description="folder or hub id; empty: the policy the run starts from")


class NoEntropyControl(Settings):
    name: Literal["none"] = "none"


class EntropyBonus(Settings):
    """Mean entropy of the trained tokens, added to what is maximised."""

    name: Literal["bonus"] = "bonus"
    coefficient: float = Field(0.001, ge=0, description="nats are worth this much reward")


class ClipCov(Settings):
    """Clip-Cov (arXiv 2505.22617): no gradient through some tokens of high covariance."""

    name: Literal["clip_cov"] = "clip_cov"
    share: float = Field(2e-4, gt=0, le=1, description="share of all trained tokens that is left out")
    low: float = Field(1.0, description="covariance from which a token may be left out")
    high: float = Field(5.0, description="covariance up to which")


class KlCov(Settings):
    """KL-Cov (arXiv 2505.22617): the tokens of highest covariance are held near the policy before the update."""

    name: Literal["kl_cov"] = "kl_cov"
    share: float = Field(2e-3, gt=0, le=1, description="share of all trained tokens that is held")
    coefficient: float = Field(1.0, ge=0, description="of the distance from the policy before the update")


EntropySettings = Annotated[NoEntropyControl | EntropyBonus | ClipCov | KlCov, Field(discriminator="name")]


class OverlongSettings(Settings):
    """Answers cut at their token limit (DAPO, arXiv 2503.14476, sections 3.4 and 4.1)."""

    mask_truncated: bool = Field(False, description="an answer that was cut is not trained; it counts in its baseline")
    buffer_tokens: int = Field(
        0, ge=0, description="last tokens of rollout.tokens_per_turn that cost reward, more with each; 0: none"
    )
    penalty: float = Field(1.0, ge=0, description="what an answer at the limit loses")


class GrpoSettings(Settings):
    groups_per_update: PositiveInt = Field(16, description="groups of a batch, one a ticket")
    epochs: PositiveInt = Field(1, description="passes over one batch, one optimizer step each")
    objective: Literal["clip", "gspo", "cispo"] = Field(
        "clip",
        description="clip: PPO, GRPO; gspo: ratio of a whole sequence; cispo: clipped weight, no lost gradient",
    )
    clip_low: PositiveFloat = Field(0.2, description="a ratio counts down to 1 - clip_low")
    clip_high: PositiveFloat = Field(
        0.2, description="a ratio counts up to 1 + clip_high; above clip_low: clip-higher (DAPO)"
    )
    dual_clip: float | None = Field(None, gt=1, description="most a negative advantage's ratio counts; empty: no bound")
    old_policy: Literal["proximal", "behaviour"] = Field(
        "proximal",
        description="what the clipped ratio is against: the learner before the update (decoupled PPO), or the engine "
        "that sampled",
    )
    normalizer: Normalizer = Field(
        "token", description="a loss is divided by the batch's tokens; averaged over sequences; or by constant_length"
    )
    constant_length: PositiveInt | None = Field(
        None, description="tokens a sequence counts as with normalizer: constant; empty: rollout.tokens_per_turn"
    )
    normalize_std: bool = Field(
        True, description="divide a reward minus its group's mean by the group's standard deviation"
    )
    importance: ImportanceSettings = ImportanceSettings()
    kl: KlSettings = KlSettings()
    entropy: EntropySettings = NoEntropyControl()
    overlong: OverlongSettings = OverlongSettings()
    streams: StreamsSettings = StreamsSettings()
    drop_zero_signal: bool = Field(
        True, description="groups whose rewards are all equal are counted as filtered and replaced"
    )
    max_refill: PositiveInt = Field(
        4, description="times groups_per_update sampled for one update before it takes what there is"
    )

    @model_validator(mode="after")
    def _fields_fit_together(self) -> GrpoSettings:
        if self.entropy.name == "kl_cov" and self.epochs == 1 and self.old_policy == "proximal":
            raise ValueError(
                "entropy.name (kl_cov) holds tokens near the policy before the update, and with epochs (1) the update "
                "is one step from there: raise epochs, or set old_policy to behaviour"
            )
        if self.dual_clip is not None and self.objective == "cispo":
            raise ValueError(f"dual_clip ({self.dual_clip:g}) bounds a ratio, objective (cispo) has a weight instead")
        if self.kl.reference is not None and not self.kl.coefficient:
            raise ValueError(f"kl.reference ({self.kl.reference}) is of no use: kl.coefficient is 0")
        if isinstance(self.entropy, ClipCov) and self.entropy.low >= self.entropy.high:
            raise ValueError(f"entropy.low ({self.entropy.low:g}) must be below entropy.high ({self.entropy.high:g})")
        return self
