//! docs/supabase.md: its statements run as they stand there.

use pg_conversation_tests::Session;

use crate::rest::{Rest, user};
use crate::stack::{ADMIN, Deployment, POSTGRES};

const GUIDE: &str = include_str!("../../docs/supabase.md");

/// The blocks of SQL and who runs them.
fn statements() -> impl Iterator<Item = (&'static str, &'static str)> {
    GUIDE.split("```sql\n").skip(1).map(|rest| {
        let block = rest.split("```").next().expect("an end of the block");
        let who = if block.starts_with("-- as supabase_admin") { ADMIN } else { POSTGRES };
        (who, block)
    })
}

#[test]
fn the_statements_of_the_guide_do_what_it_says() {
    let deployment = Deployment::untouched();
    assert!(statements().count() >= 5);
    for (who, block) in statements() {
        println!("{who}: {block}");
        deployment.connect(who).run(block);
    }
    // All that can be linked is: the last block has put the chunks into the publication again.
    let mut admin = deployment.admin();
    let done: Vec<bool> = deployment.postgres().values("select done from link_supabase()");
    assert_eq!(done, [true; 5]);
    let policies = "select count(*) from pg_policies where schemaname = 'storage'";
    assert_eq!(admin.value::<i64>(policies), 4);
    let published: i64 = admin
        .value("select count(*) from pg_publication_tables where pubname = 'supabase_realtime'");
    assert_eq!(published, 3);

    // Accounts with a tenant of their own, with none, and with one that they would like to have.
    admin.run("insert into tenants (name, slug) values ('Looms', 'looms')");
    let looms: String = admin.value("select id::text from tenants where slug = 'looms'");
    let default = "00000000-0000-7000-8000-000000000001";
    let cases = [
        (format!(r#"'{{"tenant_id": "{looms}"}}', '{{"name": "Ada"}}'"#), looms.as_str(), "Ada"),
        (r#"'{}', '{"name": "Bob"}'"#.to_string(), default, "Bob"),
        (format!(r#"'{{}}', '{{"tenant_id": "{looms}"}}'"#), default, ""),
    ];
    for (data, tenant, name) in cases {
        let id = pg_conversation_tests::Uuid::new_v4();
        deployment.connect("supabase_auth_admin").run(&format!(
            "insert into users (id, email, raw_app_meta_data, raw_user_meta_data)
             values ('{id}', '{id}@example', {data})"
        ));
        let sql = format!(
            "select format('%s %s %s %s', auth_id, tenant_id, email, name) from users where id = '{id}'"
        );
        let row: String = deployment.postgres().value(&sql);
        assert_eq!(row, format!("{id} {tenant} {id}@example {name}"));
        let mut rest = Rest::new(&deployment);
        let me = rest.rpc(&user(id), "current_user_id", "{}").unwrap();
        assert_eq!(rest.at(&me, ""), id.to_string());
    }
}
