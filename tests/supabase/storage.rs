//! Files, as the storage service sends them to the database: with its own preamble, as the user.

use pg_conversation_tests::{Client, Session, Uuid};

use crate::rest::{Rest, user};
use crate::stack::Deployment;

const BUCKETS: [&str; 3] = ["documents", "user-files", "generated-files"];

/// A pooled connection of the storage service.
struct Storage {
    client: Client,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Deed {
    Upload,
    Read,
    Replace,
    Move,
    Upsert,
    Remove,
}

impl Storage {
    fn new(deployment: &Deployment) -> Self {
        Self { client: deployment.connect("authenticator") }
    }

    /// Rows that the deed has touched, or the SQLSTATE of the refusal. Nothing of it stays.
    fn try_as(
        &mut self,
        caller: (&str, Option<Uuid>),
        deed: Deed,
        bucket: &str,
        name: &str,
    ) -> String {
        self.act(caller, deed, bucket, name, "rollback")
    }

    fn act(
        &mut self,
        (role, who): (&str, Option<Uuid>),
        deed: Deed,
        bucket: &str,
        name: &str,
        end: &str,
    ) -> String {
        let sub = who.map(|id| id.to_string()).unwrap_or_default();
        let claims = match who {
            Some(id) => format!(r#"{{"sub": "{id}", "role": "{role}"}}"#),
            None => format!(r#"{{"role": "{role}"}}"#),
        };
        self.client.run("begin");
        self.client
            .query(
                "select set_config('role', $1, true), set_config('request.jwt.claim.role', $1, true),
                    set_config('request.jwt.claim.sub', $2, true), set_config('request.jwt.claims', $3, true),
                    set_config('request.method', 'POST', true), set_config('storage.operation', 'storage.object', true),
                    set_config('storage.allow_delete_query', 'true', true)",
                &[&role, &sub, &claims],
            )
            .expect("the preamble");
        let by = "where bucket_id = $1 and name = $2";
        let sql = match deed {
            Deed::Upload => {
                "insert into storage.objects (bucket_id, name) values ($1, $2) returning *".into()
            }
            Deed::Read => format!("select * from storage.objects {by}"),
            Deed::Replace => format!("update storage.objects set version = 'v2' {by} returning *"),
            Deed::Move => {
                format!("update storage.objects set name = 'moved/' || name {by} returning *")
            }
            Deed::Upsert => {
                "insert into storage.objects (bucket_id, name, version) values ($1, $2, 'v3')
                on conflict (bucket_id, name) do update set version = 'v3' returning *"
                    .into()
            }
            Deed::Remove => format!("delete from storage.objects {by} returning *"),
        };
        let found = match self.client.query(&sql, &[&bucket, &name]) {
            Ok(rows) => rows.len().to_string(),
            Err(error) => error.code().expect("an SQLSTATE").code().to_string(),
        };
        self.client.run(end);
        found
    }
}

#[test]
fn the_buckets_are_private_and_have_their_limits() {
    let deployment = Deployment::new();
    deployment.postgres().run("select link_supabase()");
    let buckets: Vec<String> = deployment.admin().values(
        "select format('%s %s %s %s %s', id, name, public, file_size_limit, allowed_mime_types)
         from storage.buckets order by id",
    );
    assert_eq!(
        buckets,
        [
            "documents documents f 104857600 {application/pdf,application/msword,\
             application/vnd.openxmlformats-officedocument.wordprocessingml.document,text/plain}",
            "generated-files generated-files f 10485760 {text/*,application/json}",
            "user-files user-files f 52428800 {text/*,application/pdf,image/*}",
        ]
    );
    // Those that are there keep what the deployment has made of them.
    deployment.admin().run("update storage.buckets set file_size_limit = 1 where id = 'documents'");
    deployment.postgres().run("select link_supabase()");
    let limit = "select file_size_limit from storage.buckets where id = 'documents'";
    assert_eq!(deployment.admin().value::<i64>(limit), 1);
}

/// What a user may do in a folder: his own and somebody else's, in each bucket.
#[test]
fn a_user_has_the_folder_of_his_name_in_each_bucket_and_no_other() {
    for schema in ["public", "chat"] {
        let deployment = Deployment::with_schema(schema);
        deployment.postgres().run("select link_supabase()");
        let (ada, eve) = (deployment.sign_up("ada"), deployment.sign_up("eve"));
        let mut admin = deployment.admin();
        for id in [ada, eve] {
            for bucket in BUCKETS {
                admin.run(&format!(
                    "insert into storage.objects (bucket_id, name) values ('{bucket}', '{id}/c1/plan.txt')"
                ));
            }
        }
        for name in ["plan.txt", "shared/plan.txt"] {
            admin.run(&format!(
                "insert into storage.objects (bucket_id, name) values ('documents', '{name}')"
            ));
        }
        admin.run(&format!(
            "insert into storage.buckets (id, name) values ('avatars', 'avatars');
             insert into storage.objects (bucket_id, name) values ('avatars', '{ada}/c1/plan.txt')"
        ));
        let mut storage = Storage::new(&deployment);
        let mine = |file: &str| format!("{ada}/{file}");
        let (own, theirs) = (mine("c1/plan.txt"), format!("{eve}/c1/plan.txt"));
        let (new, new_theirs) = (mine("new.txt"), format!("{eve}/new.txt"));
        let refused = "42501";
        // The deed, the file; in documents and user-files; in generated-files.
        let cases = [
            (Deed::Upload, new.clone(), "1", refused),
            (Deed::Upload, new_theirs.clone(), refused, refused),
            (Deed::Upload, "new.txt".into(), refused, refused),
            (Deed::Upload, format!("/{}", mine("x")), refused, refused),
            (Deed::Upload, format!("c1/{ada}/x"), refused, refused),
            (Deed::Upload, format!("{ada}x/x"), refused, refused),
            (Deed::Upload, ada.to_string(), refused, refused),
            (Deed::Upload, mine("../../x"), "1", refused),
            (Deed::Read, own.clone(), "1", "1"),
            (Deed::Read, theirs.clone(), "0", "0"),
            (Deed::Read, "plan.txt".into(), "0", "0"),
            (Deed::Read, "shared/plan.txt".into(), "0", "0"),
            (Deed::Replace, own.clone(), "1", "0"),
            (Deed::Replace, theirs.clone(), "0", "0"),
            (Deed::Move, own.clone(), refused, "0"),
            (Deed::Move, theirs.clone(), "0", "0"),
            (Deed::Upsert, own.clone(), "1", refused),
            (Deed::Upsert, new, "1", refused),
            (Deed::Upsert, theirs.clone(), refused, refused),
            (Deed::Upsert, new_theirs, refused, refused),
            (Deed::Remove, own.clone(), "1", "1"),
            (Deed::Remove, theirs.clone(), "0", "0"),
            (Deed::Remove, "plan.txt".into(), "0", "0"),
        ];
        let as_ada = ("authenticated", Some(ada));
        for (deed, name, in_theirs, in_generated) in &cases {
            for bucket in BUCKETS {
                let expected = if bucket == "generated-files" { in_generated } else { in_theirs };
                let found = storage.try_as(as_ada, *deed, bucket, name);
                assert_eq!(found, *expected, "{deed:?} {bucket}/{name}");
            }
            // Of other buckets nothing is said.
            let found = storage.try_as(as_ada, *deed, "avatars", name);
            let expected = match deed {
                Deed::Upload | Deed::Upsert => refused,
                _ => "0",
            };
            assert_eq!(found, expected, "{deed:?} avatars/{name}");
        }
        for deed in [Deed::Upload, Deed::Read, Deed::Replace, Deed::Remove] {
            for bucket in BUCKETS {
                let expected = if deed == Deed::Upload { refused } else { "0" };
                for caller in [("anon", None), ("authenticated", None), ("anon", Some(ada))] {
                    let name = if deed == Deed::Upload { mine("a.txt") } else { own.clone() };
                    let found = storage.try_as(caller, deed, bucket, &name);
                    assert_eq!(found, expected, "{caller:?} {deed:?} {bucket}");
                }
                let name = if deed == Deed::Upload { mine("a.txt") } else { own.clone() };
                let found = storage.try_as(("service_role", None), deed, bucket, &name);
                assert_eq!(found, "1", "service {deed:?} {bucket}");
            }
        }
        // A new file can be followed by the next, and is seen by its owner alone.
        let upload = storage.act(as_ada, Deed::Upload, "user-files", &mine("kept.txt"), "commit");
        assert_eq!(upload, "1");
        for (who, rows) in [(ada, "1"), (eve, "0")] {
            let caller = ("authenticated", Some(who));
            let found = storage.try_as(caller, Deed::Read, "user-files", &mine("kept.txt"));
            assert_eq!(found, rows);
        }
    }
}

#[test]
fn whoever_is_locked_out_has_no_folder() {
    let deployment = Deployment::new();
    deployment.postgres().run("select link_supabase()");
    let mut rest = Rest::new(&deployment);
    let mut storage = Storage::new(&deployment);
    let mut admin = deployment.admin();
    // What happens to a user; whether one who has been here has a folder afterwards, one who has not
    // been here yet, and one whose row the service has made under an id of its own.
    let cases = [
        ("select", [true, true, true]),
        ("update public.users set is_active = false where auth_id = '$u'", [false, true, false]),
        ("update public.users set is_active = true where auth_id = '$u'", [true, true, true]),
        ("update public.tenants set is_active = false", [false, true, false]),
        ("update public.tenants set is_active = true", [true, true, true]),
        // The last one cannot be told from somebody new: his folder ends with his token.
        ("delete from auth.users where id = '$u'", [false, true, true]),
    ];
    for kind in 0..3 {
        let id = deployment.sign_up("ada");
        let file = format!("{id}/a.txt");
        let caller = ("authenticated", Some(id));
        match kind {
            0 => drop(rest.rpc(&user(id), "ensure_user", "{}").unwrap()),
            1 => (),
            _ => admin.run(&format!("insert into public.users (auth_id) values ('{id}')")),
        }
        admin.run(&format!(
            "insert into storage.objects (bucket_id, name) values ('documents', '{file}')"
        ));
        for (sql, has_folder) in cases {
            admin.run(&sql.replace("$u", &id.to_string()));
            let expected = if has_folder[kind] { ["1", "1", "1"] } else { ["42501", "0", "0"] };
            let found = [
                storage.try_as(caller, Deed::Upload, "user-files", &file),
                storage.try_as(caller, Deed::Read, "documents", &file),
                storage.try_as(caller, Deed::Remove, "documents", &file),
            ];
            assert_eq!(found, expected, "{kind}: {sql}");
        }
        admin.run("set storage.allow_delete_query = true; delete from storage.objects");
    }
}

/// The service removes files; nobody else removes their rows.
#[test]
fn rows_of_files_are_not_deleted_by_plain_sql() {
    let deployment = Deployment::new();
    deployment.postgres().run("select link_supabase()");
    let ada = deployment.sign_up("ada");
    let mut pool = deployment.connect("authenticator");
    pool.run(&format!("set request.jwt.claims = '{{\"sub\": \"{ada}\"}}'"));
    for role in ["authenticated", "service_role"] {
        pool.run(&format!("set role {role}"));
        assert_eq!(pool.error("delete from storage.objects").0, "42501", "{role}");
    }
}
