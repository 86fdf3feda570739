//! A hub updates two booted workers in two rings. A version that fails its trial on the first worker does not come to the
//! second one, which then begins once the first one has confirmed a good version.

use alknet_boot_state::BootSlot;
use alknet_qemu::{MachineKind, VirtioDisk};
use alknet_test_support::skip;
use alknet_tests::{READY, TestBench};

use crate::configuration::{NO_VAULT, document};
use crate::power::is_full;
use crate::update::bundle::ReleaseDraft;
use crate::update::disk::SlotDiskImage;
use crate::update::good::{GoodUpdate, NUMBER};
use crate::update::hub::{MachineHub, WORKER};
use crate::update::{FIRST, ONLY_CAMPAIGN, machine, stands};
use crate::update_bad::panicking;

/// The name of the second worker, by its configuration.
const OTHER: &str = "garage";
/// The version that fails its trial. No worker installs a version again that failed there, so the good one is another.
const BAD: &str = "0.1.9";

#[test]
fn update_of_two_machines_by_their_hub_takes_one_after_the_other() {
    if !is_full() {
        skip!("campaign", "{ONLY_CAMPAIGN}");
    }
    let bench = TestBench::new();
    let good = GoodUpdate::new(&bench);
    let hub = MachineHub::start(&bench);
    let other = bench.path().join("other.raw");
    alknet_qemu::copy(&bench.raw(), &other).unwrap_or_else(|error| panic!("{error}"));
    let disks = [(WORKER, bench.raw()), (OTHER, other)];
    let mut workers = disks.map(|(name, disk)| {
        let keys = good.keys.config();
        let config = document(&bench, name) + NO_VAULT + &keys + &hub.join_entry();
        let vm = machine(MachineKind::Q35, VirtioDisk::file(&disk), &config);
        let node = good.serving(&bench, vm);
        let identity = node.identity().to_owned();
        hub.has_worker(name, &identity);
        (name, disk, node, identity)
    });
    let [one, two] = &mut workers;
    assert_ne!(one.3, two.3, "two machines have one key");
    let [mark, unchanged] = [&*one, &*two].map(|(_, _, node, _)| node.vm().console().mark());

    let [first, _] = &good.programs;
    let bad = panicking(first, BAD);
    let draft = ReleaseDraft::new(NUMBER - 1, BAD);
    let bad = good.keys.bundle(bench.path(), &draft, &bad);
    let why = hub.fails_in_first_ring(&bad, [WORKER, OTHER]);
    assert!(why.contains("did not start"), "{why}");
    one.2.wait_ready(mark);
    let failed = [
        ("version", FIRST),
        ("state", "failed"),
        ("other_version", BAD),
    ];
    stands(&one.2, &failed);
    stands(&two.2, &[("version", FIRST), ("state", "idle")]);
    let said = two.2.vm().console().since(unchanged);
    assert!(!said.contains(READY), "the second worker restarted: {said}");
    for (name, disk, _, identity) in [&*one, &*two] {
        hub.has_worker(name, identity);
        let has_it = SlotDiskImage::new(disk.clone()).has_program(BootSlot::A, first);
        assert_eq!(has_it, Some(true), "{name}: slot a was changed");
    }
    let marks = [&*one, &*two].map(|(_, _, node, _)| node.vm().console().mark());

    hub.updates_in_rings(&good.bundle, [WORKER, OTHER]);
    for ((name, disk, node, identity), mark) in workers.iter_mut().zip(marks) {
        good.is_confirmed(node, mark, identity);
        good.is_on(&SlotDiskImage::new(disk.clone()));
        hub.reports_update(name, identity);
    }
}
