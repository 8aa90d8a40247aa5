-- is_correct: a response is correct when its reward is above 0.5; null if it could not be graded.
CREATE OR REPLACE MACRO is_correct(reward) AS reward > 0.5;

-- graded: every response that somebody graded, of training and of held-out evaluations, in one place. The other queries
-- start here. `benchmark` is 'train' for training steps; with run and problem_id it names the problem, whose text is in
-- problems, where the column is called split. `reward` is null if it could not be graded. `answer` is the same for
-- final answers to a problem that mean the same: the number of their class, or, before schema version 5, their text. It
-- is null without an answer, and unknown unless `answers_read`: responses that were imported with their rewards were
-- read by nobody here. `cluster` is null if the response is degenerate, or if it is not `labelled`.
CREATE OR REPLACE VIEW graded AS
SELECT run, 'train' AS benchmark, step, scoring, judge, problem_id, sample, reward, ungraded, parsed_answer,
       coalesce(answer_class::VARCHAR, parsed_answer) AS answer,
       parsed_answer IS NOT NULL OR coalesce(verifier, scoring) NOT IN ('imported', 'ungraded') AS answers_read,
       cluster, degenerate, degenerate OR cluster IS NOT NULL AS labelled, advantage
FROM scores
UNION ALL
SELECT run, benchmark, step, NULL, judge, problem_id, sample, reward, ungraded, parsed_answer,
       coalesce(answer_class::VARCHAR, parsed_answer), true, cluster, degenerate, degenerate OR cluster IS NOT NULL, NULL
FROM evals;

-- sampled: every response as it was sampled, of training and of held-out evaluations.
CREATE OR REPLACE VIEW sampled AS
SELECT run, 'train' AS benchmark, step, problem_id, sample, response, response_token_ids, finish_reason FROM rollouts
UNION ALL
SELECT run, benchmark, step, problem_id, sample, response, response_token_ids, finish_reason FROM evals;

-- strategies: every response that is not degenerate, with the name of its strategy and its grade. What the judge could not
-- label has neither cluster nor name.
CREATE OR REPLACE VIEW strategies AS
SELECT s.run, 'train' AS benchmark, s.step, s.scoring, s.judge, s.problem_id, s.sample, s.reward, s.advantage, s.cluster,
       l.macro_strategy, l.micro_strategy
FROM scores s JOIN labels l USING (run, step, judge, problem_id, sample)
WHERE NOT s.degenerate
UNION ALL
SELECT run, benchmark, step, NULL, judge, problem_id, sample, reward, NULL, cluster, macro_strategy, micro_strategy
FROM evals
WHERE NOT degenerate;

-- Chance that at least one of k samples falls among c of m: 1 - C(m - c, k) / C(m, k), by logarithms of factorials.
CREATE OR REPLACE MACRO chance_of_one(m, c, k) AS
CASE WHEN c = 0 THEN 0.0
     WHEN m - c < k THEN 1.0
     ELSE 1 - exp(lgamma(m - c + 1) + lgamma(m - k + 1) - lgamma(m - c - k + 1) - lgamma(m + 1))
END;
