-- No foreign key to users: it would lock the author's row for every message. The trigger that places
-- a message looks at whoever is named.
alter table @extschema@.messages add column author_id uuid;
alter table @extschema@.messages add column edited_at timestamptz;

create table @extschema@.message_revisions (
    message_id uuid not null
    constraint message_revisions_message_exists references @extschema@.messages (id) on delete cascade,
    revision integer not null constraint message_revisions_revision_is_positive check (revision > 0),
    tenant_id uuid not null,
    content text not null,
    parts jsonb,
    edited_by uuid,
    replaced_at timestamptz not null default pg_catalog.now(),
    constraint message_revisions_pkey primary key (message_id, revision)
);
