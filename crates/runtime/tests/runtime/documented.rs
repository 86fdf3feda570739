//! The examples of `docs/scripts.md`, as they stand there, and its tables.

use alknet_runtime::{Isolate, IsolateSpec, ModuleSet, RuntimeCode, limits};
use std::sync::Arc;

use crate::support::{RecordingHost, main, wait};

const PAGE: &str = include_str!("../../../../docs/scripts.md");

/// Each block with its language, and the text after the language on its first line.
fn blocks() -> Vec<(String, String)> {
    let mut blocks = Vec::new();
    let mut rest = PAGE;
    while let Some(at) = rest.find("\n```") {
        rest = &rest[at + 4..];
        let (head, body) = rest.split_once('\n').expect("a block has lines");
        let end = body.find("\n```").expect("a block ends");
        blocks.push((head.to_owned(), body[..=end].to_owned()));
        rest = &body[end + 4..];
    }
    blocks
}

#[test]
fn every_example_runs() {
    let mut run = 0;
    for (head, body) in blocks() {
        let Some(ending) = head
            .split_whitespace()
            .next()
            .filter(|word| ["js", "ts", "tsx"].contains(word))
        else {
            continue;
        };
        let mut set = ModuleSet::new();
        set.insert(&format!("./example.{ending}"), body.as_str())
            .expect("a module");
        set.insert(
            "./main.js",
            format!("export {{ default }} from './example.{ending}'; import './example.{ending}';"),
        )
        .expect("a module");
        if !body.contains("export default") {
            set.insert(
                "./main.js",
                format!("import './example.{ending}'; export default null;"),
            )
            .expect("a module");
        }
        let spec = IsolateSpec::new(set).deterministic([1; 32], 1_000);
        let mut isolate =
            Isolate::open(spec, Arc::new(RecordingHost::default())).expect("an isolate");
        let outcome = wait(isolate.run(main()));
        assert!(outcome.result.is_ok(), "{body}\n{:?}", outcome.result);
        run += 1;
    }
    assert!(run >= 5, "the page has examples: {run}");
}

#[test]
fn the_page_tells_the_codes_and_limits_that_there_are() {
    for code in RuntimeCode::ALL {
        let row = format!("| `{}` | `{}` |", code.name(), code.on_the_wire().0);
        assert!(PAGE.contains(&row), "{row}");
    }
    let defaults = alknet_runtime::IsolateLimits::default();
    for row in [
        format!("| fuel | {} ticks", defaults.fuel_ticks),
        format!("| CPU time | {} s", defaults.cpu.as_secs()),
        format!("| heap | {} MiB", defaults.heap_bytes >> 20),
        format!(
            "| bytes outside the heap | {} MiB",
            defaults.external_bytes >> 20
        ),
        format!("| stack | {} KiB", defaults.stack_bytes >> 10),
        format!("| jobs | {} a turn", limits::JOBS_PER_TURN),
        format!(
            "| calls | {} a session, {} in flight",
            defaults.calls, defaults.calls_in_flight
        ),
        format!(
            "| items of a subscription that wait | {}",
            limits::UNACKNOWLEDGED
        ),
        format!(
            "| JSON | {} levels, {} MiB",
            limits::JSON_DEPTH,
            limits::JSON_BYTES >> 20
        ),
        format!(
            "| names that share a hash in a value for a script | {}",
            limits::NAMES_ALIKE_MAX
        ),
        format!(
            "| modules | {} of {} MiB",
            limits::MODULES,
            limits::SOURCE_BYTES >> 20
        ),
        format!("| timers | {}", limits::TIMERS),
        format!("| subscriptions | {}", limits::SUBSCRIPTIONS),
        format!("| registered operations | {}", limits::REGISTERED),
        format!("| cases of a test | {}", limits::TEST_CASES),
        format!(
            "| console | {} KiB a second, where a line counts {} bytes more than its text; {} KiB a line",
            limits::LOG_BYTES_PER_SECOND >> 10,
            limits::LOG_LINE_EXTRA_BYTES,
            limits::LOG_LINE_BYTES >> 10
        ),
        format!("| `getRandomValues` | {} bytes", limits::RANDOM_BYTES),
    ] {
        assert!(PAGE.contains(&row), "{row}");
    }
}
