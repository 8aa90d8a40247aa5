-- sign_flips(): prompts where a correct response was pushed down while an incorrect one was pushed up: the method's
-- known failure, when the correct responses sit in one cluster and the wrong ones differ.
CREATE OR REPLACE MACRO sign_flips() AS TABLE
SELECT run, step, scoring, judge, problem_id, min(advantage) FILTER (is_correct(reward)) AS lowest_of_correct,
       max(advantage) FILTER (NOT is_correct(reward)) AS highest_of_incorrect
FROM scores GROUP BY ALL
HAVING lowest_of_correct < 0 AND highest_of_incorrect > 0
ORDER BY ALL;
