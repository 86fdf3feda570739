//! The hub of a machine, which is a node on this host: what it sends if it lies, and what its worker reports to it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use alknet_tests::pebble::GATEWAY;
use alknet_tests::{CliOutput, HUB, HostNode, MachineNode, TestBench, eventually};
use serde_json::{Value, json};

use super::bundle::{ReleaseDraft, ReleaseKeys, write};
use super::disk::SlotDiskImage;
use super::{FIRST, LIMIT, PAUSE, SECOND, stands, status};

/// The name of the machine, by its configuration.
pub(crate) const WORKER: &str = "edge";

/// The bundle that a hub has for its workers, in its state directory.
const BUNDLE_FILE: &str = "state/hub-update/bundle.tar";
/// Bytes of the program in a hub's lies.
const SMALL: usize = 2 << 20;
/// The number of the documents that the hub promises.
const PROMISED: u64 = 5;
/// Bytes from the end of a bundle to the last byte of its program: two blocks of zeros follow.
const LAST_BYTE: usize = 1025;

/// A hub without workers at first.
pub(crate) struct MachineHub<'a> {
    bench: &'a TestBench,
    node: HostNode,
}

impl<'a> MachineHub<'a> {
    pub(crate) fn start(bench: &'a TestBench) -> Self {
        let node = bench.host_with(HUB);
        Self { bench, node }
    }

    pub(super) fn target(&self) -> &str {
        self.node.target()
    }

    /// `alknet update --workers HUB [BUNDLE]`
    fn update(&self, bundle: Option<&Path>) -> CliOutput {
        self.bench.admin().run(self.update_command(bundle))
    }

    fn update_command(&self, bundle: Option<&Path>) -> Command {
        let admin = self.bench.admin();
        let mut command = admin.command(&["update", "--workers", self.target()]);
        command.args(bundle).args(["--yes", "--limit", LIMIT]);
        command
    }

    /// Two rings, the first of one worker.
    fn rings_command(&self, bundle: &Path) -> Command {
        let mut command = self.update_command(Some(bundle));
        command.args(["--rings", "1,all"]);
        command
    }

    /// Updates these two workers in two rings with a version that fails its trial on the first one. The turn of the second
    /// one does not come. Returns why the first one failed.
    pub(crate) fn fails_in_first_ring(&self, bundle: &Path, workers: [&str; 2]) -> String {
        let output = self.bench.admin().run(self.rings_command(bundle));
        assert_eq!(output.code(), "UPDATE_FAILED", "{output:?}");
        let rollout = self.node.call("hub/update_status", &Value::Null)["rollout"].take();
        assert_eq!(rollout["state"], "failed", "{rollout:#}");
        let rows = rollout["workers"].as_array().expect("a list");
        let states: Vec<_> = rows
            .iter()
            .map(|row| (&row["name"], &row["state"]))
            .collect();
        let [first, second] = workers.map(Value::from);
        let expected = [(&first, &json!("failed")), (&second, &json!("waits"))];
        assert_eq!(states, expected, "{rollout:#}");
        rows[0]["reason"].as_str().unwrap_or_default().to_owned()
    }

    /// Updates these two workers in two rings. As long as the command runs, the second one's turn does not come before the
    /// first one has confirmed the version.
    pub(crate) fn updates_in_rings(&self, bundle: &Path, workers: [&str; 2]) {
        let admin = self.bench.admin();
        let command = self.rings_command(bundle);
        let mut seen = BTreeSet::new();
        let output = thread::scope(|scope| {
            let updating = scope.spawn(move || admin.run(command));
            while !updating.is_finished() {
                seen.insert(self.begun_workers());
                thread::sleep(PAUSE);
            }
            updating.join().expect("the command ended")
        });
        assert_eq!(output.status, 0, "{output:?}");
        let is_in_turn = |states: &Vec<String>| match states.as_slice() {
            [before, _] => before == "confirmed",
            _ => true,
        };
        assert!(seen.iter().all(is_in_turn), "{seen:?}");
        let has_begun = |count| seen.iter().any(|states| states.len() == count);
        assert!(has_begun(1) && has_begun(2), "{seen:?}");
        let rollout = self.node.call("hub/update_status", &Value::Null)["rollout"].take();
        assert_eq!(rollout["state"], "done", "{rollout:#}");
        let rows = rollout["workers"].as_array().expect("a list");
        let rings: Vec<_> = rows.iter().map(|row| row["ring"].clone()).collect();
        assert_eq!(rings, [1, 2], "{rollout:#}");
        for name in workers {
            let row = rows.iter().find(|row| row["name"] == name);
            let row = row.unwrap_or_else(|| panic!("{name}: {rollout:#}"));
            assert_eq!(row["state"], "confirmed", "{rollout:#}");
        }
    }

    /// The states of the workers whose turn has come, in the order of the rollout.
    fn begun_workers(&self) -> Vec<String> {
        let rollout = self.node.call("hub/update_status", &Value::Null)["rollout"].take();
        // Before the hub has the bundle there is no rollout, or the one of an earlier bundle.
        if rollout["version"] != SECOND {
            return Vec::new();
        }
        let rows = rollout["workers"].as_array().into_iter().flatten();
        let states = rows.filter_map(|row| row["state"].as_str());
        let begun = states.filter(|state| *state != "waits");
        begun.map(str::to_owned).collect()
    }

    /// Stores a bundle at the hub while it has no worker.
    pub(super) fn store(&self, bundle: &Path) {
        let stored = self.update(Some(bundle));
        assert_eq!(stored.code(), "NOT_FOUND", "{stored:?}");
        let status = self.node.call("hub/update_status", &Value::Null);
        assert_eq!(status["bundle"]["version"], SECOND, "{status:#}");
    }

    /// Stores a bundle with a small program, and returns its bytes. The hub offers its version and its length from now
    /// on, whatever it sends.
    pub(super) fn promise(&self, keys: &ReleaseKeys) -> Vec<u8> {
        let bundle = signed(self.bench, keys, &ReleaseDraft::new(PROMISED, SECOND));
        self.store(&bundle);
        fs::read(bundle).expect("the test wrote it")
    }

    /// What the configuration of a machine says of this hub.
    pub(crate) fn join_entry(&self) -> String {
        let (_, port) = self.target().rsplit_once(':').expect("a port");
        let address = format!("{GATEWAY}:{port}");
        let admin = self.bench.admin();
        let mut command = admin.command(&["hub", "invite", self.target()]);
        command.args(["--role", "worker", "--address", &address]);
        let invited = admin.run(command).json();
        let join = invited["join"].as_str().expect("a join string");
        format!("[[join]]\ncode = \"{join}\"\nupdate = true\nscopes = [\"node:read\"]\n")
    }

    /// Waits until the machine with this name and this key is a worker of the hub.
    pub(crate) fn has_worker(&self, name: &str, key: &str) {
        eventually("the machine is a worker of its hub", || {
            let listed = self.node.call("hub/peers", &Value::Null);
            let mut rows = listed["peers"].as_array()?.iter();
            let row = rows.find(|row| row["name"] == name)?;
            (row["state"] == "ready" && row["keys"] == json!([key])).then_some(())
        });
    }

    /// The machine is the same worker as before, and reports the new version to its hub.
    pub(crate) fn reports_update(&self, name: &str, key: &str) {
        self.has_worker(name, key);
        let rollout = self.node.call("hub/update_status", &Value::Null)["rollout"].take();
        assert_eq!(rollout["state"], "done", "{rollout:#}");
        assert_eq!(rollout["version"], SECOND, "{rollout:#}");
        let ask = |operation: &str| {
            let input = json!({ "peer": name, "operation": operation });
            self.node.call("hub/invoke", &input)
        };
        assert_eq!(ask("node/info")["identity"], key);
        let status = ask("update/status");
        assert_eq!(status["version"], SECOND, "{status:#}");
        assert_eq!(status["last"]["outcome"], "confirmed", "{status:#}");
    }

    /// The hub updates its one worker, which fails. Returns why.
    fn fails(&self, bundle: Option<&Path>) -> String {
        let output = self.update(bundle);
        assert_eq!(output.code(), "UPDATE_FAILED", "{output:?}");
        let rollout: Value = serde_json::from_str(&output.output).expect("JSON");
        let rows = rollout["workers"].as_array().expect("a list");
        assert_eq!(rows.len(), 1, "{rollout:#}");
        let row = &rows[0];
        assert_eq!(
            (&rollout["version"], &row["name"], &row["state"]),
            (&json!(SECOND), &json!(WORKER), &json!("failed")),
            "{rollout:#}"
        );
        row["reason"].as_str().unwrap_or_default().to_owned()
    }

    /// The hub sends these bytes under the name and the length that it has promised.
    fn sends(&self, bytes: &[u8]) -> String {
        let file = self.node.state().join(BUNDLE_FILE);
        fs::write(file, bytes).expect("the folder is ours");
        self.fails(None)
    }

    /// The hub has promised its worker a bundle, and sends others. The worker names what is wrong with each, to its hub
    /// and in `update/status`, and the record and both programs stay as they are.
    pub(super) fn lies_change_nothing(
        &self,
        promised: &[u8],
        node: &MachineNode,
        disk: &SlotDiskImage,
        keys: &ReleaseKeys,
    ) {
        let before = disk.contents();
        let stays = |lie: &str| assert!(disk.contents() == before, "{lie}: something changed");
        self.withholds(promised, node);
        stays("half of it");

        // After the documents of the promised bundle, which are good, each lie has a higher number than the one before.
        let mut changed = promised.to_vec();
        changed[promised.len() - LAST_BYTE] ^= 1;
        let draft = |number, version| ReleaseDraft::new(PROMISED + number, version);
        let expired = ReleaseDraft {
            is_expired: true,
            ..draft(3, SECOND)
        };
        let replayed = ReleaseDraft::new(PROMISED - 1, SECOND);
        let read = |bundle: PathBuf| fs::read(bundle).expect("the test wrote it");
        let lies = [
            ("hash", changed),
            ("rollback", read(signed(self.bench, keys, &replayed))),
            (
                "downgrade",
                read(signed(self.bench, keys, &draft(1, "0.0.9"))),
            ),
            (
                "signature",
                read(signed(self.bench, &ReleaseKeys::one(9), &draft(2, SECOND))),
            ),
            ("expired", read(signed(self.bench, keys, &expired))),
        ];
        let mut texts = Vec::new();
        for (code, bytes) in lies {
            assert_eq!(bytes.len(), promised.len(), "{code}: the promised length");
            texts.push(names_reason(node, &self.sends(&bytes), code));
            stays(code);
        }
        let whole = read(signed(self.bench, keys, &draft(4, SECOND)));
        let cut = write(self.bench.path(), "cut.tar", &whole[..whole.len() / 2]);
        texts.push(names_reason(node, &self.fails(Some(&cut)), "truncated"));
        stays("truncated");

        let log = node.call("update/log", &json!({}));
        let records = log["records"].as_array().expect("a list").iter();
        let refused = records.filter(|record| record["event"] == "refused");
        let refused: Vec<_> = refused.map(|record| record["reason"].clone()).collect();
        // Before them is the bundle that did not arrive.
        assert_eq!(refused.len(), 1 + texts.len(), "{log:#}");
        assert_eq!(refused[1..], texts, "{log:#}");
    }

    /// The hub sends half of what it has promised, and then nothing. Its worker waits, says so, and gives the bundle up
    /// by an administrator's word.
    fn withholds(&self, promised: &[u8], node: &MachineNode) {
        let half = promised.len() / 2;
        self.sends(&promised[..half]);
        let session = status(node)["session"].take();
        assert_eq!(
            (&session["offset"], &session["bytes"]),
            (&json!(half), &json!(promised.len())),
            "{session:#}"
        );
        is_from_hub(&session);
        let cancelled = node.call("update/cancel", &json!({}));
        assert_eq!(cancelled, json!({ "cancelled": true }));
        let status = stands(node, &[("state", "idle"), ("version", FIRST)]);
        let ended = &status["ended"];
        assert_eq!(ended["error"]["code"], "given-up", "{status:#}");
        is_from_hub(ended);
    }
}

/// The bundle of a small program that these keys have signed.
fn signed(bench: &TestBench, keys: &ReleaseKeys, draft: &ReleaseDraft) -> PathBuf {
    keys.bundle(bench.path(), draft, &vec![0x5a; SMALL])
}

#[track_caller]
fn is_from_hub(session: &Value) {
    let source = session["source"].as_str().unwrap_or_default();
    assert!(source.starts_with("the hub "), "{session:#}");
}

/// Checks that the machine says in `update/status` why it has refused its hub's bundle, and that it has said so to the
/// hub. Returns the text.
#[track_caller]
fn names_reason(node: &MachineNode, to_hub: &str, code: &str) -> String {
    let status = stands(node, &[("state", "idle"), ("version", FIRST)]);
    let ended = &status["ended"];
    assert_eq!(ended["error"]["code"], code, "{status:#}");
    is_from_hub(ended);
    assert_eq!(status["session"], Value::Null, "{status:#}");
    let text = ended["error"]["text"].as_str().unwrap_or_default();
    assert!(text.len() > 20, "{status:#}");
    assert!(to_hub.contains(text), "{code}: {to_hub:?} has not {text:?}");
    text.to_owned()
}
