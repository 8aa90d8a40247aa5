-- evaluation_progress(): how much of each evaluation is there? Problems, and samples per problem (fewest and most), of how
-- many that were asked for (null if that is not known), and how many responses could not be graded.
CREATE OR REPLACE MACRO evaluation_progress() AS TABLE
WITH asked AS (
    SELECT run, benchmark, step, max(problems) AS problems, max(samples) AS samples FROM evaluations GROUP BY ALL
), there AS (
    SELECT run, benchmark, step, problem_id, count(*) AS samples, count(*) FILTER (reward IS NULL) AS ungraded
    FROM evals GROUP BY ALL
), configured AS (
    -- Before schema version 5 only the configuration says what was wanted, of held-out problems.
    SELECT run, split AS benchmark, CASE WHEN split = 'heldout' THEN (config ->> '$.evaluation.num_samples')::INT END
               AS samples,
           least(count, CASE WHEN split = 'heldout' THEN (config ->> '$.evaluation.max_problems')::INT END) AS problems
    FROM runs JOIN (SELECT run, split, count(*) AS count FROM problems GROUP BY ALL) USING (run)
), found AS (
    SELECT run, benchmark, step, count(*) AS problems, min(samples) AS fewest_samples, max(samples) AS most_samples,
           sum(ungraded)::BIGINT AS ungraded
    FROM there GROUP BY ALL
)
SELECT run, benchmark, step, coalesce(f.problems, 0) AS problems,
       coalesce(a.problems, c.problems) AS of_problems,
       coalesce(fewest_samples, 0) AS fewest_samples, coalesce(most_samples, 0) AS most_samples,
       coalesce(a.samples, c.samples) AS of_samples,
       coalesce(f.problems, 0) = of_problems AND coalesce(fewest_samples, 0) >= of_samples AS complete,
       coalesce(ungraded, 0) AS ungraded
FROM found f FULL JOIN asked a USING (run, benchmark, step) LEFT JOIN configured c USING (run, benchmark)
ORDER BY ALL;
