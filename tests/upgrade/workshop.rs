//! A server on which older versions of the extension can be installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use pg_conversation_tests::{Private, Server, Session, Uuid, bin, command, run};

use crate::{OWNER, fresh};

/// A server with a copy of the extension's files beside which older versions can be laid.
pub struct Workshop {
    server: Private,
    copy: PathBuf,
}

impl std::ops::Deref for Workshop {
    type Target = Server;
    fn deref(&self) -> &Server {
        &self.server
    }
}

impl Workshop {
    pub fn new(version: u32) -> Self {
        let copy = scratch().join(format!("tree-{}", Uuid::new_v4()));
        let [bindir, sharedir, pkglibdir] =
            ["--bindir", "--sharedir", "--pkglibdir"].map(|what| asked(version, what));
        let root = bindir
            .ancestors()
            .find(|root| sharedir.starts_with(root) && pkglibdir.starts_with(root))
            .expect("one folder holds the tree");
        // Linked, not copied: files are only added.
        let linked =
            Command::new("cp").arg("-al").arg(root).arg(&copy).stderr(Stdio::null()).status();
        if !linked.is_ok_and(|status| status.success()) {
            let _ = fs::remove_dir_all(&copy);
            run(Command::new("cp").arg("-a").arg(root).arg(&copy));
        }
        let moved = |path: &Path| copy.join(path.strip_prefix(root).expect("below the root"));
        let server = Server::private(version, "fsync = off\n");
        server.stop("fast");
        run(command(&moved(&bindir).join("pg_ctl"))
            .args(["-w", "-t", "60", "-l"])
            .arg(server.dir.join("log"))
            .arg("-D")
            .arg(server.dir.join("data"))
            .arg("start")
            .stdout(Stdio::null())
            .stderr(Stdio::null()));
        server.role(OWNER);
        let latest =
            fresh(&server, "public").superuser().value("select max(version) from schema_version");
        lay_older_versions(&moved(&sharedir).join("extension"), latest);
        Self { server, copy }
    }
}

impl Drop for Workshop {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.copy);
    }
}

pub fn scratch() -> PathBuf {
    std::env::var_os("PGC_SCRATCH").expect("PGC_SCRATCH: run the tests with dev/test").into()
}

fn asked(version: u32, what: &str) -> PathBuf {
    let output = run(command(&bin(version).join("pg_config")).arg(what));
    PathBuf::from(String::from_utf8_lossy(&output.stdout).trim())
}

/// What an older release would have been: one function less, another that has changed since, and a
/// schema of version n. No release is old enough to stand here in earnest.
fn lay_older_versions(folder: &Path, latest: i32) {
    let control =
        fs::read_to_string(folder.join("pg_conversation.control")).expect("the control file");
    let current = control
        .lines()
        .find_map(|line| line.strip_prefix("default_version = '")?.strip_suffix('\''))
        .expect("a default version");
    let today = fs::read_to_string(folder.join(format!("pg_conversation--{current}.sql")))
        .expect("today's script");
    let update = today
        .lines()
        .map(|line| match line.split_once(' ') {
            Some((create, rest))
                if create.eq_ignore_ascii_case("create")
                    && rest.trim_start().to_lowercase().starts_with("function ") =>
            {
                format!("create or replace {}", rest.trim_start())
            }
            _ => line.to_string(),
        })
        .collect::<Vec<_>>()
        .join("\n");
    assert_ne!(update, today);
    let older = without_function(&today, "purge_conversation");
    let older =
        older.replace("where c.id = archive_conversation.conversation_id", "where c.id is null");
    assert_ne!(older, without_function(&today, "purge_conversation"));
    for version in 0..=latest {
        let script = format!("{older}\nselect @extschema@.rollback_to({version});\n");
        fs::write(folder.join(format!("pg_conversation--0.0.{version}.sql")), script)
            .expect("an older version");
        fs::write(folder.join(format!("pg_conversation--0.0.{version}--{current}.sql")), &update)
            .expect("its update script");
    }
}

/// The script without a function of its own and the comment on it.
fn without_function(script: &str, name: &str) -> String {
    let start = script.find(&format!("create function @extschema@.{name}(")).expect("the function");
    let comment = start + script[start..].find("comment on function").expect("its comment");
    let end = comment + script[comment..].find("';\n").expect("the end of it") + 3;
    format!("{}{}", &script[..start], &script[end..])
}
