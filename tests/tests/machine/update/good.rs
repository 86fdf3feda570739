//! An update to a good version, by an administrator and by a hub, and the way back. The commands are those of
//! docs/update.md.

use std::path::PathBuf;

use alknet_boot_state::BootSlot;
use alknet_qemu::{ConsoleMark, DiskController, MachineKind, VirtioDisk};
use alknet_tests::pebble::{GATEWAY, PebbleAddress};
use alknet_tests::{HostServer, MachineNode, TestBench};
use serde_json::json;

use super::bundle::{ReleaseDraft, ReleaseKeys};
use super::damage::finds_damage;
use super::disk::SlotDiskImage;
use super::hub::{MachineHub, WORKER};
use super::page::{UpdatePageReader, first_lines};
use super::program::versioned;
use super::{
    FIRST, SECOND, config, has_token, is_refused, machine, make_token, serving, stands, status,
    update,
};

const PAGE: &str = include_str!("../../../../docs/update.md");

/// How the first lines of the page's blocks begin: an update, bundles of a server, what became of an update, the way back,
/// and a hub's workers.
const UPDATES: &str = "alknet update edge-1 bundle.tar --dry-run";
const SERVERS: &str = "alknet update edge-1 hall https://";
const LOOKS: &str = "alknet update status edge-1";
const GOES_BACK: &str = "alknet rollback edge-1";
const WORKERS: &str = "alknet update --workers attic bundle.tar";

/// The note of a token that an update keeps.
const KEPT: &str = "stays";
/// The number of the good release's documents: above those of a hub's lies.
const NUMBER: u64 = 20;

/// Under UEFI: the new version, which a delta makes from the first one, is confirmed, then its floor refuses an older one
/// that an administrator permits, and a rollback returns to the first version. Identity and stored tokens stay. The
/// administrator does all of it by the commands of the page.
#[test]
fn update_good_and_back_under_uefi() {
    let bench = TestBench::new();
    let good = GoodUpdate::new(&bench, BundleKind::Delta);
    let hub = MachineHub::start(&bench);
    hub.store(&good.bundle);
    let channel = ReleaseChannel::new(&bench, &good.keys);
    let (kind, on) = (MachineKind::Q35Uefi, DiskController::VirtioBlk);
    let mut node = good.serving(&bench, (kind, on), &channel.config());
    let mut reader = UpdatePageReader::new(&bench, PAGE, &good.bundle);
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
    let (mark, identity) = (node.vm().console().mark(), node.identity().to_owned());
    let said = reader.follow(UPDATES, node.vm());
    for (line, times) in [
        ("edge-1: 0.1.0 → 0.2.0\n", 3),
        ("  changes  for a test\n", 3),
        ("MiB, the differences from the program that runs\n", 3),
        ("nothing was changed on edge-1\n", 2),
        ("edge-1 runs 0.2.0, and has confirmed it\n", 1),
    ] {
        assert_eq!(said.matches(line).count(), times, "{line}: {said}");
    }
    good.is_confirmed(&mut node, mark, &identity);
    let said = reader.follow(LOOKS, node.vm());
    for part in ["version    0.2.0\n", "  confirmed 0.2.0 by "] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(said.ends_with("no bundle was under way\n"), "{said}");
    let said = reader.follow(SERVERS, node.vm());
    for (line, times) in [
        ("edge-1: 0.2.0 → 0.3.0\n", 2),
        ("hall: 0.2.0 → 0.3.0\n", 1),
        ("nothing was changed on ", 3),
    ] {
        assert_eq!(said.matches(line).count(), times, "{line}: {said}");
    }

    let older = ReleaseDraft::new(NUMBER + 2, "0.0.9");
    let older = good.keys.bundle(bench.path(), &older, &[0; 2 << 20]);
    let refused = update(
        bench.admin(),
        &node,
        &older,
        &["--stage", "--downgrade", "0.0.9"],
    );
    is_refused(&refused, "FORBIDDEN", "below-floor");

    let said = reader.follow(GOES_BACK, node.vm());
    assert!(said.ends_with("edge-1 runs 0.1.0 again\n"), "{said}");
    stands(
        &node,
        &[
            ("version", FIRST),
            ("slot", "a"),
            ("other_version", SECOND),
            ("state", "good"),
        ],
    );
    // The machine does not go back to it by itself.
    alknet_tests::eventually("the version that was left", || {
        (status(&node)["left"] == json!([SECOND])).then_some(())
    });
    assert_eq!(node.info()["identity"], identity.as_str());
    has_token(&node, KEPT);
}

/// Under BIOS GRUB counts the tries and starts the slots, here on an NVMe disk. The machine's hub lies to it, and then
/// updates it. Afterwards the machine notices what the disk does wrong.
#[test]
fn update_by_a_hub_under_bios_after_its_lies_and_faults_of_its_storage_are_found() {
    let bench = TestBench::new();
    let good = GoodUpdate::new(&bench, BundleKind::Whole);
    let hub = MachineHub::start(&bench);
    let promised = hub.promise(&good.keys);
    let (kind, on) = (MachineKind::Q35, DiskController::Nvme);
    let mut node = good.serving(&bench, (kind, on), &hub.join_entry());
    let identity = node.identity().to_owned();
    hub.has_worker(&identity);
    hub.lies_change_nothing(&promised, &node, &good.disk, &good.keys);

    let reader = UpdatePageReader::new(&bench, PAGE, &good.bundle);
    reader.add_node("attic", hub.target());
    let mark = node.vm().console().mark();
    let said = reader.follow(WORKERS, node.vm());
    let line = format!("ring 1  {WORKER}  confirmed\n");
    assert!(said.contains(&line), "{said}");
    good.is_confirmed(&mut node, mark, &identity);
    hub.reports_update(&identity);
    finds_damage(bench.admin(), &node, &good.disk);
}

/// The two tests above run each of them.
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

/// A server on this host, with a bundle of a later version in the channel `stable`. Its program starts on no machine.
struct ReleaseChannel {
    authority: PebbleAddress,
    server: HostServer,
}

impl ReleaseChannel {
    fn new(bench: &TestBench, keys: &ReleaseKeys) -> Self {
        let draft = ReleaseDraft::new(NUMBER + 1, "0.3.0");
        let bundle = keys.bundle(bench.path(), &draft, &[0; 2 << 20]);
        let folder = bench.path().join("served");
        let stable = folder.join(CHANNELS).join("stable");
        let moved = std::fs::create_dir_all(&stable)
            .and_then(|()| std::fs::rename(bundle, stable.join("bundle.tar")));
        moved.expect("the folder is ours");
        let authority = PebbleAddress::new();
        let server = HostServer::files(&folder, &authority);
        Self { authority, server }
    }

    /// The address, as a machine on QEMU's network sees it.
    fn address(&self) -> String {
        format!("https://{GATEWAY}:{}/", self.server.port())
    }

    /// Follows the table `[update]` of a configuration.
    fn config(&self) -> String {
        format!(
            "url = \"{}{CHANNELS}\"\n[tls]\nroots = \"store:/root/{ROOT}\"\nwebpki_ip = true\n",
            self.address()
        )
    }
}

/// What the bundle of an update has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BundleKind {
    Delta,
    Whole,
}

/// Most bytes of a bundle with the delta between two programs that differ by their versions.
const DELTA_BUNDLE_BYTES_MAX: u64 = 256 << 10;

/// An update of a bench's disk from [`FIRST`] to [`SECOND`].
struct GoodUpdate {
    keys: ReleaseKeys,
    disk: SlotDiskImage,
    /// The file of the bundle.
    bundle: PathBuf,
    /// The program of each version.
    first: Vec<u8>,
    second: Vec<u8>,
}

impl GoodUpdate {
    fn new(bench: &TestBench, has: BundleKind) -> Self {
        let keys = ReleaseKeys::one(7);
        let disk = SlotDiskImage::new(bench.raw());
        let first = disk.program(BootSlot::A).expect("the image has it");
        let second = versioned(&first, SECOND);
        let mut draft = ReleaseDraft::new(NUMBER, SECOND);
        draft.floor = Some(FIRST);
        let old = (has == BundleKind::Delta).then_some(&first[..]);
        let bundle = keys.bundle_from(bench.path(), &draft, &second, old);
        let bytes = std::fs::metadata(&bundle).expect("written").len();
        assert_eq!(bytes <= DELTA_BUNDLE_BYTES_MAX, old.is_some(), "{bytes}");
        Self {
            keys,
            disk,
            bundle,
            first,
            second,
        }
    }

    /// The machine before the update, with a token. `more` is for its configuration.
    fn serving(
        &self,
        bench: &TestBench,
        (kind, on): (MachineKind, DiskController),
        more: &str,
    ) -> MachineNode {
        let file = VirtioDisk::file(self.disk.path()).on(on);
        let config = config(bench, &self.keys) + more;
        let node = serving(bench, machine(kind, file, &config));
        stands(
            &node,
            &[
                ("version", FIRST),
                ("slot", "a"),
                ("state", "idle"),
                ("keys", "owner"),
            ],
        );
        make_token(&node, KEPT);
        node
    }

    /// The machine has confirmed the version, which is in slot b, and has kept its key, its token, and the first version
    /// in slot a. It restarted after `mark`.
    #[track_caller]
    fn is_confirmed(&self, node: &mut MachineNode, mark: ConsoleMark, identity: &str) {
        node.wait_ready(mark);
        assert_eq!(node.identity(), identity);
        let status = stands(
            node,
            &[
                ("version", SECOND),
                ("slot", "b"),
                ("good", "b"),
                ("other_version", FIRST),
                ("state", "good"),
            ],
        );
        assert_eq!(status["last"]["outcome"], "confirmed", "{status:#}");
        assert_eq!(node.info()["problems"], json!([]));
        has_token(node, KEPT);
        let is_there = |slot, program: &[u8]| self.disk.has_program(slot, program) == Some(true);
        assert!(is_there(BootSlot::A, &self.first), "slot a was changed");
        assert!(
            is_there(BootSlot::B, &self.second),
            "slot b has other bytes"
        );
    }
}
