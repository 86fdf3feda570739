//! Each point of the first audit leads to rows of the table of attacks, and to a test that carries the attack out from
//! outside.

use super::promises::{assert_tests_exist, attacks, is_outside, page, quoted, tables, tests_named};

/// The table of docs/security.md that this file checks.
const POINTS: &str = "What the first audit asked for";

/// Points of the audit.
const COUNT: usize = 20;

/// The point without an attack, and so without a test from outside. It is about sentences on pages, which a test of the
/// pages compares with the kernel.
const ABOUT_PAGES: usize = 8;

/// How the row of that point begins where another one names rows.
const NO_ROW: &str = "none, as ";

/// The tests that each attack names, by the first words of its row. A row that says "the same" names those of the row
/// above it.
fn rows_of_attacks() -> Vec<(String, String)> {
    let mut above = String::new();
    let rows = attacks().into_iter().map(|row| {
        let [attack, _, tests] = <[String; 3]>::try_from(row).expect("three columns");
        let named = match tests.starts_with("the same") {
            true => format!("{above}; {tests}"),
            false => tests,
        };
        above.clone_from(&named);
        (attack, named)
    });
    rows.collect()
}

#[test]
fn every_point_of_the_first_audit_has_a_test_from_outside() {
    let points = tables(&page("security.md")).remove(POINTS);
    let points = points.expect("the table");
    let (_, points) = points.split_first().expect("headings");
    let attacks = rows_of_attacks();
    for (at, row) in points.iter().enumerate() {
        let [number, topic, rows, tests] = row.as_slice() else {
            panic!("docs/security.md, {POINTS}: four columns: {row:?}");
        };
        assert_eq!(number.parse(), Ok(at + 1), "{topic}: the points in order");
        assert_tests_exist(topic, tests);
        if at + 1 == ABOUT_PAGES {
            assert!(rows.starts_with(NO_ROW), "{topic}: {rows:?}");
        } else {
            let named = rows.split("; ").map(|words| {
                let mut found = attacks.iter().filter(|(row, _)| row.starts_with(words));
                let (Some((_, named)), None) = (found.next(), found.next()) else {
                    panic!(
                        "{topic}: {words:?} begins no row of the table of attacks, or more than one"
                    );
                };
                named.as_str()
            });
            let named: Vec<_> = named.collect();
            for (file, test) in tests_named(tests) {
                let is_named = named
                    .iter()
                    .flat_map(|cell| quoted(cell))
                    .any(|it| it == file);
                assert!(is_named, "{topic}: no such row names {file}: {test}");
            }
            let mut files = tests_named(tests).into_iter().map(|(file, _)| file);
            assert!(files.any(is_outside), "{topic}: no test from outside");
        }
    }
    assert_eq!(points.len(), COUNT);
}
