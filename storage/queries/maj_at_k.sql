-- maj_at_k(k): how often is the most frequent of k answers correct, and which share of the votes does it have?
-- Of the samples that could be graded, in their order, the first k vote once, then the next k, and so on: any k samples
-- are as good a draw as any other. Answers that mean the same are one. Unreadable answers never win but count as votes;
-- answers that tie share the win; an answer graded both ways counts as its share. Responses that nobody read have no row.
CREATE OR REPLACE MACRO maj_at_k(k) AS TABLE
WITH voting AS (
    SELECT run, benchmark, step, scoring, judge, problem_id, answer, reward,
           (row_number() OVER (PARTITION BY run, benchmark, step, scoring, judge, problem_id ORDER BY sample) - 1) // k
               AS block
    FROM graded WHERE answers_read AND reward IS NOT NULL
), votes AS (
    SELECT run, benchmark, step, scoring, judge, problem_id, block, answer, count(*) AS votes FROM voting GROUP BY ALL
), grades AS (
    SELECT run, benchmark, step, scoring, judge, problem_id, answer, avg(is_correct(reward)::INT) AS correct
    FROM voting WHERE answer IS NOT NULL GROUP BY ALL
), answers AS (
    SELECT v.* EXCLUDE (votes), votes, correct,
           max(votes) FILTER (v.answer IS NOT NULL) OVER block_of AS most,
           sum(votes) OVER block_of AS cast_votes
    FROM votes v LEFT JOIN grades g
      ON (v.run, v.benchmark, v.step, v.problem_id, v.answer) = (g.run, g.benchmark, g.step, g.problem_id, g.answer)
     AND v.scoring IS NOT DISTINCT FROM g.scoring AND v.judge IS NOT DISTINCT FROM g.judge
    WINDOW block_of AS (PARTITION BY v.run, v.benchmark, v.step, v.scoring, v.judge, v.problem_id, v.block)
), blocks AS (
    SELECT run, benchmark, step, scoring, judge, problem_id, block,
           coalesce(avg(correct) FILTER (votes = most AND answer IS NOT NULL), 0) AS accuracy,
           coalesce(any_value(most), 0) / k AS vote_share
    FROM answers WHERE cast_votes = k GROUP BY ALL
), problems_of AS (
    SELECT run, benchmark, step, scoring, judge, problem_id, avg(accuracy) AS accuracy, avg(vote_share) AS vote_share
    FROM blocks GROUP BY ALL
)
SELECT run, benchmark, step, scoring, judge, avg(accuracy) AS maj_at_k, avg(vote_share) AS vote_share,
       count(*) AS problems
FROM problems_of GROUP BY ALL ORDER BY ALL;
