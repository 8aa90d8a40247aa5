-- coverage(): which share of problems has at least one correct response? Of those with one that is graded.
CREATE OR REPLACE MACRO coverage() AS TABLE
SELECT run, benchmark, step, scoring, judge, avg(solved::INT) AS coverage, count(*) AS problems
FROM (
    SELECT run, benchmark, step, scoring, judge, problem_id, bool_or(is_correct(reward)) AS solved
    FROM graded WHERE reward IS NOT NULL GROUP BY ALL
)
GROUP BY ALL ORDER BY ALL;
