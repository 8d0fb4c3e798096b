//! The tables of `docs/access.md` are the matrix.
//!
//! `PGC_BLESS=1` writes them; what stands around them is written by hand.

use std::fs;
use std::path::Path;

use crate::matrix::{Block, Matrix, markdown};

const BEGIN: &str = "<!-- from tests/access/matrix.txt: -->\n";
const END: &str = "<!-- to here. -->\n";

fn tables(matrix: &Matrix) -> String {
    let part = |title: &str, blocks: &[Block]| {
        let blocks: String = blocks.iter().map(markdown).collect();
        format!("### {title}\n\n{blocks}")
    };
    [
        part("Tables", &matrix.tables),
        part("Columns", &matrix.columns),
        part("Functions", &matrix.functions),
    ]
    .concat()
}

#[test]
fn the_page_for_administrators_has_the_tables_of_the_matrix() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/access.md");
    let page = fs::read_to_string(&file).expect("docs/access.md");
    let parts = page.split_once(BEGIN).and_then(|(head, rest)| Some((head, rest.split_once(END)?)));
    let (head, (written, tail)) = parts.expect("docs/access.md has both comments");
    let wanted = format!("\n{}", tables(&Matrix::read()));
    if std::env::var_os("PGC_BLESS").is_some() {
        fs::write(&file, format!("{head}{BEGIN}{wanted}{END}{tail}")).expect("the page is written");
        return;
    }
    let mut lines = wanted.lines().zip(written.lines());
    if let Some((wanted, written)) = lines.find(|(wanted, written)| wanted != written) {
        panic!("docs/access.md: write it with PGC_BLESS=1\n- {written}\n+ {wanted}");
    }
    assert_eq!(wanted, written, "docs/access.md: write it with PGC_BLESS=1");
}
