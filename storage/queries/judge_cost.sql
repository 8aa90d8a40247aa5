-- judge_cost(): what did a judge's calls cost, in tokens, seconds and money, and how many failed?
-- Sums are over the calls that say so, and null if none does.
CREATE OR REPLACE MACRO judge_cost() AS TABLE
SELECT run, step, judge, count(*) AS calls, count(DISTINCT problem_id) AS problems,
       count(*) FILTER (error IS NOT NULL) AS failed, sum(prompt_tokens)::BIGINT AS prompt_tokens,
       sum(completion_tokens)::BIGINT AS completion_tokens, sum(cost) AS cost,
       count(*) FILTER (cost IS NULL) AS calls_of_unknown_cost, median(latency_s) AS latency_median_s,
       quantile_cont(latency_s, 0.95) AS latency_p95_s
FROM judge_calls GROUP BY ALL ORDER BY ALL;
