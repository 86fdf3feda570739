//! The report: a table for people, and JSON.

use serde_json::{Map, Value, json};

use super::SizeLimit;
use super::ledger::{FORMS, GPU_LIBRARIES, GROUPS, LIBRARIES, SizeChange, SizeLedger};

/// Rows of a group that are shown even if they did not change: the largest.
const ROWS_SHOWN: usize = 25;

/// The table.
pub(super) fn text(
    ledger: &SizeLedger,
    earlier: Option<&SizeLedger>,
    changes: &[SizeChange],
) -> String {
    let against = earlier.map_or_else(
        || "no earlier sizes are in the cache".to_owned(),
        |earlier| format!("change since {}", earlier.commit),
    );
    let mut text = format!("{}: bytes, {against}\n", ledger.commit);
    for group in GROUPS {
        let rows = changes.iter().filter(|it| it.group == group);
        text += &group_text(group, &rows.collect::<Vec<_>>());
    }
    for (name, versions) in &ledger.duplicates {
        text += &format!(
            "several versions in the binary: {name} {}\n",
            versions.join(", ")
        );
    }
    text
}

/// A group's rows: the largest, and those that changed. The others are one row.
fn group_text(group: &str, rows: &[&SizeChange]) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let line = |name: &str, bytes: u64, growth: i64| {
        let change = match growth {
            0 => String::new(),
            growth => format!("{growth:+}"),
        };
        format!("  {name:32} {bytes:>12} {change:>10}")
            .trim_end()
            .to_owned()
            + "\n"
    };
    let is_shown = |(at, row): &(usize, &&SizeChange)| *at < ROWS_SHOWN || row.growth() != 0;
    let (shown, others): (Vec<_>, Vec<_>) = rows.iter().enumerate().partition(is_shown);
    let mut text = format!("{group}\n");
    for (_, row) in shown {
        text += &line(&row.name, row.bytes, row.growth());
    }
    if !others.is_empty() {
        let bytes = others.iter().map(|(_, row)| row.bytes).sum();
        text += &line(&format!("{} others", others.len()), bytes, 0);
    }
    // The forms have much in common, so that their sum says nothing.
    if group != FORMS {
        let bytes = rows.iter().map(|row| row.bytes).sum();
        let growth = rows.iter().map(|row| row.growth()).sum();
        text += &line("sum", bytes, growth);
    }
    text
}

/// The whole ledger, with the sizes before.
pub(super) fn json(
    ledger: &SizeLedger,
    earlier: Option<&SizeLedger>,
    limits: &[SizeLimit],
) -> Value {
    let mut groups = Map::new();
    for change in ledger.changes(earlier) {
        let group = groups.entry(change.group).or_insert_with(|| json!({}));
        group[&change.name] = match change.before {
            Some(before) => json!({ "bytes": change.bytes, "before": before }),
            None => json!({ "bytes": change.bytes }),
        };
    }
    let limits: Vec<Value> = limits
        .iter()
        .map(|it| json!({ "what": it.what, "bytes": it.bytes, "limit": it.limit }))
        .collect();
    json!({
        "commit": ledger.commit,
        "against": earlier.map(|earlier| &earlier.commit),
        "groups": groups,
        "duplicates": ledger.duplicates,
        "limits": limits,
    })
}

/// What grew most, of everything but the forms, which contain the rest.
pub(super) fn largest_growth(earlier: Option<&SizeLedger>, changes: &[SizeChange]) -> String {
    let Some(earlier) = earlier else {
        return "no earlier sizes are in the cache".to_owned();
    };
    let parts = changes.iter().filter(|it| it.group != FORMS);
    let largest = parts.max_by_key(|it| it.growth());
    match largest.filter(|it| it.growth() > 0) {
        Some(row) => {
            let place = match row.group {
                LIBRARIES => "in the binary",
                GPU_LIBRARIES => "in the program for GPUs",
                group => group,
            };
            let growth = row.growth();
            format!(
                "since {} {} {place} grew most, by {growth} bytes",
                earlier.commit, row.name
            )
        }
        None => format!("no part grew since {}", earlier.commit),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sizes::ledger::KERNEL;
    use crate::sizes::ledger::tests::ledger;

    #[test]
    fn the_table_has_sizes_changes_sums_and_duplicates() {
        let before = ledger("aaaa", &[(LIBRARIES, "aes", 100), (FORMS, "uki", 900)]);
        let mut now = ledger("bbbb", &[(LIBRARIES, "aes", 150), (FORMS, "uki", 900)]);
        let versions = ["1.0.0", "2.0.0"].map(str::to_owned);
        now.duplicates.insert("syn".to_owned(), versions.into());
        let shown = text(&now, Some(&before), &now.changes(Some(&before)));
        let lines: Vec<String> = shown
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        let expected = [
            "bbbb: bytes, change since aaaa",
            "binary",
            "aes 150 +50",
            "sum 150 +50",
            "forms",
            "uki 900",
            "several versions in the binary: syn 1.0.0, 2.0.0",
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn many_small_rows_become_one_unless_they_changed() {
        let names: Vec<String> = (0..ROWS_SHOWN + 4)
            .map(|n| format!("crate-{n:03}"))
            .collect();
        let sizes = |changed: u64| {
            let sizes = names.iter().enumerate().map(|(n, name)| {
                let last = n + 1 == names.len();
                let bytes = 1000 - n as u64 + if last { changed } else { 0 };
                (LIBRARIES, name.as_str(), bytes)
            });
            sizes.collect::<Vec<_>>()
        };
        let (before, now) = (ledger("a", &sizes(0)), ledger("b", &sizes(1)));
        let shown = text(&now, Some(&before), &now.changes(Some(&before)));
        assert!(shown.contains("3 others"), "{shown}");
        assert!(shown.contains(names.last().expect("some")), "{shown}");
        assert!(!shown.contains(&names[ROWS_SHOWN]), "{shown}");
    }

    #[test]
    fn the_part_that_grew_most_is_named_and_forms_are_not() {
        let before = ledger("aaaa", &[(LIBRARIES, "aes", 100), (KERNEL, "text", 50)]);
        let now = ledger(
            "bbbb",
            &[
                (LIBRARIES, "aes", 130),
                (KERNEL, "text", 51),
                (FORMS, "uki", 900),
            ],
        );
        let growth = largest_growth(Some(&before), &now.changes(Some(&before)));
        assert_eq!(
            growth,
            "since aaaa aes in the binary grew most, by 30 bytes"
        );
        let shrunk = largest_growth(Some(&now), &before.changes(Some(&now)));
        assert_eq!(shrunk, "no part grew since bbbb");
        let alone = largest_growth(None, &now.changes(None));
        assert_eq!(alone, "no earlier sizes are in the cache");
    }

    #[test]
    fn json_has_each_size_with_the_one_before_and_the_limits() {
        let before = ledger("aaaa", &[(LIBRARIES, "aes", 100)]);
        let now = ledger("bbbb", &[(LIBRARIES, "aes", 130)]);
        let limit = SizeLimit {
            what: "the kernel",
            bytes: 1,
            limit: 2,
        };
        let value = json(&now, Some(&before), &[limit]);
        assert_eq!(value["against"], "aaaa");
        let aes = &value["groups"][LIBRARIES]["aes"];
        assert_eq!(aes, &json!({ "bytes": 130, "before": 100 }));
        assert_eq!(value["limits"][0]["limit"], 2);
        let alone = json(&now, None, &[]);
        assert_eq!(alone["groups"][LIBRARIES]["aes"], json!({ "bytes": 130 }));
        assert_eq!(alone["against"], Value::Null);
    }
}
