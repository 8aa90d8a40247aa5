-- signal_accounting(): how many prompts of a step have a gradient, and why do the others have none?
-- The first reason that holds, in the order of the columns; they add up to `prompts`.
CREATE OR REPLACE MACRO signal_accounting() AS TABLE
SELECT run, step, scoring, judge, count(*) AS prompts,
       count(*) FILTER (NOT silent) AS with_gradient,
       count(*) FILTER (silent AND NOT labelled) AS unlabelled,
       count(*) FILTER (silent AND labelled AND NOT solved) AS all_wrong,
       count(*) FILTER (silent AND labelled AND solved AND clusters <= 1) AS one_cluster,
       count(*) FILTER (silent AND labelled AND solved AND clusters > 1) AS other_zero
FROM (
    SELECT run, step, scoring, judge, problem_id, bool_and(advantage = 0) AS silent,
           bool_and(degenerate OR cluster IS NOT NULL) AS labelled, bool_or(reward > 0.5) AS solved,
           count(DISTINCT cluster) FILTER (NOT degenerate) AS clusters
    FROM scores GROUP BY ALL
)
GROUP BY ALL ORDER BY ALL;
