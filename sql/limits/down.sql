drop trigger if exists make_rate_state on @extschema@.tenants;
drop table @extschema@.token_reservations;
drop table @extschema@.token_windows;
drop table @extschema@.rate_states;
