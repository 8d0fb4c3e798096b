//! One connection, many callers: what one request leaves behind is nobody's in the next.

use pg_conversation_tests::{Client, Session, Uuid};

use crate::rest::{Caller, Rest, Returning, nobody, service, user};
use crate::stack::Deployment;

const COUNT: &str = r#"SELECT 1 FROM "public"."conversations""#;
const SELECT: &str = r#"SELECT "public"."conversations"."title" FROM "public"."conversations""#;

fn with_claims(claims: &str) -> Caller {
    Caller { role: "authenticated", claims: claims.into() }
}

#[test]
fn nothing_of_a_caller_is_left_for_the_next_one() {
    let deployment = Deployment::new();
    let mut rest = Rest::new(&deployment);
    let (ada, eve) = (deployment.sign_up("ada"), deployment.sign_up("eve"));
    for (caller, title) in [(&user(ada), "hers"), (&user(eve), "others")] {
        let body = format!(r#"{{"title": "{title}"}}"#);
        rest.rpc(caller, "create_conversation", &body).unwrap();
    }
    let hers = r#"[{"title":"hers"}]"#;
    let others = r#"[{"title":"others"}]"#;
    // json_agg puts each row on a line of its own.
    let both = "[{\"title\":\"hers\"}, \n {\"title\":\"others\"}]";
    // Each after each of the others, and after itself.
    let callers = [
        (user(ada), Ok(hers)),
        (user(eve), Ok(others)),
        (user(Uuid::new_v4()), Ok("[]")),
        (service(), Ok(both)),
        (nobody(), Err("42501")),
        (with_claims(""), Ok("[]")),
        (with_claims("{}"), Ok("[]")),
        (with_claims(r#"{"sub": ""}"#), Ok("[]")),
        (with_claims(r#"{"sub": "not a uuid"}"#), Ok("[]")),
        (with_claims(r#"{"sub": null, "role": "authenticated"}"#), Ok("[]")),
        (with_claims("no JSON"), Ok("[]")),
    ];
    let ordered = format!(r#"{SELECT} ORDER BY "public"."conversations"."title" ASC"#);
    for (before, _) in &callers {
        for (after, expected) in &callers {
            // One that works, one that fails: the transaction ends either way.
            let _ = rest.read(before, &ordered, Some(COUNT), &[]);
            let _ = rest.rpc(before, "add_message", r#"{"role": "user"}"#);
            let found = rest.read(after, &ordered, Some(COUNT), &[]);
            let found = found.as_ref().map(|reply| reply.body.as_str());
            let told = format!("{} after {}", after.claims, before.claims);
            match expected {
                Ok(rows) => assert_eq!(found, Ok(*rows), "{told}"),
                Err(code) => assert_eq!(found.unwrap_err().0, *code, "{told}"),
            }
            assert_idle(rest.idle());
        }
    }
}

/// Between requests the connection is nobody's.
fn assert_idle(pool: &mut Client) {
    let left = pool.value::<String>(
        "select format('%s|%s|%s|%s', current_user, current_setting('request.jwt.claims', true),
            current_setting('request.method', true), current_setting('role'))",
    );
    assert_eq!(left, "authenticator|||none");
}

/// On the connection that has just served them.
#[test]
fn whoever_is_deactivated_is_out_with_the_next_request() {
    let deployment = Deployment::new();
    let mut rest = Rest::new(&deployment);
    let (ada, eve) = (deployment.sign_up("ada"), deployment.sign_up("eve"));
    for id in [ada, eve] {
        rest.rpc(&user(id), "create_conversation", r#"{"title": "mine"}"#).unwrap();
    }
    let hers = ada.to_string();
    let tenant = "00000000-0000-7000-8000-000000000001";
    let cases = [
        ("users", hers.as_str(), "false", [0, 1]),
        ("users", &hers, "true", [1, 1]),
        ("tenants", tenant, "false", [0, 0]),
        ("tenants", tenant, "true", [1, 1]),
    ];
    for (table, id, active, expected) in cases {
        let body = format!(r#"{{"is_active": {active}}}"#);
        rest.patch(&service(), table, &body, ("id", id), Returning::Nothing).unwrap();
        let rows = [ada, eve].map(|id| rest.read(&user(id), SELECT, None, &[]).unwrap().rows);
        assert_eq!(rows, expected, "{table} {active}");
        for (id, rows) in [ada, eve].into_iter().zip(rows) {
            let made = rest.rpc(&user(id), "create_conversation", "{}");
            assert_eq!(made.is_ok(), rows > 0, "{table} {active}");
            if let Err((code, _)) = &made {
                assert_eq!(code, "28000");
            }
            if let Ok(made) = made {
                let c = rest.at(&made, "");
                rest.delete(&user(id), "conversations", ("id", &c)).unwrap();
            }
        }
        // Nobody gives himself activity, nor a role.
        for body in [r#"{"is_active": true}"#, r#"{"role": "admin"}"#, r#"{"auth_id": null}"#] {
            let own = rest.patch(&user(ada), "users", body, ("id", &hers), Returning::Nothing);
            assert_eq!(own.unwrap_err().0, "42501", "{body}");
        }
    }
}

#[test]
fn the_pool_itself_reaches_no_table() {
    let deployment = Deployment::new();
    let mut rest = Rest::new(&deployment);
    rest.rpc(&user(deployment.sign_up("ada")), "create_conversation", "{}").unwrap();
    for sql in [
        "select * from conversations",
        "select * from users",
        "insert into messages default values",
        "select grant_access('authenticator')",
        "select migrate()",
    ] {
        assert_eq!(rest.idle().error(sql).0, "42501", "{sql}");
    }
}

/// Storage and older clients name the subject in a setting of its own, which may be empty.
#[test]
fn the_subject_may_come_as_a_claim_of_its_own() {
    let deployment = Deployment::new();
    let mut rest = Rest::new(&deployment);
    let (ada, eve) = (deployment.sign_up("ada"), deployment.sign_up("eve"));
    let made = rest.rpc(&user(ada), "ensure_user", "{}").unwrap();
    assert_eq!(rest.at(&made, ""), ada.to_string());
    let claims = format!(r#"{{"sub": "{ada}"}}"#);
    let cases = [
        (ada.to_string(), "", Some(ada)),
        (ada.to_string(), claims.as_str(), Some(ada)),
        (String::new(), claims.as_str(), Some(ada)),
        // The more exact one counts, and never falls through to the other.
        (eve.to_string(), claims.as_str(), None),
        ("nobody".into(), claims.as_str(), None),
        (String::new(), "", None),
    ];
    let pool = rest.idle();
    for (subject, claims, expected) in cases {
        pool.run("begin; set local role authenticated");
        pool.query(
            "select set_config('request.jwt.claim.sub', $1, true), set_config('request.jwt.claims', $2, true)",
            &[&subject, &claims],
        )
        .unwrap();
        let found: Option<Uuid> = pool.value("select public.current_user_id()");
        assert_eq!(found, expected, "{subject:?} {claims:?}");
        pool.run("commit");
        assert_idle(pool);
    }
}
