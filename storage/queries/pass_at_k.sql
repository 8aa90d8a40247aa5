-- pass_at_k(k): how likely is one of k samples correct? Unbiased, from all samples of a problem; mean over problems.
-- Of the samples that could be graded, whatever their number; problems with fewer than k such are left out.
CREATE OR REPLACE MACRO pass_at_k(k) AS TABLE
SELECT run, benchmark, step, scoring, judge, avg(chance_of_one(samples, correct, k)) AS pass_at_k, count(*) AS problems
FROM (
    SELECT run, benchmark, step, scoring, judge, problem_id, count(reward) AS samples,
           count(*) FILTER (is_correct(reward)) AS correct
    FROM graded GROUP BY ALL
)
WHERE samples >= k
GROUP BY ALL ORDER BY ALL;
