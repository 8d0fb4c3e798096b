create index idx_conversations_tenant_visible
on @extschema@.conversations (tenant_id) where visibility = 'tenant';
