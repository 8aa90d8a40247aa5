-- answers(): how many different final answers does a problem get, and how evenly are they spread (entropy in nats)?
-- Answers that mean the same are one. Mean over problems. An unreadable answer is no distinct answer, but has its share
-- in the entropy; responses that nobody read have no row.
CREATE OR REPLACE MACRO answers() AS TABLE
WITH counted AS (
    SELECT run, benchmark, step, scoring, judge, problem_id, answer, count(*) AS n FROM graded WHERE answers_read GROUP BY ALL
), problems_of AS (
    SELECT run, benchmark, step, scoring, judge, problem_id, count(answer) AS distinct_answers,
           ln(sum(n)) - sum(n * ln(n)) / sum(n) AS entropy
    FROM counted GROUP BY ALL
)
SELECT run, benchmark, step, scoring, judge, avg(distinct_answers) AS distinct_answers,
       avg(greatest(entropy, 0)) AS answer_entropy, count(*) AS problems
FROM problems_of GROUP BY ALL ORDER BY ALL;
