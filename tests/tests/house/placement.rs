//! Limits certain kinds of code to certain files.

use super::tree::{SourceFile, only_in, sources};

#[test]
fn the_environment_is_read_only_at_the_edges() {
    // Secrets are never in the environment, and libraries do not read it.
    let edges = [
        "appliance/",
        "compute/gpu/src/worker.rs",
        "crates/bench/",
        "crates/tasks/",
        "crates/test-support/",
        "crates/xtask/",
        "image/",
        "qemu/",
        "tests/",
    ];
    let build_and_tests = [
        "crates/http/mcp/tests/",
        "crates/http/openapi/tests/",
        "crates/runtime/promotion/tests/",
        "crates/runtime/sessions/tests/",
        "crates/runtime/tests/",
        "crates/typedef/tests/",
        "crates/update/tests/",
        "crates/vault/cli/tests/",
        "crates/worker/tests/",
        "compute/driver/build.rs",
        "compute/gpu/build.rs",
        "compute/gpu/tests/",
        "init/build.rs",
        "init/net/tests/",
        "init/sealed/tests/",
        "init/tpm/tests/",
        "init/src/console/tests.rs",
        "provisioning/cli/tests/",
        "provisioning/handover/tests/",
        "provisioning/metadata/tests/",
        "provisioning/tests/",
        "tensor/tests/",
    ];
    only_in(
        "reading the environment",
        &["env::var"],
        &[&edges[..], &build_and_tests].concat(),
    );
}

#[test]
fn unsafe_code_talks_to_the_kernel_and_to_drivers_only() {
    // In crates/worker: starting a process, mapping sealed memory, other threads' clocks, signals,
    // and the probe of its tests, which does what no honest worker does. In crates/vault: the
    // memory in which PID 1 and the node share the seed, and the processor's registers. In
    // appliance/src/memory.rs: the allocator. In image/write: the ioctl by which the kernel reads the partitions of a
    // disk that was written.
    let kernel = [
        "image/write/src/sys.rs",
        "init/",
        "qemu/",
        "appliance/src/memory.rs",
        "appliance/src/node/",
        "crates/bench/src/",
        "crates/tasks/src/",
        "crates/vault/src/area/sys.rs",
        "crates/vault/src/traces/registers.rs",
        "crates/worker/src/sys/",
        "crates/worker/tests/worker/probe/",
        // Firmware is below it, in the kernel's place: a protocol is opened without stopping drivers.
        "image/loader/src/bin/loader.rs",
        // Without a library, because it is compiled before anything else.
        "crates/xtask/src/workspace.rs",
    ];
    // Mesa's drivers are C: their two entry points are called there, and generated code finds the C
    // library's functions there. The program measured beside this project's shaders enables every
    // feature.
    let drivers = ["compute/driver/src/", "compute/peer/src/"];
    // The matrix kernels take addresses. The script engine shares bytes with Rust, and has code
    // that it wrote itself. Mapping a file is sound only while the file's owner does not change it.
    // A test allocator measures the memory of a header. A layer below SQLite records the syncs of a test's store.
    let memory = [
        "compute/gpu/src/host.rs",
        "compute/gpu/src/host/",
        "crates/runtime/src/globals/compiled.rs",
        "crates/runtime/src/isolate/bytes.rs",
        "crates/runtime/src/isolate/heap.rs",
        "crates/runtime/sessions/tests/sessions/hostile.rs",
        "crates/store/src/testing/recorded_vfs.rs",
        "tensor/src/reader.rs",
        "tensor/src/source/mapped.rs",
        "tensor/tests/tensor/files.rs",
        "tensor/tests/tensor/memory.rs",
    ];
    only_in(
        "unsafe code",
        &["unsafe {", "unsafe fn", "unsafe impl"],
        &[&kernel[..], &drivers, &memory].concat(),
    );
}

/// Another user may have made a folder whose name can be guessed, or a link instead, and may
/// replace the programs that a test puts there and starts.
#[test]
fn temporary_folders_have_unpredictable_names() {
    let made_with_care = ["crates/test-support/src/skip.rs", "qemu/src/scratch.rs"];
    only_in("a guessable name", &["temp_dir()"], &made_with_care);
    let named = [
        "(\"/tmp/",
        "!(\"/tmp/",
        "(\"/dev/shm/",
        "!(\"/dev/shm/",
        "(\"/var/tmp/",
        "!(\"/var/tmp/",
    ];
    only_in("a guessable name", &named, &[]);
}

/// A schema of the node's own is compiled in its turn, however many others wait.
#[test]
fn schemas_that_callers_bring_are_compiled_in_their_share() {
    let theirs = [
        "crates/runtime/sessions/src/host/",
        "crates/runtime/promotion/src/",
    ];
    let brought = |path: &str| theirs.iter().any(|folder| path.starts_with(folder));
    let places: Vec<_> = sources().iter().filter(|it| brought(&it.path)).collect();
    assert!(places.len() > 20, "the folders are there");
    for SourceFile { path, text } in places {
        assert!(
            !text.contains("Schema::new("),
            "{path}: whose schema is it?"
        );
    }
}

#[test]
fn nothing_is_left_unfinished() {
    only_in(
        "an unfinished path",
        &["unimplemented!(", "todo!(", "#[ignore"],
        &[],
    );
}

/// A node's text is printed there in a way that cannot control the terminal.
#[test]
fn the_command_line_writes_to_standard_output_in_one_place() {
    const PLACE: &str = "appliance/src/cli/output.rs";
    let own = sources()
        .iter()
        .filter(|it| it.path.starts_with("appliance/src/"));
    let mut places = Vec::new();
    for SourceFile { path, text } in own {
        if ["stdout()", "println!(", "print!("]
            .iter()
            .any(|it| writes(text, it))
        {
            places.push(path.as_str());
        }
    }
    assert_eq!(places, [PLACE]);
}

/// The same of its errors and notes. A worker says one line of its own before it has a host, and `alknet serve` writes
/// its log, of which no record can act on a terminal (`no_record_looks_like_two` there).
#[test]
fn the_command_line_writes_to_standard_error_in_one_place() {
    const PLACES: [&str; 3] = [
        "appliance/src/cli/output.rs",
        "appliance/src/node/log.rs",
        "appliance/src/worker.rs",
    ];
    // To ask whether a person sees it writes nothing.
    const ASKS: &str = "stderr().is_terminal()";
    let own = sources()
        .iter()
        .filter(|it| it.path.starts_with("appliance/src/"));
    let mut places = Vec::new();
    for SourceFile { path, text } in own {
        let text = text.replace(ASKS, "");
        if ["stderr()", "eprintln!(", "eprint!("]
            .iter()
            .any(|it| writes(&text, it))
        {
            places.push(path.as_str());
        }
    }
    places.sort_unstable();
    assert_eq!(places, PLACES);
}

/// Whether a source contains `what`, but not as the end of a longer name.
fn writes(text: &str, what: &str) -> bool {
    text.match_indices(what).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || c == '_')
    })
}
