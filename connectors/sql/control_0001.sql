-- The control tables of all migrations of this database. DESIGN: state in the target.
-- No foreign keys: rows are written by our own statements, and a foreign key would lock what nobody meant to lock.

CREATE SCHEMA revector;
COMMENT ON SCHEMA revector IS 'revector: control tables';

CREATE TABLE revector.schema_version (
    version    integer PRIMARY KEY,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- What is fixed at the start. Every transaction that writes replica rows holds this row FOR SHARE, adding a generation
-- holds it FOR UPDATE; so whatever changes every second lives in tables of its own, or it would wait for all of them.
CREATE TABLE revector.migration (
    name       text COLLATE "C" PRIMARY KEY,
    epoch      integer NOT NULL DEFAULT 0,
    started_at timestamptz,
    evidence   jsonb NOT NULL DEFAULT '{}',
    source     jsonb,
    feed       jsonb,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Who may apply windows. number rises at every takeover and is never reset.
CREATE TABLE revector.lease (
    migration text COLLATE "C" PRIMARY KEY,
    number    integer NOT NULL DEFAULT 0,
    owner     text,
    until     timestamptz
);

-- What the applied windows said of the log itself.
CREATE TABLE revector.continuity (
    migration  text COLLATE "C" PRIMARY KEY,
    run_ids    text[] NOT NULL DEFAULT '{}',
    pulse_seen bigint NOT NULL DEFAULT 0
);

CREATE TABLE revector.pulse (
    migration text COLLATE "C" PRIMARY KEY,
    sent      bigint NOT NULL DEFAULT 0
);

CREATE TABLE revector.observation (
    migration   text COLLATE "C" PRIMARY KEY,
    observed    jsonb,
    observed_at timestamptz
);

-- Orders to running processes: halted says why, settings holds pause and limits.
CREATE TABLE revector.control (
    migration text COLLATE "C" PRIMARY KEY,
    halted    jsonb,
    settings  jsonb NOT NULL DEFAULT '{}'
);

CREATE TABLE revector.source_table (
    id             integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    migration      text COLLATE "C" NOT NULL,
    alias          text COLLATE "C" NOT NULL,
    definition     jsonb NOT NULL,
    fingerprint    text,
    floor          bigint NOT NULL DEFAULT 0,
    trunc_epoch    integer,
    trunc_commit   bigint,
    trunc_lsn      bigint,
    truncate_count bigint NOT NULL DEFAULT 0,
    planned_at     timestamptz,
    UNIQUE (migration, alias)
);

CREATE TABLE revector.backfill_range (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    table_id     integer NOT NULL,
    number       integer NOT NULL,
    lower_key    text[],
    upper_key    text[],
    cursor_key   text[],
    batches      bigint NOT NULL DEFAULT 0,
    rows_read    bigint NOT NULL DEFAULT 0,
    rows_written bigint NOT NULL DEFAULT 0,
    takeovers    integer NOT NULL DEFAULT 0,
    owner        text,
    lease_until  timestamptz,
    started_at   timestamptz,
    completed_at timestamptz,
    UNIQUE (table_id, number)
);

CREATE TABLE revector.checkpoint (
    migration    text COLLATE "C" NOT NULL,
    topic        text COLLATE "C" NOT NULL,
    partition    integer NOT NULL,
    next_offset  bigint NOT NULL,
    lease_number integer NOT NULL,
    applied_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (migration, topic, partition)
);

CREATE TABLE revector.generation (
    id             integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    migration      text COLLATE "C" NOT NULL,
    name           text COLLATE "C" NOT NULL,
    contract       jsonb NOT NULL,
    contract_id    text NOT NULL,
    phase          text NOT NULL DEFAULT 'loading',
    swept          boolean NOT NULL DEFAULT false,
    fed            boolean NOT NULL DEFAULT true,
    index_state    jsonb NOT NULL DEFAULT '{}',
    rows_embedded  bigint NOT NULL DEFAULT 0,
    rows_refused   bigint NOT NULL DEFAULT 0,
    tokens         bigint NOT NULL DEFAULT 0,
    tokens_avoided bigint NOT NULL DEFAULT 0,
    created_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    UNIQUE (migration, name)
);

-- CACHE 1: a cached block would be handed out of time order between sessions.
CREATE SEQUENCE revector.work_seq AS bigint CACHE 1 NO CYCLE;

-- Rows that a generation must (re-)embed. A queue: rows come and go, so it is vacuumed early, and room is left on each
-- page so that claiming, which touches no indexed column, stays on it.
CREATE TABLE revector.work (
    generation_id integer NOT NULL,
    table_id      integer NOT NULL,
    row_id        bigint NOT NULL,
    oldest_seq    bigint NOT NULL,
    newest_seq    bigint NOT NULL,
    changed_at    timestamptz NOT NULL,
    newest_at     timestamptz NOT NULL,
    claimed_until timestamptz,
    attempts      integer NOT NULL DEFAULT 0,
    priority      smallint NOT NULL,
    state         text COLLATE "C" NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'refused', 'accepted')),
    claimed_by    text,
    reason        text,
    PRIMARY KEY (generation_id, table_id, row_id)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.05,
        autovacuum_analyze_scale_factor = 0.05);

-- Serves the claim: live before backfill, then oldest.
CREATE INDEX work_claim ON revector.work (generation_id, table_id, priority, oldest_seq) WHERE state = 'waiting';
-- Serves the proof and freshness: what is owed up to a seq.
CREATE INDEX work_owed ON revector.work (generation_id, oldest_seq) WHERE state <> 'accepted';

CREATE TABLE revector.journal (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    migration  text COLLATE "C" NOT NULL,
    kind       text NOT NULL,
    event      text NOT NULL,
    detail     jsonb NOT NULL DEFAULT '{}',
    at         timestamptz NOT NULL DEFAULT clock_timestamp(),
    closed_at  timestamptz
);
CREATE INDEX journal_open_breaks ON revector.journal (migration, id) WHERE kind = 'break' AND closed_at IS NULL;

CREATE TABLE revector.certificate (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    migration     text COLLATE "C" NOT NULL,
    generation_id integer NOT NULL,
    document      jsonb NOT NULL,
    digest        text NOT NULL,
    at            timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Which generation readers follow.
CREATE TABLE revector.route (
    migration     text COLLATE "C" PRIMARY KEY,
    generation_id integer,
    changed_at    timestamptz NOT NULL DEFAULT clock_timestamp()
);
