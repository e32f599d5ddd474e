-- A new row, its text made of two others and a number of its own: an article, or (one in four) a note.
\set left random(1, :articles)
\set right random(1, :articles)
\set kind random(1, 4)
begin;
\if :kind = 1
with changed as (
    insert into app.note (id, body, author, pinned, written_on)
    select gen_random_uuid(), 'Note ' || nextval('traffic.serial') || E'\n\n' || left(body, 600), 'writer', false, current_date
    from (select body from app.article where id >= :left order by id limit 1) as other
    returning 1)
update traffic.done set n = n + (select count(*) from changed)
where run = :run and client = :client_id and kind = 'insert';
\else
with changed as (
    insert into app.article (tenant_id, title, body, lang, tags, is_public, views, price, updated_at)
    select l.tenant_id, l.title || ', continued', left(l.body, 700) || E'\n\n' || left(r.body, 700) || E'\n\nWritten as ' || nextval('traffic.serial'),
        'en', l.tags, r.is_public, 0, l.price, clock_timestamp()
    from (select * from app.article where id >= :left order by id limit 1) as l,
        (select * from app.article where id >= :right order by id limit 1) as r
    returning 1)
update traffic.done set n = n + (select count(*) from changed)
where run = :run and client = :client_id and kind = 'insert';
\endif
\set dice random(1, 10)
\if :dice = 1
select nextval(rolled_back) from traffic.run where run = :run;
rollback;
\else
update traffic.done set n = n + 1 where run = :run and client = :client_id and kind = 'transaction';
commit;
\endif
