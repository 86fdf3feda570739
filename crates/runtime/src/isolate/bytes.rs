//! Bytes between a script and Rust.

use bytes::Bytes;
use rquickjs::{ArrayBuffer, Ctx, Error, TypedArray, Value as JsValue};

use crate::isolate::interrupt_budget::ExternalReservation;
use crate::isolate::shared::IsolateState;

/// Copies the content of a `Uint8Array`.
pub(crate) fn read<'js>(value: &TypedArray<'js, u8>) -> rquickjs::Result<Vec<u8>> {
    let raw = value.as_raw().ok_or(Error::Unknown)?;
    // SAFETY: the engine's memory stays in place until a script runs or a value is freed; neither happens between
    // these two lines, and the bytes are copied.
    let bytes = unsafe { raw.as_ref() };
    Ok(bytes.to_vec())
}

/// Gives a script bytes of Rust without copying them: an immutable buffer, which counts against the session's
/// external limit until the script releases it. `None` if that limit leaves no room.
pub(crate) fn share<'js>(
    ctx: &Ctx<'js>,
    shared: &IsolateState,
    bytes: Bytes,
) -> rquickjs::Result<Option<JsValue<'js>>> {
    let reserved = shared
        .budget
        .reserve(bytes.len(), shared.spec.limits.external_bytes);
    let Some(reserved) = reserved else {
        return Ok(None);
    };
    let counted = CountedBytes {
        bytes,
        _reserved: reserved,
    };
    let buffer = ArrayBuffer::from_source_immutable(ctx.clone(), counted)?;
    Ok(Some(buffer.into_value()))
}

struct CountedBytes {
    bytes: Bytes,
    _reserved: ExternalReservation,
}

// SAFETY: the memory of `Bytes` neither moves nor changes its length while it lives, and the buffer over it is
// immutable.
unsafe impl rquickjs::ArrayBufferSource for CountedBytes {
    fn as_ptr(&self) -> *mut u8 {
        self.bytes.as_ptr().cast_mut()
    }

    fn len(&self) -> usize {
        self.bytes.len()
    }
}
