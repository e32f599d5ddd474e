-- Generations that are added later, budgets that processes share, entries that operators look at.

ALTER TABLE revector.generation
    ADD COLUMN sweep        jsonb NOT NULL DEFAULT '{}', -- table id -> last row_id handed out
    ADD COLUMN canary       jsonb,
    ADD COLUMN forecast     jsonb,
    ADD COLUMN rows_blank   bigint NOT NULL DEFAULT 0,
    ADD COLUMN requests     bigint NOT NULL DEFAULT 0;

ALTER TABLE revector.work ADD COLUMN refused_at timestamptz;

-- Serves `quarantine`: the few entries that do not wait.
CREATE INDEX work_quarantine ON revector.work (generation_id, table_id, state, row_id) WHERE state <> 'waiting';

-- The instants from which the next request and the next token of a generation's provider may be sent (a reservation
-- moves them), and until when the provider asked to be left alone. By the target's clock. With the rates, a minute, by
-- which the last reservation moved them.
CREATE TABLE revector.budget (
    generation_id integer PRIMARY KEY,
    requests_at   timestamptz NOT NULL DEFAULT '-infinity',
    tokens_at     timestamptz NOT NULL DEFAULT '-infinity',
    held_until    timestamptz NOT NULL DEFAULT '-infinity',
    request_rate  integer,
    token_rate    integer
);

-- A halt by the role that recorded it: of the stream, the backfill, the embedders of each generation.
UPDATE revector.control SET halted = jsonb_build_object(halted->>'role', halted) WHERE halted IS NOT NULL;
