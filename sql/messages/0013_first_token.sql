alter table @extschema@.messages add column first_token_ms integer
constraint messages_first_token_is_not_negative check (first_token_ms >= 0);

-- Figures of a period are those of one stretch of an index: what they count, and what the policy asks about,
-- is in it. Latency alone reads the rows.
create index idx_messages_tenant_created on @extschema@.messages (tenant_id, created_at)
include (conversation_id, role, author_id);
create index idx_messages_tenant_answers on @extschema@.messages (tenant_id, created_at)
include (conversation_id, id) where role = 'assistant';

-- An index answers alone where vacuum has been. It comes by default when the table has grown by a fifth, which
-- is the last two months of a year.
alter table @extschema@.messages set (autovacuum_vacuum_insert_scale_factor = 0.01);
