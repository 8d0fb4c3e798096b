//! Reads `matrix.txt`, and says it in Markdown.

use std::fmt::Write;

/// Everybody who has a line.
pub const WHO: [&str; 17] = [
    "owner",
    "co-owner",
    "editor",
    "viewer",
    "audience",
    "colleague",
    "admin",
    "outsider",
    "foreign admin",
    "inactive",
    "suspended",
    "nobody",
    "anon",
    "service",
    "syncer",
    "monitor",
    "table owner",
];

/// One table of the file.
#[derive(Debug, Default)]
pub struct Block {
    pub title: String,
    /// What the page says about it.
    pub words: Vec<String>,
    /// What is done before by whoever owns the tables.
    pub given: String,
    pub statements: Vec<(String, String)>,
    pub columns: Vec<String>,
    pub lines: Vec<(String, Vec<String>)>,
}

impl Block {
    /// The table that it is about, for those that are about one.
    pub fn table(&self) -> &str {
        self.title.split(':').next().unwrap_or_default()
    }

    pub fn statement(&self, column: &str) -> Option<&str> {
        self.statements.iter().find(|(name, _)| name == column).map(|(_, sql)| sql.as_str())
    }

    pub fn cell(&self, who: &str, column: &str) -> &str {
        let n = self.columns.iter().position(|name| name == column);
        let line = self.lines.iter().find(|(name, _)| name == who);
        match (n, line) {
            (Some(n), Some((_, cells))) => &cells[n],
            _ => panic!("matrix.txt: {} has no cell for {who} and {column}", self.title),
        }
    }
}

/// The parts of the file.
pub struct Matrix {
    /// Statements of the verbs that are the same for every table.
    pub verbs: Block,
    pub tables: Vec<Block>,
    pub columns: Vec<Block>,
    pub functions: Vec<Block>,
}

impl Matrix {
    pub fn read() -> Self {
        let mut parts = include_str!("matrix.txt").split("\n=== ").skip(1).map(|part| {
            let (_, part) = part.split_once('\n').expect("a part has a name");
            part.split("\n== ").skip(1).map(block).collect::<Vec<_>>()
        });
        let mut next = || parts.next().expect("matrix.txt has four parts");
        let mut verbs = next();
        let matrix =
            Self { verbs: verbs.remove(0), tables: next(), columns: next(), functions: next() };
        for block in matrix.tables.iter().chain(&matrix.functions) {
            let who: Vec<_> = block.lines.iter().map(|(who, _)| who.as_str()).collect();
            assert_eq!(who, WHO, "matrix.txt: the lines of {}", block.title);
        }
        matrix
    }

    /// The statement behind a cell of a table.
    pub fn verb<'a>(&'a self, block: &'a Block, column: &str) -> String {
        let sql = block.statement(column).or_else(|| self.verbs.statement(column));
        sql.unwrap_or_else(|| panic!("matrix.txt: {} has no {column} =", block.title))
            .replace("$table", block.table())
    }
}

/// Cells and names stand two spaces or more apart.
fn split(line: &str) -> Vec<String> {
    line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).map(String::from).collect()
}

fn block(text: &str) -> Block {
    let mut lines = text.lines();
    let mut block =
        Block { title: lines.next().unwrap_or_default().trim().into(), ..Block::default() };
    for line in lines.filter(|line| !line.trim().is_empty() && !line.starts_with('#')) {
        if let Some(words) = line.strip_prefix("> ") {
            block.words.push(words.into());
        } else if let Some(sql) = line.strip_prefix("given: ") {
            block.given = sql.into();
        } else if let Some((name, sql)) =
            line.split_once(" = ").filter(|_| block.columns.is_empty())
        {
            block.statements.push((name.trim().into(), sql.trim().into()));
        } else if line.starts_with("  ") {
            block.columns = split(line);
        } else {
            let mut cells = split(line);
            let who = cells.remove(0);
            assert_eq!(cells.len(), block.columns.len(), "matrix.txt: {}: {line}", block.title);
            block.lines.push((who, cells));
        }
    }
    block
}

/// The block as a table of Markdown.
pub fn markdown(block: &Block) -> String {
    let mut text = format!("#### {}\n\n", block.title);
    if !block.words.is_empty() {
        let _ = write!(text, "{}\n\n", block.words.join(" "));
    }
    let _ = writeln!(text, "| | {} |", block.columns.join(" | "));
    let _ = writeln!(text, "|---|{}", "---|".repeat(block.columns.len()));
    // Those of whom the same is said share a line.
    let mut lines: Vec<(String, Vec<&str>)> = Vec::new();
    for (who, cells) in &block.lines {
        let cells: Vec<String> = cells.iter().map(|cell| said(cell)).collect();
        let cells = cells.join(" | ");
        match lines.iter_mut().find(|(of, _)| *of == cells) {
            Some((_, people)) => people.push(who),
            None if cells.chars().all(|c| "| ".contains(c)) => (),
            None => lines.push((cells, vec![who])),
        }
    }
    for (cells, people) in lines {
        let _ = writeln!(text, "| {} | {cells} |", people.join(", "));
    }
    text.push('\n');
    text
}

fn said(cell: &str) -> String {
    match cell {
        "." => String::new(),
        "-" => "–".into(),
        code if code.len() == 5 && code.chars().all(|c| c.is_ascii_digit() || c.is_uppercase()) => {
            format!("`{code}`")
        }
        words => words.into(),
    }
}
