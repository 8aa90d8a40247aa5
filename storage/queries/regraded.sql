-- regraded(scoring_a, scoring_b): the responses that two scorings graded differently, with their texts.
CREATE OR REPLACE MACRO regraded(scoring_a, scoring_b) AS TABLE
SELECT a.run, a.step, a.problem_id, sample, a.reward AS reward_a, b.reward AS reward_b,
       a.parsed_answer AS answer_a, b.parsed_answer AS answer_b, r.response
FROM (FROM scores WHERE scoring = scoring_a) a JOIN (FROM scores WHERE scoring = scoring_b) b
USING (run, step, problem_id, sample)
JOIN rollouts r USING (run, step, problem_id, sample)
WHERE a.reward IS DISTINCT FROM b.reward
ORDER BY ALL;
