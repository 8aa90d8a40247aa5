-- scoring_agreement(scoring_a, scoring_b): what do two scorings of the same responses make of each prompt? Rank
-- correlation of the advantages (null if either is constant or unknown), advantages that changed sign (null if unknown),
-- rewards that changed.
CREATE OR REPLACE MACRO scoring_agreement(scoring_a, scoring_b) AS TABLE
WITH paired AS (
    SELECT a.run, a.step, a.problem_id, a.advantage AS a, b.advantage AS b, a.reward AS reward_a, b.reward AS reward_b
    FROM (FROM scores WHERE scoring = scoring_a) a JOIN (FROM scores WHERE scoring = scoring_b) b
    USING (run, step, problem_id, sample)
), ranked AS (
    SELECT *,
           rank() OVER (PARTITION BY run, step, problem_id ORDER BY a)
           + (count(*) OVER (PARTITION BY run, step, problem_id, a) - 1) / 2 AS rank_a,
           rank() OVER (PARTITION BY run, step, problem_id ORDER BY b)
           + (count(*) OVER (PARTITION BY run, step, problem_id, b) - 1) / 2 AS rank_b
    FROM paired
)
SELECT run, step, problem_id, count(*) AS responses,
       CASE WHEN min(rank_a) < max(rank_a) AND min(rank_b) < max(rank_b) THEN corr(rank_a, rank_b) END AS rank_correlation,
       CASE WHEN count(a * b) > 0 THEN count(*) FILTER (a * b < 0) END AS sign_flips,
       count(*) FILTER (reward_a IS DISTINCT FROM reward_b) AS rewards_changed
FROM ranked GROUP BY ALL;
