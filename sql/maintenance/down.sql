-- They read the table, and go with no migration of their own.
drop view if exists @extschema@.stats;
drop view if exists @extschema@.stats_tables;
drop view if exists @extschema@.stats_indexes;
drop index @extschema@.idx_conversations_deleted;
drop index @extschema@.idx_conversations_expires;
drop table @extschema@.maintenance_runs;
