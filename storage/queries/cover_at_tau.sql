-- cover_at_tau(tau): for which share of problems are at least the share tau of the samples that could be graded correct?
CREATE OR REPLACE MACRO cover_at_tau(tau) AS TABLE
SELECT run, benchmark, step, scoring, judge, avg((correct >= tau)::INT) AS cover_at_tau, count(*) AS problems
FROM (
    SELECT run, benchmark, step, scoring, judge, problem_id, avg(is_correct(reward)::INT) AS correct
    FROM graded WHERE reward IS NOT NULL GROUP BY ALL
)
GROUP BY ALL ORDER BY ALL;
