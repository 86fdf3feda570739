//! The form for Google's cloud, on a machine with more memory than the others.

use alknet_image::{ImageForm, OutputRole};
use alknet_qemu::{DiskController, NicModel, VirtioDisk};
use alknet_tests::TestBench;

use super::forms::{built, keeps_data, uefi, unpacked};

/// Bytes of the disk in the archive, which Google takes in whole GiB only.
const DISK_BYTES: u64 = 1 << 30;

#[test]
fn an_image_of_google_starts_on_virtio_scsi_with_much_memory() {
    let bench = TestBench::new();
    let archive = built(ImageForm::Gce, OutputRole::Archive);
    let disk = unpacked(&bench, &archive).join("disk.raw");
    let disk = VirtioDisk::file(disk).on(DiskController::VirtioScsi);
    let vm = uefi(disk, NicModel::Virtio).memory_mib(4096);
    let (_, info) = keeps_data(&bench, vm, "/dev/sda3", DISK_BYTES);
    let total = info["memory"]["total_bytes"].as_u64();
    assert!(total.is_some_and(|total| total > 3 << 30), "{info:#}");
}
