//! The commands of docs/backup.md and docs/service.md, the units of the latter, and the commands of docs/update.md for a
//! node on a host.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use alknet_tests::{HostNode, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::ReferencePage;

const BACKUP: &str = include_str!("../../../../docs/backup.md");
const SERVICE: &str = include_str!("../../../../docs/service.md");
const UPDATE: &str = include_str!("../../../../docs/update.md");

/// The restart on the page of updates, which the test does without systemd.
const RESTART: &str = "systemctl --user restart alknet\n";
/// The build on that page, and a copy that installs a program in the same way: by a new name in the same folder.
const BUILD: &str = "cargo xtask build --install ~/.local/bin";
const INSTALL: &str =
    "cp new ~/.local/bin/alknet.new; mv ~/.local/bin/alknet.new ~/.local/bin/alknet";
/// How the node of that page starts.
const HOST_UNIT: &str = "ExecStart=~/.local/bin/alknet serve --listen 127.0.0.1 --port 0 --admin \"$(~/.local/bin/alknet identity)\"\n";

/// A document that every node refuses.
const MISTAKE: &str = "[node]\nadmin_key = []\n";

#[test]
fn a_node_that_is_restored_from_the_backup_of_the_page_is_the_same_node() {
    let mut page = ReferencePage::open(BACKUP);
    page.put("~/.local/state", "$XDG_STATE_HOME");
    page.save("alknet.toml", "[log]\nlevel = \"debug\"\n");
    let (reader, config) = (page.user("reader"), page.work("alknet.toml"));
    // As on the reader's computer, node and command line have one state directory.
    let start = || HostNode::start_with(reader.state(), &reader, Some(&config));
    let key = |node: &HostNode| node.target().split('@').next().map(str::to_owned);

    let node = start();
    let (ada, before) = (page.user("ada").identity(), key(&node));
    let add = format!("alknet peer add {} ada --key {ada}", node.target());
    page.shell("reader", &add, "");
    drop(node);
    page.follow();
    let archive = fs::metadata(page.work("alknet-backup.tar.gz")).expect("the commands made it");
    assert_eq!(archive.permissions().mode() & 0o777, 0o600);

    page.shell("reader", "rm -r \"$XDG_STATE_HOME/alknet\" alknet.toml", "");
    page.follow();
    let restored = start();
    assert_eq!(key(&restored), before);
    let peers = restored.call("peer/list", &Value::Null);
    assert!(peers.to_string().contains(&ada), "{peers:#}");
    page.close();
}

/// A setting of a unit.
fn setting<'a>(unit: &'a str, key: &str) -> &'a str {
    let mut values = unit
        .lines()
        .filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    let value = values.next();
    value.unwrap_or_else(|| panic!("no {key} in\n{unit}"))
}

/// A node as systemd starts it by a unit.
struct UnitNode<'a> {
    page: &'a ReferencePage,
    unit: &'a str,
    child: Child,
}

impl<'a> UnitNode<'a> {
    /// Starts it, and waits until it serves.
    fn start(page: &'a ReferencePage, unit: &'a str) -> Self {
        let mut command = command(page, &format!("exec {}", setting(unit, "ExecStart")));
        command.stdout(File::create(page.work("said")).expect("the folder is ours"));
        command.stderr(File::create(page.work("log")).expect("the folder is ours"));
        let child = command.spawn().expect("there is a bash");
        let node = Self { page, unit, child };
        eventually("the node serves", || {
            let said = fs::read_to_string(page.work("said")).unwrap_or_default();
            said.starts_with("serving ed25519:").then_some(())
        });
        node
    }

    /// How often the log has this text.
    fn logged(&self, text: &str) -> usize {
        let log = fs::read_to_string(self.page.work("log")).expect("a readable log");
        log.matches(text).count()
    }

    /// What `systemctl reload` does.
    fn reload(&self) {
        let mut command = command(self.page, setting(self.unit, "ExecReload"));
        command.env("MAINPID", self.child.id().to_string());
        assert!(command.status().expect("there is a bash").success());
    }

    /// What `systemctl stop` does, and the exit code.
    fn stop(mut self) -> Option<i32> {
        let pid = Pid::from_raw(self.child.id().cast_signed());
        kill(pid, Signal::SIGTERM).expect("it is our child");
        let ended = eventually("the node ends", || {
            self.child.try_wait().expect("it is our child")
        });
        ended.code()
    }
}

impl Drop for UnitNode<'_> {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// A shell that runs this code for the reader.
fn command(page: &ReferencePage, code: &str) -> Command {
    let home = page.bench.path().join("reader");
    let mut shell = Command::new("bash");
    shell
        .args(["-c", code])
        .env("HOME", &home)
        .env("XDG_STATE_HOME", &home)
        .stdin(Stdio::null());
    shell
}

/// Starts, reloads and stops a node by a unit whose configuration is this file.
fn follow_unit(page: &ReferencePage, unit: &str, config: &Path) {
    let node = UnitNode::start(page, unit);

    // systemd does not start a node again that ends with this code.
    let mut second = command(page, &format!("exec {}", setting(unit, "ExecStart")));
    let second = second.output().expect("there is a bash");
    let code = second.status.code().map(|code| code.to_string());
    assert_eq!(
        code.as_deref(),
        Some(setting(unit, "RestartPreventExitStatus"))
    );

    // A change of the file is refused once, and each reload refuses it again.
    fs::write(config, MISTAKE).expect("the folder is ours");
    let refused = |times| {
        let what = format!("the log refuses the file {times} times");
        eventually(&what, || {
            (node.logged("config-refused") == times).then_some(())
        });
    };
    refused(1);
    node.reload();
    refused(2);
    assert_eq!(node.stop(), Some(0));
}

#[test]
fn the_units_of_the_page_start_reload_and_stop_a_node() {
    let mut page = ReferencePage::open(SERVICE);
    let home = page.bench.path().join("reader");
    let state = page.work("var");
    fs::create_dir(&state).expect("the folder is ours");
    let program = page.bench.path().join("bin/alknet").display().to_string();
    page.put("%h/.local/bin/alknet", &program);
    page.put("%h", home.display().to_string());
    page.put("--port 4433", "--listen 127.0.0.1 --port 0");
    page.put("/usr/local/bin/alknet", &program);
    page.put(
        "--state /var/lib/alknet ",
        format!("--listen 127.0.0.1 --port 0 --state {} ", state.display()),
    );
    page.put("/var/lib/alknet", state.display().to_string());
    // The built-in command of the shell, as not every host has the program.
    page.put("/bin/kill", "kill");

    let said = page.follow();
    assert!(said.contains("alknet.toml: valid"), "{said}");
    let of_user = page.next_block("ini");
    let written = home.join(".config/alknet/alknet.toml");
    let document = fs::read(&written).expect("the commands wrote it");
    follow_unit(&page, &of_user, &written);

    let of_computer = page.next_block("ini");
    let config = state.join("alknet.toml");
    fs::write(&config, document).expect("the folder is ours");
    follow_unit(&page, &of_computer, &config);
    page.close();
}

/// The number of a file, which a program keeps under another name.
fn inode(path: impl AsRef<Path>) -> u64 {
    fs::metadata(path).expect("a file").ino()
}

/// The file of the program of a node.
fn file_of(node: &UnitNode<'_>) -> u64 {
    inode(format!("/proc/{}/exe", node.child.id()))
}

/// The key of the node that serves.
fn key(page: &ReferencePage) -> String {
    let said = fs::read_to_string(page.work("said")).expect("it serves");
    let key = said.split('@').next().expect("a first part");
    key.to_owned()
}

#[test]
fn a_node_on_a_host_gets_another_program_and_goes_back() {
    let mut page = ReferencePage::open(UPDATE);
    page.put(BUILD, INSTALL);
    let [update, back] = [(); 2].map(|()| page.next_block("bash"));
    assert!(update.contains(INSTALL), "the page builds no program");
    let [update, back] = [&update, &back].map(|code| {
        let parts = code.split_once(RESTART);
        parts.unwrap_or_else(|| panic!("no restart in\n{code}"))
    });
    let prepare =
        "mkdir -p ~/.local/bin; cp ../bin/alknet ~/.local/bin/alknet; cp ../bin/alknet new";
    page.shell("reader", prepare, "");
    let bin = page.bench.path().join("reader/.local/bin");
    let program = bin.join("alknet");

    let node = UnitNode::start(&page, HOST_UNIT);
    let (before, file) = (key(&page), inode(&program));
    page.shell("reader", update.0, "");
    assert_ne!(inode(&program), file, "another file has the name");
    assert_eq!(file_of(&node), file, "the node keeps its file");
    page.shell("reader", update.1, "");
    assert_eq!(node.stop(), Some(0));

    let node = UnitNode::start(&page, HOST_UNIT);
    assert_eq!(file_of(&node), inode(&program));
    assert_eq!(key(&page), before);
    let said = page.shell("reader", update.1, "");
    assert!(said.contains("version"), "{said}");

    let kept = inode(bin.join("alknet.before"));
    page.shell("reader", back.0, "");
    assert_eq!(node.stop(), Some(0));
    let node = UnitNode::start(&page, HOST_UNIT);
    assert_eq!(file_of(&node), kept);
    assert_eq!(key(&page), before);
}
