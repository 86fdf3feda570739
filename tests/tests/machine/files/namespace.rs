//! Clients in namespaces of their own, in which they may mount.

use std::fs;
use std::path::Path;
use std::process::Command;

use alknet_test_support::limited;

use super::DONE_WITHIN;

/// The shell is root in its namespaces. What it started ends with it.
const UNSHARE: [&str; 5] = [
    "--map-root-user",
    "--mount",
    "--pid",
    "--kill-child",
    "--mount-proc",
];

/// Makes the folder of the test `/etc`, and `/run` empty, in a script.
pub(super) const OWN_ETC: &str = "mount --bind \"$ETC\" /etc\nmount -t tmpfs none /run\n";

/// Lets no name be resolved in a script, so that a client cannot ask servers of its author for anything.
pub(super) const NO_NAMES: &str =
    "test ! -e /etc/resolv.conf || mount --bind \"$ETC/resolv.conf\" /etc/resolv.conf\n";

/// A command that runs a script in such namespaces. `$ETC` is the folder `etc`, which gets the files that name users
/// and servers.
pub(super) fn command(etc: &Path, script: &str) -> Command {
    for (name, text) in [
        ("group", "root:x:0:\n"),
        ("hosts", "127.0.0.1 localhost\n"),
        ("mtab", ""),
        (
            "nsswitch.conf",
            "passwd: files\ngroup: files\nhosts: files dns\n",
        ),
        ("passwd", "root:x:0:0:root:/root:/bin/sh\n"),
        ("resolv.conf", "nameserver 127.0.0.1\n"),
    ] {
        fs::write(etc.join(name), text).expect("the folder is ours");
    }
    let mut command = limited(DONE_WITHIN, "unshare");
    command
        .args(UNSHARE)
        .args(["sh", "-euc", script])
        .env("ETC", etc);
    command
}

/// Why this host does not allow such namespaces, or in them this command of the shell.
pub(super) fn refusal(etc: &Path, probe: &str) -> Option<String> {
    let probe = format!("{OWN_ETC}{probe}");
    let output = command(etc, &probe).output().expect("every Debian has it");
    let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    (!output.status.success()).then_some(why)
}
