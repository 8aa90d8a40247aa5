-- throughput(): how fast is each step, and which stage takes the time?
-- Response tokens per second of the sampler and of the trainer, and each stage's share of the seconds that the stages
-- worked; stages that overlap are counted twice.
CREATE OR REPLACE MACRO throughput() AS TABLE
SELECT run, step, num_tokens, num_tokens / nullif(seconds_sample, 0) AS sampled_per_s,
       num_tokens / nullif(seconds_update, 0) AS trained_per_s, worked AS seconds,
       seconds_sample / worked AS share_sample, seconds_judge / worked AS share_judge,
       seconds_score / worked AS share_score, seconds_update / worked AS share_update, trainer_processes
FROM (SELECT *, nullif(seconds_sample + seconds_judge + seconds_score + seconds_update, 0) AS worked FROM updates)
ORDER BY run, step;
