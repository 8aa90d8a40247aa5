-- div_at_k(k): how many distinct successful strategies are among k samples, in expectation? Mean over problems.
-- Of the samples that have a grade and a label; problems with fewer than k such are left out.
CREATE OR REPLACE MACRO div_at_k(k) AS TABLE
WITH clusters AS (
    SELECT run, benchmark, step, scoring, judge, problem_id, cluster, count(*) AS samples,
           count(*) FILTER (is_correct(reward) AND NOT degenerate) AS correct
    FROM graded WHERE reward IS NOT NULL AND labelled GROUP BY ALL
), problems_of AS (
    SELECT run, benchmark, step, scoring, judge, problem_id, sum(samples)::BIGINT AS samples,
           list(correct) FILTER (cluster IS NOT NULL AND correct > 0) AS sizes
    FROM clusters GROUP BY ALL
)
SELECT run, benchmark, step, scoring, judge,
       avg(coalesce(list_sum([chance_of_one(samples, size, k) FOR size IN sizes]), 0)) AS div_at_k, count(*) AS problems
FROM problems_of WHERE samples >= k
GROUP BY ALL ORDER BY ALL;
