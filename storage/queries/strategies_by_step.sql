-- strategies_by_step(): how many distinct strategies of a problem succeed, and how many fail? Mean over problems.
-- A strategy that does both counts in both. Of the responses that have a grade and a label.
CREATE OR REPLACE MACRO strategies_by_step() AS TABLE
SELECT run, benchmark, step, scoring, judge, avg(successful) AS distinct_successful,
       avg(unsuccessful) AS distinct_unsuccessful, count(*) AS problems
FROM (
    SELECT run, benchmark, step, scoring, judge, problem_id,
           count(DISTINCT cluster) FILTER (NOT degenerate AND is_correct(reward)) AS successful,
           count(DISTINCT cluster) FILTER (NOT degenerate AND NOT is_correct(reward)) AS unsuccessful
    FROM graded WHERE reward IS NOT NULL AND labelled GROUP BY ALL
)
GROUP BY ALL ORDER BY ALL;
