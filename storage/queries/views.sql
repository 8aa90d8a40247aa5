-- graded: every graded response, of training and of held-out evaluations, in one place. The other queries start here.
-- `benchmark` is 'train' for training steps. A response is correct when its reward is above 0.5. `cluster` is null if
-- the response is degenerate, or if the judge could not label it.
CREATE OR REPLACE VIEW graded AS
SELECT run, 'train' AS benchmark, step, scoring, judge, problem_id, sample, reward, parsed_answer, cluster, degenerate,
       advantage
FROM scores
UNION ALL
SELECT run, benchmark, step, NULL, judge, problem_id, sample, reward, parsed_answer, cluster, degenerate, NULL
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
