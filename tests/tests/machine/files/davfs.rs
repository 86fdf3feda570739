//! davfs2, which shows a bucket as a folder of the computer.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use alknet_test_support::skipped;
use alknet_tests::tools::variable;
use alknet_tests::{MachineNode, TestBench, run_with_input};

use super::{FilesClient, namespace, noise, paths};

/// Bytes of the file that is copied, which davfs2 sends as a whole.
const COPIED_BYTES: usize = 1_000_003;

/// A user's commands. davfs2 stores what it still has when it is unmounted.
const SCRIPT: &str = "
\"$CLIENTS/mount.davfs\" \"$URL\" \"$PWD/mnt\"
test \"$(cat mnt/seen.txt)\" = 'put by curl'
cp copied.bin mnt/copied.bin
mkdir mnt/folder
echo 'by davfs2' >mnt/folder/new.txt
mv mnt/folder/new.txt mnt/folder/moved.txt
echo more >>mnt/folder/moved.txt
cmp copied.bin mnt/copied.bin
rm mnt/seen.txt
\"$CLIENTS/umount.davfs\" \"$PWD/mnt\"
";

/// davfs2 locks a file before it writes it, also one that does not exist yet.
pub(super) fn a_mounted_bucket_is_a_folder(
    bench: &TestBench,
    files: &FilesClient,
    node: &MachineNode,
) {
    let work = files.work("davfs");
    let etc = work.join("etc");
    for folder in ["cache", "etc", "etc/davfs2", "mnt"] {
        fs::create_dir(work.join(folder)).expect("the folder is ours");
    }
    if let Some(why) = namespace::refusal(&etc, "exec 3<>/dev/fuse") {
        return skipped("FUSE", format!("davfs2 mounts nothing: {why}"));
    }
    // davfs2 trusts the certificate that the machine made itself, and no other one.
    let pem = work.join("node.pem").display().to_string();
    let admin = bench.admin();
    let pin = admin.command(&["pin", &node.target(), "--cert", &pem]);
    admin.run(pin).json();
    let cache = work.join("cache");
    let config = format!(
        "dav_user root\ndav_group root\nask_auth 0\ndelay_upload 0\ncache_dir {}\n\
         trust_server_cert {pem}\n",
        cache.display()
    );
    let url = files.url("davfs/");
    let secret = format!("{url} any {}\n", files.token);
    for (name, text) in [("davfs2.conf", &config), ("secrets", &secret)] {
        let path = etc.join("davfs2").join(name);
        fs::write(&path, text).expect("the folder is ours");
        fs::set_permissions(path, Permissions::from_mode(0o600)).expect("the folder is ours");
    }
    let content = noise(COPIED_BYTES);
    fs::write(work.join("copied.bin"), &content).expect("the folder is ours");
    let seen = files.put("davfs/seen.txt", b"put by curl\n", &[]);
    assert_eq!(seen.status, 201, "{}", seen.text());

    let script = format!("{}{SCRIPT}", namespace::OWN_ETC);
    let mut command = namespace::command(&etc, &script);
    command
        .env("CLIENTS", variable("ALKNET_TEST_WEBDAV"))
        .env("URL", &url)
        .current_dir(&work);
    let said = run_with_input(command, "");
    assert_eq!(said.status, 0, "{said:?}");

    let copied = files.curl("davfs/copied.bin", &[]);
    assert!(copied.body == content, "{}", copied.status);
    let moved = files.curl("davfs/folder/moved.txt", &[]);
    assert_eq!(moved.text(), "by davfs2\nmore\n");
    let all = ["/copied.bin", "/folder", "/folder/moved.txt"];
    assert_eq!(paths(node, "davfs"), all);
    // No lock is left.
    let put = files.put("davfs/folder/moved.txt", b"again", &[]);
    assert_eq!(put.status, 204, "{}", put.text());
}
