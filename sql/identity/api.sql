comment on function @extschema@.current_user_id() is
'The users.id of the caller, from claims or settings; null when nobody is signed in.';
comment on function @extschema@.current_tenant_id() is
'The tenant of the caller; null when nobody is signed in.';
comment on function @extschema@.is_tenant_admin() is 'Whether the caller is an admin of his tenant.';
comment on function @extschema@.may_edit_messages() is
'Whether the tenant of the caller lets users edit their messages: features has "edit_messages": true.';
comment on function @extschema@.ensure_user() is
'The users.id of the caller, whose users row is made if it is not there yet.';

create function @extschema@.adopt_dumped_tenant() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
    default_id constant uuid := uuid '00000000-0000-7000-8000-000000000001';
begin
    if exists (select from @extschema@.users u where u.tenant_id = default_id)
    or exists (select from @extschema@.conversations c where c.tenant_id = default_id) then
        return new;
    end if;
    if new.id = default_id then
        delete from @extschema@.tenants t where t.id = default_id;
    else
        update @extschema@.tenants t set slug = t.id where t.id = default_id and t.slug = new.slug;
    end if;
    return new;
end;
$$;
comment on function @extschema@.adopt_dumped_tenant() is
'Trigger: while nobody belongs to the default tenant, it gives way to the one of a dump, and its slug to another.';
