-- Rows as years of use leave them, written by the owner of the tables.

update @s@.tenants set name = 'Home', slug = 'home', max_tokens = 4096, features = '{"beta": true}'
where slug = 'default';
insert into @s@.tenants (id, name, slug, temperature, default_visibility, is_active, created_at, updated_at) values
('a0000000-0000-0000-0000-000000000001', 'Acme "quoted" \ back', 'acme', 0.75, 'tenant', true,
    '2021-03-04 05:06:07.000008+00', '2022-03-04 05:06:07.123456+00'),
('b0000000-0000-0000-0000-000000000001', 'Closed', 'closed', null, 'private', false,
    '2021-03-04 05:06:07+00', '2021-03-04 05:06:07+00');

insert into @s@.users (id, tenant_id, auth_id, email, name, role, is_active, preferences, created_at, updated_at) values
('a1000000-0000-0000-0000-000000000001', 'a0000000-0000-0000-0000-000000000001',
    'a1a00000-0000-0000-0000-000000000001', 'Ada@Example.org', 'Ada', 'admin', true, '{"a": [1, 2]}',
    '2021-04-01 00:00:00.000001+00', '2021-04-02 00:00:00.5+00'),
('a1000000-0000-0000-0000-000000000002', 'a0000000-0000-0000-0000-000000000001', null,
    'bob@example.org', E'Bob\tthe\nbuilder', 'member', true, '{}', '2021-04-01+00', '2021-04-01+00'),
('a1000000-0000-0000-0000-000000000003', 'a0000000-0000-0000-0000-000000000001', null,
    null, '', 'member', false, '{}', '2021-04-01+00', '2021-04-01+00'),
('b1000000-0000-0000-0000-000000000001', 'b0000000-0000-0000-0000-000000000001', null,
    'ada@example.org', null, 'member', true, '{}', '2021-04-01+00', '2021-04-01+00'),
('d1000000-0000-0000-0000-000000000001', default, null, 'eve@example.org', 'Eve', 'member', true, '{}',
    '2021-04-01+00', '2021-04-01+00');

insert into @s@.conversations
(id, tenant_id, user_id, session_id, continuation_id, title, visibility, is_archived, is_pinned, tags,
    summary, expires_at, deleted_at, metadata, created_at, updated_at, folder, mood) values
('c0000000-0000-0000-0000-000000000001', null, 'a1000000-0000-0000-0000-000000000001', 's1', null,
    'Live ☃', null, false, true, '{a,"b c",NULL}', 'short', '2099-01-01+00', null, '{"k": {"n": 1.50}}',
    '2021-05-01 01:02:03.000004+00', '2021-05-02 01:02:03.999999+00', 'inbox', 'wild'),
('c0000000-0000-0000-0000-000000000002', null, 'a1000000-0000-0000-0000-000000000002', 's2', 'k2',
    'Archived', 'private', true, false, '{}', null, null, null, '{}',
    '2021-05-01+00', '2021-05-02+00', null, null),
('c0000000-0000-0000-0000-000000000003', null, 'a1000000-0000-0000-0000-000000000001', 'again', 'again',
    'Deleted twin', 'private', false, false, '{}', null, null, null, '{}',
    '2021-05-01+00', '2021-05-02+00', null, default),
('c0000000-0000-0000-0000-000000000004', 'b0000000-0000-0000-0000-000000000001', null, null, null, null,
    'private', false, false, '{}', null, null, null, '{}',
    '2021-05-01+00', '2021-05-02+00', null, default),
('c0000000-0000-0000-0000-000000000005', null, 'd1000000-0000-0000-0000-000000000001', null, null, '',
    'private', false, false, '{}', null, null, null, '{}',
    '2021-05-01+00', '2021-05-02+00', null, default);

insert into @s@.conversation_members (conversation_id, user_id, role, created_at) values
('c0000000-0000-0000-0000-000000000001', 'a1000000-0000-0000-0000-000000000002', 'editor', '2021-06-01+00'),
('c0000000-0000-0000-0000-000000000002', 'a1000000-0000-0000-0000-000000000001', 'viewer', '2021-06-01+00'),
('c0000000-0000-0000-0000-000000000002', 'a1000000-0000-0000-0000-000000000003', 'owner', '2021-06-01+00');

-- An import that brought numbers and times of its own.
insert into @s@.messages (id, conversation_id, sequence_number, role, content, parts, metadata, status, error,
    prompt_token_count, completion_token_count, model_used, latency_ms, created_at, completed_at, rating,
    author_id, edited_at) values
('e0000000-0000-0000-0000-000000000001', 'c0000000-0000-0000-0000-000000000001', 1, 'user',
    E'tab\there\nline \\ back \\. end "q" \'\'', null, '{"a": null, "b": [true, 1e3]}', 'completed', null,
    null, null, null, null, '2021-05-01 01:02:03.000005+00', null, 1,
    'a1000000-0000-0000-0000-000000000001', null),
('e0000000-0000-0000-0000-000000000002', 'c0000000-0000-0000-0000-000000000001', 2, 'assistant', '',
    '[{"type": "tool", "args": {"x": "\u2603"}}]', '{}', 'streaming', null, 10, null, 'GPT-x', null,
    '2021-05-01 01:02:04+00', null, 7, null, null),
('e0000000-0000-0000-0000-000000000003', 'c0000000-0000-0000-0000-000000000001', 3, 'tool', 'x', null, '{}',
    'failed', 'timeout', 0, 0, null, 12, '2021-05-01 01:02:05+00', '2021-05-01 01:02:06+00', 9,
    'a1000000-0000-0000-0000-000000000003', '2021-05-02 03:04:05.000006+00'),
('e0000000-0000-0000-0000-000000000004', 'c0000000-0000-0000-0000-000000000001', 7, 'developer', 'late', null,
    '{}', 'interrupted', null, null, null, null, null, '2021-05-01 01:02:07+00', null, 10,
    -- Whoever wrote it was deleted since.
    '99999999-0000-0000-0000-000000000009', null);
update @s@.messages set parent_id = 'e0000000-0000-0000-0000-000000000001'
where id in ('e0000000-0000-0000-0000-000000000002', 'e0000000-0000-0000-0000-000000000003');
-- Now the parent lies behind its children in the table.
update @s@.messages set model_used = 'human' where id = 'e0000000-0000-0000-0000-000000000001';

select @s@.add_message('c0000000-0000-0000-0000-000000000002', 'user', repeat('long ', 3000), 'retry-1');
select @s@.add_message('c0000000-0000-0000-0000-000000000002', 'assistant', null, 'retry-2');
select @s@.add_message('c0000000-0000-0000-0000-000000000002', 'user', 'to be removed');
delete from @s@.messages where content = 'to be removed';
select @s@.add_message('c0000000-0000-0000-0000-000000000003', 'user', 'in a deleted one', 'retry-1');
select @s@.delete_conversation('c0000000-0000-0000-0000-000000000003');
set pg_conversation.user_id = 'a1000000-0000-0000-0000-000000000001';
select @s@.create_conversation('The name is free again', 'again', 'again');
reset pg_conversation.user_id;
select @s@.add_message('c0000000-0000-0000-0000-000000000004', 'system', 'nobody owns it');

-- Edits: by nobody, by a user, of a long text, of parts alone.
update @s@.messages set content = 'y' where id = 'e0000000-0000-0000-0000-000000000003';
set pg_conversation.user_id = 'a1000000-0000-0000-0000-000000000001';
select @s@.edit_message('e0000000-0000-0000-0000-000000000003', E'tab\there\nline \\. ☃', '[1, {"a": null}]');
select @s@.edit_message('e0000000-0000-0000-0000-000000000003', repeat('long ', 3000));
reset pg_conversation.user_id;
update @s@.messages set parts = null where id = 'e0000000-0000-0000-0000-000000000003';
update @s@.messages set content = 'short' where client_message_id = 'retry-1' and content like 'long%';

-- Streams in every state, in a conversation of their own.
insert into @s@.conversations (id, user_id, title) values
('c0000000-0000-0000-0000-000000000006', 'a1000000-0000-0000-0000-000000000001', 'Streams');
insert into @s@.messages (id, conversation_id, role, status, created_at)
select ('f0000000-0000-0000-0000-00000000000' || n)::uuid, 'c0000000-0000-0000-0000-000000000006', 'assistant',
    case when n = 8 then 'pending' else 'streaming' end::@s@.message_status, '2021-06-01+00'
from generate_series(1, 9) n order by n;
-- 1 goes on, 2 has gaps, 3 is completed, 4 stopped, 5 failed, 6 interrupted, 7 was ended by an UPDATE of
-- its status alone, 8 and 9 have no chunk yet.
insert into @s@.message_chunks (message_id, chunk_content, chunk_index, is_final, created_at, source) values
('f0000000-0000-0000-0000-000000000001', 'one ', 0, false, '2021-06-01 01:02:03.000004+00', 'Model'),
('f0000000-0000-0000-0000-000000000001', '', 1, false, '2021-06-01 01:02:03.000005+00', 'cache'),
('f0000000-0000-0000-0000-000000000001', E'tab\there\nline \\. ☃ "q" \'\'', 2, false, '2021-06-01 01:02:03.999999+00', 'model'),
('f0000000-0000-0000-0000-000000000002', 'six', 5, true, '2021-06-01 01:02:04+00', 'model'),
('f0000000-0000-0000-0000-000000000002', 'three ', 2, false, '2021-06-01 01:02:05+00', 'model'),
('f0000000-0000-0000-0000-000000000002', 'one ', 0, false, '2021-06-01 01:02:06+00', 'model');
select @s@.append_chunks('f0000000-0000-0000-0000-000000000003', array['all ', 'of ', 'it'], 0, true);
select @s@.append_chunks('f0000000-0000-0000-0000-000000000004', array['seen', ' and heard']);
select @s@.stop_message('f0000000-0000-0000-0000-000000000004');
select @s@.append_chunk('f0000000-0000-0000-0000-000000000005', 'half');
select @s@.fail_message('f0000000-0000-0000-0000-000000000005', 'overload');
select @s@.append_chunks('f0000000-0000-0000-0000-000000000006', array_agg('token ' || n || ' ' order by n))
from generate_series(0, 299) n;
select @s@.recover_stalled_messages('0 s', 1000);
update @s@.messages set status = 'streaming', content = '' where id in
('f0000000-0000-0000-0000-000000000001', 'f0000000-0000-0000-0000-000000000002',
'f0000000-0000-0000-0000-000000000009', 'e0000000-0000-0000-0000-000000000002');
update @s@.messages set status = 'streaming', content = '' where id = 'f0000000-0000-0000-0000-000000000007';
select @s@.append_chunks('f0000000-0000-0000-0000-000000000007', array['ended', ' in passing']);
select @s@.append_chunk('f0000000-0000-0000-0000-000000000007', repeat('long ', 10000));
update @s@.messages set status = 'completed' where id = 'f0000000-0000-0000-0000-000000000007';
-- A chunk whose message is gone, as a trigger that was disabled leaves it.
set row_security = off;
insert into @s@.message_chunks (message_id, chunk_content, chunk_index)
values ('f0000000-0000-0000-0000-0000000000ff', 'left behind', 3);
reset row_security;

-- Feedback: given, changed, withdrawn, and gone with its message.
insert into @s@.feedback (id, message_id, user_id, rating, comment, metadata, created_at, updated_at) values
('90000000-0000-0000-0000-000000000001', 'e0000000-0000-0000-0000-000000000001',
    'a1000000-0000-0000-0000-000000000002', 1, E'tab\there\nline \\. ☃ "q" \'\'', '{"k": [1.50]}',
    '2021-07-01 01:02:03.000004+00', '2021-07-02 01:02:03.999999+00'),
('90000000-0000-0000-0000-000000000002', 'e0000000-0000-0000-0000-000000000001',
    'a1000000-0000-0000-0000-000000000001', -1, null, '{}', '2021-07-01+00', '2021-07-01+00'),
('90000000-0000-0000-0000-000000000003', 'e0000000-0000-0000-0000-000000000001',
    'a1000000-0000-0000-0000-000000000003', 1, '', '{}', '2021-07-01+00', '2021-07-01+00'),
('90000000-0000-0000-0000-000000000004', 'e0000000-0000-0000-0000-000000000003',
    'a1000000-0000-0000-0000-000000000001', -1, repeat('☃', 5000), '{}', '2021-07-01+00', '2021-07-01+00'),
('90000000-0000-0000-0000-000000000005', 'e0000000-0000-0000-0000-000000000004',
    'a1000000-0000-0000-0000-000000000001', -1, null, '{}', '2021-07-01+00', '2021-07-01+00');
update @s@.feedback set rating = -1 where id = '90000000-0000-0000-0000-000000000003';
delete from @s@.feedback where id = '90000000-0000-0000-0000-000000000005';

-- Usage: in the days of two time zones, of nobody, of users and tenants that are gone, voided, priced anew,
-- in several slots and folded.
update @s@.tenants set time_zone = 'Asia/Tokyo', rate_limit_per_minute = 5, daily_token_limit = 1000
where slug = 'acme';
insert into @s@.model_prices (id, pattern, usage_type, unit_price, valid_from, valid_to, metadata, created_at) values
('91000000-0000-0000-0000-000000000001', '%', 'prompt_tokens', 0.00000000000000000001, '-infinity', 'infinity',
    '{"k": [1.50]}', '2021-01-01 01:02:03.000004+00'),
('91000000-0000-0000-0000-000000000002', E'gpt\\_x%', 'images', 2.50, '2021-01-01+00', '2022-01-01+00', '{}',
    '2021-01-01+00'),
('91000000-0000-0000-0000-000000000003', E'gpt\\_x%', 'images', 3, '2022-01-01+00', 'infinity', '{}', '2021-01-01+00');
select @s@.record_usage('a0000000-0000-0000-0000-000000000001', 'a1000000-0000-0000-0000-000000000001',
    'gpt_x', '{"prompt_tokens": 10, "images": 2, "note": "\u2603"}', E'tab\there ☃', '2021-05-01 20:00+00');
select @s@.record_usage('a0000000-0000-0000-0000-000000000001', 'a1000000-0000-0000-0000-000000000003',
    '', '{"prompt_tokens": 1000000000000, "completion_tokens": 7}', 'big', '2021-05-02 20:00+00');
select @s@.record_usage('a0000000-0000-0000-0000-000000000001', null, 'other', '{}', 'now');
select @s@.record_usage('b0000000-0000-0000-0000-000000000001', null, 'gpt_x', '{"images": 1}', 'big', '2022-01-01+00');
select @s@.void_usage('a0000000-0000-0000-0000-000000000001', 'big', E'why\n\\.');
select @s@.increment_usage_metrics('a0000000-0000-0000-0000-000000000001', null, '2021-05-03', 5, 6, 0.25);
update @s@.model_prices set unit_price = 4 where id = '91000000-0000-0000-0000-000000000003';
select @s@.recalculate_costs('2021-01-01', '2022-12-31', false);
insert into @s@.usage_days
select tenant_id, user_id, 0, 0, 0, 0, date, slot + n, model, 0 from @s@.usage_days, generate_series(1, 3) n;
insert into @s@.usage_totals
select tenant_id, 0, 0, 0, 0, date, slot + n, 0 from @s@.usage_totals, generate_series(1, 3) n;
insert into @s@.usage_months
select tenant_id, 0, 0, 0, 0, month, slot + n, 0 from @s@.usage_months, generate_series(1, 3) n;
select @s@.fold_usage(2);
insert into @s@.usage_events (tenant_id, idempotency_key, kind, user_id, model, usage, prompt_tokens,
    completion_tokens, request_count, cost, unpriced, occurred_at, date, recorded_at, recorded_by, reason) values
('99999999-0000-0000-0000-000000000008', 'gone', 'usage', '99999999-0000-0000-0000-000000000009', E'"\\,{}',
    '{"a": 1.50}', 0, 0, 1, 0.000, '{a,"b c",NULL}', '2021-05-01 01:02:03.000004+00', '2021-05-01',
    '2021-05-01 01:02:03.000005+00', 'whoever', '');
update @s@.messages set first_token_ms = 12 where id = 'e0000000-0000-0000-0000-000000000002';

-- Limits: drawn on, reserved, settled, released, expired.
select @s@.check_rate_limit(3, 'a0000000-0000-0000-0000-000000000001');
select @s@.reserve_tokens(10, '1 day', 'a0000000-0000-0000-0000-000000000001');
select @s@.settle_tokens(reservation_id, 7)
from @s@.reserve_tokens(20, '1 hour', 'a0000000-0000-0000-0000-000000000001');
select @s@.release_tokens(reservation_id)
from @s@.reserve_tokens(30, '1 hour', 'a0000000-0000-0000-0000-000000000001');
insert into @s@.token_reservations (id, tenant_id, user_id, tokens, created_at, expires_at, date) values
('92000000-0000-0000-0000-000000000001', '99999999-0000-0000-0000-000000000008', null, 0,
    '2021-05-01 01:02:03.000004+00', '2021-05-01 01:02:03.000005+00', '2021-05-01');
insert into @s@.token_windows values ('99999999-0000-0000-0000-000000000008', '2021-05-01', 3, 9223372036854775807);

-- What the DBA has set, and what came of it.
update @s@.maintenance_runs set every = '1 mon 2 days 03:04:05', enabled = false, last_started_at = '2021-05-01+00',
    last_finished_at = '2021-05-01 00:00:00.000001+00', last_duration = '00:00:00.000001', last_rows = 7,
    last_error = E'XX000 tab\there', last_error_at = '2021-05-01+00', runs = 3, failures = 1
where job = 'analytics';

insert into app.notes (conversation_id, message_id, speaker, note) values
('c0000000-0000-0000-0000-000000000001', 'e0000000-0000-0000-0000-000000000002', 'assistant', 'n'),
('c0000000-0000-0000-0000-000000000003', null, null, E'\\N');
select nextval('@s@.ticket_numbers'), nextval('@s@.ticket_numbers');
refresh materialized view app.message_counts;
select @s@.refresh_analytics();
