//! Hashes of shaders and of the processor, beside those of the `sha2` library.

use alknet_test_support::skipped;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::node::{MatrixRng, NODE, inline};
use crate::adapter;

/// Every message length up to this one.
const LENGTH_MAX: usize = 1000;

fn ways() -> &'static [&'static str] {
    match adapter() {
        Ok(()) => &["wgsl", "host"],
        Err(why) => {
            skipped(
                "Vulkan adapter",
                format_args!("only on the processor: {why}"),
            );
            &["host"]
        }
    }
}

#[test]
fn messages_of_every_length_hash_as_they_should() {
    let mut dice = MatrixRng::new(1);
    let messages: Vec<Vec<u8>> = (0..=LENGTH_MAX)
        .map(|len| (0..len).map(|_| dice.next() as u8).collect())
        .collect();
    let data = messages.concat();
    let mut offsets = vec![0_u8; 4];
    let mut end = 0_u32;
    for message in &messages {
        end += u32::try_from(message.len()).expect("short");
        offsets.extend_from_slice(&end.to_le_bytes());
    }
    let expected: Vec<u8> = messages.iter().flat_map(Sha256::digest).collect();

    let person = NODE.person("hashes");
    let handle = person.create("U8", &[data.len()], &data);
    for way in ways() {
        let input = json!({
            "data": { "handle": handle },
            "offsets": inline("U32", &[messages.len() + 1], &offsets),
            "variant": way,
        });
        let answer = person.ask("compute/sha256", &input);
        let told = answer.value().clone();
        assert_eq!(told["variant"], *way);
        assert_eq!(told["digests"]["shape"], json!([messages.len(), 32]));
        let digests = person.bytes(&answer, &told["digests"]);
        for (len, (ours, theirs)) in digests.chunks(32).zip(expected.chunks(32)).enumerate() {
            assert_eq!(ours, theirs, "{way}, {len} bytes");
        }
        assert_eq!(digests.len(), expected.len());
    }
    person.ask("tensor/drop", &json!({ "handle": handle }));
}

#[test]
fn rows_are_messages_where_there_are_no_offsets() {
    let person = NODE.person("hashed-rows");
    let data: Vec<u8> = (0..60).collect();
    for way in ways() {
        for (shape, each) in [(vec![60], 60), (vec![5, 12], 12), (vec![3, 4, 5], 20)] {
            let input = json!({ "data": inline("U8", &shape, &data), "variant": way });
            let answer = person.ask("compute/sha256", &input);
            let digests = person.bytes(&answer, &answer.value()["digests"]);
            let expected: Vec<u8> = data.chunks(each).flat_map(Sha256::digest).collect();
            assert_eq!(digests, expected, "{shape:?}");
        }
    }
    // Nothing is one message without bytes; no rows are no message.
    let empty = person.ask(
        "compute/sha256",
        &json!({ "data": inline("U8", &[0], &[]) }),
    );
    let digests = person.bytes(&empty, &empty.value()["digests"]);
    assert_eq!(digests, Sha256::digest([]).to_vec());
    let none = person.ask(
        "compute/sha256",
        &json!({ "data": inline("U8", &[0, 9], &[]) }),
    );
    assert_eq!(none.value()["digests"]["shape"], json!([0, 32]));
}

#[test]
fn offsets_that_lead_nowhere_are_refused() {
    let person = NODE.person("hashed-nowhere");
    let data = inline("U8", &[4], b"abcd");
    let le = |offsets: &[u32]| -> Vec<u8> {
        offsets
            .iter()
            .flat_map(|offset| offset.to_le_bytes())
            .collect()
    };
    for offsets in [&[0, 5][..], &[3, 2], &[0, u32::MAX], &[9]] {
        let offsets = inline("U32", &[offsets.len()], &le(offsets));
        let input = json!({ "data": data, "offsets": offsets });
        let refused = person.refused("compute/sha256", &input);
        assert_eq!(refused, ("INVALID_INPUT".into(), "E_SHAPE".into()));
    }
    let input = json!({ "data": inline("F32", &[1], b"abcd") });
    let refused = person.refused("compute/sha256", &input);
    assert_eq!(refused, ("INVALID_INPUT".into(), "E_DTYPE".into()));
}
