-- A key that was deleted or left comes back with another text.
\set left random(1, :articles)
\set kind random(1, 3)
begin;
\if :kind = 1
with taken as (
    delete from traffic.free_page
    where (site, path) = (select site, path from traffic.free_page limit 1 for update skip locked)
    returning site, path),
changed as (
    insert into app.page (site, path, title, body, meta, updated_at)
    select taken.site, taken.path, other.title, 'Back as ' || nextval('traffic.serial') || ': ' || left(other.body, 900),
        '{"words": 0, "draft": true}', clock_timestamp()
    from taken, (select title, body from app.article where id >= :left order by id limit 1) as other
    on conflict do nothing
    returning 1)
update traffic.done set n = n + (select count(*) from changed)
where run = :run and client = :client_id and kind = 'reinsert';
\else
with taken as (
    delete from traffic.free_article
    where id = (select id from traffic.free_article limit 1 for update skip locked)
    returning id),
changed as (
    insert into app.article (id, tenant_id, title, body, lang, tags, is_public, views, price, updated_at)
    select taken.id, other.tenant_id, other.title, 'Back as ' || nextval('traffic.serial') || ': ' || left(other.body, 900),
        'en', other.tags, true, 0, 1.50, clock_timestamp()
    from taken, (select * from app.article where id >= :left order by id limit 1) as other
    on conflict do nothing
    returning 1)
update traffic.done set n = n + (select count(*) from changed)
where run = :run and client = :client_id and kind = 'reinsert';
\endif
\set dice random(1, 10)
\if :dice = 1
select nextval(rolled_back) from traffic.run where run = :run;
rollback;
\else
update traffic.done set n = n + 1 where run = :run and client = :client_id and kind = 'transaction';
commit;
\endif
