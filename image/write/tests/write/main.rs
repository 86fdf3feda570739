//! Disks that are packed, written, checked and signed, with programs of other projects as the judges.

mod disk_end;
mod disk_forms;
mod efi;
mod efi_encodings;
mod efi_folder;
mod efi_forms;
mod flashed;
mod packed;
mod released;
mod signed;
// The inputs of the tests of `alknet-image`. Not all of its helpers are of use here.
#[allow(dead_code)]
#[path = "../../../tests/image/support.rs"]
mod support;
mod tampered;
