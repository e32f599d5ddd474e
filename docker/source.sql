-- The example stack's source: a table, what the connector needs, a few rows. Runs once, in an empty database.
CREATE SCHEMA app;
CREATE TABLE app.article (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    title      text NOT NULL,
    body       text NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE PUBLICATION revector_articles FOR TABLE app.article
    WITH (publish = 'insert, update, delete, truncate');
-- The connector's session prints floats and bytea by these settings of its role.
ALTER ROLE revector SET extra_float_digits = 1;
ALTER ROLE revector SET bytea_output = 'hex';
INSERT INTO app.article (title, body) VALUES
    ('Roses', 'Roses are planted in autumn, while the soil is still warm.'),
    ('Pruning', 'Cut back to an outward-facing bud in late winter.'),
    ('Compost', 'Turn the heap every few weeks to let air in.');
