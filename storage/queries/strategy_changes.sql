-- strategy_changes(run_a, step_a, run_b, step_b, of_benchmark := 'train'): which successful strategies of a problem
-- were gained, lost or kept from one step (or run) to another? Only problems that both have; strategies go by
-- name, grades are the run's own. What the judge could not label is no strategy.
CREATE OR REPLACE MACRO strategy_changes(run_a, step_a, run_b, step_b, of_benchmark := 'train') AS TABLE
WITH a AS (
    SELECT judge, problem_id, macro_strategy, micro_strategy, count(*) AS n FROM strategies
    WHERE run = run_a AND step = step_a AND benchmark = of_benchmark AND is_correct(reward) AND cluster IS NOT NULL
      AND (scoring IS NULL OR scoring = (SELECT scoring FROM runs WHERE run = run_a)) GROUP BY ALL
), b AS (
    SELECT judge, problem_id, macro_strategy, micro_strategy, count(*) AS n FROM strategies
    WHERE run = run_b AND step = step_b AND benchmark = of_benchmark AND is_correct(reward) AND cluster IS NOT NULL
      AND (scoring IS NULL OR scoring = (SELECT scoring FROM runs WHERE run = run_b)) GROUP BY ALL
), both_have AS (
    SELECT judge, problem_id FROM graded WHERE run = run_a AND step = step_a AND benchmark = of_benchmark
    INTERSECT
    SELECT judge, problem_id FROM graded WHERE run = run_b AND step = step_b AND benchmark = of_benchmark
), joined AS (
    SELECT coalesce(a.judge, b.judge) AS judge, coalesce(a.problem_id, b.problem_id) AS problem_id,
           coalesce(a.macro_strategy, b.macro_strategy) AS macro_strategy,
           coalesce(a.micro_strategy, b.micro_strategy) AS micro_strategy,
           coalesce(a.n, 0) AS responses_a, coalesce(b.n, 0) AS responses_b
    FROM a FULL JOIN b
      ON a.judge = b.judge AND a.problem_id = b.problem_id
     AND a.macro_strategy IS NOT DISTINCT FROM b.macro_strategy
     AND a.micro_strategy IS NOT DISTINCT FROM b.micro_strategy
)
SELECT judge, problem_id, macro_strategy, micro_strategy,
       CASE WHEN responses_a = 0 THEN 'gained' WHEN responses_b = 0 THEN 'lost' ELSE 'kept' END AS change,
       responses_a, responses_b
FROM joined SEMI JOIN both_have USING (judge, problem_id)
ORDER BY ALL;
