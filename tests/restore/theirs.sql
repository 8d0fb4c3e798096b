-- What a user adds to our tables and beside them. @s@ is the schema of the extension.

create schema app;
comment on schema app is 'the user''s own';

alter table @s@.messages add column rating integer not null default 5 check (rating between 0 and 10);
comment on column @s@.messages.rating is 'the user''s own column';
alter table @s@.conversations add column folder text collate "C";
-- A column that came and went: positions differ after a restore, the order does not.
alter table @s@.conversations add column gone text;
alter table @s@.conversations add column mood text default 'calm';
alter table @s@.conversations drop column gone;
alter table @s@.messages alter column content set statistics 500;
alter table @s@.messages alter column model_used set (n_distinct = 12);
alter table @s@.messages alter column parts set storage external;
alter table @s@.messages set (fillfactor = 90);
alter table @s@.messages replica identity full;

alter table @s@.message_chunks add column source text not null default 'model' check (source <> '');
comment on column @s@.message_chunks.source is 'the user''s own column of chunks';
alter table @s@.message_chunks add column gone text;
alter table @s@.message_chunks add column length integer
    generated always as (pg_catalog.octet_length(chunk_content)) stored;
alter table @s@.message_chunks drop column gone;
alter table @s@.message_chunks set (fillfactor = 95, autovacuum_vacuum_threshold = 777, toast.vacuum_truncate = off);
alter table @s@.message_chunks reset (autovacuum_analyze_threshold);
alter table @s@.message_chunks alter column chunk_content set storage external;

create index message_chunks_by_time on @s@.message_chunks (created_at) include (source) where not is_final;
comment on index @s@.message_chunks_by_time is 'the user''s own index of chunks';
create index messages_by_rating on @s@.messages (rating, (lower(model_used))) where rating > 3;
comment on index @s@.messages_by_rating is 'the user''s own index';
alter table @s@.messages cluster on idx_messages_conversation_seq;
create statistics @s@.messages_by_role (dependencies) on role, status from @s@.messages;

create policy auditors_read on @s@.messages for select to restore_auditor using (rating > 4);
comment on policy auditors_read on @s@.messages is 'the user''s own policy';
create policy nobody_deletes_at_night on @s@.conversations as restrictive for delete
using (pg_catalog.now() is not null and id <> '00000000-0000-0000-0000-000000000000');

create policy auditors_read_chunks on @s@.message_chunks for select to restore_auditor using (source = 'model');
create policy chunks_are_short on @s@.message_chunks as restrictive for insert
with check (pg_catalog.octet_length(chunk_content) < 100000);
comment on policy chunks_are_short on @s@.message_chunks is 'the user''s own policy on chunks';

create function app.at_most_ten() returns trigger language plpgsql as $$
begin
    new.rating := least(new.rating, 10);
    return new;
end;
$$;
create trigger rating_is_at_most_ten before insert or update on @s@.messages
for each row execute function app.at_most_ten();
comment on trigger rating_is_at_most_ten on @s@.messages is 'the user''s own trigger';
create function app.small_source() returns trigger language plpgsql as $$
begin
    new.source := pg_catalog.lower(new.source);
    return new;
end;
$$;
create trigger source_is_small before insert on @s@.message_chunks
for each row execute function app.small_source();
comment on trigger source_is_small on @s@.message_chunks is 'the user''s own trigger on chunks';
create trigger switched_off after delete on @s@.conversations
for each row execute function app.at_most_ten();
alter table @s@.conversations disable trigger switched_off;
create trigger on_replicas_too before insert on @s@.users
for each row when (new.name = 'x') execute function app.at_most_ten();
alter table @s@.users enable always trigger on_replicas_too;

create table app.notes (
    id bigserial primary key,
    conversation_id uuid references @s@.conversations (id) on delete cascade,
    message_id uuid references @s@.messages (id),
    speaker @s@.message_role,
    note text
);
comment on table app.notes is 'the user''s own table';
alter table app.notes enable row level security;
create policy notes_read on app.notes using (exists (
    select from @s@.conversations c where c.id = conversation_id
));

create sequence @s@.ticket_numbers increment 7 start 100;
create domain app.stars as integer check (value between 1 and 5);

create view @s@.recent with (security_invoker) as
select c.title, m.content, m.created_at
from @s@.conversations c join @s@.messages m on m.conversation_id = c.id
where m.created_at > '2020-01-01';
create materialized view app.message_counts as
select c.id, c.title, count(m.id) as messages, max(m.created_at) as latest
from @s@.conversations c left join @s@.messages m on m.conversation_id = c.id
group by c.id
with no data;
create unique index message_counts_id on app.message_counts (id);
create materialized view app.never_filled as
select m.role, c.title from @s@.messages m join @s@.conversations c on c.id = m.conversation_id
with no data;

create publication app_pub for table
    @s@.conversations, @s@.messages (id, conversation_id, content), @s@.users where (is_active),
    @s@.message_chunks (message_id, chunk_index, chunk_content)
with (publish = 'insert');

select @s@.grant_access('restore_member', 'member');
select @s@.grant_access('restore_service', 'service');
select @s@.grant_access('restore_monitor', 'monitor');
-- Let in and taken out again.
select @s@.grant_access('restore_former', 'syncer');
select @s@.revoke_access('restore_former');
grant usage on schema @s@, app to restore_auditor;
grant select (id, title, folder), update (folder) on @s@.conversations to restore_auditor;
grant select on @s@.messages to restore_auditor with grant option;
grant select on @s@.recent, app.message_counts to restore_auditor;
grant usage on sequence @s@.ticket_numbers to restore_auditor;
grant execute on function app.at_most_ten() to restore_auditor;
alter default privileges in schema app grant select on tables to restore_auditor;
