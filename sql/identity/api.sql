comment on function @extschema@.current_user_id() is
'The users.id of the caller, from claims or settings; null when nobody is signed in.';
comment on function @extschema@.current_tenant_id() is
'The tenant of the caller; null when nobody is signed in.';
comment on function @extschema@.is_tenant_admin() is 'Whether the caller is an admin of his tenant.';
comment on function @extschema@.ensure_user() is
'The users.id of the caller, whose users row is made if it is not there yet.';

create function @extschema@.adopt_dumped_tenant() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
    delete from @extschema@.tenants t
    where t.id = new.id
    and not exists (select from @extschema@.users u where u.tenant_id = t.id)
    and not exists (select from @extschema@.conversations c where c.tenant_id = t.id);
    return new;
end;
$$;
comment on function @extschema@.adopt_dumped_tenant() is
'Trigger: lets a dump of data alone bring its default tenant while nobody belongs to it.';
