//! Starts under Secure Boot, with keys of our own in the firmware.

use super::boots::{TpmBootBench, outcome};

/// A test with the appliance shows that firmware starts nothing else
/// (`tests/tests/machine/secure_boot.rs`).
#[test]
fn under_secure_boot_updates_of_the_same_key_open_and_nothing_does_without_it() {
    let bench = TpmBootBench::new();
    let owner = bench.owner("owner");
    bench.enroll(&owner, "owners");
    let plain = |line: &str| bench.image(line);
    let signed = |image: &[u8]| bench.signed(&owner, image);
    let first = signed(&plain("example=first"));
    let second = signed(&plain("example=second"));
    let said = |image: &[u8], variables: &str| {
        let vm = bench.start(image, [&first, &second], "chip", Some(variables));
        outcome(&vm)
    };
    bench.record([&first, &second], Some("owners"));
    let made = said(&first, "owners");
    assert_eq!(made, "measured and enforced; slot 1 is for the next image");
    assert_eq!(said(&second, "owners"), "opened by slot 1");
    assert_eq!(said(&first, "owners"), "opened by slot 0");
    // It is signed as well, but no slot was made for it.
    let refused = said(&signed(&plain("example=third")), "owners");
    let image = "PCR 11 (the image or its command line)";
    assert!(
        refused.contains(image) && !refused.contains("PCR 7"),
        "{refused}"
    );

    // An attacker who removes all keys from the firmware switches Secure Boot off: it starts
    // anything, and that opens nothing.
    let refused = said(&first, "none");
    assert!(
        refused.starts_with("locked: ") && refused.contains("PCR 7 (Secure Boot or its keys)"),
        "{refused}"
    );
}
