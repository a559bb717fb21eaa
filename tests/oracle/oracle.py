"""Judge a run of the hub from outside: the cluster's journal against the database (docs/oracle.md).

It shares no code with what it judges. Both are copied into one SQLite in memory, names without their units (times
are ms, amounts GPU-us). FACTS: what happened. CHECKS: what must not be, `rule table: complaint IF condition`."""

import argparse
import re
import sqlite3
from pathlib import Path

TABLES = """accounts attempts audit clusters evidence feed feed_head findings grants hold_accounts holds jobs
    node_capacity placements rates slices transfer_legs transfers"""
FACTS = """
CREATE TABLE line AS SELECT body->>'n' AS n, body->>'t' AS t, body->>'event' AS event, body->>'name' AS name,
  body->>'job_id' AS job_id, body->>'attempt' AS attempt, body->>'pod_index' AS pod_index, body->>'node' AS node,
  body->>'gpu_class' AS gpu_class, body->>'count' AS count, body FROM raw;
CREATE INDEX i1 ON line (name, event, pod_index); CREATE INDEX i2 ON transfers (refund_of);
CREATE TABLE device AS SELECT value->>'gpu_uuid', node, value->>'gpu_class' AS gpu_class
  FROM line, json_each(body, '$.gpus') WHERE event = 'node_added';
CREATE TABLE pod AS SELECT s.*, e.t AS ended, e.body->>'exit_code' IS 0 AS good, o.n AS object_n, claimed,
  IIF(e.body->>'reason' = 'node_lost', e.t, NULL) AS died, json_array_length(s.body, '$.gpu_uuids') AS gpus,
  json_array_length(o.body, '$.pods') AS all_pods, (SELECT SUM(value->>'count') FROM json_each(o.body, '$.pods')) AS
  all_gpus, json_array(json_array_length(s.body, '$.gpu_uuids'), s.gpu_class, s.node) AS got, (SELECT
  json_array(value->>'count', value->>'gpu_class', value->>'node') FROM json_each(o.body, '$.pods') WHERE
  value->>'index' = s.pod_index) AS asked, json_array(d.gpus, d.gpu_class, d.node) AS decided FROM line s LEFT JOIN line
  e ON (e.event, e.name, e.pod_index) = ('pod_ended', s.name, s.pod_index) LEFT JOIN line o ON (o.event, o.name) =
  ('object_created', s.name) LEFT JOIN placements d ON (d.job_id, d.attempt, d.pod_index) = (s.job_id, s.attempt,
  s.pod_index) LEFT JOIN attempts a ON (a.job_id, a.attempt) = (s.job_id, s.attempt) WHERE s.event = 'pod_started';
CREATE TABLE stay AS SELECT pod.*, value AS gpu_uuid, IFNULL(ended, 9e18) AS until, MAX(IFNULL(ended, 9e18)) OVER
  (PARTITION BY value ORDER BY t, n ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS taken
  FROM pod, json_each(body, '$.gpu_uuids');
CREATE INDEX i3 ON hold_accounts (hold_id); CREATE INDEX i4 ON stay (job_id, attempt, gpu_uuid);
CREATE VIEW level AS SELECT *, SUM(d) OVER (PARTITION BY node, gpu_class ORDER BY t, d > 0, n) AS taken FROM (
  SELECT node, gpu_class, n, t, gpus AS d, name FROM pod UNION ALL
  SELECT node, gpu_class, n, ended, -gpus, NULL FROM pod WHERE ended UNION ALL SELECT node, gpu_class, n, t, count
  - LAG(count, 1, 0) OVER (PARTITION BY node, gpu_class ORDER BY n), NULL FROM line WHERE event = 'foreign_set')
  JOIN (SELECT node, gpu_class, COUNT(*) AS total FROM device GROUP BY 1, 2) USING (node, gpu_class);
CREATE TABLE moved AS SELECT t.*, l.*, kind, SUM(kind <> 'platform') OVER (PARTITION BY t.id) AS legs,
  account_id IS (SELECT g.account_id FROM grants g WHERE g.id = h.grant_id) AS own,
  (SELECT COUNT(*) FROM hold_accounts WHERE hold_id = h.id) AS path FROM transfers t JOIN transfer_legs l
  ON transfer_id = t.id JOIN accounts a ON a.id = account_id LEFT JOIN holds h USING (job_id, attempt);
CREATE TABLE booked AS SELECT job_id, attempt, SUM(own * (type = 'hold')) AS holds, SUM(own * d_held) AS left_held,
  SUM(own * (type = 'release')) AS releases, SUM(own * MAX(d_held, 0)) AS took, SUM(own * (type = 'extend')) AS extends,
  SUM(own * MAX(d_used, 0)) AS charged, SUM(own * (type = 'release') * -d_held) AS freed,
  SUM(own * MAX(-d_used, 0)) AS returned, SUM((kind = 'platform') * d_used) AS borne FROM moved GROUP BY 1, 2;
CREATE TABLE run AS SELECT *, IIF(pods = all_pods, MIN(full + walltime, IFNULL(stop + stop_grace, 9e18), IIF(settled,
  MIN(finish, ended), 9e18)), NULL) AS bound, MAX(IIF(lost, 0, IIF(running, 9e18, gone))) OVER (PARTITION BY job_id
  ORDER BY attempt ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS earlier FROM (SELECT *, IIF(lost AND
  capacity_held, ended, gone) AS finish, (SELECT observed_through FROM clusters WHERE id = cluster) AS seen FROM
  attempts LEFT JOIN ( SELECT job_id, attempt, MIN(t) AS began, MAX(t) AS full, MAX(ended) AS gone, SUM(good) AS good,
  MIN(died) AS died, MAX(died) AS died_last, COUNT(*) AS pods, COUNT(DISTINCT pod_index) AS places, COUNT(*) -
  COUNT(ended) AS running, MAX(all_pods) AS all_pods, MAX(all_gpus) AS all_gpus FROM pod GROUP BY 1, 2) USING (job_id,
  attempt) LEFT JOIN booked USING (job_id, attempt) LEFT JOIN (SELECT id AS hold_id, rate FROM holds) USING (hold_id));
CREATE TABLE cut AS SELECT *, LAG(ends, 1, starts) OVER (PARTITION BY job_id, attempt ORDER BY starts) AS before,
  ends - starts - IFNULL(back / (gpus * s.rate), 0) AS kept FROM slices s LEFT JOIN run USING (job_id, attempt)
  LEFT JOIN (SELECT c.slice_id AS id, SUM(r.amount) AS back FROM transfers r JOIN transfers c ON c.id = r.refund_of
  WHERE r.refund_kind = 'correction' GROUP BY 1) USING (id);
CREATE VIEW cover AS SELECT *, MIN(starts) AS begins, SUM(kept) AS covered, SUM((payer = 'grant') * kept) AS paid,
  MAX(0, IFNULL(bound - full, 0)) AS due FROM cut WHERE settled GROUP BY job_id, attempt;
CREATE VIEW pledge AS SELECT h.*, r.settled AS done, r.* FROM holds h LEFT JOIN run r ON
  (hold_id, r.job_id, r.attempt, r.grant_id) = (h.id, h.job_id, h.attempt, h.grant_id);
CREATE VIEW seen AS SELECT *, SUM(observed) AS total FROM evidence GROUP BY job_id, attempt, gpu_uuid, hour;
"""
CHECKS = """
gpu_exclusive stay: two pods had one GPU IF taken > t
node_not_overfull level: a pod started where there was no room IF name IS NOT NULL AND taken > total
node_not_overfull pod: it got other GPUs than its object asked for IF got IS NOT asked
node_not_overfull node_capacity NATURAL LEFT JOIN (SELECT cluster, node, gpu_class, SUM(gpus) AS held FROM attempts
  NATURAL JOIN placements WHERE capacity_held GROUP BY 1, 2, 3): held otherwise IF used <> IFNULL(held, 0)
node_not_overfull node_capacity: more used than there is IF used > total AND NOT EXISTS
  (SELECT 1 FROM findings WHERE code = 'capacity_lowered' AND instr(subject, node))
one_run_per_attempt run: a pod ran twice, or an earlier attempt still ran IF pods > places OR began < earlier
one_run_per_attempt run: recorded as succeeded IF end_reason = 'succeeded' AND good IS NOT all_pods
one_run_per_attempt pod p: no object was free to run IF object_n IS NULL OR EXISTS (SELECT 1 FROM line WHERE
  name = p.name AND n < p.n AND (body->>'suspend' OR event IN ('object_suspended', 'object_deleted')))
one_run_per_attempt pod: not claimed IF IFNULL(t + 2000 < claimed OR name <> job_id || '-' || attempt, 1)
placement_as_decided pod: it got other GPUs than the database decided IF got IS NOT decided
placement_as_decided placements p LEFT JOIN holds h USING (job_id, attempt) JOIN jobs j ON j.id = job_id: not its class
  IF p.gpu_class IS NOT h.gpu_class OR NOT INSTR(json_array(j.gpu_class) || fallback_classes, json_quote(p.gpu_class))
placement_as_decided stay: no such GPU there IF (gpu_uuid, node, gpu_class) NOT IN device
ledger_equals_journal run: booked is not what was occupied IF settled
  AND IFNULL(charged - returned + borne, 0) <> IFNULL((finish - began) * all_gpus * rate, 0)
ledger_equals_journal run: recorded times are not the journal's IF settled AND (first_started IS NOT began
  OR pods AND NOT IFNULL(ended = finish OR lost AND ended IN (full, died, died_last), 0) OR running AND NOT lost)
charge_bounds cut: a slice leaves a gap, overlaps, passes an hour mark or what was seen
  IF before <> starts OR starts / 3600000 <> (ends - 1) / 3600000 OR ends > IFNULL(seen, 0)
charge_bounds cut: charged outside its time IF kept AND (settled AND starts + kept > finish
  OR payer = 'grant' AND NOT IFNULL(starts >= full AND starts + kept <= bound, 0))
charge_bounds slices s LEFT JOIN holds h USING (job_id, attempt): not at its hold's terms IF
  (s.rate_id, s.price_krw, s.amount) IS NOT (h.rate_id, h.price_krw, (ends - starts) * h.gpus * h.rate)
charge_bounds cover: not the occupied time IF begins IS NOT began OR covered IS NOT finish - began
charge_bounds cover: the grant pays not its due IF paid <> due AND (paid OR stop_reason IS NOT 'abandoned')
charge_bounds pledge: more is charged than held IF charged > amount
hold_once run: no hold of its own IF hold_id <> job_id || ':' || attempt || ':hold' OR rate IS NULL
hold_once pledge: held, extended or released otherwise IF holds IS NOT 1 OR releases > 1 OR extends <> extensions
hold_once pledge: not walltime x GPUs x rate IF amount IS NOT walltime * gpus * rate OR (rate_id, gpu_class, rate,
  price_krw) NOT IN (SELECT id, gpu_class, rate, price_krw FROM rates)
hold_once pledge: resolved too early or too late IF done AND NOT resolved OR resolved AND (state <> 'ended'
  OR left_held OR settled + released <> amount)
hold_once pledge: transfers add up otherwise IF (amount, settled, released, refunded, platform)
  IS NOT (took, charged, freed, returned, borne)
hold_once moved: not as its path should have it IF kind <> 'platform' AND job_id IS NOT NULL AND type <> 'expire'
  AND (legs <> path OR (job_id || ':' || attempt || ':hold', account_id) NOT IN hold_accounts OR d_granted
  OR d_held <> amount * ((type IN ('hold', 'extend')) - (type IN ('settle', 'release')))
  OR d_used <> amount * ((type = 'settle') - (type = 'refund')))
balances accounts a: legs add up otherwise IF (granted, held, used) IS NOT (SELECT IFNULL(SUM(d_granted), 0),
  IFNULL(SUM(d_held), 0), IFNULL(SUM(d_used), 0) FROM transfer_legs WHERE account_id = a.id)
balances accounts: overdrawn IF held + used > granted + overdraft AND kind NOT IN ('treasury', 'platform')
balances transfers: GPU time from nowhere IF id IN (SELECT id FROM moved WHERE kind NOT IN ('tranche', 'share')
  GROUP BY id HAVING SUM(d_granted) <> 0)
balances moved: hours expire otherwise IF type = 'expire' AND kind = 'program' OR kind = 'expired' AND (d_held OR d_used
  OR d_granted <> amount * ((type = 'expire') - (type = 'transfer')))
transfers transfers: no legs, or not the only one of its id IF id NOT IN (SELECT transfer_id FROM transfer_legs)
  OR id IN (SELECT id FROM transfers GROUP BY id HAVING COUNT(*) > 1)
transfers transfer_legs: of no transfer, seq or account IF (transfer_id, seq) NOT IN (SELECT id, seq FROM transfers)
  OR account_id NOT IN (SELECT id FROM accounts)
transfers slices: not settled once, as it is IF IFNULL((id, seq, job_id, attempt, starts, ends, gpus, rate_id, amount)
  NOT IN (SELECT slice_id, seq, job_id, attempt, starts, ends, gpus, rate_id, amount FROM transfers
  WHERE type = 'settle' GROUP BY slice_id HAVING COUNT(*) = 1), 1)
transfers transfers: of no slice or charge IF type = 'settle' AND IFNULL(slice_id, '') NOT IN (SELECT id
  FROM slices) OR type = 'refund' AND IFNULL(refund_of, '') NOT IN (SELECT id FROM transfers WHERE type = 'settle')
transfers transfers c: over-refunded IF amount < (SELECT SUM(amount) FROM transfers WHERE refund_of = c.id)
evidence evidence: impossible, or not its GPU IF busy < 0 OR busy > observed OR observed > 3600000 OR hour % 3600000 OR
  (job_id, attempt, gpu_uuid, node) NOT IN (SELECT job_id, attempt, gpu_uuid, node FROM stay)
evidence seen e: longer than it ran IF total > :tolerance_ms + (SELECT SUM(MAX(0, MIN(until, hour + 3600000) - MAX(t,
  hour))) FROM stay WHERE (job_id, attempt, gpu_uuid) = (e.job_id, e.attempt, e.gpu_uuid))
feed feed_head: a seq is missing IF (seq, seq - oldest) IS NOT (SELECT IFNULL(MAX(s), oldest), COUNT(*) FROM
  (SELECT seq s FROM feed UNION SELECT seq FROM audit UNION SELECT seq FROM transfers) WHERE s > oldest)
final jobs: not ended IF state <> 'ended'
final pledge: still open IF state <> 'ended' OR NOT done OR NOT resolved OR capacity_held
final pod: still running IF ended IS NULL
"""


def main() -> int:
    """Print each violation and the verdict. 0: there is none; 1: there are; 2: this cannot be judged."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database", required=True)
    parser.add_argument("--journal", required=True)
    parser.add_argument("--final", action="store_true")
    parser.add_argument("--tolerance-ms", type=int, default=0)
    options = parser.parse_args()
    try:
        world = load(options.database, options.journal)
    except Exception as trouble:  # whatever a database's driver raises
        print("oracle: cannot judge:", *str(trouble).split())
        return 2
    found = violations(world, options.final, options.tolerance_ms)
    sizes = [len([*world.execute(f"SELECT 1 FROM {x}")]) for x in ("attempts", "pod", "transfers", "line")]
    verdict = f"{len(found)} violations" if found else "ok ({} attempts, {} pods, {} transfers, {} events)"
    print(*found, "oracle: " + verdict.format(*sizes), sep="\n")
    return 1 if found else 0


def judge(database: str, journal: str, final: bool = False, tolerance_ms: int = 0) -> list[str]:
    """Every violation as one line."""
    return violations(load(database, journal), final, tolerance_ms)


def violations(world: sqlite3.Connection, final: bool, tolerance_ms: int, checks: str = CHECKS) -> list[str]:
    found = []
    for check in re.split(r"\n(?=\w)", checks.strip()):
        rule, table, says, condition = re.fullmatch(r"(\w+) (.+?): (.+?)\s+IF\s+(.+)", check, re.S).groups()
        query = f"SELECT * FROM {table} WHERE ({condition}) AND (:final OR '{rule}' <> 'final')"
        for row in world.execute(query, {"tolerance_ms": tolerance_ms, "final": final}):
            names = [*row.keys()[:4], *re.findall(r"\w+", condition)]
            numbers = {name: value for name, value in dict(row).items() if name in names}
            found.append(f"{rule}: {says}: {numbers}")
    return found


def load(database: str, journal: str) -> sqlite3.Connection:
    """Both in one SQLite in memory, the journal last: it must know whatever the database knows."""
    world = sqlite3.connect(":memory:")
    world.row_factory = sqlite3.Row
    if database.startswith("postgresql"):
        import psycopg

        source = psycopg.connect(database.replace("+psycopg", ""))
        source.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    else:
        path = Path(database.removeprefix("sqlite:///")).absolute()
        source = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)
        source.execute("BEGIN")
    for table in TABLES.split():
        rows = source.execute(f"SELECT * FROM {table}")
        names = [re.sub("(_at)?_ms$|_gpu_us$|(?<=e)_thousandths$", "", name) for name, *_ in rows.description]
        world.execute(f"CREATE TABLE {table} ({', '.join(names)})")
        world.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * len(names))})", rows)
    source.close()
    world.execute("CREATE TABLE raw (body)")
    *lines, _torn = Path(journal).read_bytes().decode(errors="replace").split("\n")
    world.executemany("INSERT INTO raw VALUES (?)", zip(lines))
    for (n,) in world.execute("SELECT rowid FROM raw WHERE IIF(json_valid(body),body->>'n',0) IS NOT rowid"):
        raise ValueError(f"journal line {n} cannot be read")
    world.executescript(FACTS)
    return world


if __name__ == "__main__":
    raise SystemExit(main())
