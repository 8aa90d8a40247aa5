-- judge_agreement(judge_a, judge_b): how far do two judges agree? Per step, means over the prompts that both labelled
-- whole: adjusted Rand index, share of pairs of responses put together or apart alike, and clusters per prompt.
-- Degenerate responses of a prompt are one more group.
CREATE OR REPLACE MACRO judge_agreement(judge_a, judge_b) AS TABLE
WITH paired AS (
    SELECT a.run, a.step, a.problem_id, CASE WHEN a.degenerate THEN -1 ELSE a.cluster END AS a,
           CASE WHEN b.degenerate THEN -1 ELSE b.cluster END AS b
    FROM (FROM labels WHERE judge = judge_a) a JOIN (FROM labels WHERE judge = judge_b) b
    USING (run, step, problem_id, sample)
), cells AS (
    SELECT run, step, problem_id, a, b, count(*) AS n FROM paired GROUP BY ALL
), rows_of AS (
    SELECT run, step, problem_id, sum(n * (n - 1) / 2) AS pairs, count(*) FILTER (a >= 0) AS clusters
    FROM (SELECT run, step, problem_id, a, sum(n) AS n FROM cells GROUP BY ALL) GROUP BY ALL
), columns_of AS (
    SELECT run, step, problem_id, sum(n * (n - 1) / 2) AS pairs, count(*) FILTER (b >= 0) AS clusters
    FROM (SELECT run, step, problem_id, b, sum(n) AS n FROM cells GROUP BY ALL) GROUP BY ALL
), prompts AS (
    SELECT run, step, problem_id, sum(n) AS responses, sum(n * (n - 1) / 2) AS together,
           sum(n) * (sum(n) - 1) / 2 AS everything
    FROM cells GROUP BY ALL HAVING bool_and(a IS NOT NULL AND b IS NOT NULL)
), measured AS (
    SELECT run, step, problem_id, r.clusters AS clusters_a, c.clusters AS clusters_b,
           CASE WHEN everything = 0 THEN 1 ELSE (everything + 2 * together - r.pairs - c.pairs) / everything END AS pairs,
           CASE WHEN everything = 0 THEN 0 ELSE r.pairs * c.pairs / everything END AS expected,
           (r.pairs + c.pairs) / 2 AS best, together
    FROM prompts JOIN rows_of r USING (run, step, problem_id) JOIN columns_of c USING (run, step, problem_id)
)
SELECT run, step, avg(CASE WHEN best = expected THEN 1 ELSE (together - expected) / (best - expected) END) AS ari,
       avg(pairs) AS pair_agreement, avg(clusters_a) AS clusters_a, avg(clusters_b) AS clusters_b, count(*) AS problems
FROM measured GROUP BY ALL ORDER BY ALL;
