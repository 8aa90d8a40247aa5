-- signal_accounting(): how many prompts of a step have a gradient, and why do the others have none?
-- The first reason that holds, in the order of the columns; they add up to `prompts`. Labels are a reason only where
-- advantages depend on them. Prompts whose advantages are not known have no row.
CREATE OR REPLACE MACRO signal_accounting() AS TABLE
WITH prompts_of AS (
    SELECT run, step, scoring, judge, problem_id, bool_and(advantage = 0) AS silent,
           count(reward) = count(*) AS graded, bool_and(degenerate OR cluster IS NOT NULL) AS labelled,
           bool_or(coalesce(uses_clusters, true)) AS uses_clusters, bool_or(is_correct(reward)) AS solved,
           count(DISTINCT cluster) FILTER (NOT degenerate) AS clusters
    FROM scores GROUP BY ALL HAVING count(advantage) = count(*)
), reasons AS (
    SELECT run, step, scoring, judge,
           CASE WHEN NOT silent THEN 'gradient'
                WHEN NOT graded THEN 'ungraded'
                WHEN NOT labelled AND uses_clusters THEN 'unlabelled'
                WHEN NOT solved THEN 'all wrong'
                WHEN labelled AND clusters <= 1 THEN 'one cluster'
                ELSE 'other' END AS reason
    FROM prompts_of
)
SELECT run, step, scoring, judge, count(*) AS prompts,
       count(*) FILTER (reason = 'gradient') AS with_gradient,
       count(*) FILTER (reason = 'ungraded') AS ungraded,
       count(*) FILTER (reason = 'unlabelled') AS unlabelled,
       count(*) FILTER (reason = 'all wrong') AS all_wrong,
       count(*) FILTER (reason = 'one cluster') AS one_cluster,
       count(*) FILTER (reason = 'other') AS other_zero
FROM reasons GROUP BY ALL ORDER BY ALL;
