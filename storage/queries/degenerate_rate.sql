-- degenerate_rate(): which share of the responses that it labels does a judge call degenerate, and which share could it
-- not label, and why?
CREATE OR REPLACE MACRO degenerate_rate() AS TABLE
SELECT run, step, judge, count(*) AS responses, avg(degenerate::INT) FILTER (degenerate OR cluster IS NOT NULL)
           AS degenerate_rate,
       avg((cluster IS NULL AND NOT degenerate)::INT) AS unlabelled_rate, histogram(status) AS statuses
FROM labels GROUP BY ALL ORDER BY ALL;
