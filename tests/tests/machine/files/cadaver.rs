//! cadaver, an interactive client of WebDAV.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use alknet_test_support::limited;
use alknet_tests::{MachineNode, run_with_input};

use super::{DONE_WITHIN, FilesClient, paths, program};

const CONTENT: &str = "by cadaver\n";

/// The first answer accepts the certificate, which the machine made itself.
const SESSION: &str = "y
mkcol work
cd work
put hello.txt
lock hello.txt
discover hello.txt
put hello.txt
unlock hello.txt
copy hello.txt copy.txt
move copy.txt moved.txt
get moved.txt got.txt
propset hello.txt color red
propget hello.txt color
propnames hello.txt
cat moved.txt
rm moved.txt
mkcol empty
rmcol empty
ls
quit
";

/// What cadaver prints of the session, in this order.
const PRINTED: [&str; 18] = [
    "Creating `work': succeeded.",
    "Uploading hello.txt to `/fs/cadaver/work/hello.txt':",
    "succeeded.",
    "Locking `hello.txt': succeeded.",
    "Discovering locks on `hello.txt':",
    "Scope: exclusive  Type: write",
    "Uploading hello.txt to `/fs/cadaver/work/hello.txt':",
    "succeeded.",
    "Unlocking `hello.txt': succeeded.",
    "Copying `/fs/cadaver/work/hello.txt' to `/fs/cadaver/work/copy.txt':  succeeded.",
    "Moving `/fs/cadaver/work/copy.txt' to `/fs/cadaver/work/moved.txt':  succeeded.",
    "Downloading `/fs/cadaver/work/moved.txt' to got.txt:",
    "Setting property on `hello.txt': succeeded.",
    "Value of color is: red",
    "DAV: getetag",
    "Deleting `moved.txt': succeeded.",
    "Deleting collection `empty': succeeded.",
    "Listing collection `/fs/cadaver/work/': succeeded.",
];

/// A user's session, typed at a terminal: without one, cadaver refuses the certificate.
pub(super) fn a_session_uses_every_command(files: &FilesClient, node: &MachineNode) {
    let home = files.work("cadaver");
    let save = |name: &str, text: &str| {
        let path = home.join(name);
        fs::write(&path, text).expect("the folder is ours");
        fs::set_permissions(path, Permissions::from_mode(0o600)).expect("the folder is ours");
    };
    let login = format!("machine 127.0.0.1\nlogin any\npassword {}\n", files.token);
    save(".netrc", &login);
    save("hello.txt", CONTENT);
    // util-linux's script gives it a terminal.
    let mut script = limited(DONE_WITHIN, "script");
    script
        .args(["-qec", "exec \"$CADAVER\" \"$URL\"", "/dev/null"])
        .env("CADAVER", program("cadaver"))
        .env("URL", files.url("cadaver/"))
        .env("HOME", &home)
        .env("SHELL", "/bin/sh")
        .env("TERM", "dumb")
        .current_dir(&home);
    let said = run_with_input(script, SESSION);
    assert_eq!(said.status, 0, "{said:?}");
    let mut rest = said.output.as_str();
    for printed in PRINTED {
        let found = rest.split_once(printed);
        (_, rest) = found.unwrap_or_else(|| panic!("{printed:?} is not printed: {said:?}"));
    }
    assert!(!said.output.contains("failed"), "{said:?}");
    let got = fs::read_to_string(home.join("got.txt"));
    assert_eq!(got.expect("cadaver wrote it"), CONTENT);
    assert_eq!(paths(node, "cadaver"), ["/work", "/work/hello.txt"]);
    let now = files.curl("cadaver/work/hello.txt", &[]);
    assert_eq!(now.text(), CONTENT);
}
