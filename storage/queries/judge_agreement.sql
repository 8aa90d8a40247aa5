-- judge_agreement(judge_a, judge_b): how far do two judges agree, step by step? Means of agreement_by_prompt over prompts.
CREATE OR REPLACE MACRO judge_agreement(judge_a, judge_b) AS TABLE
SELECT run, step, avg(ari) AS ari, avg(v_measure) AS v_measure, avg(pair_agreement) AS pair_agreement,
       avg(clusters_a) AS clusters_a, avg(clusters_b) AS clusters_b, count(*) AS problems
FROM agreement_by_prompt(judge_a, judge_b) GROUP BY ALL ORDER BY ALL;
