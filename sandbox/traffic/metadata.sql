-- Everything but the text (filter column and visibility too), of up to five articles at once, a page or a note.
\set left random(1, :articles)
\set page random(0, :pages - 1)
\set amount random(1, 99999)
\set kind random(1, 6)
begin;
\if :kind = 1
with changed as (
    update app.note set pinned = not pinned
    where id = (select id from app.note where id >= (select gen_random_uuid()) order by id limit 1)
    returning 1)
update traffic.done set n = n + (select count(*) from changed)
where run = :run and client = :client_id and kind = 'metadata';
\elif :kind = 2
with changed as (
    update app.page set meta = jsonb_set(meta, '{words}', to_jsonb(:amount)), updated_at = clock_timestamp()
    where (site, path) = (select site, path from app.page order by site, path offset :page limit 1)
    returning 1)
update traffic.done set n = n + (select count(*) from changed)
where run = :run and client = :client_id and kind = 'metadata';
\else
with changed as (
    update app.article set views = views + 1, price = :amount / 100.0, is_public = :amount % 10 > 0,
        tenant_id = case when :amount % 7 = 0 then tenant_id % 20 + 1 else tenant_id end
    where id in (select id from app.article where id >= :left order by id limit 1 + :amount % 5)
    returning 1)
update traffic.done set n = n + (select count(*) from changed)
where run = :run and client = :client_id and kind = 'metadata';
\endif
\set dice random(1, 10)
\if :dice = 1
select nextval(rolled_back) from traffic.run where run = :run;
rollback;
\else
update traffic.done set n = n + 1 where run = :run and client = :client_id and kind = 'transaction';
commit;
\endif
