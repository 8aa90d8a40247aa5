-- agreement_by_prompt(judge_a, judge_b): how far do two judges agree on each prompt that both labelled whole?
-- Adjusted Rand index, V-measure, share of pairs of responses put together or apart alike, and the clusters of each.
-- Degenerate responses of a prompt are one more group.
CREATE OR REPLACE MACRO agreement_by_prompt(judge_a, judge_b) AS TABLE
WITH paired AS (
    SELECT a.run, a.step, a.problem_id, CASE WHEN a.degenerate THEN -1 ELSE a.cluster END AS a,
           CASE WHEN b.degenerate THEN -1 ELSE b.cluster END AS b
    FROM (FROM labels WHERE judge = judge_a) a JOIN (FROM labels WHERE judge = judge_b) b
    USING (run, step, problem_id, sample)
), cells AS (
    SELECT run, step, problem_id, a, b, count(*) AS n FROM paired GROUP BY ALL
), rows_of AS (
    SELECT run, step, problem_id, sum(n * (n - 1) / 2) AS pairs, sum(n * ln(n)) AS spread,
           count(*) FILTER (a >= 0) AS clusters
    FROM (SELECT run, step, problem_id, a, sum(n) AS n FROM cells GROUP BY ALL) GROUP BY ALL
), columns_of AS (
    SELECT run, step, problem_id, sum(n * (n - 1) / 2) AS pairs, sum(n * ln(n)) AS spread,
           count(*) FILTER (b >= 0) AS clusters
    FROM (SELECT run, step, problem_id, b, sum(n) AS n FROM cells GROUP BY ALL) GROUP BY ALL
), prompts AS (
    SELECT run, step, problem_id, sum(n) AS responses, sum(n * (n - 1) / 2) AS together, sum(n * ln(n)) AS spread,
           sum(n) * (sum(n) - 1) / 2 AS everything
    FROM cells GROUP BY ALL HAVING bool_and(a IS NOT NULL AND b IS NOT NULL)
), measured AS (
    -- Entropies in nats; what rounding leaves of an entropy of 0 is 0.
    SELECT run, step, problem_id, responses::BIGINT AS responses, r.clusters AS clusters_a, c.clusters AS clusters_b,
           CASE WHEN everything = 0 THEN 1 ELSE (everything + 2 * together - r.pairs - c.pairs) / everything END AS pairs,
           CASE WHEN everything = 0 THEN 0 ELSE r.pairs * c.pairs / everything END AS expected,
           (r.pairs + c.pairs) / 2 AS best, together,
           CASE WHEN r.pairs = everything THEN 0 ELSE ln(responses) - r.spread / responses END AS entropy_a,
           CASE WHEN c.pairs = everything THEN 0 ELSE ln(responses) - c.spread / responses END AS entropy_b,
           CASE WHEN together = everything THEN 0 ELSE ln(responses) - p.spread / responses END AS entropy_both
    FROM prompts p JOIN rows_of r USING (run, step, problem_id) JOIN columns_of c USING (run, step, problem_id)
), shared AS (
    SELECT *, greatest(entropy_a + entropy_b - entropy_both, 0) AS mutual FROM measured
), ratios AS (
    SELECT *, CASE WHEN entropy_a = 0 THEN 1 ELSE mutual / entropy_a END AS homogeneity,
           CASE WHEN entropy_b = 0 THEN 1 ELSE mutual / entropy_b END AS completeness
    FROM shared
)
SELECT run, step, problem_id, responses,
       CASE WHEN best = expected THEN 1 ELSE (together - expected) / (best - expected) END AS ari,
       CASE WHEN homogeneity + completeness = 0 THEN 0
            ELSE 2 * homogeneity * completeness / (homogeneity + completeness) END AS v_measure,
       pairs AS pair_agreement, clusters_a, clusters_b
FROM ratios;
