"""What can be wrong with what a run samples: one function per finding, for gradients, responses and clusters.

Each returns None where its numbers are unknown or as they should be. Thresholds stand beside their rule, with the
reason.
"""

from __future__ import annotations

from polyepo.findings.base import Finding, Severity, config_findings
from polyepo.findings.evidence import FLIPPED, Evidence
from polyepo.findings.objective import wrong_optimum
from polyepo.judges import LLMJudge
from polyepo.scoring import GRPODivScoring, SetScoring

# --- gradients

_LOW_SIGNAL = 0.05
"""Of twenty prompts nineteen are sampled, judged and paid for, and teach nothing."""


def no_gradient(e: Evidence) -> Finding | None:
    """No prompt, or next to none, moves the weights; and why."""
    if e.signal > _LOW_SIGNAL or (e.solved and not e.constant_since_the_start):
        return None
    causes = {
        "all wrong": e.total("prompts_all_wrong"),
        "one cluster": e.total("prompts_one_cluster"),
        "unlabelled": e.total("prompts_unlabelled"),
        "ungraded": e.total("prompts_ungraded"),
        "rewards and clusters that make no difference": e.total("prompts_other_zero"),
    }
    count, prompts = e.total("prompts_with_signal"), e.total("prompts")
    split = ", ".join(f"{number:,} {name}" for name, number in causes.items() if number)
    said = "next to nothing is learnt" if count else "nothing was learnt" if e.complete else "nothing is learnt"
    return Finding(
        Severity.WARNING if count else Severity.FATAL,
        f"{count:,} of {prompts:,} prompts had a gradient {e.when}, so {said} ({split})",
        _gradient_remedy(e, max(causes, key=lambda cause: causes[cause])),
    )


def _gradient_remedy(e: Evidence, cause: str) -> str:
    if fatal := config_findings(e.config):
        return f"see {fatal[0].what.split(':')[0]}"
    if cause == "unlabelled":
        return _label_remedy(e)
    if cause == "ungraded":
        return _grade_remedy(e)
    if e.constant_reward and e.over("reward_mean", 0.5):
        return _constant_remedy(e)
    if cause == "all wrong" and e.over("truncated_rate", 0.5):
        return _length_remedy(e)
    if cause == "all wrong" and _is_unparsed(e):
        return _form_remedy(e)
    # Right responses would not help where the judge sees one cluster whatever is sampled.
    if one_cluster(e) or (cause == "one cluster" and e.uses_clusters):
        return _one_cluster_remedy(e)
    return _too_hard_remedy(e) if cause == "all wrong" else _constant_remedy(e)


def _too_hard_remedy(e: Evidence) -> str:
    config = e.config
    start = (
        f"raise policy.warm_start.steps {config.policy.warm_start.steps}"
        if config.policy.warm_start
        else "start from a stronger policy.model"
    )
    return (
        f"the problems are too hard for the policy: {start}, give it easier problems, or raise "
        f"sampling.num_responses {config.sampling.num_responses} until some response is right"
    )


# --- responses

_TRUNCATED = 0.25
"""A response that is cut off has no answer: from a quarter on the limit decides more rewards than the policy does."""
_SOME = 0.05
"""A share that a reader of the report should know of."""


def truncated(e: Evidence) -> Finding | None:
    """Responses end at their limit."""
    rate = e.mean("truncated_rate")
    if rate is None or rate <= _SOME:
        return None
    severity = Severity.WARNING if rate > _TRUNCATED else Severity.NOTE
    return Finding(severity, f"{rate:.0%} of responses were cut off {e.when}", _length_remedy(e))


def _length_remedy(e: Evidence) -> str:
    limit, rate = e.config.sampling.max_response_tokens, e.mean("truncated_rate") or 0
    warm_start = e.config.policy.warm_start
    ends = (
        f"raise policy.warm_start.steps {warm_start.steps}"
        if warm_start
        else "start from a policy.model that was tuned to, with domain.chat: true if it is a chat model"
    )
    return (
        f"sampling.max_response_tokens {limit} is too short for {rate:.0%} of them; raise it, to "
        f"{limit * (4 if rate > 0.5 else 2)} say; if they run on at any length, the policy does not end its answers: "
        f"{ends}"
    )


_UNPARSED = 0.9
"""A policy that does not know the form at first finds it with a tenth of its responses; below that it is chance."""


def _is_unparsed(e: Evidence) -> bool:
    rate, reward = e.mean("unparsed_rate"), e.mean("reward_mean")
    # A verifier of one's own may give rewards and name no answers.
    return rate is not None and reward is not None and rate > _UNPARSED and reward <= 1 - rate + 1e-9


def unparsed(e: Evidence) -> Finding | None:
    """The verifier finds no answer in responses."""
    if not _is_unparsed(e):
        return None
    what = f"{e.mean('unparsed_rate'):.0%} of responses held no answer that the verifier could read {e.when}"
    return Finding(Severity.WARNING, what, _form_remedy(e))


def _form_remedy(e: Evidence) -> str:
    config = e.config
    if e.over("truncated_rate", 0.5):
        return _length_remedy(e)
    if config.policy.warm_start:
        return f"raise policy.warm_start.steps {config.policy.warm_start.steps}: the policy has not learnt the form yet"
    return (
        f"the verifier of domain {config.domain.name!r} reads another form than the responses have (polyepo show "
        "prints some): ask for its form in domain.template or domain.system_prompt, with domain.chat: true for chat "
        "models, or start from a policy.model that follows instructions"
    )


def constant_reward(e: Evidence) -> Finding | None:
    """Every response has earned the same since the start: the reward tells nothing apart."""
    reward = e.mean("reward_mean")
    if not reward or not e.constant_since_the_start:
        return None
    return Finding(Severity.WARNING, f"every response earned {reward:g} {e.when}", _constant_remedy(e))


def _constant_remedy(e: Evidence) -> str:
    return (
        f"the problems are too easy for the policy, or the verifier of domain {e.config.domain.name!r} tells nothing "
        "apart: see with polyepo show whether the rewards are right; if they are, take harder problems"
    )


_UNGRADED = 0.1
"""As with labels: what is left out is no longer a random tenth, but what is hard to grade."""


def ungraded(e: Evidence) -> Finding | None:
    """The verifier could not grade responses."""
    rate = e.mean("ungraded_rate")
    if not rate:
        return None
    severity = Severity.WARNING if rate > _UNGRADED else Severity.NOTE
    left_out, prompts = e.total("prompts_ungraded"), e.total("prompts")
    what = f"{rate:.1%} of responses could not be graded {e.when}, which leaves out {left_out:,} of {prompts:,} prompts"
    return Finding(severity, what, _grade_remedy(e))


def _grade_remedy(e: Evidence) -> str:
    limit = getattr(e.config.domain, "timeout_s", None)
    more = "" if limit is None else f"; where it is time, raise domain.timeout_s {limit:g}"
    return f"{_sql('ungraded, count(*) FROM scores')} says why{more}"


def _sql(question: str) -> str:
    """A command that answers a question of the store."""
    return f'polyepo sql -c "SELECT {question} GROUP BY ALL"'


# --- clusters

_MISSING = 0.1
"""Prompts that a judge cannot label are not random ones: they are long, or odd."""


def unlabelled(e: Evidence) -> Finding | None:
    """The judge could not label responses."""
    rate = e.mean("missing_label_rate")
    if not rate:
        return None
    severity = Severity.WARNING if rate > _MISSING else Severity.NOTE
    what = (
        f"the judge could not label {rate:.1%} of responses {e.when}, which leaves out "
        f"{e.total('prompts_unlabelled'):,} of {e.total('prompts'):,} prompts"
    )
    return Finding(severity, what, _label_remedy(e))


def _label_remedy(e: Evidence) -> str:
    judge = e.config.judge
    said = f"{_sql('error, finish_reason, count(*) FROM judge_calls')} says why"
    if not isinstance(judge, LLMJudge):
        return f"judge {judge.name!r} leaves responses without a label: take another judge"
    return (
        f"{said}; replies that were cut off want a larger judge.max_tokens {judge.max_tokens}, time-outs a larger "
        f"judge.timeout_s {judge.timeout_s:g}, replies that are no JSON a judge.model that follows instructions"
    )


_DEGENERATE = 0.9
"""Half is usual for a base model at first; from nine in ten on there are no clusters to tell apart."""


def degenerate(e: Evidence) -> Finding | None:
    """The judge found gibberish."""
    rate = e.mean("degenerate_rate")
    if rate is None or rate <= _SOME:
        return None
    severity = Severity.WARNING if rate > _DEGENERATE and e.uses_clusters else Severity.NOTE
    remedy = f"polyepo show prints some; if they are no gibberish, judge {e.config.judge.name!r} cannot read them: "
    remedy += "take another judge" if not e.over("truncated_rate", 0.5) else _length_remedy(e)
    return Finding(severity, f"{rate:.0%} of responses were degenerate {e.when}", remedy)


_ONE_CLUSTER = 1.05
"""Clusters per prompt: one prompt in twenty with a second one moves nothing."""


def one_cluster(e: Evidence) -> Finding | None:
    """Whatever is sampled, the judge sees one strategy."""
    clusters = e.mean("distinct_clusters")
    if not e.uses_clusters or clusters is None or clusters > _ONE_CLUSTER or e.over("degenerate_rate", _DEGENERATE):
        return None
    what = f"a prompt's responses lay in {clusters:.2f} clusters {e.when}: there is no diversity to reward"
    return Finding(Severity.WARNING, what, _one_cluster_remedy(e))


def _one_cluster_remedy(e: Evidence) -> str:
    config = e.config
    finer = _distance_remedy(e, 0.5) or f"take a judge that tells more apart than {config.judge.name!r}"
    scoring = config.scoring
    two = isinstance(scoring, SetScoring) and scoring.objective == "polychromic" and scoring.require_two_clusters
    without = "; scoring.require_two_clusters: false gives such prompts a gradient by their rewards" if two else ""
    return f"{finer}, or raise sampling.temperature {config.sampling.temperature:g}{without}"


_SINGLETONS = 0.98
"""Of the most that there can be: from there on the diversity of all sets is the same, and cancels."""


def own_clusters(e: Evidence) -> Finding | None:
    """Whatever is sampled, every response is a strategy of its own."""
    clusters, size = e.mean("distinct_clusters"), e.config.sampling.num_responses
    if not e.uses_clusters or clusters is None or size < 3:
        return None
    most = size * (1 - (e.mean("degenerate_rate") or 0) - (e.mean("missing_label_rate") or 0))
    if most < 2 or clusters < _SINGLETONS * most:
        return None
    what = f"a prompt's {size} responses lay in {clusters:.2f} clusters {e.when}: diversity tells nothing apart"
    judge = e.config.judge
    other = "ask for broader strategies in judge.template_path" if isinstance(judge, LLMJudge) else ""
    remedy = _distance_remedy(e, 1.5) or other or f"take a judge that tells less apart than {judge.name!r}"
    return Finding(Severity.WARNING, what, remedy)


def _distance_remedy(e: Evidence, factor: float) -> str:
    """Of judges that compare texts: another distance."""
    distance = getattr(e.config.judge, "max_distance", None)
    if distance is None:
        return ""
    return f"{'raise' if factor > 1 else 'lower'} judge.max_distance {distance:g}, to {factor * distance:.2g} say"


def sign_flips(e: Evidence) -> Finding | None:
    """Diversity outweighs reward: the method's known failure."""
    flipped, prompts = e.total("prompts_sign_flipped"), e.total("prompts")
    if not flipped:
        return None
    rate = flipped / prompts
    before = e.start.total("prompts_sign_flipped") / e.start.total("prompts") if e.start else 0.0
    rising = rate > FLIPPED and rate > 2 * before
    what = (
        f"{flipped:,} of {prompts:,} prompts ({rate:.1%}) were sign-flipped {e.when}: diversity outweighed reward, a "
        "correct response was pushed down and an incorrect one up"
    )
    scoring, remedy = e.config.scoring, ""
    if wrong := wrong_optimum(e.config):
        remedy = wrong.remedy
    elif isinstance(scoring, SetScoring) and scoring.set_size > 2:
        remedy = f"lower scoring.set_size {scoring.set_size}, to {max(2, scoring.set_size // 2)} say"
    elif isinstance(scoring, GRPODivScoring):
        remedy = f"lower scoring.weight {scoring.weight:g}, to {scoring.weight / 2:g} say"
    elif isinstance(scoring, SetScoring):
        remedy = "see whether the judge's clusters are strategies: polyepo show"
    return Finding(Severity.WARNING if rising else Severity.NOTE, what, remedy)
