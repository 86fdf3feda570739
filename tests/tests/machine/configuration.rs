//! Where a booted machine finds its configuration, and how it handles a wrong one.

use std::time::Duration;

use alknet_qemu::{Vm, VmBuilder};
use alknet_tests::tools::iso_volume;
use alknet_tests::{BootVariant, MachineNode, READY, TestBench, curl, eventually};
use serde_json::{Value, json};

/// How long after its message that the node serves the console may report a problem.
const SAID_WITHIN: Duration = Duration::from_secs(10);
/// Time from inserting a volume until the node serves with it. Sources are read again every 3 s.
const APPLIED_WITHIN: Duration = Duration::from_secs(30);

/// Added to a document if no vault is needed, because making one takes half of a first boot.
pub(super) const NO_VAULT: &str = "[vault]\ninit = \"off\"\n";

/// QEMU's name of the CD drive.
const CD: &str = "cd";

#[test]
fn a_misspelt_key_lets_administrators_in_and_is_corrected_at_the_next_boot() {
    let bench = TestBench::new();
    let misspelt = document(&bench, "typist");
    let misspelt = format!("{misspelt}\n[listen]\nprot = 443\n{NO_VAULT}");
    let node = bench
        .machine(BootVariant::MicrovmErofs)
        .config(misspelt.as_str())
        .boot();
    let info = problem(&node, "config-refused", "did you mean 'port'?");
    let text = text_of(&info, "config-refused");
    for part in [
        BootVariant::MicrovmErofs.config_source(),
        "line 7",
        "listen.prot",
        "did you mean 'port'?",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    problem(&node, "config-salvaged", "");
    assert_eq!(info["name"], "typist", "the name is salvaged");
    let identity = node.identity().to_owned();
    node.end();

    let node = bench
        .machine(BootVariant::MicrovmErofs)
        .config(document(&bench, "scribe"))
        .plain()
        .boot();
    let info = node.info();
    assert_eq!(info["problems"], json!([]), "{info:#}");
    assert_eq!(
        (&info["name"], &info["config"]["source"]),
        (
            &json!("scribe"),
            &json!(BootVariant::MicrovmErofs.config_source())
        )
    );
    assert_eq!(node.identity(), identity);
    node.end();

    // From now on a refused document changes nothing, not even the name.
    let node = bench
        .machine(BootVariant::MicrovmErofs)
        .config(misspelt)
        .boot();
    problem(&node, "config-refused", "did you mean 'port'?");
    let info = problem(&node, "config-last-good", "");
    assert_eq!(info["name"], "scribe");
    assert_eq!(info["config"]["source"], "config.toml");
}

#[test]
fn a_volume_is_found_and_replaced_while_the_machine_runs() {
    let bench = TestBench::new();
    let wrong = document(&bench, "typist").replace("name", "nmae");
    let wrong = iso_volume(&bench, "wrong", &wrong);
    let right = iso_volume(&bench, "right", &document(&bench, "scribe"));
    let unprovisioned = bench
        .machine(BootVariant::Q35Initramfs)
        .config("")
        .with(cd_drive);
    let node = unprovisioned.boot();
    let identity = node.identity().to_owned();
    assert_eq!(
        node.try_call("node/info", &Value::Null, &[]).code(),
        "UNAUTHENTICATED"
    );

    insert(&node, &wrong.display().to_string(), "alknet");
    let info = problem(&node, "config-refused", "did you mean 'name'?");
    problem(&node, "config-salvaged", "");
    assert_eq!(info["config"]["source"], "nocloud (sr0)");

    insert(&node, &right.display().to_string(), "scribe");
    let info = settled(&node, |info| info["name"] == "scribe");
    assert_eq!(info["problems"], json!([]), "{info:#}");
    assert_eq!(info["name"], "scribe");
    assert_eq!(info["config"]["source"], "nocloud (sr0)");
    assert_eq!(
        info["node_restarts"], 0,
        "restarts that were asked for are no failures"
    );
    assert_eq!(node.identity(), identity);
}

#[test]
fn what_was_applied_is_kept_over_a_reboot() {
    let bench = TestBench::new();
    let node = bench.snapshot(BootVariant::MicrovmErofs).restore();
    let guest = bench.user("guest");
    let document = format!(
        "{}[[peers]]\npeer_id = \"guest\"\nkeys = [\"{}\"]\nscopes = [\"peer:list\"]\n\
         [http]\nsite = \"store:/site/www\"\n",
        document(&bench, "alknet"),
        guest.identity()
    );
    // There is no other way to put the site on the sealed disk.
    store_site(&bench, &node, "one");
    let list = |node: &MachineNode| guest.call(&node.target(), "peer/list", &Value::Null, &[]);
    assert_eq!(list(&node).code(), "UNAUTHENTICATED");
    let file = bench.path().join("applied.toml");
    std::fs::write(&file, &document).expect("the folder is ours");
    let mut apply = bench.admin().command(&["config", "apply", &node.target()]);
    apply.arg(&file);
    let applied = bench.admin().run(apply).json();
    assert_eq!(
        (&applied["kept"], &applied["peers"]["added"]),
        (&json!(true), &json!(["guest"])),
        "{applied:#}"
    );
    list(&node).json();
    node.end();

    // From the data partition alone, since nothing else identifies the guest.
    let node = bench.machine(BootVariant::MicrovmErofs).config("").boot();
    let info = node.info();
    assert_eq!(info["config"]["source"], "config.toml", "{info:#}");
    assert_eq!(info["problems"], json!([]), "{info:#}");
    list(&node).json();
    let page = || curl(&format!("https://{}/", node.address()), &[]).text();
    assert_eq!(page(), "one");
    store_site(&bench, &node, "two");
    assert_eq!(page(), "two");
}

/// Stores a site of one page.
fn store_site(bench: &TestBench, node: &MachineNode, page: &str) {
    let folder = bench.path().join("public");
    std::fs::create_dir_all(&folder).expect("the folder is ours");
    std::fs::write(folder.join("index.html"), page).expect("the folder is ours");
    let mut add = bench
        .admin()
        .command(&["file", "add", &node.target(), "site/www"]);
    add.arg(&folder);
    let stored = bench.admin().run(add).json();
    assert_eq!(
        (&stored["files"], &stored["kept"]),
        (&json!(1), &json!(true)),
        "{stored:#}"
    );
}

pub(super) fn document(bench: &TestBench, name: &str) -> String {
    let admin = bench.admin().identity();
    format!("# for a test\n[node]\nname = \"{name}\"\nadmin_keys = [\"{admin}\"]\n")
}

/// An empty CD drive.
fn cd_drive(vm: VmBuilder) -> VmBuilder {
    let drive = format!("if=none,id={CD}-drive,media=cdrom");
    let device = format!("ide-cd,bus=ide.0,drive={CD}-drive,id={CD}");
    ["-drive", &drive, "-device", &device]
        .into_iter()
        .fold(vm, VmBuilder::argument)
}

/// Inserts a disc and waits until the node serves with the name that follows from it. During the
/// exchange the drive may be seen empty, so the number of restarts varies.
fn insert(node: &MachineNode, image: &str, name: &str) {
    let mark = node.vm().console().mark();
    change(node.vm(), image);
    let served = format!("{READY}{name} ");
    let waited = node.vm().wait_for_after(mark, &served, APPLIED_WITHIN);
    waited.unwrap_or_else(|error| panic!("{error}"));
    node.translate_handshakes();
}

fn change(vm: &Vm, image: &str) {
    let disc = json!({ "id": CD, "filename": image, "format": "raw", "force": true });
    let done = vm.qmp().execute("blockdev-change-medium", disc);
    done.unwrap_or_else(|error| panic!("{error}"));
}

/// Asserts that this problem, with these words, is on the console and in `node/info`. Returns the
/// latter.
fn problem(node: &MachineNode, code: &str, words: &str) -> Value {
    for said in [&format!("alknet: problem {code}: "), words] {
        let waited = node.vm().wait_for(said, SAID_WITHIN);
        waited.unwrap_or_else(|error| panic!("{error}"));
    }
    let info = settled(node, |info| {
        let problems = info["problems"].as_array();
        problems.is_some_and(|all| all.iter().any(|problem| problem["code"] == code))
    });
    let text = text_of(&info, code);
    assert!(text.contains(words), "{words} in {text}");
    info
}

/// Returns the first `node/info` that fits. While a disc is exchanged the drive may be seen empty,
/// and then the node starts once more after it has served with the same name: a call may meet a
/// node that ends, or one that has no administrator yet.
fn settled(node: &MachineNode, fits: impl Fn(&Value) -> bool) -> Value {
    eventually("node/info has what follows from the document", || {
        let answer = node.try_call("node/info", &Value::Null, &[]);
        let info = (answer.status == 0).then(|| answer.json())?;
        fits(&info).then_some(info)
    })
}

/// What is wrong, and what to do.
fn text_of(info: &Value, code: &str) -> String {
    let problems = info["problems"].as_array().expect("a list");
    let found = problems.iter().find(|problem| problem["code"] == code);
    let found = found.unwrap_or_else(|| panic!("no {code}: {info:#}"));
    let part = |name: &str| found[name].as_str().unwrap_or_default().to_owned();
    format!("{}; {}", part("text"), part("hint"))
}
