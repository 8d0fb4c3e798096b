create function @extschema@.make_rate_state() returns trigger
language c as 'MODULE_PATHNAME', 'make_rate_state';
comment on function @extschema@.make_rate_state() is
'Trigger: gives a new tenant the row that its requests are drawn on, which is there before the first of them.';

create function @extschema@.check_rate_limit(
    cost integer default 1,
    tenant_id uuid default null,
    out allowed boolean,
    out remaining integer,
    out retry_after integer
)
language c as 'MODULE_PATHNAME', 'check_rate_limit';
comment on function @extschema@.check_rate_limit(integer, uuid) is
'Draws on the requests a minute of a tenant, the caller''s if none is named: whether that was allowed, how many are
left, and after how many seconds to try again. What was drawn stays drawn, whatever becomes of the transaction.';

create function @extschema@.reserve_tokens(
    tokens bigint,
    ttl interval default '10 min',
    tenant_id uuid default null,
    out allowed boolean,
    out remaining bigint,
    out retry_after integer,
    out reservation_id uuid
)
language c as 'MODULE_PATHNAME', 'reserve_tokens';
comment on function @extschema@.reserve_tokens(bigint, interval, uuid) is
'Reserves tokens of a tenant''s day, if there are as many: how many are left then, or after how many seconds to try
again.';

create function @extschema@.settle_tokens(
    reservation_id uuid,
    actual bigint,
    out applied boolean,
    out remaining bigint
)
language c as 'MODULE_PATHNAME', 'settle_tokens';
comment on function @extschema@.settle_tokens(uuid, bigint) is
'Puts the tokens that were used in the place of a reservation, expired or not; the same again changes nothing.';

create function @extschema@.release_tokens(reservation_id uuid) returns boolean
language c as 'MODULE_PATHNAME', 'release_tokens';
comment on function @extschema@.release_tokens(uuid) is
'Gives back what was reserved and not used; false when it was settled or released before.';

create function @extschema@.cleanup_reservations(max_rows integer default 1000) returns integer
language c as 'MODULE_PATHNAME', 'cleanup_reservations';
comment on function @extschema@.cleanup_reservations(integer) is
'Deletes reservations that ended two days ago and days that are older than 40; returns how many rows.';
