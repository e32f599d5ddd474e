-- One row goes, its key noted as free; notes go for good.
\set left random(1, :articles)
\set page random(0, :pages - 1)
\set kind random(1, 5)
begin;
\if :kind = 1
with changed as (
    delete from app.note
    where id = (select id from app.note where id >= (select gen_random_uuid()) order by id limit 1)
    returning 1)
update traffic.done set n = n + (select count(*) from changed)
where run = :run and client = :client_id and kind = 'delete';
\elif :kind = 2
with gone as (
    delete from app.page
    where (site, path) = (select site, path from app.page order by site, path offset :page limit 1)
    returning site, path),
freed as (insert into traffic.free_page select site, path from gone on conflict do nothing)
update traffic.done set n = n + (select count(*) from gone)
where run = :run and client = :client_id and kind = 'delete';
\else
with gone as (
    delete from app.article where id = (select id from app.article where id >= :left order by id limit 1)
    returning id),
freed as (insert into traffic.free_article select id from gone on conflict do nothing)
update traffic.done set n = n + (select count(*) from gone)
where run = :run and client = :client_id and kind = 'delete';
\endif
\set dice random(1, 10)
\if :dice = 1
select nextval(rolled_back) from traffic.run where run = :run;
rollback;
\else
update traffic.done set n = n + 1 where run = :run and client = :client_id and kind = 'transaction';
commit;
\endif
