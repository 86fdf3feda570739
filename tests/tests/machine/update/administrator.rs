//! The administrator of a machine under UEFI, who updates it and goes back by the commands of docs/update.md.

use std::fs;
use std::path::{Path, PathBuf};

use alknet_qemu::VmBuilder;
use alknet_tests::pebble::{GATEWAY, PebbleAddress};
use alknet_tests::{CliRunner, HostServer, MachineNode, TestBench};
use data_encoding::HEXLOWER;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::bundle::{ReleaseDraft, ReleaseKeys};
use super::good::{GoodUpdate, KEPT, NUMBER, PAGE};
use super::hub::MachineHub;
use super::page::{UpdatePageReader, first_lines};
use super::{FIRST, SECOND, has_token, make_token, roll_back, stands, status};

/// How the first lines of the page's blocks begin: an update, bundles of a server, what became of an update, the way back,
/// and a hub's workers.
const UPDATES: &str = "alknet update edge-1 bundle.tar --dry-run";
const SERVERS: &str = "alknet update edge-1 hall https://";
const LOOKS: &str = "alknet update status edge-1";
const GOES_BACK: &str = "alknet rollback edge-1";
pub(super) const WORKERS: &str = "alknet update --workers attic bundle.tar";
/// What the page says of `--from` and of `--stage`, in one command.
const STAGES_FROM_HUB: &str = "alknet update edge-1 --from attic --stage";

/// The note of a token that a version on trial makes.
const OF_TRIAL: &str = "of the trial";

/// The update of a machine, whose new version a delta makes from the first one. A hub has the bundle, too, and a server
/// has a later one.
pub(crate) struct UpdateByPage<'a> {
    pub(crate) good: GoodUpdate,
    pub(crate) node: MachineNode,
    pub(crate) config: String,
    bench: &'a TestBench,
    reader: UpdatePageReader,
    /// They answer as long as the administrator follows the page.
    _hub: MachineHub<'a>,
    _channel: ReleaseChannel,
}

impl<'a> UpdateByPage<'a> {
    /// Starts the machine that `vm` makes of a configuration. `page` is docs/update.md.
    pub(crate) fn start(
        bench: &'a TestBench,
        page: &'static str,
        vm: impl FnOnce(&str) -> VmBuilder,
    ) -> Self {
        let good = GoodUpdate::new(bench);
        let hub = MachineHub::start(bench);
        hub.store(&good.bundle);
        let channel = ReleaseChannel::new(bench, &later_bundle(bench, &good.keys));
        let config = good.config(bench, &channel.config());
        let node = good.serving(bench, vm(&config));
        let mut reader = UpdatePageReader::new(bench, page, &good.bundle);
        reader.add_node("attic", hub.target());
        // The page has a second machine beside the first one.
        for name in ["edge-1", "hall"] {
            reader.add_node(name, &node.target());
        }
        reader.put(SERVER, channel.address());
        // It counts from the next start on.
        let root = channel.authority.roots();
        let store = format!("alknet file add edge-1 root/{ROOT} {}", root.display());
        reader.prepare(&store);
        Self {
            good,
            node,
            config,
            bench,
            reader,
            _hub: hub,
            _channel: channel,
        }
    }

    /// The new version is staged from the hub's bundle, and then confirmed.
    pub(crate) fn updates(&mut self) {
        self.stages_from_hub();
        let node = &mut self.node;
        let (mark, identity) = (node.vm().console().mark(), node.identity().to_owned());
        let said = self.reader.follow(UPDATES, node.vm());
        for (line, times) in [
            ("edge-1: 0.1.0 → 0.2.0\n", 3),
            ("  changes  for a test\n", 3),
            ("MiB, the differences from the program that runs\n", 3),
            ("nothing was changed on edge-1\n", 2),
            ("edge-1 runs 0.2.0, and has confirmed it\n", 1),
        ] {
            assert_eq!(said.matches(line).count(), times, "{line}: {said}");
        }
        self.good.is_confirmed(node, mark, &identity);
        // The same caller staged the program that was there already, of which the log has no second record.
        let log = node.call("update/log", &json!({}));
        let records = log["records"].as_array().expect("a list").iter();
        let staged = records.filter(|record| record["event"] == "staged");
        assert_eq!(staged.count(), 1, "{log:#}");
    }

    /// The machine has the version of the hub's bundle, which the page has as a dry run only.
    fn stages_from_hub(&self) {
        let said = self.reader.prepare(STAGES_FROM_HUB);
        let waits = "0.2.0 waits on edge-1: 'alknet update edge-1' starts it\n";
        assert!(said.ends_with(waits), "{said}");
        let [_, second] = &self.good.programs;
        let sha256 = HEXLOWER.encode(&Sha256::digest(second));
        stands(
            &self.node,
            &[
                ("version", FIRST),
                ("slot", "a"),
                ("state", "staged"),
                ("other_sha256", sha256.as_str()),
            ],
        );
    }

    /// The administrator looks at what became of it, and at the bundle of a server.
    pub(crate) fn looks(&self) {
        let vm = self.node.vm();
        let said = self.reader.follow(LOOKS, vm);
        for part in ["version    0.2.0\n", "  confirmed 0.2.0 by "] {
            assert!(said.contains(part), "{part}: {said}");
        }
        assert!(said.ends_with("no bundle was under way\n"), "{said}");
        let said = self.reader.follow(SERVERS, vm);
        for (line, times) in [
            ("edge-1: 0.2.0 → 0.3.0\n", 2),
            ("hall: 0.2.0 → 0.3.0\n", 1),
            ("nothing was changed on ", 3),
        ] {
            assert_eq!(said.matches(line).count(), times, "{line}: {said}");
        }
    }

    /// The floor of the new version refuses an older one that an administrator permits, and a rollback returns to the
    /// first version. Identity and stored tokens stay.
    pub(crate) fn goes_back(&self) {
        let node = &self.node;
        self.good.refuses_below_floor(self.bench, node);

        let identity = node.identity();
        let said = self.reader.follow(GOES_BACK, node.vm());
        assert!(said.ends_with("edge-1 runs 0.1.0 again\n"), "{said}");
        stands(
            node,
            &[
                ("version", FIRST),
                ("slot", "a"),
                ("other_version", SECOND),
                ("state", "good"),
            ],
        );
        // The machine does not go back to it by itself.
        alknet_tests::eventually("the version that was left", || {
            (status(node)["left"] == json!([SECOND])).then_some(())
        });
        assert_eq!(node.info()["identity"], identity);
        has_token(node, KEPT);
    }

    /// After [`goes_back`](Self::goes_back) the new version is on trial once more and makes a token, and the administrator
    /// ends the trial by `alknet rollback`. The first version has what it and the other one acknowledged.
    pub(crate) fn ends_trial(&mut self) {
        let node = &mut self.node;
        let (mark, identity) = (node.vm().console().mark(), node.identity().to_owned());
        node.call("update/rollback", &json!({}));
        node.wait_ready(mark);
        assert_eq!(node.identity(), identity);
        let trial = [("version", SECOND), ("slot", "b"), ("state", "trial")];
        stands(node, &trial);
        make_token(node, OF_TRIAL);

        let mark = node.vm().console().mark();
        let back = roll_back(self.bench.admin(), node);
        assert_eq!(back.status, 0, "{back:?}\n{}", node.vm().report());
        assert_eq!(back.json()["outcome"], "returned", "{back:?}");
        node.wait_ready(mark);
        assert_eq!(node.identity(), identity);
        let status = stands(
            node,
            &[
                ("version", FIRST),
                ("slot", "a"),
                ("other_version", SECOND),
                ("state", "failed"),
            ],
        );
        // The gate has neither confirmed the version before nor given it up.
        assert_eq!(status["last"]["outcome"], "rolled-back", "{status:#}");
        for note in [KEPT, OF_TRIAL] {
            has_token(node, note);
        }
    }
}

/// The tests of `update_cuts.rs` and `good.rs` run each of them.
#[test]
fn update_page_has_no_other_commands_for_tests() {
    let begins = [UPDATES, SERVERS, LOOKS, GOES_BACK, WORKERS];
    let lines = first_lines(PAGE);
    assert_eq!(lines.len(), begins.len(), "{lines:?}");
    for (line, begin) in lines.iter().zip(begins) {
        assert!(line.starts_with(begin), "{line:?} is not {begin:?}");
    }
}

/// The page's server, and where the channels are below it.
const SERVER: &str = "https://updates.example.org/";
const CHANNELS: &str = "alknet";
/// The name under which the machine keeps the certificate of the server's authority.
const ROOT: &str = "lab";

/// A bundle of a later version. Its program starts on no machine.
fn later_bundle(bench: &TestBench, keys: &ReleaseKeys) -> PathBuf {
    let draft = ReleaseDraft::new(NUMBER + 1, "0.3.0");
    keys.bundle(bench.path(), &draft, &[0; 2 << 20])
}

/// A server on this host, with a bundle in the channel `stable`.
pub(crate) struct ReleaseChannel {
    authority: PebbleAddress,
    server: HostServer,
}

impl ReleaseChannel {
    pub(crate) fn new(bench: &TestBench, bundle: &Path) -> Self {
        let folder = bench.path().join("served");
        let stable = folder.join(CHANNELS).join("stable");
        let linked = fs::create_dir_all(&stable)
            .and_then(|()| fs::hard_link(bundle, stable.join("bundle.tar")));
        linked.expect("the folder is ours");
        let authority = PebbleAddress::new();
        let server = HostServer::files(&folder, &authority);
        Self { authority, server }
    }

    /// The address, as a machine on QEMU's network sees it.
    fn address(&self) -> String {
        format!("https://{GATEWAY}:{}/", self.server.port())
    }

    /// The address of the bundle.
    pub(super) fn bundle(&self) -> String {
        format!("{}{CHANNELS}/stable/bundle.tar", self.address())
    }

    /// Stores the certificate of the server's authority on a machine, which trusts it from its next start on.
    pub(crate) fn store_root(&self, user: &CliRunner, node: &MachineNode) {
        let name = format!("root/{ROOT}");
        let mut add = user.command(&["file", "add", &node.target(), &name]);
        add.arg(self.authority.roots());
        assert_eq!(user.run(add).json()["kept"], true);
    }

    /// Follows the table `[update]` of a configuration.
    pub(crate) fn config(&self) -> String {
        format!(
            "url = \"{}{CHANNELS}\"\n[tls]\nroots = \"store:/root/{ROOT}\"\nwebpki_ip = true\n",
            self.address()
        )
    }
}
