//! `docs/never-repeat.md` names a test for each mistake that is not to be made here. This sees to it that it stays true.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The sources below `directory`.
fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("target") {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The tests in a source: functions below a `#[test]`, with nothing but other attributes in between.
fn tests(source: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut is_test = false;
    for line in source.lines().map(str::trim) {
        match line.strip_prefix("fn ").and_then(|rest| rest.split_once('(')) {
            Some((name, _)) if is_test => found.push(name.to_owned()),
            _ => {}
        }
        is_test = line == "#[test]" || is_test && line.starts_with("#[");
    }
    found
}

#[test]
fn every_test_in_the_table_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut files = Vec::new();
    for directory in ["vmm", "tests"] {
        sources(&root.join(directory), &mut files);
    }
    let existing: BTreeSet<String> =
        files.iter().flat_map(|file| tests(&std::fs::read_to_string(file).unwrap())).collect();

    let table = std::fs::read_to_string(root.join("docs/never-repeat.md")).unwrap();
    let is_row =
        |line: &&str| line.starts_with('|') && !line.starts_with("| ---") && !line.starts_with("| Mistake");
    let rows: Vec<&str> = table.lines().filter(is_row).collect();
    assert!(rows.len() > 20, "the table was not understood");
    let mut wrong = Vec::new();
    for row in rows {
        let [_, mistake, _, column, _] = row.split('|').collect::<Vec<_>>()[..] else {
            panic!("not three columns: {row}");
        };
        let names: Vec<&str> = column.split('`').map(str::trim).filter(|name| !name.is_empty()).collect();
        if names.is_empty() {
            wrong.push(format!("no test:{mistake}"));
        }
        let missing = names.into_iter().filter(|name| !existing.contains(*name));
        wrong.extend(missing.map(|name| format!("there is no test {name}, for:{mistake}")));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
