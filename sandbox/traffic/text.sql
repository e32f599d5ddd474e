-- New text for one row of any of the three tables.
\set left random(1, :articles)
\set right random(1, :articles)
\set page random(0, :pages - 1)
\set kind random(1, 6)
begin;
\if :kind = 1
with changed as (
    update app.note set body = left(body, 500) || ' Revision ' || nextval('traffic.serial')
    where id = (select id from app.note where id >= (select gen_random_uuid()) order by id limit 1)
    returning 1)
update traffic.done set n = n + (select count(*) from changed)
where run = :run and client = :client_id and kind = 'text';
\elif :kind = 2
with changed as (
    update app.page set body = left(body, 800) || E'\n\nRevision ' || nextval('traffic.serial'), updated_at = clock_timestamp()
    where (site, path) = (select site, path from app.page order by site, path offset :page limit 1)
    returning 1)
update traffic.done set n = n + (select count(*) from changed)
where run = :run and client = :client_id and kind = 'text';
\else
with changed as (
    update app.article as a
    set body = left(a.body, 3000) || E'\n\nRevision ' || nextval('traffic.serial') || ': ' || left(other.body, 300),
        updated_at = clock_timestamp()
    from (select body from app.article where id >= :right order by id limit 1) as other
    where a.id = (select id from app.article where id >= :left order by id limit 1)
    returning 1)
update traffic.done set n = n + (select count(*) from changed)
where run = :run and client = :client_id and kind = 'text';
\endif
\set dice random(1, 10)
\if :dice = 1
select nextval(rolled_back) from traffic.run where run = :run;
rollback;
\else
update traffic.done set n = n + 1 where run = :run and client = :client_id and kind = 'transaction';
commit;
\endif
