-- Comparisons: what is compared, how far it has come, what it found. Rows that are to be embedded afresh.

-- One comparison. Its figures are final where it has ended. mark: the newest journal entry when it began. Whoever
-- writes what belongs to it holds its row FOR KEY SHARE, whoever ends it FOR UPDATE; so nothing comes after its end.
CREATE TABLE revector.comparison (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    migration   text COLLATE "C" NOT NULL,
    state       text COLLATE "C" NOT NULL DEFAULT 'running'
                CHECK (state IN ('running', 'clean', 'differs', 'abandoned')),
    generations integer[] NOT NULL,
    mark        bigint NOT NULL,
    faults      text[] NOT NULL DEFAULT '{}',
    began_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    began_lsn   bigint NOT NULL,
    ended_at    timestamptz,
    ended_lsn   bigint,
    figures     jsonb NOT NULL DEFAULT '{}',
    owner       text,
    lease_until timestamptz
);
CREATE UNIQUE INDEX comparison_running ON revector.comparison (migration) WHERE state = 'running';

-- What is left to compare: a range of keys at the source, or of row ids.
CREATE TABLE revector.comparison_scan (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    comparison_id bigint NOT NULL,
    side          text COLLATE "C" NOT NULL CHECK (side IN ('source', 'replica', 'chunks')),
    table_id      integer NOT NULL,
    generation_id integer,
    lower_key     text[],
    upper_key     text[],
    cursor_key    text[],
    rows          bigint NOT NULL DEFAULT 0,
    chunks        bigint NOT NULL DEFAULT 0,
    is_done       boolean NOT NULL DEFAULT false
);
CREATE INDEX comparison_scan_of ON revector.comparison_scan (comparison_id, id);

-- Keys that differed at the first look, and are to be looked at again.
CREATE TABLE revector.comparison_suspect (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    comparison_id bigint NOT NULL,
    table_id      integer NOT NULL,
    generation_id integer,
    key           text[],
    row_id        bigint
);
CREATE INDEX comparison_suspect_of ON revector.comparison_suspect (comparison_id, id);

-- A difference. place: sha256 of kind and place, which tells a key of any length whether it was recorded before.
CREATE TABLE revector.comparison_finding (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    comparison_id bigint NOT NULL,
    kind          text COLLATE "C" NOT NULL,
    table_id      integer NOT NULL,
    generation_id integer,
    key           text[],
    row_id        bigint,
    n             integer,
    place         bytea NOT NULL,
    repaired_at   timestamptz,
    UNIQUE (comparison_id, place)
);
CREATE INDEX comparison_finding_of ON revector.comparison_finding (comparison_id, id);

-- The beginnings of the vectors that were compared: equal ones of different texts are looked at.
CREATE TABLE revector.comparison_head (
    comparison_id bigint NOT NULL,
    generation_id integer NOT NULL,
    table_id      integer NOT NULL,
    row_id        bigint NOT NULL,
    n             integer NOT NULL,
    head          bytea NOT NULL,
    digest        bytea NOT NULL
);
CREATE INDEX comparison_head_of ON revector.comparison_head (comparison_id, generation_id);

-- Where set, the row's stored vectors do not count for a claim of this seq or a later one: it embeds every chunk again.
ALTER TABLE revector.work ADD COLUMN afresh_seq bigint;
