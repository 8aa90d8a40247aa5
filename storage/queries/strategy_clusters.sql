-- strategy_clusters(of_run, of_step, of_problem): the clusters of one prompt's responses, largest first, each with its
-- size, mean reward, mean advantage and a response as example (the first). Cluster null: degenerate, or unlabelled.
CREATE OR REPLACE MACRO strategy_clusters(of_run, of_step, of_problem) AS TABLE
SELECT s.judge, s.scoring, s.cluster, s.degenerate, any_value(l.macro_strategy) AS macro_strategy,
       any_value(l.micro_strategy) AS micro_strategy, count(*) AS size, avg(s.reward) AS reward,
       avg(s.advantage) AS advantage, arg_min(r.response, s.sample) AS example
FROM (FROM scores WHERE run = of_run AND step = of_step AND problem_id = of_problem) s
JOIN (FROM rollouts WHERE run = of_run AND step = of_step AND problem_id = of_problem) r USING (sample)
LEFT JOIN (FROM labels WHERE run = of_run AND step = of_step AND problem_id = of_problem) l USING (judge, sample)
GROUP BY s.judge, s.scoring, s.cluster, s.degenerate
ORDER BY s.judge, s.scoring, size DESC, s.cluster;
