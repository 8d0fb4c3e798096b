comment on function @extschema@.seed_test_data() is
'Fills an empty database with tenants, people and conversations to try things on, anew each time, and says how much
of what there is; refuses where there is other data, and in production.';
comment on function @extschema@.remove_test_data() is
'Takes away what seed_test_data has made, and says how much of what that was.';

create function @extschema@.test_id(kind integer, n integer) returns uuid
language sql stable parallel safe
as $$
    select (
        '00000000-0000-7000-8000-5eed'
        operator(pg_catalog.||) pg_catalog.lpad(kind::pg_catalog.text, 4, '0')
        operator(pg_catalog.||) pg_catalog.lpad(n::pg_catalog.text, 4, '0')
    )::pg_catalog.uuid;
$$;
comment on function @extschema@.test_id(integer, integer) is 'The id of a row of test data: by these they are known.';

create function @extschema@.is_test_id(id uuid) returns boolean
language sql stable parallel safe
as $$
    select id operator(pg_catalog.>=) '00000000-0000-7000-8000-5eed00000000'
    and id operator(pg_catalog.<=) '00000000-0000-7000-8000-5eedffffffff';
$$;
comment on function @extschema@.is_test_id(uuid) is 'Whether a row is test data, by its id.';

-- One function, for what is made must be what is known and taken away. Whoever adds to the test data
-- while it is replaced would lose that by a cascade: writers wait.
create function @extschema@.test_data(wanted boolean) returns table (what text, row_count bigint)
language plpgsql set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    other text;
begin
    perform @extschema@.require_owner();
    if wanted and (
        current_setting('pg_conversation.production')::boolean
        -- What a client says of it before the library is loaded is refused, but the database's own word
        -- is lost with it.
        or exists (
            select from pg_db_role_setting s
            cross join unnest(s.setconfig) as c (setting)
            join pg_settings g on g.name = 'pg_conversation.production' and g.source = 'default'
            where s.setdatabase = (select d.oid from pg_database d where d.datname = current_database())
            and s.setrole = 0 and c.setting ~* '^pg_conversation[.]production=(on|true|yes|1)$'
        )
    ) then
        raise exception 'this is a production database'
            using errcode = 'object_not_in_prerequisite_state',
                hint = 'Test data goes into a database of its own; pg_conversation.production says that this is none.';
    end if;
    if current_setting('transaction_isolation') <> 'read committed' then
        raise exception 'test data needs a read committed transaction'
            using errcode = 'active_sql_transaction',
                hint = 'Run it in a transaction of isolation level READ COMMITTED.';
    end if;
    lock table @extschema@.tenants, @extschema@.users, @extschema@.conversations, @extschema@.messages,
    @extschema@.usage_events in share row exclusive mode;

    -- What is somebody else's: anywhere, or, if it is only to be taken away, where it would go along.
    select o.what into other
    from (
        select 'tenants' as what, t.id as tenant_id from @extschema@.tenants t
        where not @extschema@.is_test_id(t.id) and t.id <> '00000000-0000-7000-8000-000000000001'
        union all
        select 'users', u.tenant_id from @extschema@.users u
        where not @extschema@.is_test_id(u.id)
        union all
        select 'conversations', c.tenant_id from @extschema@.conversations c
        where not @extschema@.is_test_id(c.id)
        union all
        select 'messages', m.tenant_id from @extschema@.messages m
        where not @extschema@.is_test_id(m.id)
        union all
        select 'usage_events', e.tenant_id from @extschema@.usage_events e
        where not (
            @extschema@.is_test_id(e.tenant_id)
            and e.idempotency_key ~ '^(void:)?(test:|message:00000000-0000-7000-8000-5eed)'
        )
    ) o
    where wanted or @extschema@.is_test_id(o.tenant_id)
    limit 1;
    if other is not null then
        raise exception 'table "%" has rows that are not test data', other
            using errcode = 'object_not_in_prerequisite_state',
                hint = case
                    when wanted then 'Use a database of its own for test data.'
                    else 'They hang on the test data; remove them first.'
                end;
    end if;

    -- The answer is what there is afterwards, or what there was.
    if not wanted then
        return query select * from @extschema@.count_test_data();
    end if;
    delete from @extschema@.conversations c where @extschema@.is_test_id(c.id);
    delete from @extschema@.token_reservations r where @extschema@.is_test_id(r.tenant_id);
    delete from @extschema@.token_windows w where @extschema@.is_test_id(w.tenant_id);
    delete from @extschema@.usage_months m where @extschema@.is_test_id(m.tenant_id);
    delete from @extschema@.usage_totals s where @extschema@.is_test_id(s.tenant_id);
    delete from @extschema@.usage_days d where @extschema@.is_test_id(d.tenant_id);
    delete from @extschema@.usage_events e where @extschema@.is_test_id(e.tenant_id);
    delete from @extschema@.model_prices p where @extschema@.is_test_id(p.id);
    delete from @extschema@.users u where @extschema@.is_test_id(u.id);
    delete from @extschema@.tenants t where @extschema@.is_test_id(t.id);
    if wanted then
        perform @extschema@.make_test_data();
        return query select * from @extschema@.count_test_data();
    end if;
    perform @extschema@.refresh_analytics(concurrently => false);
end;
$$;
comment on function @extschema@.test_data(boolean) is
'What seed_test_data and remove_test_data do, with the rights of whoever calls it, who must own the tables.';

create function @extschema@.count_test_data() returns table (what text, row_count bigint)
language sql stable set search_path = pg_catalog, pg_temp
as $$
    select 'tenants', count(*) from @extschema@.tenants t where @extschema@.is_test_id(t.id)
    union all
    select 'users', count(*) from @extschema@.users u where @extschema@.is_test_id(u.id)
    union all
    select 'conversations', count(*) from @extschema@.conversations c where @extschema@.is_test_id(c.id)
    union all
    select 'messages', count(*) from @extschema@.messages m where @extschema@.is_test_id(m.id)
    union all
    select 'feedback', count(*) from @extschema@.feedback f where @extschema@.is_test_id(f.message_id)
    union all
    select 'usage_metrics', count(*) from @extschema@.usage_metrics u where @extschema@.is_test_id(u.tenant_id);
$$;
comment on function @extschema@.count_test_data() is 'How much test data there is, of what the caller sees.';

create function @extschema@.make_test_data() returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
    streamed constant uuid := @extschema@.test_id(4, 6);
    rated record;
    used record;
begin
    perform @extschema@.require_owner();
    -- Nobody is signed in at first. seed_test_data() puts back who was.
    perform
        set_config('request.jwt.claim.sub', '', true),
        set_config('request.jwt.claims', '', true),
        set_config('pg_conversation.user_id', '', true);

    insert into @extschema@.tenants (
        id, name, slug, time_zone, llm_provider, llm_model, rate_limit_per_minute, daily_token_limit, features
    ) values
    (
        @extschema@.test_id(1, 1), 'Acme Robotics', 'acme-robotics', 'Europe/Berlin', 'test',
        'test-aurora', 120, 500000, '{"edit_messages": true}'
    ),
    (
        @extschema@.test_id(1, 2), 'Baker Street Books', 'baker-street-books', 'Europe/London', 'test',
        'test-aurora', null, 100000, '{}'
    ),
    (
        @extschema@.test_id(1, 3), 'Copperline Clinic', 'copperline-clinic', 'America/New_York', 'test',
        'test-aurora', 30, null, '{}'
    );

    insert into @extschema@.users (id, tenant_id, name, email, role)
    select @extschema@.test_id(2, v.n), @extschema@.test_id(1, v.tenant), v.name, v.email, v.role
    from (values
        (1, 1, 'Ada Lovelace', 'ada@acme.example', 'admin'),
        (2, 1, 'Grace Hopper', 'grace@acme.example', 'member'),
        (3, 1, 'Alan Turing', 'alan@acme.example', 'member'),
        (4, 2, 'Mary Morstan', 'mary@bakerstreet.example', 'admin'),
        (5, 2, 'John Watson', 'john@bakerstreet.example', 'member'),
        (6, 3, 'Florence Nightingale', 'florence@copperline.example', 'admin')
    ) as v (n, tenant, name, email, role);

    insert into @extschema@.conversations (id, user_id, title, visibility, is_archived, is_pinned, tags, created_at)
    select
        @extschema@.test_id(3, v.n), @extschema@.test_id(2, v.owner), v.title, v.visibility,
        v.is_archived, v.is_pinned, v.tags::text [], now() - make_interval(days => v.days)
    from (values
        (1, 1, 'Gripper calibration', 'private', false, true, '{robots}', 6),
        (2, 1, 'Release notes 4.2', 'tenant', false, false, '{release}', 1),
        (3, 2, 'Incident on line 3', 'private', false, false, '{incident,line-3}', 0),
        (4, 3, 'Naming the new arm', 'private', true, false, '{}', 3),
        (5, 4, 'Stock for December', 'private', false, false, '{orders}', 5),
        (6, 5, 'A letter of complaint', 'private', false, false, '{}', 1),
        (7, 6, 'Beds by ward', 'private', false, false, '{figures}', 0)
    ) as v (n, owner, title, visibility, is_archived, is_pinned, tags, days);
    insert into @extschema@.conversation_members (conversation_id, user_id, role)
    values
    (@extschema@.test_id(3, 3), @extschema@.test_id(2, 3), 'editor'),
    (@extschema@.test_id(3, 3), @extschema@.test_id(2, 1), 'viewer');

    -- Question and answer in each; the answer of the incident is streamed below.
    insert into @extschema@.messages (
        id, conversation_id, role, status, content, author_id, parent_id, model_used,
        prompt_token_count, completion_token_count, latency_ms, created_at
    )
    select
        @extschema@.test_id(4, v.n), c.id, v.role::@extschema@.message_role,
        case when v.n = 6 then 'streaming' else 'completed' end::@extschema@.message_status,
        v.content, case v.role when 'user' then c.user_id end,
        case v.role when 'assistant' then @extschema@.test_id(4, v.n - 1) end,
        case v.role when 'assistant' then 'test-aurora' end,
        v.prompt_tokens, v.completion_tokens, v.latency,
        c.created_at + case v.role when 'assistant' then interval '2 s' else interval '0' end
    from (values
        (1, 'user', 'The gripper closes 0.4 mm too far. Where do I begin?', null, null, null),
        (
            2, 'assistant', 'Measure it at three temperatures first: if the error moves with them, it is the '
            || 'thermal offset, and no mechanical one.', 412, 58, 1840
        ),
        (3, 'user', 'Write the release notes for 4.2 from the list in the tracker.', null, null, null),
        (
            4, 'assistant', 'Version 4.2 closes grippers to within 0.05 mm, restarts a line in half the time, and '
            || 'no longer forgets its shift at midnight.', 1205, 240, 5310
        ),
        (5, 'user', 'Line 3 stopped twice since noon. What do both stops have in common?', null, null, null),
        (6, 'assistant', '', null, null, null),
        (7, 'user', 'Five names for the new arm, none of them a bird.', null, null, null),
        (8, 'assistant', 'Lever, Reach, Ulna, Crane, Tiller. (One of them is also a bird.)', 188, 25, 960),
        (9, 'user', 'How many of the winter titles shall we order again?', null, null, null),
        (
            10, 'assistant', 'At last year''s pace you will run out of four of them by the 12th; order 60 of each.',
            930, 71, 2200
        ),
        (11, 'user', 'Make this letter to the carrier firmer, but not rude.', null, null, null),
        (
            12, 'assistant', 'I have kept your facts and taken out the adverbs. It is shorter by a third.',
            655, 310, 6120
        ),
        (13, 'user', 'Beds in use by ward, as of this morning, please.', null, null, null),
        (
            14, 'assistant', 'Ward A 18 of 20, ward B 11 of 20, ward C 20 of 20: C has been full for three days.',
            377, 64, 1710
        )
    ) as v (n, role, content, prompt_tokens, completion_tokens, latency)
    join @extschema@.conversations c on c.id = @extschema@.test_id(3, (v.n + 1) / 2)
    order by v.n;

    insert into @extschema@.model_prices (id, pattern, usage_type, unit_price)
    values
    (@extschema@.test_id(6, 1), 'test-aurora%', 'prompt_tokens', 0.000003),
    (@extschema@.test_id(6, 2), 'test-aurora%', 'completion_tokens', 0.000015),
    (@extschema@.test_id(6, 3), 'test-aurora%', 'cached_tokens', 0.0000003);

    -- Its end is also the first row of usage.
    perform @extschema@.append_chunks(streamed, array['Both', ' came', ' within', ' a', ' minute'], 0);
    perform @extschema@.append_chunks(streamed, array[' of', ' a', ' door', ' being', ' opened', '.'], 5);
    perform @extschema@.finish_message(
        streamed, prompt_tokens => 2210, completion_tokens => 11, model => 'test-aurora', latency_ms => 740
    );

    -- A day is that of the tenant; noon is on it, whatever the clocks do. What is three days old and more
    -- comes late, and the last one twice.
    for used in
        select
            v.n, t.id as tenant_id, @extschema@.test_id(2, v.person) as user_id, v.usage,
            case
                when v.days > 0
                    then ((now() at time zone t.time_zone)::date - v.days + time '12:00') at time zone t.time_zone
            end as at
        from (values
            (1, 1, 1, 0, '{"prompt_tokens": 5200, "completion_tokens": 810}'::jsonb),
            (2, 1, 1, 1, '{"prompt_tokens": 1205, "completion_tokens": 240}'),
            (3, 1, 1, 6, '{"prompt_tokens": 412, "completion_tokens": 58}'),
            (4, 1, 2, 2, '{"prompt_tokens": 880, "completion_tokens": 140, "cached_tokens": 4096}'),
            (5, 1, 3, 3, '{"prompt_tokens": 188, "completion_tokens": 25}'),
            (6, 1, null, 4, '{"prompt_tokens": 40000, "completion_tokens": 0, "batch_items": 200}'),
            (7, 2, 4, 0, '{"prompt_tokens": 300, "completion_tokens": 45}'),
            (8, 2, 4, 5, '{"prompt_tokens": 930, "completion_tokens": 71}'),
            (9, 2, 5, 1, '{"prompt_tokens": 655, "completion_tokens": 310}'),
            (10, 3, 6, 0, '{"prompt_tokens": 377, "completion_tokens": 64}'),
            (10, 3, 6, 0, '{"prompt_tokens": 377, "completion_tokens": 64}')
        ) as v (n, tenant, person, days, usage)
        join @extschema@.tenants t on t.id = @extschema@.test_id(1, v.tenant)
    loop
        perform @extschema@.record_usage(
            used.tenant_id, used.user_id, 'test-aurora', used.usage, format('test:%s', used.n), used.at
        );
    end loop;

    -- Everybody speaks for himself.
    for rated in
        select @extschema@.test_id(4, v.n) as message_id, @extschema@.test_id(2, v.person) as user_id,
            v.rating, v.comment
        from (values
            (2, 1, 1, null),
            (4, 1, 1, 'Ready to send.'),
            (4, 2, -1, 'The shift at midnight was 4.1.'),
            (6, 2, 1, null),
            (6, 3, 1, 'The door sensor it was.'),
            (10, 4, -1, 'Sixty is too many for the small shelf.'),
            (14, 6, 1, null)
        ) as v (n, person, rating, comment)
    loop
        perform set_config('pg_conversation.user_id', rated.user_id::text, true);
        perform @extschema@.give_feedback(rated.message_id, rated.rating, rated.comment);
    end loop;
end;
$$;
comment on function @extschema@.make_test_data() is 'Part of seed_test_data: writes the rows.';
