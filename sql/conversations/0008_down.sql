drop index @extschema@.idx_conversations_tenant_visible;
