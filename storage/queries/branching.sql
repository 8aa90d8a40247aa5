-- branching(): at which token do a prompt's responses first part (from 0: their tokens differ, or one ends)?
-- Mean over prompts that part at all; `identical` counts those that never do.
CREATE OR REPLACE MACRO branching() AS TABLE
WITH extremes AS (
    -- What the first and the last in lexicographic order have in common, all have.
    SELECT run, benchmark, step, problem_id, min(response_token_ids) AS a, max(response_token_ids) AS b
    FROM sampled WHERE response_token_ids IS NOT NULL GROUP BY ALL
), parted AS (
    SELECT run, benchmark, step, problem_id,
           list_position([x[1] IS DISTINCT FROM x[2] FOR x IN list_zip(a, b)], true) - 1 AS position
    FROM extremes
)
SELECT run, benchmark, step, avg(position) AS first_branching, min(position) AS earliest, max(position) AS latest,
       count(*) FILTER (position IS NULL) AS identical, count(*) AS problems
FROM parted GROUP BY ALL ORDER BY ALL;
