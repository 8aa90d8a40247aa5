-- evaluation_progress(): how much of each evaluation is there? Problems, and samples per problem (fewest and most), of how
-- many that were asked for (null if that is not known), and how many responses could not be graded.
CREATE OR REPLACE MACRO evaluation_progress() AS TABLE
WITH asked AS (
    SELECT run, benchmark, step, max(problems) AS problems, max(samples) AS samples FROM evaluations GROUP BY ALL
), there AS (
    SELECT run, benchmark, step, problem_id, count(*) AS samples, count(*) FILTER (reward IS NULL) AS ungraded
    FROM evals GROUP BY ALL
), configured AS (
    -- Before schema version 5 the configuration alone says what was wanted of held-out problems.
    SELECT run, (config ->> '$.evaluation.num_samples')::INT AS samples,
           least((config ->> '$.evaluation.max_problems')::INT, heldout) AS problems
    FROM runs JOIN (SELECT run, count(*) AS heldout FROM problems WHERE split = 'heldout' GROUP BY run) USING (run)
), found AS (
    SELECT run, benchmark, step, count(*) AS problems, min(samples) AS fewest_samples, max(samples) AS most_samples,
           sum(ungraded)::BIGINT AS ungraded
    FROM there GROUP BY ALL
)
SELECT run, benchmark, step, coalesce(f.problems, 0) AS problems,
       coalesce(a.problems, CASE WHEN benchmark = 'heldout' THEN c.problems END) AS of_problems,
       coalesce(fewest_samples, 0) AS fewest_samples, coalesce(most_samples, 0) AS most_samples,
       coalesce(a.samples, CASE WHEN benchmark = 'heldout' THEN c.samples END) AS of_samples,
       coalesce(f.problems, 0) = of_problems AND coalesce(fewest_samples, 0) >= of_samples AS complete,
       coalesce(ungraded, 0) AS ungraded
FROM found f FULL JOIN asked a USING (run, benchmark, step) LEFT JOIN configured c USING (run)
ORDER BY ALL;
