//! A network namespace for one test: what a network has that this host must not have, such as port 69 or 443.

use std::process::Command;
use std::thread;

use alknet_test_support::skipped_whole;
use nix::sched::{CloneFlags, unshare};

/// Runs a test on a thread in a network namespace of its own, which the programs and machines that the thread starts
/// inherit. Only root can make one, so another user's run skips the test.
pub(super) fn in_network_namespace(test: impl FnOnce() + Send + 'static) {
    if !nix::unistd::geteuid().is_root() {
        return skipped_whole("root", "no network namespace can be made");
    }
    let name = thread::current().name().unwrap_or("test").to_owned();
    // A thread that changed its namespace is not given back to the test runner.
    let thread = thread::Builder::new().name(name).spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("root may");
        ip("link set lo up");
        test();
    });
    if let Err(panic) = thread.expect("this host has threads").join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs `ip` in the namespace of this thread.
pub(super) fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output();
    let output = output.expect("iproute2 is installed");
    assert!(output.status.success(), "ip {arguments}: {output:?}");
}
