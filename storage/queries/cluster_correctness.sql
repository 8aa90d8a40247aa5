-- cluster_correctness(): how often is each macro strategy right? Responses by strategy and grade.
CREATE OR REPLACE MACRO cluster_correctness() AS TABLE
SELECT run, benchmark, step, scoring, judge, macro_strategy, count(*) FILTER (is_correct(reward)) AS correct,
       count(*) FILTER (NOT is_correct(reward)) AS incorrect, count(DISTINCT problem_id) AS problems
FROM strategies GROUP BY ALL ORDER BY ALL;
