//! Bodies of frames: JSON alone, or with binary data after it.

use alknet_call::limits::NESTING_MAX;
use alknet_call::{CallBody, CallOutput, Envelope, FrameBody};
use bytes::Bytes;
use serde_json::Value;

/// Takes the body of one frame apart, down to the binary data that its payload refers to.
pub fn mixed(data: &[u8]) -> bool {
    let Ok(body) = FrameBody::parse(Bytes::copy_from_slice(data)) else {
        assert_ne!(data.first(), Some(&b'{'), "JSON is judged by the envelope");
        return false;
    };
    assert_eq!(body.envelope.first(), Some(&b'{'));
    let Some(tail) = body.tail else {
        assert_eq!(body.envelope, data);
        return crate::envelope::check(data, NESTING_MAX);
    };
    let length = u32::try_from(body.envelope.len()).expect("it came with a length of 32 bits");
    let again = [&[1], &length.to_be_bytes()[..], &body.envelope, &tail].concat();
    assert_eq!(again, data);
    let taken = crate::envelope::check(&body.envelope, NESTING_MAX);
    if let Ok(envelope) = Envelope::parse(&body.envelope, NESTING_MAX)
        && let Ok(payload) = serde_json::from_str::<Value>(envelope.payload)
    {
        let whole = CallBody::from(CallOutput::Mixed(payload.clone(), tail.clone()));
        every_reference(&whole, &payload, &tail);
    }
    taken
}

/// Every `{"$bin":[offset,length]}` stands for exactly those bytes, or for none.
fn every_reference(body: &CallBody, value: &Value, tail: &[u8]) {
    assert_eq!(body.binary(value).as_deref(), bytes_of(value, tail));
    match value {
        Value::Array(items) => items.iter().for_each(|v| every_reference(body, v, tail)),
        Value::Object(members) => members
            .values()
            .for_each(|v| every_reference(body, v, tail)),
        _ => {}
    }
}

fn bytes_of<'t>(value: &Value, tail: &'t [u8]) -> Option<&'t [u8]> {
    let members = value.as_object()?;
    let Some(Value::Array(pair)) = members.get("$bin").filter(|_| members.len() == 1) else {
        return None;
    };
    let [offset, length] = [pair.first()?.as_u64()?, pair.get(1)?.as_u64()?];
    let end = u128::from(offset) + u128::from(length);
    let is_valid = pair.len() == 2 && end <= tail.len() as u128;
    // Both lie within the tail, whose length is a `usize`.
    is_valid.then(|| &tail[offset as usize..end as usize])
}
