//! Starts that firmware measures. Without Secure Boot, an attacker's image starts as well.
//! `tests/tests/machine/tpm.rs` shows how the TPM answers another image, and that recorded firmware
//! measures as firmware does from power-on.

use super::boots::TpmBootBench;

#[test]
fn an_update_and_the_way_back_open_unattended() {
    let bench = TpmBootBench::new();
    let (first, second) = (bench.image("example=first"), bench.image("example=second"));
    assert_ne!(first, second);
    let said = |image: &[u8]| bench.boot(image, [&first, &second], "chip");
    bench.record([&first, &second], None);
    let made = said(&first);
    assert_eq!(made, "measured, not enforced; slot 1 is for the next image");
    assert_eq!(said(&second), "opened by slot 1");
    assert_eq!(said(&first), "opened by slot 0");
}
