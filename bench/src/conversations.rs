//! Pages of a user's list.

use std::time::SystemTime;

use postgres::Client;
use postgres::types::ToSql;
use uuid::Uuid;

use crate::Result;
use crate::data::{As, Bench};
use crate::measure::{Arm, Plan, expect_rows, join_backend, pairs};
use crate::row::{Line, Row, lines, ratio, row};

pub fn rows() -> Vec<Row> {
    vec![row("list-50", |bench| list(bench, 50, 200)), row("list-25", |bench| list(bench, 25, 400))]
}

pub const LIST: &str = "select * from list_conversations($1)";

const LIST_BEFORE: &str = "select * from list_conversations($1, $2, $3)";

pub const LIST_PLAIN: &str = "select id, session_id, continuation_id, title, visibility, is_pinned, \
                                 last_sequence, created_at, updated_at \
                          from plain.conversations \
                          where tenant_id = $2 and user_id = $3 and not is_archived and deleted_at is null \
                          order by updated_at desc, id desc limit $1";

const LIST_PLAIN_BEFORE: &str = "select id, session_id, continuation_id, title, visibility, is_pinned, \
                                        last_sequence, created_at, updated_at \
                                 from plain.conversations \
                                 where tenant_id = $2 and user_id = $3 and not is_archived and deleted_at is null \
                                 and (updated_at, id) < ($4, $5) \
                                 order by updated_at desc, id desc limit $1";

fn list(bench: &Bench, rows: i32, page: i32) -> Result<Vec<Line>> {
    let mut client = bench.connect(As::Superuser)?;
    let owned: i64 = client
        .query_one("select count(*) from conversations where user_id = $1", &[&bench.owner.id])?
        .get(0);
    let page = page.min(owned as i32 / rows);
    let offset = i64::from((page - 1) * rows - 1);
    let cursor = |client: &mut Client, table: &str| -> Result<(SystemTime, Uuid)> {
        let last = client.query_one(
            &format!(
                "select updated_at, id from {table} where user_id = $1 \
                 order by updated_at desc, id desc limit 1 offset $2"
            ),
            &[&bench.owner.id, &offset],
        )?;
        Ok((last.get(0), last.get(1)))
    };
    let (before, before_id) = cursor(&mut client, "public.conversations")?;
    let (plain_before, plain_before_id) = cursor(&mut client, "plain.conversations")?;

    let (tenant, user) = (bench.owner.tenant, bench.owner.id);
    let limit = i64::from(rows);
    let figures = pairs(
        bench,
        &Plan { turns: 100, calls: 5, warm_up: 20, per_call: 1, alone: true },
        |_| {
            let arm = |who, statement: &str, params: Vec<Box<dyn ToSql + Sync + Send>>| {
                let mut client = bench.connect(who)?;
                join_backend(&mut client)?;
                let statement = client.prepare(statement)?;
                let work = move || {
                    let params: Vec<&(dyn ToSql + Sync)> =
                        params.iter().map(|param| &**param as _).collect();
                    expect_rows(&mut client, &statement, &params, rows as usize)
                };
                Ok::<Arm, Box<dyn std::error::Error + Send + Sync>>(vec![Box::new(work)])
            };
            Ok(vec![
                arm(As::Member, LIST, vec![Box::new(rows)])?,
                arm(
                    As::Member,
                    LIST_BEFORE,
                    vec![Box::new(rows), Box::new(before), Box::new(before_id)],
                )?,
                arm(
                    As::Bypass,
                    LIST_PLAIN,
                    vec![Box::new(limit), Box::new(tenant), Box::new(user)],
                )?,
                arm(
                    As::Bypass,
                    LIST_PLAIN_BEFORE,
                    vec![
                        Box::new(limit),
                        Box::new(tenant),
                        Box::new(user),
                        Box::new(plain_before),
                        Box::new(plain_before_id),
                    ],
                )?,
            ])
        },
        || Ok(()),
    )?;
    let last = format!("page {page}");
    let plain_last = format!("query on plain, page {page}");
    let arms = ["page 1", &last, "query on plain, page 1", &plain_last];
    Ok(lines(&arms, &figures, &[(1, 0, ratio(1.3)), (0, 2, None), (1, 3, None)]))
}
