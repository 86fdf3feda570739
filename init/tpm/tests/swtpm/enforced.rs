//! Starts under Secure Boot, with keys of our own in the firmware.

use super::boots::{Bench, LIMIT, outcome};

/// What firmware says of a program that it does not start.
const REFUSED: &str = "Access Denied";

#[test]
fn under_secure_boot_updates_of_the_same_key_open_and_nobody_elses_start() {
    let bench = Bench::new();
    let [owner, other] = ["owner", "other"].map(|name| bench.owner(name));
    bench.enroll(&owner, "owners");
    bench.enroll(&other, "others");
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
    // Signed as well, but without a slot made for it.
    let refused = said(&signed(&plain("example=third")), "owners");
    let image = "PCR 11 (the image or its command line)";
    assert!(
        refused.contains(image) && !refused.contains("PCR 7"),
        "{refused}"
    );

    // Whatever the owner did not sign never runs.
    let others = bench.signed(&other, &plain("example=first"));
    for image in [&plain("example=first"), &others] {
        let vm = bench.start(image, [&first, &second], "chip", Some("owners"));
        let waited = vm.wait_for(REFUSED, LIMIT);
        waited.unwrap_or_else(|error| panic!("{error}"));
        assert!(!vm.console().text().contains("booted machine"));
    }
    // Who puts other keys into the firmware, or switches it off, starts it and opens nothing.
    for (image, variables) in [(&others, "others"), (&first, "none")] {
        let refused = said(image, variables);
        assert!(
            refused.starts_with("locked: ") && refused.contains("PCR 7 (Secure Boot or its keys)"),
            "{refused}"
        );
    }
}
