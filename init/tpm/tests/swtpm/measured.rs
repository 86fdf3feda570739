//! Starts that firmware measures, and anybody's image starts.

use super::boots::Bench;

#[test]
fn an_update_and_the_way_back_open_without_anybody() {
    let bench = Bench::new();
    let (first, second) = (bench.image("example=first"), bench.image("example=second"));
    assert_ne!(first, second);
    let said = |image: &[u8]| bench.boot(image, [&first, &second], "chip");
    // From power-on: what is sealed here has to open where recorded firmware measures.
    let made = said(&first);
    assert_eq!(made, "measured, not enforced; slot 1 is for the next image");
    bench.record([&first, &second], None);
    assert_eq!(said(&second), "opened by slot 1");
    assert_eq!(said(&first), "opened by slot 0");
    // What is neither of the two, which the refusal says.
    let refused = said(&bench.image("example=third"));
    assert!(refused.starts_with("locked: "), "{refused}");
    for part in ["PCR 4", "PCR 11 (the image or its command line)"] {
        assert!(refused.contains(part), "{refused}");
    }
}
