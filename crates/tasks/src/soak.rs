//! `soak`: the campaigns of the test suite at full count, with a dated summary.

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use crate::context::{self, Context};
use crate::failure::{Failure, Result};
use crate::{image, test};

/// Tests read this: `full` asks for the counts that are promised, instead of those that fit
/// continuous integration.
const COUNT_VARIABLE: &str = "ALKNET_SOAK";

/// What a campaign is called, and the part of the test names that it runs.
const CAMPAIGNS: [(&str, &str); 2] = [("hostile", "hostile"), ("power-cuts", "power_cut")];

/// Arguments of `soak`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Campaign: hostile or power-cuts [default: all]
    name: Option<String>,
    /// File for the summary [default: soak/DATE-NAME.md in the cache]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Runs the campaigns one after the other; a failed one does not keep the next from running.
pub(crate) fn run(cx: &mut Context, arguments: &Arguments) -> Result<()> {
    let campaigns = chosen(arguments.name.as_deref())?;
    let images = test::images(cx)?;
    let lock = cx.claim()?;
    let date = jiff::Timestamp::now().strftime("%F").to_string();
    let mut first_failure = None;
    for (name, filter) in campaigns {
        let started = Instant::now();
        let log = format!("soak-{name}");
        let mut command = test::command(cx, &images)?;
        // The whole workspace, so that libraries keep the features they were compiled with.
        command.args(["--workspace", "--tests", "--", "--nocapture", filter]);
        command.env(COUNT_VARIABLE, "full");
        let result = cx.step(name, |cx| cx.run(&mut command, name, &log));
        let summary = summary(&Facts {
            name,
            date: &date,
            git: &image::commit(cx.root()),
            seconds: started.elapsed().as_secs(),
            passed: result.is_ok(),
            end: &context::tail(&cx.log(&log)),
        });
        let file = arguments
            .out
            .clone()
            .unwrap_or_else(|| cx.cache().join("soak").join(format!("{date}-{name}.md")));
        write(&file, &summary)?;
        println!("{summary}\nThe summary is in {}.", file.display());
        if first_failure.is_none() {
            first_failure = result.err();
        }
    }
    drop(lock);
    eprint!("{}", cx.table());
    first_failure.map_or(Ok(()), Err)
}

fn chosen(name: Option<&str>) -> Result<Vec<(&'static str, &'static str)>> {
    let Some(name) = name else {
        return Ok(CAMPAIGNS.to_vec());
    };
    let found = CAMPAIGNS.into_iter().find(|(known, _)| *known == name);
    found.map(|campaign| vec![campaign]).ok_or_else(|| {
        let known: Vec<_> = CAMPAIGNS.iter().map(|(name, _)| *name).collect();
        Failure::Arguments(format!("no campaign \"{name}\", only {}", known.join(", ")))
    })
}

struct Facts<'a> {
    name: &'a str,
    date: &'a str,
    git: &'a str,
    seconds: u64,
    passed: bool,
    end: &'a [String],
}

fn summary(facts: &Facts<'_>) -> String {
    let verdict = if facts.passed { "passed" } else { "FAILED" };
    format!(
        "# Soak: {}\n\n{} on {}, commit {}, {} s.\n\n```\n{}\n```\n",
        facts.name,
        verdict,
        facts.date,
        facts.git,
        facts.seconds,
        facts.end.join("\n")
    )
}

fn write(file: &PathBuf, text: &str) -> Result<()> {
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder).map_err(Failure::io(format!("make {}", folder.display())))?;
    }
    fs::write(file, text).map_err(Failure::io(format!("write {}", file.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_is_dated_and_says_how_it_went() {
        let end = ["200 cuts".to_owned()];
        let facts = Facts {
            name: "power-cuts",
            date: "2026-01-02",
            git: "abc",
            seconds: 7,
            passed: false,
            end: &end,
        };
        let text = summary(&facts);
        for part in [
            "power-cuts",
            "2026-01-02",
            "abc",
            "7 s",
            "FAILED",
            "200 cuts",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn an_unknown_campaign_is_refused_with_the_known_ones() {
        assert_eq!(chosen(None).expect("all").len(), CAMPAIGNS.len());
        let error = chosen(Some("power")).expect_err("unknown").to_string();
        assert!(error.contains("power-cuts"), "{error}");
    }
}
