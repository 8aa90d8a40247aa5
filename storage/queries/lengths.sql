-- lengths(): how long are responses, in tokens, and which share was cut off at the limit?
CREATE OR REPLACE MACRO lengths() AS TABLE
SELECT run, benchmark, step, count(*) AS responses, sum(len(response_token_ids))::BIGINT AS tokens,
       avg(len(response_token_ids)) AS mean_tokens, median(len(response_token_ids)) AS median_tokens,
       max(len(response_token_ids)) AS max_tokens, avg(length(response)) AS mean_characters,
       avg((finish_reason = 'length')::INT) AS truncated_rate
FROM sampled GROUP BY ALL ORDER BY ALL;
