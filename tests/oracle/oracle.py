"""Judge a run of the hub from outside: the cluster's journal against the database (docs/oracle.md).

It shares no code with what it judges. Both are copied into one SQLite in memory, names without their units (times
are ms, amounts GPU-us). FACTS: what happened. CHECKS: what must not be, `rule table: complaint IF condition`.
"""

import argparse
import json
import re
import sqlite3
import sys
from pathlib import Path

TABLES = """accounts attempts audit clusters evidence feed feed_head findings grants hold_accounts holds jobs
    node_capacity placements rates slices transfer_legs transfers""".split()
FIELDS = "n t event name job_id attempt pod_index node gpu_class count suspend exit_code reason".split()
FACTS = """
CREATE INDEX i1 ON line (name, event, pod_index); CREATE INDEX i2 ON transfers (id);
CREATE INDEX i3 ON transfers (refund_of);
CREATE TABLE device AS SELECT node, value->>'gpu_class' AS gpu_class, value->>'gpu_uuid' AS gpu_uuid FROM
  line, json_each(body, '$.gpus') WHERE event = 'node_added';
CREATE TABLE ask AS SELECT n AS object_n, value->>'index' AS pod_index, value->>'count' AS gpus, format('%d x
  %s on %s', value->>'count', value->>'gpu_class', value->>'node') AS asked FROM line, json_each(body,
  '$.pods') WHERE event = 'object_created';
CREATE TABLE pod AS SELECT s.*, s.t AS started, e.t AS ended, e.reason AS why, e.exit_code AS code, o.n AS
  object_n, json_array_length(s.body, '$.gpu_uuids') AS gpus FROM line s LEFT JOIN line e ON (e.event, e.name,
  e.pod_index) = ('pod_ended', s.name, s.pod_index) LEFT JOIN line o ON (o.event, o.name) = ('object_created',
  s.name) WHERE s.event = 'pod_started';
CREATE VIEW fit AS SELECT p.*, claimed, asked, format('%d x %s on %s', p.gpus, p.gpu_class, p.node) AS got,
  format('%d x %s on %s', d.count, d.gpu_class, d.node) AS decided FROM pod p LEFT JOIN ask USING (object_n,
  pod_index) LEFT JOIN placements d USING (job_id, attempt, pod_index) LEFT JOIN attempts USING (job_id,
  attempt);
CREATE TABLE stay AS SELECT pod.*, value AS gpu_uuid, IFNULL(ended, 9e18) AS until, MAX(IFNULL(ended, 9e18))
  OVER (PARTITION BY value ORDER BY started, n ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS taken FROM
  pod, json_each(body, '$.gpu_uuids');
CREATE INDEX i4 ON stay (job_id, attempt, gpu_uuid);
CREATE VIEW level AS SELECT *, SUM(d) OVER (PARTITION BY node, gpu_class ORDER BY t, d, n) AS taken FROM (
  SELECT node, gpu_class, n, started AS t, gpus AS d, name FROM pod UNION ALL SELECT node, gpu_class, n,
  ended, -gpus, NULL FROM pod WHERE ended UNION ALL SELECT node, gpu_class, n, t, count - LAG(count, 1, 0)
  OVER (PARTITION BY node, gpu_class ORDER BY n), NULL FROM line WHERE event = 'foreign_set') JOIN (SELECT
  node, gpu_class, COUNT(*) AS total FROM device GROUP BY 1, 2) USING (node, gpu_class);
CREATE TABLE moved AS SELECT t.*, account_id, d_granted, d_held, d_used, kind, payer IS account_id AS own,
  SUM(kind <> 'platform') OVER (PARTITION BY t.id) AS legs, path FROM transfers t JOIN transfer_legs l ON
  transfer_id = t.id JOIN accounts a ON a.id = account_id LEFT JOIN (SELECT job_id, attempt, account_id AS
  payer, (SELECT COUNT(*) FROM hold_accounts WHERE hold_id = h.id) AS path FROM holds h JOIN grants g ON g.id
  = grant_id) USING (job_id, attempt);
CREATE TABLE booked AS SELECT job_id, attempt, SUM(own * (type = 'hold')) AS holds, SUM(own * (type =
  'release')) AS releases, SUM(own * d_held) AS left_held, SUM(own * (type IN ('hold', 'extend')) * d_held) AS
  took, SUM(own * MAX(d_used, 0)) AS charged, SUM(own * (type = 'release') * -d_held) AS freed, SUM((kind =
  'platform') * d_used) AS borne, SUM(own * MAX(-d_used, 0)) AS returned FROM moved WHERE job_id IS NOT NULL
  GROUP BY 1, 2;
CREATE TABLE run AS SELECT *, IIF(pods = all_pods, MIN(full + walltime, IFNULL(stop + stop_grace, 9e18),
  IIF(settled, finish, 9e18)), NULL) AS bound, MAX(IIF(lost, 0, IIF(running, 9e18, gone))) OVER (PARTITION BY
  job_id ORDER BY attempt ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS earlier FROM (SELECT *,
  IIF(lost AND died, died, gone) AS finish, (SELECT rate FROM holds WHERE id = hold_id) AS rate, (SELECT
  observed_through FROM clusters WHERE id = cluster) AS seen, (SELECT COUNT(*) FROM ask a WHERE a.object_n =
  s.object_n) AS all_pods, (SELECT SUM(gpus) FROM ask a WHERE a.object_n = s.object_n) AS all_gpus FROM
  attempts LEFT JOIN ( SELECT job_id, attempt, MIN(started) AS began, MAX(started) AS full, MAX(ended) AS
  gone, COUNT(*) AS pods, COUNT(DISTINCT pod_index) AS places, COUNT(*) - COUNT(ended) AS running, SUM(code IS
  0) AS good, MIN(IIF(why = 'node_lost', ended, NULL)) AS died, object_n FROM pod GROUP BY 1, 2) s USING
  (job_id, attempt) LEFT JOIN booked USING (job_id, attempt));
CREATE TABLE cut AS SELECT *, LAG(ends, 1, starts) OVER (PARTITION BY job_id, attempt ORDER BY starts) AS
  before, ends - IFNULL(corrected / (gpus * rate), 0) AS true_end FROM slices LEFT JOIN (SELECT c.slice_id AS
  id, SUM(r.amount) AS corrected FROM transfers r JOIN transfers c ON c.id = r.refund_of WHERE r.refund_kind =
  'correction' GROUP BY 1) USING (id);
CREATE VIEW cover AS SELECT run.*, MIN(starts) AS begins, IFNULL(SUM(true_end - starts), 0) AS covered,
  IFNULL(SUM((payer = 'grant') * (true_end - starts)), 0) AS paid, MAX(0, IFNULL(bound - full, 0)) AS due,
  SUM(true_end <> MAX(starts, MIN(ends, IFNULL(finish, 0)))) AS wrong_ends FROM run LEFT JOIN cut USING
  (job_id, attempt) WHERE settled GROUP BY run.job_id, run.attempt;
CREATE VIEW pledge AS SELECT h.*, r.settled AS done, r.* FROM holds h LEFT JOIN run r ON (hold_id, r.job_id,
  r.attempt, r.grant_id) = (h.id, h.job_id, h.attempt, h.grant_id);
CREATE VIEW seen AS SELECT *, SUM(observed) OVER (PARTITION BY job_id, attempt, gpu_uuid, hour) AS sum FROM
  evidence;
CREATE VIEW seqs AS SELECT seq FROM feed UNION SELECT seq FROM audit UNION SELECT seq FROM transfers;
"""
CHECKS = """
gpu_exclusive stay: two pods had one GPU IF taken > started
node_not_overfull level: a pod started where there was no room IF name IS NOT NULL AND taken > total
node_not_overfull fit: a pod got other GPUs than its object asked for IF got IS NOT asked
node_not_overfull node_capacity c: used is not what attempts hold IF used <> (SELECT IFNULL(SUM(p.count), 0)
  FROM placements p JOIN attempts USING (job_id, attempt) WHERE capacity_held AND (p.cluster, p.node,
  p.gpu_class) = (c.cluster, c.node, c.gpu_class))
node_not_overfull node_capacity: more used than there is IF used > total AND NOT EXISTS (SELECT 1 FROM
  findings WHERE code = 'capacity_lowered' AND instr(subject, node))
one_run_per_attempt run: a pod ran twice IF pods > places
one_run_per_attempt pod p: no object was free to run IF object_n IS NULL OR EXISTS (SELECT 1 FROM line WHERE
  name = p.name AND n < p.n AND (suspend OR event IN ('object_suspended', 'object_deleted')))
one_run_per_attempt fit: not claimed IF IFNULL(started < claimed - 2000 OR name <> job_id || '-' || attempt,
  1)
one_run_per_attempt run: began before an earlier attempt was over IF began < earlier
one_run_per_attempt run: recorded as succeeded IF end_reason = 'succeeded' AND good IS NOT all_pods
placement_as_decided fit: a pod got other GPUs than the database decided IF got IS NOT decided
placement_as_decided stay: no such GPU IF (gpu_uuid, node, gpu_class) NOT IN (SELECT gpu_uuid, node, gpu_class
  FROM device)
ledger_equals_journal run: booked is not what was occupied IF settled AND IFNULL(charged - returned + borne,
  0) <> IFNULL((finish - began) * all_gpus * rate, 0)
ledger_equals_journal run: recorded times are not the journal's IF settled AND (first_started IS NOT began OR
  pods AND ended IS NOT finish OR running AND NOT lost)
charge_bounds cut LEFT JOIN run USING (job_id, attempt): a slice has a gap or overlap, or passes an hour or
  what is seen IF before <> starts OR starts / 3600000 <> (ends - 1) / 3600000 OR ends > IFNULL(seen, 0)
charge_bounds cut LEFT JOIN run USING (job_id, attempt): the grant is charged outside its time IF payer =
  'grant' AND true_end > starts AND NOT IFNULL(starts >= full AND true_end <= bound, 0)
charge_bounds slices s LEFT JOIN holds h USING (job_id, attempt): a slice is not at the hold's terms IF
  (s.gpus, s.gpu_class, s.rate_id, s.rate, s.price_krw, s.amount) IS NOT (h.gpus, h.gpu_class, h.rate_id,
  h.rate, h.price_krw, (ends - starts) * h.gpus * h.rate)
charge_bounds cover: the slices are not the occupied time IF IFNULL(begins, began) IS NOT began OR covered <>
  IFNULL(finish - began, 0) OR wrong_ends
charge_bounds cover: the grant pays not its due IF paid <> due AND NOT (stop_reason IS 'abandoned' AND paid =
  0)
charge_bounds pledge: more is charged than held IF charged > amount
hold_once run: no hold of its own IF hold_id <> job_id || ':' || attempt || ':hold' OR rate IS NULL
hold_once pledge: not held once, or released twice IF holds IS NOT 1 OR releases > 1
hold_once pledge: not walltime x GPUs x rate IF amount IS NOT walltime * gpus * rate OR (rate_id, gpu_class,
  rate, price_krw) NOT IN (SELECT id, gpu_class, rate, price_krw FROM rates)
hold_once pledge: resolved early or in part IF resolved AND (state <> 'ended' OR left_held OR settled +
  released <> amount)
hold_once pledge: the attempt is settled and this is not resolved IF done AND NOT resolved
hold_once pledge: transfers add up otherwise IF (amount, settled, released, refunded, platform) IS NOT (took,
  charged, freed, returned, borne)
hold_once moved: a leg is not as its path should have it IF kind <> 'platform' AND job_id IS NOT NULL AND type
  <> 'expire' AND (legs <> path OR d_granted OR (job_id || ':' || attempt || ':hold', account_id) NOT IN
  (SELECT hold_id, account_id FROM hold_accounts) OR d_held <> amount * ((type IN ('hold', 'extend')) - (type
  IN ('settle', 'release'))) OR d_used <> amount * ((type = 'settle') - (type = 'refund')))
balances accounts a: legs add up otherwise IF (granted, held, used) IS NOT (SELECT IFNULL(SUM(d_granted), 0),
  IFNULL(SUM(d_held), 0), IFNULL(SUM(d_used), 0) FROM transfer_legs WHERE account_id = a.id)
balances accounts: beyond its limit IF held + used > granted + overdraft AND kind <> 'treasury' AND kind <>
  'platform'
balances transfers: GPU time from nowhere IF id IN (SELECT id FROM moved WHERE kind NOT IN ('tranche',
  'share') GROUP BY id HAVING SUM(d_granted) <> 0)
transfers transfers: an id twice IF id IN (SELECT id FROM transfers GROUP BY id HAVING COUNT(*) > 1)
transfers transfers: no legs IF id NOT IN (SELECT transfer_id FROM transfer_legs)
transfers transfer_legs: of no transfer, seq or account IF (transfer_id, seq) NOT IN (SELECT id, seq FROM
  transfers) OR account_id NOT IN (SELECT id FROM accounts)
transfers slices: not settled once, as it is IF IFNULL((id, seq, job_id, attempt, starts, ends, gpus, rate_id,
  amount) NOT IN (SELECT slice_id, seq, job_id, attempt, starts, ends, gpus, rate_id, amount FROM transfers
  WHERE type = 'settle' GROUP BY slice_id HAVING COUNT(*) = 1), 1)
transfers transfers: no slice IF type = 'settle' AND IFNULL(slice_id, '') NOT IN (SELECT id FROM slices)
transfers transfers c: over-refunded IF amount < (SELECT SUM(amount) FROM transfers WHERE refund_of = c.id)
transfers transfers r: refunds no charge IF type = 'refund' AND NOT EXISTS (SELECT 1 FROM transfers c WHERE
  c.id = r.refund_of AND type = 'settle' AND (c.job_id, c.attempt) = (r.job_id, r.attempt) AND r.refund_kind >
  '' AND r.amount = (r.ends - r.starts) * (c.amount / (c.ends - c.starts)))
evidence seen: impossible IF busy < 0 OR busy > observed OR observed > 3600000 OR hour % 3600000
evidence seen: of a GPU it was not given IF (job_id, attempt, gpu_uuid, node, gpu_class) NOT IN (SELECT
  job_id, attempt, gpu_uuid, node, gpu_class FROM stay)
evidence seen e: observed longer than it ran IF sum > :tolerance_ms + (SELECT SUM(MAX(0, MIN(until, hour +
  3600000) - MAX(started, hour))) FROM stay s WHERE (s.job_id, s.attempt, s.gpu_uuid) = (e.job_id, e.attempt,
  e.gpu_uuid))
feed feed_head: a seq without a transaction IF seq - oldest <> (SELECT COUNT(*) FROM seqs WHERE seq > oldest)
feed seqs: beyond the head IF seq > (SELECT seq FROM feed_head)
final jobs: not ended IF state <> 'ended'
final attempts: not ended, settled and freed IF state <> 'ended' OR NOT settled OR capacity_held
final holds: not resolved IF NOT resolved
final pod: still running IF ended IS NULL
"""
