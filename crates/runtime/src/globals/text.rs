//! UTF-8 for `TextEncoder` and `TextDecoder`, and base64 for bytes in calls.

use std::rc::Rc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rquickjs::{Array, Ctx, Exception, Function, Object, Result, TypedArray};

use crate::isolate::{IsolateState, read_bytes};

pub(super) fn install<'js>(
    ctx: &Ctx<'js>,
    native: &Object<'js>,
    _: &Rc<IsolateState>,
) -> Result<()> {
    native.set("encode", Function::new(ctx.clone(), encode)?)?;
    native.set("decode", Function::new(ctx.clone(), decode)?)?;
    native.set("toBase64", Function::new(ctx.clone(), to_base64)?)?;
    native.set("fromBase64", Function::new(ctx.clone(), from_base64)?)
}

fn to_base64(data: TypedArray<'_, u8>) -> Result<String> {
    Ok(STANDARD.encode(read_bytes(&data)?))
}

fn from_base64(ctx: Ctx<'_>, text: String) -> Result<TypedArray<'_, u8>> {
    let bytes = STANDARD.decode(text);
    let bytes = bytes.map_err(|_| Exception::throw_type(&ctx, "the answer is no base64"))?;
    TypedArray::new_copy(ctx, bytes)
}

fn encode(ctx: Ctx<'_>, text: String) -> Result<TypedArray<'_, u8>> {
    TypedArray::new_copy(ctx, text.into_bytes())
}

/// The text of `data`, and how many bytes of it were used: all of them, except an incomplete
/// sequence at the end of a stream's piece.
fn decode<'js>(
    ctx: Ctx<'js>,
    data: TypedArray<'js, u8>,
    fatal: bool,
    stream: bool,
) -> Result<Array<'js>> {
    let data = read_bytes(&data)?;
    let used = if stream { whole(&data) } else { data.len() };
    let text = String::from_utf8_lossy(&data[..used]);
    // `from_utf8_lossy` allocates a text only if it replaces something.
    if fatal && matches!(text, std::borrow::Cow::Owned(_)) {
        return Err(Exception::throw_type(&ctx, "the bytes are not UTF-8"));
    }
    let answer = Array::new(ctx)?;
    answer.set(0, text.as_ref())?;
    answer.set(1, used as f64)?;
    Ok(answer)
}

/// The length without a sequence at the end that more bytes could complete.
fn whole(data: &[u8]) -> usize {
    let tail = data.len().saturating_sub(3);
    for at in (tail..data.len()).rev() {
        // The first byte determines the number of bytes; C0, C1 and F5 to FF begin no sequence (RFC
        // 3629 section 4).
        let needs = match data[at] {
            0x80..=0xbf => continue,
            0xc2..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf4 => 4,
            _ => 1,
        };
        return if data.len() - at < needs {
            at
        } else {
            data.len()
        };
    }
    data.len()
}

#[cfg(test)]
mod tests {
    use super::whole;

    #[test]
    fn a_cut_sequence_waits_and_a_broken_one_does_not() {
        let text = "a€".as_bytes();
        assert_eq!(
            [1, 2, 3, 4].map(|length| whole(&text[..length])),
            [1, 1, 1, 4]
        );
        assert_eq!(whole(&[0x80, 0x80, 0x80, 0x80]), 4);
        assert_eq!(whole(&[0xff]), 1);
        assert_eq!(whole(&[]), 0);
    }
}
