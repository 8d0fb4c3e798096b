//! The whole matrix: in sessions of each role, through one session that becomes everybody, and nothing
//! left out.

use std::collections::HashMap;

use pg_conversation_tests::{Client, Server, Session, oldest, versions};

use crate::answer::{Answer, ask};
use crate::cells::{Door, Trial};
use crate::filling::fill;
use crate::matrix::{Block, Matrix};
use crate::world::{World, world};

fn table_names(matrix: &Matrix) -> Vec<&str> {
    let mut names: Vec<&str> = matrix.tables.iter().map(Block::table).collect();
    names.dedup();
    names
}

/// Tries everything that needs nothing to be changed before; says what is wrong.
fn everything(matrix: &Matrix, world: &World, door: Door) -> String {
    let mut trial = Trial::new(matrix, world, door);
    for name in table_names(matrix) {
        trial.table(name);
    }
    let functions = matrix.functions.iter().filter(|block| block.given.is_empty());
    for block in functions.clone() {
        trial.functions(block);
    }
    trial.verdict(&matrix.tables.iter().chain(functions).collect::<Vec<_>>())
}

#[test]
fn each_role_in_a_session_of_its_own_is_given_what_the_matrix_says() {
    let matrix = Matrix::read();
    let world = world(Server::shared(oldest()));
    let wrong = everything(&matrix, &world, Door::Own(HashMap::new()));
    assert!(wrong.is_empty(), "{wrong}");
}

/// One session of a role that has no rights of its own becomes everybody in turn, so that its plans
/// and whatever else it keeps are made for one and used by the next.
#[test]
fn one_session_that_becomes_everybody_is_given_what_each_is() {
    let matrix = Matrix::read();
    let world = world(Server::shared(*versions().last().expect("a version")));
    let wrong = everything(&matrix, &world, Door::Gate(Box::new(world.gate())));
    assert!(wrong.is_empty(), "{wrong}");
}

/// What others may do does not change when the owner of the tables binds himself, too.
#[test]
fn forced_row_level_security_changes_nothing_for_others() {
    let matrix = Matrix::read();
    let mut world = world(Server::shared(oldest()));
    force(&mut world.session("table owner"), &matrix);
    // What holds in one tenant has been tried in the other, too.
    let foreign = world.person("b owner").tenant;
    world.people.retain(|person| person.kind != "table owner" && person.tenant != foreign);
    let wrong = everything(&matrix, &world, Door::Own(HashMap::new()));
    assert!(wrong.is_empty(), "{wrong}");
}

pub fn force(owner: &mut Client, matrix: &Matrix) {
    // Views are not asked to refer to.
    let is_table = |block: &&Block| block.columns.iter().any(|column| column == "references");
    for block in matrix.tables.iter().filter(is_table) {
        owner.run(&format!("alter table {} force row level security", block.table()));
    }
}

#[test]
fn blocks_with_something_given_hold_where_it_is_given() {
    let matrix = Matrix::read();
    let mut wrong = String::new();
    for block in matrix.functions.iter().filter(|block| !block.given.is_empty()) {
        let world = world(Server::shared(oldest()));
        let mut trial = Trial::new(&matrix, &world, Door::Own(HashMap::new()));
        world.root().run(&block.given);
        trial.functions(block);
        wrong.push_str(&trial.verdict(&[block]));
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// What may be read, inserted and updated, column by column: asked by statements that would touch no
/// row.
#[test]
fn columns_are_open_to_the_roles_that_the_matrix_says() {
    let matrix = Matrix::read();
    let world = world(Server::shared(oldest()));
    let mut root = world.root();
    let mut wrong = Vec::new();
    let tables: Vec<&str> = matrix.columns.iter().map(|block| block.title.as_str()).collect();
    assert_eq!(tables, table_names(&matrix));
    for block in &matrix.columns {
        let table = &block.title;
        let columns: Vec<String> = root.values(&format!(
            "select attname::text from pg_attribute \
             where attrelid = '{table}'::regclass and attnum > 0 and not attisdropped order by attnum"
        ));
        let named: Vec<&String> = block.lines.iter().map(|(name, _)| name).collect();
        if !columns.iter().eq(named.iter().copied()) {
            wrong.push(format!("{table} has the columns {columns:?}"));
            continue;
        }
        for profile in &block.columns {
            let mut session = world.database.connect(&format!("access_{profile}"));
            for column in &columns {
                let verbs = [
                    ("s", format!("select {column} from {table} where false")),
                    (
                        "i",
                        format!(
                            "insert into {table} ({column}) select {column} from {table} where false"
                        ),
                    ),
                    ("u", format!("update {table} set {column} = null where false")),
                ];
                let may =
                    |(_, sql): &(&str, String)| matches!(ask(&mut session, sql), Answer::Rows(..));
                let found: String =
                    verbs.into_iter().filter(may).map(|(letter, _)| letter).collect();
                let expected = block.cell(column, profile).replace('-', "");
                if found != expected {
                    wrong
                        .push(format!("{table} | {column} | {profile}: {expected}, found {found}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "columns of matrix.txt:\n{}", wrong.join("\n"));
}

#[test]
fn every_table_and_every_function_has_a_line() {
    let matrix = Matrix::read();
    for version in versions() {
        let world = world(Server::shared(version));
        let mut root = world.root();
        let mut missing: Vec<String> = Vec::new();
        let relations: Vec<String> = root.values(
            "select relname::text from pg_class \
             where relnamespace = (select extnamespace from pg_extension where extname = 'pg_conversation') \
             and relkind in ('r', 'p', 'v', 'm', 'f', 'S') order by relname",
        );
        let named: Vec<&str> = table_names(&matrix);
        missing.extend(relations.iter().filter(|name| !named.contains(&name.as_str())).cloned());
        for name in named {
            assert!(relations.iter().any(|relation| relation == name), "there is no table {name}");
        }
        // Triggers are not called, and what takes internal values cannot be.
        let functions: Vec<(String, bool)> = root
            .query(
                "select p.oid::regprocedure::text, p.prorettype in ('trigger'::regtype, 'internal'::regtype) \
                 from pg_depend d join pg_proc p on p.oid = d.objid \
                 join pg_extension e on e.oid = d.refobjid and e.extname = 'pg_conversation' \
                 where d.classid = 'pg_proc'::regclass and d.refclassid = 'pg_extension'::regclass \
                 and d.deptype = 'e' order by 1",
                &[],
            )
            .expect("the functions")
            .iter()
            .map(|row| (row.get(0), row.get(1)))
            .collect();
        // Which functions a statement calls is what a view of it depends on: overloads count apart.
        let mut called: Vec<String> = Vec::new();
        let statements = matrix.functions.iter().flat_map(|block| &block.statements);
        for (_, sql) in statements.filter(|(_, sql)| sql.starts_with("select")) {
            let sql = fill(sql, world.person("a owner"), world.place("a/private"));
            root.run(&format!(
                "create or replace temp view calls as select count(x) from ({sql}) _ (x)"
            ));
            called.extend(root.values::<String>(
                "select refobjid::regprocedure::text from pg_depend d \
                 join pg_rewrite r on r.oid = d.objid and d.classid = 'pg_rewrite'::regclass \
                 where ev_class = 'calls'::regclass and refclassid = 'pg_proc'::regclass",
            ));
        }
        for (signature, is_out_of_reach) in functions {
            if !is_out_of_reach && !called.contains(&signature) {
                missing.push(signature);
            }
        }
        assert!(missing.is_empty(), "not in matrix.txt: {missing:?}");
    }
}
