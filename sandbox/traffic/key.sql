-- Another key for one row, the old key noted as free: an article gets a fresh number, a page another path.
\set left random(1, :articles)
\set page random(0, :pages - 1)
\set kind random(1, 2)
begin;
\if :kind = 1
with old as (select id from app.article where id >= :left order by id limit 1 for update),
freed as (insert into traffic.free_article select id from old on conflict do nothing),
changed as (
    update app.article as a set id = nextval(pg_get_serial_sequence('app.article', 'id'))
    from old where a.id = old.id
    returning 1)
update traffic.done set n = n + (select count(*) from changed)
where run = :run and client = :client_id and kind = 'key';
\else
with old as (select site, path from app.page order by site, path offset :page limit 1 for update),
freed as (insert into traffic.free_page select site, path from old on conflict do nothing),
changed as (
    update app.page as p set path = regexp_replace(p.path, '~.*$', '') || '~' || nextval('traffic.serial')
    from old where p.site = old.site and p.path = old.path
    returning 1)
update traffic.done set n = n + (select count(*) from changed)
where run = :run and client = :client_id and kind = 'key';
\endif
\set dice random(1, 10)
\if :dice = 1
select nextval(rolled_back) from traffic.run where run = :run;
rollback;
\else
update traffic.done set n = n + 1 where run = :run and client = :client_id and kind = 'transaction';
commit;
\endif
