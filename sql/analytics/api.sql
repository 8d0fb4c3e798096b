-- Figures of a tenant by the days of its own calendar. All run as the caller, so that policies decide what is
-- counted: a member's own conversations and those he may read, all of the tenant for its admins.

create function @extschema@.tenant_days(
    from_date date default null,
    to_date date default null,
    tenant_id uuid default null
) returns table (tenant uuid, date date, began timestamptz, ended timestamptz)
language plpgsql stable parallel safe rows 30 set search_path = pg_catalog, pg_temp
as $$
declare
    zone text;
    last_day date;
    first_day date;
    length integer := 400;
begin
    -- A tenant that is not the caller's is not seen, and has no days.
    select t.id, t.time_zone into tenant, zone from @extschema@.tenants t
    where t.id = coalesce(tenant_id, @extschema@.current_tenant_id());
    if tenant is null then
        return;
    end if;
    last_day := coalesce(to_date, timezone(zone, now())::date);
    first_day := coalesce(from_date, last_day - 29);
    if isfinite(first_day) and isfinite(last_day) then
        length := last_day - first_day;
    end if;
    if length > 399 then
        raise exception 'a period from % to % is too long', first_day, last_day
            using errcode = 'invalid_parameter_value', hint = 'Ask for 400 days at most.';
    end if;
    return query
    select tenant_days.tenant, d.day::date, timezone(zone, d.day), timezone(zone, d.day + interval '1 day')
    from generate_series(first_day::timestamp, last_day::timestamp, interval '1 day') d (day);
end;
$$;
comment on function @extschema@.tenant_days(date, date, uuid) is
'The days of a period in the time zone of a tenant, each with its beginning and its end; the last 30 by default.';

create function @extschema@.daily_activity(
    from_date date default null,
    to_date date default null,
    tenant_id uuid default null
) returns table (date date, conversations bigint, messages bigint, active_users bigint)
language sql stable parallel safe
as $$
    select d.date, a.conversations, a.messages, a.active_users
    from @extschema@.tenant_days(from_date, to_date, tenant_id) d
    cross join lateral (
        select
            pg_catalog.count(distinct m.conversation_id) as conversations,
            pg_catalog.count(*) as messages,
            pg_catalog.count(distinct m.author_id)
            filter (where m.role operator(pg_catalog.=) 'user') as active_users
        from @extschema@.messages m
        where m.tenant_id operator(pg_catalog.=) d.tenant
        and m.created_at operator(pg_catalog.>=) d.began
        and m.created_at operator(pg_catalog.<) d.ended
    ) a
    order by d.date;
$$;
comment on function @extschema@.daily_activity(date, date, uuid) is
'For each day the messages that the caller may read, their conversations, and the users who wrote them.';

create function @extschema@.usage_by_model(
    from_date date default null,
    to_date date default null,
    tenant_id uuid default null
) returns table (
    model text,
    prompt_tokens bigint,
    completion_tokens bigint,
    requests bigint,
    unpriced bigint,
    cost numeric
)
language sql stable parallel safe
as $$
    with period as materialized (
        select d.tenant, pg_catalog.min(d.date) as first_day, pg_catalog.max(d.date) as last_day
        from @extschema@.tenant_days(from_date, to_date, tenant_id) d
        group by d.tenant
    )
    select
        u.model,
        pg_catalog.sum(u.prompt_tokens)::pg_catalog.int8,
        pg_catalog.sum(u.completion_tokens)::pg_catalog.int8,
        pg_catalog.sum(u.request_count)::pg_catalog.int8,
        pg_catalog.sum(u.unpriced_count)::pg_catalog.int8,
        pg_catalog.sum(u.cost)
    from @extschema@.usage_days u
    where u.tenant_id operator(pg_catalog.=) (select p.tenant from period p)
    and u.date operator(pg_catalog.>=) (select p.first_day from period p)
    and u.date operator(pg_catalog.<=) (select p.last_day from period p)
    group by u.model
    order by u.model;
$$;
comment on function @extschema@.usage_by_model(date, date, uuid) is
'Tokens, requests and cost of a period by model; the caller''s own, unless he is an admin.';

create function @extschema@.usage_by_user(
    from_date date default null,
    to_date date default null,
    tenant_id uuid default null
) returns table (
    user_id uuid,
    prompt_tokens bigint,
    completion_tokens bigint,
    requests bigint,
    unpriced bigint,
    cost numeric
)
language sql stable parallel safe
as $$
    with period as materialized (
        select d.tenant, pg_catalog.min(d.date) as first_day, pg_catalog.max(d.date) as last_day
        from @extschema@.tenant_days(from_date, to_date, tenant_id) d
        group by d.tenant
    )
    select
        case when u.user_id operator(pg_catalog.<>) '00000000-0000-0000-0000-000000000000' then u.user_id end,
        pg_catalog.sum(u.prompt_tokens)::pg_catalog.int8,
        pg_catalog.sum(u.completion_tokens)::pg_catalog.int8,
        pg_catalog.sum(u.request_count)::pg_catalog.int8,
        pg_catalog.sum(u.unpriced_count)::pg_catalog.int8,
        pg_catalog.sum(u.cost)
    from @extschema@.usage_days u
    where u.tenant_id operator(pg_catalog.=) (select p.tenant from period p)
    and u.date operator(pg_catalog.>=) (select p.first_day from period p)
    and u.date operator(pg_catalog.<=) (select p.last_day from period p)
    group by u.user_id
    order by pg_catalog.sum(u.cost) desc, u.user_id;
$$;
comment on function @extschema@.usage_by_user(date, date, uuid) is
'Tokens, requests and cost of a period by user, dearest first; null is nobody. The caller alone, if he is no admin.';

create function @extschema@.latency_percentiles(
    from_date date default null,
    to_date date default null,
    tenant_id uuid default null
) returns table (
    model text,
    answers bigint,
    p50_ms double precision,
    p90_ms double precision,
    p99_ms double precision,
    first_token_p50_ms double precision,
    first_token_p90_ms double precision,
    first_token_p99_ms double precision
)
language sql stable parallel safe
as $$
    with period as materialized (
        select d.tenant, pg_catalog.min(d.began) as began, pg_catalog.max(d.ended) as ended
        from @extschema@.tenant_days(from_date, to_date, tenant_id) d
        group by d.tenant
    )
    select
        g.model, g.answers, g.total[1], g.total[2], g.total[3],
        g.first_token[1], g.first_token[2], g.first_token[3]
    from (
        select
            m.model_used as model,
            pg_catalog.count(*) as answers,
            pg_catalog.percentile_cont(array[0.5, 0.9, 0.99]) within group (order by m.latency_ms) as total,
            pg_catalog.percentile_cont(array[0.5, 0.9, 0.99])
            within group (order by m.first_token_ms) as first_token
        from @extschema@.messages m
        where m.tenant_id operator(pg_catalog.=) (select p.tenant from period p)
        and m.created_at operator(pg_catalog.>=) (select p.began from period p)
        and m.created_at operator(pg_catalog.<) (select p.ended from period p)
        and m.role operator(pg_catalog.=) 'assistant'
        and (m.latency_ms is not null or m.first_token_ms is not null)
        group by m.model_used
    ) g
    order by g.model;
$$;
comment on function @extschema@.latency_percentiles(date, date, uuid) is
'How long answers of a period took, by model, in milliseconds: to their end, and to their first token.';

create function @extschema@.feedback_rate(
    from_date date default null,
    to_date date default null,
    tenant_id uuid default null
) returns table (
    date date,
    answers bigint,
    rated bigint,
    thumbs_up bigint,
    thumbs_down bigint,
    positive_rate numeric
)
language sql stable parallel safe
as $$
    select
        d.date, a.answers, a.rated, a.thumbs_up, a.thumbs_down,
        case when a.rated operator(pg_catalog.>) 0 then pg_catalog.round(
            a.thumbs_up::pg_catalog.numeric operator(pg_catalog./) (a.thumbs_up operator(pg_catalog.+) a.thumbs_down), 4
        ) end
    from @extschema@.tenant_days(from_date, to_date, tenant_id) d
    cross join lateral (
        select
            pg_catalog.count(*) as answers,
            pg_catalog.count(f.message_id) as rated,
            coalesce(pg_catalog.sum(f.thumbs_up), 0)::pg_catalog.int8 as thumbs_up,
            coalesce(pg_catalog.sum(f.thumbs_down), 0)::pg_catalog.int8 as thumbs_down
        from @extschema@.messages m
        left join @extschema@.feedback_counts f on f.message_id operator(pg_catalog.=) m.id
        where m.tenant_id operator(pg_catalog.=) d.tenant
        and m.created_at operator(pg_catalog.>=) d.began
        and m.created_at operator(pg_catalog.<) d.ended
        and m.role operator(pg_catalog.=) 'assistant'
    ) a
    order by d.date;
$$;
comment on function @extschema@.feedback_rate(date, date, uuid) is
'For each day its answers, how many of them have been rated since, and how; null is the rate of none.';

create function @extschema@.row_limit(max_rows integer) returns integer
language plpgsql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
begin
    if max_rows is null then
        raise exception 'max_rows must not be null'
            using errcode = 'null_value_not_allowed', hint = 'Give it a value.';
    end if;
    if max_rows < 0 then
        raise exception 'max_rows must not be negative'
            using errcode = 'invalid_parameter_value', hint = 'Give 0 or more, or leave it out.';
    end if;
    return max_rows;
end;
$$;
comment on function @extschema@.row_limit(integer) is 'What it is given; an error where that is no number of rows.';

create function @extschema@.longest_conversations(
    from_date date default null,
    to_date date default null,
    tenant_id uuid default null,
    max_rows integer default 10
) returns table (conversation_id uuid, title text, messages bigint, last_message_at timestamptz)
language sql stable parallel safe
as $$
    with period as materialized (
        select d.tenant, pg_catalog.min(d.began) as began, pg_catalog.max(d.ended) as ended
        from @extschema@.tenant_days(from_date, to_date, tenant_id) d
        group by d.tenant
    )
    select n.conversation_id, c.title, n.messages, n.last_message_at
    from (
        select m.conversation_id, pg_catalog.count(*) as messages, pg_catalog.max(m.created_at) as last_message_at
        from @extschema@.messages m
        where m.tenant_id operator(pg_catalog.=) (select p.tenant from period p)
        and m.created_at operator(pg_catalog.>=) (select p.began from period p)
        and m.created_at operator(pg_catalog.<) (select p.ended from period p)
        group by m.conversation_id
        order by 2 desc, 3 desc, 1
    ) n
    -- Offset keeps it a look-up for each, in their order: no more than are asked for.
    cross join lateral (
        select c.title from @extschema@.conversations c
        where c.id operator(pg_catalog.=) n.conversation_id and c.deleted_at is null
        offset 0
    ) c
    order by n.messages desc, n.last_message_at desc, n.conversation_id
    limit @extschema@.row_limit(max_rows);
$$;
comment on function @extschema@.longest_conversations(date, date, uuid, integer) is
'The conversations with the most messages in a period, of those that are not deleted.';
