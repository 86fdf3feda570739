//! Compares docs/comparison.md with the table of README.md: each cell about another system has a
//! source, and each source has an address and a date.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use super::promises::{page, tables};
use super::tree::root;

/// The section of README.md with the table.
const TABLE: &str = "What works, and what does not yet";

/// Columns of README.md before the other systems: the row's name and alknet.
const OWN_COLUMNS: usize = 2;

/// The table says nothing about the system.
const NOTHING: &str = "–";

/// Cells of README.md that leave a feature to the system below the program.
const OF_THE_HOST: [&str; 3] = [NOTHING, "by its host", "host"];

/// Rows of README.md's table, each with its cells about the other systems, without headings of its
/// parts.
fn claims() -> Vec<(String, Vec<String>)> {
    let readme = fs::read_to_string(root().join("README.md")).expect("the README");
    let rows = tables(&readme).remove(TABLE).expect("the table");
    let claims = rows.into_iter().filter(|row| is_claim(row));
    claims
        .map(|mut row| {
            let others = row.split_off(OWN_COLUMNS);
            (row.swap_remove(0), others)
        })
        .collect()
}

/// The first row has the systems' names, and rows in bold begin a part.
fn is_claim(row: &[String]) -> bool {
    let is_heading = row[0].starts_with("**") || row[0].starts_with("| alknet");
    row.len() > OWN_COLUMNS && !is_heading
}

/// Sources of each cell, by the row of README.md.
fn cells() -> BTreeMap<String, Vec<String>> {
    let rows = tables(&page("comparison.md")).remove("Cells");
    let rows = rows.expect("the table").into_iter();
    rows.map(|mut row| (row.remove(0), row)).collect()
}

/// Each source by its name: its title, and the date of its copy.
fn sources() -> BTreeMap<String, (String, String)> {
    let rows = tables(&page("comparison.md")).remove("Sources");
    let rows = rows.expect("the table").into_iter();
    let named = rows.filter(|row| row[0] != "source");
    named
        .map(|row| match row.as_slice() {
            [name, what, copied] => (name.clone(), (what.clone(), copied.clone())),
            _ => panic!("docs/comparison.md, Sources: three columns: {row:?}"),
        })
        .collect()
}

#[test]
fn each_cell_about_another_system_has_a_source() {
    let (claims, cells, sources) = (claims(), cells(), sources());
    assert!(claims.len() > 25, "{} rows", claims.len());
    let mut wrong = Vec::new();
    for (row, others) in &claims {
        let found = cells.get(row).map_or(&[][..], Vec::as_slice);
        if found.len() != others.len() {
            wrong.push(format!("{row:?} has {} cells of sources", found.len()));
        }
        for (claim, cell) in others.iter().zip(found) {
            let is_unsaid = cell == NOTHING && OF_THE_HOST.contains(&claim.as_str());
            let are_known = cell.split(", ").all(|name| sources.contains_key(name));
            if !is_unsaid && !are_known {
                wrong.push(format!("{row:?}, {claim:?}: no source {cell:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "docs/comparison.md: {wrong:#?}");
}

#[test]
fn each_source_has_an_address_and_a_day_and_is_used() {
    let (cells, sources) = (cells(), sources());
    assert!(sources.len() > 40, "{} sources", sources.len());
    let cells = cells.values().flatten();
    let used: BTreeSet<&str> = cells.flat_map(|cell| cell.split(", ")).collect();
    for (name, (what, copied)) in &sources {
        assert!(what.contains("](https://"), "{name}: where is {what:?}?");
        let year = copied.get(..4).and_then(|year| year.parse::<u16>().ok());
        assert!(year.is_some_and(|year| year > 2000), "{name}: {copied:?}");
        assert!(
            used.contains(name.as_str()),
            "no cell has the source {name}"
        );
    }
    let text = page("comparison.md");
    assert!(
        text.contains("looked at on 20"),
        "the page has the day of its check"
    );
}

#[test]
fn rows_that_begin_a_part_claim_nothing() {
    let row = |name: &str| [name, "yes", "no"].map(str::to_owned).to_vec();
    assert!(is_claim(&row("static files")));
    assert!(!is_claim(&row("**The machine**")));
    assert!(!is_claim(&row("| alknet 0.1.0")));
}
