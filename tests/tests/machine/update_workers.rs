//! A hub updates two booted workers in two rings: the second one begins once the first one has confirmed the version.

use alknet_qemu::{MachineKind, VirtioDisk};
use alknet_test_support::skip;
use alknet_tests::TestBench;

use crate::configuration::{NO_VAULT, document};
use crate::power::is_full;
use crate::update::disk::SlotDiskImage;
use crate::update::good::GoodUpdate;
use crate::update::hub::{MachineHub, WORKER};
use crate::update::{ONLY_CAMPAIGN, machine};

/// The name of the second worker, by its configuration.
const OTHER: &str = "garage";

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
    let [one, two] = &workers;
    assert_ne!(one.3, two.3, "two machines have one key");
    let marks = [one, two].map(|(_, _, node, _)| node.vm().console().mark());

    hub.updates_in_rings(&good.bundle, [WORKER, OTHER]);
    for ((name, disk, node, identity), mark) in workers.iter_mut().zip(marks) {
        good.is_confirmed(node, mark, identity);
        good.is_on(&SlotDiskImage::new(disk.clone()));
        hub.reports_update(name, identity);
    }
}
