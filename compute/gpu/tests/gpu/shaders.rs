//! Shaders that are right, wrong, endless and many.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Stdio};
use std::time::Duration;

use alknet_test_support::{eventually, is_campaign, skip};

use crate::{adapter, command, diagnostics, gpu, rows, shader};

/// Pipelines that are made and dropped: this many in continuous integration, and all that are promised
/// in `cargo xtask soak`.
const PIPELINES: [u32; 2] = [100, 1000];

/// Their shaders: one without a loop is compiled in a sixth of the time of one with it, and its pipeline is as much to be
/// given back.
const SHADERS: [&str; 2] = ["small.wgsl", "many.wgsl"];

/// How much memory may grow over a thousand, in KiB.
const GROWTH_KIB_MAX: u64 = 8 * 1024;

/// What a few may keep beside their share of that, in KiB: what the compiler holds differs from one to the next.
const NOISE_KIB: u64 = 1024;

/// Processor time, in ticks of 10 ms, after which a shader is taken to run without end.
const BUSY_TICKS: u64 = 20;

/// How long it may take to use that much.
const BUSY_WITHIN: Duration = Duration::from_secs(60);

#[test]
fn a_shader_computes() {
    if let Err(why) = adapter() {
        skip!("Vulkan adapter", "{why}");
    }
    let output = gpu(&["run", &shader("double.wgsl")]);
    assert!(output.status.success(), "{}", diagnostics(&output));
    assert_eq!(
        rows(&output)[0]["words"].to_string(),
        "[0,2,4,6,8,10,12,14]"
    );
}

#[test]
fn a_broken_shader_is_diagnosed_and_the_next_one_runs() {
    if let Err(why) = adapter() {
        skip!("Vulkan adapter", "{why}");
    }
    let wrong = [
        "syntax.wgsl",
        "types.wgsl",
        "no_main.wgsl",
        "bindings.wgsl",
        "workgroup.wgsl",
    ];
    let mut arguments = vec!["run".to_owned()];
    arguments.extend(wrong.map(shader));
    arguments.extend([shader("missing.wgsl"), shader("double.wgsl")]);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let output = gpu(&arguments);
    assert_eq!(output.status.code(), Some(1), "{}", diagnostics(&output));
    let rows = rows(&output);
    assert_eq!(rows.len(), wrong.len() + 2, "{rows:?}");
    let (last, refused) = rows.split_last().expect("there are rows");
    for row in refused {
        let error = row["error"].as_str().unwrap_or_default();
        assert!(!error.is_empty() && !error.contains('\n'), "{row}");
    }
    assert_eq!(last["words"][1], 2, "{last}");
}

#[test]
fn an_endless_shader_is_ended_from_outside_and_the_next_process_works() {
    if let Err(why) = adapter() {
        skip!("Vulkan adapter", "{why}");
    }
    let mut child = command()
        .args(["run", &shader("double.wgsl"), &shader("endless.wgsl")])
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let first = lines.next().expect("a row").expect("readable");
    assert!(first.contains("words"), "{first}");
    // The device is open and the first shader done: what takes time now is the endless one.
    let begun = ticks(&child);
    eventually("the shader keeps a processor busy", BUSY_WITHIN, || {
        assert!(
            child.try_wait().expect("ours").is_none(),
            "it ended by itself"
        );
        ticks(&child) >= begun + BUSY_TICKS
    });
    child.kill().expect("ours to end");
    let status = child.wait().expect("ours");
    assert_eq!(status.signal(), Some(9));
    assert!(lines.next().is_none(), "the endless shader gave no result");
    let next = gpu(&["run", &shader("double.wgsl")]);
    assert!(next.status.success(), "{}", diagnostics(&next));
}

/// Processor time of a process so far, user and system.
fn ticks(child: &Child) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", child.id())).expect("it lives");
    let (_, fields) = stat.rsplit_once(')').expect("the name is in brackets");
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let field = |at: usize| fields[at].parse::<u64>().expect("a number");
    field(11) + field(12)
}

#[test]
fn pipelines_that_are_dropped_leave_nothing_behind() {
    if let Err(why) = adapter() {
        skip!("Vulkan adapter", "{why}");
    }
    let full = is_campaign();
    let count = PIPELINES[usize::from(full)];
    let repeat = count.to_string();
    let shader = shader(SHADERS[usize::from(full)]);
    let output = gpu(&["run", "--repeat", &repeat, &shader]);
    assert!(output.status.success(), "{}", diagnostics(&output));
    let rows = rows(&output);
    let resident = rows[0]["resident_kib"].as_array().expect("a list");
    let kib = |at: usize| resident[at].as_u64().expect("/proc is there");
    let last = resident.len() - 1;
    // The first ones fill what is kept for all: of a thousand the first hundred, of a hundred the first half.
    let (filled, most) = match full {
        true => (1, GROWTH_KIB_MAX),
        false => {
            let share = GROWTH_KIB_MAX * u64::from(count) / 2 / 1000;
            (last / 2, share + NOISE_KIB)
        }
    };
    let before = (0..=filled).map(kib).max().expect("some");
    let grown = kib(last).saturating_sub(before);
    println!("figure pipelines {count}, grown {grown} KiB of {most}");
    assert!(grown < most, "{resident:?}");
}
