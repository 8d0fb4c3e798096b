alter table @extschema@.messages reset (autovacuum_vacuum_insert_scale_factor);
drop index @extschema@.idx_messages_tenant_answers;
drop index @extschema@.idx_messages_tenant_created;
alter table @extschema@.messages drop column first_token_ms;
